"""MemoryDb and the pytest fixtures that come with agentdb."""

from __future__ import annotations

import inspect
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from agentdb import (
    AgentDbError,
    DatabaseClosedError,
    Db,
    DjangoDb,
    InvalidInputError,
)
from agentdb.testing import MemoryDb
from tests.helpers.factories import execute, instant, make_session
from tests.project.test_import import run_python

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize("kind", [MemoryDb, DjangoDb])
def test_each_db_has_the_parameters_defaults_and_documentation_of_the_interface(
    kind: type[Db],
) -> None:
    for name in (name for name in vars(Db) if not name.startswith("_")):
        ours, theirs = (
            [
                (parameter.name, parameter.kind, parameter.default)
                for parameter in inspect.signature(
                    getattr(each, name)
                ).parameters.values()
            ]
            for each in (kind, Db)
        )
        assert ours == theirs, name
        # What help() and an editor show.
        assert inspect.getdoc(getattr(kind, name)), name


def test_memorydb_takes_the_time_from_the_test() -> None:
    now = [instant()]
    db = MemoryDb(clock=lambda: now[0])
    assert make_session(db).created_at == instant()
    now[0] = instant(-5)
    db.touch_session("s1")
    assert db.get_session("s1").last_active_at == instant()


def test_memorydb_refuses_to_prune_a_table_that_it_does_not_have() -> None:
    """As the engines do, instead of passing over it."""
    with MemoryDb(clock=instant) as db:
        make_session(db)
        db.update_session_status("s1", "ended")
        with pytest.raises(
            InvalidInputError,
            match=r"^No table 'messages' has a column 'session_id'\.$",
        ):
            db.prune_sessions(instant(1), 1, also=["messages"])
        assert db.get_session("s1") is not None


async def _coroutine(db: Db) -> None:
    make_session(db)


def _generator(db: Db) -> Iterator[None]:
    make_session(db)
    yield


def _awaitable(db: Db) -> Coroutine[Any, Any, None]:
    make_session(db)
    return _coroutine(db)


def _iterator(db: Db) -> Iterator[None]:
    make_session(db)
    return _generator(db)


@pytest.mark.parametrize(
    "fn", [_coroutine, _generator, _awaitable, _iterator], ids=lambda fn: fn.__name__
)
def test_memorydb_refuses_functions_that_are_not_plain_and_undoes_them(
    fn: Callable[[Db], Any],
) -> None:
    with MemoryDb() as db:
        with pytest.raises(
            InvalidInputError,
            match=r"^run_transaction\(\) takes a plain function, not a",
        ):
            db.run_transaction(fn)
        assert db.list_sessions() == []


@pytest.mark.parametrize("fn", [_coroutine, _generator])
def test_memorydb_refuses_such_a_function_before_it_is_asked_whether_it_is_open(
    fn: Callable[[Db], Any],
) -> None:
    """As every other argument, and as the engines do."""
    db = MemoryDb()
    db.close()

    with pytest.raises(InvalidInputError):
        db.run_transaction(fn)


def test_memorydb_says_what_it_is() -> None:
    with MemoryDb() as db:
        assert db.health().place == db.describe() == "a MemoryDb"


def test_memorydb_imports_no_django(tmp_path: Path) -> None:
    code = "import sys, agentdb.testing; agentdb.testing.MemoryDb().list_agents(); print('django' in sys.modules)"

    assert run_python(code, tmp_path) == "False\n"


def test_the_fixtures_come_with_the_package(
    agentdb_memory: MemoryDb, agentdb_sqlite: DjangoDb
) -> None:
    for db in (agentdb_memory, agentdb_sqlite):
        assert db.list_sessions() == []
        assert make_session(db) == db.get_session("s1")


def _run_tests(
    tmp_path: Path, code: str, *options: str, **variables: str
) -> subprocess.CompletedProcess[str]:
    """Run these tests of a project as pytest does, with the package's fixtures."""
    (tmp_path / "test_project.py").write_text(code)
    usual = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE"}
    return subprocess.run(
        [
            sys.executable,
            "-m",
            "pytest",
            "-q",
            "-rs",
            "-p",
            "no:cacheprovider",
            *options,
            "test_project.py",
        ],
        cwd=tmp_path,
        env={**usual, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}", **variables},
        capture_output=True,
        text=True,
        check=False,
    )


def test_the_fixtures_work_beside_pytest_django(tmp_path: Path) -> None:
    """Which refuses every database but its own: a project's tests need not ask for those."""
    code = "def test_one(agentdb_sqlite):\n    assert agentdb_sqlite.upsert_agent('a', '/a').version == 1\n"
    (tmp_path / "project_settings.py").write_text(
        "INSTALLED_APPS = ['agentdb']\nUSE_TZ = True\n"
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': ':memory:'}}\n"
    )
    for settings in (["--ds=project_settings"], []):  # with and without a project
        done = _run_tests(tmp_path, code, *settings)

        assert done.returncode == 0, done.stdout
        assert "1 passed" in done.stdout


_ON_POSTGRESQL = (
    "import pytest\n"
    "@pytest.mark.parametrize('number', [1, 2])\n"
    "def test_version(agentdb_postgresql, number):\n"
    "    assert agentdb_postgresql.upsert_agent('a', '/a').version == 1\n"
)


def test_the_postgresql_fixture_migrates_a_database_and_empties_it_for_each_test(
    make_postgres_database: Callable[[], str], tmp_path: Path
) -> None:
    url = make_postgres_database()

    done = _run_tests(tmp_path, _ON_POSTGRESQL, AGENTDB_POSTGRESQL_URL=url)

    assert done.returncode == 0, done.stdout
    assert "2 passed" in done.stdout


def test_the_postgresql_fixture_refuses_a_database_that_is_not_for_tests(
    postgres_url: str, tmp_path: Path
) -> None:
    """It may be a real one, so nothing in it changes, not even its schema."""
    done = _run_tests(tmp_path, _ON_POSTGRESQL, AGENTDB_POSTGRESQL_URL=postgres_url)

    assert "2 errors" in done.stdout
    assert (
        "The database 'postgres' does not have 'test' in its name, and would lose its rows."
        in done.stdout
    )
    found = execute(postgres_url, "SELECT to_regclass('django_migrations')")
    assert found == [(None,)]


def test_the_postgresql_fixture_skips_without_a_url_and_says_why(
    tmp_path: Path,
) -> None:
    done = _run_tests(tmp_path, _ON_POSTGRESQL, AGENTDB_POSTGRESQL_URL="")

    assert "2 skipped" in done.stdout
    assert "no PostgreSQL database: AGENTDB_POSTGRESQL_URL is not set" in done.stdout


def test_a_thread_that_a_function_starts_may_not_use_its_transaction() -> None:
    """As on the engines; it would wait for the transaction that waits for it."""
    refused: list[str] = []

    def fn(tx: Db) -> None:
        def call() -> None:
            with pytest.raises(AgentDbError) as raised:
                make_session(tx)
            refused.append(str(raised.value))

        thread = threading.Thread(target=call)
        thread.start()
        thread.join()

    with MemoryDb() as db:
        db.run_transaction(fn)
        assert db.list_sessions() == []

    assert refused[0].startswith(
        "A transaction belongs to the thread that runs it, and this call comes from another."
    )


def test_a_call_that_waits_while_the_db_is_closed_is_refused() -> None:
    db: Any = MemoryDb()
    lock, asked = db._lock, threading.Event()

    class Announced:
        def __enter__(self) -> None:
            asked.set()
            lock.acquire()

        def __exit__(self, *_: object) -> None:
            lock.release()

    db._lock = Announced()
    waiting: list[Future[object]] = []

    def fn(tx: Db) -> None:
        asked.clear()
        waiting.append(threads.submit(db.list_agents))
        # It has seen that the Db is open, and waits for the end of this transaction.
        asked.wait()
        tx.close()

    with ThreadPoolExecutor(1) as threads:
        with pytest.raises(DatabaseClosedError):
            db.run_transaction(fn)
        with pytest.raises(DatabaseClosedError):
            waiting[0].result()
