"""Whether the database of a ``Db`` works."""

from __future__ import annotations

import time

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import AgentDbError, DatabaseClosedError, SchemaOutOfDateError
from agentdb.faults import Fault, classify
from agentdb.interface import Health
from agentdb.schema.inspection import server_version, sqlite_path
from agentdb.schema.presence import schema_problem
from agentdb.serving import own_apps
from agentdb.serving.connections.base import Slot
from agentdb.serving.connections.threads import Threads
from agentdb.serving.transactions import block_of
from agentdb.sqlite_files import file_concern, version_concern


def check_health(threads: Threads) -> Health:
    """Check the database on this thread's connection, or on a new one if that has died."""
    slot, began = threads.slot(), time.monotonic()
    with slot.lock:
        in_transaction = block_of(slot) is not None
        try:
            try:
                return _ask(threads, slot, in_transaction, None)
            except AgentDbError as error:
                if (
                    in_transaction
                    or error.__cause__ is None
                    or classify(error.__cause__) is Fault.SILENT
                ):
                    raise
                slot.discard()  # the server may be back: retry on a new connection
                limit = slot.engine.rest_of_call(began)
                return _ask(threads, slot, in_transaction, limit)
        except DatabaseClosedError:
            raise
        except AgentDbError as error:
            if not in_transaction:
                slot.discard()
            return _health(threads, reason=str(error))


def _ask(
    threads: Threads, slot: Slot, in_transaction: bool, limit: float | None
) -> Health:
    wrapper = slot.wrapper
    if not in_transaction:
        slot.ready(limit)
    with slot.operation():
        with wrapper.cursor() as cursor:
            began = time.perf_counter()
            cursor.execute("SELECT 1")
            cursor.fetchall()
            milliseconds = (time.perf_counter() - began) * 1000
        version = server_version(wrapper).split()[0]
        place = slot.engine.describe()
        problem = schema_problem(wrapper, place) or own_apps.schema_problem(
            wrapper, place
        )
    return _health(
        threads,
        reason="" if problem is None else str(problem),
        version=version,
        milliseconds=milliseconds,
        pending=problem.pending if isinstance(problem, SchemaOutOfDateError) else (),
        warnings=_warnings(wrapper, version),
    )


def _warnings(wrapper: BaseDatabaseWrapper, version: str) -> tuple[str, ...]:
    path = sqlite_path(wrapper)
    concerns = (
        (file_concern(path), version_concern(version)) if path is not None else ()
    )
    return tuple(concern for concern in concerns if concern)


def _health(
    threads: Threads,
    *,
    reason: str,
    version: str = "",
    milliseconds: float | None = None,
    pending: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
) -> Health:
    return Health(
        ok=not reason,
        engine=threads.slot().wrapper.vendor,
        server_version=version,
        place=threads.engine.describe(),
        round_trip_ms=milliseconds,
        pending_migrations=pending,
        connections=threads.open_connections(),
        reason=reason,
        warnings=warnings,
    )
