"""Sandboxes: states, use, eviction."""

from __future__ import annotations

from datetime import UTC, timedelta, timezone

import pytest

from agentdb import Db, DuplicateKeyError, SandboxRecord, SandboxState
from agentdb.testing.conformance.subject import (
    IDS,
    Rewrite,
    Subject,
    instant,
    make_sandbox,
)


def _sandbox(
    db: Db, rewrite: Rewrite, id: str, state: str, seconds: float = 0, **values: str
) -> None:
    make_sandbox(db, id, **values)
    rewrite("sandboxes", id, state=state, last_used_at=instant(seconds))


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

    def test_insert_sandbox_with_a_taken_id_raises(self, db: Db) -> None:
        sandbox = make_sandbox(db)

        with pytest.raises(DuplicateKeyError) as raised:
            make_sandbox(db, tenant_id="other")

        assert str(raised.value) == "A sandbox with the id 'sb1' exists already."
        assert db.get_sandbox("sb1") == sandbox

    def test_get_sandbox_returns_none_for_an_unknown_id(self, db: Db) -> None:
        make_sandbox(db)

        assert db.get_sandbox("SB1") is None

    @pytest.mark.parametrize(
        "state", [*SandboxState, *(state.value for state in SandboxState)]
    )
    def test_update_sandbox_state_leaves_last_used_at_alone(
        self, db: Db, rewrite: Rewrite, state: SandboxState
    ) -> None:
        made = make_sandbox(db)
        rewrite("sandboxes", "sb1", last_used_at=instant())

        assert db.update_sandbox_state("sb1", state) is True

        sandbox = db.get_sandbox("sb1")
        assert sandbox is not None
        assert (sandbox.state, sandbox.last_used_at, sandbox.created_at) == (
            state,
            instant(),
            made.created_at,
        )
        assert type(sandbox.state) is str

    def test_update_sandbox_session_sets_and_clears_and_leaves_last_used_at_alone(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        make_sandbox(db)
        rewrite("sandboxes", "sb1", last_used_at=instant())

        assert db.update_sandbox_session("sb1", "s1") is True
        sandbox = db.get_sandbox("sb1")
        assert sandbox is not None
        assert (sandbox.session_id, sandbox.last_used_at) == ("s1", instant())

        assert db.update_sandbox_session("sb1", None) is True
        sandbox = db.get_sandbox("sb1")
        assert sandbox is not None
        assert (sandbox.session_id, sandbox.last_used_at) == (None, instant())

    def test_updates_and_delete_of_a_sandbox_that_is_not_there_are_false(
        self, db: Db
    ) -> None:
        make_sandbox(db)

        assert db.update_sandbox_state("sb2", "cold") is False
        assert db.update_sandbox_session("sb2", "s1") is False
        assert db.touch_sandbox("sb2") is False
        assert db.delete_sandbox("sb2") is False

    def test_delete_sandbox_deletes_that_one(self, db: Db) -> None:
        make_sandbox(db)
        make_sandbox(db, "sb2")

        assert db.delete_sandbox("sb1") is True

        assert db.get_sandbox("sb1") is None
        assert db.get_sandbox("sb2") is not None
        assert db.delete_sandbox("sb1") is False

    def test_count_sandboxes_counts_all_tenants(self, db: Db) -> None:
        assert db.count_sandboxes() == 0
        make_sandbox(db, "sb1", tenant_id="acme")
        make_sandbox(db, "sb2", tenant_id="other")

        assert db.count_sandboxes() == 2

    def test_eviction_takes_cold_before_warm_before_waiting_and_nothing_else(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        _sandbox(db, rewrite, "running", "running", -100)
        _sandbox(db, rewrite, "warming", "warming", -100)
        _sandbox(db, rewrite, "newer", "Newer state", -100)
        assert db.get_best_eviction_candidate() is None

        _sandbox(db, rewrite, "waiting", "waiting", 1, tenant_id="acme")
        waiting = db.get_best_eviction_candidate()
        _sandbox(db, rewrite, "warm", "warm", 2, tenant_id="other")
        warm = db.get_best_eviction_candidate()
        _sandbox(db, rewrite, "cold", "cold", 3)
        cold = db.get_best_eviction_candidate()

        assert (waiting, warm, cold) == (
            db.get_sandbox("waiting"),
            db.get_sandbox("warm"),
            db.get_sandbox("cold"),
        )
        assert cold is not None

    @pytest.mark.parametrize("state", ["cold", "warm", "waiting"])
    def test_eviction_takes_the_least_recently_used_then_the_lowest_id(
        self, db: Db, rewrite: Rewrite, state: str
    ) -> None:
        for id in IDS[::-1]:
            _sandbox(db, rewrite, id, state)
        _sandbox(db, rewrite, "0 is later", state, 0.000001)

        evicted = []
        while sandbox := db.get_best_eviction_candidate():
            evicted.append(sandbox.id)
            db.delete_sandbox(sandbox.id)

        assert evicted == [*IDS, "0 is later"]

    @pytest.mark.parametrize(
        ("method", "state"),
        [("get_idle_sandboxes", "waiting"), ("get_cold_sandboxes", "cold")],
    )
    def test_unused_sandboxes_are_strictly_older_oldest_first_then_by_id(
        self, db: Db, rewrite: Rewrite, method: str, state: str
    ) -> None:
        for other in {*SandboxState} - {state}:
            _sandbox(db, rewrite, f"is {other}", other, -100)
        for id in IDS[::-1]:
            _sandbox(db, rewrite, id, state, -0.000001, tenant_id=f"tenant of {id}")
        _sandbox(db, rewrite, "z oldest", state, -1)
        _sandbox(db, rewrite, "as old", state, 0)
        _sandbox(db, rewrite, "younger", state, 0.000001)

        unused = getattr(db, method)(instant())

        assert [sandbox.id for sandbox in unused] == ["z oldest", *IDS]
        assert unused[0] == db.get_sandbox("z oldest")

    def test_older_than_is_an_instant_in_whatever_zone(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        _sandbox(db, rewrite, "sb1", "waiting", -1)
        zone = timezone(timedelta(hours=-5, minutes=-30))

        assert db.get_idle_sandboxes(instant().astimezone(zone)) != []
        assert db.get_idle_sandboxes(instant(-1).astimezone(zone)) == []
        assert db.get_idle_sandboxes(instant(-0.5)) != []

    def test_touch_sandbox_sets_last_used_at_of_that_one(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        made = make_sandbox(db)
        make_sandbox(db, "sb2")
        for id in ("sb1", "sb2"):
            rewrite("sandboxes", id, created_at=instant(), last_used_at=instant(1))
        other = db.get_sandbox("sb2")

        assert db.touch_sandbox("sb1") is True

        sandbox = db.get_sandbox("sb1")
        assert sandbox is not None
        assert sandbox.last_used_at >= made.last_used_at
        assert (sandbox.created_at, sandbox.state) == (instant(), "warming")
        assert db.get_sandbox("sb2") == other

    def test_mark_all_sandboxes_cold_counts_those_that_were_not_and_touches_none(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        for state in [*SandboxState, "another", "zzz", "COLD", "cold "]:
            _sandbox(db, rewrite, f"is {state}", state, tenant_id=f"tenant of {state}")

        assert db.mark_all_sandboxes_cold() == 8

        for state in [*SandboxState, "another", "zzz", "COLD", "cold "]:
            [sandbox] = db.list_sandboxes(f"tenant of {state}")
            assert (sandbox.state, sandbox.last_used_at) == ("cold", instant())
        assert db.mark_all_sandboxes_cold() == 0

    def test_a_claimed_sandbox_becomes_cold_and_a_cold_one_is_deleted(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        for number, state in enumerate(
            ("waiting", "warm", "cold", "running", "warming")
        ):
            make_sandbox(db, state)
            rewrite("sandboxes", state, state=state, last_used_at=instant(number))

        seen = []
        while True:
            best = db.get_best_eviction_candidate()
            claimed = db.claim_eviction_candidate()
            assert claimed == best
            if claimed is None:
                break
            left = db.get_sandbox(claimed.id)
            assert (left is None) == (claimed.state == "cold")
            if left is not None:
                assert left.state == "cold"
                assert left.last_used_at == claimed.last_used_at
            seen.append((claimed.id, claimed.state))

        assert seen == [
            ("cold", "cold"),
            ("warm", "warm"),
            ("warm", "cold"),
            ("waiting", "waiting"),
            ("waiting", "cold"),
        ]
