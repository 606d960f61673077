"""The copy of a SQLite file that is made before it is changed."""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest

from agentdb.adoption import sqlite_backup
from agentdb.adoption.sqlite_backup import back_up, back_up_first
from agentdb.errors import DatabaseUnavailableError
from tests.helpers.baseline_runs import Told, baselinedb
from tests.helpers.legacy_databases import FOLDER, opened


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for ending in (".db", ".db-wal"):
        shutil.copyfile(
            FOLDER / "sqlite" / f"hot-wal{ending}", tmp_path / f"hot-wal{ending}"
        )
    return tmp_path / "hot-wal.db"


def dump(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        return list(connection.iterdump())


def test_a_copy_holds_what_the_write_ahead_log_holds_and_needs_no_file_beside_it(
    source: Path,
):
    copy = back_up(source)

    with closing(
        sqlite3.connect(f"file:{copy}?mode=ro&immutable=1", uri=True)
    ) as connection:
        assert connection.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert connection.execute(
            "SELECT count(*) FROM sqlite_master WHERE name = 'api_keys'"
        ).fetchone() == (1,)
    assert dump(copy) == dump(source)
    assert sorted(
        path.name for path in source.parent.iterdir() if "backup" in path.name
    ) == [copy.name]


def test_the_progress_of_a_copy_is_told_in_pages(source: Path):
    told = Told()
    with opened(f"sqlite:///{source}") as connection:
        copy = back_up_first(connection, told)

    assert copy is not None
    pages = copy.stat().st_size // 4096
    assert told.said == ["Backing up."]
    assert told.steps == [("backup", pages, pages)]


def test_only_the_owner_may_read_a_copy(source: Path):
    assert stat.S_IMODE(back_up(source).stat().st_mode) == 0o600


def test_each_copy_has_a_name_of_its_own(source: Path):
    descriptors = os.listdir("/dev/fd")

    copies = {back_up(source) for _ in range(3)}

    assert os.listdir("/dev/fd") == descriptors
    assert len(copies) == 3
    assert all(copy.exists() for copy in copies)
    assert all(
        re.fullmatch(r"hot-wal\.db\.backup-\d{8}T\d{6}\.\d{6}Z", copy.name)
        for copy in copies
    )


def test_what_a_killed_copy_left_is_removed_and_finished_ones_are_kept(source: Path):
    left = source.with_name(".hot-wal.db.backup-20260219T205316.5Z.1.partial")
    log = source.with_name(f"{left.name}-journal")
    kept = source.with_name("hot-wal.db.backup-20260219T205315.5Z")
    other = source.with_name(".other.db.backup-20260219T205316.5Z.1.partial")
    for path in (left, log, kept, other):
        path.write_bytes(b"")
    # What cannot be removed is in nobody's way.
    source.with_name(".hot-wal.db.backup-20260219T205317.5Z.1.partial").mkdir()

    back_up(source)

    paths = (left, log, kept, other)
    assert [path.exists() for path in paths] == [False, False, True, True]


def test_the_copy_is_flushed_before_it_gets_its_name(
    source: Path, monkeypatch: pytest.MonkeyPatch
):
    flushed = []
    monkeypatch.setattr(
        sqlite_backup, "_flush", lambda path: flushed.append((path.name, path.exists()))
    )

    copy = back_up(source)

    partial = f".{copy.name}.{os.getpid()}.partial"
    assert flushed == [(partial, True), (source.parent.name, True)]


@pytest.fixture
def writer(source: Path) -> Iterator[subprocess.Popen[str]]:
    """Another process that writes pairs of rows, each pair in a transaction, as fast as it can."""
    script = """
import sqlite3, sys
c = sqlite3.connect(sys.argv[1], timeout=30, isolation_level=None)
c.execute("PRAGMA journal_mode=WAL")
c.execute("CREATE TABLE pairs (a INTEGER)")
number = 0
while True:
    c.execute("BEGIN IMMEDIATE")
    c.execute("INSERT INTO pairs VALUES (?)", [number]); c.execute("INSERT INTO pairs VALUES (?)", [number])
    c.execute("COMMIT")
    number += 1
    if number in (50, 100): print(number, flush=True)
"""
    with subprocess.Popen(
        [sys.executable, "-c", script, str(source)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
        process.kill()


def test_a_copy_is_one_moment_of_a_database_that_another_process_writes_to(
    source: Path, writer: subprocess.Popen[str], monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sqlite_backup, "_PAGES_PER_STEP", 1)
    steps: list[tuple[int, int]] = []

    class Waiting(Told):
        def __call__(self, table: str, done: int, total: int) -> None:
            if not steps:
                assert writer.stdout is not None
                writer.stdout.readline()  # it commits while the copy is half made
            steps.append((done, total))

    copy = back_up(source, Waiting())

    assert len(steps) > 10
    assert steps[-1][0] == steps[-1][1]
    assert steps == sorted(set(steps))  # it never started again
    assert writer.poll() is None
    with closing(sqlite3.connect(copy)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchone() == ("ok",)
        assert (
            connection.execute(
                "SELECT a FROM pairs GROUP BY a HAVING count(*) <> 2"
            ).fetchall()
            == []
        )
        assert connection.execute("SELECT count(*) > 0 FROM pairs").fetchone() == (1,)


@pytest.mark.parametrize(
    ("number", "reason"),
    [
        (errno.EIO, "input/output error"),
        (errno.EDQUOT, "disk quota exceeded"),
        (errno.ENOSPC, "no space left on device"),
    ],
)
def test_a_disk_that_fails_when_the_copy_is_flushed_is_reported_and_no_copy_stays(
    source: Path, monkeypatch: pytest.MonkeyPatch, number: int, reason: str
):
    def fails(descriptor: int) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    target = source.with_name("copy.db")

    with pytest.raises(DatabaseUnavailableError) as refusal:
        back_up(source, target=target)

    assert str(refusal.value) == (
        f"The backup '{target}' cannot be written: {reason}. Name another file."
    )
    assert [path for path in source.parent.iterdir() if "copy" in path.name] == []


LIMITED = """
import resource, signal, sys
from pathlib import Path
from agentdb.adoption.sqlite_backup import back_up
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (40000, 40000))
try:
    back_up(Path(sys.argv[1]))
except Exception as error:
    print(type(error).__name__, error)
"""


def test_a_copy_that_cannot_be_written_to_its_end_is_removed(tmp_path: Path):
    source = tmp_path / "era-b.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-b.db", source)

    run = subprocess.run(
        [sys.executable, "-c", LIMITED, str(source)],
        capture_output=True,
        text=True,
        check=True,
    )

    name, _, message = run.stdout.strip().partition(" ")
    assert name == "DatabaseUnavailableError", run
    assert message.startswith(f"The backup '{source}.backup-")
    assert message.endswith(
        " disk I/O error. Back the file up elsewhere and use --no-backup."
    )
    assert [path.name for path in tmp_path.iterdir() if "backup" in path.name] == []
    assert source.read_bytes() == (FOLDER / "sqlite" / "era-b.db").read_bytes()


def test_a_database_that_cannot_be_backed_up_is_not_adopted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "era-a.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-a.db", path)
    before = dump(path)

    def fails(path: Path) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(sqlite_backup, "_flush", fails)

    refused = baselinedb(f"sqlite:///{path}")

    assert (refused.code, refused.err.rpartition(" cannot ")[2]) == (
        2,
        "be written: no space left on device. Back the file up elsewhere and use --no-backup.",
    )
    assert dump(path) == before
    assert baselinedb(f"sqlite:///{path}", "--no-backup").code == 0
    assert [p.name for p in tmp_path.iterdir() if "backup" in p.name] == []


def test_the_backup_of_an_adoption_is_the_database_as_it_was(tmp_path: Path):
    path = tmp_path / "era-a.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-a.db", path)
    before = dump(path)

    run = baselinedb(f"sqlite:///{path}")

    (copy,) = [p for p in tmp_path.iterdir() if "backup" in p.name]
    assert f"Backup: {copy}" in run.out.splitlines()
    assert dump(copy) == before
    assert dump(path) != before


FULL = """
import resource, signal, sys
from agentdb.__main__ import main
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
sys.argv = ["agentdb", "baselinedb", "--no-backup"]
sys.exit(main())
"""


def test_an_adoption_that_runs_out_of_room_is_undone(tmp_path: Path):
    path = tmp_path / "era-b.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-b.db", path)
    before = dump(path)
    # There is no room for coverage to write its data either.
    environment = {
        key: value
        for key, value in os.environ.items()
        if key != "DJANGO_SETTINGS_MODULE" and not key.startswith("COVERAGE_")
    }

    run = subprocess.run(
        [sys.executable, "-c", FULL],
        capture_output=True,
        text=True,
        env={**environment, "DATABASE_URL": f"sqlite:///{path}"},
    )

    assert run.returncode == 2, run
    assert run.stderr.splitlines()[-1] == (
        f"CommandError: The database file '{path}' cannot be used: disk I/O error. Nothing was changed."
    )
    assert dump(path) == before
    assert baselinedb(f"sqlite:///{path}").code == 0


def test_an_interrupted_adoption_is_undone_removes_its_backup_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "era-b.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-b.db", path)

    def interrupted(*args: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("agentdb.adoption.change.Change._verify_rows", interrupted)

    run = baselinedb(f"sqlite:///{path}")

    assert (run.code, run.err.splitlines()[-1]) == (
        130,
        "Interrupted. Nothing was changed.",
    )
    assert [each.name for each in tmp_path.iterdir()] == ["era-b.db"]
    assert baselinedb(f"sqlite:///{path}", "--check").code == 1


def test_a_source_that_cannot_be_opened_is_not_blamed_on_the_backup(tmp_path: Path):
    source = tmp_path / "a.db"
    with closing(sqlite3.connect(source)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE rows (id text)")
    # As on a read-only medium, and for root too: there is no place for the write-ahead log.
    Path(f"{source}-wal").mkdir()

    with pytest.raises(DatabaseUnavailableError) as caught:
        back_up(source, target=tmp_path / "backup.db")

    assert str(caught.value).startswith(
        f"The database file {str(source)!r} cannot be used: unable to open database file"
    )
    assert not (tmp_path / "backup.db").exists()
