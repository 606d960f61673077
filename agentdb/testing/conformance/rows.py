"""Rows of each table: what an insert returns, agents, keys, what is taken first."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from datetime import UTC
from functools import partial
from itertools import cycle
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
    make_session,
)

# Calls that take rows in these states, one after another or all at once, by the time of their last activity or use.
TAKES = [
    ("session", ["active", "starting"], methodcaller("get_silent_sessions", instant())),
    ("sandbox", ["waiting"], methodcaller("get_idle_sandboxes", instant())),
    ("sandbox", ["cold"], methodcaller("get_cold_sandboxes", instant())),
    *(
        ("sandbox", [state], methodcaller("get_best_eviction_candidate"))
        for state in ("cold", "warm", "waiting")
    ),
    ("sandbox", ["warm"], methodcaller("claim_warm_sandbox", "support-bot", "s1")),
]


class RowContract(Subject):
    # -- agents

    def test_upsert_agent_inserts_with_version_1_and_a_random_uuid(
        self, db: Db
    ) -> None:
        """A new agent has an id that nobody can guess, and was created and updated at one instant, in UTC.

        Its path may be empty: only what identifies a row must not be.
        """
        agent = db.upsert_agent("support-bot", "")

        assert uuid.UUID(agent.id).version == 4
        assert agent == AgentRecord(
            agent.id,
            "default",
            "support-bot",
            1,
            "",
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

    def test_agents_of_the_same_name_are_one_for_each_tenant(self, db: Db) -> None:
        """A name is unique within its tenant only, and a call without a tenant is of the default one."""
        # Single-tenant servers had the name as the primary key; a second tenant overwrote the first one's agent.
        ours = make_agent(db)
        acme = make_agent(db, tenant_id="acme", path="/acme")
        another = make_agent(db, "another-bot")

        assert acme.id != ours.id
        assert acme.version == 1
        assert db.get_agent("support-bot", tenant_id="acme") == acme
        assert db.get_agent("support-bot") == ours
        assert db.get_agent("support-bot", "other") is None

        assert db.delete_agent("support-bot") is True
        assert db.list_agents() == [another]
        assert db.list_agents("acme") == [acme]

    def test_list_agents_is_the_tenants_own_by_name_in_code_point_order(
        self, db: Db
    ) -> None:
        agents = [make_agent(db, name, tenant_id="acme") for name in IDS[::-1]]
        make_agent(db, "c", tenant_id="other")

        assert db.list_agents("acme") == agents[::-1]
        assert db.list_agents() == []

    # -- API keys

    def test_insert_api_key_returns_what_a_get_by_hash_returns(self, db: Db) -> None:
        key = db.insert_api_key("k1", "acme", "hash-1", "")

        assert key == ApiKeyRecord(
            "k1",
            "acme",
            "hash-1",
            "",
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

        The stored hash, which a leaked backup shows, does not open the door either, nor does a key that was deleted.
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

        db.delete_api_key(key.id)

        assert db.authenticate(plain) is None

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
            "",
            "s1",
            "acme",
        )

        assert sandbox == SandboxRecord(
            "sb1",
            "acme",
            "s1",
            "support-bot",
            "warming",
            "",
            sandbox.created_at,
            sandbox.created_at,
        )
        assert sandbox.created_at.tzinfo is UTC
        assert db.get_sandbox("sb1") == sandbox

    @pytest.mark.parametrize(("kind", "states", "call"), TAKES, indirect=["kind"])
    def test_the_longest_untouched_is_taken_first_then_the_lowest_id(
        self,
        db: Db,
        kind: Kind,
        states: list[str],
        call: Callable[[Db], Any],
    ) -> None:
        """A microsecond decides before the id does: an engine that stores or compares milliseconds mixes these up."""
        expected = [*IDS, "0 is later"]
        for id, state in zip(expected[::-1], cycle(states)):
            age = -0.000001 if id == "0 is later" else -0.000002
            columns = {kind.state: state, kind.time: instant(age)}
            kind.make(id, **columns)

        taken: list[str] = []
        while len(taken) < len(expected):
            found = call(db)
            rows = found if isinstance(found, list) else [found]
            assert rows
            for row in rows:
                taken.append(row.id)
                kind.delete(row.id)

        assert taken == expected
        assert not call(db)

    def test_ten_thousand_are_touched_at_once(self, kind: Kind) -> None:
        # A placeholder an id would be too many: SQLite may be built for 999 of them.
        kind.make("9999")
        asked = [str(number) for number in range(10_000)]

        touched = kind.touch(asked)

        assert touched == ["9999"]

    def test_each_status_or_state_is_stored_as_a_plain_string(
        self, db: Db, kind: Kind
    ) -> None:
        """A member would pickle by class and print as one, unlike a newer server's value."""
        kind.make()
        update = getattr(db, f"update_{kind.noun}_{kind.state}")

        for value in [*kind.states, *map(str, kind.states)]:
            updated = update("x", value)

            assert updated is True
            stored = getattr(kind.get("x"), kind.state)
            assert stored == value
            assert type(stored) is str

    def test_a_runner_is_set_only_if_that_one_has_it(self, db: Db) -> None:
        """``only_if=None`` is a condition, "nobody has it", and not the absence of one."""
        make_session(db)
        update = db.update_session_runner

        assert update("s1", "r1", only_if="r2") is False
        assert update("s1", "r1", only_if=None) is True
        # r1 has it now.
        assert update("s1", "r2", only_if=None) is False
        assert update("s1", "r2", only_if="r1") is True
        [session] = db.list_sessions_by_runner("r2")
        assert session == db.get_session("s1")

    def test_a_paused_session_is_resumed_once_by_a_claim_that_sets_it_active(
        self, db: Db
    ) -> None:
        """Of two runners that claim a paused session and set it active in one transaction, one gets it.

        A claim leaves the session paused, and so open to the next claim; only together with the status is it final.
        """
        make_session(db)
        db.update_session_status("s1", "paused")

        def resume(runner_id: str, inside: Db) -> bool:
            claimed = inside.claim_session("s1", runner_id)
            if claimed is None:
                return False
            return inside.update_session_status("s1", "active", only_if="paused")

        first = db.run_transaction(partial(resume, "r1"))
        second = db.run_transaction(partial(resume, "r2"))

        assert first is True
        assert second is False
        [session] = db.list_sessions()
        assert session.runner_id == "r1"
        assert session.status == "active"
