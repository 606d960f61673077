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
    Rows,
    Subject,
    drained,
    ids,
    instant,
    make_sandbox,
    make_session,
    sandbox_of,
    session_of,
)

FINISHED = ("ended", "error", "stopped")
AN_HOUR = timedelta(hours=1)

SIGNS_OF_LIFE: list[tuple[Any, ...]] = [
    ("update_session_status", "s1", "active"),
    ("update_session_sandbox", "s1", "sb2"),
    ("update_session_runner", "s1", "r1"),
    ("claim_session", "s1", "r1"),
    ("touch_session", "s1"),
    ("touch_sessions", ["s1"]),
    ("bulk_pause_active_sessions",),
    ("touch_sandbox", "sb1"),
    ("touch_sandboxes", ["sb1"]),
    ("claim_warm_sandbox", "support-bot", "s1"),
]


def _claimed(db: Db, runner_id: str, **options: Any) -> Any:
    """Claim s1 for the runner, and return it: the claim must succeed, and return what is stored."""
    claimed = db.claim_session("s1", runner_id, **options)
    assert claimed is not None, f"{runner_id} was refused a session that it may have"
    assert claimed == db.get_session("s1")
    assert claimed.runner_id == runner_id
    return claimed


def _two_sandboxes_a_runner(db: Db, rows: Rows) -> None:
    """Sessions of r1, of r2 and of no runner have two sandboxes each; of r1's, sb3 is cold."""
    for number, runner in enumerate(["r1", "r2", None]):
        rows.session(f"s{number}", tenant_id=f"tenant {number}", runner_id=runner)
    for number in range(6):
        rows.sandbox(
            f"sb{number}",
            session_id=f"s{number % 3}",
            state="cold" if number == 3 else "running",
            created_at=instant(number),
            last_used_at=instant(),
        )
    make_sandbox(db, "nobody's")


def _sandboxes_of_every_kind(db: Db, rows: Rows) -> None:
    """A sandbox for each id, four at a time created at the same instant; and one of another tenant."""
    for number, id in enumerate(IDS):
        rows.sandbox(
            id,
            f"agent-{number % 2}",
            session_id=f"s{number % 4}",
            state=("cold", "warm", "running")[number % 3],
            created_at=instant(number // 4),
        )
    make_sandbox(db, "of another tenant", tenant_id="other")


def _is(value: str | None, wanted: Any) -> bool:
    return wanted is None or value in ([wanted] if isinstance(wanted, str) else wanted)


def _paged(list_page: Callable[..., list[Any]], *, by_cursor: bool) -> list[Any]:
    paged: list[Any] = []
    before = None
    while page := list_page(limit=2, before=before):
        paged += page
        assert len(paged) <= len(IDS), "a page came twice"
        before = page[-1].cursor if by_cursor else page[-1]
    return paged


class FleetContract(Subject):
    # -- claims of sessions

    def test_a_session_that_nobody_has_is_claimed_once(
        self, db: Db, rows: Rows
    ) -> None:
        rows.session(status="active", last_active_at=instant())

        claimed = _claimed(db, "r1")

        assert claimed.status == "active"
        assert claimed.last_active_at > instant()
        # A claim that reads first and writes by id alone passes until here, and then gives the session to r2 as well.
        assert db.claim_session("s1", "r2") is None
        assert db.claim_session("s1", "r2", silent_for=AN_HOUR) is None
        assert db.get_session("s1") == claimed

    def test_a_runner_can_claim_what_it_has(self, db: Db, rows: Rows) -> None:
        # So that a claim whose answer was lost with the connection can simply be repeated.
        rows.session(runner_id="r1", status="active", last_active_at=instant())

        assert _claimed(db, "r1").last_active_at > instant()

    def test_a_paused_session_can_be_claimed_and_stays_paused(
        self, db: Db, rows: Rows
    ) -> None:
        rows.session(runner_id="r1", status="paused")

        assert _claimed(db, "r2").status == "paused"

    def test_a_paused_session_is_resumed_once_by_a_claim_that_sets_it_active(
        self, db: Db
    ) -> None:
        # A claim leaves the session paused, and so open to the next claim; only together with the status is it final.
        make_session(db)
        db.update_session_status("s1", "paused")

        def resume(inside: Db, runner_id: str) -> bool:
            claimed = inside.claim_session("s1", runner_id)
            return claimed is not None and inside.update_session_status(
                "s1", "active", only_if="paused"
            )

        assert db.run_transaction(partial(resume, runner_id="r1")) is True
        assert db.run_transaction(partial(resume, runner_id="r2")) is False
        session = session_of(db)
        assert (session.runner_id, session.status) == ("r1", "active")

    @pytest.mark.parametrize("status", FINISHED)
    def test_a_finished_session_is_not_claimed(
        self, db: Db, rows: Rows, status: str
    ) -> None:
        # Neither as nobody's nor as a silent one: its runner is silent because the work is done.
        before = rows.session(status=status, last_active_at=instant())

        assert db.claim_session("s1", "r1") is None
        assert db.claim_session("s1", "r1", silent_for=timedelta(0)) is None
        assert db.get_session("s1") == before

    @pytest.mark.parametrize("status", ["active", "starting", "of a newer server"])
    def test_a_silent_session_of_another_runner_is_claimed_by_one(
        self, db: Db, rows: Rows, status: str
    ) -> None:
        rows.session(runner_id="r1", status=status, last_active_at=instant())
        assert db.claim_session("s1", "r2") is None
        assert db.claim_session("s1", "r2", silent_for=timedelta(days=36_500)) is None

        claimed = _claimed(db, "r2", silent_for=AN_HOUR)

        assert claimed.status == status
        # The claim itself is a sign of life. Without it r3, which found the same silent session, would take it from r2.
        assert db.claim_session("s1", "r3", silent_for=AN_HOUR) is None

    def test_silent_sessions_are_the_live_ones_longest_silent_first(
        self, db: Db, rows: Rows
    ) -> None:
        for id in IDS[::-1]:
            rows.session(id, status="active", last_active_at=instant(-1))
        rows.session("starting", status="starting", last_active_at=instant(-2))
        rows.session("as old", status="active", last_active_at=instant())
        for status in {*SessionStatus} - {"active", "starting"}:
            rows.session(status, status=status.value, last_active_at=instant(-3))
        rows.session("other's", tenant_id="other", last_active_at=instant(-0.000001))

        silent = db.get_silent_sessions(instant())

        assert ids(silent) == ["starting", *IDS, "other's"]
        assert silent[0] == db.get_session("starting")
        assert db.get_silent_sessions(instant(), limit=3) == silent[:3]
        assert db.get_silent_sessions(instant(-2)) == []

    # -- heartbeats

    @pytest.mark.parametrize("call", SIGNS_OF_LIFE, ids=lambda call: call[0])
    def test_no_call_moves_the_time_of_the_last_sign_of_life_backwards(
        self, db: Db, rows: Rows, call: tuple[Any, ...]
    ) -> None:
        # A clock that was set back would otherwise make what is alive look silent, or unused, to the whole fleet.
        later = datetime.now(UTC).replace(microsecond=0) + AN_HOUR
        rows.session(last_active_at=later)
        rows.sandbox(state="warm", last_used_at=later)
        method, *arguments = call

        assert getattr(db, method)(*arguments)

        assert session_of(db).last_active_at == later
        assert sandbox_of(db).last_used_at == later

    def test_touch_session_of_another_runner_is_false_and_touches_nothing(
        self, db: Db, rows: Rows
    ) -> None:
        # This is how a runner that was cut off learns that it lost the session. A touch that went through all the same
        # would hide from the fleet that the new runner is dead.
        before = rows.session(runner_id="r2", last_active_at=instant())

        assert db.touch_session("s1", runner_id="r1") is False
        assert db.touch_session("s2", runner_id="r1") is False
        assert db.get_session("s1") == before
        assert db.touch_session("s1", runner_id="r2") is True
        assert db.get_session("s1") != before

    def test_touch_sessions_returns_those_there_are_in_the_order_given_each_once(
        self, db: Db, rows: Rows
    ) -> None:
        # One UPDATE returns its rows in any order, and an id given twice once: the implementation has to restore both.
        for id in [*IDS, "not asked for"]:
            rows.session(id, last_active_at=instant())
        touched = ["é", "a", "10", "😀"]

        assert db.touch_sessions(["nobody", "é", "a", "é", "10", "😀"]) == touched

        later = [s for s in db.list_sessions() if s.last_active_at > instant()]
        assert {*ids(later)} == {*touched}

    def test_touch_sessions_of_a_runner_returns_what_it_still_has(
        self, db: Db, rows: Rows
    ) -> None:
        rows.session("s1", runner_id="r1", last_active_at=instant())
        lost = [
            rows.session("s2", runner_id="r2", last_active_at=instant()),
            rows.session("s3", runner_id=None, last_active_at=instant()),
        ]
        asked = dict.fromkeys(["s1", "s2", "s3", "s4"]).keys()

        assert db.touch_sessions(asked, runner_id="r1") == ["s1"]
        assert [db.get_session("s2"), db.get_session("s3")] == lost

    def test_touch_sandboxes_returns_those_there_are_in_the_order_given(
        self, db: Db, rows: Rows
    ) -> None:
        for id in ("sb1", "sb2", "sb3"):
            rows.sandbox(id, last_used_at=instant())

        assert db.touch_sandboxes(("sb3", "nobody", "sb1", "sb3")) == ["sb3", "sb1"]

        later = [s for s in db.list_sandboxes() if s.last_used_at > instant()]
        assert {*ids(later)} == {"sb1", "sb3"}

    def test_all_that_one_call_touches_have_one_time(self, db: Db) -> None:
        # A time for each row would order rows that nothing orders, and tell a loop of statements from one.
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
        # A placeholder an id would be too many: SQLite may be built for 999 of them.
        make_session(db, "9999")
        make_sandbox(db, "9999")
        asked = [str(number) for number in range(10_000)]

        assert db.touch_sessions(asked) == db.touch_sandboxes(asked) == ["9999"]

    # -- conditions: compared in the statement that writes. After a read of its own, two callers could both be told True

    def test_a_status_is_set_only_if_it_is_one_of_those(
        self, db: Db, rows: Rows
    ) -> None:
        before = rows.session(last_active_at=instant())
        pause = partial(db.update_session_status, status="paused")

        assert pause("s1", only_if="active") is False
        assert pause("s1", only_if=["active", "ended"]) is False
        assert pause("s2", only_if="starting") is False
        # Not even last_active_at: a refused update does not count as a sign of life.
        assert db.get_session("s1") == before
        assert before.status == "starting"
        assert pause("s1", only_if={SessionStatus.STARTING, "ended"}) is True
        changed = session_of(db)
        assert changed.status == "paused"
        assert changed.last_active_at > instant()

    def test_a_state_is_set_only_if_it_is_one_of_those(self, db: Db) -> None:
        make_sandbox(db)
        update = db.update_sandbox_state

        assert update("sb1", "cold", only_if="warm") is False
        assert update("sb2", "cold", only_if="warming") is False
        assert update("sb1", "warm", only_if=(SandboxState.WARMING, "cold")) is True
        assert sandbox_of(db).state == "warm"

    def test_a_runner_is_set_only_if_that_one_has_it(self, db: Db) -> None:
        # only_if=None is a condition, "nobody has it", and not the absence of one; and = NULL is never true in SQL.
        make_session(db)
        update = db.update_session_runner

        assert update("s1", "r1", only_if="r2") is False
        assert update("s1", "r1", only_if=None) is True
        assert update("s1", "r2", only_if=None) is False
        assert update("s1", None, only_if="r2") is False
        assert update("s1", None, only_if="r1") is True
        assert session_of(db).runner_id is None

    @pytest.mark.parametrize("state", ["cold", "warm", "waiting"])
    def test_eviction_takes_only_what_was_last_used_before(
        self, db: Db, rows: Rows, state: str
    ) -> None:
        made = rows.sandbox(state=state, last_used_at=instant())
        now, later = instant(), instant(0.000001)

        assert db.get_best_eviction_candidate(unused_since=now) is None
        assert db.claim_eviction_candidate(unused_since=now) is None
        assert db.get_best_eviction_candidate(unused_since=later) == made
        assert db.claim_eviction_candidate(unused_since=later) == made

    def test_eviction_goes_on_to_the_next_state_if_the_first_was_used_since(
        self, db: Db, rows: Rows
    ) -> None:
        # The condition belongs into the search. Tested on the one candidate it found, it ends the search too early.
        rows.sandbox("sb1", state="cold", last_used_at=instant(1))
        waiting = rows.sandbox("sb2", state="waiting", last_used_at=instant(-1))

        assert db.get_best_eviction_candidate(unused_since=instant()) == waiting
        assert db.claim_eviction_candidate(unused_since=instant()) == waiting

    # -- a warm pool

    def test_a_warm_sandbox_is_claimed_once_the_least_recently_used_first(
        self, db: Db, rows: Rows
    ) -> None:
        for id in IDS[::-1]:
            rows.sandbox(id, state="warm", last_used_at=instant())
        rows.sandbox("older", state="warm", last_used_at=instant(-1))

        claimed = db.claim_warm_sandbox("support-bot", "s1")

        # As it is now, unlike claim_eviction_candidate(): the caller goes on to use what it gets.
        assert claimed == sandbox_of(db, "older")
        assert (claimed.state, claimed.session_id) == ("waiting", "s1")
        assert claimed.last_used_at > instant()
        others = drained(lambda: db.claim_warm_sandbox("support-bot", "s2"))
        assert ids(others) == IDS

    def test_a_sandbox_that_is_not_in_the_pool_is_not_claimed(
        self, db: Db, rows: Rows
    ) -> None:
        for state in {*SandboxState} - {"warm"}:
            rows.sandbox(f"is {state}", state=state.value)
        rows.sandbox("has a session", state="warm", session_id="s0")
        rows.sandbox("another's", tenant_id="acme", state="warm")
        rows.sandbox("of another agent", "another-bot", state="warm")

        assert db.claim_warm_sandbox("support-bot", "s1") is None
        found = [
            db.claim_warm_sandbox("support-bot", "s1", "acme"),
            db.claim_warm_sandbox("another-bot", "s1"),
        ]
        assert ids(found) == ["another's", "of another agent"]

    # -- lists and counts

    def test_sessions_are_listed_by_status_and_runner_in_pages(
        self, db: Db, rows: Rows
    ) -> None:
        for number, id in enumerate(IDS):
            rows.session(
                id,
                runner_id="r1" if number % 2 else "r2",
                status=("active", "paused", "ended")[number % 3],
                created_at=instant(number // 4),
            )
        everything = db.list_sessions()

        # Several statuses are one list in one order, not one list after another.
        statuses: list[Any] = [
            "active",
            ("active",),
            ("paused", "active"),
            {"ended", "paused", "active"},
        ]
        for status, runner_id in product(statuses, (None, "r1")):
            wanted = [s for s in everything if _is(s.status, status)]
            wanted = [s for s in wanted if _is(s.runner_id, runner_id)]
            list_page = partial(db.list_sessions, status=status, runner_id=runner_id)
            assert _paged(list_page, by_cursor=True) == list_page() == wanted
        assert db.list_sessions(status="starting") == []
        assert db.list_sessions(runner_id="r3") == []

    def test_sandboxes_of_a_tenant_are_listed_newest_first(
        self, db: Db, rows: Rows
    ) -> None:
        _sandboxes_of_every_kind(db, rows)

        assert ids(db.list_sandboxes()) == [*IDS[:7:-1], *IDS[7:3:-1], *IDS[3::-1]]
        assert ids(db.list_sandboxes("other")) == ["of another tenant"]

    def test_sandboxes_are_listed_by_state_agent_and_session_in_pages(
        self, db: Db, rows: Rows
    ) -> None:
        _sandboxes_of_every_kind(db, rows)
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
        self, db: Db, rows: Rows
    ) -> None:
        # Only the first comma of a cursor separates; an id may have more. Clients keep cursors, so the format is fixed.
        for id in ("a", "b,c", "é 😀?&"):
            rows.session(id, created_at=instant(0.5))
        first, second, third = db.list_sessions()

        assert first.cursor == "2026-03-01T12:00:00.500000Z,é 😀?&"
        assert db.list_sessions(before=first.cursor) == [second, third]
        assert db.list_sessions(before=second.cursor) == [third]
        assert db.list_sessions(before="2026-03-01T13:00:00.5+01:00,b,c") == [third]

    def test_sandboxes_of_a_runner_are_those_whose_session_is_on_it(
        self, db: Db, rows: Rows
    ) -> None:
        # The session decides, whatever the tenants of the two: here they differ.
        _two_sandboxes_a_runner(db, rows)

        assert ids(db.list_sandboxes_by_runner("r1")) == ["sb3", "sb0"]
        assert db.list_sandboxes_by_runner("r3") == []

    def test_the_sandboxes_of_a_runner_that_are_not_cold_are_marked_cold(
        self, db: Db, rows: Rows
    ) -> None:
        _two_sandboxes_a_runner(db, rows)
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
        count = partial(db.count_sessions, "acme")

        assert (db.count_sessions(), count()) == (0, 4)
        assert count(agent="agent-1") == 2
        assert count(status="active") == 2
        assert count(status=["active", "paused", "active"]) == 3
        assert count(agent="agent-0", status=("active", "ended")) == 1
        assert db.count_sandboxes(state="cold") == 1
        assert db.count_sandboxes(state=["cold", "warming"]) == 4
