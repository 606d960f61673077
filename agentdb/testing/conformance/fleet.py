"""Calls of a fleet of runners: claims, heartbeats of many, conditions, lists and counts."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import product
from typing import Any

import pytest

from agentdb.interface import Db, SandboxState, SessionStatus
from agentdb.testing.conformance.subject import (
    IDS,
    Rewrite,
    Subject,
    instant,
    make_sandbox,
    make_session,
)

FINISHED = ("ended", "error", "stopped")
AN_HOUR = timedelta(hours=1)


def _on_runner(
    db: Db,
    rewrite: Rewrite,
    id: str,
    runner_id: str | None,
    seconds: float = 0,
    **values: str,
) -> None:
    make_session(db, id)
    rewrite(
        "sessions", id, runner_id=runner_id, last_active_at=instant(seconds), **values
    )


def _two_sandboxes_a_runner(db: Db, rewrite: Rewrite) -> None:
    """Sessions of r1, of r2 and of no runner have two sandboxes each; of r1's, sb3 is cold."""
    for number, runner in enumerate(("r1", "r2", None)):
        make_session(db, f"s{number}", tenant_id=f"tenant {number}")
        rewrite("sessions", f"s{number}", runner_id=runner)
    for number in range(6):
        id = f"sb{number}"
        make_sandbox(db, id, session_id=f"s{number % 3}")
        state = "cold" if id == "sb3" else "running"
        created_at = instant(number)
        rewrite("sandboxes", id, state=state, created_at=created_at)
        rewrite("sandboxes", id, last_used_at=instant())
    make_sandbox(db, "nobody's")


def _sandboxes_of_every_kind(db: Db, rewrite: Rewrite) -> None:
    """A sandbox for each id; four at a time are created at the same instant."""
    for number, id in enumerate(IDS):
        make_sandbox(db, id, f"agent-{number % 2}", session_id=f"s{number % 4}")
        state = ("cold", "warm", "running")[number % 3]
        rewrite("sandboxes", id, state=state, created_at=instant(number // 4))


def _is(value: str | None, wanted: Any) -> bool:
    return wanted is None or value in ([wanted] if isinstance(wanted, str) else wanted)


def _paged(list_page: Callable[..., list[Any]], *, by_cursor: bool) -> list[Any]:
    paged: list[Any] = []
    while page := list_page(
        limit=2,
        before=(paged[-1].cursor if by_cursor else paged[-1]) if paged else None,
    ):
        paged += page
    return paged


class FleetContract(Subject):
    # -- claims of sessions

    def test_a_session_that_nobody_has_is_claimed_once(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        _on_runner(db, rewrite, "s1", None, status="active")

        claimed = db.claim_session("s1", "r1")

        assert claimed is not None
        assert claimed == db.get_session("s1")
        assert (claimed.runner_id, claimed.status) == ("r1", "active")
        assert claimed.last_active_at > instant()
        assert db.claim_session("s1", "r2") is None
        assert db.claim_session("s1", "r2", silent_for=AN_HOUR) is None
        assert db.get_session("s1") == claimed

    def test_a_runner_can_claim_what_it_has(self, db: Db, rewrite: Rewrite) -> None:
        _on_runner(db, rewrite, "s1", "r1", status="active")

        claimed = db.claim_session("s1", "r1")

        assert claimed is not None
        assert claimed.last_active_at > instant()

    def test_a_paused_session_can_be_claimed_and_stays_paused(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        _on_runner(db, rewrite, "s1", "r1", status="paused")

        claimed = db.claim_session("s1", "r2")

        assert claimed is not None
        assert (claimed.runner_id, claimed.status) == ("r2", "paused")

    def test_a_paused_session_is_resumed_once_by_a_claim_that_sets_it_active(
        self, db: Db
    ) -> None:
        make_session(db)
        db.update_session_status("s1", "paused")

        def resume(runner_id: str) -> Callable[[Db], bool]:
            def work(inside: Db) -> bool:
                return inside.claim_session(
                    "s1", runner_id
                ) is not None and inside.update_session_status(
                    "s1", "active", only_if="paused"
                )

            return work

        assert [db.run_transaction(resume(runner)) for runner in ("r1", "r2")] == [
            True,
            False,
        ]
        session = db.get_session("s1")
        assert session is not None
        assert (session.runner_id, session.status) == ("r1", "active")

    @pytest.mark.parametrize("status", FINISHED)
    def test_a_finished_session_is_not_claimed(
        self, db: Db, rewrite: Rewrite, status: str
    ) -> None:
        _on_runner(db, rewrite, "s1", None, status=status)
        before = db.get_session("s1")

        assert db.claim_session("s1", "r1") is None
        assert db.claim_session("s1", "r1", silent_for=timedelta(0)) is None
        assert db.get_session("s1") == before

    def test_a_session_that_is_not_there_is_not_claimed(self, db: Db) -> None:
        assert db.claim_session("s1", "r1") is None

    @pytest.mark.parametrize("status", ["active", "starting", "of a newer server"])
    def test_a_silent_session_of_another_runner_is_claimed_by_one(
        self, db: Db, rewrite: Rewrite, status: str
    ) -> None:
        _on_runner(db, rewrite, "s1", "r1", status=status)
        assert db.claim_session("s1", "r2") is None
        assert db.claim_session("s1", "r2", silent_for=timedelta(days=36_500)) is None

        claimed = db.claim_session("s1", "r2", silent_for=AN_HOUR)

        assert claimed is not None
        assert (claimed.runner_id, claimed.status) == ("r2", status)
        assert db.claim_session("s1", "r3", silent_for=AN_HOUR) is None

    def test_a_claim_never_moves_last_active_at_backwards(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        make_session(db)
        later = datetime.now(UTC).replace(microsecond=0) + AN_HOUR
        rewrite("sessions", "s1", last_active_at=later)

        claimed = db.claim_session("s1", "r1")

        assert claimed is not None
        assert claimed.last_active_at == later

    def test_silent_sessions_are_the_live_ones_longest_silent_first(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        for id in IDS[::-1]:
            _on_runner(db, rewrite, id, "r1", -1, status="active")
        _on_runner(db, rewrite, "starting", None, -2, status="starting")
        _on_runner(db, rewrite, "as old", None, 0, status="active")
        for status in {*SessionStatus} - {"active", "starting"}:
            _on_runner(db, rewrite, f"is {status}", "r1", -3, status=status.value)
        make_session(db, "of another tenant", tenant_id="other")
        rewrite("sessions", "of another tenant", last_active_at=instant(-0.000001))

        silent = db.get_silent_sessions(instant())

        assert [session.id for session in silent] == [
            "starting",
            *IDS,
            "of another tenant",
        ]
        assert silent[0] == db.get_session("starting")
        assert db.get_silent_sessions(instant(), limit=3) == silent[:3]
        assert db.get_silent_sessions(instant(-2)) == []

    # -- heartbeats

    def test_touch_session_of_another_runner_is_false_and_touches_nothing(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        _on_runner(db, rewrite, "s1", "r2")
        before = db.get_session("s1")

        assert db.touch_session("s1", runner_id="r1") is False
        assert db.touch_session("s2", runner_id="r1") is False
        assert db.get_session("s1") == before
        assert db.touch_session("s1", runner_id="r2") is True
        assert db.get_session("s1") != before

    def test_touch_sessions_returns_those_there_are_in_the_order_given_each_once(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        for id in IDS:
            _on_runner(db, rewrite, id, "r1")
        _on_runner(db, rewrite, "not asked for", "r1")

        assert db.touch_sessions(["nobody", "é", "a", "é", "10", "😀"]) == [
            "é",
            "a",
            "10",
            "😀",
        ]

        touched = {
            session.id
            for session in db.list_sessions()
            if session.last_active_at > instant()
        }
        assert touched == {"é", "a", "10", "😀"}

    def test_touch_sessions_of_a_runner_returns_what_it_still_has(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        _on_runner(db, rewrite, "s1", "r1")
        _on_runner(db, rewrite, "s2", "r2")
        _on_runner(db, rewrite, "s3", None)
        lost = [db.get_session("s2"), db.get_session("s3")]

        assert db.touch_sessions(
            {"s1": None, "s2": None, "s3": None, "s4": None}.keys(), runner_id="r1"
        ) == ["s1"]
        assert [db.get_session("s2"), db.get_session("s3")] == lost

    def test_touch_sandboxes_returns_those_there_are_in_the_order_given(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        for id in ("sb1", "sb2", "sb3"):
            make_sandbox(db, id)
            rewrite("sandboxes", id, last_used_at=instant())

        assert db.touch_sandboxes(("sb3", "nobody", "sb1", "sb3")) == ["sb3", "sb1"]

        touched = {
            sandbox.id
            for sandbox in db.list_sandboxes()
            if sandbox.last_used_at > instant()
        }
        assert touched == {"sb1", "sb3"}

    def test_all_that_one_call_touches_have_one_time(self, db: Db) -> None:
        for number in range(3):
            make_session(db, f"s{number}")
            make_sandbox(db, f"sb{number}")

        db.touch_sessions(["s2", "s0", "s1"])
        db.touch_sandboxes(["sb2", "sb0", "sb1"])

        assert len({session.last_active_at for session in db.list_sessions()}) == 1
        assert len({sandbox.last_used_at for sandbox in db.list_sandboxes()}) == 1
        assert db.bulk_pause_active_sessions() == 3
        assert len({session.last_active_at for session in db.list_sessions()}) == 1

    def test_ten_thousand_are_touched_at_once(self, db: Db) -> None:
        make_session(db, "s9999")
        make_sandbox(db, "sb9999")

        assert db.touch_sessions([f"s{number}" for number in range(10_000)]) == [
            "s9999"
        ]
        assert db.touch_sandboxes([f"sb{number}" for number in range(10_000)]) == [
            "sb9999"
        ]

    # -- conditions

    def test_a_status_is_set_only_if_it_is_one_of_those(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        make_session(db)
        rewrite("sessions", "s1", last_active_at=instant())

        assert db.update_session_status("s1", "paused", only_if="active") is False
        assert (
            db.update_session_status("s1", "paused", only_if=["active", "ended"])
            is False
        )
        assert db.update_session_status("s2", "paused", only_if="starting") is False
        unchanged = db.get_session("s1")
        assert unchanged is not None
        assert (unchanged.status, unchanged.last_active_at) == ("starting", instant())
        assert (
            db.update_session_status(
                "s1", "active", only_if={SessionStatus.STARTING, "paused"}
            )
            is True
        )
        changed = db.get_session("s1")
        assert changed is not None
        assert changed.status == "active"
        assert changed.last_active_at > instant()

    def test_a_state_is_set_only_if_it_is_one_of_those(self, db: Db) -> None:
        make_sandbox(db)

        assert db.update_sandbox_state("sb1", "cold", only_if="warm") is False
        assert db.update_sandbox_state("sb2", "cold", only_if="warming") is False
        assert (
            db.update_sandbox_state(
                "sb1", "warm", only_if=(SandboxState.WARMING, "cold")
            )
            is True
        )
        sandbox = db.get_sandbox("sb1")
        assert sandbox is not None
        assert sandbox.state == "warm"

    def test_a_runner_is_set_only_if_that_one_has_it(self, db: Db) -> None:
        make_session(db)

        assert db.update_session_runner("s1", "r1", only_if="r2") is False
        assert db.update_session_runner("s1", "r1", only_if=None) is True
        assert db.update_session_runner("s1", "r2", only_if=None) is False
        assert db.update_session_runner("s1", None, only_if="r2") is False
        assert db.update_session_runner("s1", None, only_if="r1") is True
        session = db.get_session("s1")
        assert session is not None
        assert session.runner_id is None

    @pytest.mark.parametrize("state", ["cold", "warm", "waiting"])
    def test_eviction_takes_only_what_was_last_used_before(
        self, db: Db, rewrite: Rewrite, state: str
    ) -> None:
        make_sandbox(db)
        rewrite("sandboxes", "sb1", state=state, last_used_at=instant())

        for call in (db.get_best_eviction_candidate, db.claim_eviction_candidate):
            assert call(unused_since=instant()) is None
        best = db.get_best_eviction_candidate(unused_since=instant(0.000001))
        assert best == db.get_sandbox("sb1")
        assert db.claim_eviction_candidate(unused_since=instant(0.000001)) == best

    def test_eviction_goes_on_to_the_next_state_if_the_first_was_used_since(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        for id, state, seconds in (("sb1", "cold", 1), ("sb2", "waiting", -1)):
            make_sandbox(db, id)
            rewrite("sandboxes", id, state=state, last_used_at=instant(seconds))

        best = db.get_best_eviction_candidate(unused_since=instant())

        assert best is not None
        assert best.id == "sb2"
        assert db.claim_eviction_candidate(unused_since=instant()) == best

    # -- a warm pool

    def test_a_warm_sandbox_is_claimed_once_the_least_recently_used_first(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        for id in [*IDS[::-1], "older"]:
            make_sandbox(db, id)
            rewrite(
                "sandboxes",
                id,
                state="warm",
                last_used_at=instant(-1 if id == "older" else 0),
            )

        claimed = db.claim_warm_sandbox("support-bot", "s1")

        assert claimed is not None
        assert claimed == db.get_sandbox("older")
        assert (claimed.state, claimed.session_id) == ("waiting", "s1")
        assert claimed.last_used_at > instant()
        others = []
        while sandbox := db.claim_warm_sandbox("support-bot", "s2"):
            others.append(sandbox.id)
        assert others == IDS

    def test_a_sandbox_that_is_not_in_the_pool_is_not_claimed(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        for state in {*SandboxState} - {"warm"}:
            make_sandbox(db, f"is {state}")
            rewrite("sandboxes", f"is {state}", state=state.value)
        for id, values in (
            ("has a session", {"session_id": "s0"}),
            ("another's", {"tenant_id": "acme"}),
        ):
            make_sandbox(db, id, **values)
            rewrite("sandboxes", id, state="warm")
        make_sandbox(db, "of another agent", "another-bot")
        rewrite("sandboxes", "of another agent", state="warm")

        assert db.claim_warm_sandbox("support-bot", "s1") is None
        found = [
            db.claim_warm_sandbox("support-bot", "s1", "acme"),
            db.claim_warm_sandbox("another-bot", "s1"),
        ]
        assert [sandbox and sandbox.id for sandbox in found] == [
            "another's",
            "of another agent",
        ]

    # -- lists and counts

    def test_sessions_are_listed_by_status_and_runner_in_pages(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        for number, id in enumerate(IDS):
            status = ("active", "paused", "ended")[number % 3]
            _on_runner(db, rewrite, id, "r1" if number % 2 else "r2", status=status)
            rewrite("sessions", id, created_at=instant(number // 4))
        everything = db.list_sessions()

        statuses: list[Any] = [
            "active",
            ("active",),
            ("paused", "active"),
            {"ended", "paused", "active"},
        ]
        for status, runner_id in product(statuses, (None, "r1")):
            wanted = [
                s
                for s in everything
                if _is(s.status, status) and _is(s.runner_id, runner_id)
            ]
            list_page = partial(db.list_sessions, status=status, runner_id=runner_id)
            assert _paged(list_page, by_cursor=True) == list_page() == wanted
        assert (
            db.list_sessions(status="starting")
            == db.list_sessions(runner_id="r3")
            == []
        )

    def test_sandboxes_of_a_tenant_are_listed_newest_first(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        _sandboxes_of_every_kind(db, rewrite)
        make_sandbox(db, "of another tenant", tenant_id="other")

        assert [sandbox.id for sandbox in db.list_sandboxes()] == sorted(
            IDS, key=lambda id: (IDS.index(id) // 4, id), reverse=True
        )
        assert [sandbox.id for sandbox in db.list_sandboxes("other")] == [
            "of another tenant"
        ]

    def test_sandboxes_are_listed_by_state_agent_and_session_in_pages(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        _sandboxes_of_every_kind(db, rewrite)
        make_sandbox(db, "of another tenant", tenant_id="other")
        everything = db.list_sandboxes()

        states: list[Any] = [None, "cold", ("cold", "running")]
        for state, agent, session_id in product(
            states, (None, "agent-1"), (None, "s1")
        ):
            wanted = [s for s in everything if _is(s.state, state)]
            wanted = [s for s in wanted if _is(s.agent_name, agent)]
            wanted = [s for s in wanted if _is(s.session_id, session_id)]
            list_page = partial(
                db.list_sandboxes, state=state, agent=agent, session_id=session_id
            )
            assert _paged(list_page, by_cursor=False) == list_page() == wanted

    def test_a_page_begins_after_a_cursor_as_after_its_record(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        for id in ("a", "b,c", "é 😀?&"):
            make_session(db, id)
            rewrite("sessions", id, created_at=instant(0.5))
        first, second, third = db.list_sessions()

        assert first.cursor == "2026-03-01T12:00:00.500000Z,é 😀?&"
        assert db.list_sessions(before=first.cursor) == [second, third]
        assert db.list_sessions(before=second.cursor) == [third]
        assert db.list_sessions(before="2026-03-01T13:00:00.5+01:00,b,c") == [third]

    def test_sandboxes_of_a_runner_are_those_whose_session_is_on_it(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        _two_sandboxes_a_runner(db, rewrite)

        assert [sandbox.id for sandbox in db.list_sandboxes_by_runner("r1")] == [
            "sb3",
            "sb0",
        ]
        assert db.list_sandboxes_by_runner("r3") == []

    def test_the_sandboxes_of_a_runner_that_are_not_cold_are_marked_cold(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        _two_sandboxes_a_runner(db, rewrite)
        before = {sandbox.id: sandbox for sandbox in db.list_sandboxes()}

        assert db.mark_sandboxes_cold_by_runner("r1") == 1
        assert db.mark_sandboxes_cold_by_runner("r1") == 0
        assert db.mark_sandboxes_cold_by_runner("r3") == 0

        after = {sandbox.id: sandbox for sandbox in db.list_sandboxes()}
        assert after.pop("sb0") == replace(before.pop("sb0"), state="cold")
        assert after == before

    def test_sessions_and_sandboxes_are_counted(self, db: Db) -> None:
        statuses: list[Any] = ["active", "active", "paused", "ended"]
        for number, status in enumerate(statuses):
            make_session(db, f"s{number}", f"agent-{number % 2}", tenant_id="acme")
            db.update_session_status(f"s{number}", status)
            make_sandbox(db, f"sb{number}", tenant_id=f"tenant {number}")
        db.update_sandbox_state("sb0", "cold")

        assert [db.count_sessions(), db.count_sessions("acme")] == [0, 4]
        assert db.count_sessions("acme", agent="agent-1") == 2
        assert db.count_sessions("acme", status="active") == 2
        assert db.count_sessions("acme", status=["active", "paused", "active"]) == 3
        assert (
            db.count_sessions("acme", agent="agent-0", status=("active", "ended")) == 1
        )
        assert [
            db.count_sandboxes(state="cold"),
            db.count_sandboxes(state=["cold", "warming"]),
        ] == [1, 4]

    def test_delete_session_deletes_that_one_and_leaves_its_sandbox(
        self, db: Db
    ) -> None:
        make_session(db)
        make_session(db, "s2")
        make_sandbox(db, session_id="s1")

        assert db.delete_session("s1") is True

        assert db.get_session("s1") is None
        assert db.delete_session("s1") is False
        assert (db.get_session("s2"), db.get_sandbox("sb1")) != (None, None)
