"""The parts of the report; each measures, and returns plain data that goes into the JSON as it is."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from benchmarks.databases import Database, Server, fill
from benchmarks.measure import interleaved
from benchmarks.operations import (
    LISTS,
    OTHER_WRITES,
    POINT_READS,
    WRITES,
    Operation,
    Rows,
)
from benchmarks.peers import MODULES, open_peer

ROWS = 20_000


@dataclass(slots=True)
class Run:
    """What a section needs to know, and the databases that sections share."""

    server: Server
    engines: tuple[str, ...]
    quick: bool
    peers: tuple[str, ...] = tuple(MODULES)
    missing: dict[str, str] = field(
        default_factory=dict
    )  # peer -> why it is not measured
    _filled: dict[str, Database] = field(default_factory=dict)

    def filled(self, engine: str) -> Database:
        """Return the database of 20,000 sessions and sandboxes that nobody writes to."""
        if engine not in self._filled:
            self._filled[engine] = database = self.server.create(engine, "filled")
            fill(database, ROWS)
        return self._filled[engine]

    def copy(self, engine: str, synchronous: str = "FULL") -> Database:
        name = f"copy_{next(self.server.numbers)}"
        return self.server.copy(self.filled(engine), name, synchronous)


def _per_call(
    run: Run,
    operations: tuple[Operation, ...],
    engine: str,
    synchronous: str,
    block: int,
) -> dict[str, Any]:
    """Time each operation of each peer, with the server on other cores than the caller.

    SQLite peers have a copy of the file each: one's write empties the others' page caches. PostgreSQL's share a
    database, whose cache is the server's.
    """
    with run.server.apart():
        return _timings(run, operations, engine, synchronous, block)


def _timings(
    run: Run,
    operations: tuple[Operation, ...],
    engine: str,
    synchronous: str,
    block: int,
) -> dict[str, Any]:
    opened: dict[str, tuple[Any, Rows]] = {}
    shared = None if engine == "sqlite" else run.copy(engine)
    for name in run.peers:
        if name in run.missing:
            continue
        database = shared or run.copy(engine, synchronous)
        try:
            opened[name] = open_peer(name, database), Rows(database, ROWS)
        except ImportError as error:
            run.missing[name] = str(error)
    if shared:
        # The peers of one database may not insert the same ids.
        rows = Rows(shared, ROWS)
        opened = {name: (peer, rows) for name, (peer, _) in opened.items()}
    results: dict[str, Any] = {}
    try:
        for operation in operations:
            calls = {
                name: operation.on(peer, rows)
                for name, (peer, rows) in opened.items()
                if hasattr(peer, operation.method or operation.name)
            }
            timings = interleaved(
                calls,
                rounds=20 if run.quick else 100,
                block=block,
                longest_seconds=2.0 if run.quick else 4.0,
            )
            results[operation.name] = {
                name: {
                    "p50": round(timing.p50, 2),
                    "p99": round(timing.p99, 2),
                    "calls": len(timing.samples),
                    "agentdb_ratio": round(timings["agentdb"].ratio(timing), 3),
                }
                for name, timing in timings.items()
            }
    finally:
        for peer, rows in opened.values():
            peer.close()
            rows.close()
    return results


def _settings(engine: str) -> tuple[str, ...]:
    return ("FULL", "NORMAL") if engine == "sqlite" else ("",)


def point_reads(run: Run) -> dict[str, Any]:
    return {
        engine: _per_call(run, POINT_READS, engine, "FULL", 10)
        for engine in run.engines
    }


def lists(run: Run) -> dict[str, Any]:
    return {engine: _per_call(run, LISTS, engine, "FULL", 5) for engine in run.engines}


def writes(run: Run) -> dict[str, Any]:
    return {
        f"{engine} {synchronous}".strip(): _per_call(
            run, WRITES, engine, synchronous, 5
        )
        for engine in run.engines
        for synchronous in _settings(engine)
    }


def other_writes(run: Run) -> dict[str, Any]:
    return {
        f"{engine} {synchronous}".strip(): _per_call(
            run, OTHER_WRITES, engine, synchronous, 5
        )
        for engine in run.engines
        for synchronous in _settings(engine)
    }
