"""Agents: versions, names of tenants, and what is deleted with them."""

from __future__ import annotations

import uuid
from datetime import UTC

from agentdb import AgentRecord, Db
from agentdb.testing.conformance.subject import (
    IDS,
    Rewrite,
    Subject,
    instant,
    make_agent,
    make_session,
)


class AgentContract(Subject):
    def test_upsert_agent_inserts_with_version_1_and_a_random_uuid(
        self, db: Db
    ) -> None:
        """A new agent has an id that nobody can guess, and was created and updated at one instant, in UTC."""
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
        # Not what was passed in: the stored instant may be rounded, to microseconds or less.
        assert db.get_agent("support-bot") == agent

    def test_upsert_agent_of_a_known_name_raises_the_version_and_keeps_id_and_creation(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        """Each upsert of a known name is a new version of one agent."""
        # INSERT OR REPLACE looks like an upsert, but it deletes the row first: a new id, a new created_at, version 1.
        first = make_agent(db, path="/old")
        rewrite(
            "agents",
            first.id,
            created_at=instant(),
            updated_at=instant(),
        )

        second = db.upsert_agent("support-bot", "/new")
        third = db.upsert_agent("support-bot", "/new")

        assert second.id == first.id
        assert second.created_at == instant()
        assert second.version == 2
        assert second.path == "/new"
        assert second.updated_at >= first.updated_at
        assert third.version == 3
        assert db.get_agent("support-bot") == third

    def test_same_name_of_two_tenants_is_two_agents(self, db: Db) -> None:
        """A name is unique within its tenant only, and a get without a tenant is of the default one."""
        # Single-tenant servers had the name as the primary key; a second tenant overwrote the first one's agent.
        acme = make_agent(db, tenant_id="acme", path="/acme")
        other = make_agent(db, tenant_id="other", path="/other")

        assert acme.id != other.id
        assert acme.version == 1
        assert other.version == 1
        assert db.get_agent("support-bot", "acme") == acme
        assert db.get_agent("support-bot", tenant_id="other") == other
        assert db.get_agent("support-bot") is None

    def test_list_agents_is_by_name_in_code_point_order(self, db: Db) -> None:
        for name in IDS[::-1]:
            make_agent(db, name)

        names = [agent.name for agent in db.list_agents()]
        assert names == IDS

    def test_list_agents_returns_the_tenants_own_whole_records(self, db: Db) -> None:
        a = make_agent(db, "a", tenant_id="acme")
        b = make_agent(db, "b", tenant_id="acme")
        make_agent(db, "c", tenant_id="other")

        assert db.list_agents("acme") == [a, b]
        assert db.list_agents() == []

    def test_delete_agent_deletes_the_agent_and_its_sessions_of_that_tenant_only(
        self, db: Db
    ) -> None:
        """Agents and sessions of another name, or of another tenant, stay as they are."""
        make_agent(db)
        make_session(db, "gone")
        other_agent = make_agent(db, "another-bot")
        other_session = make_session(db, "another agent's", "another-bot")
        theirs = make_agent(db, tenant_id="other")
        their_session = make_session(db, "theirs", tenant_id="other")

        deleted = db.delete_agent("support-bot")

        assert deleted is True
        assert db.list_agents() == [other_agent]
        assert db.list_sessions() == [other_session]
        assert db.list_agents("other") == [theirs]
        assert db.list_sessions("other") == [their_session]

    def test_delete_agent_deletes_sessions_of_an_agent_that_does_not_exist(
        self, db: Db
    ) -> None:
        """The answer is about the agent, False here, and its sessions are deleted all the same."""
        # agent_name is not a foreign key: sessions may precede their agent or outlive it, and no cascade removes them.
        make_session(db)

        deleted = db.delete_agent("support-bot")

        assert deleted is False
        assert db.get_session("s1") is None
