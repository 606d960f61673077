"""One answer for many viewers: whoever asks the same within a few seconds gets what the first one got."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

SECONDS = 3.0
_MOST = 200  # answers that are kept


@dataclass
class _Answer:
    """While one asks, the others wait at the lock, and find the answer there."""

    lock: Lock = field(default_factory=Lock)
    made_at: float = float("-inf")
    value: Any = None


_answers: dict[Hashable, _Answer] = {}


def shared(key: Hashable, make: Callable[[], Any]) -> Any:
    """The answer to ``key`` that is at most ``SECONDS`` old, else a new one."""
    if len(_answers) > _MOST:
        forget()
    answer = _answers.setdefault(key, _Answer())
    with answer.lock:
        if time.monotonic() - answer.made_at > SECONDS:
            answer.value = make()
            answer.made_at = time.monotonic()
        return answer.value


def forget() -> None:
    """Something was changed here: whoever looks now is to see it."""
    _answers.clear()
