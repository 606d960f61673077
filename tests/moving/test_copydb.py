"""copydb between engines: every row arrives as it was, or nothing does."""

from __future__ import annotations

import io
import os
import random
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.apps import apps
from django.core.management import CommandError, call_command

import agentdb
from agentdb.adoption.obstacles import OLD_COLUMNS
from agentdb.serving.opening import temporary_alias
from tests.helpers.factories import execute
from tests.helpers.legacy_databases import FOLDER, sqlite_path

MakeUrl = Callable[[str], str]


@pytest.fixture
def make_url(request: pytest.FixtureRequest, tmp_path: Path) -> MakeUrl:
    """A function that returns the URL of a database of the engine that is not there yet, or has nothing in it."""

    def make(engine: str) -> str:
        if engine == "sqlite":
            return f"sqlite:///{tmp_path}/new-{len(list(tmp_path.iterdir()))}.sqlite3"
        return request.getfixturevalue("make_postgres_database")()

    return make


def copydb(source: str, target: str, *options: str) -> str:
    out = io.StringIO()
    call_command("copydb", source, target, *options, stdout=out, stderr=io.StringIO())
    return out.getvalue()


def refusal(source: str, target: str, *options: str) -> str:
    with pytest.raises(CommandError) as caught:
        copydb(source, target, *options)
    assert caught.value.returncode == 2
    return str(caught.value)


def fill(url: str) -> None:
    with agentdb.connect(url) as db:
        db.upsert_agent("名前 🤖", "/srv/\\n\t'quoted'\"", "acme")
        db.upsert_agent("名前 🤖", "/srv/2", "acme")
        db.upsert_agent("plain", "")
        db.insert_session("s1", "plain", "b1")
        db.update_session_runner("s1", "runner with space")
        db.insert_session("s2", "plain", "b1", "acme")
        db.insert_sandbox("b1", "plain", "/w" * 3000, "s1")
        db.insert_sandbox("b2", "plain", "\\N")
        db.insert_sandbox("b3\ta\nb", "\r\n", "\\ \b\v\f\r\\.")
        db.issue_api_key("acme", "")


def contents(url: str) -> list[object]:
    with agentdb.connect(url) as db:
        tenants = ("default", "acme")
        return [
            [db.list_agents(tenant) for tenant in tenants],
            [db.list_sessions(tenant) for tenant in tenants],
            [db.get_sandbox(id) for id in ("b1", "b2", "b3\ta\nb")],
            [db.list_api_keys_by_tenant(tenant) for tenant in tenants],
        ]


@pytest.mark.parametrize("target_engine", ["sqlite", "postgresql"])
def test_copydb_moves_every_row_between_engines(
    url: str, target_engine: str, make_url: MakeUrl
) -> None:
    fill(url)
    target = make_url(target_engine)

    printed = copydb(url, target)

    assert printed.splitlines()[:4] == [
        "agents: 2 rows copied.",
        "sessions: 2 rows copied.",
        "sandboxes: 3 rows copied.",
        "api_keys: 1 rows copied.",
    ]
    assert contents(target) == contents(url)


def test_copydb_moves_more_rows_than_it_holds_at_once(
    url: str, make_url: MakeUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentdb.moving.chunks.ROWS_A_CHUNK", 2)
    ids = [f"s{number}" for number in range(7)]
    with agentdb.connect(url) as db:
        db.run_transaction(lambda db: [db.insert_session(id, "a", "b") for id in ids])
    target = make_url("sqlite")

    copydb(url, target)

    assert contents(target) == contents(url)
    stored = execute(target, "SELECT id FROM sessions ORDER BY rowid")
    assert stored == [(id,) for id in ids]  # neighbours are in the same pages


def damage(url: str, name: str) -> str:
    """Overwrite the first page of a table or index; return the sentence about the file."""
    path = sqlite_path(url)
    [(page,)] = execute(
        url, f"SELECT rootpage FROM sqlite_master WHERE name = '{name}'"
    )
    [(size,)] = execute(url, "PRAGMA page_size")
    with path.open("r+b") as file:
        file.seek((page - 1) * size)
        file.write(b"\xff" * size)
    return f"The database file {str(path)!r} is damaged: database disk image is malformed. Restore a backup."


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_damaged_page_stops_a_copy_before_it_writes(
    url: str, make_url: MakeUrl
) -> None:
    fill(url)
    sentence = damage(url, "agents")
    target = make_url("sqlite")

    assert refusal(url, target) == sentence
    assert not sqlite_path(target).exists()


@pytest.mark.parametrize("engine", ["sqlite"])
def test_an_error_of_the_source_in_the_middle_of_a_copy_is_not_called_the_target_s(
    url: str, make_url: MakeUrl
) -> None:
    fill(url)
    # Rows are copied in the order of this index. Whether they can be is asked of the table itself.
    sentence = damage(url, "sqlite_autoindex_agents_1")

    assert refusal(url, make_url("sqlite")) == sentence


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_target_that_changes_what_it_stores_is_found_by_reading_it_back(
    url: str, make_url: MakeUrl
) -> None:
    fill(url)
    target = make_url("sqlite")
    agentdb.connect(target, migrate=True).close()
    execute(
        target,
        "CREATE TRIGGER meddling AFTER INSERT ON agents BEGIN UPDATE agents SET version = 9 WHERE id = new.id; END",
    )

    assert refusal(url, target) == (
        "The target does not hold what was written to 'agents'. Copy into a new database."
    )


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_table_is_known_by_its_name_in_other_capitals(
    url: str, make_url: MakeUrl, engine: str
) -> None:
    fill(url)
    for name, other in (("sandboxes", "x"), ("x", '"Sandboxes"')):
        execute(url, f"ALTER TABLE {name} RENAME TO {other}")
    target = make_url("sqlite")
    empty = make_url("sqlite")
    agentdb.connect(empty, migrate=True).close()

    copied = copydb(url, target)

    assert "sandboxes: 3 rows copied.\n" in copied
    assert "Not copied" not in copied
    assert contents(target) == contents(url)
    for table in ("agents", "sessions", "api_keys"):
        execute(url, f"DELETE FROM {table}")
    assert refusal(empty, url) == (
        "The target has rows already, in sandboxes. Copy into a new database; nothing was changed."
    )


def test_copydb_refuses_a_target_with_rows(url: str, make_url: MakeUrl) -> None:
    target = make_url("sqlite")
    agentdb.connect(target, migrate=True).close()
    fill(url)
    fill(target)
    before = contents(target)

    assert refusal(url, target) == (
        "The target has rows already, in agents, sessions, sandboxes, api_keys. "
        "Copy into a new database; nothing was changed."
    )
    assert contents(target) == before


def test_copydb_refuses_a_source_that_is_not_adopted(
    tmp_path: Path, make_url: MakeUrl
) -> None:
    old = tmp_path / "old.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-a.db", old)

    assert refusal(f"sqlite:///{old}", make_url("sqlite")) == (
        f"SQLite database '{old}' was made by the old server and is not adopted yet (pending: 0001_initial, "
        "0002_native_timestamps, 0003_query_indexes, 0004_fleet_indexes). Run 'agentdb baselinedb --check' to see what "
        "adopting it does, then 'agentdb baselinedb'."
    )


def test_copydb_refuses_a_source_that_has_drifted(url: str, make_url: MakeUrl) -> None:
    execute(url, "DROP INDEX idx_sessions_created")

    message = refusal(url, make_url("sqlite"))

    assert "is not what the models say: " in message
    assert "idx_sessions_created" in message
    assert message.endswith("Run 'agentdb verifydb'.")


def test_copydb_refuses_what_postgresql_cannot_hold_and_copies_nothing(
    tmp_path: Path, make_url: MakeUrl
) -> None:
    source, target = f"sqlite:///{tmp_path}/nul.sqlite3", make_url("postgresql")
    agentdb.connect(source, migrate=True).close()
    fill(source)
    execute(
        source,
        "UPDATE sandboxes SET workspace_dir = 'a' || char(0) || 'b' WHERE id = 'b2'",
    )

    assert refusal(source, target) == (
        "1 value cannot be copied; nothing was copied. Fix them in the source, and run the command again.\n"
        "  table 'sandboxes', id 'b2', column 'workspace_dir': 'a\\x00b' has a NUL character, which PostgreSQL cannot "
        "store"
    )
    assert "agents" not in tables(target)


def test_copydb_refuses_a_missing_source_and_makes_no_file(
    tmp_path: Path, make_url: MakeUrl
) -> None:
    missing = tmp_path / "missing.sqlite3"

    assert refusal(f"sqlite:///{missing}", make_url("sqlite")) == (
        f"The database file '{missing}' does not exist. Check the database URL, or run "
        "'agentdb migrate' to make a new one."
    )
    assert not missing.exists()


def test_verify_copies_into_an_empty_target_and_compares(
    url: str, make_url: MakeUrl
) -> None:
    fill(url)
    target = make_url("sqlite")

    printed = copydb(url, target, "--verify")

    assert "agents: 2 rows copied." in printed
    assert printed.endswith(" holds.\n")


@pytest.mark.parametrize("value", ["C:\\new\\table", "a\rb", "\b\f\v"])
def test_a_value_that_only_copy_would_read_otherwise_is_copied_as_it_is(
    value: str, make_url: MakeUrl
) -> None:
    source, target = make_url("sqlite"), make_url("postgresql")
    with agentdb.connect(source, migrate=True) as db:
        db.insert_sandbox("b1", "plain", value)
    copydb(source, target)
    with agentdb.connect(target) as db:
        copied = db.get_sandbox("b1")
    assert copied is not None and copied.workspace_dir == value


def test_verify_names_the_table_that_differs_and_copies_nothing(
    url: str, make_url: MakeUrl
) -> None:
    fill(url)
    target = make_url("sqlite")
    copydb(url, target)
    with agentdb.connect(target) as db:
        db.update_sandbox_state("b1", "cold")
        db.insert_session("s3", "plain", "b1")
    before = contents(target)
    out = io.StringIO()

    with pytest.raises(SystemExit) as exit:
        call_command("copydb", url, target, "--verify", stdout=out)

    assert exit.value.code == 1
    assert out.getvalue().splitlines() == [
        "Table 'sessions', id 's3': only in the target.",
        "Table 'sandboxes', id 'b1': state is 'warming' in the source, 'cold' in the target.",
    ]
    assert contents(target) == before


@pytest.mark.parametrize("engine", ["sqlite"])
def test_verify_names_a_value_with_bytes_that_no_text_has(
    url: str, make_url: MakeUrl, engine: str
) -> None:
    fill(url)
    target = make_url("sqlite")
    copydb(url, target)
    execute(target, "UPDATE agents SET path = CAST(x'2fff61' AS TEXT)")
    out = io.StringIO()

    with pytest.raises(SystemExit):
        call_command("copydb", url, target, "--verify", stdout=out)

    assert (
        r"path is '/srv/2' in the source, '/\udcffa' in the target." in out.getvalue()
    )


def test_verify_names_rows_that_one_side_lacks_between_rows_of_both(
    url: str, make_url: MakeUrl
) -> None:
    target = make_url("sqlite")
    for place, ids in ((url, "acf"), (target, "bcde")):
        with agentdb.connect(place, migrate=True) as db:
            for id in ids:
                db.insert_sandbox(id, "a", "/")
        execute(
            place,
            "UPDATE sandboxes SET created_at = '2026-01-01 00:00:00', last_used_at = '2026-01-01 00:00:00'",
        )
    out = io.StringIO()

    with pytest.raises(SystemExit):
        call_command("copydb", url, target, "--verify", stdout=out)

    assert out.getvalue().splitlines() == [
        "Table 'sandboxes', id 'a': only in the source.",
        "Table 'sandboxes', id 'b': only in the target.",
        "Table 'sandboxes', id 'd': only in the target.",
        "Table 'sandboxes', id 'e': only in the target.",
        "Table 'sandboxes', id 'f': only in the source.",
    ]


def test_verify_ends_while_rows_of_the_last_table_are_unread(
    url: str, make_url: MakeUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentdb.moving.chunks.ROWS_A_CHUNK", 2)
    with agentdb.connect(url) as db:
        for number in range(30):
            db.insert_api_key(f"k{number:02}", "acme", f"hash {number}", "label")
    target = make_url("postgresql")
    copydb(url, target)
    execute(target, "UPDATE api_keys SET label = 'other'")
    out = io.StringIO()

    with pytest.raises(SystemExit):
        call_command("copydb", url, target, "--verify", stdout=out)

    assert out.getvalue().splitlines()[-1] == "Table 'api_keys': more rows differ."


def test_verify_stops_naming_rows_after_twenty_and_goes_on_with_the_next_table(
    url: str, make_url: MakeUrl
) -> None:
    with agentdb.connect(url) as db:
        db.run_transaction(
            lambda db: [
                db.insert_session(f"s{number:02}", "a", "b") for number in range(30)
            ]
        )
        db.insert_sandbox("b1", "a", "/")
    target = make_url("postgresql")
    copydb(url, target)
    execute(target, "UPDATE sessions SET status = 'other'")
    execute(target, "UPDATE sandboxes SET state = 'other'")
    out = io.StringIO()

    with pytest.raises(SystemExit):
        call_command("copydb", url, target, "--verify", stdout=out)

    lines = out.getvalue().splitlines()
    assert len(lines) == 20 + 1 + 1
    assert lines[-2:] == [
        "Table 'sessions': more rows differ.",
        "Table 'sandboxes', id 'b1': state is 'warming' in the source, 'other' in the target.",
    ]


def test_the_checksum_sees_a_microsecond(url: str, make_url: MakeUrl) -> None:
    fill(url)
    target = make_url("sqlite")
    copydb(url, target)
    [(text,)] = execute(target, "SELECT created_at FROM sessions WHERE id = 's1'")
    moved = datetime.fromisoformat(text).replace(tzinfo=UTC) + timedelta(microseconds=1)
    execute(target, "UPDATE sessions SET created_at = ? WHERE id = 's1'", moved)

    with pytest.raises(SystemExit):
        copydb(url, target, "--verify")


def test_verify_gives_up_no_row_to_null_and_empty_text(
    url: str, make_url: MakeUrl
) -> None:
    with agentdb.connect(url) as db:
        db.insert_session("empty", "a", "b")
        db.insert_session("null", "a", "b")
    execute(url, "UPDATE sessions SET runner_id = '' WHERE id = 'empty'")
    target = make_url("postgresql")

    copydb(url, target)

    assert execute(target, "SELECT id, runner_id FROM sessions ORDER BY id") == [
        ("empty", ""),
        ("null", None),
    ]


def test_copydb_names_every_kind_of_value_that_cannot_be_copied_before_it_writes(
    tmp_path: Path, make_url: MakeUrl
) -> None:
    source, target = f"sqlite:///{tmp_path}/bad.sqlite3", make_url("postgresql")
    agentdb.connect(source, migrate=True).close()
    fill(source)
    execute(
        source,
        "UPDATE agents SET id = 'plain', version = 1099511627776 WHERE name = 'plain'",
    )
    execute(source, "UPDATE sessions SET created_at = 'not-a-date' WHERE id = 's1'")
    execute(
        source,
        "UPDATE sessions SET last_active_at = '2026-02-19T20:53:16.123Z' WHERE id = 's2'",
    )
    execute(
        source,
        "UPDATE sandboxes SET workspace_dir = CAST(x'ff41' AS TEXT) WHERE id = 'b1'",
    )

    for options in ((), ("--dry-run",)):
        assert refusal(source, target, *options).splitlines() == [
            "4 values cannot be copied; nothing was copied. Fix them in the source, and run the command again.",
            "  table 'agents', id 'plain', column 'version': 1099511627776 does not fit into 32 bits",
            "  table 'sessions', id 's1', column 'created_at': 'not-a-date' is in no known timestamp format",
            "  table 'sessions', id 's2', column 'last_active_at': '2026-02-19T20:53:16.123Z' is not in the spelling "
            "of a native timestamp; run 'agentdb baselinedb' on the source",
            "  table 'sandboxes', id 'b1', column 'workspace_dir': b'\\xffA' is not valid UTF-8",
        ]
    assert execute(
        target, "SELECT count(*) FROM pg_tables WHERE schemaname = 'public'"
    ) == [(0,)]


@pytest.mark.parametrize("engine", ["postgresql"])
@pytest.mark.parametrize(
    ("stored", "shown"),
    [
        ("infinity", "infinity"),
        ("12026-01-01 00:00:00+00", "12026-01-01 00:00:00"),
        ("0044-03-15 00:00:00+00 BC", "0044-03-15 00:00:00+00 BC"),
    ],
)
def test_copydb_names_times_that_only_a_server_stores(
    url: str, make_url: MakeUrl, engine: str, stored: str, shown: str
) -> None:
    fill(url)
    execute(url, f"UPDATE sessions SET created_at = '{stored}' WHERE id = 's1'")
    target = make_url("sqlite")

    assert refusal(url, target).splitlines()[1:] == [
        f"  table 'sessions', id 's1', column 'created_at': {shown!r} is outside the years 1 to 9999"
    ]
    assert not sqlite_path(target).exists()


def test_a_copy_looks_at_each_column_of_the_models() -> None:
    for model in apps.get_app_config("agentdb").get_models():
        columns = {field.column for field in model._meta.concrete_fields}
        assert columns == set(OLD_COLUMNS[model._meta.db_table])


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ("sessions SET sandbox_id = x'61' WHERE id = 's1'", "id 's1', column 'sandbox_id': b'a' is not text"),
        ("agents SET id = 'a', version = 'x' WHERE name = 'plain'", "id 'a', column 'version': 'x' is not an integer"),
    ],
)  # fmt: skip
def test_copydb_finds_the_one_value_that_cannot_be_copied(
    change: str, named: str, tmp_path: Path, make_url: MakeUrl
) -> None:
    source, target = f"sqlite:///{tmp_path}/bad.sqlite3", make_url("postgresql")
    agentdb.connect(source, migrate=True).close()
    fill(source)
    execute(source, f"UPDATE {change}")

    assert refusal(source, target).splitlines()[1].partition(", ")[2] == named


def test_a_dry_run_copies_nothing_and_makes_no_file(url: str, tmp_path: Path) -> None:
    fill(url)

    printed = copydb(url, f"sqlite:///{tmp_path}/not-made.sqlite3", "--dry-run")

    assert printed.splitlines() == [
        "agents: 2 rows to copy.",
        "sessions: 2 rows to copy.",
        "sandboxes: 3 rows to copy.",
        "api_keys: 1 rows to copy.",
        "Nothing was copied.",
    ]
    assert not (tmp_path / "not-made.sqlite3").exists()


def test_copy_database_returns_the_rows_of_each_table(
    url: str, make_url: MakeUrl
) -> None:
    fill(url)
    target = make_url("postgresql")

    assert agentdb.copy_database(url, target) == {
        "agents": 2,
        "sessions": 2,
        "sandboxes": 3,
        "api_keys": 1,
    }
    assert contents(target) == contents(url)


@pytest.mark.parametrize("engine", ["sqlite"])
def test_ctrl_c_while_the_values_are_checked_is_no_fault_of_the_file(
    url: str, make_url: MakeUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Python runs a signal's handler in the function that SQLite calls for each row."""
    fill(url)

    def interrupted(value: bytes) -> bool:
        raise KeyboardInterrupt

    monkeypatch.setattr("agentdb.schema.rows._is_plain", interrupted)
    target = make_url("sqlite")

    with pytest.raises(SystemExit) as ended:
        copydb(url, target)

    assert ended.value.code == 130
    assert not sqlite_path(target).exists()


KILLED = """
import os, signal, sys, threading, time
from agentdb import copy_database
from agentdb.moving import chunks, copydb
import agentdb.serving.opening, agentdb.schema.migration_record
agentdb.serving.opening.configure(sys.argv[1])
chunks.ROWS_A_CHUNK = 5
keep = copydb._keep
def slow(*args):
    time.sleep(0.005)
    keep(*args)
copydb._keep = slow
threading.Timer(float(sys.argv[3]), os.kill, (os.getpid(), signal.SIGKILL)).start()
copy_database(sys.argv[1], sys.argv[2])
os._exit(0)
"""


@pytest.mark.parametrize("target_engine", ["sqlite", "postgresql"])
def test_a_copy_killed_at_any_moment_goes_on(
    tmp_path: Path, make_url: MakeUrl, target_engine: str
) -> None:
    """Also while it migrates the target. AGENTDB_TEST_KILLS=100 for the long run."""
    source, target = f"sqlite:///{tmp_path}/source.sqlite3", make_url(target_engine)
    with agentdb.connect(source, migrate=True) as db:
        db.run_transaction(
            lambda db: [
                db.insert_session(f"s{number:05}", "a", "b") for number in range(500)
            ]
        )
    fill(source)
    kills = int(os.environ.get("AGENTDB_TEST_KILLS", "3"))
    chance = random.Random(kills)
    killed = 0
    while killed < kills:
        run = subprocess.run(
            [
                sys.executable,
                "-c",
                KILLED,
                source,
                target,
                str(chance.uniform(0.05, 0.9)),
            ],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert run.returncode in (0, -signal.SIGKILL), run.stderr
        killed += run.returncode != 0
        if not run.returncode:
            assert_copied(source, target)
            target = make_url(target_engine)
    try:
        copydb(source, target)
    except CommandError as error:  # the last one was killed when everything was copied
        assert str(error).startswith("The target has rows already")
    assert_copied(source, target)


def assert_copied(source: str, target: str) -> None:
    assert contents(target) == contents(source)
    assert "agentdb_copy" not in tables(target)
    with temporary_alias(target) as alias:
        call_command("verifydb", database=alias, stdout=io.StringIO())


@pytest.mark.parametrize("target_engine", ["sqlite", "postgresql"])
def test_a_copy_stopped_while_it_builds_the_indexes_goes_on(
    url: str, make_url: MakeUrl, target_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(url)
    target = make_url(target_engine)

    def stop(table: str, done: int, total: int) -> None:
        if (table, done) == ("indexes", 5):
            raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        stopping.setattr(
            "agentdb.management.output.ProgressLine.__call__",
            lambda self, *args: stop(*args),
        )
        with pytest.raises(SystemExit):
            copydb(url, target)

    copydb(url, target)

    assert_copied(url, target)


def tables(url: str) -> set[str]:
    catalog = (
        "sqlite_master WHERE type = 'table'"
        if url.startswith("sqlite")
        else "pg_class WHERE relkind = 'r'"
    )
    column = "name" if url.startswith("sqlite") else "relname"
    return {name for (name,) in execute(url, f"SELECT {column} FROM {catalog}")}


@pytest.mark.parametrize("target_engine", ["sqlite", "postgresql"])
def test_a_resumed_copy_keeps_what_is_there_and_begins_anew_where_the_source_has_changed(
    url: str, make_url: MakeUrl, target_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentdb.moving.chunks.ROWS_A_CHUNK", 2)
    with agentdb.connect(url) as db:
        db.run_transaction(
            lambda db: [
                db.insert_session(f"s{number}", "a", "b") for number in range(7)
            ]
        )
        db.upsert_agent("a", "/")
    target = make_url(target_engine)

    def stop(table: str, done: int, total: int) -> None:
        if (table, done) == ("sessions", 4):
            raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        stopping.setattr(
            "agentdb.management.output.ProgressLine.__call__",
            lambda self, *args: stop(*args),
        )
        err = io.StringIO()
        with pytest.raises(SystemExit) as exit:
            call_command("copydb", url, target, stdout=io.StringIO(), stderr=err)
    assert exit.value.code == 130
    assert err.getvalue().splitlines()[-1] == (
        "Interrupted. The source was not changed; what was copied stays in the target, and the same command goes on "
        "from there."
    )
    assert execute(target, "SELECT count(*) FROM sessions") == [(4,)]
    with agentdb.connect(url) as db:
        db.update_session_status("s1", "paused")

    err = io.StringIO()
    call_command("copydb", url, target, stdout=io.StringIO(), stderr=err)

    assert "agents: going on after 1 rows." in err.getvalue()
    assert "sessions: the source has changed since; copying it again." in err.getvalue()
    assert contents(target) == contents(url)


def test_an_unfinished_copy_of_another_source_is_not_mixed_with_this_one(
    url: str, make_url: MakeUrl
) -> None:
    target = make_url("sqlite")
    agentdb.connect(target, migrate=True).close()
    execute(
        target,
        "CREATE TABLE agentdb_copy (name text PRIMARY KEY, copied integer, checksum text)",
    )
    execute(target, "INSERT INTO agentdb_copy VALUES ('', 0, 'PostgreSQL database x')")

    assert refusal(url, target) == (
        "The target holds an unfinished copy of PostgreSQL database x. Run that copy again, or copy into a new "
        "database; nothing was changed."
    )


@pytest.mark.parametrize("target_engine", ["sqlite", "postgresql"])
def test_a_resumed_copy_copies_what_came_behind_the_last_row_since(
    url: str, make_url: MakeUrl, target_engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentdb.moving.chunks.ROWS_A_CHUNK", 2)
    with agentdb.connect(url) as db:
        for number in range(3):
            db.insert_session(f"s{number}", "a", "b")
    target = make_url(target_engine)

    def stop(table: str, done: int, total: int) -> None:
        if table == "indexes":
            raise KeyboardInterrupt

    with monkeypatch.context() as stopping:
        stopping.setattr(
            "agentdb.management.output.ProgressLine.__call__",
            lambda self, *args: stop(*args),
        )
        with pytest.raises(SystemExit):
            copydb(url, target)
    with agentdb.connect(url) as db:
        for number in range(3, 5):
            db.insert_session(f"s{number}", "a", "b")

    copydb(url, target)

    assert_copied(url, target)
