"""What an operator built around the tables of a SQLite file: afterwards it is what it was, or --check refuses it."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

import agentdb
from tests.helpers.baseline_runs import baselinedb
from tests.helpers.legacy_databases import manage, opened, sqlite_path

Load = Callable[[str], str]

TABLES = ("agents", "sessions", "sandboxes", "api_keys")

FULL_TEXT = (
    "CREATE VIRTUAL TABLE words USING fts5(agent_name, status, content='sessions', content_rowid='rowid')",
    "INSERT INTO words (words) VALUES ('rebuild')",
    "CREATE TRIGGER words_insert AFTER INSERT ON sessions BEGIN"
    " INSERT INTO words (rowid, agent_name, status) VALUES (new.rowid, new.agent_name, new.status); END",
    "CREATE TRIGGER words_delete AFTER DELETE ON sessions BEGIN"
    " INSERT INTO words (words, rowid, agent_name, status)"
    " VALUES ('delete', old.rowid, old.agent_name, old.status); END",
    "CREATE TRIGGER words_update AFTER UPDATE ON sessions BEGIN"
    " INSERT INTO words (words, rowid, agent_name, status)"
    " VALUES ('delete', old.rowid, old.agent_name, old.status);"
    " INSERT INTO words (rowid, agent_name, status) VALUES (new.rowid, new.agent_name, new.status); END",
)


def is_large(value: object) -> int:
    return int(len(str(value)) > 10)


def connected(path: Path) -> closing[sqlite3.Connection]:
    """The operator's own program, with a function and a collation that agentdb does not know."""
    connection = sqlite3.connect(path, isolation_level=None)
    connection.create_function("is_large", 1, is_large, deterministic=True)
    connection.create_collation(
        "backwards", lambda one, other: (one < other) - (one > other)
    )
    connection.execute("PRAGMA foreign_keys = OFF")
    return closing(connection)


def run(url: str, *statements: str) -> list[tuple[object, ...]]:
    with connected(sqlite_path(url)) as connection:
        rows: list[tuple[object, ...]] = []
        for statement in statements:
            rows = connection.execute(statement).fetchall()
        return rows


@dataclass(frozen=True)
class Around:
    """Everything in the file that is not agentdb's."""

    objects: list[tuple[object, ...]]
    settings: list[tuple[object, ...]]
    rowids: dict[str, list[tuple[object, ...]]]
    others: dict[str, list[tuple[object, ...]]]


def around(url: str) -> Around:
    with connected(sqlite_path(url)) as connection:
        objects = connection.execute(
            "SELECT type, name, tbl_name, sql FROM sqlite_master WHERE name NOT LIKE 'django\\_%' ESCAPE '\\'"
            " AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\' AND name NOT LIKE 'idx\\_%' ESCAPE '\\'"
            f" AND lower(name) NOT IN {TABLES} ORDER BY type, name"
        ).fetchall()
        rowids, others = {}, {}
        for name in TABLES:
            try:
                rowids[name] = connection.execute(
                    f"SELECT rowid, * FROM {name}"
                ).fetchall()
                key = "name" if name == "agents" else "id"
                rowids[name] = connection.execute(
                    f"SELECT rowid, {key} FROM {name} ORDER BY 1"
                ).fetchall()
            except sqlite3.OperationalError:
                rowids[name] = []
        for kind, name, _, sql in objects:
            if kind == "table" and "VIRTUAL" not in str(sql):
                others[name] = connection.execute(
                    'SELECT * FROM "' + str(name).replace('"', '""') + '"'
                ).fetchall()
        settings = [
            connection.execute(f"PRAGMA {pragma}").fetchone()
            for pragma in (
                "application_id",
                "user_version",
                "encoding",
                "page_size",
                "auto_vacuum",
            )
        ]
        return Around(objects, settings, rowids, others)


def without(after: Around, before: Around) -> Around:
    """Without the rowids of a table that had none before."""
    return replace(
        after,
        rowids={
            name: rows for name, rows in after.rowids.items() if before.rowids[name]
        }
        | {name: [] for name, rows in before.rowids.items() if not rows},
    )


def with_gaps(url: str) -> None:
    run(
        url,
        "DELETE FROM sessions WHERE rowid % 3 = 0",
        "UPDATE sessions SET rowid = rowid + 1000 WHERE rowid > 20",
    )


def matches(url: str) -> int:
    [[number]] = run(
        url,
        "SELECT count(*) FROM words JOIN sessions s ON s.rowid = words.rowid WHERE words MATCH s.status",
    )
    assert isinstance(number, int)
    return number


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_full_text_index_by_rowid_works_after_the_adoption_and_after_the_way_back(
    load_legacy: Load, engine: str
):
    url = load_legacy("era-b-small")
    with_gaps(url)
    run(url, *FULL_TEXT)
    before = matches(url)
    assert [(before,)] == run(url, "SELECT count(*) FROM sessions")

    assert baselinedb(url, "--no-backup").code == 0
    assert matches(url) == before
    run(url, "INSERT INTO words (words) VALUES ('integrity-check')")
    with agentdb.connect(url) as db:
        db.insert_session("new", "a", "sb")
    assert matches(url) == before + 1

    with opened(url) as connection:
        manage(connection, "migrate", "agentdb", "0001", verbosity=0)
    assert matches(url) == before + 1


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize(
    ("taken", "name"), [(["rowid"], "oid"), (["rowid", "oid"], "_rowid_")]
)
def test_rowids_stay_where_own_columns_have_their_names(
    load_legacy: Load, engine: str, taken: list[str], name: str
):
    url = load_legacy("era-b-small")
    run(url, "DELETE FROM sessions WHERE rowid % 3 = 0")
    run(
        url,
        *(
            f"ALTER TABLE sessions ADD COLUMN {column} TEXT DEFAULT 'own'"
            for column in taken
        ),
    )
    before = run(url, f"SELECT {name}, id, rowid FROM sessions ORDER BY id")

    assert baselinedb(url, "--no-backup").code == 0

    assert run(url, f"SELECT {name}, id, rowid FROM sessions ORDER BY id") == before
    assert len(before) == 23  # of 34: rowids that were renumbered would differ


SHAPES: dict[str, tuple[str, ...]] = {
    "full text": FULL_TEXT,
    "own index": ("CREATE INDEX own ON sessions (status, agent_name DESC)",),
    "own partial index": (
        "CREATE INDEX own ON sessions (status) WHERE runner_id IS NOT NULL",
    ),
    "own expression index": (
        "CREATE INDEX own ON sessions (lower(agent_name), substr(id, 1, 4))",
    ),
    "expression index on a timestamp": (
        "CREATE INDEX own ON sessions (date(created_at))",
    ),
    "partial index on a timestamp": (
        "CREATE INDEX own ON sessions (id) WHERE created_at > '2026-02-19T'",
    ),
    "index with an unknown function": (
        "CREATE INDEX own ON sessions (is_large(agent_name))",
    ),
    "partial index with an unknown function": (
        "CREATE INDEX own ON sessions (id) WHERE is_large(agent_name)",
    ),
    "index with an unknown collation": (
        "CREATE INDEX own ON sessions (agent_name COLLATE backwards)",
    ),
    "index with a known collation": (
        "CREATE INDEX own ON sessions (agent_name COLLATE nocase)",
    ),
    "unique expression index": ("CREATE UNIQUE INDEX own ON sessions (lower(id))",),
    "unique partial index": (
        "CREATE UNIQUE INDEX own ON sessions (id) WHERE status = 'active'",
    ),
    "unique index on an own column": (
        "ALTER TABLE sessions ADD COLUMN own TEXT",
        "CREATE UNIQUE INDEX own ON sessions (own)",
    ),
    "unique index on an own column of a quoted name": (
        'ALTER TABLE sessions ADD COLUMN "own ""n" TEXT',
        'CREATE UNIQUE INDEX own ON sessions ("own ""n" DESC)',
    ),
    "view with an unknown function": (
        "CREATE VIEW own AS SELECT is_large(id) FROM sessions",
    ),
    "view over a missing table": ("CREATE VIEW own AS SELECT * FROM nowhere",),
    "view over all columns": (
        "CREATE VIEW own AS SELECT * FROM sessions JOIN agents ON agent_name = name",
    ),
    "view with a trigger": (
        "CREATE VIEW own AS SELECT id, status FROM sessions",
        "CREATE TRIGGER own_t INSTEAD OF UPDATE ON own BEGIN"
        " UPDATE sessions SET status = new.status WHERE id = old.id; END",
    ),
    "trigger with an unknown function": (
        "CREATE TRIGGER own AFTER UPDATE ON sessions BEGIN SELECT is_large(new.id); END",
    ),
    "trigger to a missing table": (
        "CREATE TRIGGER own AFTER UPDATE ON sessions BEGIN DELETE FROM nowhere; END",
    ),
    "trigger on another table that writes ours": (
        "CREATE TABLE notes (session_id TEXT)",
        "CREATE TRIGGER own AFTER INSERT ON notes BEGIN"
        " UPDATE sessions SET last_active_at = datetime('now') WHERE id = new.session_id; END",
    ),
    "trigger of a column": (
        "CREATE TABLE notes (t TEXT)",
        "CREATE TRIGGER own AFTER UPDATE OF status ON sessions WHEN old.status <> new.status BEGIN"
        " INSERT INTO notes VALUES (new.id); END",
    ),
    "trigger that inserts into ours": (
        "CREATE TRIGGER own AFTER INSERT ON sessions WHEN new.status = 'x' BEGIN"
        " INSERT INTO sandboxes (id, agent_name, workspace_dir) VALUES (new.id, 'a', '/'); END",
    ),
    "foreign key from another table": (
        "CREATE TABLE notes (session_id TEXT REFERENCES sessions(id) ON DELETE CASCADE)",
        "INSERT INTO notes SELECT id FROM sessions",
    ),
    "foreign key to the key": (
        "CREATE TABLE notes (session_id TEXT REFERENCES sessions)",
        "INSERT INTO notes SELECT id FROM sessions",
    ),
    "foreign key to a unique pair": (
        "CREATE TABLE notes (t TEXT, n TEXT, FOREIGN KEY (t, n) REFERENCES agents (tenant_id, name))",
    ),
    "foreign key to an own unique index": (
        "ALTER TABLE sessions ADD COLUMN own TEXT",
        "CREATE UNIQUE INDEX own ON sessions (own)",
        "CREATE TABLE notes (t TEXT REFERENCES sessions(own))",
    ),
    "foreign key of an own column": (
        "CREATE TABLE teams (id TEXT PRIMARY KEY)",
        "ALTER TABLE sessions ADD COLUMN team TEXT REFERENCES teams(id)",
    ),
    "check of an own column": (
        "ALTER TABLE sessions ADD COLUMN own INTEGER CHECK (own > 0)",
    ),
    "check of an own column against ours": (
        "ALTER TABLE sessions ADD COLUMN own TEXT CHECK (own <> status)",
    ),
    "check of an own column against a generated one": (
        "ALTER TABLE sessions ADD COLUMN loud TEXT AS (upper(status)) VIRTUAL",
        "ALTER TABLE sessions ADD COLUMN own TEXT CHECK (own <> loud)",
    ),
    "own column with a collation": (
        "ALTER TABLE sessions ADD COLUMN own TEXT COLLATE NOCASE DEFAULT 'x'",
    ),
    "own column with an unknown collation": (
        "ALTER TABLE sessions ADD COLUMN own TEXT COLLATE backwards",
    ),
    "own column with a comment": (
        "ALTER TABLE sessions ADD COLUMN own TEXT /* why, (not) */ DEFAULT 'x'",
    ),
    "own column with quotes": (
        'ALTER TABLE sessions ADD COLUMN "own ""column""" TEXT DEFAULT \'it\'\'s\'',
    ),
    "own columns in letters that only Python takes for alike": (
        'ALTER TABLE sessions ADD COLUMN "Ä" TEXT',
        "ALTER TABLE sessions ADD COLUMN \"ä\" TEXT DEFAULT 'x'",
        'UPDATE sessions SET "Ä" = id',
    ),
    "own columns in letters that Python takes for symbols and spaces": (
        "ALTER TABLE sessions ADD COLUMN 😀 TEXT DEFAULT 'x'",
        "ALTER TABLE sessions ADD COLUMN 😀😃 TEXT CHECK (😀😃 <> 'y')",
        "ALTER TABLE sessions ADD COLUMN a\u00a0b TEXT",
        "UPDATE sessions SET 😀😃 = id, a\u00a0b = id",
    ),
    "own index under the name of a constraint that ours replaces": (
        "ALTER TABLE agents RENAME TO a",
        "CREATE TABLE agents (id TEXT PRIMARY KEY, tenant_id TEXT NOT NULL DEFAULT 'default', name TEXT NOT NULL,"
        " version INTEGER NOT NULL DEFAULT 1, path TEXT NOT NULL, created_at TEXT NOT NULL, updated_at TEXT NOT NULL,"
        " CONSTRAINT own UNIQUE (tenant_id, name))",
        "INSERT INTO agents SELECT id, tenant_id, name, version, path, created_at, updated_at FROM a",
        "DROP TABLE a",
        "CREATE INDEX own ON agents (path)",
    ),
    "own column called rowid": ("ALTER TABLE sessions ADD COLUMN rowid TEXT",),
    "own column called oid": ("ALTER TABLE sessions ADD COLUMN oid TEXT",),
    "all names of the rowid": (
        "ALTER TABLE sessions ADD COLUMN rowid TEXT",
        "ALTER TABLE sessions ADD COLUMN oid TEXT",
        "ALTER TABLE sessions ADD COLUMN _rowid_ TEXT",
    ),
    "virtual generated column": (
        "ALTER TABLE sessions ADD COLUMN own TEXT AS (upper(status)) VIRTUAL",
    ),
    "generated column with a unknown function": (
        "ALTER TABLE sessions ADD COLUMN own TEXT AS (is_large(status))",
    ),
    "index of a generated column": (
        "ALTER TABLE sessions ADD COLUMN own TEXT AS (upper(status))",
        "CREATE INDEX own_i ON sessions (own)",
    ),
    "stored generated column": (
        "ALTER TABLE sessions RENAME TO was",
        "CREATE TABLE sessions (id TEXT PRIMARY KEY, tenant_id TEXT NOT NULL DEFAULT 'default',"
        " agent_name TEXT NOT NULL, sandbox_id TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'starting',"
        " runner_id TEXT, created_at TEXT NOT NULL, last_active_at TEXT NOT NULL,"
        " own TEXT GENERATED ALWAYS AS (id || status) STORED)",
        "INSERT INTO sessions SELECT id, tenant_id, agent_name, sandbox_id, status, runner_id, created_at,"
        " last_active_at FROM was",
        "DROP TABLE was",
    ),
    "generated column over a timestamp": (
        "ALTER TABLE sessions ADD COLUMN day TEXT AS (substr(created_at, 1, 10))",
    ),
    "generated column with the time of a timestamp": (
        "ALTER TABLE sessions ADD COLUMN own TEXT AS (substr(created_at, 11))",
    ),
    "strict": (
        "CREATE TABLE s (id TEXT PRIMARY KEY, tenant_id TEXT NOT NULL DEFAULT 'default', agent_name TEXT NOT NULL,"
        " sandbox_id TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'starting', runner_id TEXT,"
        " created_at TEXT NOT NULL, last_active_at TEXT NOT NULL) STRICT",
        "INSERT INTO s SELECT id, tenant_id, agent_name, sandbox_id, status, runner_id, created_at, last_active_at"
        " FROM sessions",
        "DROP TABLE sessions",
        "ALTER TABLE s RENAME TO sessions",
    ),
    "strict with an own column of type any": (
        "CREATE TABLE s (id TEXT PRIMARY KEY, tenant_id TEXT NOT NULL DEFAULT 'default', agent_name TEXT NOT NULL,"
        " sandbox_id TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'starting', runner_id TEXT,"
        " created_at TEXT NOT NULL, last_active_at TEXT NOT NULL, own ANY) STRICT",
        "INSERT INTO s SELECT id, tenant_id, agent_name, sandbox_id, status, runner_id, created_at, last_active_at, '1'"
        " FROM sessions",
        "DROP TABLE sessions",
        "ALTER TABLE s RENAME TO sessions",
    ),
    "without rowid": (
        "CREATE TABLE s (id TEXT PRIMARY KEY, tenant_id TEXT NOT NULL DEFAULT 'default', agent_name TEXT NOT NULL,"
        " sandbox_id TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'starting', runner_id TEXT,"
        " created_at TEXT NOT NULL, last_active_at TEXT NOT NULL) WITHOUT ROWID",
        "INSERT INTO s SELECT id, tenant_id, agent_name, sandbox_id, status, runner_id, created_at, last_active_at"
        " FROM sessions",
        "DROP TABLE sessions",
        "ALTER TABLE s RENAME TO sessions",
    ),
    "keyed by a number": (
        "CREATE TABLE s (n INTEGER PRIMARY KEY AUTOINCREMENT, id TEXT NOT NULL UNIQUE,"
        " tenant_id TEXT NOT NULL DEFAULT 'default', agent_name TEXT NOT NULL,"
        " sandbox_id TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'starting', runner_id TEXT,"
        " created_at TEXT NOT NULL, last_active_at TEXT NOT NULL)",
        "INSERT INTO s SELECT rowid + 5, id, tenant_id, agent_name, sandbox_id, status, runner_id, created_at,"
        " last_active_at FROM sessions",
        "DROP TABLE sessions",
        "ALTER TABLE s RENAME TO sessions",
    ),
    "a collation on the key": (
        "CREATE TABLE s (id TEXT COLLATE NOCASE PRIMARY KEY, tenant_id TEXT NOT NULL DEFAULT 'default',"
        " agent_name TEXT NOT NULL, sandbox_id TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'starting', runner_id TEXT,"
        " created_at TEXT NOT NULL, last_active_at TEXT NOT NULL)",
        "INSERT INTO s SELECT id, tenant_id, agent_name, sandbox_id, status, runner_id, created_at, last_active_at"
        " FROM sessions",
        "DROP TABLE sessions",
        "ALTER TABLE s RENAME TO sessions",
    ),
    "an unknown collation on the key": (
        "CREATE TABLE s (id TEXT COLLATE backwards PRIMARY KEY, tenant_id TEXT NOT NULL DEFAULT 'default',"
        " agent_name TEXT NOT NULL, sandbox_id TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'starting', runner_id TEXT,"
        " created_at TEXT NOT NULL, last_active_at TEXT NOT NULL)",
        "INSERT INTO s SELECT id, tenant_id, agent_name, sandbox_id, status, runner_id, created_at, last_active_at"
        " FROM sessions",
        "DROP TABLE sessions",
        "ALTER TABLE s RENAME TO sessions",
    ),
    "on conflict replace": (
        "CREATE TABLE s (id TEXT PRIMARY KEY ON CONFLICT REPLACE, tenant_id TEXT NOT NULL DEFAULT 'default',"
        " agent_name TEXT NOT NULL, sandbox_id TEXT NOT NULL, status TEXT NOT NULL DEFAULT 'starting', runner_id TEXT,"
        " created_at TEXT NOT NULL, last_active_at TEXT NOT NULL)",
        "INSERT INTO s SELECT id, tenant_id, agent_name, sandbox_id, status, runner_id, created_at, last_active_at"
        " FROM sessions",
        "DROP TABLE sessions",
        "ALTER TABLE s RENAME TO sessions",
    ),
    "a check on ours with an unknown function": (
        "CREATE TABLE s (id TEXT PRIMARY KEY, tenant_id TEXT NOT NULL DEFAULT 'default',"
        " agent_name TEXT NOT NULL CHECK (is_large(agent_name) < 2), sandbox_id TEXT NOT NULL,"
        " status TEXT NOT NULL DEFAULT 'starting', runner_id TEXT,"
        " created_at TEXT NOT NULL, last_active_at TEXT NOT NULL)",
        "INSERT INTO s SELECT id, tenant_id, agent_name, sandbox_id, status, runner_id, created_at, last_active_at"
        " FROM sessions",
        "DROP TABLE sessions",
        "ALTER TABLE s RENAME TO sessions",
    ),
    "sessions_new in the way": (
        "CREATE TABLE sessions_new (x)",
        "INSERT INTO sessions_new VALUES (1)",
    ),
    "agents_new in the way": ("CREATE TABLE agents_new (x)",),
    "new__agents in the way": ("CREATE TABLE new__agents (x)",),
    "agentdb_new_sessions in the way": ("CREATE TABLE agentdb_new_sessions (x)",),
    "agentdb_new_sessions is a view": ("CREATE VIEW agentdb_new_sessions AS SELECT 1",),
    "agentdb_new_agents is an index": (
        "CREATE INDEX agentdb_new_agents ON sandboxes (workspace_dir)",
    ),
    "agentdb_old_ids in the way": ("CREATE TABLE agentdb_old_ids (x)",),
    "an index has the name of ours": (
        "CREATE TABLE notes (x)",
        "CREATE INDEX idx_sessions_created ON notes (x)",
    ),
    "a table has the name of our index": ("CREATE TABLE idx_sessions_created (x)",),
    "a table has the name of our index in capitals": (
        "CREATE TABLE IDX_SESSIONS_CREATED (x)",
    ),
    "a view has the name of our index": (
        "CREATE VIEW idx_sessions_created AS SELECT 1",
    ),
    "our index is unique": (
        "CREATE UNIQUE INDEX idx_sessions_created ON sessions (id)",
    ),
    "our index on another table of ours": (
        "CREATE INDEX idx_sessions_created ON sandboxes (created_at)",
    ),
    "a trigger has the name of our index": (
        "CREATE TRIGGER idx_sessions_created AFTER INSERT ON sessions BEGIN SELECT 1; END",
    ),
    "django_migrations is a view": (
        "CREATE VIEW django_migrations AS SELECT 1 AS id, 'x' AS app, 'y' AS name",
    ),
    "django_migrations is another table": ("CREATE TABLE django_migrations (x)",),
    "statistics": ("ANALYZE",),
    "application id": ("PRAGMA application_id = 77", "PRAGMA user_version = 12"),
    "automatic vacuum": (
        "PRAGMA auto_vacuum = FULL",
        "PRAGMA journal_mode = DELETE",
        "VACUUM",
    ),
    "another page size": (
        "PRAGMA journal_mode = DELETE",
        "PRAGMA page_size = 8192",
        "VACUUM",
    ),
    "rtree": (
        "CREATE VIRTUAL TABLE boxes USING rtree(id, a, b)",
        "INSERT INTO boxes VALUES (1, 2, 3)",
    ),
    "table of capitals": (
        "ALTER TABLE sessions RENAME TO s",
        'ALTER TABLE s RENAME TO "Sessions"',
    ),
    "column of capitals": (
        "ALTER TABLE sessions RENAME COLUMN status TO s",
        'ALTER TABLE sessions RENAME COLUMN s TO "Status"',
    ),
    "a table named with a quote": ('CREATE TABLE "o\'wn ""t" (x)',),
    "autoincrement elsewhere": (
        "CREATE TABLE notes (n INTEGER PRIMARY KEY AUTOINCREMENT, t)",
        "INSERT INTO notes (t) VALUES (1), (2)",
        "DELETE FROM notes",
    ),
}


WOULD_FAIL = "The adoption would fail on what was built around the tables: "
CONVERTED = "Table 'sessions' cannot be converted: "
TAKEN = f"{CONVERTED}there is already a table named idx_sessions_created."
TAKEN_BY_INDEX = f"{CONVERTED}index idx_sessions_created already exists."
TOO_UNIQUE = (
    "Table 'sessions' has a unique index 'own', which could refuse what agentdb writes."
)

REFUSED = {
    "index with an unknown function": WOULD_FAIL
    + "index 'own': no such function: is_large. Rename or drop that",
    "partial index with an unknown function": WOULD_FAIL
    + "index 'own': no such function: is_large.",
    "index with an unknown collation": WOULD_FAIL
    + "index 'own': no such collation sequence: backwards.",
    "unique expression index": TOO_UNIQUE,
    "unique partial index": TOO_UNIQUE,
    "own column with an unknown collation": WOULD_FAIL
    + "table 'sessions': no such collation sequence: backwards.",
    "generated column with a unknown function": WOULD_FAIL
    + "table 'sessions': no such function: is_large.",
    "strict with an own column of type any": "Column 'own' of the STRICT table 'sessions' has the type ANY",
    "keyed by a number": "has more than one primary key",
    "an unknown collation on the key": WOULD_FAIL
    + "table 'sessions': no such collation sequence: backwards.",
    "a check on ours with an unknown function": WOULD_FAIL
    + "table 'sessions': no such function: is_large.",
    "agentdb_new_sessions in the way": 'agentdb_new_sessions" already exists.',
    "agentdb_new_sessions is a view": 'agentdb_new_sessions" already exists.',
    "agentdb_new_agents is an index": "there is already an index named agentdb_new_agents.",
    "an index has the name of ours": TAKEN_BY_INDEX,
    "a table has the name of our index": TAKEN,
    "a table has the name of our index in capitals": TAKEN,
    "a view has the name of our index": TAKEN,
    "our index on another table of ours": TAKEN_BY_INDEX,
    "django_migrations is a view": WOULD_FAIL
    + "Unable to create the django_migrations table",
    "django_migrations is another table": "cannot be used: no such column: name",
}


@pytest.mark.parametrize("engine", ["sqlite"])  # which alone rebuilds tables
@pytest.mark.parametrize("shape", SHAPES)
def test_check_and_adoption_agree_on_what_is_around_the_tables(
    load_legacy: Load, engine: str, shape: str
):
    url = load_legacy("era-b-small")
    with_gaps(url)
    run(url, *SHAPES[shape])
    before = around(url)

    check = baselinedb(url, "--check")
    adopted = baselinedb(url, "--no-backup")

    if shape in REFUSED:
        assert (check.code, adopted.code) == (2, 2), (check, adopted)
        assert REFUSED[shape] in check.err
        assert check.err == adopted.err
        # What was found comes first, if the record of migrations can be read.
        assert check.out == adopted.out
        is_readable = shape != "django_migrations is another table"
        assert check.out.startswith("Found: ") is is_readable
    else:
        assert (check.code, adopted.code) == (1, 0), (check, adopted)
    assert without(around(url), before) == before
    assert run(url, "PRAGMA integrity_check") == [("ok",)]
    if shape in REFUSED:
        return
    with opened(url) as connection:
        manage(connection, "migrate", "agentdb", "0001", verbosity=0)
    assert without(around(url), before) == before
    assert baselinedb(url, "--no-backup").code == 0
    assert without(around(url), before) == before


@pytest.mark.parametrize("engine", ["sqlite"])
def test_constraints_of_own_columns_stay_unless_they_check_one_of_ours(
    load_legacy: Load, engine: str
):
    url = load_legacy("era-b-small")
    kept = [
        "\"Ä\" TEXT DEFAULT 'a'",
        "'own' TEXT",
        '"Ö" TEXT AS (upper(name))',
        "UNIQUE ('own', id)",  # SQLite takes the string for the column
        "CONSTRAINT two CHECK (\"Ä\" <> ')' AND \"Ä\" <> ',')",
    ]
    gone = [
        "CHECK (own <> name)",
        'CONSTRAINT four CHECK (own <> "Ö")',  # and so reads the name
    ]
    [(created,)] = run(url, "SELECT sql FROM sqlite_master WHERE name = 'agents'")
    start, _, _ = str(created).rpartition("UNIQUE")
    run(
        url,
        "ALTER TABLE agents RENAME TO old",
        f"{start} {', '.join([*kept, *gone])})",
        "INSERT INTO agents SELECT *, 'a', id FROM old",
        "DROP TABLE old",
        'CREATE INDEX "IDX_Agents_Tenant" ON agents (path)',
    )

    assert baselinedb(url, "--no-backup").code == 0

    [(now,)] = run(url, "SELECT sql FROM sqlite_master WHERE name = 'agents'")
    assert [text for text in (*kept, *gone) if text in str(now)] == kept
    [(index,)] = run(
        url, "SELECT sql FROM sqlite_master WHERE lower(name) = 'idx_agents_tenant'"
    )
    assert "tenant_id" in str(index)
