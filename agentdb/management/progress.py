"""Progress of a long command: one updated line on a terminal, a line from time to time elsewhere."""

from __future__ import annotations

import os
import time

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
        if not self._on_terminal:
            self._stream.write(text, style_func=str)
            return
        # An empty table is done.
        width = 20
        filled = width * done // total if total else width
        self._stream.write(
            # Back to the start of the line, and clear it: the next text may be shorter.
            f"\r\x1b[K[{'#' * filled}{'.' * (width - filled)}] {text}",
            style_func=str,
            ending="",
        )
        self._stream.flush()
        self._is_open = True

    def say(self, text: str) -> None:
        """Write a separate line."""
        self.clear()
        if not self._quiet:
            self._stream.write(text, style_func=str)

    def clear(self) -> None:
        """Remove the line from the terminal, if there is one."""
        if self._is_open:
            self._stream.write("\r\x1b[K", style_func=str, ending="")
            self._is_open = False
