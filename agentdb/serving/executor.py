"""Executor: statements and transactions on one of Django's database aliases, tried again where that is safe."""

from __future__ import annotations

import logging
import os
import random
import sys
import threading
import time
import warnings
import weakref
from asyncio import _get_running_loop
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar, cast

from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import (
    AgentDbError,
    ConflictError,
    DatabaseClosedError,
    DatabaseUnavailableError,
    DuplicateKeyError,
    InvalidInputError,
)
from agentdb.faults import REFUSED, Fault, driver_error, explain, said_by_server
from agentdb.schema.unreadable import unreadable_values
from agentdb.serving.compiled import (
    Delete,
    Insert,
    Query,
    Row,
    Select,
    SelectCount,
    Statement,
    Together,
    Update,
    narrowed_to_tenant,
    together,
    unless_taken,
)
from agentdb.serving.connection_limit import ConnectionLimit
from agentdb.serving.connections import open_channel
from agentdb.serving.connections.base import Channel
from agentdb.serving.forking import forking, leave_to_the_parent
from agentdb.serving.host import cannot_load
from agentdb.serving.watchdog import watchdog

R = TypeVar("R")
Q = TypeVar("Q", bound=Query)

# About five seconds in all: longer than any transaction here takes, shorter than a caller's patience.
_MAX_RETRIES = 15
_FIRST_DELAY_SECONDS = 0.005
_LONGEST_DELAY_SECONDS = 0.5

# What a conversion raises over text that is no timestamp, over a number or bytes, and over year 0 in UTC.
_UNREADABLE = (ValueError, AttributeError, OverflowError)

_SPOILED = (
    "The transaction failed inside the function, which went on after the error; nothing of it is stored. "
    "Let the error leave the function, or undo the part that may fail with an inner run_transaction()."
)
_FORKED = (
    "This process was forked inside a transaction, which is the parent's; nothing of it is stored from here. "
    "Leave the transaction before you call the Db in the child."
)
_CLOSED = "The Db is closed. Open another one with agentdb.connect()."

logger = logging.getLogger("agentdb")

# Django's own word for "I know what I do": it lets a connection be opened there.
_warn_in_loops = "DJANGO_ALLOW_ASYNC_UNSAFE" not in os.environ


class _EndOfThread:
    """Closes, as its thread ends, the connections of a host's aliases that are open there: nobody else would.

    A host's pool would count them as handed out for ever.
    """

    def __init__(self) -> None:
        self.wrappers: list[BaseDatabaseWrapper] = []

    def __del__(self) -> None:
        for wrapper in self.wrappers:
            if not wrapper.allow_thread_sharing:
                # Django refuses it in another thread, as in the child of a fork, which clears up after all threads.
                with suppress(Exception):
                    wrapper.close()


_thread = threading.local()


def _close_at_end_of_thread(wrapper: BaseDatabaseWrapper) -> None:
    if threading.current_thread() is threading.main_thread():
        return
    if not hasattr(_thread, "end"):
        _thread.end = _EndOfThread()
    if wrapper not in _thread.end.wrappers:
        _thread.end.wrappers.append(wrapper)


class Threads:
    """The connections of one alias, one for each thread that calls, on the connection that Django keeps for it.

    With ``shared`` all threads take turns on one. ``owned`` connections are closed with this; others are the host's.
    """

    def __init__(self, alias: str, *, owned: bool = False, shared: bool = False) -> None:
        if alias not in connections.settings:
            raise InvalidInputError(f"There is no database alias {alias!r}; known are {', '.join(connections)}.")
        self.alias = alias
        self.closed = False
        self._owned = owned
        self.statements: dict[Query, Statement] = {}
        self._prepares = True
        own = connections.settings[alias]
        most = own.get("AGENTDB", {}).get("max_connections") if owned else None
        self._limit = ConnectionLimit(most) if most is not None else None
        self._place: str | None = None
        self._forget_threads()
        try:
            connection = connections[alias]
        except ImproperlyConfigured as error:
            reason = cannot_load(connections.settings[alias]["ENGINE"], error)
            self.forget_alias()
            raise DatabaseUnavailableError(reason) from error
        self._shared = open_channel(connection) if shared else None
        if self._shared:
            self._shared.wrapper.inc_thread_sharing()
        forking.include(self, file=own["NAME"] if "sqlite" in own["ENGINE"] else None)

    def describe(self) -> str:
        """Return the name of the database for a message, without the password."""
        return self._place or self.channel().describe()

    @property
    def in_transaction(self) -> bool:
        """Whether this thread is in a transaction on the alias, its own or the host's."""
        return bool(self.channel().wrapper.in_atomic_block)

    @property
    def has_server(self) -> bool:
        """Whether the database is a server, which may be away, and not a file."""
        return self.channel().wrapper.vendor != "sqlite"

    def ensure_connected(self) -> None:
        """Open this thread's connection now; raise ``DatabaseUnavailableError`` if that fails."""
        channel = self.channel()
        with channel.lock:
            channel.began, channel.given_up = time.monotonic(), False
            try:
                channel.ensure_alive()
            finally:
                channel.began = 0.0

    def open_connections(self) -> int:
        """Return how many connections of this executor are open in this process."""
        return sum(channel.wrapper.connection is not None for channel in self.channels())

    def close(self) -> None:
        """Close the connections, once the calls under way have ended; calling it again does nothing."""
        if self.closed:
            return
        self.closed = True
        forking.forget(self)
        if not self._owned:
            return  # the connections are Django's to close
        for channel in self.channels():
            # A call that is under way in another thread ends first.
            with channel.lock:
                channel.disconnect()
            watchdog.forget(channel)
        if not any(channel.wrapper.in_atomic_block for channel in self.channels()):
            self.forget_alias()

    def forget_alias(self) -> None:
        if self._owned and self.alias != DEFAULT_DB_ALIAS:
            connections.settings.pop(self.alias, None)
            with suppress(AttributeError):
                del connections[self.alias]

    def channel(self) -> Channel:
        """Return this thread's channel; it may not be connected yet."""
        if self.closed:
            raise DatabaseClosedError(_CLOSED)
        try:
            channel: Channel = self._local.channel
        except AttributeError:
            with forking.opening:
                channel = self._local.channel = self._open_channel()
        return channel

    def channels(self) -> list[Channel]:
        """Return the channels of all threads."""
        with forking.opening:
            return list(self._channels)

    def may_close(self, channel: Channel) -> bool:
        """Whether a fork may close this connection: a host's other threads may be using theirs at this moment."""
        idle = channel is not self._shared and not channel.wrapper.in_atomic_block
        return idle and (self._owned or channel is self.own_channel())

    def own_channel(self) -> Channel | None:
        """Return this thread's channel, if it has one."""
        return getattr(self._local, "channel", None)

    def start_anew(self, held: list[Channel]) -> None:
        """In the child of a fork: let go of the parent's connections, and know no thread but this one."""
        own = self.own_channel()
        if self._shared is not None:
            # A copy of the database, which is the child's. What a thread of the parent was at is not.
            if self._shared is not own or self._shared not in held:
                self._local = threading.local()
            if self._shared not in held:
                self._shared.lock = threading.RLock()
                self._shared.began = 0.0
                self._shared.settle()
            return
        if self._limit is not None:
            self._limit.start_anew()
        for channel in self.channels():
            leave_to_the_parent(channel)
        if own is not None and own.wrapper.in_atomic_block:
            # The block goes on in the child, where it must not look as if it were the transaction.
            own.wrapper.closed_in_transaction = own.wrapper.needs_rollback = True
            own.failure, own.fault_of_failure = AgentDbError(_FORKED), None
            own.failed_in = own.wrapper.atomic_blocks[:1]
            self._channels.clear()
            self._channels.add(own)
            return
        self._forget_threads()
        with suppress(AttributeError):
            del connections[self.alias]

    def rest(self) -> None:
        """Give a connection of the host's pool back: this thread makes no other call for now."""
        channel = self.own_channel()
        if channel is not None and not self._owned and channel.is_pooled and not channel.wrapper.in_atomic_block:
            with channel.lock:
                channel.wrapper.close()

    def prepare_nothing(self) -> None:
        """Use no prepared statements from now on, on this thread's connection and new ones."""
        self._prepares = False
        self.channel().prepare_nothing()

    def _open_channel(self) -> Channel:
        if self._shared is not None:
            connections[self.alias] = self._shared.wrapper
            channel = self._shared
        else:
            channel = open_channel(connections[self.alias])
        self._place = channel.describe()
        channel.owned = self._owned
        if not self._owned:
            _close_at_end_of_thread(channel.wrapper)
        if not self._prepares:
            channel.prepare_nothing()
        self._channels.add(channel)
        if self._limit is not None:
            self._limit.include(channel)
        watchdog.watch(channel)
        return channel

    def _forget_threads(self) -> None:
        self._local = threading.local()
        self._channels: weakref.WeakSet[Channel] = weakref.WeakSet()


class Executor:
    """Runs queries on the connections of one alias; safe to share among threads.

    With a ``tenant_id`` it is a view: every query is narrowed to the rows of that tenant, and inserts are given it.
    """

    def __init__(self, threads: Threads, tenant_id: str | None = None) -> None:
        self._threads = threads
        self.tenant_id = tenant_id
        self._closed = False

    def of_tenant(self, tenant_id: str) -> Executor:
        """Return a view of that tenant's rows, which is closed alone."""
        self.threads.channel()  # a closed Db says so here already
        return Executor(self._threads, tenant_id)

    @property
    def threads(self) -> Threads:
        """The connections; ``DatabaseClosedError`` if this view is closed."""
        if self._closed:
            raise DatabaseClosedError("The view of a tenant is closed. Make another one with for_tenant().")
        return self._threads

    def describe(self) -> str:
        """Return the name of the database, and of the tenant, for a message, without the password."""
        place = self.threads.describe()
        return place if self.tenant_id is None else f"{place}, tenant {self.tenant_id!r}"

    def close(self) -> None:
        """Close the connections; of a view, this view alone."""
        if self.tenant_id is None:
            self._threads.close()
        else:
            self._closed = True

    # -- statements

    def first(self, make: Callable[..., R], query: Select | Update | Delete, **values: Any) -> R | None:
        """Return what ``make`` makes of the first row's columns, or None."""
        statement, rows = self._run(query, values, _fetch_all)
        return self._made(make, statement, rows[0]) if rows else None

    def all(self, make: Callable[..., R], query: Select | Update | Delete, **values: Any) -> list[R]:
        """Return what ``make`` makes of each row's columns."""
        statement, rows = self._run(query, values, _fetch_all)
        try:
            return [make(*statement.convert(row)) for row in rows]
        except _UNREADABLE as error:
            raise _unreadable(self._threads.channel(), statement, error) from error

    def one(self, make: Callable[..., R], query: Insert | SelectCount, **values: Any) -> R:
        """Return what ``make`` makes of the columns of the one row that the query always has."""
        statement, [row] = self._run(query, values, _fetch_all)
        return self._made(make, statement, row)

    def count(self, query: Insert | Update | Delete | Together, **values: Any) -> int:
        """Return how many rows the query changed."""
        return self._run(query, values, _row_count)[1]

    def count_last(self, *queries: Update | Delete, **values: Any) -> int:
        """Run the queries, all or none, and return how many rows the last one changed; none may need another's."""
        if self.threads.has_server:
            return self.count(together(*map(self._narrowed, queries)), **values)
        return self.transaction(lambda: [self.count(query, **values) for query in queries][-1])

    def insert(self, make: Callable[..., R], query: Insert, duplicate: str, **values: Any) -> R:
        """Insert the row and return what ``make`` makes of it; ``duplicate`` is what to say if its key is taken."""
        channel = self._threads.channel()
        try:
            if channel.aborts_on_error and channel.wrapper.in_atomic_block:
                # An error would cost a caller that expects the duplicate its whole transaction.
                quiet = unless_taken(query)
                statement, (inserted, returned) = self._run(quiet, values, _fetch_inserted)
                if not inserted:
                    with self._atomic(channel):  # for what the server says about it
                        statement, (_, returned) = self._run(query, values, _fetch_inserted)
            else:
                statement, (_, returned) = self._run(query, values, _fetch_inserted)
        except ConflictError:
            # Leaving the savepoint has made Django forget that the transaction cannot go on.
            channel.wrapper.needs_rollback = channel.wrapper.in_atomic_block
            raise
        except DuplicateKeyError as error:
            raise DuplicateKeyError(duplicate.format(**values)) from error.__cause__
        if returned:
            [values["now"]] = statement.convert(returned[0])  # by the server's clock
        return make(*statement.given(self._of_tenant(values)))

    def _run(self, query: Query, values: dict[str, Any], consume: Callable[[Any], R]) -> tuple[Statement, R]:
        """Run the query; return its statement and what ``consume`` makes of the cursor."""
        channel = self.threads.channel()
        query = self._narrowed(query)
        if _warn_in_loops and _get_running_loop() is not None:
            _warn_of_blocked_loop()
        if forking.under_way and not channel.wrapper.in_atomic_block:
            forking.wait()
        with channel.lock:
            if self._threads.closed:
                raise DatabaseClosedError(_CLOSED)
            if not channel.settled:
                channel.settle()
            if channel.wrapper.in_atomic_block and channel.wrapper.needs_rollback:
                if channel.failure is not None and channel.failed_in == channel.wrapper.atomic_blocks[:1]:
                    raise channel.failure
                raise AgentDbError("The transaction has failed already; it can only be undone.")
            try:
                statement = self._threads.statements[query]
            except KeyError:
                statement = self._threads.statements[query] = query.compile(channel.wrapper)
            params = statement.bind(self._of_tenant(values))
            channel.began, channel.given_up = time.monotonic(), False
            try:
                return statement, consume(channel.execute(statement.sql, params))
            except channel.errors as error:
                failure = driver_error(error)
            except BaseException:
                channel.interrupted()
                raise
            finally:
                began, channel.began = channel.began, 0.0
                channel.used = began
                if channel.slow_call_seconds is not None:
                    _log_if_slow(channel, began, statement.sql)
            reads_only = isinstance(query, Select | SelectCount)
            return statement, self._recover(channel, statement, params, consume, reads_only, failure)

    def _recover(
        self,
        channel: Channel,
        statement: Statement,
        params: list[Any],
        consume: Callable[[Any], R],
        reads_only: bool,
        failure: BaseException,
    ) -> R:
        """Try again where that cannot do anything twice; else raise the failure in agentdb's terms."""
        may_retry = not channel.wrapper.in_atomic_block
        writes_at_once = may_retry and not reads_only
        for delay in _delays():
            fault = _outcome(channel.fault(failure), failure, committing=writes_at_once)
            if fault is Fault.STATEMENT_GONE:
                self._statement_gone(channel)
            if (
                not may_retry
                or channel.given_up
                or delay is None
                or (fault not in REFUSED and not (fault is Fault.LOST and reads_only))
            ):
                break
            _log_retry(channel, failure)
            if fault in (Fault.LOST, Fault.STALE_STATEMENT, Fault.STATEMENT_GONE):
                channel.disconnect()
                reads_only = False  # a second loss is the server's state, not the connection's
            else:
                time.sleep(delay)
            channel.began = time.monotonic()
            try:
                return consume(channel.execute(statement.sql, params))
            except channel.errors as error:
                failure = driver_error(error)
            finally:
                channel.began = 0.0
        if fault in (Fault.LOST, Fault.UNANSWERED):
            channel.disconnect()
        if fault is Fault.UNREADABLE:
            raise _unreadable(channel, statement, failure) from failure
        if channel.wrapper.in_atomic_block and fault is not Fault.DUPLICATE:
            channel.wrapper.needs_rollback = True
            raise _doom(channel, fault, failure) from failure
        raise channel.explain(fault, failure) from failure

    def _statement_gone(self, channel: Channel) -> None:
        logger.warning(
            "%s lost a prepared statement, as a pooler between here and there does; nothing more is prepared. "
            "Add prepare=off to the database URL.",
            channel.describe(),
        )
        self._threads.prepare_nothing()

    def _narrowed(self, query: Q) -> Q:
        """Return the query over the rows of the tenant alone; an insert is given the tenant as a value."""
        if self.tenant_id is None or isinstance(query, Insert | Together):
            return query
        return cast(Q, narrowed_to_tenant(query))  # type: ignore[arg-type]

    def _of_tenant(self, values: dict[str, Any]) -> dict[str, Any]:
        return values if self.tenant_id is None else {**values, "tenant_id": self.tenant_id}

    def _made(self, make: Callable[..., R], statement: Statement, row: Row) -> R:
        try:
            return make(*statement.convert(row))
        except _UNREADABLE as error:
            raise _unreadable(self._threads.channel(), statement, error) from error

    # -- transactions

    def transaction(self, work: Callable[[], R]) -> R:
        """Call ``work``, all its statements in one transaction, again after a conflict; return its result."""
        channel = self.threads.channel()
        with channel.lock:
            if channel.wrapper.in_atomic_block:
                # Part of the transaction around it, which alone can be tried again; undone alone if work fails.
                try:
                    with translated(channel), self._atomic(channel):
                        result = work()
                        self._refuse_spoiled(channel)
                        return result
                except BaseException:
                    self._forgive(channel)
                    raise
            for delay in _delays():
                try:
                    try:
                        return self._attempt(channel, work)
                    finally:
                        if self._threads.closed:  # by work; Django has needed the alias up to here
                            self._threads.forget_alias()
                except ConflictError as error:
                    if error is not channel.failure or channel.fault_of_failure not in REFUSED or delay is None:
                        raise
                    _log_retry(channel, error.__cause__ or error)
                    if channel.fault_of_failure in (Fault.STALE_STATEMENT, Fault.STATEMENT_GONE):
                        channel.disconnect()
                    time.sleep(delay)
            raise AssertionError("unreachable: the last try returns or raises")

    @staticmethod
    def _forgive(channel: Channel) -> None:
        """Once an inner transaction is undone, what failed in it is no failure of the outer one, if that can go on."""
        if channel.wrapper.needs_rollback or channel.wrapper.closed_in_transaction:
            return
        if channel.fault_of_failure in REFUSED:
            channel.wrapper.needs_rollback = channel.wrapper.in_atomic_block  # only all of it can be tried again
        else:
            channel.failure = None

    def _attempt(self, channel: Channel, work: Callable[[], R]) -> R:
        channel.failure = None
        if not channel.settled:
            channel.settle()
        channel.given_up = channel.committing = False
        channel.began = time.monotonic()
        with translated(channel):
            channel.ensure_alive()  # while it may still be replaced, which it may not in a transaction
        channel.settled = False
        try:
            with translated(channel), self._outermost(channel):
                channel.settled = True
                try:
                    result = work()
                finally:
                    channel.settled = False
                if self._threads.closed:
                    raise DatabaseClosedError(_CLOSED)
                self._refuse_spoiled(channel)
        finally:
            channel.began, channel.committing = 0.0, False
            channel.settle()
        if channel.wrapper.run_on_commit:
            channel.wrapper.run_and_clear_commit_hooks()  # the host's
        return result

    @contextmanager
    def _outermost(self, channel: Channel) -> Iterator[None]:
        """Begin and commit on the driver's connection, and let Django know: its own way takes three times as long.

        Once it is undone, the rest is Django's. What an exception from nowhere interrupts here, ``settle`` mends.
        """
        wrapper = channel.wrapper
        block = transaction.atomic(using=self._threads.alias)
        channel.begin()
        wrapper.commit_on_exit, wrapper.needs_rollback = True, False
        wrapper.autocommit, wrapper.in_atomic_block = False, True
        wrapper.atomic_blocks.append(block)
        channel.began = 0.0
        try:
            yield
            channel.began, channel.committing = time.monotonic(), True
            with translated(channel):  # before Django, as it undoes, replaces a connection that was lost
                channel.commit()
        except BaseException as error:
            if not channel.committing or isinstance(error, AgentDbError):
                channel.began = time.monotonic()
                channel.undo()
                block.__exit__(type(error), error, error.__traceback__)
            raise
        wrapper.atomic_blocks.pop()
        wrapper.autocommit, wrapper.in_atomic_block = True, False

    @contextmanager
    def _atomic(self, channel: Channel) -> Iterator[None]:
        """Django's savepoint, whose own statements may not take longer than a call either."""
        channel.began = time.monotonic()
        raised: BaseException | None = None
        try:
            with transaction.atomic(using=self._threads.alias):
                channel.began = 0.0
                try:
                    yield
                except BaseException as error:
                    raised = error
                    raise
                finally:
                    channel.began = time.monotonic()
        except BaseException as error:
            if error is not raised and not isinstance(error, channel.errors):
                # From nowhere, while the savepoint was set, kept or undone: only all of it can be undone now.
                channel.wrapper.needs_rollback = channel.wrapper.in_atomic_block
            raise
        finally:
            channel.began = 0.0
            del raised  # its traceback holds this frame

    @staticmethod
    def _refuse_spoiled(channel: Channel) -> None:
        """Raise where work went on after a failure that has undone it; that must not look like success."""
        if channel.failure is not None and channel.failed_in == channel.wrapper.atomic_blocks[:1]:
            raise channel.failure
        raw = channel.wrapper.connection
        if channel.wrapper.needs_rollback or raw is None or channel.spoiled(raw):
            raise AgentDbError(_SPOILED)


def _doom(channel: Channel, fault: Fault, error: BaseException) -> AgentDbError:
    channel.failure, channel.fault_of_failure = channel.explain(fault, error), fault
    channel.failed_in = channel.wrapper.atomic_blocks[:1]
    return channel.failure


@contextmanager
def translated(channel: Channel) -> Iterator[None]:
    """Translate what beginning, committing and undoing a transaction raise; other calls translate their own."""
    try:
        yield
    except channel.errors as error:
        cause = driver_error(error)
        fault = _outcome(channel.fault(cause), cause, committing=channel.committing)
        raise _doom(channel, fault, cause) from cause


def _log_retry(channel: Channel, failure: BaseException) -> None:
    logger.info("%s: trying again, because %s.", channel.describe(), channel.reason(failure))


def _warn_of_blocked_loop() -> None:
    """Once in a process: name the line outside of agentdb that called."""
    global _warn_in_loops
    _warn_in_loops = False
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_globals["__name__"].partition(".")[0] == "agentdb":
        level, frame = level + 1, frame.f_back
    warnings.warn(
        "A DjangoDb was called inside a running event loop, which stands still until the database has answered. "
        "Use agentdb.connect_async(), or call it in a thread. (Said once.)",
        RuntimeWarning,
        stacklevel=level,
    )


def _log_if_slow(channel: Channel, began: float, sql: str) -> None:
    took = time.monotonic() - began
    if took > (channel.slow_call_seconds or 0):
        # The statement holds placeholders, and no values.
        logger.warning("%s took %.3f seconds: %s", channel.describe(), took, sql)


def _unreadable(channel: Channel, statement: Statement, error: BaseException) -> AgentDbError:
    """Name the row: one that cannot be read takes every list down that has it."""
    found: object = None
    with suppress(*channel.errors):
        found = next(unreadable_values(channel.wrapper, 1, tables=(statement.table,), thorough=True), None)
    explained = explain(Fault.UNREADABLE, channel.describe(), str(found or channel.reason(error)))
    return type(explained)(f"{explained} Correct it; 'agentdb verifydb' finds others.")


def _outcome(fault: Fault, error: BaseException, *, committing: bool) -> Fault:
    """Tell a write or COMMIT whose answer never came from a connection that was lost before anything could be stored.

    Where the server itself says good-bye, with a code, it has undone what it was at.
    """
    if committing:
        return Fault.UNANSWERED if fault is Fault.LOST and not said_by_server(error) else fault
    return Fault.LOST if fault is Fault.UNANSWERED else fault


def _delays() -> Iterator[float | None]:
    """Yield how long to wait before each retry, and None for the last try."""
    for retry in range(_MAX_RETRIES):
        longest: float = min(_FIRST_DELAY_SECONDS * 2**retry, _LONGEST_DELAY_SECONDS)
        yield random.uniform(0, longest)  # full jitter: callers that were in each other's way do not meet again
    yield None


def _fetch_all(cursor: Any) -> list[Row]:
    rows: list[Row] = cursor.fetchall()
    return rows


def _fetch_inserted(cursor: Any) -> tuple[int, list[Row]]:
    return _row_count(cursor), _fetch_all(cursor) if cursor.description else []


def _row_count(cursor: Any) -> int:
    count: int = cursor.rowcount
    return count
