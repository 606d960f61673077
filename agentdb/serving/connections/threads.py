"""The connections of one alias, one for each calling thread."""

from __future__ import annotations

import logging
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from typing import Any

from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from agentdb.errors import (
    AgentDbError,
    DatabaseClosedError,
    DatabaseUnavailableError,
    InvalidInputError,
)
from agentdb.schema.migration_lock import is_migrating
from agentdb.serving import forking
from agentdb.serving.connections import engine_of
from agentdb.serving.connections.base import Engine, Slot, left_to_the_parent
from agentdb.serving.host import cannot_load
from agentdb.serving.transactions import block_of

_FORKED = (
    "This process was forked inside a transaction, which is the parent's; nothing of it is stored from here. "
    "Leave the transaction before you call the Db in the child."
)
_CLOSED = "The Db is closed. Open another one with agentdb.connect()."
_PAUSE_SECONDS = 0.005
_LOGGED_SECONDS = 0.1

logger = logging.getLogger("agentdb")


class _EndOfThread:
    """Closes a host's connections in a thread when the thread ends, because nobody else does.

    Otherwise a host's pool would count them as in use until the process ends.
    """

    def __init__(self) -> None:
        self.wrappers: set[BaseDatabaseWrapper] = set()

    def __del__(self) -> None:
        for wrapper in self.wrappers:
            if not wrapper.allow_thread_sharing:
                # Django refuses this in another thread, for example in the child of a fork, which cleans up after all.
                with suppress(Exception):
                    wrapper.close()


_thread = threading.local()


def _close_at_end_of_thread(wrapper: BaseDatabaseWrapper) -> None:
    if threading.current_thread() is threading.main_thread():
        return
    if not hasattr(_thread, "end"):
        _thread.end = _EndOfThread()
    _thread.end.wrappers.add(wrapper)


class _Place:
    """A thread's place in line. Only its own frame refers to it, so that it ends with that, whatever ends it."""


class ConnectionLimit:
    """``?max_connections=``: makes room by closing the longest idle connection, or else waits for one in use.

    Threads get room in the order in which they came. One that never pauses is asked for its connection.
    """

    def __init__(self, most: int, slots: weakref.WeakSet[Slot]) -> None:
        self._most = most
        # Weak: the slot of a thread that has ended goes with the thread, and its connection no longer counts.
        self._slots = slots
        self._opening: weakref.WeakSet[Slot] = weakref.WeakSet()
        # The places of those in line.
        self._line: list[weakref.ref[_Place]] = []
        # With which slots are added, and which is free in the child of a fork.
        self._lock = forking.opening

    @contextmanager
    def room(self, slot: Slot) -> Iterator[None]:
        """Let the body open the slot's connection; raise ``DatabaseUnavailableError`` if there is no room in time."""
        try:
            waited = self._wait(slot)
            if waited > _LOGGED_SECONDS:
                logger.info(
                    "%s: waited %.3f seconds for one of max_connections=%d.",
                    slot.engine.describe(),
                    waited,
                    self._most,
                )
            yield
        finally:
            with self._lock:
                self._opening.discard(slot)

    def _wait(self, slot: Slot) -> float:
        """Wait until there is room, and return for how many seconds."""
        began = time.monotonic()
        limit = slot.engine.call_timeout
        pause = threading.Event()  # not time.sleep(), which programs under test replace
        place = _Place()
        try:
            self._line.append(weakref.ref(place, self._line.remove))
            while True:
                waited = time.monotonic() - began
                if self._line[0]() is place and self._take(slot, waited):
                    return waited
                if limit is not None and waited > limit:
                    raise DatabaseUnavailableError(
                        f"{slot.engine.describe()}: all of max_connections={self._most} are in use, and none became "
                        f"free within {limit:g} seconds. Raise it, or let fewer threads call at once."
                    )
                pause.wait(_PAUSE_SECONDS)
        finally:
            del place  # an exception's traceback may keep this frame alive

    def _take(self, slot: Slot, waited: float) -> bool:
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
            if any(other.close_if_idle() for other in longest_idle_first):
                continue
            # Not at once: a thread that has to open another connection loses milliseconds.
            if waited > _LOGGED_SECONDS:
                for other in others:
                    other.ask()
            return False


class Threads:
    """The connections of one alias, one for each calling thread, in the wrapper that Django keeps for it.

    ``owned`` connections are closed with this; others are the host's. All threads take turns on an owned one to a
    database in memory.
    """

    def __init__(self, alias: str, *, owned: bool = False) -> None:
        if alias not in connections.settings:
            raise InvalidInputError(
                f"Unknown database alias {alias!r}; known are {', '.join(connections)}."
            )
        self.alias = alias
        self.closed: bool = False
        own = connections.settings[alias]
        self._most: int | None = None
        if owned:
            self._most = own.get("AGENTDB", {}).get("max_connections")
        self._forget()
        try:
            wrapper = connections[alias]
        except ImproperlyConfigured as error:
            reason = cannot_load(own["ENGINE"], error)
            if owned:
                self._forget_alias()
            raise DatabaseUnavailableError(reason) from error
        self.engine: Engine = engine_of(wrapper, owned=owned)
        self._shared: Slot | None = None
        if owned and self.engine.is_in_memory:
            self._shared = Slot(self.engine, wrapper)
            wrapper.inc_thread_sharing()
        forking.include(self)
        if owned:
            connection_created.connect(self._opened)

    # -- of the calling thread

    def slot(self) -> Slot:
        """Return this thread's slot, which may have no open connection yet."""
        if self.closed:
            raise DatabaseClosedError(_CLOSED)
        try:
            slot: Slot = self._local.slot
        except AttributeError:
            # A fork that came between making the slot and adding it to the set would not find it, and the child would
            # use the parent's connection.
            with forking.opening:
                slot = self._local.slot = self._new_slot()
        return slot

    def _opened(self, connection: BaseDatabaseWrapper, **_: Any) -> None:
        """Set up a connection as soon as Django opens it: own models can open one too, with a transaction.

        Settings that are made inside a transaction end with it when it rolls back.
        """
        if connection.alias != self.alias or self.closed:
            return
        if connection.settings_dict is self.engine.settings:
            self.slot().take_over()
        elif is_migrating():
            self.engine.limit(connection.connection)  # which holds the right to migrate

    def ensure_connected(self, limit: float | None = None) -> None:
        """Open this thread's connection within ``limit`` seconds, or raise ``DatabaseUnavailableError``.

        Inside a transaction nothing is to be opened.
        """
        slot = self.slot()
        with slot.lock, slot.operation():
            if block_of(slot) is None:
                slot.ready(limit)

    def rest(self) -> None:
        """Return a connection to the host's pool, because this thread makes no other call for now."""
        slot = self.own_slot()
        if slot is None or self.engine.owned:
            return
        is_pooled = bool(self.engine.settings["OPTIONS"].get("pool"))
        if is_pooled and not slot.wrapper.in_atomic_block:
            with slot.lock:
                slot.wrapper.close()

    # -- of all threads

    def slots(self) -> list[Slot]:
        """Return the slots of all threads."""
        with forking.opening:
            return list(self._slots)

    def open_connections(self) -> int:
        """Return how many connections are open in this process."""
        return sum(slot.is_open for slot in self.slots())

    def close(self) -> None:
        """Close the connections when the running calls have ended; a second call does nothing."""
        self.closed = True  # the rest may be interrupted; the next close() then does it
        if not self.engine.owned:
            return  # the connections are Django's to close
        for slot in self.slots():
            # Waits for a running call in another thread.
            with slot.lock:
                slot.discard()
        # In a transaction of this thread Django still needs it.
        if not any(slot.wrapper.in_atomic_block for slot in self.slots()):
            self._forget_alias()

    def _forget_alias(self) -> None:
        if self.alias != DEFAULT_DB_ALIAS:
            connections.settings.pop(self.alias, None)
            with suppress(AttributeError):
                del connections[self.alias]

    def _new_slot(self) -> Slot:
        # Django keeps its wrappers by thread, and refuses one of another thread unless told that it is shared.
        if self._shared is not None:
            connections[self.alias] = self._shared.wrapper
            slot = self._shared
        else:
            wrapper = connections[self.alias]
            slot = Slot(self.engine, wrapper)
        if not self.engine.owned:
            _close_at_end_of_thread(slot.wrapper)
        slot.room = self._room
        self._slots.add(slot)
        return slot

    def _forget(self) -> None:
        """Start without slots, as a process does."""
        self._local = threading.local()
        self._slots: weakref.WeakSet[Slot] = weakref.WeakSet()
        self._room: Callable[[Slot], AbstractContextManager[object]] = nullcontext
        if self._most is not None:
            self._room = ConnectionLimit(self._most, self._slots).room

    # -- around a fork

    def may_close(self, slot: Slot) -> bool:
        """Whether a fork may close this idle connection; a host's other threads may be using theirs."""
        if self.engine.is_in_memory or slot.wrapper.in_atomic_block:
            return False
        return self.engine.owned or slot is self.own_slot()

    def own_slot(self) -> Slot | None:
        """Return this thread's slot, if it has one."""
        return getattr(self._local, "slot", None)

    def after_fork(self, held: list[Slot]) -> None:
        """In the child of a fork, drop the parent's connections and all other threads."""
        own = self.own_slot()
        if self.engine.is_in_memory:
            # The child has its own copy of the database, but not of what a thread of the parent was doing.
            if self._shared is not None and self._shared not in held:
                self._shared.lock = threading.RLock()
                self._shared.reset()
            return
        for slot in self.slots():
            # Of a server: not closed, because two processes on one socket corrupt both. Of a file there is none now.
            left_to_the_parent.append(slot.wrapper.connection)
            slot.wrapper.connection = None
        block = None
        with suppress(AgentDbError):  # a host's atomic() that was cut off
            block = block_of(own) if own is not None else None
        self._forget()
        if own is not None and block is not None:
            # fork() inside run_transaction: the child is a copy of this frame too. The with block goes on in the
            # child, where it must not count as the transaction.
            own.wrapper.closed_in_transaction = True
            block.fail(AgentDbError(_FORKED), None)
            own.room = self._room
            self._local.slot = own
            self._slots.add(own)
            return
        with suppress(AttributeError):
            del connections[self.alias]
