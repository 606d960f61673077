"""How programs use agentdb, for mypy and pyright to read. Never run: each line says which type must be seen."""

from __future__ import annotations

import asyncio
from datetime import datetime, timedelta
from typing import assert_type

import agentdb
from agentdb import (
    AgentRecord,
    ApiKeyRecord,
    AsyncDb,
    Db,
    DjangoDb,
    Health,
    SandboxRecord,
    SandboxState,
    SessionRecord,
    SessionStatus,
)
from agentdb.testing import MemoryDb


def djangodb_is_a_db(db: DjangoDb) -> Db:
    return db


def memorydb_is_a_db_with_its_signatures(db: MemoryDb, now: datetime) -> Db:
    assert_type(db.get_session("s1"), SessionRecord | None)
    assert_type(
        db.list_sessions("acme", agent="a", status="active", limit=1),
        list[SessionRecord],
    )
    assert_type(db.count_sandboxes(state=["cold", "warm"]), int)
    assert_type(db.update_session_status("s1", "paused", only_if="active"), bool)
    assert_type(db.touch_sessions(["s1"], runner_id="r1"), list[str])
    assert_type(db.get_idle_sandboxes(now), list[SandboxRecord])
    assert_type(db.insert_sandbox("sb1", "a", "/a", "s1"), SandboxRecord)
    return db


class Recorder:
    """Any class with the methods is a Db; nothing is inherited."""

    def __init__(self, db: Db) -> None:
        self.agents = db.list_agents()


def connecting() -> None:
    with agentdb.connect("sqlite://:memory:", migrate=True, timeout_seconds=5) as db:
        assert_type(db, DjangoDb)
    assert_type(agentdb.connect(), DjangoDb)
    assert_type(agentdb.connect_async("sqlite://:memory:"), AsyncDb)
    assert_type(DjangoDb(alias="default").alias, str)
    assert_type(
        agentdb.connect(apps=["mine"], key_secret="secret").run_transaction(
            lambda tx: tx.alias
        ),
        str,
    )
    assert_type(agentdb.connect_async(apps=("mine",), key_secret="secret"), AsyncDb)


def reading_and_writing(db: Db, now: datetime) -> None:
    assert_type(db.upsert_agent("a", "/a", tenant_id="acme"), AgentRecord)
    assert_type(db.get_agent("a"), AgentRecord | None)
    assert_type(db.list_agents(), list[AgentRecord])
    assert_type(db.delete_agent("a", "acme"), bool)
    session = db.insert_session("s1", "a", "sb1")
    assert_type(session, SessionRecord)
    assert_type(session.runner_id, str | None)
    assert_type(session.created_at, datetime)
    assert_type(db.update_session_status("s1", SessionStatus.ACTIVE), bool)
    assert_type(db.update_session_status("s1", "active"), bool)
    assert_type(db.update_session_runner("s1", None), bool)
    assert_type(
        db.list_sessions("acme", agent="a", limit=10, before=session),
        list[SessionRecord],
    )
    assert_type(db.insert_sandbox("sb1", "a", "/tmp", session_id="s1"), SandboxRecord)
    assert_type(db.update_sandbox_state("sb1", SandboxState.COLD), bool)
    assert_type(db.get_best_eviction_candidate(), SandboxRecord | None)
    assert_type(db.get_idle_sandboxes(now), list[SandboxRecord])
    assert_type(db.claim_eviction_candidate(), SandboxRecord | None)
    assert_type(db.prune_sessions(now, 100), int)
    assert_type(db.prune_sessions(now, 100, also=["messages"]), int)
    assert_type(db.health(), Health)
    assert_type(db.for_tenant("acme"), Db)
    assert_type(db.count_sandboxes(), int)
    assert_type(db.get_api_key_by_hash("h"), ApiKeyRecord | None)
    assert_type(db.issue_api_key("acme", "ci"), tuple[str, ApiKeyRecord])
    assert_type(
        db.run_transaction(lambda inside: inside.list_agents()), list[AgentRecord]
    )
    assert_type(db.close(), None)


def a_fleet(db: Db, now: datetime) -> None:
    claimed = db.claim_session("s1", "r1", silent_for=timedelta(seconds=30))
    assert_type(claimed, SessionRecord | None)
    assert_type(db.get_silent_sessions(now, limit=10), list[SessionRecord])
    assert_type(db.touch_session("s1", runner_id="r1"), bool)
    assert_type(db.touch_sessions(["s1", "s2"], runner_id="r1"), list[str])
    assert_type(db.touch_sessions({"s1": 1}.keys()), list[str])
    assert_type(db.touch_sandboxes(("sb1",)), list[str])
    assert_type(db.claim_warm_sandbox("a", "s1"), SandboxRecord | None)
    assert_type(
        db.list_sessions(status=("active", SessionStatus.PAUSED), runner_id="r1"),
        list[SessionRecord],
    )
    assert_type(db.count_sessions("acme", agent="a", status="active"), int)
    sandboxes = db.list_sandboxes("acme", state={"warm"}, session_id="s1", limit=10)
    assert_type(sandboxes, list[SandboxRecord])
    assert_type(sandboxes[-1].cursor, str)
    assert_type(db.list_sandboxes(before=sandboxes[-1]), list[SandboxRecord])
    assert_type(db.list_sandboxes(before=sandboxes[-1].cursor), list[SandboxRecord])
    assert_type(db.list_sandboxes_by_runner("r1"), list[SandboxRecord])
    assert_type(db.mark_sandboxes_cold_by_runner("r1"), int)
    assert_type(db.count_sandboxes(state="warm"), int)
    assert_type(
        db.update_session_status("s1", "paused", only_if=["active", "starting"]), bool
    )
    assert_type(db.update_session_runner("s1", "r2", only_if=None), bool)
    assert_type(db.update_sandbox_state("sb1", "cold", only_if=SandboxState.WARM), bool)
    assert_type(db.claim_eviction_candidate(unused_since=now), SandboxRecord | None)
    assert_type(db.delete_session("s1"), bool)


def misuse_of_a_fleet(db: Db) -> None:
    db.claim_session("s1", "r1", silent_for=30)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    db.update_session_status("s1", "paused", only_if="actve")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    db.update_session_runner("s1", "r1", only_if=5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    db.touch_sessions([5])  # type: ignore[list-item]  # pyright: ignore[reportArgumentType]


def misuse(db: Db, session: SessionRecord) -> None:
    # mypy and pyright report an ignore that nothing needs, so that each of these is an error.
    db.get_agent()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    db.get_session(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    db.list_sessions("acme", "a", 10)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    db.list_agents(tenant=None)  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    db.update_session_status("s1", "actve")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    db.update_sandbox_state("sb1", "frozen")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    session.status = "ended"  # type: ignore[misc]  # pyright: ignore[reportAttributeAccessIssue]


async def _in_async_transaction(tx: AsyncDb) -> SessionRecord:
    return await tx.insert_session("s", "a", "sb")


def _in_transaction(inside: Db) -> SessionRecord:
    return inside.insert_session("s1", "a", "sb1")


async def awaiting(db: Db, now: datetime) -> None:
    async with AsyncDb(db, max_workers=4) as adb:
        assert_type(adb, AsyncDb)
        assert_type(await adb.upsert_agent("a", "/a", tenant_id="acme"), AgentRecord)
        assert_type(await adb.get_agent("a"), AgentRecord | None)
        assert_type(await adb.list_agents(), list[AgentRecord])
        assert_type(await adb.delete_agent("a"), bool)
        assert_type(await adb.insert_session("s1", "a", "sb1"), SessionRecord)
        assert_type(await adb.update_session_runner("s1", None), bool)
        assert_type(
            await adb.list_sessions("acme", agent="a", limit=10), list[SessionRecord]
        )
        assert_type(
            await adb.insert_sandbox("sb1", "a", "/tmp", session_id=None), SandboxRecord
        )
        assert_type(await adb.get_idle_sandboxes(older_than=now), list[SandboxRecord])
        assert_type(await adb.get_best_eviction_candidate(), SandboxRecord | None)
        assert_type(await adb.claim_eviction_candidate(), SandboxRecord | None)
        assert_type(adb.for_tenant("acme"), AsyncDb)
        assert_type(await adb.health(), Health)
        assert_type(await adb.bulk_pause_active_sessions(), int)
        assert_type(await adb.issue_api_key("acme", "ci"), tuple[str, ApiKeyRecord])
        assert_type(await adb.authenticate("agentdb_x"), ApiKeyRecord | None)
        assert_type(await adb.run_transaction(_in_transaction), SessionRecord)
        assert_type(await adb.run_transaction(_in_async_transaction), SessionRecord)
        assert_type(
            await adb.claim_session("s1", "r1", silent_for=timedelta(minutes=1)),
            SessionRecord | None,
        )
        assert_type(await adb.touch_sessions(["s1"], runner_id="r1"), list[str])
        assert_type(
            await adb.list_sandboxes(state="warm", limit=10), list[SandboxRecord]
        )
        assert_type(
            await asyncio.gather(
                adb.count_sessions(status=("active",)),
                adb.count_sandboxes(state=("warm",)),
                adb.get_session("s1"),
            ),
            tuple[int, int, SessionRecord | None],
        )
        assert_type(await adb.close(), None)
    async with agentdb.connect_async() as opened:
        assert_type(opened, AsyncDb)


async def misuse_async(adb: AsyncDb) -> None:
    await adb.get_agent()  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    await adb.get_session(5)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    await adb.list_sessions("acme", "a", 10)  # type: ignore[call-arg, arg-type]  # pyright: ignore[reportCallIssue]
    await adb.list_agents(tenant="acme")  # type: ignore[call-arg]  # pyright: ignore[reportCallIssue]
    adb.no_such_method  # type: ignore[attr-defined]  # pyright: ignore[reportAttributeAccessIssue, reportUnknownMemberType]  # noqa: B018


def stored_values_may_be_newer(session: SessionRecord, sandbox: SandboxRecord) -> None:
    assert_type(session.status, str)
    assert_type(sandbox.state, str)
    assert_type(session.status == SessionStatus.ACTIVE, bool)
