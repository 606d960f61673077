"""backup and restore: one file that can be trusted, from any engine and into any."""

from __future__ import annotations

import io
import os
import stat
import threading
from functools import partial
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command

import agentdb
from agentdb.serving.opening import temporary_alias
from tests.helpers.factories import execute
from tests.moving.test_copydb import MakeUrl, contents, fill, make_url  # noqa: F401 (a fixture)


def run(command: str, url: str, file: Path) -> str:
    out = io.StringIO()
    with temporary_alias(url) as alias:
        call_command(
            command, str(file), database=alias, stdout=out, stderr=io.StringIO()
        )
    return out.getvalue()


@pytest.mark.parametrize("target_engine", ["sqlite", "postgresql"])
def test_a_backup_is_one_file_and_restores_into_any_engine(
    url: str,
    tmp_path: Path,
    target_engine: str,
    make_url: MakeUrl,  # noqa: F811
) -> None:
    fill(url)
    before = contents(url)
    folder = tmp_path / "backups"
    folder.mkdir()
    file = folder / "state.sqlite3"

    assert run("backup", url, file) == f"Backup: {file}\n"

    assert [path.name for path in folder.iterdir()] == ["state.sqlite3"]
    assert stat.S_IMODE(os.stat(file).st_mode) == 0o600
    target = make_url(target_engine)
    assert run("restore", target, file).splitlines()[0] == "agents: 2 rows restored."
    assert contents(target) == before
    assert [path.name for path in folder.iterdir()] == ["state.sqlite3"]


def test_an_interrupted_restore_says_what_is_there_and_goes_on(
    url: str,
    tmp_path: Path,
    make_url: MakeUrl,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fill(url)
    file = tmp_path / "state.sqlite3"
    run("backup", url, file)
    target = make_url("sqlite")

    def stop(line: object, table: str, done: int, total: int) -> None:
        if table == "sessions":
            raise KeyboardInterrupt

    err = io.StringIO()
    with (
        monkeypatch.context() as stopping,
        temporary_alias(target) as alias,
        pytest.raises(SystemExit) as exit,
    ):
        stopping.setattr("agentdb.management.output.ProgressLine.__call__", stop)
        call_command(
            "restore", str(file), database=alias, stdout=io.StringIO(), stderr=err
        )

    assert exit.value.code == 130
    assert err.getvalue().splitlines()[-1] == (
        "Interrupted. What was restored stays, and the same command goes on from there."
    )
    run("restore", target, file)
    assert contents(target) == contents(url)


def test_a_backup_overwrites_nothing(url: str, tmp_path: Path) -> None:
    file = tmp_path / "there.sqlite3"
    file.write_text("precious")

    with pytest.raises(CommandError) as refusal:
        run("backup", url, file)

    assert refusal.value.returncode == 2
    assert (
        str(refusal.value)
        == f"The file '{file}' already exists and is not overwritten. Name another one."
    )
    assert file.read_text() == "precious"


@pytest.mark.parametrize("end", ["-wal", "-journal", "-shm"])
def test_a_backup_is_not_put_beside_the_log_of_a_database_that_was_there(
    url: str, tmp_path: Path, end: str
) -> None:
    file = tmp_path / "state.sqlite3"
    log = tmp_path / f"state.sqlite3{end}"
    log.write_text("frames of another database")

    with pytest.raises(CommandError) as refusal:
        run("backup", url, file)

    assert str(refusal.value) == (
        f"The file '{log}' already exists and is not overwritten. Name another one."
    )
    assert [
        path.name for path in tmp_path.iterdir() if path.name.startswith("state")
    ] == [log.name]


def test_a_backup_is_of_one_moment_of_a_database_in_use(
    url: str, tmp_path: Path
) -> None:
    """The two sessions of a pair are written in one transaction: a backup has both or neither."""
    stop = threading.Event()

    def insert(pair: tuple[str, str], db: agentdb.Db) -> None:
        for id in pair:
            db.insert_session(id, "x", "y")

    def write() -> None:
        with agentdb.connect(url) as db:
            number = 0
            while not stop.is_set():
                number += 1
                pair = (f"a{number}", f"b{number}")
                db.run_transaction(partial(insert, pair))

    writer = threading.Thread(target=write)
    writer.start()
    try:
        for number in range(3):
            run("backup", url, tmp_path / f"{number}.backup")
    finally:
        stop.set()
        writer.join()

    for number in range(3):
        ids = {
            id
            for (id,) in execute(
                f"sqlite:///{tmp_path}/{number}.backup", "SELECT id FROM sessions"
            )
        }
        assert {id[1:] for id in ids if id[0] == "a"} == {
            id[1:] for id in ids if id[0] == "b"
        }


def test_a_restore_says_why_it_does_not(url: str, tmp_path: Path) -> None:
    fill(url)
    file = tmp_path / "state.backup"
    run("backup", url, file)
    (tmp_path / "text").write_text("no database")

    def refusal(name: Path) -> str:
        with pytest.raises(CommandError) as caught:
            run("restore", url, name)
        assert caught.value.returncode == 2
        return str(caught.value)

    assert refusal(file) == (
        "The target has rows already, in agents, sessions, sandboxes, api_keys. Copy into a new database; nothing was "
        "changed."
    )
    assert refusal(tmp_path / "none") == f"The backup '{tmp_path}/none' does not exist."
    assert (
        refusal(tmp_path / "text")
        == f"'{tmp_path}/text' is not a SQLite database, or it is encrypted. Check the database URL."
    )


def test_a_backup_whose_name_is_not_utf_8_is_refused_where_a_url_must_name_it(
    url: str, engine: str, tmp_path: Path
) -> None:
    fill(url)
    file = tmp_path / os.fsdecode(b"\xff.sqlite3")
    refused = r"^The path '.*\\udcff\.sqlite3.*' is not valid UTF-8\. Use another file or folder\.$"

    if engine == "sqlite":  # which is copied as a file
        run("backup", url, file)
    else:
        with pytest.raises(CommandError, match=refused):
            run("backup", url, file)
        assert list(tmp_path.iterdir()) == []
        file.touch()

    with pytest.raises(CommandError, match=refused):
        run("restore", url, file)
