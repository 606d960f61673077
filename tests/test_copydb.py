"""copydb between engines: every row arrives as it was, or nothing does."""

from __future__ import annotations

import io
import shutil
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

import agentdb
from tests.factories import execute
from tests.legacy_databases import FOLDER

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
        db.issue_api_key("acme", "")


def contents(url: str) -> list[object]:
    with agentdb.connect(url) as db:
        tenants = ("default", "acme")
        return [
            [db.list_agents(tenant) for tenant in tenants],
            [db.list_sessions(tenant) for tenant in tenants],
            [db.get_sandbox(id) for id in ("b1", "b2")],
            [db.list_api_keys_by_tenant(tenant) for tenant in tenants],
        ]


@pytest.mark.parametrize("target_engine", ["sqlite", "postgresql"])
def test_copydb_moves_every_row_between_engines(url: str, target_engine: str, make_url: MakeUrl) -> None:
    fill(url)
    target = make_url(target_engine)

    printed = copydb(url, target)

    assert printed.splitlines()[:4] == [
        "agents: 2 rows copied.",
        "sessions: 2 rows copied.",
        "sandboxes: 2 rows copied.",
        "api_keys: 1 rows copied.",
    ]
    assert contents(target) == contents(url)


def test_copydb_moves_more_rows_than_it_holds_at_once(
    url: str, make_url: MakeUrl, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentdb.copydb._ROWS_AT_ONCE", 2)
    with agentdb.connect(url) as db:
        db.run_transaction(lambda db: [db.insert_session(f"s{number}", "a", "b") for number in range(7)])
    target = make_url("sqlite")

    copydb(url, target)

    assert contents(target) == contents(url)


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


def test_copydb_refuses_a_source_that_is_not_adopted(tmp_path: Path, make_url: MakeUrl) -> None:
    old = tmp_path / "old.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-a.db", old)

    assert refusal(f"sqlite:///{old}", make_url("sqlite")) == (
        f"SQLite database '{old}' lacks the migrations 0001_initial, 0002_native_timestamps, 0003_query_indexes. "
        "Run 'agentdb baselinedb' on a database of the old server, 'agentdb migrate' on any other."
    )


def test_copydb_refuses_a_source_that_has_drifted(url: str, make_url: MakeUrl) -> None:
    execute(url, "DROP INDEX idx_sessions_created")

    message = refusal(url, make_url("sqlite"))

    assert "is not what the models say: " in message
    assert "idx_sessions_created" in message
    assert message.endswith("Run 'agentdb verifydb'.")


def test_copydb_refuses_what_postgresql_cannot_hold_and_copies_nothing(tmp_path: Path, make_url: MakeUrl) -> None:
    source, target = f"sqlite:///{tmp_path}/nul.sqlite3", make_url("postgresql")
    agentdb.connect(source, migrate=True).close()
    fill(source)
    execute(source, "UPDATE sandboxes SET workspace_dir = 'a' || char(0) || 'b' WHERE id = 'b2'")

    assert refusal(source, target) == (
        "1 values have a NUL character, which PostgreSQL cannot store; nothing was copied: "
        "sandboxes 'b2' workspace_dir 'a\\x00b'."
    )
    with agentdb.connect(target) as db:
        assert db.list_agents() == []


def test_copydb_refuses_a_missing_source_and_makes_no_file(tmp_path: Path, make_url: MakeUrl) -> None:
    missing = tmp_path / "missing.sqlite3"

    assert refusal(f"sqlite:///{missing}", make_url("sqlite")) == (
        f"There is no database file '{missing}'. Check the database URL, or run 'agentdb migrate' to make a new one."
    )
    assert not missing.exists()


def test_verify_copies_into_an_empty_target_and_compares(url: str, make_url: MakeUrl) -> None:
    fill(url)
    target = make_url("sqlite")

    printed = copydb(url, target, "--verify")

    assert "agents: 2 rows copied." in printed
    assert printed.endswith(" holds.\n")


def test_verify_names_the_table_that_differs_and_copies_nothing(url: str, make_url: MakeUrl) -> None:
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
        "Table 'sessions' differs: 2 rows in the source, 3 in the target.",
        "Table 'sandboxes' differs: 2 rows in the source, 2 in the target, with different values.",
    ]
    assert contents(target) == before


def test_the_checksum_sees_a_microsecond(url: str, make_url: MakeUrl) -> None:
    fill(url)
    target = make_url("sqlite")
    copydb(url, target)
    [(text,)] = execute(target, "SELECT created_at FROM sessions WHERE id = 's1'")
    moved = datetime.fromisoformat(text).replace(tzinfo=UTC) + timedelta(microseconds=1)
    execute(target, "UPDATE sessions SET created_at = ? WHERE id = 's1'", moved)

    with pytest.raises(SystemExit):
        copydb(url, target, "--verify")
