"""Runs statements and transactions on one of Django's database aliases, and retries them when that is safe."""

from __future__ import annotations

import logging
import os
import random
import sys
import time
import warnings
from asyncio import _get_running_loop
from collections.abc import Callable
from contextlib import suppress
from itertools import count, starmap
from operator import attrgetter, methodcaller
from typing import Any, Self, TypeVar

from agentdb.errors import AgentDbError, DatabaseClosedError, DuplicateKeyError
from agentdb.faults import NOT_KEPT, REFUSED, Fault, driver_error, explain
from agentdb.schema.rows import unreadable_values
from agentdb.serving import forking
from agentdb.serving.compiled import (
    Delete,
    Insert,
    Query,
    Row,
    Scope,
    Select,
    SelectCount,
    Statement,
    Together,
    Update,
)
from agentdb.serving.connections.base import Connection, Engine, Slot
from agentdb.serving.connections.threads import Threads
from agentdb.serving.transactions import Block, Part, Savepoint, Transaction, block_of

R = TypeVar("R")

# About five seconds in total: longer than any transaction here, shorter than a caller's patience.
_MAX_RETRIES = 15
_FIRST_DELAY_SECONDS = 0.005
_LONGEST_DELAY_SECONDS = 0.5

# What a conversion raises for text that is not a timestamp, for numbers and bytes, and for year 0 in UTC.
_UNREADABLE = (ValueError, AttributeError, OverflowError)

logger = logging.getLogger("agentdb")

# Django's switch that allows opening a connection inside an event loop.
_warn_in_loops = "DJANGO_ALLOW_ASYNC_UNSAFE" not in os.environ


class Executor:
    """Runs queries on the connections of one alias; safe to share among threads. ``DjangoDb`` is one.

    In a tenant's view every query is narrowed to that tenant, and inserts get it; in a transaction's view every call
    belongs to that. A view shares all else with what it is a view of.
    """

    # Of a view.
    _tenant_id: str | None = None
    _part: Part | None = None
    _closed = False

    def __init__(self, threads: Threads) -> None:
        self._threads = threads
        # Compiled once, for all tenants and for a tenant's view.
        self._statements: dict[Query, Statement] = {}
        self._of_tenants: dict[Query, Statement] = {}

    def _view(self, **differences: Any) -> Self:
        view = object.__new__(type(self))
        # Like copy.copy(), in a tenth of the time.
        view.__dict__.update(self.__dict__, **differences)
        return view

    def _slot(self) -> Slot:
        """Return this thread's slot; raises ``DatabaseClosedError`` if this view, its part or the whole has ended."""
        if self._part is not None:
            self._part.check_use()
        if self._closed:
            raise DatabaseClosedError(
                "The view of a tenant is closed. Make another one with for_tenant()."
            )
        return self._threads.slot()

    def describe(self) -> str:
        """Return the name of the database, and of the tenant, for a message, without the password."""
        place = self._threads.engine.describe()
        if self._tenant_id is None:
            return place
        return f"{place}, tenant {self._tenant_id!r}"

    # -- statements

    def _first(
        self,
        make: Callable[..., R],
        query: Select | Update | Delete,
        **values: Any,
    ) -> R | None:
        """Return ``make(*columns)`` of the first row, or None."""
        statement, rows = self._run(query, values, _fetch_all)
        return self._made(make, statement, rows)[0] if rows else None

    def _all(
        self,
        make: Callable[..., R],
        query: Query,
        **values: Any,
    ) -> list[R]:
        """Return ``make(*columns)`` of each row."""
        statement, rows = self._run(query, values, _fetch_all)
        return self._made(make, statement, rows)

    def _one(
        self,
        make: Callable[..., R],
        query: Insert | SelectCount,
        **values: Any,
    ) -> R:
        """Return ``make(*columns)`` of the single row that the query always returns."""
        statement, rows = self._run(query, values, _fetch_all)
        if not rows:
            raise self._skipped(statement)
        [made] = self._made(make, statement, rows)
        return made

    def _count(self, query: Insert | Update | Delete | Together, **values: Any) -> int:
        """Return the number of changed rows."""
        statement, changed = self._run(query, values, _row_count)
        total = changed
        # Only a bulk change on CockroachDB has a batch. Its conditions no longer match the rows it has changed, so
        # the next run takes others, and the last one, which is not full, ends the loop.
        while changed == statement.batch:
            _, changed = self._run(query, values, _row_count)
            total += changed
        return total

    def _changed(self, query: Update | Delete, **values: Any) -> bool:
        """Return whether the query changed a row."""
        return self._count(query, **values) > 0

    def _count_last(self, queries: Together, **values: Any) -> int:
        """Run both queries, or neither, and return the number of rows that the last one changed."""
        # Three round trips less than a transaction; one statement is all or nothing by itself.
        if self._threads.engine.has_server:
            return self._count(queries, **values)

        def run_both(inside: Executor) -> int:
            inside._count(queries.first, **values)
            return inside._count(queries.last, **values)

        return self._transaction(run_both)

    def _insert(
        self,
        make: Callable[..., R],
        query: Insert,
        duplicate: str,
        **values: Any,
    ) -> R:
        """Insert the row, and return ``make`` of its columns: the values that it was given, and the time.

        Raises ``DuplicateKeyError`` if its key is taken; ``duplicate`` is the message, with the values' names in
        braces.
        """
        statement, returned = self._run(query, values, _inserted)
        if returned is None:
            # "Taken" tells a caller whose first try had no answer that it was stored.
            if self._one(int, query.taken, **values):
                raise DuplicateKeyError(duplicate.format(**values))
            # The row that was in the way may be deleted by now, which cannot happen inside a transaction. There only a
            # trigger can have skipped the new one.
            if self._part is not None:
                raise self._skipped(statement)
            return self._transaction(
                lambda inside: inside._insert(make, query, duplicate, **values)
            )
        now = values.pop("now", None)
        if returned:
            [[now]] = returned  # by the server's clock
        for column in query.times:
            values[column] = now
        return make(**values)

    def _run(
        self,
        query: Query,
        values: dict[str, Any],
        consume: Callable[[Any], R],
    ) -> tuple[Statement, R]:
        """Run the query, and return its statement and ``consume(cursor)``.

        The tenant of the view is added to the values.
        """
        block = None
        if self._part is not None:
            # A view of a transaction may have ended, or be in the wrong thread; both are errors, not reasons to wait.
            # Before taking the lock, which another thread's transaction may hold.
            block = self._part.check()
        slot = self._slot()
        if self._tenant_id is not None:
            values["tenant_id"] = self._tenant_id
        if _warn_in_loops and _get_running_loop() is not None:
            _warn_of_blocked_loop()
        if forking.under_way:
            forking.wait(slot)
        # For a server and a file the lock is this thread's own, and free: a fork takes it to wait for the end of the
        # call. A database in memory has one connection for all threads, which take turns here.
        with slot.lock:
            # close() in another thread may have come while this one waited for the lock.
            if self._threads.closed:
                self._threads.slot()  # says so
            block = block or _open_block(slot)
            statement = self._statements.get(query) or self._compile(query, slot)
            params = statement.bind(values)

            def run(connection: Connection) -> R:
                # The cursor has no name here: the traceback of an error would keep it alive, and with it SQLite's
                # statement, which holds a snapshot of the file.
                return consume(connection.execute(statement.sql, params))

            began = time.monotonic()
            try:
                return statement, self._try(slot, block, statement, run, began)
            finally:
                if slot.engine.slow_call_seconds is not None:
                    _log_if_slow(slot.engine, began, statement.sql)

    def _compile(self, query: Query, slot: Slot) -> Statement:
        """Compile the query and keep the statement; two threads that do so at once get the same SQL."""
        scope = Scope(slot.wrapper, of_tenant=self._tenant_id is not None)
        statement = query.compile(scope)
        self._statements[query] = statement
        return statement

    def _try(
        self,
        slot: Slot,
        block: Block | None,
        statement: Statement,
        run: Callable[[Connection], R],
        began: float,
    ) -> R:
        """Run the statement in the open transaction, or else as one of its own, and retry it if that is safe.

        The caller holds the slot's lock. ``began``: when the call began, on the monotonic clock. What remains of
        ``call_timeout`` since then limits the opening of another connection after a loss.
        """
        writing = block is None and statement.writes
        must_be_refused = statement.writes
        limit = None
        retry = 0
        while True:
            try:
                if block is not None:
                    return run(slot.open_in_block())
                connection = slot.ready(limit, writing=writing)
                # On SQLite another writer's connection may run a write.
                return connection.write(run) if writing else run(connection)
            except slot.engine.errors as error:
                failure = driver_error(error)
            except BaseException:
                slot.interrupted()
                raise
            fault = slot.fault(failure, writing=writing)
            self._clear_up(slot, fault)  # before raising too
            safe = _safe_to_retry(block, must_be_refused)
            if retry == _MAX_RETRIES or fault not in safe:
                raise _explained(slot, block, statement, fault, failure) from failure
            _log_retry(slot, failure)
            if fault is Fault.LOST:
                # If it is lost again, the fault is the server's, not the connection's.
                must_be_refused = True
                limit = slot.engine.rest_of_call(began)
            _wait_for_others(retry)
            retry += 1

    def _clear_up(self, slot: Slot, fault: Fault) -> None:
        """Let the next call find a usable connection, or none."""
        if fault is Fault.STATEMENT_GONE:
            logger.warning(
                "%s lost a prepared statement, as a pooler between here and there does; nothing more is prepared. "
                "Add prepare=off to the database URL.",
                slot.engine.describe(),
            )
            slot.engine.prepares = False
        # Inside a host's transaction a savepoint may undo what the server refused, and the rest goes on.
        may_be_undone = fault in REFUSED and slot.wrapper.in_atomic_block
        if fault in NOT_KEPT and not may_be_undone:
            slot.discard()

    def _made(
        self,
        make: Callable[..., R],
        statement: Statement,
        rows: list[Row],
    ) -> list[R]:
        """Return ``make(*columns)`` of each row.

        Raises ``SchemaMismatchError``, which names the row, if one cannot be converted, and also if a server returns
        timestamps as text.
        """
        try:
            if statement.has_text_instants:
                return [make(*statement.convert(row)) for row in rows]
            made = list(starmap(make, rows))
        except _UNREADABLE as error:
            slot = self._threads.slot()
            raise _unreadable(slot, statement, error) from error
        # All rows of a result have the same types, so the first tells whether the migrations were reversed under the
        # open Db, and the statement prepared again.
        if rows and any(isinstance(rows[0][at], str) for at in statement.instants):
            raise self._mismatch(f"table {statement.table!r} has timestamps as text")
        return made

    def _skipped(self, statement: Statement) -> AgentDbError:
        return self._mismatch(
            f"table {statement.table!r} took no row; a trigger may have skipped it"
        )

    def _mismatch(self, reason: str) -> AgentDbError:
        return self._threads.engine.explain(Fault.MISMATCH, TypeError(reason))

    # -- transactions

    def _transaction(self, work: Callable[[Self], R]) -> R:
        """Call ``work`` with a view whose calls are one transaction, retry after a conflict, and return its result.

        Inside a transaction it is a savepoint, which rolls back alone if ``work`` fails.
        """
        if self._part is not None:
            self._part.check()
        slot = self._slot()
        with slot.lock:
            for retry in count():
                # A savepoint in a transaction that is open, ours or the host's.
                block = block_of(slot)
                part = Transaction(slot) if block is None else Savepoint(slot, block)
                try:
                    return self._transact(slot, part, work)
                # Also KeyboardInterrupt, SystemExit and GeneratorExit roll back; they are never retried.
                except BaseException as error:
                    part.undo(error)
                    may_retry = part.may_be_retried and retry < _MAX_RETRIES
                    if not (may_retry and isinstance(error, Exception)):
                        raise
                    _log_retry(slot, error.__cause__ or error)
                finally:
                    part.is_over = True  # a plain assignment: nothing can come between
                _wait_for_others(retry)
        raise AssertionError("unreachable: the last try returns or raises")

    def _transact(self, slot: Slot, part: Part, work: Callable[[Self], R]) -> R:
        """Make one attempt at the transaction; the caller undoes the part if this raises."""
        is_committing = False
        try:
            part.begin()
            part.check()
            view = self._view(_part=part)
            result = work(view)
            # The function may have closed the Db; then this raises, and nothing of its work is stored.
            self._threads.slot()
            is_committing = True
            part.commit()
        except slot.engine.errors as error:  # also of Django's own queries
            failure = part.block.fail_by(slot, error, writing=is_committing)
            raise failure from driver_error(error)
        # What is left of Django's atomic(): transaction.on_commit() of the host's own code inside the function.
        if slot.wrapper.run_on_commit and not slot.wrapper.in_atomic_block:
            slot.wrapper.run_and_clear_commit_hooks()  # may raise the host's own errors
        return result


def _open_block(slot: Slot) -> Block | None:
    """Return the transaction that this thread has open, ours or the host's; raise if it has failed."""
    block = block_of(slot)
    return block and block.check()


def _safe_to_retry(block: Block | None, must_be_refused: bool) -> tuple[Fault, ...]:
    """Return the faults after which a statement may be repeated."""
    if block is not None:
        return ()  # only the whole transaction may
    # REFUSED: the server says that it has rolled the statement back, so a retry cannot store it twice. After a lost
    # connection only a read may be repeated: a write may have been committed, and only its answer lost.
    return REFUSED if must_be_refused else (*REFUSED, Fault.LOST)


def _explained(
    slot: Slot,
    block: Block | None,
    statement: Statement,
    fault: Fault,
    failure: BaseException,
) -> AgentDbError:
    """Return the caller's error for the driver's, which marks the transaction as failed."""
    # An unreadable row is an answer, which the function may handle; after any other error PostgreSQL refuses all
    # further statements, and so does a failed block on SQLite, so that both behave alike.
    if fault is Fault.UNREADABLE:
        return _unreadable(slot, statement, failure)
    explained = slot.engine.explain(fault, failure)
    if block is not None:
        block.fail(explained, fault)
    return explained


def _unreadable(slot: Slot, statement: Statement, error: BaseException) -> AgentDbError:
    """Return an error that names the row, because one unreadable row fails every list that has it."""
    # The driver's error names no row. Look for the first one that is bad; if even that fails, its text has to do.
    engine = slot.engine
    reason = engine.reason(error)
    tables = (statement.table,)
    with suppress(AgentDbError), slot.lock, slot.operation():
        for found in unreadable_values(slot.wrapper, 1, tables=tables, thorough=True):
            reason = str(found)
            break
    return explain(Fault.UNREADABLE, engine.describe(), reason)


def _log_retry(slot: Slot, failure: BaseException) -> None:
    logger.info(
        "%s: trying again, because %s.",
        slot.engine.describe(),
        slot.engine.reason(failure),
    )


def _log_if_slow(engine: Engine, began: float, sql: str) -> None:
    """Log a statement, with placeholders for its values, that took longer than ``slow_call_seconds``."""
    took = time.monotonic() - began
    if took > (engine.slow_call_seconds or 0):
        logger.warning("%s took %.3f seconds: %s", engine.describe(), took, sql)


def _warn_of_blocked_loop() -> None:
    """Once in a process: name the line outside of agentdb that called."""
    global _warn_in_loops
    _warn_in_loops = False
    # Python 3.12 has skip_file_prefixes for this; 3.11 does not.
    level = 0
    while sys._getframe(level).f_globals["__name__"].startswith("agentdb."):
        level += 1
    warnings.warn(
        "A DjangoDb was called inside a running event loop, which it blocks until the database has answered. "
        "Use agentdb.connect_async(), or call it in a thread. (Said once.)",
        RuntimeWarning,
        stacklevel=level + 1,
    )


def _wait_for_others(retry: int) -> None:
    """Wait before the next attempt, longer each time, and randomly, so that conflicting callers part."""
    longest = min(_FIRST_DELAY_SECONDS * 2**retry, _LONGEST_DELAY_SECONDS)
    time.sleep(random.uniform(0, longest))


def _inserted(cursor: Any) -> list[Row] | None:
    """Return what an insert returns; None if the key was taken."""
    return cursor.fetchall() if cursor.rowcount else None


_fetch_all = methodcaller("fetchall")
_row_count: Callable[[Any], int] = attrgetter("rowcount")
