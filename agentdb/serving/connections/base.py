"""One thread's connection, driven through its driver without Django's cursor in between.

Opening, closing, settings and transactions stay Django's. What is left to say per engine is how a statement runs, when
a kept connection has died, and what the driver's errors mean.
"""

from __future__ import annotations

import os
import select
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, suppress
from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured, SynchronousOnlyOperation
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import AgentDbError
from agentdb.faults import Fault, classify, driver_error, explain, one_line

# The connections of the parent, in the child of a fork. They are kept, because deleting one would close it, and the
# server would end what the parent goes on with.
left_to_the_parent: list[object] = []


class Channel(ABC):
    """A connection of one thread; of all threads, taking turns, for an in-memory database."""

    errors: tuple[type[Exception], ...]  # what the driver raises, and Django around it
    # After an error PostgreSQL ignores everything up to the end of the transaction.
    aborts_on_error: bool

    def __init__(self, wrapper: BaseDatabaseWrapper) -> None:
        self.wrapper = wrapper
        self.lock = threading.RLock()
        self.owned = False
        self._process = os.getpid()
        # What has doomed the transaction that is open, and whether the same again may succeed.
        self.failure: AgentDbError | None = None
        self.fault_of_failure: Fault | None = None
        self.failed_in: list[Any] = []
        # False while a transaction begins or ends: an exception from a signal handler may leave it there.
        self.settled = True
        # When the driver began the call that it is at, on the monotonic clock, else 0; whether it was told to give up.
        self.began = 0.0
        self.given_up = False
        # Seconds that one call may take; None for no limit.
        own = wrapper.settings_dict.get("AGENTDB", {})
        self.call_timeout: float | None = own.get("call_timeout")
        # Seconds after which an idle connection is closed, and when the last call ended; None for never.
        self.idle_seconds: float | None = own.get("idle_seconds")
        self.used = time.monotonic()
        # What waits until one more connection may be open.
        self.room: Callable[[Channel], AbstractContextManager[None]] | None = None
        # Whether a pool of the host's hands the connection out.
        self.is_pooled = bool(wrapper.settings_dict["OPTIONS"].get("pool"))
        # A statement that takes longer is logged; None for none.
        self.slow_call_seconds: float | None = own.get("slow_call_seconds")
        # Whether the transaction is being committed: an answer that does not come leaves its outcome unknown.
        self.committing = False
        self._debug = settings.DEBUG

    def __del__(self) -> None:
        # The thread has ended; nobody else will close its connection.
        raw = self.wrapper.connection
        if not self.owned or raw is None:
            return
        if self._process == os.getpid():
            raw.close()
        else:  # a fork ends all threads but one in the child
            left_to_the_parent.append(raw)

    @abstractmethod
    def execute(self, sql: str, params: Sequence[Any]) -> Any:
        """Run the statement on an open, live connection and return a cursor."""

    def fault(self, error: BaseException) -> Fault:
        """Return what the driver's error means."""
        return classify(error)

    @abstractmethod
    def describe(self) -> str:
        """Return the database's name for a message, without the password."""

    @abstractmethod
    def at_rest(self, raw: Any) -> bool:
        """Whether the driver's connection is in no transaction and runs no statement; asks no server."""

    @abstractmethod
    def spoiled(self, raw: Any) -> bool:
        """Whether the transaction that should be open has failed or ended without Django's knowing."""

    def settle(self) -> None:
        """Where an exception from nowhere, as of a signal handler, left a transaction half begun or ended: undo it.

        Call it outside a transaction. The connection's real state counts, not what Django remembers.
        """
        wrapper = self.wrapper
        raw = wrapper.connection
        if not wrapper.autocommit or wrapper.in_atomic_block or (raw is not None and not self.at_rest(raw)):
            wrapper.connection = None
            self.forget_transaction()
            if raw is not None:
                self.abandon(raw)
        self.settled = True

    def forget_transaction(self) -> None:
        """Let Django believe that no transaction is open."""
        wrapper = self.wrapper
        wrapper.in_atomic_block = wrapper.needs_rollback = wrapper.closed_in_transaction = False
        wrapper.savepoint_ids, wrapper.atomic_blocks, wrapper.run_on_commit = [], [], []

    @abstractmethod
    def begin(self) -> None:
        """Begin a serializable transaction on the driver's open connection."""

    @abstractmethod
    def commit(self) -> None:
        """Commit what ``begin`` began."""

    def undo(self) -> None:
        """Undo what ``begin`` began, before Django does.

        Where an exception from nowhere keeps Django from it, Python's sqlite3 would commit when Django switches
        autocommit on again.
        """
        raw = self.wrapper.connection
        if raw is not None:
            with suppress(*self.errors):  # Django comes to the same, and says what it means
                raw.rollback()

    def abandon(self, raw: Any) -> None:
        """Undo what a connection is in the middle of; close it, unless it is as good as new."""
        raw.close()

    def give_up(self, began: float) -> None:
        """From another thread: end the call that began then, whatever the server does."""
        return

    def interrupted(self) -> None:
        """After an exception that is not the driver's: leave no statement under way for the next caller."""
        return

    def ensure_alive(self) -> None:
        """Open the connection if it is not open; open it anew if it has died while it was idle."""
        if self.wrapper.connection is None:
            self.connect()

    def connect(self) -> None:
        """Open the connection; raise ``DatabaseUnavailableError`` with the driver's reason."""
        try:
            if self.room is None:
                self.wrapper.ensure_connection()
            else:
                with self.room(self):
                    self.wrapper.ensure_connection()
        except SynchronousOnlyOperation as error:
            raise AgentDbError(
                "A DjangoDb was first used inside a running event loop, which it would block. "
                "Use agentdb.connect_async(), or call it in a thread."
            ) from error
        except ImproperlyConfigured as error:
            raise self.explain(Fault.UNAVAILABLE, error) from error
        except self.errors as error:
            raise self.explain(Fault.UNAVAILABLE, error) from driver_error(error)

    def explain(self, fault: Fault, error: BaseException) -> AgentDbError:
        """Return the driver's error in agentdb's terms: the place, what it means, and the driver's reason."""
        return explain(fault, self.describe(), self.reason(error))

    def reason(self, error: BaseException) -> str:
        """Return the driver's words on one line, without the password."""
        settings = self.wrapper.settings_dict
        return one_line(error, settings.get("PASSWORD"), settings["NAME"])

    def disconnect(self) -> None:
        """Drop the connection, in whatever state it is."""
        raw = self.wrapper.connection
        if raw is None:
            return
        if self.wrapper.in_atomic_block:
            # Django opens a new connection once the transaction has ended, and not in the middle of it.
            self.wrapper.closed_in_transaction = True
            self.wrapper.needs_rollback = True
        else:
            self.wrapper.connection = None
        raw.close()

    def is_idle(self, now: float) -> bool:
        """Whether the connection is agentdb's own and has had no call for ``idle_seconds``."""
        limit = self.idle_seconds if self.owned and self.wrapper.connection is not None else None
        return limit is not None and now - self.used > limit

    def close_if_idle(self) -> bool:
        """From any thread: close the connection, unless a call, a transaction or the host's own query is at it."""
        if not self.lock.acquire(blocking=False):
            return False
        try:
            raw = self.wrapper.connection
            if raw is None or self.wrapper.in_atomic_block or not self.at_rest(raw):
                return False
            self.disconnect()
            return True
        finally:
            self.lock.release()

    def prepare_nothing(self) -> None:
        """Use no prepared statements from now on, where the driver has any."""
        return

    def instrumented(self) -> bool:
        """Whether somebody watches Django's cursor: ``assertNumQueries``, ``execute_wrapper``, OpenTelemetry."""
        wrapper = self.wrapper
        return bool(wrapper.execute_wrappers) or wrapper.force_debug_cursor or self._debug or self.traced()

    @abstractmethod
    def traced(self) -> bool:
        """Whether the driver's OpenTelemetry instrumentation made the open connection; it sees Django's cursor only."""


def readability(file_descriptor: int) -> Callable[[], bool]:
    """Return a function that says, without waiting, whether there is something to read."""
    if not hasattr(select, "poll"):  # Windows
        return lambda: bool(select.select([file_descriptor], [], [], 0)[0])
    poll = select.poll()
    poll.register(file_descriptor, select.POLLIN)
    return lambda: bool(poll.poll(0))
