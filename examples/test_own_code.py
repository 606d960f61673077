"""Tests of a program that uses agentdb: the fixtures come with the package."""

from __future__ import annotations

from agentdb import Db
from agentdb.testing import MemoryDb


def pause_everything(db: Db, runner_id: str) -> int:  # your own code
    return db.bulk_pause_sessions_by_runner(runner_id)


def test_in_memory(agentdb_memory: MemoryDb) -> None:
    agentdb_memory.insert_session("s1", "support-bot", "sb1")
    agentdb_memory.update_session_runner("s1", "runner-1")

    assert pause_everything(agentdb_memory, "runner-1") == 1


def test_on_a_real_file(agentdb_sqlite: Db) -> None:
    assert pause_everything(agentdb_sqlite, "runner-1") == 0
