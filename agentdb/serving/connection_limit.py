"""``?max_connections=``: the most connections that the threads of one ``Db`` keep open."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from agentdb.errors import DatabaseUnavailableError
from agentdb.serving.connections.base import Slot

logger = logging.getLogger("agentdb")

_PAUSE_SECONDS = 0.005
_LOGGED_SECONDS = 0.1


class ConnectionLimit:
    """Makes room for a connection by closing the longest idle one, or else waits for one in use."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.reset()

    def reset(self) -> None:
        """Start empty, with a new lock: in the child of a fork, a vanished thread may hold the old one."""
        # Weak: the slot of a thread that has ended goes with the thread, and its connection no longer counts.
        self._slots: weakref.WeakSet[Slot] = weakref.WeakSet()
        self._opening: weakref.WeakSet[Slot] = weakref.WeakSet()
        self._lock = threading.Lock()

    def include(self, slot: Slot) -> None:
        """Count this slot's connection from now on."""
        with self._lock:
            self._slots.add(slot)
        slot.room = self._room

    @contextmanager
    def _room(self, slot: Slot) -> Iterator[None]:
        """Let the body open the slot's connection; raise ``DatabaseUnavailableError`` if there is no room in time."""
        began = time.monotonic()
        pause = threading.Event()  # not time.sleep, which programs under test replace
        limit = slot.engine.call_timeout
        place = slot.engine.describe()
        try:
            while not self._take(slot):
                waited = time.monotonic() - began
                if limit is not None and waited > limit:
                    raise DatabaseUnavailableError(
                        f"{place}: all of max_connections={self._most} are in use, and none became free within "
                        f"{limit:g} seconds. Raise it, or let fewer threads call at once."
                    )
                pause.wait(_PAUSE_SECONDS)
            if (waited := time.monotonic() - began) > _LOGGED_SECONDS:
                logger.info(
                    "%s: waited %.3f seconds for one of max_connections=%d.",
                    place,
                    waited,
                    self._most,
                )
            yield
        finally:
            with self._lock:
                self._opening.discard(slot)

    def _take(self, slot: Slot) -> bool:
        """Reserve room for the slot's connection, if there is some or can be made."""
        while True:
            with self._lock:
                # Each is asked once: one that opens meanwhile would be missed between two questions.
                others = [
                    other
                    for other in self._slots
                    if other is not slot and (other in self._opening or other.is_open)
                ]
                if len(others) < self._most:
                    self._opening.add(slot)
                    return True
            longest_idle_first = sorted(others, key=lambda other: other.used)
            if not any(other.close_if_idle() for other in longest_idle_first):
                return False
