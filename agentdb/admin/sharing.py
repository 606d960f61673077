"""One result for many viewers: equal requests within a few seconds share it."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

SECONDS = 3.0


@dataclass
class _Answer:
    """One thread computes the result while the others wait for the lock."""

    lock: Lock = field(default_factory=Lock)
    made_at: float = float("-inf")
    value: Any = None


_answers: dict[Hashable, _Answer] = {}


def shared(key: Hashable, make: Callable[[], Any]) -> Any:
    """Return the result for ``key`` if it is at most ``SECONDS`` old, else a new one.

    An exception of ``make`` is raised to its caller only; whoever waited tries again.
    """
    # setdefault is atomic, so that all viewers wait for the same lock.
    answer = _answers.setdefault(key, _Answer())
    with answer.lock:
        # Looked at under the lock: whoever waited finds the new result instead of making another one.
        if time.monotonic() - answer.made_at > SECONDS:
            answer.value = make()
            answer.made_at = time.monotonic()
        return answer.value


def forget() -> None:
    """Drop all results, because this process has changed rows."""
    _answers.clear()
