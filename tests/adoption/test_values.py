"""The database itself finds the rows that are out of the ordinary; Python reads no other."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from agentdb.adoption.obstacles import UnusableValue, too_wide
from agentdb.adoption.values import checksum, read_contents, timestamp_sources
from agentdb.schema import read_tables
from tests.helpers.legacy_databases import opened, rows

Load = Callable[[str], str]


@pytest.mark.parametrize("stem", ["era-a", "era-b", "era-b-empty"])
def test_what_the_server_wrote_is_usual(load_legacy: Load, engine: str, stem: str):
    with opened(load_legacy(stem)) as connection:
        contents, bad = read_contents(connection, read_tables(connection))
        [(total,)] = rows(connection, "SELECT count(*) FROM sessions")

    content = contents["sessions"]
    assert (content.rows, content.odd_rows, bad.total) == (total, 0, 0)
    assert all(sum(formats.values()) == total for formats in content.formats.values())


ODD = {
    "sqlite": (
        "created_at = '2026-02-30T10:00:00.000Z'",
        "created_at = '2026-02-19 24:00:00'",
        "created_at = '0000-02-19 10:00:00'",
        "created_at = '2026-02-19 10:00:00+01'",
        "agent_name = 'a' || char(0) || 'b'",
        "agent_name = CAST(x'ff41' AS TEXT)",
        "agent_name = x'41'",
    ),
    "postgresql": (
        "created_at = '2026-02-30T10:00:00.000Z'",
        "created_at = 'infinity'",
        "created_at = '19.02.2026 21:53:16 CET'",
    ),
}


@pytest.mark.parametrize(
    ("engine", "change"),
    [(engine, change) for engine, changes in ODD.items() for change in changes],
)
def test_an_odd_value_is_looked_at(load_legacy: Load, engine: str, change: str):
    with opened(load_legacy("era-b")) as connection:
        rows(
            connection,
            f"UPDATE sessions SET {change} WHERE id = (SELECT min(id) FROM sessions)",
        )
        contents, bad = read_contents(connection, read_tables(connection))

    content = contents["sessions"]
    assert content.odd_rows == 1
    unreadable = [value for value in bad.first if value.column == "created_at"]
    assert content.formats["created_at"].total() == content.rows - len(unreadable)


def test_a_checksum_tells_where_one_value_ends(load_legacy: Load, engine: str):
    sums = []
    with opened(load_legacy("era-b-empty")) as connection:
        table = read_tables(connection)["agents"]
        contents, _ = read_contents(connection, {"agents": table})
        sources = timestamp_sources(connection, contents["agents"])
        columns = [column.name for column in table.columns]
        for name, path in (("ab", "c"), ("a", "bc"), ("ab", "c")):
            rows(connection, "DELETE FROM agents")
            rows(
                connection,
                "INSERT INTO agents (id, name, path, created_at, updated_at)"
                f" VALUES ('i', '{name}', '{path}', '2026-02-19 20:53:16', '2026-02-19 20:53:16')",
            )
            sums.append(checksum(connection, "agents", table, columns, sources))

    assert sums[0] == sums[2] != sums[1]
    assert sums[0][0] == 1


@pytest.mark.parametrize(
    ("length", "shown"), [(120, "x" * 120), (121, f"{'x' * 120}…")]
)
def test_a_long_value_is_cut_in_messages(length: int, shown: str):
    value = UnusableValue("agents", "id 'a'", "path", "x" * length, "is not text")

    assert str(value) == f"table 'agents', id 'a', column 'path': {shown} is not text"


def test_a_number_of_32_bits_fits_a_server():
    reasons = [too_wide(number) for number in (-(2**31), 2**31 - 1)]

    assert reasons == [None, None]
    for number in (-(2**31) - 1, 2**31):
        assert too_wide(number) == "does not fit into 32 bits"
