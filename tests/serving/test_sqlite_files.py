"""Files on file systems, and versions of SQLite, that can lose what was acknowledged."""

from __future__ import annotations

import json
import os
import sqlite3
import subprocess
import sys
import warnings
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from agentdb import DatabaseUnavailableError, connect, sqlite_files
from agentdb.checks import check_sqlite_file_system, check_sqlite_version
from agentdb.conf import database_from_url
from agentdb.console.questions import Budget
from agentdb.console.report import examine
from agentdb.schema import inspection
from agentdb.schema.verification import verify
from agentdb.sqlite_files import file_concern, shared_file_system, version_concern
from tests.helpers.legacy_databases import opened
from tests.project.test_cli import cli  # noqa: F401 (a fixture)


def mounted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *mounts: tuple[str, str]
) -> None:
    """Let the mount table be these places and types, after a local one at /."""
    lines = [
        f"{number} 1 0:{number} / {place} rw,relatime shared:1 - {kind} source rw\n"
        for number, (place, kind) in enumerate([("/", "ext4"), *mounts])
    ]
    table = tmp_path / "mountinfo"
    table.write_text("".join(lines))
    monkeypatch.setattr(sqlite_files, "MOUNT_TABLE", table)


def journal_mode(path: Path) -> str:
    connection = sqlite3.connect(path)
    try:
        return str(connection.execute("PRAGMA journal_mode").fetchone()[0])
    finally:
        connection.close()


def everything_says(path: Path, concern: str) -> None:
    with connect(f"sqlite:///{path}") as db:
        assert db.health().warnings[0] == concern
        assert db.health().ok
    with opened(f"sqlite:///{path}") as connection:
        (found,) = check_sqlite_file_system([connection.alias])
        assert (found.id, found.msg) == ("agentdb.W001", concern)
        assert [(note.code, note.message) for note in verify(connection).notes] == [
            ("file.system", concern)
        ]
        assert [
            each.detail
            for each in examine(Budget(connection)).findings
            if each.code == "file_system"
        ] == [concern]


@pytest.mark.parametrize(
    ("name", "path"),
    [
        ("/srv/mode=memory/a.db", "/srv/mode=memory/a.db"),
        ("/srv/a%20b.db", "/srv/a%20b.db"),
        ("file:/srv/a%20b.db?mode=ro", "/srv/a b.db"),
        ("file:/srv/%FF/a.db?mode=ro", os.fsdecode(b"/srv/\xff/a.db")),
        (":memory:", None),
        ("file::memory:?cache=shared", None),
        ("file:a?mode=memory&cache=shared", None),
    ],
)
def test_a_database_is_in_memory_only_if_sqlite_takes_it_for_that(
    name: str, path: str | None
):
    connection: Any = SimpleNamespace(vendor="sqlite", settings_dict={"NAME": name})

    assert inspection.sqlite_path(connection) == (path and Path(path))


def test_a_file_in_a_folder_with_an_odd_name_is_a_file(tmp_path: Path):
    path = tmp_path / "mode=memory" / "a.db"
    path.parent.mkdir()
    with connect(f"sqlite:///{path}", migrate=True) as db:
        db.insert_session("s1", "a", "sb")
        path.rename(path.with_name("b.db"))
        with pytest.raises(DatabaseUnavailableError, match="was removed or moved"):
            db.insert_session("s2", "a", "sb")


@pytest.mark.parametrize(
    "kind",
    ["nfs", "nfs4", "cifs", "9p", "virtiofs", "fuse.sshfs", "fuse", "fuseblk", "smb3"],
)
def test_a_shared_file_system_is_known_by_its_type(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mounted(tmp_path, monkeypatch, ("/srv/state", kind))

    assert shared_file_system("/srv/state/deep/x.db") == kind
    assert shared_file_system("/srv/states/x.db") == ""


@pytest.mark.parametrize("kind", ["ext4", "xfs", "btrfs", "overlay", "tmpfs", "zfs"])
def test_a_local_file_system_is_none(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mounted(tmp_path, monkeypatch, ("/srv", kind))

    assert shared_file_system("/srv/x.db") == ""


def test_the_innermost_and_latest_mount_counts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mounted(
        tmp_path,
        monkeypatch,
        ("/a/local", "ext4"),
        ("/a", "nfs"),
        ("/b", "nfs"),
        ("/b", "xfs"),
    )

    assert [
        shared_file_system(path) for path in ("/a/x.db", "/a/local/x.db", "/b/x.db")
    ] == ["nfs", "", ""]


def test_a_place_with_a_space_and_a_link_to_it_are_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    shared = tmp_path / "my share"
    shared.mkdir()
    (tmp_path / "link").symlink_to(shared)
    mounted(tmp_path, monkeypatch, (str(shared).replace(" ", "\\040"), "cifs"))

    assert shared_file_system(tmp_path / "link" / "x.db") == "cifs"


def test_a_file_that_is_mounted_without_its_folder_is_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "x.db"
    connect(f"sqlite:///{path}", migrate=True).close()
    mounted(tmp_path, monkeypatch, (str(tmp_path), "ext4"))
    assert file_concern(path) == ""

    mounted(tmp_path, monkeypatch, (str(path), "ext4"))
    everything_says(
        path,
        f"The SQLite file '{path}' is mounted without its folder. A program that opens it elsewhere uses another log, "
        "and both damage the file without an error; and what is in the log is lost with the container. Mount the "
        "folder.",
    )


def test_no_mount_table_is_no_shared_file_system(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sqlite_files, "MOUNT_TABLE", tmp_path / "none")

    assert shared_file_system(tmp_path) == ""


def test_a_new_file_there_gets_no_write_ahead_log_and_one_warning(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mounted(tmp_path, monkeypatch, (str(tmp_path), "nfs4"))
    path = tmp_path / "x.db"

    with pytest.warns(RuntimeWarning) as caught:
        db = connect(f"sqlite:///{path}", migrate=True)
    with db:
        db.upsert_agent("a", "/a")
        assert db.health().warnings == tuple(
            filter(None, [version_concern(sqlite3.sqlite_version)])
        )

    assert journal_mode(path) == "delete"
    assert [str(warning.message) for warning in caught] == [
        f"The SQLite file '{path}' is on a file system of type nfs4, where a write-ahead log can lose commits. It "
        "is used without one. Put the file on a local disk, or write ?journal=wal or ?journal=delete to decide."
    ]


def test_a_file_with_a_write_ahead_log_keeps_it_there_and_everything_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "x.db"
    connect(f"sqlite:///{path}", migrate=True).close()
    mounted(tmp_path, monkeypatch, (str(tmp_path), "nfs"))
    concern = (
        f"The SQLite file '{path}' has a write-ahead log on a file system of type nfs, where SQLite can lose commits "
        "or damage the file without an error. Stop every program that has it open, then run it with ?journal=delete, "
        "or move it to a local disk."
    )

    with pytest.warns(
        RuntimeWarning, match="It has one, and keeps it until it is opened with"
    ):
        settings = database_from_url(f"sqlite:///{path}")
    assert "journal_mode" not in settings["OPTIONS"]["init_command"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        everything_says(path, concern)
    assert journal_mode(path) == "wal"


def test_nothing_is_said_of_a_folder_in_the_place_of_a_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "below").mkdir()  # which has one more name of its folder
    mounted(tmp_path, monkeypatch, (str(tmp_path), "ext4"))

    assert file_concern(tmp_path) == ""


def test_a_file_with_several_names_is_said_to_be_in_danger(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "x.db"
    connect(f"sqlite:///{path}", migrate=True).close()
    assert file_concern(path) == ""
    (tmp_path / "snapshot.db").hardlink_to(path)

    everything_says(
        path,
        f"The SQLite file '{path}' has 2 names (hard links). A program that opens it by another one uses another log, "
        "and both damage the file without an error. Remove the others: 'find / -samefile FILE' has them.",
    )
    # Which counts other things as names.
    mounted(tmp_path, monkeypatch, (str(tmp_path), "fuse.something"))
    with sqlite3.connect(path) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    connection.close()
    assert file_concern(path) == ""
    assert file_concern(tmp_path / "none.db") == ""


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_the_url_decides_on_any_file_system(
    journal: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    mounted(tmp_path, monkeypatch, (str(tmp_path), "nfs"))
    path = tmp_path / "x.db"
    connect(
        f"sqlite:///{path}?journal={'wal' if journal == 'delete' else 'delete'}",
        migrate=True,
    ).close()

    connect(f"sqlite:///{path}?journal={journal}").close()

    assert journal_mode(path) == journal


@pytest.mark.parametrize(
    ("version", "mended"),
    [
        ("3.7.0", False), ("3.40.1", False), ("3.44.5", False), ("3.44.6", True), ("3.45.0", False),
        ("3.50.6", False), ("3.50.7", True), ("3.51.0", False), ("3.51.2", False), ("3.51.3", True), ("4.0.0", True),
    ],
)  # fmt: skip
def test_a_sqlite_with_the_wal_reset_bug_is_named(version: str, mended: bool):
    expected = (
        f"SQLite {version} can, very rarely, lose a commit when two connections write and checkpoint at once; "
        "3.51.3, 3.50.7 and 3.44.6 are fixed. A newer system image, or the Python of uv or conda, brings a newer one; "
        "?journal=delete avoids it at the price of slower writes. See docs/deployment.md."
    )
    assert version_concern(version) == ("" if mended else expected)


def test_health_and_the_deployment_check_say_which_sqlite_runs(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    cli,  # noqa: F811
):
    url = f"sqlite:///{tmp_path / 'x.db'}"
    connect(url, migrate=True).close()
    concern = version_concern(sqlite3.sqlite_version)

    assert json.loads(cli("--url", url, "health", "--json").stdout)["warnings"] == (
        [concern] if concern else []
    )
    assert (concern in cli("--url", url, "health").stdout) or not concern

    with opened(url) as connection:
        monkeypatch.setattr(sqlite3, "sqlite_version", "3.51.3")
        assert check_sqlite_version([connection.alias]) == []
        monkeypatch.setattr(sqlite3, "sqlite_version", "3.40.1")
        (found,) = check_sqlite_version([connection.alias])
        assert (found.id, found.msg) == ("agentdb.W002", version_concern("3.40.1"))


@pytest.mark.parametrize("look", ["read_header", "copy_file"])
def test_a_look_at_a_file_leaves_this_process_its_locks_on_it(
    look: str, tmp_path: Path
):
    path = tmp_path / "a.db"
    write = "import sqlite3, sys; sqlite3.connect(sys.argv[1], timeout=0).execute('INSERT INTO t VALUES (2)')"
    other = [sys.executable, "-c", write, str(path)]
    with closing(sqlite3.connect(path, isolation_level=None)) as connection:
        connection.execute("CREATE TABLE t (n INTEGER)")
        connection.execute("BEGIN IMMEDIATE")
        connection.execute("INSERT INTO t VALUES (1)")
        assert (
            b"database is locked"
            in subprocess.run(other, capture_output=True, check=False).stderr
        )

        if look == "read_header":
            assert sqlite_files.read_header(path)[0].startswith(b"SQLite format 3")
        else:
            sqlite_files.copy_file(path, tmp_path / "copy.db")

        assert (
            b"database is locked"
            in subprocess.run(other, capture_output=True, check=False).stderr
        )
        connection.execute("COMMIT")


@pytest.mark.parametrize("has_pread", [True, False])
def test_a_file_that_nobody_has_open_is_copied_and_closed(
    tmp_path: Path, has_pread: bool, monkeypatch: pytest.MonkeyPatch
):
    if not has_pread:  # as on Windows
        monkeypatch.delattr(os, "pread", raising=False)
    (tmp_path / "a.db").write_bytes(bytes(range(256)) * 10_000)

    sqlite_files.copy_file(tmp_path / "a.db", tmp_path / "b.db")

    assert (tmp_path / "b.db").read_bytes() == (tmp_path / "a.db").read_bytes()
    assert sqlite_files.identity(tmp_path / "a.db") not in map(
        sqlite_files.identity, sqlite_files.descriptors()
    )
    with pytest.raises(FileNotFoundError):
        sqlite_files.copy_file(tmp_path / "gone.db", tmp_path / "c.db")


# -- the header of a file


@pytest.fixture(scope="module")
def whole_file(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A database of two pages of 1,024 bytes."""
    path = tmp_path_factory.mktemp("whole") / "x.db"
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA page_size = 1024")
        connection.execute("CREATE TABLE t (a)")
    content = path.read_bytes()
    assert len(content) == 2048
    return content


NEWER = (
    f"has a file format that SQLite {sqlite3.sqlite_version}, which Python uses here, "
    "does not know. Upgrade SQLite."
)
NO_DATABASE = "is not a SQLite database, or it is encrypted. Check the database URL."


@pytest.mark.parametrize(
    ("changes", "length", "said"),
    [
        ({}, 2048, None),
        ({}, 3000, None),
        ({}, 0, None),
        ({}, 2047, "is damaged: it has 2,047 of the 2,048 bytes that its header names. Restore a backup."),
        ({}, 1024, None),  # SQLite itself misses the second page
        ({}, 99, NO_DATABASE),
        ({}, 1, NO_DATABASE),
        ({0: b"s"}, 2048, NO_DATABASE),
        # The version that a program needs to write and to read: 2 has a write-ahead log.
        ({18: b"\2"}, 2048, None),
        ({19: b"\2"}, 2048, None),
        ({18: b"\3"}, 2048, NEWER),
        ({19: b"\3"}, 2048, NEWER),
        ({44: (4).to_bytes(4, "big")}, 2048, None),
        ({44: (5).to_bytes(4, "big")}, 2048, NEWER),
        # 1 is a page of 65,536 bytes.
        ({16: b"\0\1"}, 2048, "is damaged: it has 2,048 of the 131,072 bytes that its header names. Restore a backup."),
        ({28: (3).to_bytes(4, "big")}, 2050, "is damaged: it has 2,050 of the 3,072 bytes that its header names. "
         "Restore a backup."),
    ],
)  # fmt: skip
def test_the_header_of_a_file_says_whether_it_is_whole_and_can_be_read(
    whole_file: bytes,
    tmp_path: Path,
    changes: dict[int, bytes],
    length: int,
    said: str | None,
) -> None:
    content = bytearray(whole_file.ljust(length, b"\0")[:length])
    for at, new in changes.items():
        content[at : at + len(new)] = new
    path = tmp_path / "x.db"
    path.write_bytes(content)

    if said is None:
        inspection.check_sqlite_file(path)
        return
    with pytest.raises(DatabaseUnavailableError) as refused:
        inspection.check_sqlite_file(path)
    assert str(refused.value).endswith(said)
    assert str(path) in str(refused.value)
    # After a power cut in a checkpoint the log has the page that the file lacks; an empty one has none.
    log = tmp_path / "x.db-wal"
    log.touch()
    with pytest.raises(DatabaseUnavailableError):
        inspection.check_sqlite_file(path)
    log.write_bytes(b"x")
    if "is damaged" in said:
        inspection.check_sqlite_file(path)
        link = tmp_path / "link.db"
        link.symlink_to(path)
        inspection.check_sqlite_file(link)
    else:
        with pytest.raises(DatabaseUnavailableError):
            inspection.check_sqlite_file(path)
