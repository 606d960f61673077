"""The contract of Db, run on your own wrapper."""

from __future__ import annotations

from typing import Any

from agentdb.testing import MemoryDb
from agentdb.testing.conformance import DbContract


class Counting:
    """A wrapper that counts the calls."""

    def __init__(self) -> None:
        self.db = MemoryDb()
        self.calls = 0

    def __getattr__(self, name: str) -> Any:
        self.calls += 1
        return getattr(self.db, name)


class TestCounting(DbContract):
    factory = Counting
