"""Many callers at once, and what awaiting costs."""

from __future__ import annotations

import asyncio
import random
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from statistics import median
from time import perf_counter, perf_counter_ns
from typing import Any

import psycopg_pool

import agentdb
from agentdb import AsyncDb, Db, SessionRecord
from agentdb.serving.aio import DEFAULT_MAX_WORKERS
from benchmarks.databases import Database, hashed
from benchmarks.measure import quiet_heap
from benchmarks.peers.raw import GET_SESSION, open_peer
from benchmarks.sections import ROWS, Run

CALLERS = (1, 8, 32)
_IDS = [hashed("session", i) for i in range(ROWS)]

Work = Callable[[Any, str], Any]

# Three kinds of work: reads, writes, and four reads to one write.
WORK = ("get_session", "touch_session", "mixed")


def _pick(work: str, number: int) -> str:
    return (
        ("touch_session" if number % 5 == 0 else "get_session")
        if work == "mixed"
        else work
    )


# -- threads


def _threads(
    open_caller: Callable[[], Any], work: str, callers: int, seconds: float
) -> float:
    """Return the calls per second of that many threads."""
    stop = threading.Event()
    barrier = threading.Barrier(callers + 1)
    counts = [0] * callers

    def call(number: int) -> None:
        peer = open_caller()
        draw = random.Random(number)
        methods = [getattr(peer, _pick(work, i)) for i in range(5)]
        methods[0](_IDS[0]), methods[1](_IDS[0])
        barrier.wait()
        done = 0
        while not stop.is_set():
            methods[done % 5](draw.choice(_IDS))
            done += 1
        counts[number] = done
        if peer is not shared:
            peer.close()

    shared = open_caller() if getattr(open_caller, "shared", False) else None
    threads = [
        threading.Thread(target=call, args=(number,)) for number in range(callers)
    ]
    for thread in threads:
        thread.start()
    barrier.wait()
    began = perf_counter()
    stop.wait(seconds)
    stop.set()
    for thread in threads:
        thread.join()
    return sum(counts) / (perf_counter() - began)


def threads(run: Run) -> dict[str, Any]:
    """Calls per second of 1, 8 and 32 threads: one ``DjangoDb`` for all, beside a raw connection each."""
    results: dict[str, Any] = {}
    rounds, seconds = (2, 0.4) if run.quick else (3, 0.7)
    for engine in run.engines:
        database = run.copy(engine)
        with agentdb.connect(database.url) as db, quiet_heap():

            def share(db: agentdb.DjangoDb = db) -> agentdb.DjangoDb:
                return db

            share.shared = True  # type: ignore[attr-defined]
            peers: dict[str, Callable[[], Any]] = {
                "agentdb": share,
                "raw": lambda d=database: open_peer(d),
            }  # type: ignore[misc]
            results[engine] = {
                work: {
                    callers: _medians(
                        rounds,
                        {
                            n: lambda p=p, w=work, c=callers: _threads(p, w, c, seconds)
                            for n, p in peers.items()
                        },  # type: ignore[misc]
                    )
                    for callers in CALLERS
                }
                for work in WORK
            }
    return results


def _medians(rounds: int, measures: dict[str, Callable[[], float]]) -> dict[str, float]:
    samples: dict[str, list[float]] = {name: [] for name in measures}
    for number in range(rounds):
        for name in sorted(measures, reverse=bool(number % 2)):
            samples[name].append(measures[name]())
    return {name: round(median(values)) for name, values in samples.items()}


# -- tasks


class RawAsync:
    """psycopg's own pool, connections prepared and in autocommit, building the same record."""

    def __init__(self, database: Database, connections: int) -> None:
        self.pool = psycopg_pool.AsyncConnectionPool(
            database.url,
            min_size=connections,
            max_size=connections,
            open=False,
            kwargs={
                "autocommit": True,
                "prepare_threshold": 0,
                "options": "-c TimeZone=UTC",
            },
        )

    async def open(self) -> None:
        await self.pool.open(wait=True)

    async def close(self) -> None:
        await self.pool.close()

    async def get_session(self, id: str) -> SessionRecord | None:
        async with self.pool.connection() as connection:
            row = await (await connection.execute(_GET, (id,))).fetchone()
        return SessionRecord(*row) if row else None

    async def touch_session(self, id: str) -> bool:
        async with self.pool.connection() as connection:
            return (
                await connection.execute(_TOUCH, (datetime.now(UTC), id))
            ).rowcount > 0


_GET = GET_SESSION.replace("?", "%s").encode()
_TOUCH = b"UPDATE sessions SET last_active_at = %s WHERE id = %s"


async def _tasks(peer: Any, work: str, callers: int, seconds: float) -> float:
    """Return the calls per second of that many tasks."""
    methods: list[Callable[[str], Awaitable[Any]]] = [
        getattr(peer, _pick(work, i)) for i in range(5)
    ]
    stop = False

    async def call(number: int) -> int:
        draw = random.Random(number)
        done = 0
        while not stop:
            await methods[done % 5](draw.choice(_IDS))
            done += 1
        return done

    began = perf_counter()
    tasks = [asyncio.create_task(call(number)) for number in range(callers)]
    await asyncio.sleep(seconds)
    stop = True
    counts = await asyncio.gather(*tasks)
    return sum(counts) / (perf_counter() - began)


def tasks(run: Run) -> dict[str, Any]:
    """Calls per second of 1, 8 and 32 tasks on ``AsyncDb``, on PostgreSQL beside psycopg's pool of as many
    connections."""
    results: dict[str, Any] = {}
    rounds, seconds = (3, 0.4) if run.quick else (5, 0.7)

    async def measure(database: Database) -> dict[str, Any]:
        peers: dict[str, Any] = {"agentdb": agentdb.connect_async(database.url)}
        await peers["agentdb"].__aenter__()
        if database.engine == "postgresql":
            peers["raw"] = RawAsync(database, DEFAULT_MAX_WORKERS)
            await peers["raw"].open()
        found: dict[str, Any] = {}
        for work in WORK:
            found[work] = {}
            for callers in CALLERS:
                samples: dict[str, list[float]] = {name: [] for name in peers}
                for peer in peers.values():
                    await _tasks(peer, work, callers, 0.1)
                for number in range(rounds):
                    for name in sorted(peers, reverse=bool(number % 2)):
                        samples[name].append(
                            await _tasks(peers[name], work, callers, seconds)
                        )
                found[work][callers] = {
                    name: round(median(values)) for name, values in samples.items()
                }
        for peer in peers.values():
            await peer.close()
        return found

    for engine in run.engines:
        with quiet_heap():
            results[engine] = asyncio.run(measure(run.copy(engine)))
    return results


def await_overhead(run: Run) -> dict[str, Any]:
    """Microseconds of one ``get_session``: called, awaited by a single task, and run in asyncio's own executor."""
    results: dict[str, Any] = {}
    rounds = 20 if run.quick else 100
    for engine in run.engines:
        with (
            agentdb.connect(run.copy(engine).url) as db,
            asyncio.Runner() as runner,
            ThreadPoolExecutor(DEFAULT_MAX_WORKERS) as executor,
            quiet_heap(),
        ):
            awaitable = AsyncDb(db)
            samples: dict[str, list[int]] = {
                "called": [],
                "awaited": [],
                "run_in_executor": [],
            }

            def in_executor(
                id: str, db: Db = db, executor: ThreadPoolExecutor = executor
            ) -> Awaitable[Any]:
                return asyncio.get_running_loop().run_in_executor(
                    executor, db.get_session, id
                )

            async def block(
                wait: Callable[[str], Awaitable[Any]], into: list[int]
            ) -> None:
                for id in random.sample(_IDS, 20):
                    start = perf_counter_ns()
                    await wait(id)
                    into.append(perf_counter_ns() - start)

            for _ in range(rounds):
                runner.run(block(awaitable.get_session, samples["awaited"]))
                runner.run(block(in_executor, samples["run_in_executor"]))
                for id in random.sample(_IDS, 20):
                    start = perf_counter_ns()
                    db.get_session(id)
                    samples["called"].append(perf_counter_ns() - start)
            runner.run(awaitable.close())
        p50 = {name: round(median(times) / 1000, 1) for name, times in samples.items()}
        results[engine] = {**p50, "overhead": round(p50["awaited"] - p50["called"], 1)}
    return results
