"""Lists of sessions and of sandboxes: order, filters and pages, which are the same for both; and counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
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


def _create(kind: Kind, ages: Mapping[str, float]) -> None:
    """Make a row for each id, created so many seconds after one instant."""
    for id, age in ages.items():
        kind.make(id, created_at=instant(age))


def _create_all(kind: Kind) -> None:
    """Make a row for each combination of what a list can be narrowed to; its id says which."""
    columns = COLUMNS[kind.noun]
    combinations = product(*columns.values())
    for number, values in enumerate(combinations):
        row = dict(zip(columns, values, strict=True))
        kind.make(
            " ".join(values),
            created_at=instant(number // 4),
            **row,
        )


def _paged(kind: Kind, size: int, **wanted: Any) -> list[Any]:
    """Return the rows of all pages."""
    rows: list[Any] = []
    page = kind.page(limit=size, **wanted)
    while page:
        assert len(page) <= size
        rows += page
        assert len(rows) <= 20, "a page came twice"
        page = kind.page(
            limit=size,
            before=page[-1],
            **wanted,
        )
    return rows


def _is(row: Any, wanted: Any) -> bool:
    """Return whether the row, which its id describes, is of this kind, or of one of several; None is any."""
    if wanted is None:
        return True
    several = [wanted] if isinstance(wanted, str) else wanted
    described = row.id.split()
    return any(each in described for each in several)


def _is_all(row: Any, wanted: Iterable[Any]) -> bool:
    return all(_is(row, each) for each in wanted)


class ListContract(Subject):
    def test_a_list_is_newest_first_to_the_microsecond(self, kind: Kind) -> None:
        """Rows are in the order of the instants at which they were created, however these are written.

        SQLite stores texts: "12:00:01" and "12:00:00.500000" sort as their instants only in one format for all.
        """
        ages = {
            "c": 0,
            "a": 1,
            "d": 0.5,
            "e": 1e-6,
            "b": 1.000001,
            "f": -1,
        }
        _create(kind, ages)

        listed = kind.page()

        assert ids(listed) == ["b", "a", "d", "e", "c", "f"]
        assert kind.page(limit=2**63 - 1) == listed

    def test_rows_of_one_instant_are_listed_by_id_descending_in_code_point_order(
        self, kind: Kind
    ) -> None:
        # Without an order among equals, two pages could both hold a row, or neither of them.
        same_age = dict.fromkeys(IDS, 0)
        _create(kind, same_age)

        listed = kind.page()

        assert ids(listed) == IDS[::-1]

    def test_a_list_has_the_whole_records_of_one_tenant(self, kind: Kind) -> None:
        """The tenant is the first argument, and the default one unless it is named."""
        ours = kind.make("a")
        acmes = kind.make("b", tenant_id="acme")

        assert kind.page() == [ours]
        assert kind.page("acme") == [acmes]
        assert kind.page(tenant_id="acme") == [acmes]
        assert kind.page("other") == []

    @pytest.mark.parametrize("owned", [False, True], ids=["of any owner", "of one"])
    @pytest.mark.parametrize("agent", [None, "agent-1", "agent-3"])
    def test_a_list_has_what_all_its_filters_let_through_in_pages_too(
        self,
        kind: Kind,
        agent: str | None,
        owned: bool,
    ) -> None:
        """Filters narrow a list together, and leave its order as it is.

        Several statuses, or states, are one list in one order, not one list after another.
        """
        _create_all(kind)
        everything = kind.page()
        columns = COLUMNS[kind.noun]
        several, _agents, owners = columns.values()
        first, second, third = several
        owner = owners[0] if owned else None
        names = [column.removesuffix("_name") for column in columns]

        for any_of in (
            None,
            first,
            (second,),
            [third, first],
            {first, second, third},
        ):
            wanted = (any_of, agent, owner)
            filters = dict(zip(names, wanted, strict=True))
            expected = [row for row in everything if _is_all(row, wanted)]

            listed = kind.page(**filters)
            paged = _paged(kind, 2, **filters)

            assert listed == expected, filters
            assert paged == expected, filters

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
    def test_pages_of_any_size_have_each_row_once_also_where_instants_are_equal(
        self, kind: Kind, size: int
    ) -> None:
        """The pages are the list, in parts, wherever a page ends.

        ``before`` has to compare (created_at, id) as a pair: by the instant alone, the rest of a tie is skipped.
        """
        ages = dict.fromkeys(IDS, 0.0)
        ages |= {
            "new": 1,
            "old": -1,
            "new-a": 1,
            "new-Z": 1,
        }
        _create(kind, ages)
        kind.make("of another tenant", tenant_id="other")

        rows = _paged(kind, size)

        assert len(rows) == 15
        assert rows == kind.page()

    @pytest.mark.parametrize("number", [0, 1, 3], ids=["first", "tied", "last"])
    def test_a_list_goes_on_after_a_record_or_its_cursor(
        self, kind: Kind, number: int
    ) -> None:
        """``before`` takes the last record of a page, or its cursor, and returns what comes after it."""
        ages = {
            "a": 0,
            "b": 0,
            "c": 1,
            "d": -1,
        }
        _create(kind, ages)
        everything = kind.page()
        assert ids(everything) == ["c", "b", "a", "d"]
        record = everything[number]
        rest = everything[number + 1 :]

        after_record = kind.page(before=record)
        after_cursor = kind.page(before=record.cursor)

        assert after_record == rest
        assert after_cursor == rest

    def test_a_cursor_is_the_instant_and_the_id(self, kind: Kind) -> None:
        """Clients keep cursors, so their format is fixed: the instant in UTC, a comma, the id.

        Only the first comma separates; an id may have more. An instant in another zone is read as well.
        """
        same_age = dict.fromkeys(("a", "b,c", "é 😀?&"), 0.5)
        _create(kind, same_age)
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

        listed = kind.page(before=theirs)

        assert listed == [ours]

    def test_a_list_goes_on_where_a_deleted_record_stood(self, kind: Kind) -> None:
        """The place is in the record: an implementation that looks its row up first would end the list here."""
        _create(kind, {"a": 0, "b": 0, "c": 0})
        _, b, a = kind.page()

        kind.delete("b")

        assert kind.page(before=b) == [a]

    # -- of a runner

    def test_sessions_of_a_runner_are_of_all_tenants_in_the_same_order(
        self, db: Db, rows: Rows
    ) -> None:
        """A runner serves every tenant; its list is newest first, then by id descending, like theirs."""
        for id in IDS:
            rows.session(
                id,
                tenant_id=f"tenant of {id}",
                runner_id="r1",
                created_at=instant(),
            )
        newest = rows.session(
            "new",
            runner_id="r1",
            created_at=instant(1),
        )
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

        listed = db.list_sandboxes_by_runner("r1")

        assert ids(listed) == ["new of r1", "old of r1"]
        assert db.list_sandboxes_by_runner("r3") == []

    def test_the_sandboxes_of_a_runner_that_are_not_cold_are_marked_cold(
        self, db: Db, rows: Rows
    ) -> None:
        """Only those that change are counted, and nothing of them changes but the state."""
        _create_of_runners(rows)
        before = {sandbox.id: sandbox for sandbox in db.list_sandboxes()}

        marked = db.mark_sandboxes_cold_by_runner("r1")

        assert marked == 1
        after = {sandbox.id: sandbox for sandbox in db.list_sandboxes()}
        running = before.pop("new of r1")
        cold = after.pop("new of r1")
        assert cold == replace(running, state="cold")
        assert after == before
        assert db.mark_sandboxes_cold_by_runner("r1") == 0
        assert db.mark_sandboxes_cold_by_runner("r3") == 0

    # -- counts

    def test_count_sessions_counts_what_list_sessions_lists(
        self, db: Db, rows: Rows
    ) -> None:
        """A count is of one tenant, and narrowed as a list is; a status named twice counts once."""
        _create_all(Kind(db, rows, "session"))
        make_session(db, "theirs", tenant_id="other")

        count = db.count_sessions

        assert count() == 12
        assert count("other") == 1
        assert count(agent="agent-1") == 6
        # An agent's own are its second argument.
        assert len(db.list_sessions("default", "agent-1")) == 6
        assert count(status="active") == 4
        assert count(status=["active", "paused", "active"]) == 8
        assert count(agent="agent-1", status=("active", "ended")) == 4

    def test_count_sandboxes_counts_those_of_all_tenants(
        self, db: Db, rows: Rows
    ) -> None:
        """The machines are shared, so the count is of all; a state named twice counts once."""
        _create_all(Kind(db, rows, "sandbox"))
        make_sandbox(db, "theirs", tenant_id="other")

        count = db.count_sandboxes

        assert count() == 13
        assert count(state="cold") == 4
        assert count(state=["cold", "warming", "cold"]) == 5


def _create_of_runners(rows: Rows) -> None:
    """Make a sandbox that is cold and one that is running for a session of r1, for one of r2, and for one of nobody."""
    for runner in ("r1", "r2", None):
        session = rows.session(
            f"s of {runner}",
            tenant_id="acme",
            runner_id=runner,
        )
        rows.sandbox(
            f"old of {runner}",
            session_id=session.id,
            state="cold",
            created_at=instant(0),
            last_used_at=instant(),
        )
        rows.sandbox(
            f"new of {runner}",
            session_id=session.id,
            state="running",
            created_at=instant(1),
            last_used_at=instant(),
        )
    rows.sandbox("without a session")
