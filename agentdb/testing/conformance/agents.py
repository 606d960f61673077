"""Agents: versions, names of tenants, and what is deleted with them."""

from __future__ import annotations

import uuid
from datetime import UTC

from agentdb import AgentRecord, Db
from agentdb.testing.conformance.subject import (
    IDS,
    Rewrite,
    Subject,
    ids,
    instant,
    make_agent,
    make_session,
)


class AgentContract(Subject):
    def test_upsert_agent_inserts_with_version_1_and_a_random_uuid(
        self, db: Db
    ) -> None:
        agent = db.upsert_agent("support-bot", "/srv/agents/support")

        assert uuid.UUID(agent.id).version == 4
        assert agent == AgentRecord(
            agent.id,
            "default",
            "support-bot",
            1,
            "/srv/agents/support",
            agent.created_at,
            agent.created_at,
        )
        assert agent.created_at.tzinfo is UTC

    def test_upsert_agent_of_a_known_name_raises_the_version_and_keeps_id_and_creation(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        # INSERT OR REPLACE looks like an upsert, but it deletes the row first: a new id, a new created_at, version 1.
        first = make_agent(db, path="/old")
        rewrite("agents", first.id, created_at=instant(), updated_at=instant())

        second = db.upsert_agent("support-bot", "/new")

        assert (second.id, second.created_at) == (first.id, instant())
        assert (second.version, second.path) == (2, "/new")
        assert second.updated_at >= first.updated_at
        assert db.upsert_agent("support-bot", "/new").version == 3

    def test_upsert_agent_returns_what_a_get_returns(self, db: Db) -> None:
        # Not what was passed in: the stored instant may be rounded, to microseconds or less.
        assert make_agent(db) == db.get_agent("support-bot")
        assert make_agent(db, path="/new") == db.get_agent("support-bot")

    def test_upsert_agent_allows_an_empty_path(self, db: Db) -> None:
        assert db.upsert_agent("a", "").path == ""

    def test_same_name_of_two_tenants_is_two_agents(self, db: Db) -> None:
        # Single-tenant servers had the name as the primary key; a second tenant overwrote the first one's agent.
        acme = make_agent(db, tenant_id="acme", path="/acme")
        other = make_agent(db, tenant_id="other", path="/other")

        assert acme.id != other.id
        assert (acme.version, other.version) == (1, 1)
        assert db.get_agent("support-bot", "acme") == acme
        assert db.get_agent("support-bot", tenant_id="other") == other
        assert db.get_agent("support-bot") is None

    def test_list_agents_is_by_name_in_code_point_order(self, db: Db) -> None:
        for name in IDS[::-1]:
            make_agent(db, name)

        assert [agent.name for agent in db.list_agents()] == IDS

    def test_list_agents_returns_the_tenants_own_whole_records(self, db: Db) -> None:
        mine = [make_agent(db, name, tenant_id="acme") for name in ("a", "b")]
        make_agent(db, "c", tenant_id="other")

        assert db.list_agents("acme") == mine
        assert db.list_agents() == []

    def test_delete_agent_deletes_the_agent_and_its_sessions_of_that_tenant_only(
        self, db: Db
    ) -> None:
        for tenant in ("acme", "other"):
            make_agent(db, tenant_id=tenant)
            make_session(db, f"{tenant}-1", tenant_id=tenant)
        make_agent(db, "another-bot", tenant_id="acme")
        make_session(db, "acme-2", "another-bot", tenant_id="acme")

        assert db.delete_agent("support-bot", "acme") is True

        assert db.get_agent("support-bot", "acme") is None
        assert ids(db.list_sessions("acme")) == ["acme-2"]
        assert db.get_agent("another-bot", "acme") is not None
        assert db.get_agent("support-bot", "other") is not None
        assert ids(db.list_sessions("other")) == ["other-1"]

    def test_delete_agent_deletes_sessions_of_an_agent_that_does_not_exist(
        self, db: Db
    ) -> None:
        # agent_name is not a foreign key: sessions may precede their agent or outlive it, and no cascade removes them.
        make_session(db)

        assert db.delete_agent("support-bot") is False
        assert db.get_session("s1") is None
