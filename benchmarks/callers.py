"""Many callers at once beside what one would use instead: ``python -m benchmarks.callers``.

SQLite writes are measured twice, with the machine's own syncs and with syncs that take 1 ms: a library that is loaded
first and sleeps. That needs ``gcc`` and Linux. ``--busy`` keeps each core busy meanwhile.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import agentdb
from agentdb import SessionRecord
from benchmarks.databases import Database, running_server

_SLOW_SYNC = """
#include <time.h>
static int nap(void) { struct timespec t = {0, 1000000}; nanosleep(&t, 0); return 0; }
int fsync(int fd) { (void)fd; return nap(); }
int fdatasync(int fd) { (void)fd; return nap(); }
"""
_IDS = [f"s{number}" for number in range(2000)]
_SELECT = (
    "SELECT id, tenant_id, agent_name, sandbox_id, status, runner_id, created_at, last_active_at "
    "FROM sessions WHERE id = {}"
)
_UPDATE = "UPDATE sessions SET last_active_at = ? WHERE id = ?"
_ROUNDS, _SECONDS = 3, 0.4

# Calls a second, and of how long they took, in ms, the 99th percentile and the longest. A lock that its last owner may
# take again at once looks good in the first, because one thread makes most of the calls; the longest shows the others.
Measured = tuple[float, float, float]


def _now() -> str:
    return str(datetime.now(UTC).replace(tzinfo=None))


def _record(row: Any) -> SessionRecord:
    times = [datetime.fromisoformat(f"{text}+00:00") for text in row[6:]]
    return SessionRecord(*row[:6], *times)


class Lock:
    """One connection of ``sqlite3`` behind a lock."""

    def __init__(self, path: Path) -> None:
        self._connection = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False
        )
        self._connection.execute("PRAGMA journal_mode=WAL")
        self._connection.execute("PRAGMA synchronous=FULL")
        self._lock = threading.Lock()

    def touch_session(self, id: str) -> bool:
        with self._lock:
            return self._connection.execute(_UPDATE, (_now(), id)).rowcount > 0


class Aiosqlite:
    async def open(self, database: Database) -> None:
        import aiosqlite

        self._connection = await aiosqlite.connect(database.path, isolation_level=None)
        await self._connection.execute("PRAGMA synchronous=FULL")

    async def touch_session(self, id: str) -> bool:
        return (await self._connection.execute(_UPDATE, (_now(), id))).rowcount > 0

    async def get_session(self, id: str) -> SessionRecord:
        async with self._connection.execute(_SELECT.format("?"), (id,)) as cursor:
            return _record(await cursor.fetchone())

    async def close(self) -> None:
        await self._connection.close()


class Asyncpg:
    async def open(self, database: Database) -> None:
        import asyncpg

        self._pool = await asyncpg.create_pool(database.url, min_size=8, max_size=8)

    async def get_session(self, id: str) -> SessionRecord:
        return SessionRecord(*await self._pool.fetchrow(_SELECT.format("$1"), id))

    async def close(self) -> None:
        await self._pool.close()


class PsycopgPool:
    async def open(self, database: Database) -> None:
        import psycopg_pool

        options = {
            "autocommit": True,
            "prepare_threshold": 0,
            "options": "-c TimeZone=UTC",
        }
        self._pool = psycopg_pool.AsyncConnectionPool(
            database.url, min_size=8, max_size=8, open=False, kwargs=options
        )
        await self._pool.open(wait=True)

    async def get_session(self, id: str) -> SessionRecord:
        async with self._pool.connection() as connection:
            cursor = await connection.execute(_SELECT.format("%s").encode(), (id,))
            row = await cursor.fetchone()
        assert row is not None
        return SessionRecord(*row)

    async def close(self) -> None:
        await self._pool.close()


def _summary(latencies: list[float], seconds: float) -> Measured:
    latencies.sort()
    p99 = latencies[int(len(latencies) * 0.99)]
    return len(latencies) / seconds, p99 * 1000, latencies[-1] * 1000


def _threads(call: Callable[[str], Any], callers: int) -> Measured:
    latencies: list[float] = []
    stop = threading.Event()
    # With a limit: a thread whose first call fails never comes here.
    ready = threading.Barrier(callers + 1, timeout=60)

    def run(number: int) -> None:
        draw = random.Random(number)
        call(draw.choice(_IDS))  # opens the thread's connection
        ready.wait()
        while not stop.is_set():
            began = perf_counter()
            call(draw.choice(_IDS))
            latencies.append(perf_counter() - began)

    threads = [
        threading.Thread(target=run, args=(number,)) for number in range(callers)
    ]
    for thread in threads:
        thread.start()
    ready.wait()
    began = perf_counter()
    stop.wait(_SECONDS)
    stop.set()
    for thread in threads:
        thread.join()
    return _summary(latencies, perf_counter() - began)


async def _tasks(call: Callable[[str], Awaitable[Any]], callers: int) -> Measured:
    latencies: list[float] = []
    until = perf_counter() + _SECONDS

    async def run(number: int) -> None:
        draw = random.Random(number)
        while perf_counter() < until:
            began = perf_counter()
            await call(draw.choice(_IDS))
            latencies.append(perf_counter() - began)

    began = perf_counter()
    await asyncio.gather(*(run(number) for number in range(callers)))
    return _summary(latencies, perf_counter() - began)


def _medians(samples: list[Measured]) -> Measured:
    rates, p99s, longest = zip(*samples, strict=True)
    return median(rates), median(p99s), median(longest)


def _write_in_threads(
    database: Database, db: agentdb.DjangoDb
) -> Iterator[tuple[str, dict[str, Measured]]]:
    peers = {"agentdb": db.touch_session, "lock": Lock(database.path).touch_session}
    for callers in (32, 8, 1):
        samples: dict[str, list[Measured]] = {name: [] for name in peers}
        for _ in range(_ROUNDS):
            for name, call in peers.items():
                samples[name].append(_threads(call, callers))
        yield (
            f"SQLite write, {callers} threads",
            {name: _medians(found) for name, found in samples.items()},
        )


async def _call_in_tasks(
    title: str, database: Database, method: str, peers: dict[str, Any]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    opened: dict[str, Any] = {}
    for name, peer in peers.items():
        try:
            await peer.open(database)
        except ImportError as error:
            print(f"{name} is not measured: {error}", file=sys.stderr)
        else:
            opened[name] = peer
    async with agentdb.connect_async(database.url) as db:
        calls = {
            "agentdb": getattr(db, method),
            **{name: getattr(peer, method) for name, peer in opened.items()},
        }
        for callers in (64, 8, 1):
            samples: dict[str, list[Measured]] = {name: [] for name in calls}
            for _ in range(_ROUNDS):
                for name, call in calls.items():
                    samples[name].append(await _tasks(call, callers))
            found[f"{title}, {callers} tasks"] = {
                name: _medians(values) for name, values in samples.items()
            }
    for peer in opened.values():
        await peer.close()
    return found


def _measure(writes_only: bool) -> dict[str, Any]:
    found: dict[str, Any] = {}
    with running_server(not writes_only) as server:
        database = server.create("sqlite", "callers")
        with agentdb.connect(database.url) as db:
            db.run_transaction(
                lambda tx: [tx.insert_session(id, "a", "sb") for id in _IDS]
            )
            found |= dict(_write_in_threads(database, db))
        sqlite: dict[str, Any] = {"aiosqlite": Aiosqlite()}
        found |= asyncio.run(
            _call_in_tasks("SQLite write", database, "touch_session", sqlite)
        )
        if writes_only:
            return found
        found |= asyncio.run(
            _call_in_tasks("SQLite read", database, "get_session", sqlite)
        )
        database = server.create("postgresql", "callers")
        with agentdb.connect(database.url) as db:
            db.run_transaction(
                lambda tx: [tx.insert_session(id, "a", "sb") for id in _IDS]
            )
        servers = {"asyncpg": Asyncpg(), "psycopg's pool": PsycopgPool()}
        found |= asyncio.run(
            _call_in_tasks("PostgreSQL read", database, "get_session", servers)
        )
    return found


@contextmanager
def _slow_sync() -> Iterator[dict[str, str] | None]:
    """Yield the environment in which a sync takes 1 ms; None if there is no compiler."""
    compiler = shutil.which("gcc")
    if compiler is None or sys.platform != "linux":
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        source, library = Path(folder, "sync.c"), Path(folder, "sync.so")
        source.write_text(_SLOW_SYNC)
        subprocess.run(
            [compiler, "-shared", "-fPIC", "-o", library, source], check=True
        )
        yield {**os.environ, "LD_PRELOAD": str(library)}


@contextmanager
def _busy(wanted: bool) -> Iterator[None]:
    """Keep each core busy meanwhile, if that is wanted."""
    burning = [
        subprocess.Popen([sys.executable, "-c", "while True: pass"])
        for _ in range((os.cpu_count() or 1) * wanted)
    ]
    try:
        yield
    finally:
        for program in burning:
            program.kill()
            program.wait()


def _show(title: str, found: dict[str, dict[str, Measured]]) -> None:
    print(f"\n{title}\n")
    print("| | calls a second (99th percentile and longest, ms) |\n|---|---|")
    for name, measured in found.items():
        values = ", ".join(
            f"{peer} {rate:,.0f} ({p99:.1f}, {longest:.0f})"
            for peer, (rate, p99, longest) in measured.items()
        )
        print(f"| {name} | {values} |")


def main() -> None:
    """Measure each setting in a process of its own, and print a table for each."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.callers", description=__doc__
    )
    parser.add_argument(
        "--busy", action="store_true", help="keep each core busy meanwhile"
    )
    parser.add_argument("--measure", choices=("all", "writes"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.measure:
        print(json.dumps(_measure(options.measure == "writes")))
        return
    command = [sys.executable, "-m", "benchmarks.callers", "--measure"]
    with _busy(options.busy), _slow_sync() as environment:
        said = subprocess.run(
            [*command, "all"], check=True, stdout=subprocess.PIPE
        ).stdout
        _show("The machine's own syncs", json.loads(said))
        if environment is None:
            print("\nNo syncs of 1 ms: that needs gcc and Linux.")
            return
        said = subprocess.run(
            [*command, "writes"], check=True, stdout=subprocess.PIPE, env=environment
        ).stdout
        _show("Syncs of 1 ms", json.loads(said))


if __name__ == "__main__":
    main()
