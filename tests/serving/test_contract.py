"""The contract's own tests, on each engine, awaited, and on MemoryDb."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from typing import Any

import pytest

import agentdb
from agentdb import AsyncDb, Db
from agentdb.testing import MemoryDb
from agentdb.testing.conformance import DbContract, Rewrite, awaited
from tests.helpers.factories import set_column


def _fast(url: str) -> str:
    """Return the URL with the option to wait for no disk: these tests make thousands of rows, and cut no power."""
    return f"{url}?synchronous=NORMAL" if url.startswith("sqlite") else url


class TestEngines(DbContract):
    @pytest.fixture
    def db(self, url: str) -> Iterator[Db]:
        with agentdb.connect(_fast(url)) as db:
            yield db

    @pytest.fixture
    def rewrite(self, url: str) -> Rewrite:
        return partial(set_column, url)


class TestEnginesAwaited(DbContract):
    # The times come from the statements, which TestEngines runs; awaiting them could change answers and errors alone.
    test_a_call_moves_no_time_backwards = None  # type: ignore[assignment]

    @pytest.fixture
    def db(self, url: str) -> Iterator[Db]:
        with asyncio.Runner() as runner:
            db = awaited(agentdb.connect_async(_fast(url)), runner)
            yield db
            db.close()

    @pytest.fixture
    def rewrite(self, url: str) -> Rewrite:
        return partial(set_column, url)


def _rewrite_in(memory: Any, table: str, id: str, **columns: Any) -> None:
    rows = getattr(memory, f"_{table.removeprefix('api_')}").rows
    rows[id] = replace(rows[id], **columns)


class TestMemoryDb(DbContract):
    factory = MemoryDb

    @pytest.fixture
    def rewrite(self, db: MemoryDb) -> Rewrite:
        return partial(_rewrite_in, db)


def _awaited_memory() -> AsyncDb:
    return AsyncDb(MemoryDb())


class TestAwaitedMemoryDb(DbContract):
    factory = _awaited_memory

    @pytest.fixture
    def rewrite(self, db: Any) -> Rewrite:
        return partial(_rewrite_in, db._db._db)
