"""Whether the database of an executor works."""

from __future__ import annotations

import time

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import AgentDbError, DatabaseClosedError, DatabaseUnavailableError
from agentdb.interface import Health
from agentdb.schema.inspection import sqlite_path
from agentdb.schema.migration_record import pending_migrations
from agentdb.serving.connections.base import Channel
from agentdb.serving.executor import Threads, translated
from agentdb.sqlite_files import file_concern, version_concern


def check_health(threads: Threads) -> Health:
    """Ask the database, on this thread's connection, and open a new one if that has died."""
    channel = threads.channel()
    with channel.lock:
        try:
            try:
                return _ask(threads, channel)
            except DatabaseUnavailableError:
                if channel.wrapper.in_atomic_block:
                    raise
                channel.disconnect()  # what it was kept for may be over: a server that is back has a new one
                return _ask(threads, channel)
        except DatabaseClosedError:
            raise
        except AgentDbError as error:
            if not channel.wrapper.in_atomic_block:
                channel.disconnect()
            return _health(threads, channel, reason=str(error))


def _ask(threads: Threads, channel: Channel) -> Health:
    wrapper = channel.wrapper
    sql = "SELECT sqlite_version()" if wrapper.vendor == "sqlite" else "SHOW server_version"
    with translated(channel):
        channel.ensure_alive()
        with wrapper.cursor() as cursor:
            began = time.perf_counter()
            cursor.execute(sql)
            [(version,)] = cursor.fetchall()
            milliseconds = (time.perf_counter() - began) * 1000
        pending = tuple(pending_migrations(wrapper))
    reason = ""
    if pending:
        reason = f"{threads.describe()} lacks the migrations {', '.join(pending)}. Run 'agentdb migrate'."
    return _health(
        threads,
        channel,
        reason=reason,
        version=str(version).partition(" ")[0],
        milliseconds=milliseconds,
        pending=pending,
        warnings=_warnings(wrapper, version),
    )


def _warnings(wrapper: BaseDatabaseWrapper, version: str) -> tuple[str, ...]:
    path = sqlite_path(wrapper)
    concerns = (file_concern(path), version_concern(version)) if path is not None else ()
    return tuple(concern for concern in concerns if concern)


def _health(
    threads: Threads,
    channel: Channel,
    *,
    reason: str,
    version: str = "",
    milliseconds: float | None = None,
    pending: tuple[str, ...] = (),
    warnings: tuple[str, ...] = (),
) -> Health:
    return Health(
        ok=not reason,
        engine=channel.wrapper.vendor,
        server_version=version,
        place=threads.describe(),
        round_trip_ms=milliseconds,
        pending_migrations=pending,
        connections=threads.open_connections(),
        reason=reason,
        warnings=warnings,
    )
