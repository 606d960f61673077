"""``python -m benchmarks.soak``: many processes on one database for a while; rate, p99, growth, HOT updates and WAL."""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import sqlite3
import time
from collections import Counter
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psycopg

import agentdb
from agentdb import AgentDbError, Db
from benchmarks import plots
from benchmarks.databases import running_server

SESSIONS = 10_000
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
        "update_session_status": lambda: db.update_session_status(
            any_of("s"), draw.choice(["active", "paused"])
        ),
        "get_session": lambda: db.get_session(any_of("s")),
        "get_sandbox": lambda: db.get_sandbox(any_of("sb")),
        "insert_sandbox": insert,
        "delete_sandbox": delete,
    }


def _work(
    url: str, worker: int, start: Any, seconds: float, windows: int, results: Any
) -> None:
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
    """Megabytes of tables, indexes and log, and on a server how many updates each table has had, all and HOT."""
    if url.startswith("sqlite"):
        path = Path(urlsplit(url).path[1:])
        wal = path.with_name(f"{path.name}-wal")
        with closing(sqlite3.connect(path)) as connection:
            [(page, pages, free)] = connection.execute(
                "SELECT page_size, page_count, freelist_count FROM pragma_page_size, pragma_page_count,"
                " pragma_freelist_count"
            )
        return {
            "database": page * (pages - free) / 1e6,
            "wal": wal.stat().st_size / 1e6 if wal.exists() else 0.0,
        }
    found: dict[str, float] = {}
    with psycopg.connect(
        url.partition("touch_interval")[0].rstrip("?&"), autocommit=True
    ) as connection:
        for name, *figures in connection.execute(
            "SELECT relname, pg_table_size(relid) / 1e6, pg_indexes_size(relid) / 1e6, n_tup_upd, n_tup_hot_upd"
            " FROM pg_stat_user_tables WHERE relname = ANY(%s) ORDER BY relname",
            [list(TABLES)],
        ):
            found |= zip(
                (f"{name} {what}" for what in ("table", "indexes", "updates", "HOT")),
                figures,
                strict=True,
            )
        row = connection.execute(
            "SELECT pg_wal_lsn_diff(pg_current_wal_lsn(), '0/0') / 1e6"
        ).fetchone()
    assert row is not None
    return {name: float(figure) for name, figure in {**found, "wal": row[0]}.items()}


def _fill(db: Db) -> None:
    for number in range(SESSIONS):
        db.insert_session(f"s-{number}", "agent", f"sb-{number}")
        db.insert_sandbox(
            f"sb-{number}", "agent", "/workspace", session_id=f"s-{number}"
        )


def soak(url: str, processes: int, seconds: float, windows: int) -> dict[str, Any]:
    """Run the mix in so many processes, print a line for each part of the time, and return what was seen."""
    with agentdb.connect(url) as db:
        db.run_transaction(_fill)
    context = multiprocessing.get_context("spawn")
    start, results = context.Barrier(processes + 1), context.Queue()
    workers = [
        context.Process(
            target=_work, args=(url, worker, start, seconds, windows, results)
        )
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

    print(
        f"{processes} processes, {seconds:g} s on {os.cpu_count()} processors; at the start: {_shown(before)}"
    )
    lines: list[dict[str, Any]] = []
    for number, sizes in enumerate(growth):
        parts = [windows_[number] for windows_ in seen]
        times = sorted(each for part in parts for each in part.milliseconds)
        errors = sum((part.errors for part in parts), Counter[str]())
        line = {
            "seconds": (number + 1) * seconds / windows,
            "calls a second": len(times) / (seconds / windows),
            "p50": _quantile(times, 0.5),
            "p99": _quantile(times, 0.99),
            "megabytes": sum(
                size
                for name, size in sizes.items()
                if name.endswith((" table", " indexes", "database"))
            ),
            "errors": dict(errors),
        }
        lines.append(line)
        print(
            f"{line['seconds']:6.0f} s  {line['calls a second']:7,.0f} calls/s"
            f"  p50 {line['p50']:6.2f} ms  p99 {line['p99']:7.2f} ms  {_shown(sizes)}"
            + "".join(f"  {count} {name}" for name, count in errors.items()),
            flush=True,
        )
    total = sum(line["calls a second"] for line in lines) * seconds / windows
    last = growth[-1]
    found: dict[str, Any] = {"processes": processes, "windows": lines}
    if f"{TABLES[0]} HOT" in last and total:
        found["WAL bytes a call"] = round((last["wal"] - before["wal"]) * 1e6 / total)
        print(f"WAL: {found['WAL bytes a call']:,} bytes a call, reads included.")
        for table in TABLES:
            updates, hot = (
                last[f"{table} {what}"] - before[f"{table} {what}"]
                for what in ("updates", "HOT")
            )
            found[f"{table} HOT"] = round(hot / max(updates, 1), 3)
            print(
                f"HOT: {found[f'{table} HOT']:.1%} of {updates:,.0f} updates of {table}."
            )
    return found


def _quantile(times: list[float], share: float) -> float:
    return (
        times[min(int(len(times) * share), len(times) - 1)] if times else float("nan")
    )


def _shown(sizes: dict[str, float]) -> str:
    return ", ".join(
        f"{name} {size:.1f} MB"
        for name, size in sizes.items()
        if not name.endswith(("updates", "HOT"))
    )


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.soak",
        description="Keep one database busy for a while.",
    )
    parser.add_argument("--engine", choices=sorted(PROCESSES), default="postgresql")
    parser.add_argument(
        "--processes", type=int, help="32 on PostgreSQL, 8 on SQLite, unless given"
    )
    parser.add_argument(
        "--seconds",
        type=float,
        default=600.0,
        help="3600 for an hour; ten minutes unless given",
    )
    parser.add_argument(
        "--windows",
        type=int,
        default=10,
        help="lines to print; %(default)s unless given",
    )
    parser.add_argument(
        "--options", default="", help="for the URL, such as touch_interval=30"
    )
    parser.add_argument(
        "--first",
        default="",
        metavar="SQL",
        help="run on PostgreSQL before the load, such as ALTER TABLE",
    )
    parser.add_argument(
        "--json",
        type=Path,
        metavar="FILE",
        help="add the figures to this file, under --name",
    )
    parser.add_argument(
        "--name",
        default="",
        help="what this run is called in the file and in its picture",
    )
    parser.add_argument(
        "--plot",
        type=Path,
        metavar="FILE",
        help="draw the runs of the JSON file as SVG; measure nothing",
    )
    options = parser.parse_args()
    if options.plot:
        options.plot.write_text(plots.soak(json.loads(options.json.read_text())))
        return
    with running_server(options.engine == "postgresql") as server:
        url = server.create(options.engine, "soak").url
        if options.first:
            with psycopg.connect(url, autocommit=True) as connection:
                connection.execute(options.first.encode())
        if options.options:
            url += ("&" if "?" in url else "?") + options.options
        found = soak(
            url,
            options.processes or PROCESSES[options.engine],
            options.seconds,
            options.windows,
        )
    if options.json:
        runs = json.loads(options.json.read_text()) if options.json.exists() else {}
        runs[options.name or options.engine] = found
        options.json.write_text(json.dumps(runs, indent=1) + "\n")


if __name__ == "__main__":
    main()
