"""Moments in a test: a thread that has got so far, and not a time in which it should have."""

from __future__ import annotations

import sqlite3
import sys
import threading
import time
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from types import FrameType

from django.db import connections


def wait_until(condition: Callable[[], object], what: str = "") -> None:
    """Return once ``condition`` holds. The limit only ends what would wait for ever."""
    ends = time.monotonic() + 120
    while not condition():
        assert time.monotonic() < ends, what or "two minutes have passed"
        time.sleep(0.01)


class WhenItWaits(AbstractContextManager[None]):
    """Call ``act`` in a thread of its own once the calling thread executes a statement on an alias of SQLite.

    The file has to be locked, so that the statement waits: then ``act`` is called while it does.
    """

    def __init__(self, alias: str, act: Callable[[], object]) -> None:
        self._raw = connections[alias].connection
        self._act = act
        self._began = threading.Event()
        self._caller = threading.get_ident()
        self._thread = threading.Thread(target=self._watch)
        self._errors: list[BaseException] = []

    def __enter__(self) -> None:
        self._raw.set_trace_callback(self._note)
        self._thread.start()

    def __exit__(self, *error: object) -> None:
        self._began.set()
        self._thread.join()
        with suppress(sqlite3.ProgrammingError):  # if it was closed meanwhile
            self._raw.set_trace_callback(None)
        for each in self._errors:
            raise each

    def _note(self, statement: str) -> None:
        self._began.set()

    def _is_noting(self) -> bool:
        frame: FrameType | None = sys._current_frames()[self._caller]
        while frame is not None:
            if frame.f_code is WhenItWaits._note.__code__:
                return True
            frame = frame.f_back
        return False

    def _watch(self) -> None:
        self._began.wait()
        try:
            wait_until(lambda: not self._is_noting())
            self._act()
        except BaseException as error:
            self._errors.append(error)
