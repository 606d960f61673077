"""A SQLite file that is removed, moved or replaced while it is open: SQLite writes on, where nobody will look."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from threading import Thread

import pytest
from django.core.management import CommandError

import agentdb
from agentdb import DatabaseUnavailableError, DjangoDb
from agentdb.adoption.progress import SILENT
from agentdb.console.questions import Budget
from agentdb.console.report import examine
from agentdb.moving.backups import back_up_database
from agentdb.schema.inspection import check_sqlite_file
from agentdb.schema.verification import verify
from agentdb.sqlite_files import descriptors, is_in_wal_mode
from tests.helpers.factories import make_sandbox, make_session
from tests.helpers.legacy_databases import manage, opened
from tests.serving.test_sqlite_files import mounted

MISSING = (
    "SQLite database '{path}' was removed or moved while it was open. Stop every program that uses it, put the file "
    "back, and start them again."
)
REPLACED = (
    "Another file took the place of SQLite database '{path}' while it was open. Stop every program that uses it, move "
    "'{path}-wal', which belongs to the file that was there before, out of the way, and start them again."
)
LOG_REMOVED = (
    "The write-ahead log '{path}-wal', or its index, was removed while SQLite database '{path}' was open. Commits that "
    "only it held may be missing. Stop every program that uses the file, and start them again."
)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "agents.db"


@pytest.fixture
def often(monkeypatch: pytest.MonkeyPatch) -> None:
    """Have each call look at the file."""
    monkeypatch.setattr("agentdb.serving.connections.sqlite._LOOK_SECONDS", -1.0)


def url(path: Path) -> str:
    return f"sqlite:///{path}"


@pytest.mark.parametrize("is_there", [False, True])  # empty, as by touch
def test_no_database_is_made_beside_the_log_of_one_that_was_moved(
    path: Path, tmp_path: Path, is_there: bool
) -> None:
    """SQLite would delete the log, and with it all that a program stored which was killed."""
    other = url(tmp_path / "other.db")
    agentdb.connect(other, migrate=True).close()
    subprocess.run(
        [sys.executable, "-c", _KILLED.format(url=url(path))], check=True, timeout=60
    )
    moved = path.rename(tmp_path / "moved.db")
    log = Path(f"{path}-wal")
    if is_there:
        path.touch()
        for look in ("verifydb", "baselinedb"):
            with (
                opened(url(path)) as connection,
                pytest.raises(CommandError, match="There is a file"),
            ):
                manage(connection, look)
        with pytest.raises(DatabaseUnavailableError, match="There is a file"):
            agentdb.connect(url(path))

    with pytest.raises(DatabaseUnavailableError) as raised:
        agentdb.connect(url(path), migrate=True)
    with pytest.raises(DatabaseUnavailableError, match="There is a file"):
        agentdb.copy_database(other, url(path))
    with (
        opened(url(path)) as connection,
        pytest.raises(CommandError, match="There is a file"),
    ):
        manage(connection, "migrate")

    assert str(raised.value) == (
        f"There is a file '{log}', which belongs to a database that was here before and may hold its last commits. "
        "Move it to where that database is, under its name, or delete it."
    )
    log.rename(f"{moved}-wal")
    with agentdb.connect(url(moved)) as db:
        assert db.get_session("s1") is not None
    with agentdb.connect(url(path), migrate=True) as db:
        assert db.get_session("s1") is None


_KILLED = """
import os
import agentdb
db = agentdb.connect({url!r}, migrate=True)
db.insert_session("s1", "a", "sb")
os._exit(0)
"""


def another(path: Path) -> Path:
    """Return a database of one session, beside ``path`` and without a log."""
    other = path.with_name("other.db")
    with agentdb.connect(url(other), migrate=True) as db:
        make_session(db, "other")
    with closing(sqlite3.connect(other)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    return other


def remove(path: Path) -> None:
    path.unlink()


def move(path: Path) -> None:
    path.rename(path.with_name("moved.db"))


def replace(path: Path) -> None:
    another(path).replace(path)


def remove_log(path: Path) -> None:
    path.with_name(f"{path.name}-wal").unlink()


def in_thread(call: Callable[[], object]) -> BaseException | None:
    errors: list[BaseException] = []

    def run() -> None:
        try:
            call()
        except BaseException as error:
            errors.append(error)

    thread = Thread(target=run)
    thread.start()
    thread.join()
    return errors[0] if errors else None


@pytest.mark.parametrize(
    ("displace", "message"),
    [(remove, MISSING), (move, MISSING), (replace, REPLACED)],
    ids=lambda value: "",
)
def test_nothing_is_acknowledged_once_the_path_names_no_file_or_another(
    displace: Callable[[Path], None], message: str, path: Path
):
    expected = re.escape(message.format(path=path)) + "$"
    with agentdb.connect(url(path), migrate=True) as db:
        make_session(db, "s1")
        assert in_thread(lambda: make_session(db, "s2")) is None
        displace(path)
        time.sleep(0.15)
        for call in (
            lambda: make_session(db, "s3"),
            lambda: db.get_session("s1"),
            lambda: db.run_transaction(lambda tx: make_session(tx, "s4")),
        ):
            with pytest.raises(DatabaseUnavailableError, match=expected):
                call()
        assert re.fullmatch(expected, str(in_thread(lambda: make_session(db, "s5"))))
        assert re.fullmatch(expected, db.health().reason)
        assert path.exists() is (displace is replace)  # no empty one was made


def test_a_transaction_looks_at_once(path: Path):
    with agentdb.connect(url(path), migrate=True) as db:
        make_session(db, "s1")
        path.unlink()
        with pytest.raises(DatabaseUnavailableError, match="was removed or moved"):
            db.run_transaction(lambda tx: make_session(tx, "s2"))


def test_a_file_that_is_put_back_is_used_again_and_lacks_nothing(
    path: Path, often: None
):
    with agentdb.connect(url(path), migrate=True) as db:
        make_session(db, "s1")
        move(path)
        with pytest.raises(DatabaseUnavailableError, match="was removed or moved"):
            make_session(db, "s2")
        path.with_name("moved.db").rename(path)
        make_session(db, "s3")
        assert sorted(session.id for session in db.list_sessions()) == ["s1", "s3"]


def test_pages_of_the_old_file_are_not_written_into_the_one_that_took_its_place(
    path: Path, often: None
):
    with agentdb.connect(url(path), migrate=True) as db:
        for number in range(20):
            make_session(db, f"s{number}")
        replace(path)
        for _ in range(3):
            with pytest.raises(
                DatabaseUnavailableError, match="Another file took the place"
            ):
                make_session(db, "lost")
        log = path.with_name(f"{path.name}-wal")
        log.rename(path.with_name("log"))
        assert [session.id for session in db.list_sessions()] == ["other"]
        make_session(db, "kept")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT id FROM sessions ORDER BY id").fetchall() == [
            ("kept",),
            ("other",),
        ]
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]


def test_a_new_thread_does_not_open_the_other_file_with_the_log_of_the_old_one(
    path: Path,
):
    with agentdb.connect(url(path), migrate=True) as db:
        make_session(db, "s1")
        assert in_thread(lambda: make_session(db, "s2")) is None
        replace(path)
        assert "Another file took the place" in str(
            in_thread(lambda: make_session(db, "lost"))
        )


def test_a_new_thread_creates_no_file_in_place_of_one_that_is_gone_before_the_first_call(
    path: Path,
):
    with agentdb.connect(url(path), migrate=True) as db:
        path.unlink()
        assert str(in_thread(db.list_agents)) == MISSING.format(path=path)

    assert not path.exists()


def test_a_log_that_is_removed_is_named_once_and_its_commits_are_saved_as_the_file_is_closed(
    path: Path, often: None
):
    with agentdb.connect(url(path), migrate=True) as db:
        make_session(db, "s1")
        make_sandbox(db, "sb1")
        remove_log(path)
        with pytest.raises(
            DatabaseUnavailableError,
            match=re.escape(LOG_REMOVED.format(path=path)) + "$",
        ):
            make_session(db, "s2")
        make_session(db, "s3")
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("SELECT id FROM sessions ORDER BY id").fetchall() == [
            ("s1",),
            ("s3",),
        ]


def test_a_log_that_is_removed_is_noticed_where_all_calls_are_transactions(path: Path):
    with agentdb.connect(url(path), migrate=True) as db:
        for number in range(3):
            db.run_transaction(partial(make_session, id=f"s{number}"))
        remove_log(path)
        with pytest.raises(
            DatabaseUnavailableError, match=r"The write-ahead log .*, was removed while"
        ):
            db.run_transaction(lambda tx: make_session(tx, "s3"))


WRITER = """
import sqlite3, sys
connection = sqlite3.connect(sys.argv[1])
connection.execute("UPDATE sessions SET runner_id = 'r1'")
connection.commit()
connection.close()
"""


@pytest.mark.parametrize("journal", ["wal", "delete"])
def test_other_processes_that_come_and_go_are_no_alarm(
    journal: str, path: Path, often: None
):
    with agentdb.connect(f"{url(path)}?journal={journal}", migrate=True) as db:
        for number in range(5):
            make_session(db, f"s{number}")
            subprocess.run([sys.executable, "-c", WRITER, path], check=True)
            assert db.touch_session(f"s{number}")
            assert in_thread(lambda: db.list_sessions()) is None


def test_a_log_that_another_process_makes_and_removes_before_a_host_has_read_anything_is_no_alarm(
    path: Path, often: None
):
    with agentdb.connect(url(path), migrate=True) as db:
        make_session(db, "s1")
    with opened(url(path)) as connection:
        connection.close()
        del connection.settings_dict["OPTIONS"][
            "init_command"
        ]  # Django's own connection reads nothing as it is opened
        db = DjangoDb(connection.alias)
        with agentdb.connect(url(path)) as other:
            make_session(other, "s2")
            db._threads.ensure_connected()
            db._threads.ensure_connected()
        for _ in range(3):
            assert db.get_session("s2") is not None


def _examine(path: Path) -> None:
    with opened(url(path)) as connection:
        examine(Budget(connection))


def _copy(path: Path) -> None:
    agentdb.copy_database(url(path), url(path.with_name(f"copy-{time.monotonic()}.db")))


def _back_up(path: Path) -> None:
    with opened(url(path)) as connection:
        back_up_database(
            connection.alias,
            path.with_name(f"backup-{time.monotonic()}.db"),
            SILENT,
        )


def _verify(path: Path) -> None:
    with opened(url(path)) as connection:
        verify(connection)


def _connect(path: Path) -> None:
    agentdb.connect(url(path)).close()


@pytest.mark.parametrize(
    "look",
    [check_sqlite_file, is_in_wal_mode, _examine, _copy, _back_up, _verify, _connect],
    ids=[
        "check_sqlite_file",
        "is_in_wal_mode",
        "examine",
        "copy_database",
        "back_up_database",
        "verify",
        "connect",
    ],
)
def test_a_look_at_the_file_takes_no_locks_from_those_who_have_it_open_in_this_process(
    look: Callable[[Path], object], path: Path
):
    with agentdb.connect(url(path), migrate=True) as db:
        make_session(db, "s1")
        look(path)
        before = len(descriptors())
        look(path)
        assert len(descriptors()) <= before
        subprocess.run(
            [sys.executable, "-c", WRITER, path], check=True
        )  # SQLite there believes it is the last
        assert path.with_name(f"{path.name}-wal").exists()
        make_session(db, "s2")
        with closing(sqlite3.connect(path)) as connection:
            assert connection.execute(
                "SELECT id FROM sessions ORDER BY id"
            ).fetchall() == [("s1",), ("s2",)]


def test_a_look_while_another_thread_opens_the_file_keeps_its_locks(
    path: Path, monkeypatch: pytest.MonkeyPatch
):
    agentdb.connect(url(path), migrate=True).close()
    connections_made: list[DjangoDb] = []
    really_read = os.pread

    def read(number: int, size: int, offset: int) -> bytes:
        if not connections_made:
            monkeypatch.undo()
            connections_made.append(agentdb.connect(url(path)))
            make_session(connections_made[0], "s1")
        return really_read(number, size, offset)

    monkeypatch.setattr(os, "pread", read)
    check_sqlite_file(path)
    with connections_made[0] as db:
        subprocess.run([sys.executable, "-c", WRITER, path], check=True)
        assert path.with_name(f"{path.name}-wal").exists()
        assert db.get_session("s1") is not None


def test_a_child_does_not_take_what_is_kept_open_for_the_locks_for_a_connection_of_its_parent(
    path: Path,
):
    program = f"""
import os, sys, agentdb
from pathlib import Path
from agentdb.schema.inspection import check_sqlite_file
db = agentdb.connect({url(path)!r}, migrate=True)
db.close()
really_read = os.pread
def read(number, size, offset):
    global db
    os.pread = really_read
    db = agentdb.connect({url(path)!r})
    return really_read(number, size, offset)
os.pread = read
check_sqlite_file(Path({str(path)!r}))
if os.fork() == 0:
    db.insert_session("child", "a", "sb")
    print("acknowledged", flush=True)
    os._exit(0)
os.wait()
"""
    ended = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, timeout=300
    )
    assert ended.stdout == "acknowledged\n", ended.stderr


def test_a_program_that_changes_its_folder_goes_on_with_a_hosts_relative_name(
    path: Path, often: None, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.chdir(path.parent)
    with opened(url(path)) as connection:
        manage(connection, "migrate")
        connection.close()
        connection.settings_dict["NAME"] = path.name
        db = DjangoDb(connection.alias)
        make_session(db, "s1")
        monkeypatch.chdir("/")
        for _ in range(2):
            assert db.get_session("s1") is not None


def test_a_file_that_cannot_be_looked_at_is_not_said_to_be_gone(
    path: Path, often: None, monkeypatch: pytest.MonkeyPatch
):
    with agentdb.connect(url(path), migrate=True) as db:
        make_session(db, "s1")

        def stat(*arguments: object, **options: object) -> None:
            raise PermissionError

        with monkeypatch.context() as patched:
            patched.setattr(os, "stat", stat)
            assert db.get_session("s1") is not None


def test_the_log_of_a_file_behind_a_link_is_known(path: Path, often: None):
    link = path.with_name("link.db")
    link.symlink_to(path)
    with agentdb.connect(url(link), migrate=True) as db:
        make_session(db, "s1")
        assert db.get_session("s1") is not None
        remove_log(path)
        with pytest.raises(
            DatabaseUnavailableError, match=r"The write-ahead log .*, was removed while"
        ):
            db.get_session("s1")


def test_a_database_in_memory_has_no_file_to_look_at(often: None):
    with agentdb.connect("sqlite:///:memory:", migrate=True) as db:
        make_session(db, "s1")
        assert db.get_session("s1") is not None


def test_the_numbers_of_a_file_count_only_where_it_keeps_them(
    path: Path, often: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    with agentdb.connect(f"{url(path)}?journal=delete", migrate=True) as db:
        make_session(db, "s1")
        replace(path)
        mounted(tmp_path, monkeypatch, (str(tmp_path), "fuse.sshfs"))
        assert db.get_session("s1") is not None
        path.unlink()
        with pytest.raises(DatabaseUnavailableError, match="was removed or moved"):
            db.get_session("s1")
