"""recognise() goes by what the schema says, and by nothing else."""

from __future__ import annotations

from collections.abc import Callable

import pytest

import agentdb
from agentdb.adoption.shapes import Kind, Shape, recognise
from agentdb.schema.inspection import inspecting
from tests.helpers.baseline_runs import baselinedb
from tests.helpers.legacy_databases import FOLDER, manage, opened, psql, rows, stems
from tests.helpers.old_upgrades import STATEMENTS

Load = Callable[[str], str]

KINDS = {
    "sqlite": {
        "crash-a-to-b-k07": Kind.INTERRUPTED,
        "crash-a-to-b-k10": Kind.INTERRUPTED,
        "crash-a-to-b-k13": Kind.INTERRUPTED,
        "crash-fresh-b-k02": Kind.INTERRUPTED,
        "crash-fresh-b-k04": Kind.SINGLE_TENANT,
        "dirty-duplicate-agents": Kind.INTERRUPTED,
        "era-a": Kind.SINGLE_TENANT,
        "era-c": Kind.LATER,
        "era-d": Kind.LATER,
        "hot-wal": Kind.INTERRUPTED,
    },
    "postgresql": {
        "crash-a-to-b-k09": Kind.INTERRUPTED,
        "crash-a-to-b-k18": Kind.INTERRUPTED,
        "crash-a-to-b-nofk-k19": Kind.INTERRUPTED,
        "crash-a-to-b-nofk-k21": Kind.INTERRUPTED,
        "crash-a-to-b-nofk-k22": Kind.INTERRUPTED,
        "crash-fresh-b-k03": Kind.INTERRUPTED,
        "dirty-duplicate-agents": Kind.INTERRUPTED,
        "era-a": Kind.SINGLE_TENANT,
        "era-a-opened-by-b": Kind.STUCK,
        "era-b-stuck": Kind.STUCK,
        "era-c": Kind.LATER,
        "era-d": Kind.LATER,
    },
}
NO_DATABASE = ("dirty-not-a-database", "dirty-truncated")
FILES = [
    (engine, stem)
    for engine in KINDS
    for stem in stems(engine)
    if stem not in NO_DATABASE
]


def shape_of(url: str) -> Shape:
    with opened(url) as connection, inspecting(connection.alias) as reading:
        return recognise(reading)


@pytest.mark.parametrize(("engine", "stem"), FILES)
def test_every_old_database_is_recognised(load_legacy: Load, engine: str, stem: str):
    assert shape_of(load_legacy(stem)).kind is KINDS[engine].get(
        stem, Kind.MULTI_TENANT
    )


@pytest.mark.parametrize("stem", ["era-a", "era-b-small"])
def test_names_of_constraints_and_indexes_and_the_order_of_columns_do_not_matter(
    load_legacy: Load, engine: str, stem: str
):
    url = load_legacy(stem)
    kind = shape_of(url).kind
    with opened(url) as connection:
        rows(connection, "DROP INDEX idx_sandboxes_state")
        rows(connection, "CREATE INDEX other_name ON sandboxes (state)")
        if engine == "postgresql":
            rows(
                connection,
                "ALTER TABLE agents RENAME CONSTRAINT agents_pkey TO other_key",
            )
            rows(connection, "ALTER TABLE sessions RENAME COLUMN status TO old_status")
            rows(
                connection,
                "ALTER TABLE sessions ADD COLUMN status text NOT NULL DEFAULT 'starting'",
            )

    assert shape_of(url).kind is kind


@pytest.mark.parametrize(
    ("level", "kind"),
    [
        ("zero", Kind.EMPTY),
        ("0001", Kind.ADOPTED),
        ("0002", Kind.ADOPTED),
        ("0003", Kind.ADOPTED),
        ("0004", Kind.ADOPTED),
    ],
)
def test_every_migrations_tables_are_recognised_with_their_level(
    url: str, level: str, kind: Kind
):
    with opened(url) as connection:
        manage(connection, "migrate", "agentdb", level)

    shape = shape_of(url)

    assert shape.kind is kind
    assert (shape.level or "zero").startswith(level)
    assert (shape.recorded[-1] if shape.recorded else None) == shape.level
    assert shape.problems == ()


@pytest.mark.parametrize(
    "engine", ["sqlite"]
)  # the old server rebuilds tables on SQLite only
def test_a_rebuild_that_was_stopped_before_the_rename_has_its_rows_in_the_new_table(
    load_legacy: Load, engine: str
):
    url = load_legacy("era-a")
    with opened(url) as connection:
        rows(connection, "PRAGMA foreign_keys = OFF")
        for statement in STATEMENTS[engine][:12]:
            rows(connection, statement)

    shape = shape_of(url)

    assert shape.stored_as["agents"] == "agents_new"
    assert shape.others == ()


def test_tables_outside_the_current_schema_are_not_looked_at(
    make_postgres_database: Callable[[], str],
):
    url = make_postgres_database()
    psql(
        url,
        "-c",
        "CREATE SCHEMA elsewhere",
        "-c",
        "CREATE TABLE elsewhere.agents (nothing text)",
    )

    assert shape_of(url).kind is Kind.EMPTY


def test_another_schema_of_the_search_path_is_adopted_there(
    make_postgres_database: Callable[[], str],
):
    url = make_postgres_database()
    psql(url, "-f", str(FOLDER / "pg" / "era-a.sql"))
    psql(url, "-c", "ALTER SCHEMA public RENAME TO app", "-c", "CREATE SCHEMA public")
    psql(url, "-c", "CREATE TABLE public.agents (nothing text)")
    url += ("&" if "?" in url else "?") + "options=-csearch_path%3Dapp"

    assert baselinedb(url).code == 0

    assert shape_of(url).kind is Kind.ADOPTED
    with opened(url) as connection:
        assert rows(connection, "SELECT count(id) FROM app.agents") == [(21,)]
        assert rows(connection, "SELECT count(nothing) FROM public.agents") == [(0,)]


def test_a_stopped_session_of_the_newest_old_release_stays_stopped(
    load_legacy: Load, engine: str
):
    url = load_legacy("era-d")
    with opened(url) as connection:
        [(id,)] = rows(
            connection,
            "SELECT id FROM sessions WHERE status = 'active' ORDER BY id LIMIT 1",
        )
        rows(connection, "UPDATE sessions SET status = 'stopped' WHERE id = %s", [id])

    assert baselinedb(url).code == 0

    with agentdb.connect(url) as db:
        assert db.get_session(id).status == agentdb.SessionStatus.STOPPED
        db.bulk_pause_active_sessions()
        assert db.get_session(id).status == "stopped"
        assert db.update_session_status(id, "active")
        assert db.update_session_status(id, "stopped")
        assert db.get_session(id).status == "stopped"
