"""A SQLite file whose texts are UTF-16 is refused by everything that would open it, and is not changed."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

import agentdb
from tests.helpers.baseline_runs import baselinedb
from tests.helpers.legacy_databases import FOLDER, manage, opened

ENCODINGS = ("UTF-16le", "UTF-16be")


@pytest.fixture(params=ENCODINGS)
def file(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, str]:
    path = tmp_path / "wide.db"
    with (
        closing(sqlite3.connect(path)) as connection,
        closing(sqlite3.connect(FOLDER / "sqlite" / "era-b.db")) as old,
    ):
        connection.execute(f"PRAGMA encoding = '{request.param}'")
        connection.executescript("".join(old.iterdump()))
    return path, (
        f"The SQLite file '{path}' stores its texts as {request.param}, and agentdb works with UTF-8 only. Convert it: "
        "stop every program that uses it, run 'sqlite3 FILE .dump | sqlite3 NEWFILE', and use the new file."
    )


def _restore(path: Path) -> None:
    with opened(f"sqlite:///{path.parent}/target.db") as connection:
        call_command("restore", str(path), database=connection.alias)


def _command(name: str, *arguments: str) -> Callable[[Path], None]:
    def run(path: Path) -> None:
        with opened(f"sqlite:///{path}") as connection:
            manage(connection, name, *arguments)

    return run


WAYS: dict[str, Callable[[Path], object]] = {
    "connect": lambda path: agentdb.connect(f"sqlite:///{path}"),
    "connect and migrate": lambda path: agentdb.connect(
        f"sqlite:///{path}", migrate=True
    ),
    "copydb": lambda path: call_command(
        "copydb", f"sqlite:///{path}", f"sqlite:///{path.parent}/target.db"
    ),
    "copydb into it": lambda path: call_command(
        "copydb", f"sqlite:///{path.parent}/full.db", f"sqlite:///{path}"
    ),
    "migrate": _command("migrate", "agentdb"),
    "verifydb": _command("verifydb"),
    "restore": _restore,
}


@pytest.mark.parametrize("way", WAYS)
def test_it_is_refused(file: tuple[Path, str], way: str):
    path, sentence = file
    before = path.read_bytes()
    agentdb.connect(f"sqlite:///{path.parent}/full.db", migrate=True).close()

    with pytest.raises((agentdb.AgentDbError, CommandError)) as refused:
        WAYS[way](path)

    assert str(refused.value) == sentence
    assert path.read_bytes() == before


def test_backup_refuses_it(file: tuple[Path, str], tmp_path: Path):
    path, sentence = file
    with (
        opened(f"sqlite:///{path}") as connection,
        pytest.raises(CommandError) as refused,
    ):
        call_command("backup", str(tmp_path / "copy.db"), database=connection.alias)

    assert str(refused.value) == sentence
    assert not (tmp_path / "copy.db").exists()


def test_baselinedb_refuses_it(file: tuple[Path, str]):
    path, sentence = file

    assert [
        baselinedb(f"sqlite:///{path}", *words).err for words in ((), ("--check",))
    ] == [sentence] * 2
    assert [found.name for found in path.parent.iterdir()] == ["wide.db"]
