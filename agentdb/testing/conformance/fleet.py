"""Calls of a fleet of runners: claims, signs of life, conditions, and a warm pool."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from functools import partial
from itertools import cycle
from typing import Any

import pytest

from agentdb.interface import Db, SandboxState, SessionStatus
from agentdb.testing.conformance.subject import (
    IDS,
    Kind,
    Rows,
    Subject,
    ids,
    instant,
    make_agent,
    make_session,
    method_of,
    run,
    sandbox_of,
    session_of,
)

FINISHED = ("ended", "error", "stopped")
AN_HOUR = timedelta(hours=1)

# Calls that say that the session s1, on the runner r1, is alive; and calls that use the warm sandbox sb1.
SIGNS_OF_LIFE: list[tuple[Any, ...]] = [
    ("update_session_status", "s1", "active"),
    ("update_session_sandbox", "s1", "sb2"),
    ("update_session_runner", "s1", "r1"),
    ("claim_session", "s1", "r1"),
    ("touch_session", "s1"),
    ("touch_sessions", ["s1"]),
    ("bulk_pause_active_sessions",),
    ("bulk_pause_sessions_by_runner", "r1"),
]
USES: list[tuple[Any, ...]] = [
    ("touch_sandbox", "sb1"),
    ("touch_sandboxes", ["sb1"]),
    ("claim_warm_sandbox", "support-bot", "s1"),
]


# The call, the column that it sets, and values of it.
UPDATES: list[tuple[str, str, list[Any]]] = [
    ("update_session_status", "status", [*SessionStatus, *map(str, SessionStatus)]),
    ("update_session_sandbox", "sandbox_id", ["sb2"]),
    ("update_session_runner", "runner_id", ["r2", None]),
    ("update_sandbox_state", "state", [*SandboxState, *map(str, SandboxState)]),
    ("update_sandbox_session", "session_id", ["s2", None]),
]
# The call, the status or state of a new row, and others.
CONDITIONS: list[tuple[str, str, list[str]]] = [
    ("update_session_status", SessionStatus.STARTING, ["paused", "active"]),
    ("update_sandbox_state", SandboxState.WARMING, ["warm", "cold"]),
]
# The call, the states of what it lists, and others.
UNTOUCHED: list[tuple[str, str, list[str], list[str]]] = [
    ("session", "get_silent_sessions", ["active", "starting"], ["paused", *FINISHED]),
    (
        "sandbox",
        "get_idle_sandboxes",
        ["waiting"],
        ["cold", "warming", "warm", "running"],
    ),
    (
        "sandbox",
        "get_cold_sandboxes",
        ["cold"],
        ["waiting", "warming", "warm", "running"],
    ),
]


def _claimed(db: Db, runner_id: str, **options: Any) -> Any:
    """Claim s1 for the runner, and return it: the claim must succeed, and return what is stored."""
    claimed = db.claim_session("s1", runner_id, **options)

    assert claimed is not None, f"{runner_id} was refused a session that it may have"
    assert claimed == db.get_session("s1")
    assert claimed.runner_id == runner_id
    return claimed


class FleetContract(Subject):
    # -- claims of sessions

    def test_a_session_that_nobody_has_is_claimed_once(self, db: Db) -> None:
        """The first claim gets the session; another runner is refused it while the first one gives signs of life."""
        make_session(db)

        claimed = _claimed(db, "r1")

        assert claimed.status == "starting"
        # A claim that reads first and writes by id alone passes until here, and then gives the session to r2 as well.
        assert db.claim_session("s1", "r2") is None
        assert db.claim_session("s1", "r2", silent_for=AN_HOUR) is None
        assert db.get_session("s1") == claimed

    def test_a_runner_can_claim_what_it_has(self, db: Db) -> None:
        # So that a claim whose answer was lost with the connection can simply be repeated.
        make_session(db)
        _claimed(db, "r1")

        _claimed(db, "r1")

    def test_a_paused_session_can_be_claimed_and_stays_paused(
        self, db: Db, rows: Rows
    ) -> None:
        """A claim changes who has a paused session, and not that it is paused."""
        rows.session(runner_id="r1", status="paused")

        claimed = _claimed(db, "r2")

        assert claimed.status == "paused"

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
        session = session_of(db)
        assert session.runner_id == "r1"
        assert session.status == "active"

    @pytest.mark.parametrize("status", FINISHED)
    def test_a_finished_session_is_not_claimed(
        self,
        db: Db,
        rows: Rows,
        status: str,
    ) -> None:
        """No claim gets a finished session, neither as nobody's nor as a silent one.

        Its runner is silent because the work is done.
        """
        before = rows.session(
            status=status,
            last_active_at=instant(),
        )

        as_nobodys = db.claim_session("s1", "r1")
        as_silent = db.claim_session("s1", "r1", silent_for=timedelta(0))

        assert as_nobodys is None
        assert as_silent is None
        assert db.get_session("s1") == before

    @pytest.mark.parametrize("status", ["active", "starting", "of a newer server"])
    def test_a_silent_session_of_another_runner_is_claimed_by_one(
        self,
        db: Db,
        rows: Rows,
        status: str,
    ) -> None:
        """A session that was silent for long enough goes to the first runner that claims it so."""
        rows.session(
            runner_id="r1",
            status=status,
            last_active_at=instant(),
        )
        a_century = timedelta(days=36_500)
        assert db.claim_session("s1", "r2") is None
        assert db.claim_session("s1", "r2", silent_for=a_century) is None

        claimed = _claimed(db, "r2", silent_for=AN_HOUR)

        assert claimed.status == status
        # The claim itself is a sign of life. Without it r3, which found the same silent session, would take it from r2.
        assert db.claim_session("s1", "r3", silent_for=AN_HOUR) is None

    @pytest.mark.parametrize(("noun", "method", "states", "others"), UNTOUCHED)
    def test_what_is_silent_or_unused_is_strictly_older_oldest_first_then_by_id(
        self,
        db: Db,
        rows: Rows,
        noun: str,
        method: str,
        states: list[str],
        others: list[str],
    ) -> None:
        """The list has the rows in these states, of all tenants, that were last active or used before the instant."""
        kind = Kind(db, rows, noun)

        def make(id: str, state: str, seconds: float) -> Any:
            columns = {kind.state: state, kind.time: instant(seconds)}
            return kind.make(id, tenant_id=f"tenant of {id}", **columns)

        for other in others:
            make(f"is {other}", other, -100)
        # The smallest difference there is: an engine that stores milliseconds, or compares them, mixes these three up.
        for id, state in zip(IDS[::-1], cycle(states)):
            make(id, state, -0.000001)
        oldest = make("z oldest", states[0], -1)
        make("as old", states[0], 0)
        make("younger", states[0], 0.000001)

        found = run(db, [method, instant()])

        assert found[0] == oldest
        assert ids(found) == ["z oldest", *IDS]

    def test_a_limit_leaves_the_longest_silent(self, db: Db, rows: Rows) -> None:
        """These of the fleet wait for a new runner longest."""
        for id, seconds in (("a", -2), ("b", -3), ("c", -1)):
            rows.session(id, last_active_at=instant(seconds))

        silent = db.get_silent_sessions(instant(), limit=2)

        assert ids(silent) == ["b", "a"]

    # -- signs of life

    @pytest.mark.parametrize("call", SIGNS_OF_LIFE, ids=method_of)
    def test_a_sign_of_life_moves_last_active_at_of_that_session_alone(
        self,
        db: Db,
        rows: Rows,
        call: tuple[Any, ...],
    ) -> None:
        """Every call that concerns a running session sets its time to now, by the clock of the database.

        A runner that only sets statuses must not be taken for a silent one.
        """
        now = make_agent(db).created_at
        rows.session(
            runner_id="r1",
            last_active_at=instant(),
        )
        other = rows.session(
            "s2",
            status="ended",
            last_active_at=instant(),
        )

        answer = run(db, call)

        assert answer
        assert session_of(db).last_active_at >= now
        assert db.get_session("s2") == other

    @pytest.mark.parametrize("call", USES, ids=method_of)
    def test_a_use_moves_last_used_at_of_that_sandbox_alone(
        self,
        db: Db,
        rows: Rows,
        call: tuple[Any, ...],
    ) -> None:
        """Every call that uses a sandbox sets its time to now, by the clock of the database."""
        now = make_agent(db).created_at
        rows.sandbox(
            state="warm",
            last_used_at=instant(),
        )
        other = rows.sandbox(
            "sb2",
            state="warm",
            last_used_at=instant(1),
        )

        answer = run(db, call)

        assert answer
        assert sandbox_of(db).last_used_at >= now
        assert db.get_sandbox("sb2") == other

    @pytest.mark.parametrize("call", SIGNS_OF_LIFE + USES, ids=method_of)
    def test_no_call_moves_the_time_of_the_last_sign_of_life_backwards(
        self,
        db: Db,
        rows: Rows,
        call: tuple[Any, ...],
    ) -> None:
        """A time that lies in the future stays as it is.

        A clock that was set back would otherwise make what is alive look silent, or unused, to the whole fleet.
        """
        now = datetime.now(UTC).replace(microsecond=0)
        later = now + AN_HOUR
        rows.session(
            runner_id="r1",
            last_active_at=later,
        )
        rows.sandbox(
            state="warm",
            last_used_at=later,
        )

        answer = run(db, call)

        assert answer
        assert session_of(db).last_active_at == later
        assert sandbox_of(db).last_used_at == later

    def test_a_runner_touches_only_what_it_still_has(self, db: Db, rows: Rows) -> None:
        """False, or an id that does not come back, is how a runner that was cut off learns that it lost the session.

        A touch that went through all the same would hide from the fleet that the new runner is dead.
        """
        rows.session("s1", runner_id="r1")
        lost = rows.session(
            "s2",
            runner_id="r2",
            last_active_at=instant(),
        )
        free = rows.session("s3", last_active_at=instant())
        # The keys of a dictionary: a collection that is neither a list nor a set.
        asked = dict.fromkeys(["s1", "s2", "s3", "s4"]).keys()

        touched = db.touch_sessions(asked, runner_id="r1")

        assert touched == ["s1"]
        for id in asked:
            assert db.touch_session(id, runner_id="r1") is (id == "s1")
        assert db.get_session("s2") == lost
        assert db.get_session("s3") == free

    def test_touching_several_returns_those_there_are_in_the_order_given_each_once(
        self, kind: Kind
    ) -> None:
        """The ids of rows that exist come back in the caller's order.

        One UPDATE returns its rows in any order, and an id given twice once: the implementation has to restore both.
        """
        long_ago = {kind.time: instant()}
        for id in [*IDS, "not asked for"]:
            kind.make(id, **long_ago)

        touched = kind.touch(["nobody", "é", "a", "é", "10", "😀"])

        assert touched == ["é", "a", "10", "😀"]
        times = kind.times()
        moved = [id for id in times if times[id] > instant()]
        assert sorted(moved) == sorted(touched)
        # One call is one instant. A time for each row would tell a loop of statements from one.
        assert len({times[id] for id in moved}) == 1

    def test_ten_thousand_are_touched_at_once(self, kind: Kind) -> None:
        # A placeholder an id would be too many: SQLite may be built for 999 of them.
        kind.make("9999")
        asked = [str(number) for number in range(10_000)]

        touched = kind.touch(asked)

        assert touched == ["9999"]

    # -- conditions: compared in the statement that writes. After a read of its own, two callers could both be told True

    @pytest.mark.parametrize(("method", "column", "values"), UPDATES)
    def test_an_update_sets_that_column_and_a_session_is_alive(
        self,
        db: Db,
        rows: Rows,
        method: str,
        column: str,
        values: list[Any],
    ) -> None:
        """One column changes, to each of its values. For a session that is a sign of life, for a sandbox no use.

        Eviction goes by the last use. A server that marks sandboxes at its start would make all of them look used.
        """
        _, noun, _ = method.split("_")
        kind = Kind(db, rows, noun)
        before = kind.make(**{kind.time: instant()})
        update = getattr(db, method)

        for value in values:
            updated = update(before.id, value)

            assert updated is True
            after = kind.get(before.id)
            time = getattr(after, kind.time)
            assert after == replace(before, **{column: value, kind.time: time})
            assert (time > instant()) is (noun == "session")
            # A record holds plain strings: a member would pickle by class and print as one, unlike a newer server's
            # value.
            assert type(getattr(after, kind.state)) is str

    @pytest.mark.parametrize(("method", "first", "others"), CONDITIONS)
    def test_a_status_or_state_is_set_only_if_it_is_one_of_those(
        self,
        db: Db,
        rows: Rows,
        method: str,
        first: str,
        others: list[str],
    ) -> None:
        """``only_if`` takes one or any collection of them, members and strings alike."""
        _, noun, _ = method.split("_")
        kind = Kind(db, rows, noun)
        before = kind.make(**{kind.time: instant()})
        new, another = others
        update = getattr(db, method)

        assert update(before.id, new, only_if=another) is False
        assert update(before.id, new, only_if=tuple(others)) is False
        assert update("missing", new, only_if=first) is False
        # Not even last_active_at: a refused update does not count as a sign of life.
        assert kind.get(before.id) == before

        assert update(before.id, new, only_if={first, another}) is True
        after = kind.get(before.id)
        assert getattr(after, kind.state) == new
        assert (getattr(after, kind.time) > instant()) is (noun == "session")

    def test_a_runner_is_set_only_if_that_one_has_it(self, db: Db) -> None:
        """``only_if=None`` is a condition, "nobody has it", and not the absence of one.

        In SQL it needs IS NULL: = NULL is never true.
        """
        make_session(db)
        update = db.update_session_runner

        assert update("s1", "r1", only_if="r2") is False
        assert update("s1", "r1", only_if=None) is True

        # r1 has it now.
        assert update("s1", "r2", only_if=None) is False
        assert update("s1", None, only_if="r2") is False
        assert update("s1", None, only_if="r1") is True

        assert session_of(db).runner_id is None

    # -- a warm pool

    def test_a_warm_sandbox_is_claimed_with_its_session(
        self, db: Db, rows: Rows
    ) -> None:
        """A claim takes the sandbox out of the pool and gives it to the session, in one step."""
        rows.sandbox(
            state="warm",
            last_used_at=instant(),
        )

        claimed = db.claim_warm_sandbox("support-bot", "s1")

        # As it is now, unlike claim_eviction_candidate(): the caller goes on to use what it gets.
        assert claimed == sandbox_of(db)
        assert claimed.state == "waiting"
        assert claimed.session_id == "s1"
        assert db.claim_warm_sandbox("support-bot", "s1") is None

    def test_a_sandbox_that_is_not_in_the_pool_is_not_claimed(
        self, db: Db, rows: Rows
    ) -> None:
        """The pool of an agent holds its own warm sandboxes, of its tenant, that have no session."""
        for state in {*SandboxState} - {"warm"}:
            rows.sandbox(f"is {state}", state=state.value)
        rows.sandbox(
            "has a session",
            state="warm",
            session_id="s0",
        )
        rows.sandbox(
            "another's",
            state="warm",
            tenant_id="acme",
        )
        rows.sandbox(
            "another agent's",
            state="warm",
            agent_name="another-bot",
        )

        ours = db.claim_warm_sandbox("support-bot", "s1")
        anothers = db.claim_warm_sandbox("support-bot", "s1", "acme")
        another_agents = db.claim_warm_sandbox("another-bot", "s1")

        assert ours is None
        assert ids([anothers, another_agents]) == ["another's", "another agent's"]
