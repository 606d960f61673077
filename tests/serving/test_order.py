"""Order by code point, also on a PostgreSQL that sorts as a language does: "a" before "B", and "é" before "z"."""

from __future__ import annotations

import os
import pwd
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest

import agentdb
from agentdb import DjangoDb
from tests.helpers.factories import (
    execute,
    instant,
    make_agent,
    make_api_key,
    make_sandbox,
    make_session,
    set_column,
)

IDS = ["10", "9", "B", "Z", "_", "a", "a b", "ab", "é", "\uffee", "😀"]


_DATABASE = f"agentdb_test_language_order_{os.getpid()}"


@pytest.fixture(scope="module")
def language_db(postgres_url: str) -> Iterator[tuple[DjangoDb, str]]:
    """A Db on a database in the order of English, on the tests' server, else on one of this machine's that can."""
    try:
        url = _create(postgres_url)
    except (
        psycopg.errors.FeatureNotSupported,
        psycopg.errors.SyntaxError,
    ):  # built without ICU; older than 15
        folder = Path(tempfile.mkdtemp(prefix="agentdb-pg-"))
        try:
            with _local_server(folder) as server_url:
                url = _create(server_url)
                with agentdb.connect(url, migrate=True) as db:
                    yield db, url
        finally:
            shutil.rmtree(folder, ignore_errors=True)
        return
    try:
        with agentdb.connect(url, migrate=True) as db:
            yield db, url
    finally:
        execute(postgres_url, f"DROP DATABASE {_DATABASE} WITH (FORCE)")


def _create(url: str) -> str:
    execute(
        url,
        f"CREATE DATABASE {_DATABASE} TEMPLATE template0 ENCODING 'UTF8' LOCALE_PROVIDER icu ICU_LOCALE 'en-US'",
    )
    return urlunsplit(urlsplit(url)._replace(path=f"/{_DATABASE}"))


class _local_server:
    """A server from the PostgreSQL that this machine has installed; skips where it has none that will do."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __enter__(self) -> str:
        programs = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"))
        if not programs:
            pytest.skip(
                "needs a PostgreSQL built with ICU: the wheel's is not, and this machine has none of its own"
            )
        self._bin = programs[-1].parent
        # PostgreSQL refuses to run as root.
        self._user = "postgres" if os.geteuid() == 0 and _exists("postgres") else None
        if os.geteuid() == 0 and self._user is None:
            pytest.skip("needs a user other than root to run this machine's PostgreSQL")
        self._folder.chmod(0o755)
        data = self._folder / "data"
        data.mkdir()
        if self._user:
            shutil.chown(data, self._user)
            shutil.chown(self._folder, self._user)
        self._run(
            "initdb",
            "--auth=trust",
            "--encoding=UTF8",
            "--locale=C",
            "--username=postgres",
            "--no-sync",
        )
        self._run(
            "pg_ctl",
            "start",
            "--wait",
            "-o",
            f"-k {self._folder} -c listen_addresses='' -c fsync=off",
        )
        return f"postgresql://postgres@/postgres?host={self._folder}"

    def __exit__(self, *error: object) -> None:
        self._run("pg_ctl", "stop", "--wait", "--mode=fast")

    def _run(self, program: str, *arguments: str) -> None:
        quiet = subprocess.DEVNULL
        command: list[str | Path] = [
            self._bin / program,
            "-D",
            self._folder / "data",
            *arguments,
        ]
        subprocess.run(
            command,
            user=self._user,
            cwd=self._folder,
            stdout=quiet,
            stderr=quiet,
            check=True,
            timeout=300,
        )


def _exists(user: str) -> bool:
    try:
        pwd.getpwnam(user)
    except KeyError:
        return False
    return True


@pytest.fixture
def empty(language_db: tuple[DjangoDb, str]) -> tuple[DjangoDb, str]:
    execute(language_db[1], "TRUNCATE agents, sessions, sandboxes, api_keys")
    return language_db


def test_the_databases_own_order_is_another_one(empty: tuple[DjangoDb, str]) -> None:
    db, url = empty
    for id in IDS:
        make_agent(db, id)

    own = [name for (name,) in execute(url, "SELECT name FROM agents ORDER BY name")]

    assert own != IDS
    assert own.index("a") < own.index("B")


def test_agents_are_listed_by_code_point(empty: tuple[DjangoDb, str]) -> None:
    db, _ = empty
    for id in IDS[::-1]:
        make_agent(db, id)

    assert [agent.name for agent in db.list_agents()] == IDS


@pytest.mark.parametrize("size", [1, 3, 100])
def test_sessions_of_one_instant_are_listed_and_paged_by_code_point(
    empty: tuple[DjangoDb, str], size: int
) -> None:
    db, url = empty
    for id in IDS:
        make_session(db, id)
        db.update_session_runner(id, "r1")
        set_column(url, "sessions", id, created_at=instant())

    paged: list[agentdb.SessionRecord] = []
    while page := db.list_sessions(limit=size, before=paged[-1] if paged else None):
        paged += page
        assert len(paged) <= len(IDS), "a page came twice"

    assert [session.id for session in paged] == IDS[::-1]
    assert (
        db.list_sessions()
        == db.list_sessions(agent="support-bot")
        == db.list_sessions_by_runner("r1")
        == paged
    )


def test_sandboxes_of_one_instant_are_taken_by_code_point(
    empty: tuple[DjangoDb, str],
) -> None:
    db, url = empty
    for id in IDS[::-1]:
        make_sandbox(db, id)
    execute(url, "UPDATE sandboxes SET last_used_at = ?, state = 'waiting'", instant())

    assert [sandbox.id for sandbox in db.get_idle_sandboxes(instant(1))] == IDS
    candidate = db.get_best_eviction_candidate()
    assert candidate is not None
    assert candidate.id == IDS[0]

    db.mark_all_sandboxes_cold()
    assert [sandbox.id for sandbox in db.get_cold_sandboxes(instant(1))] == IDS


def test_all_states_but_cold_become_cold(empty: tuple[DjangoDb, str]) -> None:
    db, url = empty
    states = ["cold", "COLD", "Cold", "cöld", "warm", "a", "z", "", "cold ", "😀"]
    for number, state in enumerate(states):
        make_sandbox(db, f"sb{number}")
        set_column(url, "sandboxes", f"sb{number}", state=state)

    assert db.mark_all_sandboxes_cold() == len(states) - 1
    assert execute(url, "SELECT DISTINCT state FROM sandboxes") == [("cold",)]


def test_keys_of_one_instant_are_listed_by_code_point(
    empty: tuple[DjangoDb, str],
) -> None:
    db, url = empty
    for id in IDS:
        make_api_key(db, id, key_hash=id)
        set_column(url, "api_keys", id, created_at=instant())

    assert [key.id for key in db.list_api_keys_by_tenant("acme")] == IDS[::-1]
