"""Which statements lead from a live table to the wanted one, and in which order."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import replace
from typing import Any

import pytest
from django.db import connection

from agentdb.adoption.steps import ASPECTS, Step
from agentdb.errors import SchemaMismatchError
from agentdb.schema.tables import (
    Check,
    Column,
    ForeignKey,
    Key,
    Table,
)

WANTED = Table(
    name="agents",
    columns=(
        Column("id", "text", nullable=False, default=None),
        Column("name", "text", nullable=False, default=None),
        Column("version", "integer", nullable=False, default="1"),
    ),
    primary_key=Key("agents_pkey", ("id",), "primary key"),
    uniques=(Key("idx_name", ("name", "version"), "unique constraint"),),
    indexes=(Key("idx_version", ("version DESC", "id")),),
)


class SimplestStep(Step):
    """Of the simplest engine that there could be."""

    def convert(self, expressions: Mapping[str, str]) -> Iterator[str]:
        for column, expression in expressions.items():
            yield f"CONVERT {column} BY {expression}"


class StepOfManyTransactions(SimplestStep):
    is_atomic = False


def yielded(
    live: Table, sources: Mapping[str, str] | None, *, is_atomic: bool = True
) -> Iterator[str]:
    kind = SimplestStep if is_atomic else StepOfManyTransactions
    step = kind(connection, live, WANTED, sources or {})
    for aspect in ASPECTS:
        for sql in aspect(step):
            yield sql.replace('ALTER TABLE "agents" ', "").replace('"', "")


def statements(
    live: Table,
    sources: Mapping[str, str] | None = None,
    *,
    is_atomic: bool = True,
) -> list[str]:
    return list(yielded(live, sources, is_atomic=is_atomic))


def with_column(name: str, **changes: Any) -> Table:
    return replace(
        WANTED,
        columns=tuple(
            replace(column, **changes) if column.name == name else column
            for column in WANTED.columns
        ),
    )


PLAIN_UNIQUE = ("name", "version")
VERSION = WANTED.indexes[0]


@pytest.mark.parametrize(
    ("live", "expected"),
    [
        (WANTED, []),
        (with_column("version", default="2"), ["ALTER COLUMN version SET DEFAULT 1"]),
        (with_column("name", default="''"), ["ALTER COLUMN name DROP DEFAULT"]),
        (with_column("name", nullable=True), ["ALTER COLUMN name SET NOT NULL"]),
        (
            with_column("version", type="bigint"),
            ["CONVERT version BY version::integer"],
        ),
        (
            replace(
                WANTED,
                foreign_keys=(
                    ForeignKey("ours", ("name",), "t", ("a",)),
                    ForeignKey("theirs", ("note",), "t", ("a",)),
                    ForeignKey("theirs_too", ("name", "note"), "t", ("a", "b")),
                ),
                checks=(
                    Check("ours_too", "version > 0"),
                    Check("theirs_too", "note > 0"),
                    Check("name_auto_not_null", "name IS NOT NULL"),
                    Check("no_overlap", "version WITH =", "exclusion"),
                ),
            ),
            ["DROP CONSTRAINT ours", "DROP CONSTRAINT ours_too"],
        ),
        # One key, whatever it is called and whatever it is.
        (
            replace(
                WANTED,
                uniques=(Key("other", ("name", "version"), "unique constraint"),),
            ),
            ["ALTER INDEX other RENAME TO idx_name"],
        ),
        (
            replace(
                WANTED,
                uniques=(),
                indexes=(VERSION, Key("other", PLAIN_UNIQUE, "unique index")),
            ),
            ["ADD CONSTRAINT idx_name UNIQUE USING INDEX other"],
        ),
        (
            replace(
                WANTED,
                indexes=(VERSION, Key("other", PLAIN_UNIQUE, "unique index")),
            ),
            ["DROP INDEX other"],
        ),
        # The new one is there before the old one goes, so that no duplicate can come in between.
        (
            replace(
                WANTED,
                uniques=(Key("other", ("version", "name"), "unique constraint"),),
            ),
            ["ADD CONSTRAINT idx_name UNIQUE (name, version)", "DROP CONSTRAINT other"],
        ),
        (
            replace(
                WANTED,
                uniques=(
                    Key(
                        "other",
                        ("name", "version"),
                        "unique constraint",
                        options=("deferrable",),
                    ),
                ),
            ),
            ["ADD CONSTRAINT idx_name UNIQUE (name, version)", "DROP CONSTRAINT other"],
        ),
        # What has the name goes first.
        (
            replace(WANTED, indexes=(Key("idx_version", ("version",)),)),
            [
                "DROP INDEX idx_version",
                "CREATE INDEX idx_version ON agents (version DESC, id)",
            ],
        ),
        # It would stand in the way of the one whose name it has.
        (
            replace(WANTED, uniques=(), indexes=(replace(VERSION, name="idx_name"),)),
            [
                "DROP INDEX idx_name",
                "ADD CONSTRAINT idx_name UNIQUE (name, version)",
                "CREATE INDEX idx_version ON agents (version DESC, id)",
            ],
        ),
        (
            replace(WANTED, indexes=(replace(VERSION, name="mine"),)),
            ["ALTER INDEX mine RENAME TO idx_version"],
        ),
        (
            replace(
                WANTED,
                indexes=(VERSION, Key("idx_api_keys_hash", ("name",))),
            ),
            ["DROP INDEX idx_api_keys_hash"],
        ),
        # What is another's stays.
        (
            replace(
                WANTED,
                indexes=(
                    VERSION,
                    Key("by_name", ("name",)),
                    Key("some", PLAIN_UNIQUE, "unique index", condition="version > 1"),
                ),
            ),
            [],
        ),
    ],
)
def test_what_differs_is_changed_and_nothing_else(
    live: Table, expected: list[str]
) -> None:
    assert statements(live) == expected


def test_another_key_goes_in_one_statement() -> None:
    live = replace(WANTED, primary_key=Key("old", ("name",), "primary key"))

    assert statements(live) == [
        "DROP CONSTRAINT old, ADD CONSTRAINT agents_pkey PRIMARY KEY (id)"
    ]
    assert statements(replace(WANTED, primary_key=None)) == [
        "ADD CONSTRAINT agents_pkey PRIMARY KEY (id)"
    ]
    assert statements(
        replace(WANTED, primary_key=Key("old", ("id",), "primary key"))
    ) == ["ALTER INDEX old RENAME TO agents_pkey"]


def test_a_half_built_index_of_ours_goes_before_everything_else() -> None:
    live = replace(
        with_column("version", type="bigint"),
        indexes=(replace(VERSION, valid=False),),
    )

    found = statements(live)

    assert found[:2] == [
        "DROP INDEX idx_version",
        "CONVERT version BY version::integer",
    ]


def test_a_missing_column_is_added_with_its_default() -> None:
    live = replace(WANTED, columns=WANTED.columns[:2])

    assert next(yielded(live, {})) == "ADD COLUMN version integer DEFAULT 1 NOT NULL"


def test_a_column_with_a_source_is_filled_and_one_of_another_type_cast() -> None:
    live = replace(WANTED, columns=WANTED.columns[1:])

    assert next(yielded(live, {"id": "new()"})) == "ADD COLUMN id text"
    assert statements(with_column("id", nullable=True), {"id": "new()"})[0] == (
        "CONVERT id BY new()"
    )
    with pytest.raises(SchemaMismatchError, match="'agents' has no column 'id'"):
        statements(live)
    assert statements(with_column("name", type="character varying(20)"))[0] == (
        "CONVERT name BY name::text"
    )


def test_a_unique_constraint_of_cockroachdb_goes_with_its_index() -> None:
    other = Key("other", ("version", "name"), "unique constraint")
    live = replace(WANTED, uniques=(other,))

    assert statements(live, is_atomic=False)[-1] == "DROP INDEX other CASCADE"
