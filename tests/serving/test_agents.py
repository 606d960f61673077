from __future__ import annotations

import multiprocessing
from datetime import timedelta

import pytest

import agentdb
from agentdb import DjangoDb
from tests.helpers.factories import execute, make_agent, make_session


def test_delete_agent_that_fails_half_way_leaves_the_sessions(
    db: DjangoDb, url: str, engine: str
) -> None:
    make_agent(db)
    make_session(db)
    if engine == "sqlite":
        execute(
            url,
            "CREATE TRIGGER guard BEFORE DELETE ON agents BEGIN SELECT RAISE(ABORT, 'not now'); END",
        )
    elif engine == "cockroachdb":  # whose triggers are new
        execute(
            url, 'CREATE TABLE holders (id text CONSTRAINT "not now" REFERENCES agents)'
        )
        execute(url, "INSERT INTO holders SELECT id FROM agents")
    else:
        execute(
            url,
            "CREATE FUNCTION guard() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RAISE 'not now'; END $$",
        )
        execute(
            url,
            "CREATE TRIGGER guard BEFORE DELETE ON agents FOR EACH ROW EXECUTE FUNCTION guard()",
        )

    with pytest.raises(agentdb.AgentDbError, match="not now"):
        db.delete_agent("support-bot")

    assert db.get_agent("support-bot") is not None
    assert db.get_session("s1") is not None


def test_a_raw_insert_that_omits_the_defaults_reads_back(
    db: DjangoDb, url: str
) -> None:
    execute(url, "INSERT INTO agents (id, name, path) VALUES ('a1', 'raw', '/raw')")
    now = make_agent(db).created_at

    agent = db.get_agent("raw")

    assert agent is not None
    assert (agent.tenant_id, agent.version, agent.created_at) == (
        "default",
        1,
        agent.updated_at,
    )
    assert abs(now - agent.created_at) < timedelta(minutes=1)


def _upsert_many(url: str, times: int) -> None:
    with agentdb.connect(url) as db:
        for number in range(times):
            db.upsert_agent("contended", f"/version/{number}")


def test_upsert_agent_counts_each_of_1600_calls_of_8_processes(url: str) -> None:
    spawn = multiprocessing.get_context("spawn")
    processes = [spawn.Process(target=_upsert_many, args=(url, 200)) for _ in range(8)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()

    assert [process.exitcode for process in processes] == [0] * 8
    with agentdb.connect(url) as db:
        [agent] = db.list_agents()
    assert agent.version == 1600
