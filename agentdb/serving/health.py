"""Whether the database of a ``Db`` works."""

from __future__ import annotations

import time

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import AgentDbError
from agentdb.interface import Health
from agentdb.schema.inspection import (
    check_sqlite_file,
    server_version,
    sqlite_path,
)
from agentdb.serving import own_apps
from agentdb.serving.connections.threads import Threads
from agentdb.sqlite_files import file_concern, version_concern


def check_health(threads: Threads) -> Health:
    """Check the database on this thread's connection, or on a new one if that has died."""
    slot = threads.slot()
    wrapper = slot.wrapper
    place = slot.engine.describe()
    # What cannot be read stays so.
    reason = version = ""
    milliseconds: float | None = None
    pending: tuple[str, ...] = ()
    warnings: tuple[str, ...] = ()
    with slot.lock:
        in_transaction = wrapper.in_atomic_block
        try:
            # First, because a new file would not help where one was moved away.
            slot.engine.refuse_displaced()
            path = sqlite_path(wrapper)
            if path is not None:
                check_sqlite_file(path)
            threads.ensure_connected()
            with slot.operation():
                milliseconds = _round_trip(wrapper)
                version = server_version(wrapper).split()[0]
                problem = own_apps.schema_problem(wrapper, place)
            reason = str(problem or "")
            pending = getattr(problem, "pending", ())
            if path is not None:
                # What may harm the file although it works now.
                concerns = file_concern(path), version_concern(version)
                warnings = tuple(filter(None, concerns))
        except AgentDbError as error:
            reason = str(error)
            # Without autocommit the host may have work in a transaction of its own.
            if not in_transaction and wrapper.autocommit:
                slot.discard()
        return Health(
            ok=not reason,
            engine=wrapper.vendor,
            server_version=version,
            place=place,
            round_trip_ms=milliseconds,
            pending_migrations=pending,
            connections=threads.open_connections(),
            reason=reason,
            warnings=warnings,
        )


def _round_trip(wrapper: BaseDatabaseWrapper) -> float:
    """Return how many milliseconds the smallest query takes."""
    with wrapper.cursor() as cursor:
        began = time.perf_counter()
        cursor.execute("SELECT 1")
        return (time.perf_counter() - began) * 1000
