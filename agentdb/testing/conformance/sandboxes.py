"""Sandboxes: states, use, eviction."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, timedelta, timezone

import pytest

from agentdb import Db, SandboxRecord, SandboxState
from agentdb.testing.conformance.subject import (
    IDS,
    Rows,
    Subject,
    drained,
    ids,
    instant,
    make_sandbox,
    sandbox_of,
)


class SandboxContract(Subject):
    def test_insert_sandbox_warms_and_returns_what_a_get_returns(self, db: Db) -> None:
        sandbox = db.insert_sandbox("sb1", "support-bot", "/tmp/sb1", "s1", "acme")

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

    def test_insert_sandbox_has_no_session_and_the_default_tenant_unless_told(
        self, db: Db
    ) -> None:
        sandbox = make_sandbox(db)

        assert (sandbox.session_id, sandbox.tenant_id) == (None, "default")
        assert db.get_sandbox("sb1") == sandbox

    @pytest.mark.parametrize(
        "state", [*SandboxState, *(state.value for state in SandboxState)]
    )
    def test_update_sandbox_state_leaves_last_used_at_alone(
        self, db: Db, rows: Rows, state: SandboxState
    ) -> None:
        # Eviction goes by last_used_at. A server that marks sandboxes at its start would make all of them look used.
        made = rows.sandbox(last_used_at=instant())

        assert db.update_sandbox_state("sb1", state) is True

        sandbox = sandbox_of(db)
        assert sandbox.state == state
        assert (sandbox.last_used_at, sandbox.created_at) == (
            instant(),
            made.created_at,
        )
        # A record holds plain strings: a member would pickle by class and print as one, unlike a newer server's value.
        assert type(sandbox.state) is str

    def test_update_sandbox_session_sets_and_clears_and_leaves_last_used_at_alone(
        self, db: Db, rows: Rows
    ) -> None:
        rows.sandbox(last_used_at=instant())

        for session_id in ("s1", None):
            assert db.update_sandbox_session("sb1", session_id) is True
            sandbox = sandbox_of(db)
            assert (sandbox.session_id, sandbox.last_used_at) == (session_id, instant())

    def test_count_sandboxes_counts_all_tenants(self, db: Db) -> None:
        assert db.count_sandboxes() == 0
        make_sandbox(db, "sb1", tenant_id="acme")
        make_sandbox(db, "sb2", tenant_id="other")

        assert db.count_sandboxes() == 2

    def test_eviction_takes_cold_before_warm_before_waiting_and_nothing_else(
        self, db: Db, rows: Rows
    ) -> None:
        # The state comes first, whatever the age: each next candidate is younger and still wins. A running or warming
        # sandbox does work, and nobody knows what a newer server's state means: these are never evicted.
        for state in ("running", "warming", "Newer state"):
            rows.sandbox(f"is {state}", state=state, last_used_at=instant(-100))
        assert db.get_best_eviction_candidate() is None

        for age, state in enumerate(["waiting", "warm", "cold"]):
            tenant = f"tenant {age}"
            made = rows.sandbox(
                state, tenant_id=tenant, state=state, last_used_at=instant(age)
            )
            assert db.get_best_eviction_candidate() == made

    @pytest.mark.parametrize("state", ["cold", "warm", "waiting"])
    def test_eviction_takes_the_least_recently_used_then_the_lowest_id(
        self, db: Db, rows: Rows, state: str
    ) -> None:
        for id in IDS[::-1]:
            rows.sandbox(id, state=state, last_used_at=instant())
        rows.sandbox("0 is later", state=state, last_used_at=instant(0.000001))

        def evict() -> SandboxRecord | None:
            sandbox = db.get_best_eviction_candidate()
            if sandbox is not None:
                db.delete_sandbox(sandbox.id)
            return sandbox

        assert ids(drained(evict)) == [*IDS, "0 is later"]

    @pytest.mark.parametrize(
        ("method", "state"),
        [("get_idle_sandboxes", "waiting"), ("get_cold_sandboxes", "cold")],
    )
    def test_unused_sandboxes_are_strictly_older_oldest_first_then_by_id(
        self, db: Db, rows: Rows, method: str, state: str
    ) -> None:
        for other in {*SandboxState} - {state}:
            rows.sandbox(f"is {other}", state=other.value, last_used_at=instant(-100))
        # The smallest difference there is: an engine that stores milliseconds, or compares them, mixes these three up.
        for id in IDS[::-1]:
            rows.sandbox(
                id,
                tenant_id=f"tenant of {id}",
                state=state,
                last_used_at=instant(-0.000001),
            )
        for id, age in {"z oldest": -1, "as old": 0, "younger": 0.000001}.items():
            rows.sandbox(id, state=state, last_used_at=instant(age))

        unused = getattr(db, method)(instant())

        assert ids(unused) == ["z oldest", *IDS]
        assert unused[0] == db.get_sandbox("z oldest")

    def test_older_than_is_an_instant_in_whatever_zone(
        self, db: Db, rows: Rows
    ) -> None:
        # Compared as texts, or with the zone dropped, a zone west of UTC asks about another half of the day.
        rows.sandbox(state="waiting", last_used_at=instant(-1))
        zone = timezone(timedelta(hours=-5, minutes=-30))

        assert db.get_idle_sandboxes(instant().astimezone(zone)) != []
        assert db.get_idle_sandboxes(instant(-1).astimezone(zone)) == []
        assert db.get_idle_sandboxes(instant(-0.5)) != []

    def test_touch_sandbox_sets_last_used_at_of_that_one(
        self, db: Db, rows: Rows
    ) -> None:
        made = make_sandbox(db, "sb0")
        for id in ("sb1", "sb2"):
            rows.sandbox(id, created_at=instant(), last_used_at=instant(1))
        other = sandbox_of(db, "sb2")

        assert db.touch_sandbox("sb1") is True

        sandbox = sandbox_of(db)
        assert sandbox.last_used_at >= made.last_used_at
        assert (sandbox.created_at, sandbox.state) == (instant(), "warming")
        assert sandbox_of(db, "sb2") == other

    def test_mark_all_sandboxes_cold_counts_those_that_were_not_and_touches_none(
        self, db: Db, rows: Rows
    ) -> None:
        # "COLD" and "cold " are not cold: only a comparison that folds case or pads with blanks says so. And states on
        # both sides of it in the alphabet, for a <> that was built of < and >.
        states = [
            *(state.value for state in SandboxState),
            "another",
            "zzz",
            "COLD",
            "cold ",
        ]
        for state in states:
            tenant = f"tenant of {state}"
            rows.sandbox(state, tenant_id=tenant, state=state, last_used_at=instant())

        assert db.mark_all_sandboxes_cold() == 8

        for state in states:
            sandbox = sandbox_of(db, state)
            assert (sandbox.state, sandbox.last_used_at) == ("cold", instant())
        assert db.mark_all_sandboxes_cold() == 0

    def test_a_claimed_sandbox_becomes_cold_and_a_cold_one_is_deleted(
        self, db: Db, rows: Rows
    ) -> None:
        # An evicter saves a sandbox's workspace at the first claim and removes it at the second, so the record it gets
        # is as it was before: afterwards nobody could tell which of the two it is to do.
        for age, state in enumerate(["waiting", "warm", "cold", "running", "warming"]):
            rows.sandbox(state, state=state, last_used_at=instant(age))

        def claim() -> SandboxRecord | None:
            best = db.get_best_eviction_candidate()
            claimed = db.claim_eviction_candidate()
            assert claimed == best
            if claimed is not None:
                left = (
                    None if claimed.state == "cold" else replace(claimed, state="cold")
                )
                assert db.get_sandbox(claimed.id) == left
            return claimed

        assert [(claimed.id, claimed.state) for claimed in drained(claim)] == [
            ("cold", "cold"),
            ("warm", "warm"),
            ("warm", "cold"),
            ("waiting", "waiting"),
            ("waiting", "cold"),
        ]
