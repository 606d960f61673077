"""Timing calls of several peers in turn, so that a noisy moment hits them all."""

from __future__ import annotations

import gc
import random
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from time import perf_counter, perf_counter_ns
from typing import Any

Arguments = tuple[Any, ...]


@dataclass(frozen=True, slots=True)
class Timing:
    """The samples of one peer on one operation, in nanoseconds."""

    samples: tuple[int, ...]
    rounds: tuple[float, ...]  # the median of each round

    @property
    def p50(self) -> float:
        """Microseconds."""
        return median(self.samples) / 1000

    @property
    def p99(self) -> float:
        """Microseconds."""
        ordered = sorted(self.samples)
        return ordered[min(len(ordered) - 1, round(0.99 * len(ordered)))] / 1000

    def ratio(self, other: Timing) -> float:
        """Return how many times as long as ``other`` this took: round by round, as a load comes and goes."""
        return median(
            own / theirs for own, theirs in zip(self.rounds, other.rounds, strict=True)
        )


@dataclass(frozen=True, slots=True)
class Call:
    """One peer's way to do an operation; ``prepare``, untimed, returns the arguments of the calls of a block."""

    function: Callable[..., Any]
    prepare: Callable[[int], Sequence[Arguments]]


@contextmanager
def quiet_heap() -> Iterator[None]:
    """Take what exists out of the collector's sight: a host's heap is not what is measured."""
    gc.collect()
    gc.freeze()
    try:
        yield
    finally:
        gc.unfreeze()


def interleaved(
    calls: dict[str, Call], *, rounds: int, block: int, longest_seconds: float
) -> dict[str, Timing]:
    """Time ``rounds`` blocks of ``block`` calls of each peer, the peers in a new random order each round.

    Stops after ``longest_seconds`` if at least three rounds are done: slow operations get fewer samples.
    """
    order = list(calls)
    shuffle = random.Random(1).shuffle
    samples: dict[str, list[int]] = {name: [] for name in calls}
    medians: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():  # statements get compiled, prepared and cached
        for _ in range(
            2 if block < 8 else 1
        ):  # PostgreSQL settles on a plan after five calls
            for arguments in call.prepare(max(block, 4)):
                call.function(*arguments)
    with quiet_heap():
        began = perf_counter()
        for done in range(rounds):
            if done >= 3 and perf_counter() - began > longest_seconds:
                break
            shuffle(order)
            for name in order:
                function = calls[name].function
                into: list[int] = []
                for arguments in calls[name].prepare(block):
                    start = perf_counter_ns()
                    function(*arguments)
                    into.append(perf_counter_ns() - start)
                samples[name] += into
                medians[name].append(median(into))
    return {name: Timing(tuple(samples[name]), tuple(medians[name])) for name in calls}
