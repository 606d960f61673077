"""Standard output and error of a command, which may fail while it works."""

from __future__ import annotations

import os
import sys
from typing import Any

from agentdb.management.progress import ProgressLine


class Output:
    """A stream that remembers the first failed write instead of raising it.

    A closed pipe or a full disk must neither stop an adoption halfway nor make its exit code disagree with what is
    stored. To know that the text arrived, read ``failure`` after ``flush()``.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream  # None if the descriptor was closed when Python started
        self.failure: str | None = None
        if stream is None:
            self.failure = "it is closed"
        self.progress: ProgressLine | None = None

    def write(self, text: str) -> int:
        """Write the text, below a progress line that is removed first."""
        if self.progress is not None:
            self.progress.clear()
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        """Hand the text to the system; a full disk may refuse it only now."""
        self._try("flush")

    # Defined, because a closed descriptor has no stream to ask.
    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, method: str, *arguments: str) -> None:
        """Call the stream's method, unless an earlier call failed."""
        # After a failure the rest would fail too, or, worse, arrive with a hole in it.
        if self.failure is not None:
            return
        # No reader is left (EPIPE), the disk is full, or the descriptor is closed.
        try:
            getattr(self._stream, method)(*arguments)
        except OSError as error:
            self.failure = error.strerror or str(error)
        except ValueError as error:  # closed elsewhere in this process
            self.failure = str(error)
        of_process = (sys.__stdout__, sys.__stderr__)
        if self.failure is not None and self._stream in of_process:
            # Otherwise the buffered text would fail again at exit, with Python's own exit code.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def write_any_character() -> None:
    """Show an escape for characters that the terminal's encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        # A test, or a program that runs a command, may have put something simpler there.
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def occupy_closed_descriptors() -> None:
    """Open the null device on closed descriptors 0 to 2, or a database file could get one and receive output."""
    # The system gives out the lowest free number, so this fills the gaps in order.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
