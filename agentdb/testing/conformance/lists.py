"""Lists of sessions and of sandboxes: order, filters and pages, which are the same for both; and counts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import pytest

from agentdb.interface import Db
from agentdb.testing.conformance.subject import (
    IDS,
    Kind,
    Rows,
    Subject,
    ids,
    instant,
    make_sandbox,
    make_session,
)

# The columns by which a list can be narrowed, and values of them. Of the first, several can be asked for.
COLUMNS: dict[str, dict[str, Sequence[str]]] = {
    "session": {
        "status": ["active", "paused", "ended"],
        "agent_name": ["agent-1", "agent-2"],
        "runner_id": ["r1", "r2"],
    },
    "sandbox": {
        "state": ["cold", "warm", "running"],
        "agent_name": ["agent-1", "agent-2"],
        "session_id": ["s1", "s2"],
    },
}


def _create(kind: Kind, ages: dict[str, float]) -> None:
    """Make a row for each id, created so many seconds after one instant."""
    for id, age in ages.items():
        kind.make(id, created_at=instant(age))


def _create_all(kind: Kind) -> None:
    """Make a row for each combination of what a list can be narrowed to; its id says which."""
    columns = COLUMNS[kind.noun]
    for number, values in enumerate(product(*columns.values())):
        kind.make(
            " ".join(values),
            created_at=instant(number // 4),
            **dict(zip(columns, values, strict=True)),
        )


def _paged(kind: Kind, size: int, **wanted: Any) -> list[Any]:
    """Return the rows of all pages."""
    rows: list[Any] = []
    page = kind.page(limit=size, **wanted)
    while page:
        assert len(page) <= size
        rows += page
        assert len(rows) <= 20, "a page came twice"
        page = kind.page(limit=size, before=page[-1], **wanted)
    return rows


def _is(row: Any, wanted: Any) -> bool:
    """Return whether the row, which its id describes, is of this kind, or of one of several; None is any."""
    if wanted is None:
        return True
    several = {wanted} if isinstance(wanted, str) else {*wanted}
    return not several.isdisjoint(row.id.split())


class ListContract(Subject):
    def test_a_list_is_newest_first_to_the_microsecond(self, kind: Kind) -> None:
        # SQLite stores texts: "12:00:01" and "12:00:00.500000" sort as their instants only in one format for all.
        _create(kind, {"c": 0, "a": 1, "d": 0.5, "e": 1e-6, "b": 1.000001, "f": -1})

        assert ids(kind.page()) == ["b", "a", "d", "e", "c", "f"]

    def test_rows_of_one_instant_are_listed_by_id_descending_in_code_point_order(
        self, kind: Kind
    ) -> None:
        # Without an order among equals, two pages could both hold a row, or neither of them.
        _create(kind, dict.fromkeys(IDS, 0))

        assert ids(kind.page()) == IDS[::-1]

    def test_a_list_has_the_whole_records_of_one_tenant(self, kind: Kind) -> None:
        ours = kind.make("a")
        acmes = kind.make("b", tenant_id="acme")

        assert kind.page() == [ours]
        assert kind.page("acme") == [acmes]
        assert kind.page(tenant_id="acme") == [acmes]
        assert kind.page("other") == []

    def test_a_list_has_what_all_its_filters_let_through_in_pages_too(
        self, kind: Kind
    ) -> None:
        # Several statuses are one list in one order, not one list after another.
        _create_all(kind)
        everything = kind.page()
        columns = COLUMNS[kind.noun]
        several, _, (owner, _) = columns.values()
        first, second, third = several
        arguments = [column.removesuffix("_name") for column in columns]

        for wanted in product(
            [None, first, (second,), [third, first], {first, second, third}],
            [None, "agent-1", "agent-3"],
            [None, owner],
        ):
            expected = [
                row for row in everything if all(_is(row, each) for each in wanted)
            ]
            filters = dict(zip(arguments, wanted, strict=True))
            assert kind.page(**filters) == expected
            assert _paged(kind, 2, **filters) == expected

    def test_list_sessions_takes_the_agent_as_its_second_argument(self, db: Db) -> None:
        session = make_session(db, "s1", "agent-1", tenant_id="acme")
        make_session(db, "s2", "agent-2", tenant_id="acme")

        assert db.list_sessions("acme", "agent-1") == [session]

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
    def test_pages_of_any_size_have_each_row_once_also_where_instants_are_equal(
        self, kind: Kind, size: int
    ) -> None:
        # before= has to compare (created_at, id) as a pair: by the instant alone, the rest of a tie is skipped.
        tied = dict.fromkeys(IDS, 0.0)
        _create(kind, tied | {"new": 1, "old": -1, "new-a": 1, "new-Z": 1})
        kind.make("of another tenant", tenant_id="other")

        rows = _paged(kind, size)

        assert len(rows) == 15
        assert rows == kind.page()

    def test_a_list_goes_on_after_a_record_or_its_cursor(self, kind: Kind) -> None:
        _create(kind, {"a": 0, "b": 0, "c": 1, "d": -1})
        c, b, a, d = kind.page()

        for before, after in (
            (c, [b, a, d]),
            (b, [a, d]),
            (d, []),
        ):
            assert kind.page(before=before) == after
            assert kind.page(before=before.cursor) == after

    def test_a_cursor_is_the_instant_and_the_id(self, kind: Kind) -> None:
        # Only the first comma of a cursor separates; an id may have more. Clients keep cursors, so the format is fixed.
        _create(kind, dict.fromkeys(("a", "b,c", "é 😀?&"), 0.5))
        first, second, third = kind.page()

        assert first.cursor == "2026-03-01T12:00:00.500000Z,é 😀?&"
        assert kind.page(before=second.cursor) == [third]
        assert kind.page(before="2026-03-01T13:00:00.5+01:00,b,c") == [third]

    def test_a_record_of_another_tenant_names_a_place_and_grants_nothing(
        self, kind: Kind
    ) -> None:
        # A cursor comes back from a client, who may send any.
        theirs = kind.make("z", tenant_id="other")
        ours = kind.make("a", created_at=instant())

        assert kind.page(before=theirs) == [ours]

    def test_a_list_goes_on_where_a_deleted_record_stood(self, kind: Kind) -> None:
        # So the place is in the record: an implementation that looks its row up first would end the list here.
        _create(kind, {"a": 0, "b": 0, "c": 0})
        _, b, a = kind.page()

        kind.delete("b")

        assert kind.page(before=b) == [a]

    def test_a_list_takes_the_largest_limit(self, kind: Kind) -> None:
        row = kind.make()

        assert kind.page(limit=2**63 - 1) == [row]

    # -- of a runner

    def test_sessions_of_a_runner_are_of_all_tenants_in_the_same_order(
        self, db: Db, rows: Rows
    ) -> None:
        for id in IDS:
            tenant = f"tenant of {id}"
            rows.session(
                id,
                tenant_id=tenant,
                runner_id="r1",
                created_at=instant(),
            )
        newest = rows.session("new", runner_id="r1", created_at=instant(1))
        rows.session("another's", runner_id="r2")
        rows.session("nobody's")

        listed = db.list_sessions_by_runner("r1")

        assert listed[0] == newest
        assert ids(listed) == ["new", *IDS[::-1]]
        assert db.list_sessions_by_runner("r3") == []

    def test_sandboxes_of_a_runner_are_those_whose_session_is_on_it(
        self, db: Db, rows: Rows
    ) -> None:
        # The session decides, whatever the tenants of the two: here they differ.
        _create_of_runners(rows)

        assert ids(db.list_sandboxes_by_runner("r1")) == ["new of r1", "old of r1"]
        assert db.list_sandboxes_by_runner("r3") == []

    def test_the_sandboxes_of_a_runner_that_are_not_cold_are_marked_cold(
        self, db: Db, rows: Rows
    ) -> None:
        _create_of_runners(rows)
        before = {sandbox.id: sandbox for sandbox in db.list_sandboxes()}

        assert db.mark_sandboxes_cold_by_runner("r1") == 1

        changed = before.pop("new of r1")
        after = {sandbox.id: sandbox for sandbox in db.list_sandboxes()}
        assert after.pop("new of r1") == replace(changed, state="cold")
        assert after == before
        assert db.mark_sandboxes_cold_by_runner("r1") == 0
        assert db.mark_sandboxes_cold_by_runner("r3") == 0

    # -- counts

    def test_count_sessions_counts_what_list_sessions_lists(
        self, db: Db, rows: Rows
    ) -> None:
        _create_all(Kind(db, rows, "session"))
        make_session(db, "theirs", tenant_id="other")

        assert db.count_sessions() == 12
        assert db.count_sessions("other") == 1
        assert db.count_sessions(agent="agent-1") == 6
        assert db.count_sessions(status="active") == 4
        assert db.count_sessions(status=["active", "paused", "active"]) == 8
        assert db.count_sessions(agent="agent-1", status=("active", "ended")) == 4

    def test_count_sandboxes_counts_those_of_all_tenants(
        self, db: Db, rows: Rows
    ) -> None:
        _create_all(Kind(db, rows, "sandbox"))
        make_sandbox(db, "theirs", tenant_id="other")

        assert db.count_sandboxes() == 13
        assert db.count_sandboxes(state="cold") == 4
        assert db.count_sandboxes(state=["cold", "warming", "cold"]) == 5


def _create_of_runners(rows: Rows) -> None:
    """Make a sandbox that is cold and one that is running for a session of r1, for one of r2, and for one of nobody."""
    for runner in ("r1", "r2", None):
        session = rows.session(f"s of {runner}", tenant_id="acme", runner_id=runner)
        for age, (name, state) in enumerate([("old", "cold"), ("new", "running")]):
            rows.sandbox(
                f"{name} of {runner}",
                session_id=session.id,
                state=state,
                created_at=instant(age),
                last_used_at=instant(),
            )
    rows.sandbox("without a session")
