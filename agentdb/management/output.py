"""Standard output and error of a command, which may fail while it works, and its progress."""

from __future__ import annotations

import io
import os
import sys
import time
from typing import Any

from django.core.management.base import OutputWrapper


class ProgressLine:
    """Writes to standard error, and nothing if the command ends within the first interval.

    Whoever works calls it with each step: what is shown, and how often, is decided here.
    """

    def __init__(self, stream: OutputWrapper, *, verbosity: int = 1) -> None:
        self._stream = stream
        self._quiet = verbosity == 0
        # A dumb terminal shows the control characters instead of obeying them.
        is_dumb = os.environ.get("TERM") == "dumb"
        self._on_terminal = stream.isatty() and not is_dumb
        self._last = time.monotonic()  # when it wrote
        self._began = self._last  # when the table began, and with how many rows
        self._table = ""
        self._first = 0
        self._is_open = False

    def __call__(self, table: str, done: int, total: int) -> None:
        """Report that ``done`` of ``total`` rows of ``table`` are done."""
        if self._quiet:
            return
        now = time.monotonic()
        # The pace is that of this table and this run: rows differ in size, and a resumed copy begins in the middle.
        if table != self._table:
            self._table, self._began, self._first = table, now, done
        # A log file is not to fill up with progress.
        if now - self._last < (0.2 if self._on_terminal else 10.0):
            return
        self._last = now
        text = f"{table}: {done:,} of {total:,}"
        seconds = now - self._began
        # The first second says too little about the rest.
        if seconds >= 1 and done > self._first:
            rate = (done - self._first) / seconds
            # Rows may have come since they were counted: what is left is never negative.
            text += f", {rate:,.0f} a second, {max(total - done, 0) / rate:,.0f} s left"
        self.clear()
        self._stream.write(
            text, style_func=str, ending="" if self._on_terminal else "\n"
        )
        self._stream.flush()
        self._is_open = self._on_terminal

    def say(self, text: str) -> None:
        """Write a separate line."""
        self.clear()
        if not self._quiet:
            self._stream.write(text, style_func=str)

    def clear(self) -> None:
        """Remove the line from the terminal, if there is one."""
        if self._is_open:
            # Back to the start of the line, and clear it: the next text may be shorter.
            self._stream.write("\r\x1b[K", style_func=str, ending="")
            self._is_open = False


class Closed(io.StringIO):
    """Standard output or error whose descriptor was closed when Python started, for those who write without asking."""


class Output:
    """A stream that remembers the first failed write instead of raising it.

    A closed pipe or a full disk must neither stop an adoption halfway nor make its exit code disagree with what is
    stored. To know that the text arrived, read ``failure`` after ``flush()``.
    """

    def __init__(self, stream: Any) -> None:
        self._stream = stream
        self.failure: str | None = None
        if stream is None or isinstance(stream, Closed):
            self.failure = "it is closed"
        self.progress: ProgressLine | None = None

    def write(self, text: str) -> None:
        """Write the text, below a progress line that is removed first."""
        if self.progress is not None:
            self.progress.clear()
        self._try("write", text)

    def flush(self) -> None:
        """Hand the text to the system; a full disk may refuse it only now."""
        self._try("flush")

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def _try(self, method: str, *arguments: str) -> None:
        """Call the stream's method, unless an earlier call failed."""
        # After a failure the rest would fail too, or, worse, arrive with a hole in it.
        if self.failure is not None:
            return
        # No reader is left (EPIPE), the disk is full, or the descriptor is closed.
        # A ValueError says that this process has closed the stream.
        try:
            getattr(self._stream, method)(*arguments)
        except (OSError, ValueError) as error:
            self.failure = getattr(error, "strerror", None) or str(error)
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
    """Open the null device on closed descriptors 0 to 2, or a database file could get one and receive output.

    Python has no stream for them, and Django's commands do not ask whether there is one.
    """
    # The system gives out the lowest free number, so this fills the gaps in order.
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)  # runadmin becomes another program
    os.close(descriptor)
    # Not descriptor 0, which something else may have by now if the program is manage.py.
    sys.stdin = sys.stdin or os.fdopen(os.open(os.devnull, os.O_RDONLY))
    sys.stdout = sys.stdout or Closed()
    sys.stderr = sys.stderr or Closed()
