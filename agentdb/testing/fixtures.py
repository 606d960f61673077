"""agentdb's pytest plugin: databases for tests of code that uses a ``Db``."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from agentdb import DjangoDb
    from agentdb.testing import MemoryDb

pytest.register_assert_rewrite("agentdb.testing.conformance")


@pytest.fixture
def agentdb_memory() -> Iterator[MemoryDb]:
    """An empty ``MemoryDb``, the fastest choice."""
    from agentdb.testing import MemoryDb

    with MemoryDb() as db:
        yield db


@contextmanager
def _allowed(request: pytest.FixtureRequest) -> Iterator[None]:
    """Allow the body to use databases; pytest-django refuses all but the project's."""
    blocker = None
    if request.config.pluginmanager.has_plugin("django"):
        blocker = request.getfixturevalue("django_db_blocker")
    # pytest-django blocks nothing, and has no blocker, if there are no Django settings.
    with nullcontext() if blocker is None else blocker.unblock():
        yield


@pytest.fixture(scope="session")
def _agentdb_migrated_file(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    import agentdb

    # Migrating takes about a second, and each test copies the result. No test survives a power cut, so it is NORMAL.
    path = tmp_path_factory.mktemp("agentdb") / "migrated.sqlite3"
    with _allowed(request):
        agentdb.connect(f"sqlite:///{path}?synchronous=NORMAL", migrate=True).close()
    return path


@pytest.fixture
def agentdb_sqlite(
    request: pytest.FixtureRequest, _agentdb_migrated_file: Path, tmp_path: Path
) -> Iterator[DjangoDb]:
    """A ``Db`` on a new, empty SQLite file."""
    import agentdb

    path = tmp_path / "agentdb.sqlite3"
    shutil.copyfile(_agentdb_migrated_file, path)
    with (
        _allowed(request),
        agentdb.connect(f"sqlite:///{path}?synchronous=NORMAL") as db,
    ):
        yield db


@pytest.fixture
def agentdb_postgresql(request: pytest.FixtureRequest) -> Iterator[DjangoDb]:
    """A ``Db`` on the PostgreSQL database of ``AGENTDB_POSTGRESQL_URL``, whose rows it deletes; skipped without one.

    Refuses a database without ``test`` in its name, to protect its rows.
    """
    import agentdb
    from agentdb.conf import database_from_url

    url = os.environ.get("AGENTDB_POSTGRESQL_URL")
    if not url:
        pytest.skip("no PostgreSQL database: AGENTDB_POSTGRESQL_URL is not set")
    # Before it is opened, and migrated. The one place where agentdb deletes rows that it did not make: a wrong URL must
    # not cost a real database.
    name = str(database_from_url(url)["NAME"])
    if "test" not in name:
        pytest.fail(
            f"The database {name!r} does not have 'test' in its name, and would lose its rows."
        )
    with _allowed(request), agentdb.connect(url, migrate=True) as db:
        from django.db import connections

        with connections[db.alias].cursor() as cursor:
            cursor.execute("TRUNCATE agents, sessions, sandboxes, api_keys")
        yield db
