"""Calls of a fleet of runners: a claim in a transaction, what is silent or unused, updates, conditions."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from itertools import cycle
from typing import Any

import pytest

from agentdb.interface import Db, SandboxState, SessionStatus
from agentdb.testing.conformance.subject import (
    IDS,
    Kind,
    Subject,
    ids,
    instant,
    make_session,
)

# The rows, the column that an update sets, and values of it.
_UPDATES = [
    ("session", "status", [*SessionStatus, *map(str, SessionStatus)]),
    ("session", "sandbox_id", ["sb2"]),
    ("session", "runner_id", ["r2", None]),
    ("sandbox", "state", [*SandboxState, *map(str, SandboxState)]),
    ("sandbox", "session_id", ["s2", None]),
]
# The rows, the call, and the states of what it lists.
_UNTOUCHED = [
    ("session", "get_silent_sessions", ["active", "starting"]),
    ("sandbox", "get_idle_sandboxes", ["waiting"]),
    ("sandbox", "get_cold_sandboxes", ["cold"]),
]


class FleetContract(Subject):
    # -- claims of sessions

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

    @pytest.mark.parametrize(
        ("kind", "method", "states"),
        _UNTOUCHED,
        indirect=["kind"],
    )
    def test_what_is_silent_or_unused_is_strictly_older_oldest_first_then_by_id(
        self,
        db: Db,
        kind: Kind,
        method: str,
        states: list[str],
    ) -> None:
        """The list has the rows in these states, of all tenants, that were last active or used before the instant."""

        def make(id: str, state: str, seconds: float) -> Any:
            columns = {kind.state: state, kind.time: instant(seconds)}
            return kind.make(id, tenant_id=f"tenant of {id}", **columns)

        for other in {*map(str, kind.states)} - {*states}:
            make(f"is {other}", other, -100)
        # The smallest difference there is: an engine that stores milliseconds, or compares them, mixes these three up.
        for id, state in zip(IDS[::-1], cycle(states)):
            make(id, state, -0.000001)
        oldest = make("z oldest", states[0], -1)
        make("as old", states[0], 0)
        make("younger", states[0], 0.000001)

        found = getattr(db, method)(instant())

        assert found[0] == oldest
        assert ids(found) == ["z oldest", *IDS]

    def test_ten_thousand_are_touched_at_once(self, kind: Kind) -> None:
        # A placeholder an id would be too many: SQLite may be built for 999 of them.
        kind.make("9999")
        asked = [str(number) for number in range(10_000)]

        touched = kind.touch(asked)

        assert touched == ["9999"]

    @pytest.mark.parametrize(
        ("kind", "column", "values"),
        _UPDATES,
        indirect=["kind"],
    )
    def test_an_update_sets_that_column_and_a_session_is_alive(
        self,
        db: Db,
        kind: Kind,
        column: str,
        values: list[Any],
    ) -> None:
        """One column changes, to each of its values. For a session that is a sign of life, for a sandbox no use.

        Eviction goes by the last use. A server that marks sandboxes at its start would make all of them look used.
        """
        before = kind.make("x", **{kind.time: instant()})
        what = column.removesuffix("_id")
        update = getattr(db, f"update_{kind.noun}_{what}")

        for value in values:
            updated = update(before.id, value)

            assert updated is True
            after = kind.get(before.id)
            time = getattr(after, kind.time)
            assert after == replace(before, **{column: value, kind.time: time})
            assert (time > instant()) is (kind.noun == "session")
            # A record holds plain strings: a member would pickle by class and print as one, unlike a newer server's
            # value.
            assert type(getattr(after, kind.state)) is str

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

        [session] = db.list_sessions()
        assert session.runner_id is None
