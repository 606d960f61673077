"""Rows of each table: what an insert returns, updates, bulk pauses, retention, eviction, keys."""

from __future__ import annotations

import uuid
from collections import Counter
from dataclasses import replace
from datetime import UTC, timedelta, timezone
from typing import Any

import pytest

from agentdb import (
    AgentRecord,
    ApiKeyRecord,
    Db,
    DuplicateKeyError,
    SandboxRecord,
    SandboxState,
    SessionRecord,
    SessionStatus,
)
from agentdb.testing.conformance.subject import (
    IDS,
    Rewrite,
    Rows,
    Subject,
    drained,
    ids,
    instant,
    make_agent,
    make_api_key,
    make_session,
    run,
    sandbox_of,
)

RUNNERS = ("r1", "r2", None)


def _create_in_every_status(rows: Rows) -> None:
    """Make a session in each status for each runner, and for nobody, whose id says which."""
    # A newer server's status too: during a rolling upgrade both use one database.
    for status in [*map(str, SessionStatus), "Hibernating"]:
        for runner in RUNNERS:
            rows.session(
                f"{status} {runner}",
                tenant_id=f"tenant of {runner}",
                status=status,
                runner_id=runner,
                last_active_at=instant(),
            )


def _all_by_id(db: Db) -> dict[str, SessionRecord]:
    sessions = {}
    for runner in RUNNERS:
        for session in db.list_sessions(f"tenant of {runner}"):
            sessions[session.id] = session
    return sessions


# A state, and a call that chooses among the sandboxes in it.
TAKES: list[tuple[str, list[str]]] = [
    ("cold", ["get_best_eviction_candidate"]),
    ("warm", ["get_best_eviction_candidate"]),
    ("waiting", ["get_best_eviction_candidate"]),
    ("warm", ["claim_warm_sandbox", "support-bot", "s1"]),
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

    # -- bulk pauses

    def test_bulk_pause_by_runner_pauses_that_runners_active_and_starting_sessions(
        self, db: Db, rows: Rows
    ) -> None:
        """Those that change are counted, and their pause is a sign of life; all others stay as they are."""
        _create_in_every_status(rows)
        before = _all_by_id(db)

        count = db.bulk_pause_sessions_by_runner("r1")

        assert count == 2
        after = _all_by_id(db)
        for id in ("active r1", "starting r1"):
            running = before.pop(id)
            paused = after.pop(id)
            assert paused.status == "paused"
            assert paused.last_active_at > running.last_active_at
        assert after == before
        assert db.bulk_pause_sessions_by_runner("r1") == 0
        assert db.bulk_pause_sessions_by_runner("r3") == 0

    def test_bulk_pause_pauses_active_and_starting_sessions_of_all_runners(
        self, db: Db, rows: Rows
    ) -> None:
        """Those that change are counted, and have one new time; sessions of nobody are among them."""
        _create_in_every_status(rows)

        count = db.bulk_pause_active_sessions()

        assert count == 6
        sessions = _all_by_id(db).values()
        statuses = Counter(session.status for session in sessions)
        assert statuses == {
            "paused": 9,
            "ended": 3,
            "error": 3,
            "stopped": 3,
            "Hibernating": 3,
        }
        times = Counter(session.last_active_at for session in sessions)
        # All that were paused have the same new time.
        assert sorted(times.values()) == [6, 15]
        assert db.bulk_pause_active_sessions() == 0

    # -- retention

    def test_prune_deletes_the_finished_sessions_that_are_old_enough(
        self, db: Db, rows: Rows
    ) -> None:
        """Sessions that ended, stopped or failed before the instant are deleted, and counted."""
        for status in ("ended", "stopped", "error"):
            rows.session(
                status,
                status=status,
                last_active_at=instant(-1),
            )
        # However old: what may still run, or what only a newer server could judge, is not for deletion.
        kept = ["active", "starting", "paused", "a newer one"]
        for status in kept:
            rows.session(
                status,
                status=status,
                last_active_at=instant(-100),
            )
        rows.session(
            "at that moment",
            status="ended",
            last_active_at=instant(),
        )

        pruned = db.prune_sessions(instant(), 10)

        assert pruned == 3
        left = ids(db.list_sessions())
        assert {*left} == {*kept, "at that moment"}
        assert db.prune_sessions(instant(), 10) == 0

    def test_prune_deletes_the_longest_inactive_first_and_equals_by_id(
        self, db: Db, rows: Rows
    ) -> None:
        """The limit cuts one order for all engines, so that each deletes the same sessions."""
        for id in ("b", "B", "a", "é"):
            rows.session(
                id,
                status="ended",
                last_active_at=instant(-1),
            )
        rows.session(
            "z longest",
            status="stopped",
            last_active_at=instant(-2),
        )

        pruned = db.prune_sessions(instant(), 3)

        assert pruned == 3
        left = ids(db.list_sessions())
        assert {*left} == {"b", "é"}

    def test_prune_takes_their_cold_sandboxes_along_and_no_others(
        self, db: Db, rows: Rows
    ) -> None:
        """The cold sandboxes of the sessions that are deleted are deleted with them.

        A sandbox that is not cold may be in use, whatever its session's status says.
        """
        # Every kind of quote, for an implementation that writes the ids of the first statement into the second one.
        id = "s'\"\\ é😀\n\x1f"
        rows.session(
            id,
            status="ended",
            last_active_at=instant(-1),
        )
        make_session(db, "s2")
        rows.sandbox("gone", session_id=id, state="cold")
        rows.sandbox("warm", session_id=id, state="warm")
        rows.sandbox("another's", session_id="s2", state="cold")
        rows.sandbox("nobody's", session_id=None, state="cold")

        pruned = db.prune_sessions(instant(), 10)

        assert pruned == 1
        left = ids(db.list_sandboxes())
        assert {*left} == {"another's", "nobody's", "warm"}

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

    # -- what is unused

    def test_older_than_is_an_instant_in_whatever_zone(
        self, db: Db, rows: Rows
    ) -> None:
        """An instant means the same in every zone.

        Compared as texts, or with the zone dropped, a zone west of UTC asks about another half of the day.
        """
        sandbox = rows.sandbox(
            state="waiting",
            last_used_at=instant(-1),
        )
        zone = timezone(timedelta(hours=-5, minutes=-30))
        later = instant().astimezone(zone)
        same = instant(-1).astimezone(zone)

        assert db.get_idle_sandboxes(later) == [sandbox]
        assert db.get_idle_sandboxes(instant(-0.5)) == [sandbox]
        assert db.get_idle_sandboxes(same) == []

    def test_mark_all_sandboxes_cold_counts_those_that_were_not_and_touches_none(
        self, db: Db, rows: Rows
    ) -> None:
        """Every sandbox of every tenant becomes cold, whatever its state, and keeps the time of its last use."""
        # "COLD" and "cold " are not cold: only a comparison that folds case or pads with blanks says so. And states on
        # both sides of it in the alphabet, for a <> that was built of < and >.
        before = []
        for state in [*SandboxState, "another", "zzz", "COLD", "cold "]:
            sandbox = rows.sandbox(
                f"was {state}",
                tenant_id=f"tenant of {state}",
                state=str(state),
                last_used_at=instant(),
            )
            before.append(sandbox)

        marked = db.mark_all_sandboxes_cold()

        assert marked == 8
        for sandbox in before:
            after = sandbox_of(db, sandbox.id)
            assert after == replace(sandbox, state="cold")
        assert db.mark_all_sandboxes_cold() == 0

    # -- eviction

    def test_eviction_takes_cold_before_warm_before_waiting_and_nothing_else(
        self, db: Db, rows: Rows
    ) -> None:
        """The state decides first, and the age only within one.

        A running or warming sandbox does work, and nobody knows what a newer server's state means: these stay.
        """
        for state in ("running", "warming", "Newer state"):
            rows.sandbox(
                f"is {state}",
                state=state,
                last_used_at=instant(-100),
            )
        assert db.get_best_eviction_candidate() is None

        # Each next candidate is younger and still wins.
        for age, state in enumerate(["waiting", "warm", "cold"]):
            best = rows.sandbox(
                state,
                tenant_id=f"tenant of {state}",
                state=state,
                last_used_at=instant(age),
            )

            found = db.get_best_eviction_candidate()

            assert found == best

    @pytest.mark.parametrize(("state", "call"), TAKES)
    def test_the_least_recently_used_is_taken_first_then_the_lowest_id(
        self,
        db: Db,
        rows: Rows,
        state: str,
        call: list[str],
    ) -> None:
        """A microsecond decides before the id does."""
        just_after = instant(0.000001)
        for id in IDS[::-1]:
            rows.sandbox(
                id,
                state=state,
                last_used_at=instant(),
            )
        rows.sandbox(
            "0 is later",
            state=state,
            last_used_at=just_after,
        )

        def take() -> Any:
            sandbox = run(db, call)
            if sandbox is not None:
                db.delete_sandbox(sandbox.id)
            return sandbox

        taken = drained(take)

        assert ids(taken) == [*IDS, "0 is later"]

    def test_a_claimed_sandbox_becomes_cold_and_a_cold_one_is_deleted(
        self, db: Db, rows: Rows
    ) -> None:
        """Each claim returns the record as it was before.

        An evicter saves a sandbox's workspace at the first claim and removes it at the second. From the record as it is
        afterwards it could not tell which of the two it is to do.
        """
        warm = rows.sandbox(
            state="warm",
            last_used_at=instant(),
        )
        cold = replace(warm, state="cold")

        first = db.claim_eviction_candidate()

        assert first == warm
        assert db.get_sandbox("sb1") == cold

        second = db.claim_eviction_candidate()

        assert second == cold
        assert db.get_sandbox("sb1") is None

    def test_each_claim_takes_the_best_candidate(self, db: Db, rows: Rows) -> None:
        """Claims go on until only sandboxes that do work are left; each warm or waiting one is claimed twice."""
        for age, state in enumerate(["waiting", "warm", "cold", "running", "warming"]):
            rows.sandbox(
                state,
                state=state,
                last_used_at=instant(age),
            )

        claimed = drained(db.claim_eviction_candidate)

        states_before = [(sandbox.id, sandbox.state) for sandbox in claimed]
        assert states_before == [
            ("cold", "cold"),
            ("warm", "warm"),
            ("warm", "cold"),
            ("waiting", "waiting"),
            ("waiting", "cold"),
        ]

    @pytest.mark.parametrize("state", ["cold", "warm", "waiting"])
    def test_eviction_takes_only_what_was_last_used_before(
        self, db: Db, rows: Rows, state: str
    ) -> None:
        """``unused_since`` is exclusive: a sandbox that was used at that instant is not a candidate."""
        sandbox = rows.sandbox(
            state=state,
            last_used_at=instant(),
        )
        now = instant()
        later = instant(0.000001)

        assert db.get_best_eviction_candidate(unused_since=now) is None
        assert db.claim_eviction_candidate(unused_since=now) is None

        assert db.get_best_eviction_candidate(unused_since=later) == sandbox
        assert db.claim_eviction_candidate(unused_since=later) == sandbox

    def test_eviction_goes_on_to_the_next_state_if_the_first_was_used_since(
        self, db: Db, rows: Rows
    ) -> None:
        # The condition belongs into the search. Tested on the one candidate it found, it ends the search too early.
        rows.sandbox(
            "sb1",
            state="cold",
            last_used_at=instant(1),
        )
        waiting = rows.sandbox(
            "sb2",
            state="waiting",
            last_used_at=instant(-1),
        )

        found = db.get_best_eviction_candidate(unused_since=instant())
        claimed = db.claim_eviction_candidate(unused_since=instant())

        assert found == waiting
        assert claimed == waiting
