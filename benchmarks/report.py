"""The report: tables for the terminal."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.bars import bars

PEERS = (
    "raw",
    "read committed",
    "agentdb",
    "django",
    "sqlalchemy core",
    "sqlalchemy orm",
    "djanorm",
)


def table(
    title: str, head: Sequence[str], rows: Sequence[Sequence[str]]
) -> Iterator[str]:
    widths = [max(len(row[i]) for row in (head, *rows)) for i in range(len(head))]
    yield ""
    yield title
    for row in (head, *rows):
        cells = [
            cell.ljust(width) if i == 0 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        yield "  " + "  ".join(cells).rstrip()


def _per_call(title: str, methods: dict[str, Any]) -> Iterator[str]:
    peers = [
        peer for peer in PEERS if any(peer in timings for timings in methods.values())
    ]
    others = [peer for peer in peers if peer != "agentdb"]
    head = ["µs: p50 / p99", *peers, *(f"÷ {peer}" for peer in others)]
    rows = []
    for method, timings in methods.items():
        cells = [
            f"{timings[p]['p50']:.1f} / {timings[p]['p99']:.0f}"
            if p in timings
            else "–"
            for p in peers
        ]
        ratios = [
            f"{timings[p]['agentdb_ratio']:.2f}" if p in timings else "–"
            for p in others
        ]
        rows.append([method, *cells, *ratios])
    return table(title, head, rows)


def _counts(title: str, works: dict[str, Any]) -> Iterator[str]:
    rows = []
    for work, counts in works.items():
        for callers, peers in counts.items():
            ratio = f"{peers['agentdb'] / peers['raw']:.2f}" if "raw" in peers else "–"
            rows.append(
                [
                    work,
                    str(callers),
                    f"{peers['agentdb']:,}",
                    f"{peers.get('raw', 0):,}",
                    ratio,
                ]
            )
    return table(
        title, ["calls per second", "callers", "agentdb", "raw", "ratio"], rows
    )


def _scaling(title: str, methods: dict[str, Any]) -> Iterator[str]:
    sizes = sorted({size for figures in methods.values() for size in figures}, key=int)
    rows = [
        [
            method,
            *(f"{figures[size]['p50']:.1f}" for size in sizes),
            f"{figures[sizes[-1]]['growth']:.2f}",
        ]
        for method, figures in methods.items()
    ]
    return table(
        title, ["µs, p50", *(f"{int(size):,} rows" for size in sizes), "growth"], rows
    )


def lines(results: dict[str, Any]) -> Iterator[str]:
    """Yield the report of the sections that were run."""
    machine = results["machine"]
    yield ", ".join(f"{name} {value}" for name, value in machine.items())
    for peer, reason in results.get("missing", {}).items():
        yield f"{peer} is not measured: {reason}"
    for section in ("point-reads", "lists", "writes", "other-writes"):
        for engine, methods in results.get(section, {}).items():
            yield from _per_call(f"{section}, {engine}", methods)
    for engine, methods in results.get("scaling", {}).items():
        yield from _scaling(f"scaling, {engine}", methods)
    for section in ("threads", "tasks"):
        for engine, works in results.get(section, {}).items():
            yield from _counts(f"{section}, {engine}", works)
    for engine, times in results.get("await", {}).items():
        yield (
            f"await, {engine}: called {times['called']} µs, awaited {times['awaited']} µs, in asyncio's "
            f"run_in_executor {times['run_in_executor']} µs"
        )
    startup = results.get("startup", {})
    if startup:
        yield ""
        yield f"startup, import: {startup['import']}"
        for engine, times in startup["connect"].items():
            yield f"startup, {engine}: {times}"
    for engine, methods in results.get("index-cost", {}).items():
        rows = [
            [method, f"{t['without']:.1f}", f"{t['with']:.1f}", f"{t['ratio']:.2f}"]
            for method, t in methods.items()
        ]
        yield from table(
            f"index-cost, {engine}",
            ["µs, p50", "without 0003 and 0004", "with", "ratio"],
            rows,
        )
    for engine, plans in results.get("explain", {}).items():
        yield ""
        yield f"explain, {engine}"
        for method, plan in plans.items():
            yield f"  {method}"
            yield from (f"      {line}" for line in plan)
    found = list(bars(results))
    if found:
        yield ""
        yield f"the bars: {sum(bar.met for bar in found)} of {len(found)} met"
        yield from (f"  {bar.line()}" for bar in found)
