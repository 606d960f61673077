"""What is called, with which arguments, on a database of ``n`` sessions and sandboxes."""

from __future__ import annotations

import itertools
import random
import sqlite3
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import psycopg

from agentdb import SessionRecord
from benchmarks import databases
from benchmarks.databases import Database
from benchmarks.measure import Arguments, Call

Maker = Callable[["Rows", int], Sequence[Arguments]]


class Rows:
    """Draws the arguments of calls; writes, untimed, the rows that a call is going to delete."""

    def __init__(self, database: Database, n: int) -> None:
        self.n = n
        self.database = database
        self.random = random.Random(7)
        self.fresh: Iterator[int] = itertools.count(n)
        self._connection: Any = None

    def number(self) -> int:
        return self.random.randrange(self.n)

    def session_id(self) -> str:
        return databases.hashed("session", self.number())

    def sandbox_id(self) -> str:
        return databases.hashed("sandbox", self.number())

    def agent(self) -> tuple[str, str]:
        i = self.random.randrange(databases.AGENTS)
        return f"agent-{i}", f"tenant-{i % 50}"

    def tenant(self) -> str:
        return f"tenant-{self.number() % 50}"

    def session(self) -> SessionRecord:
        """Return a session as the mark of a page: all that matters of it are its instant and id."""
        i = self.number()
        instant = databases.EPOCH + i * databases.SECOND + databases.FRACTION
        return SessionRecord(
            databases.hashed("session", i), "", "", "", "", None, instant, instant
        )

    def busy_agent(self) -> tuple[str, str]:
        """Return a tenant and an agent that have sessions in common."""
        i = self.random.randrange(databases.agents_with_sessions(self.n))
        return f"tenant-{i % 50}", f"agent-{i}"

    def runner(self) -> str:
        return f"runner-{self.random.randrange(max(1, self.n // (2 * databases.RUNNER_ROWS)))}"

    def key_hash(self) -> str:
        return databases.key_hash(self.random.randrange(databases.API_KEYS))

    def new_id(self, kind: str) -> str:
        return databases.hashed(kind, next(self.fresh))

    def write(self, sql: str, rows: Sequence[Arguments]) -> None:
        """Write outside the measurement, on a connection of its own."""
        if self.database.engine == "sqlite":
            connection = self._connection or sqlite3.connect(
                self.database.path, timeout=30
            )
            with connection:
                connection.executemany(sql, rows)
        else:
            connection = self._connection or psycopg.connect(self.database.url)
            with connection.transaction(), connection.cursor() as cursor:
                cursor.executemany(sql.replace("?", "%s").encode(), rows)
        self._connection = connection

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()


@dataclass(frozen=True, slots=True)
class Operation:
    """A method of ``Db`` and the arguments of its calls."""

    name: str
    arguments: Maker
    method: str = ""
    keywords: dict[str, Any] | None = None

    def on(self, peer: Any, rows: Rows) -> Call:
        function = getattr(peer, self.method or self.name)
        if self.keywords:
            keywords = self.keywords
            bare = function
            function = lambda *arguments: bare(*arguments, **keywords)  # noqa: E731 (no name to give it)
        return Call(function, lambda count: self.arguments(rows, count))


def each(draw: Callable[[Rows], Arguments]) -> Maker:
    return lambda rows, count: [draw(rows) for _ in range(count)]


def _doomed_sandboxes(rows: Rows, count: int) -> list[Arguments]:
    ids = [(rows.new_id("sandbox"),) for _ in range(count)]
    rows.write(
        "INSERT INTO sandboxes (id, agent_name, workspace_dir) VALUES (?, 'a', '/w')",
        ids,
    )
    return ids


def _doomed_keys(rows: Rows, count: int) -> list[Arguments]:
    ids = [(rows.new_id("key"),) for _ in range(count)]
    rows.write(
        "INSERT INTO api_keys (id, tenant_id, key_hash, label) VALUES (?, 'doomed', ?, '')",
        [(i, i) for (i,) in ids],
    )
    return ids


def _doomed_agents(rows: Rows, count: int) -> list[Arguments]:
    ids = [(rows.new_id("agent"),) for _ in range(count)]
    rows.write(
        "INSERT INTO agents (id, name, tenant_id, path) VALUES (?, ?, 'doomed', '/w')",
        [(i, i) for (i,) in ids],
    )
    rows.write(
        "INSERT INTO sessions (id, agent_name, sandbox_id, tenant_id) VALUES (?, ?, 's', 'doomed')",
        [(i, i) for (i,) in ids],
    )
    return [(i, "doomed") for (i,) in ids]


def _resumed_runners(rows: Rows, count: int) -> list[Arguments]:
    runners = [(rows.runner(),) for _ in range(count)]
    rows.write("UPDATE sessions SET status = 'active' WHERE runner_id = ?", runners)
    return runners


def _resumed_sessions(rows: Rows, count: int) -> list[Arguments]:
    # Each call but the first finds nothing to do, so a block is one call.
    rows.write(
        "UPDATE sessions SET status = 'active' WHERE id = ?",
        [(rows.session_id(),) for _ in range(100)],
    )
    return [()]


def _warmed_sandboxes(rows: Rows, count: int) -> list[Arguments]:
    rows.write(
        "UPDATE sandboxes SET state = 'warm' WHERE id = ?",
        [(rows.sandbox_id(),) for _ in range(100)],
    )
    return [()]


def _small_transaction(rows: Rows, count: int) -> list[Arguments]:
    def arguments() -> Arguments:
        session, sandbox = rows.new_id("session"), rows.sandbox_id()

        def open_session(db: Any) -> None:
            db.insert_session(session, "agent-1", sandbox, "tenant-1")
            db.update_sandbox_session(sandbox, session)
            db.touch_sandbox(sandbox)

        return (open_session,)

    return [arguments() for _ in range(count)]


def _sessions_that_nobody_has(rows: Rows, count: int) -> list[Arguments]:
    ids = [(rows.session_id(),) for _ in range(count)]
    rows.write(
        "UPDATE sessions SET runner_id = NULL, status = 'active' WHERE id = ?", ids
    )
    return [(id, rows.runner()) for (id,) in ids]


def _pool(rows: Rows, count: int) -> list[Arguments]:
    ids = [(rows.new_id("sandbox"),) for _ in range(count)]
    rows.write(
        "INSERT INTO sandboxes (id, agent_name, workspace_dir, state) VALUES (?, 'pool', '/w', 'warm')",
        ids,
    )
    return [("pool", rows.session_id()) for _ in ids]


POINT_READS = (
    Operation("get_session", each(lambda rows: (rows.session_id(),))),
    Operation("get_agent", each(lambda rows: rows.agent())),
    Operation("get_sandbox", each(lambda rows: (rows.sandbox_id(),))),
    Operation("get_api_key_by_hash", each(lambda rows: (rows.key_hash(),))),
)

LISTED = each(lambda rows: (databases.LISTED,))

LISTS = (
    Operation("list_sessions, 1,000 records", LISTED, "list_sessions"),
    Operation("list_sessions, limit=10", LISTED, "list_sessions", {"limit": 10}),
    Operation(
        "list_sessions of one agent, 100 records",
        each(lambda rows: rows.busy_agent()),
        "list_sessions",
    ),
    Operation(
        "list_sessions_by_runner, 20 records",
        each(lambda rows: (rows.runner(),)),
        "list_sessions_by_runner",
    ),
    Operation(
        "list_agents, 20 records",
        each(lambda rows: (f"tenant-{rows.number() % 50}",)),
        "list_agents",
    ),
    Operation(
        "list_api_keys_by_tenant, 20 records",
        each(lambda rows: (f"tenant-{rows.number() % 50}",)),
        "list_api_keys_by_tenant",
    ),
    Operation("get_best_eviction_candidate", each(lambda rows: ())),
    Operation(
        "get_idle_sandboxes, 20 records",
        each(lambda rows: (databases.OLDER_THAN,)),
        "get_idle_sandboxes",
    ),
    Operation(
        "get_cold_sandboxes, 20 records",
        each(lambda rows: (databases.EPOCH + 117 * databases.SECOND,)),
        "get_cold_sandboxes",
    ),
    Operation("count_sandboxes", each(lambda rows: ())),
)

WRITES = (
    Operation("touch_session", each(lambda rows: (rows.session_id(),))),
    Operation(
        "update_session_status",
        each(
            lambda rows: (
                rows.session_id(),
                rows.random.choice(("active", "paused", "ended")),
            )
        ),
    ),
    Operation(
        "update_session_sandbox",
        each(lambda rows: (rows.session_id(), rows.sandbox_id())),
    ),
    Operation(
        "update_session_runner", each(lambda rows: (rows.session_id(), rows.runner()))
    ),
    Operation(
        "insert_session",
        each(
            lambda rows: (
                rows.new_id("session"),
                "agent-1",
                rows.sandbox_id(),
                "tenant-1",
            )
        ),
    ),
    Operation("touch_sandbox", each(lambda rows: (rows.sandbox_id(),))),
    Operation(
        "update_sandbox_state",
        each(
            lambda rows: (
                rows.sandbox_id(),
                rows.random.choice(("cold", "warm", "running")),
            )
        ),
    ),
    Operation(
        "update_sandbox_session",
        each(lambda rows: (rows.sandbox_id(), rows.session_id())),
    ),
    Operation(
        "insert_sandbox",
        each(
            lambda rows: (
                rows.new_id("sandbox"),
                "agent-1",
                "/srv/w",
                rows.session_id(),
                "tenant-1",
            )
        ),
    ),
    Operation(
        "insert_api_key",
        each(
            lambda rows: (rows.new_id("key"), "tenant-1", rows.new_id("hash"), "a key")
        ),
    ),
    Operation(
        "upsert_agent", each(lambda rows: (rows.agent()[0], "/srv/new", "tenant-new"))
    ),
)

OTHER_WRITES = (
    Operation("claim_session", _sessions_that_nobody_has),
    Operation("claim_warm_sandbox", _pool),
    Operation(
        "touch_sessions, 1,000 at once",
        each(lambda rows: ([rows.session_id() for _ in range(1000)],)),
        "touch_sessions",
    ),
    Operation("delete_sandbox", _doomed_sandboxes),
    Operation("delete_api_key", _doomed_keys),
    Operation("delete_agent", _doomed_agents),
    Operation("run_transaction, 3 calls", _small_transaction, "run_transaction"),
    Operation("bulk_pause_sessions_by_runner", _resumed_runners),
    Operation("bulk_pause_active_sessions", _resumed_sessions),
    Operation("mark_all_sandboxes_cold", _warmed_sandboxes),
)
