"""A run as the documentation shows it: figures, pictures, and the tables of docs/benchmarks.md."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.bars import bars
from benchmarks.report import PEERS

_BEGIN = "<!-- The rest is written by 'make bench ARGS=--publish'. -->"


def publish(results: dict[str, Any], docs: Path) -> None:
    """Write the run into the documentation folder."""
    (docs / "images").mkdir(parents=True, exist_ok=True)
    (docs / "bench.json").write_text(json.dumps(results, separators=(",", ":")) + "\n")
    (docs / "images" / "bench-calls.svg").write_text(plots.calls(results))
    (docs / "images" / "bench-scaling.svg").write_text(plots.scaling(results))
    page = docs / "benchmarks.md"
    prose = page.read_text().partition(_BEGIN)[0] if page.exists() else ""
    page.write_text(f"{prose}{_BEGIN}\n\n" + "\n".join(_tables(results)).rstrip() + "\n")


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> Iterator[str]:
    yield f"| {' | '.join(head)} |"
    yield f"|{'---|' + '---:|' * (len(head) - 1)}"
    for row in rows:
        yield f"| {' | '.join(row)} |"
    yield ""


def _tables(results: dict[str, Any]) -> Iterator[str]:
    machine = results["machine"]
    yield "## The run"
    yield ""
    yield ", ".join(f"{name} {value}" for name, value in machine.items()) + "."
    for peer, reason in results.get("missing", {}).items():
        yield f"{peer} was not measured: {reason}"
    yield ""
    found = list(bars(results))
    yield f"### The bars: {sum(bar.met for bar in found)} of {len(found)} met"
    yield ""
    yield from _table(
        ["bar", "engine", "figure", "limit", "met"],
        [
            [
                bar.what,
                bar.engine,
                f"{bar.value:.{2 if bar.unit == '×' else 0}f} {bar.unit}",
                f"{bar.sign} {bar.limit:g} {bar.unit}",
                "yes" if bar.met else "**no**",
            ]
            for bar in found
        ],
    )
    for section in ("point-reads", "lists", "writes", "other-writes"):
        for engine, methods in results.get(section, {}).items():
            yield from _calls(f"{section.replace('-', ' ').capitalize()}, {engine}", methods)
    for engine, methods in results.get("scaling", {}).items():
        sizes = sorted({size for figures in methods.values() for size in figures}, key=int)
        yield f"### Growth, {engine}: µs, p50"
        yield ""
        yield from _table(
            ["call", *(f"{int(size):,} rows" for size in sizes), "largest ÷ smallest"],
            [
                [name, *(f"{figures[size]['p50']:.0f}" for size in sizes), f"{figures[sizes[-1]]['growth']:.2f}"]
                for name, figures in methods.items()
            ],
        )
    for section in ("threads", "tasks"):
        for engine, works in results.get(section, {}).items():
            yield f"### {section.capitalize()}, {engine}: calls per second"
            yield ""
            yield from _table(
                ["work", "callers", "agentdb", "raw", "ratio"],
                [
                    [
                        work,
                        callers,
                        f"{peers['agentdb']:,}",
                        f"{peers['raw']:,}" if "raw" in peers else "–",
                        f"{peers['agentdb'] / peers['raw']:.2f}" if "raw" in peers else "–",
                    ]
                    for work, counts in works.items()
                    for callers, peers in counts.items()
                ],
            )
    if startup := results.get("startup"):
        yield "### Starting: ms"
        yield ""
        yield from _table(
            ["", "agentdb", "beside", "ratio"],
            [
                ["`import agentdb`, over bare Python", f"{startup['import']['over_python_ms']}", "–", "–"],
                *(
                    [
                        f"`connect()` beside `django.setup()`, {engine}",
                        f"{times['connect_ms']}",
                        f"{times['setup_ms']}",
                        f"{times['ratio']:.2f}",
                    ]
                    for engine, times in startup["connect"].items()
                ),
            ],
        )
    if awaited := results.get("await"):
        yield "### Awaiting: µs of one `get_session`"
        yield ""
        yield from _table(
            ["engine", "called", "awaited", "overhead", "in asyncio's run_in_executor"],
            [
                [engine, *(f"{times[name]}" for name in ("called", "awaited", "overhead", "run_in_executor"))]
                for engine, times in awaited.items()
            ],
        )
    if "index-cost" in results:
        yield "### What the indexes of migration 0003 cost a write: µs, p50"
        yield ""
        yield from _table(
            ["call", "engine", "without", "with", "ratio"],
            [
                [name, engine, f"{t['without']:.0f}", f"{t['with']:.0f}", f"{t['ratio']:.2f}"]
                for engine, methods in results["index-cost"].items()
                for name, t in methods.items()
            ],
        )
    for engine, plans in results.get("explain", {}).items():
        yield f"### Plans, {engine}"
        yield ""
        yield "```"
        for name, plan in plans.items():
            yield name
            yield from (f"    {line}" for line in plan or ["(no plan: it reads nothing)"])
        yield "```"
        yield ""


def _calls(title: str, methods: dict[str, Any]) -> Iterator[str]:
    peers = [peer for peer in PEERS if any(peer in timings for timings in methods.values())]
    yield f"### {title}: µs, p50 / p99 (× what agentdb takes)"
    yield ""
    rows = []
    for method, timings in methods.items():
        cells = []
        for peer in peers:
            if peer not in timings:
                cells.append("–")
                continue
            t = timings[peer]
            times = "" if peer == "agentdb" else f" (× {1 / t['agentdb_ratio']:.2f})"
            cells.append(f"{t['p50']:.0f} / {t['p99']:.0f}{times}")
        rows.append([method, *cells])
    yield from _table(["call", *peers], rows)
