"""The pictures of the reports, as SVG that follows the reader's light or dark mode."""

from __future__ import annotations

from collections.abc import Iterator
from math import log10
from typing import Any
from xml.sax.saxutils import escape

from benchmarks.report import PEERS

_STYLE = """<style>
text { font: 13px system-ui, sans-serif; fill: #1f2328; paint-order: stroke; stroke: #ffffff; stroke-width: 3px; }
.title { font-size: 15px; font-weight: 600; }
.note, .tick { fill: #59636e; font-size: 12px; }
.grid { stroke: #d1d9e0; stroke-width: 1; }
.limit { stroke: #59636e; stroke-width: 1.5; stroke-dasharray: 4 3; }
.ground { fill: #ffffff; }
@media (prefers-color-scheme: dark) {
  text { fill: #e6edf3; stroke: #0d1117; }
  .note, .tick { fill: #9198a1; }
  .grid { stroke: #3d444d; }
  .limit { stroke: #9198a1; }
  .ground { fill: #0d1117; }
}
</style>"""
_COLOURS = {
    "raw": "#8c959f",
    "agentdb": "#0969da",
    "django": "#1a7f37",
    "sqlalchemy core": "#bf8700",
    "sqlalchemy orm": "#bc4c00",
    "djanorm": "#8250df",
}
_ENGINES = {
    "sqlite": "SQLite",
    "sqlite NORMAL": "SQLite, synchronous=NORMAL",
    "postgresql": "PostgreSQL, socket",
}


def _document(width: int, height: int, title: str, body: Iterator[str]) -> str:
    parts = "\n".join(body)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" role="img" '
        f'aria-label="{escape(title)}">\n{_STYLE}\n<rect class="ground" width="{width}" height="{height}"/>\n'
        f"{parts}\n</svg>\n"
    )


def _text(x: float, y: float, words: str, css: str = "", anchor: str = "start") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" class="{css}" text-anchor="{anchor}">{escape(words)}</text>'


def calls(results: dict[str, Any]) -> str:
    """Return bars: how long a call takes beside the raw driver's, which is 1."""
    shown = [
        ("point-reads", "sqlite", "get_session"),
        ("point-reads", "postgresql", "get_session"),
        ("lists", "sqlite", "list_sessions, 1,000 records"),
        ("lists", "postgresql", "list_sessions, 1,000 records"),
        ("writes", "sqlite NORMAL", "touch_session"),
        ("writes", "postgresql", "touch_session"),
        ("writes", "sqlite NORMAL", "upsert_agent"),
        ("writes", "postgresql", "upsert_agent"),
    ]
    groups = []
    for section, engine, method in shown:
        timings = results.get(section, {}).get(engine, {}).get(method)
        if timings and "raw" in timings:
            # Other peers beside raw, by way of agentdb's ratio to both.
            times = {
                peer: timings["raw"]["agentdb_ratio"] / timings[peer]["agentdb_ratio"]
                for peer in PEERS
                if peer in timings and peer != "raw"
            }
            groups.append(
                (f"{method}: {_ENGINES[engine]}", times, timings["raw"]["p50"])
            )
    left, right, bar = 130, 700, 15
    most = max(
        (value for _, times, _ in groups for value in times.values()), default=10
    )
    scale = (right - left) / log10(max(10.0, most * 1.1))
    height = 70 + sum(30 + bar * len(times) for _, times, _ in groups)

    def body() -> Iterator[str]:
        yield _text(
            20,
            26,
            "How long a call takes, the raw driver being 1 (log scale, shorter is better)",
            "title",
        )
        for tick in (1, 2, 5, 10, 20, 50, 100):
            if tick <= most * 1.1:
                x = left + log10(tick) * scale
                css = "limit" if tick == 1 else "grid"
                yield f'<line class="{css}" x1="{x:.1f}" x2="{x:.1f}" y1="42" y2="{height - 24}"/>'
                yield _text(x, height - 8, f"{tick} ×", "tick", "middle")
        y = 50.0
        for name, times, raw in groups:
            yield _text(20, y + 12, name)
            yield _text(right + 70, y + 12, f"raw: {raw:,.0f} µs", "note", "end")
            y += 20
            for peer, value in times.items():
                length = max(2.0, log10(max(1.0, value)) * scale)
                yield _text(left - 8, y + 11, peer, "note", "end")
                yield f'<rect x="{left}" y="{y:.1f}" width="{length:.1f}" height="{bar - 3}" fill="{_COLOURS[peer]}"/>'
                yield _text(
                    left + length + 5,
                    y + 11,
                    f"{value:.2f}" if value < 10 else f"{value:.0f}",
                    "note",
                )
                y += bar
            y += 10

    return _document(800, height, "How long a call takes beside the raw driver", body())


def scaling(results: dict[str, Any]) -> str:
    """Return lines: how long calls take from a thousand rows to a million."""
    panels = results.get("scaling", {})
    palette = (
        "#0969da",
        "#1a7f37",
        "#bf8700",
        "#cf222e",
        "#8250df",
        "#bc4c00",
        "#0a7d91",
        "#bf3989",
        "#59636e",
    )
    left, top, wide, tall = 60, 60, 300, 240
    names = list(dict.fromkeys(name for methods in panels.values() for name in methods))
    values = [
        size["p50"]
        for methods in panels.values()
        for sizes in methods.values()
        for size in sizes.values()
    ]
    low, high = (
        log10(min(values, default=10) / 1.5),
        log10(max(values, default=1000) * 1.5),
    )
    height = top + tall + 60 + 18 * len(names)

    def body() -> Iterator[str]:
        yield _text(
            20,
            26,
            "Microseconds per call, from a thousand rows to a million (log scales)",
            "title",
        )
        for number, (engine, methods) in enumerate(panels.items()):
            x0 = left + number * (wide + 70)
            sizes = sorted(
                {int(size) for figures in methods.values() for size in figures}
            )
            steps = max(1, len(sizes) - 1)
            yield _text(x0, top - 12, _ENGINES[engine])
            for tick in (10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10000):
                if low <= log10(tick) <= high:
                    y = top + tall - (log10(tick) - low) / (high - low) * tall
                    yield f'<line class="grid" x1="{x0}" x2="{x0 + wide}" y1="{y:.1f}" y2="{y:.1f}"/>'
                    yield _text(x0 - 6, y + 4, f"{tick:,}", "tick", "end")
            for place, size in enumerate(sizes):
                yield _text(
                    x0 + place * wide / steps,
                    top + tall + 18,
                    f"{size:,}",
                    "tick",
                    "middle",
                )
            for name, figures in methods.items():
                points = " ".join(
                    f"{x0 + place * wide / steps:.1f},"
                    f"{top + tall - (log10(figures[str(size)]['p50']) - low) / (high - low) * tall:.1f}"
                    for place, size in enumerate(sizes)
                )
                colour = palette[names.index(name) % len(palette)]
                yield f'<polyline points="{points}" fill="none" stroke="{colour}" stroke-width="2"/>'
        for place, name in enumerate(names):
            y = top + tall + 48 + place * 18
            yield f'<rect x="{left}" y="{y - 9}" width="22" height="4" fill="{palette[place % len(palette)]}"/>'
            yield _text(left + 30, y, name)

    return _document(
        800, height, "Microseconds per call, from a thousand rows to a million", body()
    )


def soak(runs: dict[str, Any]) -> str:
    """Return lines over time of each run: calls a second, p99, and the size of tables and indexes."""
    palette = ("#0969da", "#1a7f37", "#bf8700", "#cf222e", "#8250df")
    panels = (
        ("calls a second", "calls a second"),
        ("p99", "p99, ms"),
        ("megabytes", "tables and indexes, MB"),
    )
    left, top, wide, tall, gap = 60, 60, 190, 200, 65
    longest = max(run["windows"][-1]["seconds"] for run in runs.values())

    def body() -> Iterator[str]:
        yield _text(
            20, 26, f"{longest / 60:.0f} minutes of load, each axis from 0", "title"
        )
        for number, (key, title) in enumerate(panels):
            x0 = left + number * (wide + gap)
            most = (
                max(window[key] for run in runs.values() for window in run["windows"])
                * 1.1
            )
            yield _text(x0, top - 12, title)
            for part in range(5):
                y = top + tall - part / 4 * tall
                label = (
                    f"{most * part / 4:,.0f}" if most >= 8 else f"{most * part / 4:.1f}"
                )
                yield f'<line class="grid" x1="{x0}" x2="{x0 + wide}" y1="{y:.1f}" y2="{y:.1f}"/>'
                yield _text(x0 - 6, y + 4, label, "tick", "end")
            for minutes in range(int(longest / 60) + 1):
                yield _text(
                    x0 + minutes * 60 / longest * wide,
                    top + tall + 18,
                    f"{minutes}",
                    "tick",
                    "middle",
                )
            for place, run in enumerate(runs.values()):
                points = " ".join(
                    f"{x0 + window['seconds'] / longest * wide:.1f},{top + tall - window[key] / most * tall:.1f}"
                    for window in run["windows"]
                )
                yield f'<polyline points="{points}" fill="none" stroke="{palette[place % 5]}" stroke-width="2"/>'
        for place, name in enumerate(runs):
            y = top + tall + 48 + place * 18
            yield f'<rect x="{left}" y="{y - 9}" width="22" height="4" fill="{palette[place % 5]}"/>'
            yield _text(left + 30, y, name)

    return _document(
        800, top + tall + 60 + 18 * len(runs), "Calls, p99 and size under load", body()
    )
