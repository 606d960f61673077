"""``python -m benchmarks``: the whole report, or with ``--only`` a part of it."""

from __future__ import annotations

import argparse
import json
import os
import platform
import sqlite3
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from time import perf_counter
from typing import Any

from benchmarks import report
from benchmarks.databases import Server, running_server
from benchmarks.peers import MODULES

ENGINES = ("sqlite", "postgresql")


def _sections() -> dict[str, Callable[[Any], dict[str, Any]]]:
    from benchmarks import concurrency, scaling, sections, startup

    return {
        "point-reads": sections.point_reads,
        "lists": sections.lists,
        "writes": sections.writes,
        "other-writes": sections.other_writes,
        "scaling": scaling.scaling,
        "threads": concurrency.threads,
        "tasks": concurrency.tasks,
        "await": concurrency.await_overhead,
        "startup": startup.startup,
        "index-cost": scaling.index_cost,
        "explain": scaling.explain,
    }


GROUPS = {"async": ("tasks", "await")}


def main() -> None:
    # Django is configured here, so that peers that use the models can be imported before a database is open.
    import agentdb

    parser = argparse.ArgumentParser(
        prog="python -m benchmarks", description="Measure agentdb beside its peers."
    )
    parser.add_argument(
        "--quick", action="store_true", help="fewer repeats: a look, not a result"
    )
    parser.add_argument(
        "--only", default="", metavar="SECTIONS", help="comma-separated sections"
    )
    parser.add_argument(
        "--engines",
        default=",".join(ENGINES),
        help="comma-separated: sqlite, postgresql",
    )
    parser.add_argument(
        "--peers",
        default=",".join(MODULES),
        help=f"comma-separated: {', '.join(MODULES)}",
    )
    parser.add_argument(
        "--json",
        default=".bench/bench.json",
        metavar="FILE",
        help="where the figures go",
    )
    parser.add_argument(
        "--update", action="store_true", help="keep the other sections of the JSON file"
    )
    parser.add_argument(
        "--publish", action="store_true", help="write the run into docs/ as well"
    )
    parser.add_argument(
        "--from",
        dest="source",
        metavar="FILE",
        help="measure nothing; report an earlier run's JSON",
    )
    options = parser.parse_args()
    if options.source:
        _show(json.loads(Path(options.source).read_text()), options.publish)
        return
    agentdb.connect("sqlite://:memory:", migrate=True).close()
    sections = _sections()
    names = [
        section
        for name in (options.only.split(",") if options.only else sections)
        for section in GROUPS.get(name, (name,))
    ]
    if unknown := [name for name in names if name not in sections]:
        parser.error(
            f"unknown section {unknown[0]!r}; known are {', '.join([*sections, *GROUPS])}"
        )
    engines = tuple(options.engines.split(","))

    from benchmarks.sections import Run

    with running_server("postgresql" in engines) as server:
        run = Run(server, engines, options.quick, tuple(options.peers.split(",")))
        results: dict[str, Any] = {"machine": _machine(server, options.quick)}
        began = perf_counter()
        for name in names:
            start = perf_counter()
            print(f"{name} …", end="", file=sys.stderr, flush=True)
            results[name] = sections[name](run)
            print(f" {perf_counter() - start:.0f} s", file=sys.stderr, flush=True)
        results["missing"] = run.missing
        results["machine"]["seconds"] = round(perf_counter() - began)
    results = json.loads(json.dumps(results))
    path = Path(options.json)
    path.parent.mkdir(parents=True, exist_ok=True)
    if options.update and path.exists():
        results = {**json.loads(path.read_text()), **results}
    path.write_text(json.dumps(results, indent=1) + "\n")
    _show(results, options.publish)
    print(f"\nThe figures are in {path}.")


def _show(results: dict[str, Any], publish: bool) -> None:
    for line in report.lines(results):
        print(line)
    if publish:
        from benchmarks.publish import publish as write

        write(results, Path("docs"))


def _machine(server: Server, quick: bool) -> dict[str, Any]:
    def version(package: str) -> str:
        try:
            return metadata.version(package)
        except metadata.PackageNotFoundError:
            return "not installed"

    return {
        "date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "cores": os.cpu_count(),
        "Python": platform.python_version(),
        "Django": version("django"),
        "psycopg": version("psycopg"),
        "SQLAlchemy": version("sqlalchemy"),
        "djanorm": version("djanorm"),
        "SQLite": sqlite3.sqlite_version,
        "server": server.version,
        "load before": f"{os.getloadavg()[0]:.1f}",
        "quick": quick,
    }


if __name__ == "__main__":
    main()
