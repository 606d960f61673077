"""Standard output and error of a command, which may break while it works."""

from __future__ import annotations

import os
import sys
from typing import Any


class Output:
    """A stream that takes what is written, and remembers the first failure instead of raising it.

    A closed pipe or a full disk must not stop an adoption half-way, nor make its exit code disagree with what is
    stored. Whoever needs the text to arrive reads ``failure`` after ``flush()``.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream  # None if the descriptor was closed when Python started
        self.failure: str | None = None if stream is not None else "it is closed"

    def write(self, text: str) -> int:
        self._try("write", text)
        return len(text)

    def flush(self) -> None:
        self._try("flush")

    def isatty(self) -> bool:
        return self._stream is not None and self._stream.isatty()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, method: str, *arguments: str) -> None:
        if self.failure is not None:
            return
        try:
            getattr(self._stream, method)(*arguments)
        except OSError as error:
            self.failure = error.strerror or str(error)
        except ValueError as error:  # closed by somebody else in this process
            self.failure = str(error)
        if self.failure is not None and self._stream in (
            sys.__stdout__,
            sys.__stderr__,
        ):
            # What the stream still buffers would fail once more as the interpreter ends, with an exit code of its own.
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())


def write_any_character() -> None:
    """Let a terminal that is not UTF-8 show an escape for a character that it lacks."""
    for stream in (sys.stdout, sys.stderr):
        reconfigure = getattr(stream, "reconfigure", None)
        if reconfigure is not None:
            reconfigure(errors="backslashreplace")


def occupy_closed_descriptors() -> None:
    """Put the null device on descriptors 0 to 2 if they are closed: a database file opened there would get output."""
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(descriptor)
