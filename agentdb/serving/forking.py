"""Handles a fork, in the parent and in the child."""

from __future__ import annotations

import os
import threading
import time
import weakref
from contextlib import suppress
from typing import Any, TypeAlias

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created

from agentdb.schema.inspection import sqlite_path
from agentdb.serving.connections.base import Slot, left_to_the_parent
from agentdb.serving.connections.sqlite import note_left_open

Threads: TypeAlias = Any  # of connections/threads.py, which imports this module

_LONGEST_WAIT_FOR_A_CLOSE_SECONDS = 1.0
_LONGEST_WAIT_FOR_TRANSACTIONS_SECONDS = 1.0
_PAUSE_SECONDS = 0.02
_LONGEST_WAIT_FOR_A_STATEMENT_SECONDS = (
    60.0  # twice as long as SQLite waits for another writer
)

# Of SQLite files, the host's among them.
_wrappers: weakref.WeakSet[BaseDatabaseWrapper] = weakref.WeakSet()


class Forking:
    """What happens around a fork, in the parent and in the child.

    SQLite forbids carrying a connection across a fork. Locks belong to the process, so the child relies on locks that
    it does not have, and its writes are lost when the parent closes the file
    (https://www.sqlite.org/howtocorrupt.html, section 2.6). So the parent's idle connections to files are closed
    before the fork, and the next call reopens them. A running call or transaction of another thread is given some
    time to end.
    """

    def __init__(self) -> None:
        # No connection may be opened between the check and the fork.
        self.opening = threading.RLock()
        self._all: weakref.WeakSet[Threads] = weakref.WeakSet()
        self._files: set[object] = (
            set()
        )  # names of SQLite databases that a Db has opened
        # Otherwise busy threads would retake their slot's lock before it is free here.
        self.under_way = False
        self._held: list[Slot] = []

    def include(self, threads: Threads, file: object | None) -> None:
        """Handle these slots at a fork; ``file`` is the name of a SQLite database."""
        with self.opening:
            self._all.add(threads)
            if file is not None:
                self._files.add(file)

    def wait(self) -> None:
        """Wait until no fork is running."""
        with self.opening:
            return

    def before(self) -> None:
        """In the parent: take the locks of all slots of files, and close the idle connections."""
        # Python forks even if this raises. So each slot is noted in _held; after_in_parent gives back what was taken.
        self.opening.acquire()
        self.under_way = True
        # One time limit for all: a transaction may be waiting for the very thread that forks. So may any writer, if
        # that thread is in a transaction itself.
        now = time.monotonic()
        transactions_until = now + _LONGEST_WAIT_FOR_TRANSACTIONS_SECONDS
        statements_until = now + _LONGEST_WAIT_FOR_A_STATEMENT_SECONDS
        if any(map(_is_in_transaction, self._all)):
            statements_until = transactions_until
        for threads in list(self._all):
            for slot in threads.slots():
                if (
                    not slot.engine.has_server
                    and self._hold(slot, statements_until, transactions_until)
                    and threads.may_close(slot)
                ):
                    slot.discard()
        self._close_own()

    def _close_own(self) -> None:
        """Close the host's own connections in the forking thread; others may be running a statement."""
        for wrapper in connections.all(initialized_only=True):
            if self._is_known_file(wrapper) and not wrapper.in_atomic_block:
                raw = wrapper.connection
                wrapper.connection = None
                if raw is not None:
                    raw.close()

    def _hold(
        self, slot: Slot, statements_until: float, transactions_until: float
    ) -> bool:
        """Take the slot's lock when its statement has ended; wait less for a transaction."""
        # Noted before it is taken: an exception from a signal handler in between costs a release() that fails, not a
        # lock that nobody ever releases.
        self._held.append(slot)
        while not slot.lock.acquire(timeout=_PAUSE_SECONDS):
            now = time.monotonic()
            in_transaction = slot.wrapper.in_atomic_block
            if now > (transactions_until if in_transaction else statements_until):
                self._held.pop()
                return False
        return True

    def after_in_parent(self) -> None:
        """Release what ``before`` took."""
        while self._held:
            # An exception from a signal handler may have come before it was taken; Python ignores errors of hooks.
            with suppress(RuntimeError):
                self._held.pop().lock.release()
        self.under_way = False
        with suppress(RuntimeError):
            self.opening.release()

    def after_in_child(self) -> None:
        """Drop the parent's connections, and take note of those that cannot be closed here."""
        for wrapper in {*_wrappers, *connections.all(initialized_only=True)}:
            if self._is_known_file(wrapper) and wrapper.connection is not None:
                _undo_copy(wrapper)
                # A host's transaction around the fork, which ends in the parent.
                if wrapper.in_atomic_block:
                    wrapper.closed_in_transaction = wrapper.needs_rollback = True
        # Only this thread exists in the child. Locks that others held stay locked, so everything that has one gets a
        # new one.
        for threads in list(self._all):
            threads.after_fork(self._held)
        note_left_open(self._files)
        self.after_in_parent()

    def _is_known_file(self, wrapper: BaseDatabaseWrapper) -> bool:
        return (
            wrapper.settings_dict["NAME"] in self._files
            and sqlite_path(wrapper) is not None
        )


def _is_in_transaction(threads: Threads) -> bool:
    slot = threads.own_slot()
    return slot is not None and slot.wrapper.in_atomic_block


def _remember(connection: BaseDatabaseWrapper, **_: Any) -> None:
    if sqlite_path(connection) is not None:
        _wrappers.add(connection)


def _undo_copy(wrapper: BaseDatabaseWrapper) -> None:
    """Close a connection to a SQLite file in the child; the parent keeps its own.

    SQLite keeps a list of the open files and their locks in the process. Without this, the child would keep its copy of
    the parent's locks. In WAL mode the file is not touched, because the parent's locks prevent the child from being
    the last to close it. Otherwise, or if a thread of the parent was running a statement, the connection stays, and
    ``note_left_open`` records it.
    """
    raw: Any = wrapper.connection
    wrapper.connection = None
    left_to_the_parent.append(raw)

    def close() -> None:
        is_idle = not raw.in_transaction
        if is_idle or raw.execute("PRAGMA journal_mode").fetchone() == ("wal",):
            raw.close()

    # Would wait forever for a lock that a thread of the parent holds.
    closing = threading.Thread(target=close, daemon=True)
    closing.start()
    closing.join(_LONGEST_WAIT_FOR_A_CLOSE_SECONDS)


forking = Forking()
connection_created.connect(_remember)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=forking.before,
        after_in_parent=forking.after_in_parent,
        after_in_child=forking.after_in_child,
    )
