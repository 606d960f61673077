"""What SQLite says of a table itself is what reading it row by row says."""

from __future__ import annotations

import sqlite3
from pathlib import Path

import pytest

from agentdb.adoption import values
from agentdb.schema import read_tables
from tests.helpers.legacy_databases import FOLDER, opened


@pytest.mark.parametrize("stem", ["era-a", "era-b", "era-b-empty", "dirty-extra-nullable-column"])
def test_sqlite_itself_says_what_reading_row_by_row_says(tmp_path: Path, stem: str) -> None:
    path = tmp_path / "old.db"
    path.write_bytes((FOLDER / "sqlite" / f"{stem}.db").read_bytes())
    with opened(f"sqlite:///{path}") as connection:
        table = read_tables(connection)["sessions"]
        columns = [column.name for column in table.columns]

        usual = values._usual_content(connection, "sessions", table, columns)
        read = values._read(connection, "sessions", table, columns, lambda *_: None, strict=True)

    assert usual is not None
    assert usual == read


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE sessions SET created_at = '2026-02-30T10:00:00.000Z'",
        "UPDATE sessions SET created_at = '2026-02-19 24:00:00'",
        "UPDATE sessions SET created_at = '0000-02-19 10:00:00'",
        "UPDATE sessions SET agent_name = 'a' || char(0) || 'b'",
        "UPDATE sessions SET agent_name = CAST(x'ff41' AS TEXT)",
        "UPDATE sessions SET agent_name = x'41'",
    ],
)
def test_an_odd_value_is_left_to_the_reading_row_by_row(tmp_path: Path, statement: str) -> None:
    path = tmp_path / "old.db"
    path.write_bytes((FOLDER / "sqlite" / "era-b.db").read_bytes())
    connection_of_operator = sqlite3.connect(path)
    connection_of_operator.execute(f"{statement} WHERE id = (SELECT id FROM sessions LIMIT 1)")
    connection_of_operator.commit()
    connection_of_operator.close()
    with opened(f"sqlite:///{path}") as connection:
        table = read_tables(connection)["sessions"]

        assert values._usual_content(connection, "sessions", table, None) is None
