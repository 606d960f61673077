"""Lists of sessions and of sandboxes: order, filters and pages, which are the same for both; and counts."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import product
from typing import Any

import pytest

from agentdb.testing.conformance.subject import (
    IDS,
    Kind,
    Subject,
    ids,
    instant,
)

# The columns by which a list can be narrowed, and values of them. Of the first, several can be asked for.
COLUMNS = {
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
    # Four rows have one instant, so that pages of two end in the middle of them.
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
    # To an empty page, and not to a short one: a list may end where a page does.
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


def _fits(row: Any, columns: Iterable[str], wanted: Iterable[Any]) -> bool:
    """Return whether the row has in each column what is wanted there, or one of that; None is anything."""
    pairs = zip(columns, wanted, strict=True)
    return all(
        any_of is None or getattr(row, column) in any_of for column, any_of in pairs
    )


class ListContract(Subject):
    def test_a_list_is_newest_first_to_the_microsecond(self, kind: Kind) -> None:
        """Rows are in the order of the instants at which they were created, however these are written.

        SQLite stores texts: "12:00:01" and "12:00:00.500000" sort as their instants only in one format for all.
        """
        ages = {
            "e": 0,
            "b": 1,
            "d": 0.5,
            "c": 1e-6,
            "a": 1.000001,
            "f": -1,
        }
        _create(kind, ages)

        listed = kind.page()

        assert ids(listed) == ["a", "b", "d", "c", "e", "f"]
        assert kind.page(limit=2**63 - 1) == listed

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

        # A condition is one string, or any collection of them, in whatever order.
        for any_of in (
            None,
            first,
            (second,),
            [third, first],
            {first, second, third},
        ):
            wanted = (any_of, agent, owner)
            filters = dict(zip(names, wanted, strict=True))
            expected = [row for row in everything if _fits(row, columns, wanted)]

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

        assert ids(rows) == ["new-a", "new-Z", "new", *IDS[::-1], "old"]
        assert rows == kind.page()
        # After a record, or its cursor, comes the rest.
        for number, record in enumerate(rows, start=1):
            rest = rows[number:]
            assert kind.page(before=record) == rest
            assert kind.page(before=record.cursor) == rest

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
