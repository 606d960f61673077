"""A class whose objects note each use of their shared state by a thread that does not have their lock."""

from __future__ import annotations

import sys
import threading
from collections.abc import Collection
from typing import Any, TypeVar, cast

T = TypeVar("T")


class _Owned:
    """A lock that knows who has it."""

    def __init__(self, lock: Any) -> None:
        self._lock = lock
        self.owner: int | None = None

    def __enter__(self) -> None:
        self._lock.acquire()
        self.owner = threading.get_ident()

    def __exit__(self, *_: object) -> None:
        self.owner = None
        self._lock.release()


def watched(
    kind: type[T], lock: str, shared: Collection[str], free: Collection[str] = ()
) -> tuple[type[T], list[str]]:
    """Return a subclass, and the list of what its objects do without their lock.

    ``shared`` are the attributes that the lock protects; the functions that are ``free`` need no lock.
    """
    seen: list[str] = []

    def look(self: object, name: str) -> None:
        frame = sys._getframe(2)
        caller = frame.f_code.co_name
        is_ours = frame.f_globals["__name__"] == kind.__module__
        if not is_ours or name not in shared or caller in {"__init__", *free}:
            return
        if object.__getattribute__(self, lock).owner != threading.get_ident():
            seen.append(f"{caller}() uses {name}")

    def get(self: object, name: str) -> Any:
        look(self, name)
        return object.__getattribute__(self, name)

    def put(self: object, name: str, value: Any) -> None:
        look(self, name)
        object.__setattr__(self, name, _Owned(value) if name == lock else value)

    body = {"__getattribute__": get, "__setattr__": put}
    return cast("type[T]", type(kind.__name__, (kind,), body)), seen
