"""What happens around a fork, in the parent and in the child.

SQLite forbids carrying a connection across a fork. Locks belong to the process, so the child relies on locks that it
does not have, and its writes are lost when the parent closes the file
(https://www.sqlite.org/howtocorrupt.html, section 2.6). So the parent's idle connections to files are closed before
the fork, and the next call reopens them. A running call or transaction of another thread is given some time to end.
"""

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


# No connection may be opened between the check and the fork.
opening = threading.RLock()
# Otherwise busy threads would retake their slot's lock before it is free here.
under_way = False
_all: weakref.WeakSet[Threads] = weakref.WeakSet()
_files: set[object] = set()  # names of SQLite databases that a Db has opened
_held: list[Slot] = []


def include(threads: Threads) -> None:
    """Handle the slots of these at a fork."""
    engine = threads.engine
    with opening:
        _all.add(threads)
        if not engine.has_server:
            _files.add(engine.settings["NAME"])


def wait(slot: Slot) -> None:
    """Wait until a fork that another thread has begun is over; it waits itself for the end of a transaction."""
    if not slot.wrapper.in_atomic_block:
        with opening:
            return


def before() -> None:
    """In the parent: take the locks of all slots of files, and close the idle connections."""
    global under_way
    # Python forks even if this raises. So each slot is noted in _held; after_in_parent gives back what was taken.
    opening.acquire()
    under_way = True
    # One time limit for all: a transaction may be waiting for the very thread that forks. So may any writer, if
    # that thread is in a transaction itself.
    now = time.monotonic()
    transactions_until = now + _LONGEST_WAIT_FOR_TRANSACTIONS_SECONDS
    statements_until = now + _LONGEST_WAIT_FOR_A_STATEMENT_SECONDS
    if any(map(_is_in_transaction, _all)):
        statements_until = transactions_until
    for threads in list(_all):
        for slot in threads.slots():
            if (
                not slot.engine.has_server
                and _hold(slot, statements_until, transactions_until)
                and threads.may_close(slot)
            ):
                slot.discard()
    _close_own()


def _close_own() -> None:
    """Close the host's own connections in the forking thread; others may be running a statement."""
    for wrapper in connections.all(initialized_only=True):
        if _is_known_file(wrapper) and not wrapper.in_atomic_block:
            raw = wrapper.connection
            wrapper.connection = None
            if raw is not None:
                raw.close()


def _hold(slot: Slot, statements_until: float, transactions_until: float) -> bool:
    """Take the slot's lock when its statement has ended; wait less for a transaction."""
    # Noted before it is taken: an exception from a signal handler in between costs a release() that fails, not a
    # lock that nobody ever releases.
    _held.append(slot)
    while not slot.lock.acquire(timeout=_PAUSE_SECONDS):
        now = time.monotonic()
        in_transaction = slot.wrapper.in_atomic_block
        if now > (transactions_until if in_transaction else statements_until):
            _held.pop()
            return False
    return True


def after_in_parent() -> None:
    """Release what ``before`` took."""
    global under_way
    while _held:
        # An exception from a signal handler may have come before it was taken; Python ignores errors of hooks.
        with suppress(RuntimeError):
            _held.pop().lock.release()
    under_way = False
    with suppress(RuntimeError):
        opening.release()


def after_in_child() -> None:
    """Drop the parent's connections, and take note of those that cannot be closed here."""
    for wrapper in {*_wrappers, *connections.all(initialized_only=True)}:
        if _is_known_file(wrapper) and wrapper.connection is not None:
            _undo_copy(wrapper)
            # A host's transaction around the fork, which ends in the parent.
            if wrapper.in_atomic_block:
                wrapper.closed_in_transaction = wrapper.needs_rollback = True
    # Only this thread exists in the child. Locks that others held stay locked, so everything that has one gets a
    # new one.
    for threads in list(_all):
        threads.after_fork(_held)
    note_left_open(_files)
    after_in_parent()


def _is_known_file(wrapper: BaseDatabaseWrapper) -> bool:
    return wrapper.settings_dict["NAME"] in _files and sqlite_path(wrapper) is not None


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


connection_created.connect(_remember)

if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=before,
        after_in_parent=after_in_parent,
        after_in_child=after_in_child,
    )
