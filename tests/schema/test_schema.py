"""What a comparison of schemas finds, and that it finds nothing where there is nothing."""

from __future__ import annotations

import os
import re
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import FrozenInstanceError, fields, is_dataclass
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from django.apps import apps
from django.db import connections
from django.db.migrations.state import ModelState, ProjectState
from django.db.models import Q, TextField, UniqueConstraint
from django.test.utils import CaptureQueriesContext

from agentdb.schema import Difference, compare, expected_tables, read_tables, tables
from agentdb.schema.migration_record import migration_names, schema_problem
from agentdb.schema.rows import Misspelt, NotUtf8, StoredColumn
from agentdb.schema.sqltext import Token
from agentdb.schema.tables import Key
from agentdb.schema.verification import Verification
from agentdb.serving.opening import configure
from tests.conftest import ENGINES
from tests.helpers import schema_changes
from tests.helpers.schema_changes import Database

NAMES = migration_names()
MODELS = list(apps.get_app_config("agentdb").get_models())
TABLES = [model._meta.db_table for model in MODELS]
COLUMNS = [
    (model._meta.db_table, field.column)
    for model in MODELS
    for field in model._meta.local_concrete_fields
]
INDEXES = [
    (model._meta.db_table, index.name)
    for model in MODELS
    for index in model._meta.indexes
]
UNIQUES = [("agents", ("tenant_id", "name")), ("api_keys", ("key_hash",))]


@pytest.fixture(scope="module", params=ENGINES)
def database(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Database]:
    """A migrated database; what a test changes inside ``undone()`` is gone for the next."""
    if request.param == "sqlite":
        path = tmp_path_factory.mktemp("schema") / "agentdb.sqlite3"
        shutil.copyfile(request.getfixturevalue("_migrated_sqlite"), path)
        url, name = f"sqlite:///{path}", None
    else:
        server = request.getfixturevalue("postgres_url")
        name = f"agentdb_schema_{os.getpid()}"
        template = request.getfixturevalue("_migrated_postgres")
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(f"CREATE DATABASE {name} TEMPLATE {template}".encode())
        url = urlunsplit(urlsplit(server)._replace(path=f"/{name}"))
    connection = connections[configure(url)]
    yield Database(connection, expected_tables(connection, apps))
    connection.close()
    if name:
        with psycopg.connect(server, autocommit=True) as admin:
            admin.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextmanager
def undone(database: Database) -> Iterator[None]:
    database.execute("BEGIN")
    try:
        yield
    finally:
        database.execute("ROLLBACK")


def documented_codes() -> set[str]:
    page = (Path(__file__).parents[2] / "docs" / "verifydb.md").read_text()
    cells = re.findall(
        r"^\| (`\w+\.\w+`[^|]*) \|", page.partition("| codes |")[2], flags=re.MULTILINE
    )
    return {code for cell in cells for code in re.findall(r"`(\w+\.\w+)`", cell)}


def differences(database: Database) -> list[Difference]:
    found = compare(database.expected, read_tables(database.connection))
    assert {one.code for one in found} <= documented_codes()
    return [one for one in found if one.code != "table.foreign"]


def lines(database: Database) -> list[str]:
    return [
        difference.message
        for difference in differences(database)
        if difference.severity == "drift"
    ]


def try_each(
    database: Database, changes: tuple[Callable[..., str | None], ...], *things: object
) -> int:
    """Make each change alone, and expect its line and no other; return how many there were."""
    wrong = {}
    tried = 0
    for change in changes:
        with undone(database):
            expected = change(database, *things)
            if expected is not None:
                tried += 1
                found = lines(database)
                if found != [expected]:
                    wrong[change.__name__] = {"expected": [expected], "found": found}
    assert wrong == {}
    return tried


def test_a_migrated_database_has_no_difference_and_no_note(database):
    assert differences(database) == []


@pytest.mark.parametrize(("table", "column"), COLUMNS)
def test_each_change_of_a_column_is_one_line(database, request, table, column):
    expected = database.expected[table]

    tried = try_each(
        database, schema_changes.COLUMN_CHANGES, expected, expected.column(column)
    )

    request.node.user_properties.append(("schema changes", tried))
    assert tried >= 4


@pytest.mark.parametrize(("table", "index"), INDEXES)
def test_each_change_of_an_index_is_one_line(database, request, table, index):
    expected = database.expected[table]

    tried = try_each(
        database, schema_changes.INDEX_CHANGES, expected, expected.index(index)
    )

    request.node.user_properties.append(("schema changes", tried))
    assert tried >= 6


@pytest.mark.parametrize(("table", "columns"), UNIQUES)
def test_each_change_of_a_unique_constraint_is_one_line(
    database, request, table, columns
):
    expected = database.expected[table]
    (unique,) = (unique for unique in expected.uniques if unique.columns == columns)

    tried = try_each(database, schema_changes.UNIQUE_CHANGES, expected, unique)

    request.node.user_properties.append(("schema changes", tried))
    assert tried >= 4


@pytest.mark.parametrize("table", TABLES)
def test_each_change_of_a_table_and_each_harmful_addition_is_one_line(
    database, request, table
):
    tried = try_each(database, schema_changes.TABLE_CHANGES, database.expected[table])

    request.node.user_properties.append(("schema changes", tried))
    assert tried >= 11


# ------------------------------------------------------------------- what connect() and health() find out beforehand

OUT_OF_DATE = "{place} lacks the migrations {pending}. Run 'agentdb migrate'."
OLD = (
    "{place} was made by the old server and is not adopted yet (pending: {pending}). Run 'agentdb baselinedb --check' "
    "to see what adopting it does, then 'agentdb baselinedb'."
)
UNRECORDED = "DELETE FROM django_migrations WHERE app = 'agentdb'"


@pytest.mark.parametrize(
    ("statements", "pending", "sentence"),
    [
        ([], [], None),
        (["ALTER TABLE agents RENAME COLUMN created_at TO made_at"], [], None),
        (
            ["DROP TABLE api_keys", "DROP TABLE sessions"],
            [],
            "{place} lacks the tables api_keys, sessions, though their migrations are recorded. "
            "Run 'agentdb verifydb'.",
        ),
        (
            ["DROP TABLE api_keys", "CREATE TABLE api_keys (created_at TEXT)"],
            [],
            "{place} holds its timestamps as text, though the migrations are recorded. Run 'agentdb verifydb'.",
        ),
        ([f"{UNRECORDED} AND name > '0003_z'"], NAMES[3:], OUT_OF_DATE),
        ([UNRECORDED], NAMES, OLD),
        ([UNRECORDED, "DROP TABLE agents"], NAMES, OUT_OF_DATE),
    ],
)
def test_tables_that_do_not_fit_their_record_are_a_problem_with_its_command(
    database, statements, pending, sentence
):
    with undone(database):
        database.execute(*statements)

        problem = schema_problem(database.connection, "The place")

    assert (problem and str(problem)) == (
        sentence and sentence.format(place="The place", pending=", ".join(pending))
    )
    assert getattr(problem, "pending", ()) == tuple(pending)


def test_connect_asks_two_queries_if_all_is_well(database):
    with CaptureQueriesContext(database.connection) as sent:
        assert schema_problem(database.connection, "The place") is None

    assert len(sent) == 2


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_view_of_another_program_that_lost_its_table_does_not_stand_in_the_way(
    database,
):
    with undone(database):
        database.execute("CREATE VIEW zz AS SELECT * FROM nowhere")

        assert schema_problem(database.connection, "The place") is None


# ------------------------------------------------------------------------------------- what does no harm, and nothing

ADDITIONS = {
    "nullable column": (
        ["ALTER TABLE sessions ADD COLUMN zz text"],
        ["Column sessions.zz (text) is not in the models and is left alone."],
    ),
    "defaulted column": (
        ["ALTER TABLE sessions ADD COLUMN zz integer DEFAULT 3 NOT NULL"],
        [
            "Column sessions.zz (integer NOT NULL DEFAULT 3) is not in the models and is left alone."
        ],
    ),
    "index": (
        ["CREATE INDEX zz ON sessions (status)"],
        ["Index zz on sessions (status) is not in the models and is left alone."],
    ),
    "unique index on a column that agentdb leaves NULL": (
        [
            "ALTER TABLE sessions ADD COLUMN zz text",
            "CREATE UNIQUE INDEX zz ON sessions (tenant_id, zz)",
        ],
        [
            "Column sessions.zz (text) is not in the models and is left alone.",
            "Unique index zz on sessions (tenant_id, zz) is not in the models and is left alone.",
        ],
    ),
    "foreign key from a column that agentdb leaves NULL": (
        ["ALTER TABLE sessions ADD COLUMN zz text REFERENCES agents (id)"],
        [
            "Column sessions.zz (text) is not in the models and is left alone.",
            "Foreign key {sessions_zz_fkey} on sessions (zz) to agents (id) is not in the models and is left alone.",
        ],
    ),
    "check of a column that agentdb leaves NULL": (
        ["ALTER TABLE sessions ADD COLUMN zz text CONSTRAINT filled CHECK (zz <> 'a')"],
        [
            "Column sessions.zz (text) is not in the models and is left alone.",
            "Check constraint filled on sessions (zz <> 'a') is not in the models and is left alone.",
        ],
    ),
    "table": (
        ["CREATE TABLE zz (id integer)"],
        ["Table zz is not agentdb's and is left alone."],
    ),
    "view": (["CREATE VIEW zz AS SELECT id FROM sessions"], []),
}


@pytest.mark.parametrize("addition", ADDITIONS)
def test_a_harmless_addition_is_a_note(database, addition):
    statements, expected = ADDITIONS[addition]
    name = "without a name" if database.engine == "sqlite" else "sessions_zz_fkey"
    with undone(database):
        database.execute(*statements)

        found = compare(database.expected, read_tables(database.connection))

    found = [
        one
        for one in found
        if one.table != "django_migrations" and not one.table.startswith("auth_")
    ]
    assert [one.message for one in found] == [
        line.replace("{sessions_zz_fkey}", name) for line in expected
    ]
    assert {one.severity for one in found} <= {"note"}


def test_a_trigger_is_a_note(database):
    with undone(database):
        if database.engine == "sqlite":
            database.execute(
                "CREATE TRIGGER zz AFTER INSERT ON sessions BEGIN SELECT 1; END"
            )
        else:
            database.execute(
                "CREATE FUNCTION zz() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END'",
                "CREATE TRIGGER zz AFTER INSERT ON sessions FOR EACH ROW EXECUTE FUNCTION zz()",
            )

        (found,) = differences(database)

    assert found == Difference(
        "trigger.extra",
        "note",
        "sessions",
        "zz",
        None,
        "trigger",
        "Trigger zz on sessions is not in the models and is left alone.",
    )


def test_a_unique_index_on_nothing_but_a_defaulted_column_is_drift(database):
    """The second row with the default is refused."""
    with undone(database):
        database.execute(
            "ALTER TABLE sessions ADD COLUMN zz text DEFAULT 'x'",
            "CREATE UNIQUE INDEX zz_once ON sessions (zz)",
        )

        found = lines(database)

    assert found == [
        "Unique index zz_once on sessions (zz) is not in the models and can refuse what agentdb writes."
    ]


@pytest.mark.parametrize("kind", ["index", "constraint"])
def test_nulls_not_distinct_over_a_column_that_agentdb_leaves_null_is_drift(
    database, kind
):
    """The second session without a value is refused, which an ordinary unique over the column never does."""
    if database.engine == "sqlite":
        pytest.skip("SQLite has no NULLS NOT DISTINCT")
    if database.connection.pg_version < 150000:
        pytest.skip("PostgreSQL has NULLS NOT DISTINCT from 15 on")
    statement = {
        "index": "CREATE UNIQUE INDEX zz_once ON sessions (zz) NULLS NOT DISTINCT",
        "constraint": "ALTER TABLE sessions ADD CONSTRAINT zz_once UNIQUE NULLS NOT DISTINCT (zz)",
    }[kind]
    with undone(database):
        database.execute("ALTER TABLE sessions ADD COLUMN zz text", statement)

        found = lines(database)

    assert found == [
        f"Unique {kind} zz_once on sessions (zz) nulls not distinct is not in the models and can refuse what agentdb "
        "writes."
    ]


@pytest.mark.parametrize(
    ("written", "option"),
    [
        ("UNIQUE (path COLLATE NOCASE)", " collate nocase"),
        ("UNIQUE (path COLLATE binary)", ""),
    ],
)
def test_a_unique_constraint_of_sqlite_is_read_with_its_collation(
    database, written, option
):
    if database.engine != "sqlite":
        pytest.skip("on PostgreSQL a collation is a column's, or an index's")
    with undone(database):
        database.rebuild("agents", lambda sql: f"{sql.removesuffix(')')}, {written})")

        found = lines(database)

    assert found == [
        f"Unique constraint without a name on agents (path){option} is not in the models and can refuse what agentdb "
        "writes."
    ]


def test_the_usual_collation_of_sqlite_is_known_in_lower_case(database):
    if database.engine != "sqlite":
        pytest.skip("PostgreSQL has no collation BINARY")
    with undone(database):
        database.execute(
            "DROP INDEX idx_agents_tenant",
            "CREATE INDEX idx_agents_tenant ON agents (tenant_id COLLATE binary)",
        )

        assert lines(database) == []


def test_the_command_for_an_invalid_primary_key_makes_it_valid(database):
    if database.engine == "sqlite":
        pytest.skip("SQLite has no invalid indexes")
    table = database.expected["agents"]
    expected = schema_changes.invalidate_primary_key(database, table)
    assert lines(database) == [expected]

    database.execute(expected.split("'")[1])

    assert lines(database) == []


def test_a_difference_says_what_was_expected_and_what_was_found(database):
    with undone(database):
        schema_changes.drop_default(
            database,
            database.expected["agents"],
            database.expected["agents"].column("version"),
        )

        (found,) = differences(database)

    assert found == Difference(
        code="column.default",
        severity="drift",
        table="agents",
        object="version",
        expected="1",
        found=None,
        message="Column agents.version has no default; it should be 1.",
    )


def test_two_columns_of_one_definition_are_not_taken_for_renamed(database):
    """Which of the two became the other is anybody's guess."""
    with undone(database):
        database.execute(
            "ALTER TABLE agents RENAME COLUMN created_at TO made_at",
            "ALTER TABLE agents RENAME COLUMN updated_at TO changed_at",
        )

        found = lines(database)

    assert found == [
        "Column agents.created_at is missing.",
        "Column agents.updated_at is missing.",
    ]


def test_a_renamed_column_and_an_index_lost_with_it_are_one_line(database):
    with undone(database):
        database.execute(
            "DROP INDEX idx_sandboxes_session",
            "ALTER TABLE sandboxes RENAME COLUMN session_id TO holder",
        )

        found = lines(database)

    assert found == [
        "Column sandboxes.session_id is missing (column holder is defined like it: was it renamed?)."
    ]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_a_column_with_capitals_takes_its_keys_and_checks_along(database):
    with undone(database):
        database.execute('ALTER TABLE sandboxes RENAME COLUMN session_id TO "heldBy"')
        renamed = [one.message for one in differences(database)]
        database.execute(
            'ALTER TABLE sandboxes RENAME COLUMN "heldBy" TO session_id',
            """ALTER TABLE sandboxes ADD COLUMN "isGone" text GENERATED ALWAYS AS (state) STORED
               CONSTRAINT living CHECK ("isGone" <> 'gone')""",
        )
        checked = [one for one in differences(database) if one.object == "living"]

    assert renamed == [
        "Column sandboxes.session_id is missing (column heldBy is defined like it: was it renamed?)."
    ]
    assert [one.severity for one in checked] == ["drift"]


def test_of_two_indexes_that_do_the_same_one_is_renamed_and_the_other_additional(
    database,
):
    with undone(database):
        database.execute(
            "DROP INDEX idx_sessions_tenant",
            "CREATE INDEX zz_a ON sessions (tenant_id)",
            "CREATE INDEX zz_b ON sessions (tenant_id)",
        )

        found = differences(database)

    assert [one.message for one in found] == [
        "Index on sessions (tenant_id) is named zz_a; it should be idx_sessions_tenant.",
        "Index zz_b on sessions (tenant_id) is not in the models and is left alone.",
    ]


def test_without_names_only_what_a_constraint_does_counts(database):
    with undone(database):
        database.execute(
            "DROP INDEX idx_sessions_tenant",
            "CREATE INDEX zz_tenant ON sessions (tenant_id)",
        )
        agents = database.expected["agents"]
        schema_changes.rename_unique(database, agents, agents.uniques[0])

        live = read_tables(database.connection, TABLES)

    assert compare(database.expected, live, names=False) == []
    assert len(compare(database.expected, live)) == 2


def test_without_names_a_unique_index_serves_as_a_unique_constraint_but_a_plain_one_does_not(
    database,
):
    agents = database.expected["agents"]
    with undone(database):
        schema_changes.index_for_unique(database, agents, agents.uniques[0])
        unique = compare(
            database.expected, read_tables(database.connection, TABLES), names=False
        )
    with undone(database):
        schema_changes.plain_index_for_unique(database, agents, agents.uniques[0])
        plain = compare(
            database.expected, read_tables(database.connection, TABLES), names=False
        )

    assert unique == []
    assert [one.code for one in plain if one.severity == "drift"] == ["unique.missing"]


VALUES = [
    each
    for each in vars(tables).values()
    if isinstance(each, type) and is_dataclass(each)
]


@pytest.mark.parametrize(
    "kind",
    [*VALUES, Difference, Misspelt, NotUtf8, StoredColumn, Token, Verification],
)
def test_what_was_read_of_a_schema_cannot_be_changed_by_who_compares_it(kind):
    value = kind.__new__(kind)

    with pytest.raises(FrozenInstanceError):
        setattr(value, fields(kind)[0].name, None)


def test_names_of_tables_to_read_leave_the_others_out(database):
    assert list(read_tables(database.connection, ["agents", "nonsense"])) == ["agents"]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_reading_a_schema_does_not_depend_on_a_schema_called_public(database):
    with undone(database):
        database.execute(
            "ALTER SCHEMA public RENAME TO elsewhere",
            "SET LOCAL search_path = elsewhere",
        )

        assert differences(database) == []


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_tables_of_another_schema_are_not_looked_at(database):
    with undone(database):
        database.execute(
            "CREATE SCHEMA elsewhere", "CREATE TABLE elsewhere.zz (id int)"
        )
        database.execute("CREATE TABLE elsewhere.agents (id int)")

        assert differences(database) == []
        assert "zz" not in read_tables(database.connection)


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_not_null_that_was_never_checked_does_not_count(database):
    if database.connection.pg_version < 180000:
        pytest.skip(
            "only PostgreSQL 18 and later have NOT NULL constraints that are not validated"
        )
    with undone(database):
        database.execute(
            "ALTER TABLE agents ALTER COLUMN path DROP NOT NULL",
            "ALTER TABLE agents ADD CONSTRAINT zz NOT NULL path NOT VALID",
        )

        assert lines(database) == [
            "Column agents.path allows NULL; it should be NOT NULL."
        ]


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_upper_case_names_are_the_same_names_to_sqlite(database):
    with undone(database):
        for name in ("agents", "sessions"):
            database.execute(
                f"ALTER TABLE {name} RENAME TO zz",
                f"ALTER TABLE zz RENAME TO {name.upper()}",
            )
        database.execute("ALTER TABLE sessions RENAME COLUMN status TO Status")

        assert differences(database) == []


SPELLINGS = {
    "parentheses": ("'default'", "('default')"),
    "null": (None, "NULL"),
    "white space": ("datetime('now')", "( datetime ( 'now' ) ) -- UTC"),
    "case": ("current_timestamp", "CURRENT_TIMESTAMP"),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_spellings_of_one_default_are_equal_on_sqlite(database, spelling):
    one, other = SPELLINGS[spelling]
    with undone(database):
        database.execute(
            f"CREATE TABLE zz (a text{f' DEFAULT ({one})' if one else ''}, b text DEFAULT {other}\n)"
        )

        columns = read_tables(database.connection, ["zz"])["zz"].columns

    assert columns[0].default == columns[1].default == one


@pytest.mark.parametrize("database", ["sqlite"], indirect=True)
def test_a_virtual_table_of_a_module_that_is_not_there_does_not_stand_in_the_way(
    database,
):
    with undone(database):
        database.execute(
            "PRAGMA writable_schema = ON",
            "INSERT INTO sqlite_master VALUES ('table', 'zz', 'zz', 0, 'CREATE VIRTUAL TABLE zz USING nonsense(a)')",
        )

        found = compare(database.expected, read_tables(database.connection))

    assert [one.message for one in found if one.table == "zz"] == [
        "Virtual table zz is not agentdb's and is left alone."
    ]


@pytest.mark.parametrize("database", ["postgresql"], indirect=True)
def test_an_exclusion_constraint_is_drift(database):
    with undone(database):
        database.execute(
            "ALTER TABLE agents ADD CONSTRAINT zz EXCLUDE USING btree (path WITH =)"
        )

        found = lines(database)

    assert found == [
        "Exclusion constraint zz on agents (exclude using btree(path with =)) is not in the models and can refuse what "
        "agentdb writes."
    ]


def test_a_unique_constraint_with_a_condition_is_compared_as_the_index_that_it_is(
    database,
):
    constraint = UniqueConstraint(fields=["id"], condition=~Q(id=""), name="partial")
    state = ProjectState()
    state.add_model(
        ModelState(
            "agentdb",
            "Thing",
            [("id", TextField(primary_key=True))],
            options={"constraints": [constraint]},
        )
    )

    (table,) = expected_tables(database.connection, state.apps).values()

    assert table.keys == (
        Key("partial", ("id",), "unique index", condition="NOT (id = '')"),
    )
