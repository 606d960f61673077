"""The figures agentdb is held to, and whether a run met them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
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
_TRANSACTION = "run_transaction, 3 calls"
_LIST = "list_sessions, 1,000 records"


def _ratio(timings: dict[str, Any], peer: str) -> float:
    return float(timings[peer]["agentdb_ratio"])


def _is_sqlite(engine: str) -> bool:
    return engine.startswith("sqlite")


def _times_raw(
    section: dict[str, Any], limit_of: Callable[[str, str], float | None]
) -> Iterator[Bar]:
    """Yield a bar for each method beside the raw driver that has a limit on the engine."""
    for engine, methods in section.items():
        for method, timings in methods.items():
            limit = limit_of(method, engine)
            if limit is not None and "raw" in timings:
                ratio = _ratio(timings, "raw")
                yield Bar(f"{method} vs raw", engine, ratio, "≤", limit)


def _read_limit(method: str, engine: str) -> float | None:
    return 1.5 if _is_sqlite(engine) else 1.1


def _write_limit(method: str, engine: str) -> float | None:
    if _is_sqlite(engine):
        return 1.5
    return 1.25 if method == "upsert_agent" else 1.15


def _other_limit(method: str, engine: str) -> float | None:
    if method != _TRANSACTION:
        return None
    return 1.3 if _is_sqlite(engine) else 1.2


def _list_limit(method: str, engine: str) -> float | None:
    return 1.3 if method == _LIST else None


def _faster_than_django(section: dict[str, Any]) -> Iterator[Bar]:
    for engine, methods in section.items():
        for method, timings in methods.items():
            if "django" in timings:
                yield Bar(
                    f"{method} faster than Django's .get()",
                    engine,
                    1 / _ratio(timings, "django"),
                    "≥",
                    8.0 if _is_sqlite(engine) else 2.5,
                )


def _growth(section: dict[str, Any]) -> Iterator[Bar]:
    for engine, methods in section.items():
        for method, sizes in methods.items():
            # The others are shown, not held to anything.
            if "1000000" in sizes and any(name in method for name in _SIZELESS):
                growth = sizes["1000000"]["growth"]
                yield Bar(f"{method}, 1M rows vs 1k", engine, growth, "≤", 2.0)


def _tasks(section: dict[str, Any]) -> Iterator[Bar]:
    for engine, works in section.items():
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


def _awaiting(section: dict[str, Any]) -> Iterator[Bar]:
    what = "awaiting get_session over calling it"
    for engine, times in section.items():
        yield Bar(what, engine, times["overhead"], "≤", 100.0, "µs")


def _startup(section: dict[str, Any]) -> Iterator[Bar]:
    if "import" in section:
        milliseconds = section["import"]["over_python_ms"]
        yield Bar("import agentdb over bare Python", "", milliseconds, "≤", 40.0, "ms")
    # PostgreSQL has no bar: its driver's import alone takes a good part of the setup, which does without it.
    if times := section.get("connect", {}).get("sqlite"):
        what = "connect() vs bare django.setup()"
        yield Bar(what, "sqlite", times["ratio"], "≤", 1.5)


def bars(results: dict[str, Any]) -> Iterator[Bar]:
    """Yield the bars whose sections were run."""

    def section(name: str) -> dict[str, Any]:
        found: dict[str, Any] = results.get(name, {})
        return found

    yield from _times_raw(section("point-reads"), _read_limit)
    yield from _faster_than_django(section("point-reads"))
    yield from _times_raw(section("writes"), _write_limit)
    yield from _times_raw(section("other-writes"), _other_limit)
    yield from _times_raw(section("lists"), _list_limit)
    yield from _growth(section("scaling"))
    yield from _tasks(section("tasks"))
    yield from _awaiting(section("await"))
    yield from _startup(section("startup"))
