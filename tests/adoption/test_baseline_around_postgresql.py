"""What an operator built around the tables on PostgreSQL: afterwards it is what it was, or --check refuses it."""

from __future__ import annotations

from collections.abc import Callable

import psycopg
import pytest

from tests.helpers.around_postgresql import (
    CARRIED,
    REFUSED,
    SINCE_15,
    described,
    execute,
    make_roles,
    operators_own,
)
from tests.helpers.baseline_runs import baselinedb, snapshot

pytestmark = pytest.mark.parametrize("engine", ["postgresql"])

Load = Callable[[str], str]


@pytest.fixture
def url(load_legacy: Load, engine: str, shape: str) -> str:
    url = load_legacy("era-b-small")
    make_roles(url)
    with psycopg.connect(url) as connection:
        if shape in SINCE_15 and connection.info.server_version < 15_00_00:
            pytest.skip(f"PostgreSQL 14 knows no {shape}")
    return url


@pytest.mark.parametrize("shape", CARRIED)
def test_it_is_afterwards_what_it_was(url: str, shape: str):
    execute(url, *CARRIED[shape])
    before = described(url)

    assert baselinedb(url, "--check").code == 1
    assert described(url) == before
    assert baselinedb(url).code == 0
    assert operators_own(described(url)) == operators_own(before)


@pytest.mark.parametrize("shape", REFUSED)
def test_check_and_adoption_refuse_it_with_the_same_sentence(url: str, shape: str):
    sentence, statements = REFUSED[shape]
    execute(url, *statements)
    before = described(url), snapshot(url)

    check, adoption = baselinedb(url, "--check"), baselinedb(url)
    assert (check.code, adoption.code) == (2, 2)
    assert check.err == adoption.err
    assert check.err.startswith(sentence)
    assert (described(url), snapshot(url)) == before


@pytest.fixture
def without_temporary_tables(load_legacy: Load) -> tuple[str, str]:
    """A database, and the same for a role that owns the tables and may make no temporary one."""
    url = load_legacy("era-b-small")
    make_roles(url)
    execute(
        url,
        "DO $$ BEGIN EXECUTE format('REVOKE TEMPORARY ON DATABASE %I FROM PUBLIC', current_database()); END $$",
        "GRANT CREATE, USAGE ON SCHEMA public TO own_writer",
        *(
            f"ALTER TABLE {table} OWNER TO own_writer"
            for table in ("agents", "sessions", "sandboxes", "api_keys")
        ),
    )
    return url, f"{url}{'&' if '?' in url else '?'}options=-c%20role%3Down_writer"


def test_a_role_that_may_make_no_temporary_table_adopts_all_the_same(
    without_temporary_tables: tuple[str, str],
):
    url, as_writer = without_temporary_tables
    execute(
        url,
        *CARRIED["view"],
        "ALTER VIEW own OWNER TO own_writer",
        # Rows that Python reads, although no timestamp needs it.
        "ALTER TABLE agents DROP CONSTRAINT agents_pkey",
        "ALTER TABLE agents ALTER id DROP NOT NULL",
        "INSERT INTO agents (name, path) VALUES ('without an id', '/')",
    )

    assert baselinedb(as_writer, "--check").code == 1
    assert baselinedb(as_writer).code == 0


def test_what_only_shows_on_the_way_is_refused_and_undone(
    without_temporary_tables: tuple[str, str],
):
    url, as_writer = without_temporary_tables
    sentence, statements = REFUSED["view that takes a text"]
    execute(url, *statements, "ALTER VIEW own OWNER TO own_writer")
    before = described(url), snapshot(url)

    run = baselinedb(as_writer)

    assert run.code == 2
    assert sentence in run.err
    assert run.err.endswith("\nNothing was changed.")
    assert (described(url), snapshot(url)) == before


def test_a_view_of_a_role_that_this_one_may_not_become_is_named(
    without_temporary_tables: tuple[str, str],
):
    url, as_writer = without_temporary_tables
    execute(url, *CARRIED["view"])

    check, adoption = baselinedb(as_writer, "--check"), baselinedb(as_writer)

    assert (check.code, adoption.code) == (2, 2)
    assert check.err == adoption.err
    assert check.err == (
        "View 'own' cannot be recreated with the new types of the columns it reads: must be owner of view own. Drop "
        "it, run the command again, and recreate it.\nNothing was changed."
    )


def test_where_nothing_can_be_written_check_says_so(load_legacy: Load, engine: str):
    url = load_legacy("era-b-small")
    read_only = f"{url}{'&' if '?' in url else '?'}options=-c%20default_transaction_read_only%3Don"

    check, adoption = baselinedb(read_only, "--check"), baselinedb(read_only)

    assert (check.code, adoption.code) == (2, 2)
    assert check.err == adoption.err
    assert check.err.startswith(
        "Nothing can be written: default_transaction_read_only is on for this database, the role"
    )
