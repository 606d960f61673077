"""How calls grow with the rows, how they find their rows, and what the indexes for it cost."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from datetime import timedelta
from functools import partial
from importlib import import_module
from typing import Any

import psycopg
from django.db import connections

import agentdb
from agentdb.serving import queries
from agentdb.serving.compiled import Scope
from benchmarks import databases
from benchmarks.databases import Database, Server, fill
from benchmarks.measure import Call, interleaved
from benchmarks.operations import WRITES, Rows
from benchmarks.sections import ROWS, Run

SIZES = (1_000, 10_000, 100_000, 1_000_000)
QUICK_SIZES = (1_000, 10_000, 100_000)

Method = Callable[[Any, Rows], Any]

MIXED: dict[str, Method] = {
    "get_session": lambda db, rows: db.get_session(rows.session_id()),
    "get_best_eviction_candidate": lambda db, rows: db.get_best_eviction_candidate(),
    "get_idle_sandboxes, 20 rows": lambda db, rows: db.get_idle_sandboxes(
        databases.OLDER_THAN
    ),
    "list_sessions, limit=10": lambda db, rows: db.list_sessions(
        rows.tenant(), limit=10
    ),
    "list_sessions_by_runner, 20 rows": lambda db, rows: db.list_sessions_by_runner(
        rows.runner()
    ),
}
# Where one tenant owns all rows.
ONE_TENANT: dict[str, Method] = {
    "one tenant: list_sessions, limit=10": lambda db, rows: db.list_sessions(
        "tenant-0", limit=10
    ),
    "one tenant: list_sessions, limit=10, before": lambda db, rows: db.list_sessions(
        "tenant-0", limit=10, before=rows.session()
    ),
    "one tenant: list_sessions of an agent, 10 rows": lambda db, rows: db.list_sessions(
        "tenant-0", "agent-rare"
    ),
    "one tenant: list_sessions of an agent, limit=10": lambda db, rows: (
        db.list_sessions("tenant-0", rows.busy_agent()[1], limit=10)
    ),
}


def _fill_all(
    run: Run, sizes: tuple[int, ...]
) -> dict[str, dict[tuple[int, bool], Database]]:
    """Return the filled databases per engine; the engines are filled at the same time, in threads."""
    made = {
        engine: {
            (size, one_tenant): run.server.create(
                engine, f"size_{size}_{'one' if one_tenant else 'mixed'}"
            )
            for size in sizes
            for one_tenant in (False, True)
        }
        for engine in run.engines
    }

    def fill_engine(engine: str) -> None:
        for (size, one_tenant), database in made[engine].items():
            fill(database, size, one_tenant=one_tenant)

    with ThreadPoolExecutor(len(run.engines)) as pool:
        list(pool.map(fill_engine, run.engines))
    return made


def scaling(run: Run) -> dict[str, Any]:
    """Microseconds, p50, of agentdb at each size. Nobody runs ANALYZE; autovacuum is left as it is."""
    sizes = QUICK_SIZES if run.quick else SIZES
    results: dict[str, Any] = {}
    for engine, made in _fill_all(run, sizes).items():
        results[engine] = {}
        with ExitStack() as stack:
            stack.enter_context(run.server.apart())
            opened = {
                key: stack.enter_context(agentdb.connect(database.url))
                for key, database in made.items()
            }
            for one_tenant, methods in ((False, MIXED), (True, ONE_TENANT)):
                for name, method in methods.items():
                    calls = {
                        str(size): _call(
                            method,
                            opened[size, one_tenant],
                            Rows(made[size, one_tenant], size),
                        )
                        for size in sizes
                    }
                    timings = interleaved(
                        calls, rounds=60, block=5, longest_seconds=3.0
                    )
                    smallest = timings[str(sizes[0])]
                    results[engine][name] = {
                        size: {
                            "p50": round(timing.p50, 1),
                            "growth": round(timing.ratio(smallest), 2),
                        }
                        for size, timing in timings.items()
                    }
    return results


def _call(method: Method, db: Any, rows: Rows) -> Call:
    return Call(partial(method, db), lambda count: [(rows,)] * count)


# -- the indexes of migrations 0003 and 0004


def _added_indexes() -> list[str]:
    return [
        operation.index.name
        for name in ("0003_query_indexes", "0004_fleet_indexes")
        for operation in import_module(
            f"agentdb.migrations.{name}"
        ).Migration.operations
    ]


def index_cost(run: Run) -> dict[str, Any]:
    """Microseconds, p50, of agentdb's writes without and with the indexes that migrations 0003 and 0004 add."""
    results: dict[str, Any] = {}
    for engine in run.engines:
        for synchronous in ("FULL", "NORMAL") if engine == "sqlite" else ("",):
            with ExitStack() as stack:
                calls: dict[str, tuple[Any, Rows]] = {}
                for name in ("without", "with"):
                    database = run.copy(engine, synchronous)
                    if name == "without":
                        _drop(database, _added_indexes())
                    db = stack.enter_context(agentdb.connect(database.url))
                    rows = Rows(database, ROWS)
                    stack.callback(rows.close)
                    calls[name] = db, rows
                found = results[f"{engine} {synchronous}".strip()] = {}
                for operation in WRITES:
                    timings = interleaved(
                        {
                            name: operation.on(db, rows)
                            for name, (db, rows) in calls.items()
                        },
                        rounds=20 if run.quick else 60,
                        block=5,
                        longest_seconds=2.0,
                    )
                    found[operation.name] = {
                        **{
                            name: round(timing.p50, 1)
                            for name, timing in timings.items()
                        },
                        "ratio": round(timings["with"].ratio(timings["without"]), 2),
                    }
    return results


def _drop(database: Database, indexes: list[str]) -> None:
    connection: Any = (
        sqlite3.connect(database.path, isolation_level=None)
        if database.engine == "sqlite"
        else psycopg.connect(database.url, autocommit=True)
    )
    for name in indexes:
        connection.execute(f'DROP INDEX "{name}"')
    connection.close()


# -- EXPLAIN

_ARGUMENTS: dict[str, Any] = {
    "id": databases.hashed("session", 5),
    "tenant_id": "tenant-5",
    "name": "agent-5",
    "agent": "agent-5",
    "agent_name": "agent-5",
    "path": "/srv/new",
    "status": "active",
    "state": "warm",
    "sandbox_id": databases.hashed("sandbox", 5),
    "session_id": databases.hashed("session", 5),
    "runner_id": "runner-5",
    "workspace_dir": "/srv/w",
    "label": "a key",
    "key_hash": databases.key_hash(5),
    "bare_hash": databases.key_hash(6),
    "limit": 10,
    "now": databases.EPOCH + 900 * databases.SECOND,
    "created_at": databases.EPOCH + 900 * databases.SECOND,
    "older_than": databases.EPOCH + 117 * databases.SECOND,
    "ended_before": databases.EPOCH + 117 * databases.SECOND,
    "silent_for": timedelta(minutes=1),
    "session_ids": "[]",
    "only_if": '["active"]',
    "ids": json.dumps([databases.hashed("session", number) for number in range(10)]),
    "value0": "active",
    "value1": "paused",
}


def explain(run: Run) -> dict[str, Any]:
    """Return the plan of every cached statement, on 100,000 sessions and sandboxes without statistics."""
    results: dict[str, Any] = {}
    for engine in run.engines:
        database = _explained(run.server, engine, 10_000 if run.quick else 100_000)
        with agentdb.connect(database.url) as db:
            wrapper = connections[db.alias]
            wrapper.ensure_connection()
            results[engine] = {}
            for name, query in _queries():
                statement = query.compile(Scope(wrapper))
                params = statement.bind(_ARGUMENTS)
                if engine == "sqlite":
                    plan = wrapper.connection.execute(
                        f"EXPLAIN QUERY PLAN {statement.sql}", params
                    ).fetchall()
                    lines = [row[3] for row in plan]
                else:
                    cursor = psycopg.ClientCursor(wrapper.connection)
                    cursor.execute(
                        f"EXPLAIN (COSTS OFF) {statement.sql}".encode(), params
                    )
                    lines = [row[0] for row in cursor]
                results[engine][name] = lines
    return results


def _explained(server: Server, engine: str, rows: int) -> Database:
    database = server.create(engine, f"explained_{rows}")
    fill(database, rows)
    return database


def _queries() -> list[tuple[str, Any]]:
    named = {
        name.lower(): value
        for name, value in vars(queries).items()
        if name.isupper() and name[0] != "_"
    }
    found = [each for name, value in named.items() for each in _within(name, value)]
    for before in (False, True):
        for filters in ((), ("agent_name",), ("runner_id",)):
            for statuses in (0, 1, 2):
                given = ["tenant_id", *filters, "limit"]
                if before:
                    given += ["created_at", "id"]
                query = queries.list_rows(queries.SESSIONS, frozenset(given), statuses)
                options = [
                    *filters,
                    *["status"] * statuses,
                    *["before"] * before,
                    "limit",
                ]
                found.append((f"list_sessions({', '.join(options)})", query))
    touch = queries.touch(queries.SESSIONS, many=True)
    found.append(("touch_sessions", touch.update))
    of_tenant = frozenset({"tenant_id"})
    count = queries.count_rows(queries.SESSIONS, of_tenant, 1)
    found.append(("count_sessions(status)", count))
    return found


def _within(name: str, value: Any) -> list[tuple[str, Any]]:
    """The queries of a dictionary by what tells them apart, or the one query."""
    if isinstance(value, dict):
        return [
            each
            for key, inner in value.items()
            for each in _within(f"{name}({key})", inner)
        ]
    return [(name, value)] if hasattr(value, "compile") else []
