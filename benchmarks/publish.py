"""A run as it is published: all tables beside the benchmarks, and in the documentation what a reader wants of them."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from benchmarks import plots
from benchmarks.bars import bars
from benchmarks.report import PEERS

_BEGIN = "<!-- The rest is written by 'make bench ARGS=--publish'. -->"
RESULTS = Path(__file__).parent / "results"

# One call of each kind: the page is for readers who choose, the full tables for those who doubt.
_SHOWN = (
    "get_session",
    "get_agent",
    "list_sessions, 1,000 records",
    "list_sessions, limit=10",
    "get_best_eviction_candidate",
    "get_idle_sandboxes, 20 records",
    "count_sandboxes",
    "touch_session",
    "update_session_status",
    "insert_session",
    "upsert_agent",
)


def publish(results: dict[str, Any], docs: Path) -> None:
    """Write the run into ``benchmarks/results`` and its summary into the documentation folder."""
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "bench.json").write_text(
        json.dumps(results, separators=(",", ":")) + "\n"
    )
    title = "# A run in full\n\nWritten by `make bench ARGS=--publish`; docs/benchmarks.md says what is measured.\n\n"
    (RESULTS / "README.md").write_text(title + _text(_tables(results)))
    (docs / "images").mkdir(parents=True, exist_ok=True)
    (docs / "images" / "bench-calls.svg").write_text(plots.calls(results))
    (docs / "images" / "bench-scaling.svg").write_text(plots.scaling(results))
    page = docs / "benchmarks.md"
    prose = page.read_text().partition(_BEGIN)[0]
    page.write_text(f"{prose}{_BEGIN}\n\n" + _text(_summary(results)))


def _text(lines: Iterator[str]) -> str:
    return "\n".join(lines).rstrip() + "\n"


def _summary(results: dict[str, Any]) -> Iterator[str]:
    """Some calls on both engines: how long each takes, and how often the raw driver and Django fit into that."""
    machine = results["machine"]
    yield f"Run of {machine['date']}: {machine['cores']} cores, Python {machine['Python']}, SQLite {machine['SQLite']},"
    yield f"{machine['server']}, psycopg {machine['psycopg']}, Django {machine['Django']}."
    yield "*raw ×*: how many times as long as the raw driver; *Django ÷*: how many such calls fit into Django's time."
    yield ""
    head = [
        "call",
        "SQLite, µs",
        "raw ×",
        "Django ÷",
        "PostgreSQL, µs",
        "raw ×",
        "Django ÷",
    ]
    yield from _table(
        head, [_row(name, *found) for name, *found in _calls_of_both(results)]
    )


def _calls_of_both(
    results: dict[str, Any],
) -> Iterator[tuple[str, dict[str, Any], dict[str, Any]]]:
    for section, engine in (
        ("point-reads", "sqlite"),
        ("lists", "sqlite"),
        ("writes", "sqlite FULL"),
    ):
        for name, timings in results[section][engine].items():
            if name in _SHOWN:
                yield name, timings, results[section]["postgresql"].get(name, {})


def _row(name: str, *engines: dict[str, Any]) -> list[str]:
    cells = [f"`{name}`"]
    for timings in engines:
        raw, django = timings.get("raw"), timings.get("django")
        cells.append(f"{timings['agentdb']['p50']:.0f}" if timings else "–")
        cells.append(f"{raw['agentdb_ratio']:.2f}" if raw else "–")
        cells.append(f"{1 / django['agentdb_ratio']:.1f}" if django else "–")
    return cells


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
            yield from _calls(
                f"{section.replace('-', ' ').capitalize()}, {engine}", methods
            )
    for engine, methods in results.get("scaling", {}).items():
        sizes = sorted(
            {size for figures in methods.values() for size in figures}, key=int
        )
        yield f"### Growth, {engine}: µs, p50"
        yield ""
        yield from _table(
            ["call", *(f"{int(size):,} rows" for size in sizes), "largest ÷ smallest"],
            [
                [
                    name,
                    *(f"{figures[size]['p50']:.0f}" for size in sizes),
                    f"{figures[sizes[-1]]['growth']:.2f}",
                ]
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
                        f"{peers['agentdb'] / peers['raw']:.2f}"
                        if "raw" in peers
                        else "–",
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
                [
                    "`import agentdb`, over bare Python",
                    f"{startup['import']['over_python_ms']}",
                    "–",
                    "–",
                ],
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
                [
                    engine,
                    *(
                        f"{times[name]}"
                        for name in ("called", "awaited", "overhead", "run_in_executor")
                    ),
                ]
                for engine, times in awaited.items()
            ],
        )
    if "index-cost" in results:
        yield "### What the indexes of migrations 0003 and 0004 cost a write: µs, p50"
        yield ""
        yield from _table(
            ["call", "engine", "without", "with", "ratio"],
            [
                [
                    name,
                    engine,
                    f"{t['without']:.0f}",
                    f"{t['with']:.0f}",
                    f"{t['ratio']:.2f}",
                ]
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
            yield from (
                f"    {line}" for line in plan or ["(no plan: it reads nothing)"]
            )
        yield "```"
        yield ""


def _calls(title: str, methods: dict[str, Any]) -> Iterator[str]:
    peers = [
        peer for peer in PEERS if any(peer in timings for timings in methods.values())
    ]
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
