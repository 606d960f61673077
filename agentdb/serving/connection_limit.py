"""``?max_connections=``: how many connections the threads of one ``Db`` keep open at the most."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Iterator
from contextlib import contextmanager

from agentdb.errors import DatabaseUnavailableError
from agentdb.serving.connections.base import Channel

logger = logging.getLogger("agentdb")

_PAUSE_SECONDS = 0.005
_LOGGED_SECONDS = 0.1


class ConnectionLimit:
    """Makes room for a connection by closing the one that idles longest, and else waits for one that is in use."""

    def __init__(self, most: int) -> None:
        self._most = most
        self.start_anew()

    def start_anew(self) -> None:
        """Know no channel; in the child of a fork the parent's lock may be held for ever."""
        self._channels: weakref.WeakSet[Channel] = weakref.WeakSet()
        self._opening: weakref.WeakSet[Channel] = weakref.WeakSet()
        self._lock = threading.Lock()

    def include(self, channel: Channel) -> None:
        """Count this channel's connection from now on."""
        with self._lock:
            self._channels.add(channel)
        channel.room = self._room

    @contextmanager
    def _room(self, channel: Channel) -> Iterator[None]:
        """Let the body open the channel's connection; ``DatabaseUnavailableError`` if none becomes free in time."""
        began, pause = time.monotonic(), threading.Event()  # programs under test replace time.sleep
        while not self._take(channel):
            waited = time.monotonic() - began
            if channel.call_timeout is not None and waited > channel.call_timeout:
                raise DatabaseUnavailableError(
                    f"{channel.describe()}: all of max_connections={self._most} are in use, and none became free "
                    f"within {channel.call_timeout:g} seconds. Raise it, or let fewer threads call at once."
                )
            pause.wait(_PAUSE_SECONDS)
        if (waited := time.monotonic() - began) > _LOGGED_SECONDS:
            logger.info(
                "%s: waited %.3f seconds for one of max_connections=%d.", channel.describe(), waited, self._most
            )
        try:
            yield
        finally:
            with self._lock:
                self._opening.discard(channel)

    def _take(self, channel: Channel) -> bool:
        """Reserve a place for the channel's connection, if there is one or one can be made."""
        while True:
            with self._lock:
                others = [other for other in self._channels if other is not channel]
                is_open = [other for other in others if other.wrapper.connection is not None]
                opening = sum(other in self._opening and other.wrapper.connection is None for other in others)
                if len(is_open) + opening < self._most:
                    self._opening.add(channel)
                    return True
            if not any(other.close_if_idle() for other in sorted(is_open, key=lambda other: other.used)):
                return False
