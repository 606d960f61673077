"""Rows of each table: what an insert returns, agents, keys, eviction."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC
from operator import methodcaller
from typing import Any

import pytest

from agentdb import (
    AgentRecord,
    ApiKeyRecord,
    Db,
    DuplicateKeyError,
    SandboxRecord,
    SessionRecord,
)
from agentdb.testing.conformance.subject import (
    IDS,
    Kind,
    Rewrite,
    Subject,
    ids,
    instant,
    make_agent,
    make_api_key,
)

# A state, and a call that chooses among the sandboxes in it.
TAKES = [
    ("cold", methodcaller("get_best_eviction_candidate")),
    ("warm", methodcaller("get_best_eviction_candidate")),
    ("waiting", methodcaller("get_best_eviction_candidate")),
    ("warm", methodcaller("claim_warm_sandbox", "support-bot", "s1")),
]


class RowContract(Subject):
    # -- agents

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

    def test_list_agents_is_the_tenants_own_by_name_in_code_point_order(
        self, db: Db
    ) -> None:
        agents = [make_agent(db, name, tenant_id="acme") for name in IDS[::-1]]
        make_agent(db, "c", tenant_id="other")

        assert db.list_agents("acme") == agents[::-1]
        assert db.list_agents() == []

    def test_delete_agent_deletes_the_agent_of_that_tenant_only(self, db: Db) -> None:
        """Agents of another name, or of another tenant, stay as they are."""
        make_agent(db)
        other = make_agent(db, "another-bot")
        theirs = make_agent(db, tenant_id="other")

        deleted = db.delete_agent("support-bot")

        assert deleted is True
        assert db.list_agents() == [other]
        assert db.list_agents("other") == [theirs]

    # -- API keys

    def test_insert_api_key_returns_what_a_get_by_hash_returns(self, db: Db) -> None:
        key = db.insert_api_key("k1", "acme", "hash-1", "ci")

        assert key == ApiKeyRecord(
            "k1",
            "acme",
            "hash-1",
            "ci",
            key.created_at,
        )
        assert key.created_at.tzinfo is UTC
        assert db.get_api_key_by_hash("hash-1") == key

    @pytest.mark.parametrize(("id", "key_hash"), [("k1", "another"), ("k2", "hash-1")])
    def test_insert_api_key_with_a_taken_id_or_hash_raises_without_saying_the_hash(
        self, db: Db, id: str, key_hash: str
    ) -> None:
        """The message names the id, and does not say which of the two is taken: that would confirm a guessed hash."""
        # PostgreSQL's own message quotes the hash, which then stands in logs and in answers to strangers.
        key = make_api_key(db)

        with pytest.raises(DuplicateKeyError) as raised:
            make_api_key(db, id, "other", key_hash)

        message = str(raised.value)
        expected = (
            f"An API key with the id {id!r}, or with the same hash, exists already."
        )
        assert message == expected
        assert db.list_api_keys_by_tenant("acme") == [key]
        assert db.list_api_keys_by_tenant("other") == []

    def test_list_api_keys_is_of_one_tenant_newest_first_ties_by_id_descending(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        just_after = instant(0.000001)
        for id in IDS:
            make_api_key(db, id, key_hash=f"hash of {id}")
            rewrite("api_keys", id, created_at=instant())
        make_api_key(db, "new", key_hash="hash of new")
        rewrite("api_keys", "new", created_at=just_after)
        make_api_key(db, "other", "other", "hash of other")

        listed = db.list_api_keys_by_tenant("acme")

        assert ids(listed) == ["new", *IDS[::-1]]
        assert listed[0] == db.get_api_key_by_hash("hash of new")

    def test_delete_api_key_deletes_that_one(self, db: Db) -> None:
        """The first delete of a key is True, and the second, which finds nothing, is False."""
        make_api_key(db)
        make_api_key(db, "k2", key_hash="hash-2")

        deleted = db.delete_api_key("k1")

        assert deleted is True
        assert db.get_api_key_by_hash("hash-1") is None
        assert db.get_api_key_by_hash("hash-2") is not None
        assert db.delete_api_key("k1") is False

    def test_authenticate_finds_the_key_by_its_plain_form_only(self, db: Db) -> None:
        """What no key can look like is nobody's key and not an error: a request's header gets here unchecked.

        The stored hash, which a leaked backup shows, does not open the door either.
        """
        plain, key = db.issue_api_key("acme", "ci")
        others = [
            plain[:-1],
            plain.upper(),
            plain + "\0",
            key.key_hash,
            "",
            "a\ud800",
        ]

        assert db.authenticate(plain) == key
        for other in others:
            assert db.authenticate(other) is None

    # -- sessions

    def test_insert_session_starts_and_returns_what_a_get_returns(self, db: Db) -> None:
        session = db.insert_session("s1", "support-bot", "sb1", "acme")

        assert session == SessionRecord(
            "s1",
            "acme",
            "support-bot",
            "sb1",
            "starting",
            None,
            session.created_at,
            session.created_at,
        )
        assert session.created_at.tzinfo is UTC
        assert db.get_session("s1") == session

    # -- sandboxes

    def test_insert_sandbox_warms_and_returns_what_a_get_returns(self, db: Db) -> None:
        sandbox = db.insert_sandbox(
            "sb1",
            "support-bot",
            "/tmp/sb1",
            "s1",
            "acme",
        )

        assert sandbox == SandboxRecord(
            "sb1",
            "acme",
            "s1",
            "support-bot",
            "warming",
            "/tmp/sb1",
            sandbox.created_at,
            sandbox.created_at,
        )
        assert sandbox.created_at.tzinfo is UTC
        assert db.get_sandbox("sb1") == sandbox

    # -- eviction

    @pytest.mark.parametrize(("state", "call"), TAKES)
    def test_the_least_recently_used_is_taken_first_then_the_lowest_id(
        self,
        db: Db,
        sandboxes: Kind,
        state: str,
        call: Callable[[Db], Any],
    ) -> None:
        """A microsecond decides before the id does."""
        just_after = instant(0.000001)
        for id in IDS[::-1]:
            sandboxes.make(
                id,
                state=state,
                last_used_at=instant(),
            )
        sandboxes.make(
            "0 is later",
            state=state,
            last_used_at=just_after,
        )

        for id in [*IDS, "0 is later"]:
            assert call(db).id == id
            db.delete_sandbox(id)
        assert call(db) is None
