"""The thread that ends calls which a silent server or network would let wait for ever, and closes idle connections."""

from __future__ import annotations

import threading
import time
import weakref

from agentdb.serving.connections.base import Channel


class Watchdog:
    """Watches the channels that have a ``call_timeout``: a call that takes longer is given up, an idle one is closed.

    libpq knows no time limit for an answer, and TCP none while the other side acknowledges what it gets. The thread
    runs for as long as there is a channel to watch.
    """

    def __init__(self) -> None:
        self._channels: weakref.WeakSet[Channel] = weakref.WeakSet()
        self._thread: threading.Thread | None = None
        self._lock = threading.Lock()

    def watch(self, channel: Channel) -> None:
        """Watch this channel's calls from now on, if they have a time limit."""
        if channel.call_timeout is None:
            return
        with self._lock:
            self._channels.add(channel)
            if self._thread is None:
                self._thread = threading.Thread(target=self._watch, name="agentdb-watchdog", daemon=True)
                self._thread.start()

    def forget(self, channel: Channel) -> None:
        """Watch this channel no longer: its connection is closed for good."""
        with self._lock:
            self._channels.discard(channel)

    def start_anew(self) -> None:
        """In the child of a fork, where the parent's threads are gone and its locks are held for ever."""
        self._channels = weakref.WeakSet()
        self._thread, self._lock = None, threading.Lock()

    def _watch(self) -> None:
        never = threading.Event()  # programs under test replace time.sleep
        while (pause := self._look()) is not None:
            never.wait(pause)

    def _look(self) -> float | None:
        """End what takes too long, and return the seconds until the next look; None when nothing is watched."""
        with self._lock:
            watched = [(channel, limit) for channel in self._channels if (limit := channel.call_timeout) is not None]
            if not watched:
                self._thread = None
                return None
        now = time.monotonic()
        for channel, limit in watched:
            began = channel.began
            # What is left is for the server's answer to being asked to cancel.
            if began and not channel.given_up and now - began > limit * 0.9:
                channel.given_up = True
                threading.Thread(target=channel.give_up, args=(began,), daemon=True).start()
            elif not began and channel.is_idle(now):
                threading.Thread(target=channel.close_if_idle, daemon=True).start()
        return min(1.0, min(limit for _, limit in watched) / 20)


watchdog = Watchdog()
