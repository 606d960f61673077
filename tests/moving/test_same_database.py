"""Copies, backups and restores that have nothing to do, or nothing that they could do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

import agentdb
from tests.helpers.legacy_databases import manage, opened, rows, sqlite_path


def test_a_database_is_not_copied_into_itself(url: str):
    with agentdb.connect(url) as db:
        db.upsert_agent(
            "bot", "/bot"
        )  # of which a second run would say that it is there
    with pytest.raises(CommandError) as refused:
        call_command("copydb", url, url)

    assert str(refused.value).startswith(
        "The source and the target are the same database, "
    )
    assert str(refused.value).endswith(". Name two.")


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_database_of_a_server_is_the_same_under_another_name(url: str, engine: str):
    """A copy would wait for a lock that it holds itself."""
    names = {
        "host=/": "host=//",
        "@localhost": "@127.0.0.1",
        "@127.0.0.1": "@localhost",
    }
    (usual,) = [name for name in names if name in url]
    other = url.replace(usual, names[usual])

    with pytest.raises(CommandError, match="are the same database"):
        call_command("copydb", url, other)


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_file_is_not_restored_into_itself(url: str, engine: str):
    with opened(url) as connection, pytest.raises(CommandError) as refused:
        manage(connection, "restore", str(sqlite_path(url)))

    assert str(refused.value) == (
        f"The source and the target are the same database, SQLite database '{sqlite_path(url)}'. Name two."
    )


def test_what_is_copied_already_is_verified(
    url: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    target = f"sqlite:///{tmp_path}/target.db"
    with agentdb.connect(url) as db:
        db.upsert_agent("bot", "/bot")
    call_command("copydb", url, target)
    capsys.readouterr()

    call_command("copydb", url, target)

    assert (
        capsys.readouterr().out
        == "Nothing to do: every row of the source is in the target, verified.\n"
    )

    with opened(target) as connection:
        rows(connection, "DROP INDEX idx_agents_tenant")
    with pytest.raises(
        CommandError, match="Index idx_agents_tenant on agents .tenant_id. is missing"
    ):
        call_command("copydb", url, target)


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_backup_of_missing_tables_is_refused(
    make_damage: Callable[[], str], tmp_path: Path, engine: str
):
    with opened(make_damage()) as connection, pytest.raises(CommandError) as refused:
        manage(connection, "backup", str(tmp_path / "backup.db"))

    assert "lacks the tables sandboxes, though" in str(refused.value)
    assert not (tmp_path / "backup.db").exists()


@pytest.fixture
def make_damage(url: str) -> Callable[[], str]:
    def make() -> str:
        with opened(url) as connection:
            rows(connection, "DROP TABLE sandboxes")
        return url

    return make


def test_a_name_that_is_too_long_is_refused(url: str, tmp_path: Path):
    name = "n" * 300
    with opened(url) as connection, pytest.raises(CommandError) as refused:
        manage(connection, "backup", str(tmp_path / name))

    assert str(refused.value).endswith(
        "cannot be written: file name too long. Name another file."
    )
