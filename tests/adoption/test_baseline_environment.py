"""Databases that cannot be looked at or changed: one clear sentence, exit code 2, and nothing is touched."""

from __future__ import annotations

import fcntl
import io
import os
import resource
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

import psycopg
import pytest
from django.core.management import CommandError, call_command
from django.db import IntegrityError, OperationalError
from django.db.backends.base.base import BaseDatabaseWrapper

import agentdb
from agentdb.adoption.change import Change
from agentdb.adoption.execution import adopt, look
from agentdb.adoption.plan import read
from agentdb.adoption.progress import SILENT
from tests.helpers.baseline_runs import (
    TABLES,
    Told,
    assert_adopted,
    baselinedb,
    snapshot,
)
from tests.helpers.legacy_databases import (
    FOLDER,
    manage,
    opened,
    psql,
    rows,
    sqlite_path,
)
from tests.helpers.moments import wait_until
from tests.helpers.servers import FAST, Server

Load = Callable[[str], str]


def assert_refused(url: str, message: str, *arguments: str) -> None:
    run = baselinedb(url, *arguments)
    assert (run.code, run.err, run.out) == (2, message, "")


def test_a_missing_sqlite_file_is_not_created(tmp_path: Path):
    path = tmp_path / "nowhere.db"

    assert_refused(
        f"sqlite:///{path}",
        f"The database file '{path}' does not exist. Check the database URL, or run "
        "'agentdb migrate' to make a new one.",
    )

    assert list(tmp_path.iterdir()) == []


def test_a_missing_folder_is_named(tmp_path: Path):
    assert_refused(
        f"sqlite:///{tmp_path}/no/such.db",
        f"The folder '{tmp_path}/no' of the database file 'such.db' does not exist. Check the database URL.",
    )


def test_a_directory_is_no_database(tmp_path: Path):
    assert_refused(
        f"sqlite:///{tmp_path}",
        f"'{tmp_path}' is a directory, not a database file. Check the database URL.",
    )


@pytest.mark.parametrize(
    "content",
    [b"x", b"SQLite format 3\0", b"# a text file\n" * 200],
    ids=["x", "magic", "text"],
)
def test_a_file_that_is_no_sqlite_database_is_left_alone(
    tmp_path: Path, content: bytes
):
    path = tmp_path / "file.db"
    path.write_bytes(content)

    assert_refused(
        f"sqlite:///{path}",
        f"'{path}' is not a SQLite database, or it is encrypted. Check the database URL.",
    )

    assert path.read_bytes() == content


def test_a_file_with_damaged_pages_is_not_touched(tmp_path: Path):
    path = tmp_path / "file.db"
    content = bytearray((FOLDER / "sqlite" / "era-b.db").read_bytes())
    content[4096 * 3 : 4096 * 30] = b"\xff" * 4096 * 27
    path.write_bytes(content)
    before = snapshot(f"sqlite:///{path}")

    run = baselinedb(f"sqlite:///{path}")

    assert run.code == 2
    assert (
        run.err
        == f"The database file '{path}' is damaged: database disk image is malformed. Restore a backup."
    )
    assert snapshot(f"sqlite:///{path}") == before


def test_damage_in_an_index_is_found_by_the_check_of_the_backup(tmp_path: Path):
    """Reading rows would not show it."""
    path = tmp_path / "file.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-b.db", path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA writable_schema = ON")
        connection.execute("UPDATE sqlite_master SET rootpage = (SELECT rootpage FROM sqlite_master m"
                           " WHERE m.name = 'idx_sessions_tenant') WHERE name = 'idx_sandboxes_tenant'")  # fmt: skip
        connection.commit()

    run = baselinedb(f"sqlite:///{path}")

    assert run.code == 2
    assert run.err.startswith(f"The database file '{path}' is damaged: ")
    assert run.err.endswith(" Restore a backup.")
    assert [p.name for p in tmp_path.iterdir() if "backup" in p.name] == []


@pytest.fixture
def shared_folder() -> Iterator[Path]:
    """A folder that any user may enter, which pytest's own is not."""
    folder = Path(tempfile.mkdtemp(prefix="agentdb-shared-"))
    folder.chmod(0o777)
    yield folder
    for path in [folder, *folder.rglob("*")]:
        if path.is_dir():
            path.chmod(0o700)  # a test may have closed it, to its owner too
    shutil.rmtree(folder)


# Everything is imported before the privileges go: afterwards the interpreter's own files may be out of reach.
UNPRIVILEGED = """
import os, sys
from agentdb.serving.opening import configure
configure(sys.argv[1])
from django.core.management import call_command, CommandError
call_command("baselinedb", "--no-backup")
os.setgid(65534) if os.getuid() == 0 else None
os.setuid(65534) if os.getuid() == 0 else None
try:
    call_command("baselinedb", *sys.argv[3:], database=configure(sys.argv[2]))
except CommandError as error:
    print(error, file=sys.stderr)
    sys.exit(error.returncode)
"""


def unprivileged(
    folder: Path, path: Path, *arguments: str
) -> subprocess.CompletedProcess[str]:
    other = folder / "other"
    other.mkdir()
    shutil.copyfile(FOLDER / "sqlite" / "era-a.db", other / "other.db")
    # Coverage would write its data as the user who has no right to.
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith("COVERAGE_")
    }
    return subprocess.run(
        [
            sys.executable,
            "-c",
            UNPRIVILEGED,
            f"sqlite:///{other}/other.db",
            f"sqlite:///{path}",
            *arguments,
        ],
        capture_output=True,
        text=True,
        env={**environment, "DJANGO_SETTINGS_MODULE": "settings.test"},
    )


def test_a_read_only_file_can_be_looked_at_and_is_refused(shared_folder: Path):
    path = shared_folder / "era-a.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-a.db", path)
    path.chmod(0o444)
    before = path.read_bytes()

    run = unprivileged(shared_folder, path)

    assert (run.returncode, run.stderr.splitlines()[-1]) == (
        2,
        f"The database file '{path}' is read-only. Allow writing to it and to its folder, and try again. Nothing was "
        "changed.",
    )
    assert path.read_bytes() == before
    assert {p.name for p in shared_folder.iterdir()} == {"era-a.db", "other"}


def test_a_folder_that_may_not_be_written_to_is_refused(shared_folder: Path):
    folder = shared_folder / "closed"
    folder.mkdir()
    path = folder / "era-a.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-a.db", path)
    path.chmod(0o666)
    folder.chmod(0o555)

    run = unprivileged(shared_folder, path)

    assert (run.returncode, run.stderr.splitlines()[-1]) == (
        2,
        f"The database file '{path}' is read-only. Allow writing to it and to its folder, and try again.",
    )
    assert path.read_bytes() == (FOLDER / "sqlite" / "era-a.db").read_bytes()
    assert [p.name for p in folder.iterdir()] == ["era-a.db"]


def test_check_works_on_a_read_only_file_in_a_read_only_folder(shared_folder: Path):
    folder = shared_folder / "closed"
    folder.mkdir()
    path = folder / "era-a.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-a.db", path)
    path.chmod(0o444)
    folder.chmod(0o555)

    run = unprivileged(shared_folder, path, "--check")

    assert run.returncode == 1
    assert "Shape: single-tenant" in run.stdout


def test_a_file_that_may_not_be_read_is_refused(shared_folder: Path):
    path = shared_folder / "era-a.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-a.db", path)
    path.chmod(0o000)

    run = unprivileged(shared_folder, path)

    assert (run.returncode, run.stderr.splitlines()[-1]) == (
        2,
        f"The database file '{path}' cannot be read: permission denied.",
    )


@pytest.fixture
def holder(tmp_path: Path) -> Iterator[Callable[..., None]]:
    """A function with which another process holds a lock on a SQLite file until the test ends."""
    processes = []

    def hold(path: Path, *statements: str) -> None:
        script = (
            "import sqlite3, sys; c = sqlite3.connect(sys.argv[1], isolation_level=None);"
            "[c.execute(s).fetchall() for s in sys.argv[2:]]; print('held', flush=True); sys.stdin.read()"
        )
        process = subprocess.Popen(
            [sys.executable, "-c", script, str(path), *statements],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )
        processes.append(process)
        assert process.stdout is not None
        assert process.stdout.readline() == b"held\n"

    yield hold
    for process in processes:
        process.communicate()


LOCKED = "The database file '{}' is locked by another process. Stop the program that uses it, or wait, and try again."


@pytest.mark.parametrize("mode", ["WAL", "DELETE"])
def test_a_database_with_a_writer_that_does_not_end_is_refused(
    tmp_path: Path, holder: Callable[..., None], mode: str
):
    path = tmp_path / "era-a.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-a.db", path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute(f"PRAGMA journal_mode={mode}")
    holder(path, "BEGIN IMMEDIATE")
    before = path.read_bytes()

    run = baselinedb(f"sqlite:///{path}?timeout=0.2")

    assert (run.code, run.err) == (
        2,
        LOCKED.format(path)
        + (" Nothing was changed." if run.err.endswith("changed.") else ""),
    )
    assert path.read_bytes() == before


def test_a_reader_that_keeps_the_commit_waiting_leaves_nothing_behind(
    tmp_path: Path, holder: Callable[..., None]
):
    path = tmp_path / "era-a.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-a.db", path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    before = path.read_bytes()
    holder(path, "BEGIN", "SELECT count(*) FROM agents")

    run = baselinedb(f"sqlite:///{path}?timeout=0.2")

    assert (run.code, run.err.splitlines()[-1]) == (
        2,
        LOCKED.format(path) + " Nothing was changed.",
    )
    assert path.read_bytes() == before
    assert [each.name for each in tmp_path.iterdir()] == ["era-a.db"]


def test_a_commit_that_fails_for_a_reason_that_proves_nothing_keeps_the_backup(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "era-a.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-a.db", path)

    def fails(connection: BaseDatabaseWrapper) -> None:
        if connection.settings_dict["NAME"] != ":memory:":  # the rehearsal's
            raise OperationalError("disk I/O error")

    with monkeypatch.context() as broken:
        broken.setattr(BaseDatabaseWrapper, "_commit", fails)
        run = baselinedb(f"sqlite:///{path}")

    assert (run.code, run.err.splitlines()[-1]) == (
        2,
        f"The database file '{path}' cannot be used: disk I/O error. The database may be adopted all the same: run the "
        "command again, which says so.",
    )
    assert [each.name for each in tmp_path.iterdir() if "backup" in each.name]
    assert baselinedb(f"sqlite:///{path}").code == 0


def test_ctrl_c_during_the_commit_does_not_say_that_nothing_was_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    path = tmp_path / "era-a.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-a.db", path)
    commit = BaseDatabaseWrapper._commit  # type: ignore[attr-defined]

    def is_interrupted(connection: BaseDatabaseWrapper) -> None:
        commit(connection)
        if connection.settings_dict["NAME"] != ":memory:":  # the rehearsal's
            raise KeyboardInterrupt

    with monkeypatch.context() as broken:
        broken.setattr(BaseDatabaseWrapper, "_commit", is_interrupted)
        run = baselinedb(f"sqlite:///{path}")

    assert (run.code, run.err.splitlines()[-1]) == (
        130,
        "Interrupted. The database may be adopted all the same: run the command again, which says so.",
    )
    assert [each.name for each in tmp_path.iterdir() if "backup" in each.name]
    assert baselinedb(f"sqlite:///{path}").out.splitlines()[-1] == "Nothing to do."


def test_a_database_that_another_process_has_for_itself_is_refused(
    tmp_path: Path, holder: Callable[..., None]
):
    path = tmp_path / "era-a.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-a.db", path)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode=DELETE")
    holder(path, "BEGIN EXCLUSIVE")

    assert_refused(f"sqlite:///{path}?timeout=0.2", LOCKED.format(path))
    assert_refused(f"sqlite:///{path}?timeout=0.2", LOCKED.format(path), "--check")


def test_a_reader_is_in_nobodys_way(tmp_path: Path, holder: Callable[..., None]):
    path = tmp_path / "era-a.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-a.db", path)
    holder(path, "BEGIN", "SELECT count(*) FROM agents")

    assert baselinedb(f"sqlite:///{path}").code == 0


def postgres_as(url: str, **changes: str) -> str:
    """The URL with another user, password, database or socket folder."""
    parts = urlsplit(url)
    user = (
        f"{changes['user']}:{quote(changes.get('password', ''))}@"
        if "user" in changes
        else f"{parts.username}:@"
    )
    return urlunsplit(
        parts._replace(
            netloc=user + (f"{parts.hostname}:{parts.port}" if parts.hostname else ""),
            path=changes.get("database", parts.path),
            query=changes.get("query", parts.query),
        )
    )


@pytest.fixture
def role(postgres_url: str) -> Iterator[str]:
    name = f"agentdb_role_{os.getpid()}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {name} LOGIN PASSWORD 'right'".encode())
    yield name
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP ROLE {name}".encode())


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_role_that_may_only_read_is_refused(
    load_legacy: Load, engine: str, role: str
):
    url = load_legacy("era-a")
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(
            f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {role}".encode()
        )
        connection.execute(
            "REVOKE CREATE ON SCHEMA public FROM PUBLIC"
        )  # as it is from PostgreSQL 15 on
        owner = connection.execute("SELECT current_user").fetchone()
    assert owner is not None
    before = snapshot(url)

    run = baselinedb(postgres_as(url, user=role, password="right"))

    assert run.code == 2
    assert run.err.splitlines() == [
        *(
            f"The role '{role}' does not own table '{table}' and may not change it. Use the role '{owner[0]}'."
            for table in ("agents", "sandboxes", "sessions")
        ),
        f"The role '{role}' may not create tables in schema 'public'. Run 'GRANT CREATE ON SCHEMA public TO {role}' as "
        "its owner, or use another role.",
    ]
    assert snapshot(url) == before
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"DROP OWNED BY {role}".encode())


@pytest.mark.parametrize("engine", ["postgresql"])
def test_what_an_administrator_adopts_is_for_the_role_of_the_server(
    load_legacy: Load, engine: str, role: str
):
    url = load_legacy("era-a")  # without api_keys
    owner = f"{role}_owner"
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"CREATE ROLE {owner}".encode())
        connection.execute(f"GRANT CREATE ON SCHEMA public TO {owner}".encode())
        for table in ("agents", "sessions", "sandboxes"):
            connection.execute(f"ALTER TABLE {table} OWNER TO {owner}".encode())
            connection.execute(
                f"GRANT SELECT, INSERT, UPDATE, DELETE ON {table} TO {role}".encode()
            )
    try:
        assert baselinedb(url).code == 0

        with agentdb.connect(postgres_as(url, user=role, password="right")) as db:
            assert db.health().ok
            plain, _ = db.issue_api_key("acme", "laptop")
            assert db.authenticate(plain) is not None
            assert db.upsert_agent("new", "/new").version == 1
        with psycopg.connect(url, autocommit=True) as connection:
            owners = connection.execute(
                "SELECT relname, pg_get_userbyid(relowner), has_table_privilege(%s, oid, 'INSERT') FROM pg_class"
                " WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace ORDER BY 1",
                [role],
            ).fetchall()
        assert owners == [
            *((table, owner, True) for table in ("agents", "api_keys")),
            ("django_migrations", owner, False),
            *((table, owner, True) for table in ("sandboxes", "sessions")),
        ]
    finally:
        with psycopg.connect(url, autocommit=True) as connection:
            connection.execute(f"DROP OWNED BY {role}, {owner}".encode())
            connection.execute(f"DROP ROLE {owner}".encode())


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_role_that_may_not_read_is_refused(load_legacy: Load, engine: str, role: str):
    url = load_legacy("era-a")

    run = baselinedb(postgres_as(url, user=role, password="right"))

    assert run.code == 2
    assert run.err.startswith(f"The role '{role}' may not do this in 'agentdb_test_")
    assert run.err.endswith(
        ": permission denied for table agents. Use the role that owns the tables."
    )


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_missing_database_is_named(
    make_postgres_database: Callable[[], str], engine: str
):
    url = postgres_as(make_postgres_database(), database="/no_such_database")

    run = baselinedb(url)

    assert run.code == 2
    assert run.err.startswith("The database 'no_such_database' at ")
    assert run.err.endswith(
        ' cannot be reached: database "no_such_database" does not exist.'
    )


def test_a_server_that_is_away_is_named_without_the_password():
    assert_refused(
        "postgresql://me:secret@127.0.0.1:1/agents",
        "The database 'agents' at 127.0.0.1:1 cannot be reached: connection refused.",
    )


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_wrong_password_is_refused_without_showing_it(
    engine: str, role: str, postgres_url: str
):
    if os.environ.get("AGENTDB_TEST_POSTGRES_URL"):
        pytest.skip("needs a server whose pg_hba.conf may be changed")
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        ((hba,),) = connection.execute("SHOW hba_file").fetchall()
        before = Path(hba).read_text()
        Path(hba).write_text(f"local all {role} scram-sha-256\n{before}")
        connection.execute("SELECT pg_reload_conf()")
        try:
            run = baselinedb(postgres_as(postgres_url, user=role, password="wr0ng"))
        finally:
            Path(hba).write_text(before)
            connection.execute("SELECT pg_reload_conf()")

    assert run.code == 2
    assert run.err.endswith(
        f' cannot be reached: password authentication failed for user "{role}".'
    )
    assert "wr0ng" not in run.err + run.out


@pytest.mark.parametrize("engine", ["postgresql"])
def test_tables_in_use_are_waited_for_and_then_refused(
    load_legacy: Load, engine: str, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(
        "agentdb.adoption.execution.LIMIT_LOCK_WAITS", "SET LOCAL lock_timeout = '1s'"
    )
    url = load_legacy("era-a")
    with psycopg.connect(url, application_name="reports") as connection:
        [(pid, role)] = connection.execute(
            "SELECT pg_backend_pid(), current_user FROM sessions LIMIT 1"
        ).fetchall()

        run = baselinedb(url)

    assert run.code == 2
    assert run.err.endswith(
        f" are in use: process {pid} (reports, role {role}, idle in transaction). Stop that, and try again. Nothing "
        "was changed."
    )


def test_a_prepared_transaction_that_holds_the_tables_is_named(
    monkeypatch: pytest.MonkeyPatch,
):
    monkeypatch.setattr(
        "agentdb.adoption.execution.LIMIT_LOCK_WAITS", "SET LOCAL lock_timeout = '1s'"
    )
    with Server() as server:
        server.init()
        server.start(**FAST, max_prepared_transactions="1")
        psql(server.url, "-f", str(FOLDER / "pg" / "era-a.sql"))
        with psycopg.connect(server.url, autocommit=True) as connection:
            connection.execute("BEGIN")
            connection.execute("UPDATE sessions SET status = 'x'")
            connection.execute("PREPARE TRANSACTION 'half done'")

        errors = {
            baselinedb(server.url, *words).err.partition(" are in use: ")[2]
            for words in ((), ("--check",))
        }

    assert errors == {
        "prepared transaction 'half done', which 'COMMIT PREPARED' or 'ROLLBACK PREPARED' ends. Stop that, and try "
        "again. Nothing was changed."
    }


def test_a_look_that_a_writer_came_into_is_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """A file that nobody has open is read without locks, for they would leave files behind."""
    path = tmp_path / "era-a.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-a.db", path)
    looks = []

    def reading(*args: Any, **options: Any) -> Any:
        looks.append(1)
        if len(looks) == 1:
            writer.execute("INSERT INTO agents (name, path) VALUES ('came later', '/')")
            writer.commit()
        return read(*args, **options)

    monkeypatch.setattr("agentdb.adoption.execution.read", reading)
    with closing(sqlite3.connect(path)) as writer:
        run = baselinedb(f"sqlite:///{path}", "--check")

    assert (run.code, len(looks)) == (1, 2)
    assert "  agents     18 rows" in run.out.splitlines()


def test_two_processes_at_once_adopt_once_and_the_other_finds_nothing_to_do(
    load_legacy: Load, engine: str
):
    url = load_legacy("era-b")
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", "agentdb", "baselinedb"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={
                **{
                    k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"
                },
                "DATABASE_URL": url,
            },
        )
        for _ in range(3)
    ]

    outputs = [process.communicate() for process in processes]

    assert [process.returncode for process in processes] == [0, 0, 0], outputs
    last = sorted(out.splitlines()[-1].partition(":")[0] for out, _ in outputs)
    assert last.count("Adopted") == 1
    assert set(last) <= {"Adopted", "Nothing to do", "Nothing to do."}
    with opened(url) as connection:
        assert_adopted(connection)


def test_a_sqlite_server_that_writes_meanwhile_loses_nothing(tmp_path: Path):
    """Rows that are written between the look and the adoption are adopted too."""
    path = tmp_path / "era-b.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-b.db", path)
    written: list[str] = []
    stop = threading.Event()

    def write() -> None:
        with closing(
            sqlite3.connect(path, timeout=30, isolation_level=None)
        ) as connection:
            while not stop.wait(0.005):  # or nobody else would find the file unlocked
                name = f"written-{len(written)}"
                try:
                    connection.execute(
                        "INSERT INTO sessions (id, agent_name, sandbox_id) VALUES (?, 'a', 'b')",
                        [name],
                    )
                except sqlite3.OperationalError as error:
                    assert "locked" in str(error)
                else:
                    written.append(name)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: written)
        run = subprocess.run(
            [sys.executable, "-m", "agentdb", "baselinedb"],
            capture_output=True,
            text=True,
            env={**{k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"},
                 "DATABASE_URL": f"sqlite:///{path}"},
        )  # fmt: skip
    finally:
        stop.set()
        writer.join()

    assert run.returncode == 0, run.stderr
    with closing(sqlite3.connect(path)) as connection:
        found = {
            row[0]
            for row in connection.execute(
                "SELECT id FROM sessions WHERE id LIKE 'written-%'"
            )
        }
    assert found == set(written)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_file_is_named_and_not_waited_for(tmp_path: Path, kind: str):
    path = tmp_path / "pipe"
    os.mkfifo(path)
    place = path if kind == "pipe" else Path("/dev/null")

    assert_refused(
        f"sqlite:///{place}",
        f"'{place}' is a device or a pipe, not a database file. Check the database URL.",
    )


def test_a_write_to_a_table_of_somebody_else_does_not_undo_an_adoption(
    load_legacy: Load, engine: str, monkeypatch: pytest.MonkeyPatch
):
    url = load_legacy("era-b")
    with opened(url) as connection, connection.cursor() as cursor:
        cursor.execute("CREATE TABLE operators_own (id integer)")

    def verify(change: Change, *args: Any) -> None:
        if engine == "postgresql":
            with psycopg.connect(url) as other:
                other.execute("INSERT INTO operators_own VALUES (1)")
        else:
            with change.connection.cursor() as cursor:
                cursor.execute("INSERT INTO operators_own VALUES (1)")
        original(change, *args)

    original = Change._verify_rows
    monkeypatch.setattr(Change, "_verify_rows", verify)

    assert baselinedb(url, "--no-backup").code == 0
    with opened(url) as connection:
        assert_adopted(connection)


def test_a_file_that_lacks_its_last_page_is_damaged(tmp_path: Path):
    path = tmp_path / "file.db"
    content = (FOLDER / "sqlite" / "era-b.db").read_bytes()
    path.write_bytes(content[:-4096])

    assert_refused(
        f"sqlite:///{path}",
        f"The database file '{path}' is damaged: database disk image is malformed. Restore a backup.",
    )


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_unique_constraint_that_is_checked_late_does_not_take_the_place_of_ours(
    load_legacy: Load, engine: str
):
    url = load_legacy("era-b-small")
    assert baselinedb(url).code == 0
    with opened(url) as connection, connection.cursor() as cursor:
        cursor.execute("DROP TABLE django_migrations")
        cursor.execute("ALTER TABLE agents DROP CONSTRAINT idx_agents_tenant_name")
        cursor.execute(
            "ALTER TABLE agents ADD CONSTRAINT late UNIQUE (tenant_id, name) DEFERRABLE INITIALLY DEFERRED"
        )

    run = baselinedb(url)

    assert run.code == 0, run.err
    with opened(url) as connection, connection.cursor() as cursor:
        assert_adopted(connection)
        cursor.execute(
            "SELECT conname, condeferrable FROM pg_constraint WHERE conrelid = 'agents'::regclass AND contype = 'u'"
        )
        assert cursor.fetchall() == [("idx_agents_tenant_name", False)]


@pytest.mark.parametrize("engine", ["postgresql"])
def test_tables_behind_an_empty_schema_of_the_search_path_are_named_and_nothing_is_made(
    load_legacy: Load, engine: str
):
    url = load_legacy("era-b-small")
    with psycopg.connect(url, autocommit=True) as server:
        server.execute("CREATE SCHEMA app")
    here = f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3Dapp,public"
    before = snapshot(url)
    with opened(here) as connection, connection.cursor() as cursor:
        cursor.execute("SELECT current_user")
        [(role,)] = cursor.fetchall()
        sentence = (
            "The tables are in schema 'public', and new ones would be created in 'app', which comes before it in the "
            f"search_path. Run 'ALTER ROLE {role} SET search_path = public', or add options=-csearch_path%3Dpublic to "
            "the database URL."
        )
        with pytest.raises(CommandError) as refused:
            manage(connection, "migrate", "agentdb")
        assert str(refused.value) == sentence

    assert [run.err for run in (baselinedb(here, "--check"), baselinedb(here))] == [
        sentence
    ] * 2
    with opened(here) as connection:
        assert sentence in verification(connection)
    assert snapshot(url) == before
    assert (
        baselinedb(
            f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3Dpublic"
        ).code
        == 0
    )


def verification(connection: BaseDatabaseWrapper) -> str:
    out = io.StringIO()
    with pytest.raises(SystemExit) as ended:
        call_command("verifydb", database=connection.alias, stdout=out)
    assert ended.value.code == 1
    return out.getvalue()


@pytest.mark.parametrize("engine", ["postgresql"])
@pytest.mark.parametrize("is_native", [False, True])
@pytest.mark.parametrize("width", ["smallint", "bigint"])
def test_a_version_of_another_width_is_converted(
    load_legacy: Load, engine: str, is_native: bool, width: str
):
    url = load_legacy("era-b-small")
    if is_native:
        assert baselinedb(url).code == 0
    with psycopg.connect(url, autocommit=True) as server:
        before = server.execute("SELECT id, version FROM agents ORDER BY 1").fetchall()
        server.execute(f"ALTER TABLE agents ALTER version TYPE {width}".encode())

    assert baselinedb(url, "--check").code == 1
    assert baselinedb(url).code == 0

    with opened(url) as connection:
        assert_adopted(connection)
    with psycopg.connect(url) as server:
        assert (
            server.execute("SELECT id, version FROM agents ORDER BY 1").fetchall()
            == before
        )


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_version_that_does_not_fit_is_named(load_legacy: Load, engine: str):
    url = load_legacy("era-b-small")
    with psycopg.connect(url, autocommit=True) as server:
        server.execute("ALTER TABLE agents ALTER version TYPE bigint")
        [(id,)] = server.execute("UPDATE agents SET version = 5000000000 WHERE id = (SELECT min(id) FROM agents)"
                                   " RETURNING id").fetchall()  # fmt: skip

    check, run = baselinedb(url, "--check"), baselinedb(url)

    assert (check.code, run.code, check.err) == (2, 2, run.err)
    assert f"id {id!r}" in run.err
    assert "5000000000 does not fit into 32 bits" in run.err


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_check_of_our_columns_and_others_is_dropped_with_a_line_in_the_plan(
    load_legacy: Load, engine: str
):
    url = load_legacy("era-b-small")
    with psycopg.connect(url, autocommit=True) as server:
        server.execute(
            "ALTER TABLE sessions ADD own int, ADD CONSTRAINT mixed CHECK (own > 0 OR status <> 'x')"
        )

    run = baselinedb(url)

    assert run.code == 0
    assert "Drop the check mixed of sessions: (own > 0) OR (status <> 'x')." in run.out


@pytest.mark.parametrize("engine", ["sqlite"])
def test_the_connection_is_as_configured_before_and_after_an_adoption(
    load_legacy: Load, engine: str
):
    with opened(load_legacy("era-b-small")) as connection:
        rows(connection, "PRAGMA query_only = ON")
        cache = rows(connection, "PRAGMA cache_size")

        manage(connection, "baselinedb", "--no-backup", verbosity=0)

        assert connection.connection is None
        assert rows(connection, "PRAGMA journal_mode") == [("wal",)]
        assert rows(connection, "PRAGMA cache_size") == cache
        rows(
            connection,
            "CREATE TABLE own (key INTEGER PRIMARY KEY, id TEXT REFERENCES agents (id))",
        )
        connection.disable_constraint_checking()
        rows(connection, "INSERT INTO own VALUES (1, 'nobody')")
        with pytest.raises(IntegrityError):
            connection.check_constraints()


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_refused_file_keeps_its_journal_mode_whatever_the_project_sets(
    load_legacy: Load, engine: str
):
    url = load_legacy("dirty-timestamp-garbage")
    before = snapshot(url)
    with opened(url) as connection:
        options = connection.settings_dict["OPTIONS"]
        options["init_command"] = "PRAGMA Journal_Mode = DELETE"
        with pytest.raises(CommandError, match="cannot be converted"):
            manage(connection, "baselinedb")

    assert snapshot(url) == before


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_file_that_may_not_grow_is_left_as_it_was(load_legacy: Load, engine: str):
    url = load_legacy("era-b-small")
    with opened(url) as connection:
        before = rows(connection, "SELECT * FROM sqlite_master ORDER BY name")
        [(pages,)] = rows(connection, "PRAGMA page_count")
        options = connection.settings_dict["OPTIONS"]
        options["init_command"] = f"PRAGMA max_page_count = {pages}"
        with pytest.raises(CommandError) as refused:
            manage(connection, "baselinedb", "--no-backup")

        assert str(refused.value).endswith(
            ". Free some space and try again. Nothing was changed."
        )
        assert rows(connection, "SELECT * FROM sqlite_master ORDER BY name") == before


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_write_that_fails_in_the_middle_is_what_is_said(
    load_legacy: Load, engine: str
):
    url = load_legacy("era-b")
    with opened(url) as connection:
        rows(connection, "PRAGMA journal_mode = DELETE")
    before = snapshot(url)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)

    # Of the journal, which gets every page before it changes. SQLite then rolls back by itself, and Django's next
    # query finds a transaction that is broken.
    resource.setrlimit(resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))
    try:
        run = baselinedb(url, "--no-backup")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)

    assert run.code == 2
    assert run.err == (
        f"The database file '{sqlite_path(url)}' cannot be used: disk I/O error. Nothing was changed."
    )
    assert snapshot(url) == before


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_policy_on_a_table_of_the_operators_is_in_nobodys_way(
    load_legacy: Load, engine: str, role: str, tmp_path: Path
):
    url = load_legacy("era-b-small")
    with psycopg.connect(url, autocommit=True) as connection:
        for statement in (
            f"GRANT ALL ON SCHEMA public TO {role}",
            *(f"ALTER TABLE {table} OWNER TO {role}" for table in TABLES),
            "CREATE TABLE notes AS SELECT 'a' AS id",
            "ALTER TABLE notes ENABLE ROW LEVEL SECURITY",
            # A setting that only the operator's program makes.
            "CREATE POLICY own ON notes USING (id = current_setting('app.tenant'))",
            f"GRANT SELECT ON notes TO {role}",
        ):
            connection.execute(statement.encode())
    of_role = postgres_as(url, user=role, password="right")

    run = baselinedb(of_role)

    assert (run.code, run.err if run.code else "") == (0, "")
    with opened(of_role) as connection:
        output = manage(connection, "backup", str(tmp_path / "backup.db"))
        assert "Not copied: table 'notes', 0 rows.\n" in output
    with psycopg.connect(url, autocommit=True) as connection:
        connection.execute(f"REASSIGN OWNED BY {role} TO CURRENT_USER".encode())
        connection.execute(f"DROP OWNED BY {role}".encode())


@pytest.mark.parametrize("engine", ["postgresql"])
def test_zone_triggers_and_isolation_of_the_database_do_not_matter(
    load_legacy: Load, engine: str
):
    isolation = []

    def found(*decision: object) -> None:
        isolation.extend(rows(connection, "SHOW transaction_isolation"))

    with opened(load_legacy("era-b-small")) as connection:
        connection.settings_dict["TIME_ZONE"] = "Asia/Kolkata"
        rows(connection, "UPDATE agents SET created_at = '2026-02-19 20:53:16'")
        rows(connection, "CREATE TABLE seen (tag text)")
        rows(
            connection,
            "CREATE FUNCTION see() RETURNS trigger LANGUAGE plpgsql AS"
            " $$ BEGIN INSERT INTO seen VALUES (TG_OP); RETURN NULL; END $$",
        )
        rows(
            connection,
            "CREATE TRIGGER see AFTER UPDATE ON agents EXECUTE FUNCTION see()",
        )

        rows(
            connection,
            "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET default_transaction_isolation = ''repeatable read''',"
            " current_database()); END $$",
        )

        adopt(connection.alias, SILENT, found, backup=False)

        # So each statement sees what was committed while the one before it waited for a lock.
        assert isolation == [("read committed",)]
        assert rows(connection, "SELECT count(*) FROM seen") == [(0,)]
        assert rows(
            connection,
            "SELECT DISTINCT created_at = '2026-02-19 20:53:16+00' FROM agents",
        ) == [(True,)]


@pytest.mark.parametrize("engine", ["sqlite"])
def test_check_waits_for_an_adoption_of_another_process(load_legacy: Load, engine: str):
    """Without a write-ahead log, a file larger than SQLite's cache is locked for readers long before the COMMIT."""
    url = load_legacy("era-b-small")
    path = sqlite_path(url)
    folder = os.open(path.parent, os.O_RDONLY)
    fcntl.flock(folder, fcntl.LOCK_EX)
    writer = sqlite3.connect(path, isolation_level=None)
    writer.execute("BEGIN EXCLUSIVE")

    class Other(Told):
        """Ends the other process's work when it is said that this one waits."""

        def say(self, text: str) -> None:
            super().say(text)
            writer.close()
            os.close(folder)

    told = Other()
    with opened(url) as connection:
        outcome = look(connection.alias, told, lambda *_: None, backup=True)

    assert told.said == ["Another process is changing the schema; waiting for it."]
    assert outcome.plan.actions
