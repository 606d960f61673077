"""The figures agentdb is held to, and whether a run met them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Bar:
    """One line: ``value`` is to be at most ``limit``, or at least, as ``sign`` says."""

    what: str
    engine: str
    value: float
    sign: str
    limit: float
    unit: str = "×"

    @property
    def met(self) -> bool:
        return (
            self.value <= self.limit if self.sign == "≤" else self.value >= self.limit
        )

    def line(self) -> str:
        digits = 2 if self.unit == "×" else 0
        return (
            f"{'pass' if self.met else 'FAIL'}  {self.engine:<17} {self.what:<58} "
            f"{self.value:>8.{digits}f} {self.unit}  ({self.sign} {self.limit:g})"
        )


_SIZELESS = (
    "get_best_eviction_candidate",
    "get_idle_sandboxes",
    "list_sessions, limit=10",
    "one tenant: ",
)


def _ratio(timings: dict[str, Any], peer: str) -> float:
    return float(timings[peer]["agentdb_ratio"])


def bars(results: dict[str, Any]) -> Iterator[Bar]:
    """Yield the bars whose sections were run."""
    for engine, methods in results.get("point-reads", {}).items():
        sqlite = engine.startswith("sqlite")
        for method, timings in methods.items():
            if "raw" in timings:
                yield Bar(
                    f"{method} vs raw",
                    engine,
                    _ratio(timings, "raw"),
                    "≤",
                    1.5 if sqlite else 1.1,
                )
            if "django" in timings:
                faster = 1 / _ratio(timings, "django")
                yield Bar(
                    f"{method} faster than Django's .get()",
                    engine,
                    faster,
                    "≥",
                    8.0 if sqlite else 2.5,
                )
    for engine, methods in results.get("writes", {}).items():
        sqlite = engine.startswith("sqlite")
        for method, timings in methods.items():
            if "raw" not in timings:
                continue
            upsert = method == "upsert_agent"
            yield Bar(
                f"{method} vs raw",
                engine,
                _ratio(timings, "raw"),
                "≤",
                1.5 if sqlite else 1.25 if upsert else 1.15,
            )
    for engine, methods in results.get("other-writes", {}).items():
        timings = methods.get("run_transaction, 3 calls", {})
        if "raw" in timings:
            yield Bar(
                "run_transaction, 3 calls, vs raw",
                engine,
                _ratio(timings, "raw"),
                "≤",
                1.3 if engine.startswith("sqlite") else 1.2,
            )
    for engine, methods in results.get("lists", {}).items():
        name = "list_sessions, 1,000 records"
        if name in methods and "raw" in methods[name]:
            yield Bar(f"{name} vs raw", engine, _ratio(methods[name], "raw"), "≤", 1.3)
    for engine, methods in results.get("scaling", {}).items():
        for method, sizes in methods.items():
            # The others are shown, not held to anything.
            if "1000000" in sizes and any(name in method for name in _SIZELESS):
                yield Bar(
                    f"{method}, 1M rows vs 1k",
                    engine,
                    sizes["1000000"]["growth"],
                    "≤",
                    2.0,
                )
    for engine, works in results.get("tasks", {}).items():
        for work, counts in works.items():
            most = counts[max(counts, key=int)]
            if "raw" in most:
                yield Bar(
                    f"AsyncDb, 32 tasks, {work}, vs raw pool",
                    engine,
                    most["agentdb"] / most["raw"],
                    "≥",
                    1.0,
                )
    for engine, times in results.get("await", {}).items():
        yield Bar(
            "awaiting get_session over calling it",
            engine,
            times["overhead"],
            "≤",
            100.0,
            "µs",
        )
    startup = results.get("startup", {})
    if "import" in startup:
        yield Bar(
            "import agentdb over bare Python",
            "",
            startup["import"]["over_python_ms"],
            "≤",
            40.0,
            "ms",
        )
    # PostgreSQL has no bar: its driver's import alone takes a good part of the setup, which does without it.
    if times := startup.get("connect", {}).get("sqlite"):
        yield Bar(
            "connect() vs bare django.setup()", "sqlite", times["ratio"], "≤", 1.5
        )
