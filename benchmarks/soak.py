"""``python -m benchmarks.soak``: many processes on one database for a while; rate, p99, growth, HOT updates and WAL."""

from __future__ import annotations

import argparse
import multiprocessing
import os
import random
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg

import agentdb
from agentdb import AgentDbError, Db
from benchmarks.databases import running_server

SESSIONS = 2_000
PROCESSES = {"postgresql": 32, "sqlite": 8}
TABLES = ("sessions", "sandboxes")

# Of 100 calls: nine touches to one change of status, as many inserts as deletes, reads in between.
MIX = {
    "touch_session": 27,
    "touch_sandbox": 27,
    "update_session_status": 6,
    "get_session": 20,
    "get_sandbox": 10,
    "insert_sandbox": 5,
    "delete_sandbox": 5,
}


@dataclass
class Window:
    """What one process saw in one part of the time: milliseconds of each call, and errors by name."""

    milliseconds: list[float] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)


def _calls(db: Db, worker: int, draw: random.Random) -> dict[str, Callable[[], object]]:
    numbers = {"inserted": 0, "deleted": 0}

    def insert() -> None:
        numbers["inserted"] += 1
        db.insert_sandbox(f"own-{worker}-{numbers['inserted']}", "agent", "/workspace")

    def delete() -> None:
        numbers["deleted"] = min(numbers["deleted"] + 1, numbers["inserted"])
        db.delete_sandbox(f"own-{worker}-{numbers['deleted']}")

    def any_of(kind: str) -> str:
        return f"{kind}-{draw.randrange(SESSIONS)}"

    return {
        "touch_session": lambda: db.touch_session(any_of("s")),
        "touch_sandbox": lambda: db.touch_sandbox(any_of("sb")),
        "update_session_status": lambda: db.update_session_status(any_of("s"), draw.choice(["active", "paused"])),
        "get_session": lambda: db.get_session(any_of("s")),
        "get_sandbox": lambda: db.get_sandbox(any_of("sb")),
        "insert_sandbox": insert,
        "delete_sandbox": delete,
    }


def _work(url: str, worker: int, start: Any, seconds: float, windows: int, results: Any) -> None:
    draw = random.Random(worker)
    seen = [Window() for _ in range(windows)]
    names, weights = list(MIX), list(MIX.values())
    with agentdb.connect(url) as db:
        calls = _calls(db, worker, draw)
        start.wait()
        began = time.perf_counter()
        while (at := time.perf_counter() - began) < seconds:
            window = seen[int(at / seconds * windows)]
            [name] = draw.choices(names, weights)
            before = time.perf_counter()
            try:
                calls[name]()
            except AgentDbError as error:
                window.errors[type(error).__name__] += 1
            else:
                window.milliseconds.append((time.perf_counter() - before) * 1000)
    results.put(seen)


def _sizes(url: str) -> dict[str, float]:
    """Megabytes of tables and indexes, megabytes of WAL written so far, and updates, all and HOT."""
    if url.startswith("sqlite"):
        path = Path(url.removeprefix("sqlite:///").partition("?")[0])
        wal = path.with_name(f"{path.name}-wal")
        return {"database": path.stat().st_size / 1e6, "wal file": wal.stat().st_size / 1e6 if wal.exists() else 0.0}
    with psycopg.connect(url, autocommit=True) as connection:
        row = connection.execute(
            "SELECT sum(pg_table_size(relid)) / 1e6, sum(pg_indexes_size(relid)) / 1e6,"
            " pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') / 1e6, sum(n_tup_upd), sum(n_tup_hot_upd)"
            " FROM pg_stat_user_tables WHERE relname = ANY(%s)",
            [list(TABLES)],
        ).fetchone()
    assert row is not None
    return dict(zip(("tables", "indexes", "wal", "updates", "hot"), map(float, row), strict=True))


def soak(url: str, processes: int, seconds: float, windows: int) -> None:
    """Run the mix in so many processes and print a line for each part of the time."""
    with agentdb.connect(url, migrate=True) as db:
        for number in range(SESSIONS):
            db.insert_session(f"s-{number}", "agent", f"sb-{number}")
            db.insert_sandbox(f"sb-{number}", "agent", "/workspace", session_id=f"s-{number}")
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(processes + 1), context.Queue()
    workers = [
        context.Process(target=_work, args=(url, worker, start, seconds, windows, results))
        for worker in range(processes)
    ]
    for worker in workers:
        worker.start()
    start.wait()
    before = _sizes(url)
    growth = []
    for _ in range(windows):
        time.sleep(seconds / windows)
        growth.append(_sizes(url))
    seen: list[list[Window]] = [results.get() for _ in workers]
    for worker in workers:
        worker.join()

    print(f"{processes} processes, {seconds:g} s on {os.cpu_count()} processors; at the start: {_shown(before)}")
    total = 0
    for number, sizes in enumerate(growth):
        parts = [windows_[number] for windows_ in seen]
        times = sorted(each for part in parts for each in part.milliseconds)
        errors = sum((part.errors for part in parts), Counter[str]())
        total += len(times)
        print(
            f"{(number + 1) * seconds / windows:6.0f} s  {len(times) / (seconds / windows):7,.0f} calls/s"
            f"  p50 {_quantile(times, 0.5):6.2f} ms  p99 {_quantile(times, 0.99):7.2f} ms  {_shown(sizes)}"
            + "".join(f"  {count} {name}" for name, count in errors.items())
        )
    last = growth[-1]
    if "wal" in last and total:
        updates = last["updates"] - before["updates"]
        print(f"WAL: {(last['wal'] - before['wal']) * 1e6 / total:,.0f} bytes a call, reads included.")
        print(f"HOT: {(last['hot'] - before['hot']) / max(updates, 1):.0%} of {updates:,.0f} updates.")


def _quantile(times: list[float], share: float) -> float:
    return times[min(int(len(times) * share), len(times) - 1)] if times else float("nan")


def _shown(sizes: dict[str, float]) -> str:
    return ", ".join(f"{name} {sizes[name]:.1f} MB" for name in sizes if name not in ("updates", "hot"))


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak", description="Keep one database busy for a while."
    )
    parser.add_argument("--engine", choices=sorted(PROCESSES), default="postgresql")
    parser.add_argument("--processes", type=int, help="32 on PostgreSQL, 8 on SQLite, unless given")
    parser.add_argument("--seconds", type=float, default=20.0, help="3600 for an hour; 20 unless given")
    parser.add_argument("--windows", type=int, default=5, help="lines to print; 5 unless given")
    options = parser.parse_args()
    with running_server(options.engine == "postgresql") as server:
        url = server.create(options.engine, "soak").url
        soak(url, options.processes or PROCESSES[options.engine], options.seconds, options.windows)


if __name__ == "__main__":
    main()
