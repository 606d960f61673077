"""What a power cut leaves of SQLite files, replayed from logs of real programs' writes and syncs, and failing disks.

``AGENTDB_POWER_CUTS`` says how many moments are tried; by hand, 5000 is a good value.
"""

from __future__ import annotations

import os
import re
import shutil
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest

import agentdb
from tests.helpers.baseline_runs import assert_next_run_finishes, baselinedb, digest
from tests.helpers.legacy_databases import FOLDER
from tests.helpers.power import FOLLOWED, contents, cuts, need_strace, run_traced

CUTS = int(os.environ.get("AGENTDB_POWER_CUTS", "60"))
CALLS = 40

# Says each write that was acknowledged. The log is checkpointed often, so that cuts fall into that as well.
WRITER = f"""
import os, sys
import agentdb
with agentdb.connect(sys.argv[1]) as db:
    from django.db import connections
    connections[db.alias].ensure_connection()
    connections[db.alias].connection.execute("PRAGMA wal_autocheckpoint = 12")
    os.write(1, b"ready\\n")
    for number in range({CALLS}):
        try:
            db.insert_session(f"s{{number}}", "agent", "x" * 200)
        except agentdb.AgentDbError as error:
            os.write(1, f"{{type(error).__name__}}: {{error}}\\n".encode())
        else:
            os.write(1, f"done s{{number}}\\n".encode())
    os._exit(0)
"""

COMMAND = """
import sys
from agentdb.__main__ import main
sys.exit(main(sys.argv[1:]))
"""


@pytest.fixture(scope="module", autouse=True)
def _strace() -> None:
    need_strace()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (folder := tmp_path / "disk").mkdir()
    return folder


@pytest.fixture
def path(_migrated_sqlite: Path, folder: Path) -> Path:
    return Path(shutil.copyfile(_migrated_sqlite, folder / "agentdb.sqlite3"))


def is_whole(path: Path) -> bool:
    with closing(sqlite3.connect(path)) as connection:
        return connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def rows(path: Path) -> set[str]:
    with closing(sqlite3.connect(path)) as connection:
        return {id for (id,) in connection.execute("SELECT id FROM sessions")}


def cut_power_of_writer(path: Path, options: str) -> tuple[int, int]:
    """Cut the power at random moments of a writer's; return the damaged files and the lost rows."""
    before, log = contents(path.parent), path.parent.parent / "log"
    said = run_traced(log, FOLLOWED, WRITER, f"sqlite:///{path}{options}")
    assert said == ["ready", *(f"done s{number}" for number in range(CALLS))]
    damaged = lost = 0
    for left, printed in cuts(path.parent, before, log, CUTS, options):
        damaged += not is_whole(left / path.name)
        lost += len(set(re.findall(r"done (s\d+)", printed)) - rows(left / path.name))
    return damaged, lost


@pytest.mark.parametrize("options", ["", "?journal=delete"])
def test_a_power_cut_loses_no_acknowledged_row(path: Path, options: str) -> None:
    assert cut_power_of_writer(path, options) == (0, 0)


def test_a_power_cut_at_synchronous_normal_loses_rows_but_damages_nothing(
    path: Path,
) -> None:
    """As documented; and it shows that the test above can tell."""
    damaged, lost = cut_power_of_writer(path, "?synchronous=NORMAL")

    assert damaged == 0
    assert lost > 0


@pytest.mark.parametrize("stem", ["era-a", "hot-wal"])
def test_a_power_cut_leaves_the_old_database_or_the_adopted_one_and_the_next_run_finishes(
    folder: Path, stem: str
) -> None:
    for file in (FOLDER / "sqlite").glob(f"{stem}.db*"):
        shutil.copyfile(file, folder / file.name)
    path, log = folder / f"{stem}.db", folder.parent / "log"
    before = contents(folder)
    run_traced(log, FOLLOWED, COMMAND, "--url", f"sqlite:///{path}", "baselinedb")
    was = digest(f"sqlite:///{path}")

    outcomes = set()
    for left, printed in cuts(folder, before, log, CUTS // 3, stem):
        url = f"sqlite:///{left / path.name}"
        backups = [
            file for file in left.glob("*.backup-*") if ".partial" not in file.name
        ]
        assert [
            file.name for file in (left / path.name, *backups) if not is_whole(file)
        ] == []
        assert [digest(f"sqlite:///{file}") for file in backups] == [was] * len(backups)
        adopted = baselinedb(url, "--check").code == 0
        outcomes.add((adopted, "Adopted" in printed))
        assert_next_run_finishes(url, was)

    assert outcomes == {(False, False), (True, False), (True, True)}


def test_a_power_cut_leaves_a_whole_backup_or_none(path: Path) -> None:
    with agentdb.connect(f"sqlite:///{path}") as db:
        for number in range(50):
            db.insert_session(f"s{number}", "agent", "x" * 500)
    (folder := path.parent.parent / "backups").mkdir()
    backup, log = folder / "agents.backup", folder.parent / "log"
    said = run_traced(
        log, FOLLOWED, COMMAND, "--url", f"sqlite:///{path}", "backup", str(backup)
    )

    outcomes = set()
    for left, printed in cuts(folder, {}, log, CUTS, "backup"):
        if there := (left / backup.name).exists():
            assert is_whole(left / backup.name)
            assert len(rows(left / backup.name)) == 50
        outcomes.add((there, said[-1] in printed))

    assert outcomes == {(False, False), (True, False), (True, True)}


def test_copy_goes_on_after_a_power_cut_and_what_it_called_copied_is_there(
    path: Path,
) -> None:
    with agentdb.connect(f"sqlite:///{path}") as db:
        for number in range(200):
            db.insert_session(f"s{number}", "agent", "x" * 200)
    (folder := path.parent.parent / "target").mkdir()
    target, log = folder / "target.sqlite3", folder.parent / "log"
    said = run_traced(
        log, FOLLOWED, COMMAND, "copydb", f"sqlite:///{path}", f"sqlite:///{target}"
    )

    outcomes = set()
    for left, printed in cuts(folder, {}, log, CUTS // 3, "copy"):
        file = left / target.name
        finished = said[-1] in printed
        if finished:
            assert rows(file) == rows(path)
        outcomes.add(finished)
        try:
            agentdb.copy_database(f"sqlite:///{path}", f"sqlite:///{file}")
        except (
            agentdb.InvalidInputError
        ) as error:  # it had ended, and only could not say so any more
            assert "has rows already" in str(error)
        assert is_whole(file)
        assert rows(file) == rows(path)

    assert outcomes == {False, True}


@pytest.mark.parametrize(
    ("error", "words"),
    [("EIO", "disk I/O error"), ("ENOSPC", "disk is full|disk I/O error")],
)
@pytest.mark.parametrize("call", ["pwrite64", "fdatasync"])
def test_a_disk_that_fails_for_a_while_is_reported_and_loses_no_acknowledged_row(
    path: Path, error: str, words: str, call: str
) -> None:
    fail = [
        "-P",
        str(path),
        "-P",
        f"{path}-wal",
        "-e",
        f"trace={call}",
        "-e",
        f"inject={call}:error={error}:when=9..14",
    ]
    said = run_traced(path.parent.parent / "log", fail, WRITER, f"sqlite:///{path}")

    stored = {line.split()[1] for line in said if line.startswith("done")}
    errors = [line for line in said[1:] if not line.startswith("done")]
    assert errors
    assert stored
    # What was written before a sync failed may be found after a crash, so that is no refusal.
    unknown = "OutcomeUnknownError: .*failed while it stored the write: disk I/O error"
    said_so = f"{unknown}|DatabaseUnavailableError: .*({words})"
    assert [line for line in errors if not re.match(said_so, line)] == []
    if call == "fdatasync":
        assert {line.partition(":")[0] for line in errors} == {"OutcomeUnknownError"}
    assert is_whole(path)
    assert stored - rows(path) == set()
