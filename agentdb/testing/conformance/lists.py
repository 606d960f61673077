"""Lists of sessions and of sandboxes: order, filters and pages, which are the same for both; and counts."""

from __future__ import annotations

from collections.abc import Mapping
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


def _fits(id: str, wanted: tuple[Any, ...]) -> bool:
    """Return whether each word of the id is what is wanted of its column, or one of that; None is anything."""
    words = zip(id.split(), wanted, strict=True)
    return all(any_of is None or word in any_of for word, any_of in words)


class ListContract(Subject):
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
            expected = [row for row in everything if _fits(row.id, wanted)]

            listed = kind.page(**filters)
            paged = _paged(kind, 2, **filters)

            assert listed == expected, filters
            assert paged == expected, filters

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
    def test_pages_of_any_size_are_the_list_newest_first_and_have_each_row_once(
        self, kind: Kind, size: int
    ) -> None:
        """Rows are in the order of their instants, however these are written, and equals by id, wherever a page ends.

        SQLite stores texts: "12:00:01" and "12:00:00.500000" sort as their instants only in one format for all.
        ``before`` has to compare (created_at, id) as a pair: by the instant alone, the rest of a tie is skipped.
        """
        # Compared by milliseconds or seconds, each of the first three would be among rows with higher ids.
        ages = {
            "0 newest": 1.000001,
            "after half a second": 0.5,
            "after a microsecond": 0.000001,
            "new": 1,
            "new-a": 1,
            "new-Z": 1,
            "old": -1,
        }
        _create(kind, dict.fromkeys(IDS, 0.0) | ages)
        kind.make("of another tenant", tenant_id="other")

        rows = _paged(kind, size)

        assert ids(rows) == [
            "0 newest",
            "new-a",
            "new-Z",
            "new",
            "after half a second",
            "after a microsecond",
            *IDS[::-1],
            "old",
        ]
        assert rows == kind.page() == kind.page(limit=2**63 - 1)
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

    def test_a_list_goes_on_after_a_record_that_is_deleted_or_of_another_tenant(
        self, kind: Kind
    ) -> None:
        """The place is in the record: an implementation that looks its row up first would end the list here.

        It grants nothing: a cursor comes back from a client, who may send any.
        """
        _create(kind, {"a": 0, "b": 0, "c": 0})
        _, b, a = kind.page()
        theirs = kind.make("bb", tenant_id="other", created_at=instant())

        kind.delete("b")

        assert kind.page(before=b) == [a]
        assert kind.page(before=theirs) == [a]
