"""A real PgBouncer in front of PostgreSQL, in both modes that people run: many callers, few server connections."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import psycopg
import pytest

import agentdb
from agentdb import DatabaseUnavailableError
from tests.factories import make_session
from tests.servers import free_port

SERVER_CONNECTIONS = 4
CALLERS = int(os.environ.get("AGENTDB_PGBOUNCER_CALLERS", "40"))
CALLS = 10


def version() -> tuple[int, int]:
    program = shutil.which("pgbouncer") or pytest.skip("needs PgBouncer (Debian: apt-get install pgbouncer)")
    found = re.search(r"PgBouncer (\d+)\.(\d+)", subprocess.run([program, "-V"], capture_output=True, text=True).stdout)
    assert found
    return int(found[1]), int(found[2])


@pytest.fixture
def bouncer(make_postgres_database: Callable[..., str], _migrated_postgres: str, tmp_path: Path) -> Iterator[Bouncer]:
    started: list[subprocess.Popen[bytes]] = []
    url = make_postgres_database(template=_migrated_postgres)

    def start(mode: str, **settings: object) -> str:
        port = free_port()
        parts, query = urlsplit(url), parse_qs(urlsplit(url).query)
        target = {"host": (query.get("host") or [parts.hostname])[0], "port": parts.port or 5432}
        lines = {
            "listen_addr": "127.0.0.1",
            "listen_port": port,
            "unix_socket_dir": "",
            "auth_type": "any",
            "pool_mode": mode,
            "default_pool_size": SERVER_CONNECTIONS,
            "max_client_conn": 1000,
            **settings,
        }
        path = tmp_path / f"pgbouncer-{port}.ini"
        path.write_text(
            "[databases]\n"
            f"agents = host={target['host']} port={target['port']} dbname={parts.path[1:]} user={parts.username}\n"
            "[pgbouncer]\n" + "".join(f"{name} = {value}\n" for name, value in lines.items())
        )
        path.chmod(0o644)
        command = [shutil.which("pgbouncer") or "", str(path)]
        if os.geteuid() == 0:  # which PgBouncer refuses to run as
            folder = Path("/tmp", f"agentdb-{path.name}")
            shutil.copyfile(path, folder)
            command[1] = str(folder)
        with (tmp_path / "log").open("wb") as log:
            nobody = 65534 if os.geteuid() == 0 else None
            started.append(subprocess.Popen(command, user=nobody, group=nobody, stdout=log, stderr=log))
        through = f"postgresql://agent@127.0.0.1:{port}/agents"
        for _ in range(200):
            try:
                psycopg.connect(through, prepare_threshold=None).close()
            except psycopg.OperationalError as error:
                assert started[-1].poll() is None, (tmp_path / "log").read_text()
                last = error
                time.sleep(0.05)
            else:
                return through
        raise AssertionError(last)

    yield start
    for process in started:
        process.terminate()
        process.wait()
    for left_over in Path("/tmp").glob("agentdb-pgbouncer-*.ini"):
        if os.geteuid() == 0:
            left_over.unlink()


Bouncer = Callable[..., str]


def many_callers(url: str) -> list[str]:
    """Let CALLERS threads insert and read at once, and return what went wrong."""
    wrong: list[str] = []
    with agentdb.connect(url) as db:

        def call(caller: int) -> None:
            try:
                for number in range(CALLS):
                    id = f"s{caller}-{number}"
                    make_session(db, id)
                    db.touch_session(id)
                    assert db.get_session(id) is not None
                    db.run_transaction(lambda db: db.update_session_status(id, "active"))
            except Exception as error:
                wrong.append(repr(error))

        threads = [threading.Thread(target=call, args=[caller]) for caller in range(CALLERS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        found = len(db.list_sessions(status="active", limit=CALLERS * CALLS + 1))
        if not wrong and found != CALLERS * CALLS:
            wrong.append(f"{found} sessions of {CALLERS * CALLS}")
    return wrong


def test_transaction_mode_with_prepare_off_serves_many_callers(bouncer: Bouncer) -> None:
    version()
    assert many_callers(bouncer("transaction") + "?prepare=off") == []


def test_transaction_mode_that_keeps_prepared_statements_needs_no_option(bouncer: Bouncer) -> None:
    if version() < (1, 21):
        pytest.skip("needs PgBouncer 1.21: earlier ones do not keep prepared statements in transaction mode")
    assert many_callers(bouncer("transaction", max_prepared_statements=100)) == []


def test_transaction_mode_that_loses_prepared_statements_says_what_to_add(bouncer: Bouncer) -> None:
    url = bouncer("transaction", **({"max_prepared_statements": 0} if version() >= (1, 21) else {}))

    wrong = many_callers(url)

    assert wrong
    assert {"Add prepare=off to the database URL." in error for error in wrong} == {True}, wrong[0]


@pytest.mark.parametrize("option", ["", "?prepare=off"])
def test_session_mode_serves_as_many_threads_as_it_has_connections(bouncer: Bouncer, option: str) -> None:
    version()
    # Each thread keeps its connection, hence a server connection: there have to be as many.
    assert many_callers(bouncer("session", default_pool_size=CALLERS + 1) + option) == []


def test_migrations_run_through_transaction_mode(
    make_postgres_database: Callable[..., str], bouncer: Bouncer
) -> None:
    version()
    url = bouncer("transaction") + "?prepare=off"
    with agentdb.connect(url, migrate=True) as db:
        make_session(db)
        assert db.get_session("s1") is not None


def test_callers_go_on_after_a_restart_of_the_bouncer(bouncer: Bouncer, tmp_path: Path) -> None:
    version()
    url = bouncer("transaction")
    with agentdb.connect(url + "?prepare=off") as db:
        make_session(db)
        with psycopg.connect(url.replace("/agents", "/pgbouncer"), autocommit=True, prepare_threshold=None) as admin:
            admin.execute("KILL agents")
            with pytest.raises(DatabaseUnavailableError):
                for _ in range(3):  # a read is tried again by itself, on a new connection
                    make_session(db, "s2")
            admin.execute("RESUME agents")
        assert db.get_session("s1") is not None
