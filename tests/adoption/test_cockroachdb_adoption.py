"""Old servers' databases on a real CockroachDB: adopted under kill -9, and brought back to the old server's form."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import threading
from collections.abc import Callable
from datetime import timedelta

import psycopg
import pytest
from django.core.management import CommandError

import agentdb
from tests import COCKROACH_URL_VARIABLE
from tests.helpers.factories import execute
from tests.helpers.legacy_databases import FOLDER, manage, opened, psql, rows
from tests.helpers.servers import ROOT

pytestmark = pytest.mark.skipif(
    COCKROACH_URL_VARIABLE not in os.environ,
    reason=f"needs a CockroachDB, which {COCKROACH_URL_VARIABLE} names",
)

SHAPES = ("era-a", "era-b", "era-b-stuck")
KILLS = 10
# Of pg_dump's statements these are not for CockroachDB; an empty search_path would hide the tables from this session.
_NOT_THERE = re.compile(
    r"^(SET (default_table_access_method|xmloption|row_security|check_function_bodies).*|"
    r"SELECT pg_catalog.set_config\('search_path'.*|\\(un)?restrict .*)$\n",
    re.MULTILINE,
)
_COMMAND = "import tests, sys; from agentdb.__main__ import main; sys.exit(main())"

Make = Callable[[], str]


@pytest.fixture
def make(
    make_cockroach_database: Make, tmp_path_factory: pytest.TempPathFactory
) -> Callable[[str], str]:
    """A function that makes a database of an old server's and returns its URL."""

    def make(shape: str) -> str:
        url = make_cockroach_database()
        dump = tmp_path_factory.mktemp("dump") / "dump.sql"
        dump.write_text(
            _NOT_THERE.sub("", (FOLDER / "pg" / f"{shape}.sql").read_text())
        )
        psql(url.replace("cockroachdb:", "postgresql:"), "-f", str(dump))
        return url

    return make


def _ids(url: str) -> list[list[tuple[object, ...]]]:
    keys = {
        "agents": "name, path",
        "sessions": "id, agent_name",
        "sandboxes": "id, workspace_dir",
    }
    return [
        execute(url, f"SELECT {columns} FROM {table} ORDER BY 1")
        for table, columns in keys.items()
    ]


def _killed_after(url: str, steps: int) -> str | None:
    """Run baselinedb, and kill it after so many steps; return what it said, and its code, if it ended before."""
    environment = {
        name: value
        for name, value in os.environ.items()
        if name != "DJANGO_SETTINGS_MODULE"
    }
    said: list[str] = []
    with subprocess.Popen(
        [sys.executable, "-c", _COMMAND, "--url", url, "baselinedb"],
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env={**environment, "PYTHONUNBUFFERED": "1"},
    ) as process:
        assert process.stdout is not None
        for line in process.stdout:
            said.append(line)
            if (
                sum(
                    line.startswith(("ALTER ", "CREATE ", "DROP ", "UPDATE "))
                    for line in said
                )
                > steps
            ):
                process.kill()
                return None
    return f"{''.join(said)}Ended with {process.returncode}."


@pytest.mark.parametrize("shape", SHAPES)
def test_an_adoption_ends_with_every_row_whenever_it_was_killed(
    make: Callable[[str], str], shape: str
) -> None:
    url = make(shape)
    before = _ids(url)

    for kill in range(KILLS):
        assert _killed_after(url, steps=1 + kill % 4) is None
    said = _killed_after(url, steps=1000)

    assert said is not None and said.endswith("Ended with 0."), said
    assert _ids(url) == before
    with opened(url) as connection:
        assert "Nothing to do" in manage(connection, "baselinedb")
        manage(connection, "verifydb")
        columns = rows(
            connection,
            "SELECT column_name FROM information_schema.columns WHERE column_name LIKE 'agentdb%'",
        )
        assert columns == []


def test_two_adoptions_at_once_do_it_once(make: Callable[[str], str]) -> None:
    url = make("era-b-stuck")
    said: list[str | None] = []
    threads = [
        threading.Thread(target=lambda: said.append(_killed_after(url, steps=1000)))
        for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert all(each is not None and each.endswith("Ended with 0.") for each in said), (
        said
    )
    recorded = execute(
        url,
        "SELECT name, count(*) FROM django_migrations WHERE app = 'agentdb' GROUP BY name",
    )
    assert {count for _, count in recorded} == {1}


def test_every_row_survives_the_way_back_and_forth(
    make_cockroach_database: Make,
) -> None:
    """Back to the old server's tables, whose defaults the server spells in its own way, and forth again."""
    url = make_cockroach_database()
    with agentdb.connect(url, migrate=True) as db:
        before = [db.insert_session(f"s{number}", "a", "b") for number in range(3)]

    with opened(url) as connection:
        # Without a question: the cluster has sessions of other databases, too.
        manage(connection, "migrate", "agentdb", "0001", verbosity=0, force=True)
        texts = rows(connection, "SELECT created_at FROM sessions")
        rows(
            connection,
            "INSERT INTO sessions (id, agent_name, sandbox_id) VALUES ('old', 'a', 'b') RETURNING id",
        )
        manage(connection, "migrate", "agentdb", verbosity=0)
        manage(connection, "verifydb")

    assert all(text.endswith("Z") and text[10] == "T" for (text,) in texts)
    with agentdb.connect(url) as db:
        after = {session.id: session for session in db.list_sessions()}
        assert after.keys() == {*(session.id for session in before), "old"}
        # The old server's text has milliseconds.
        assert all(
            session.created_at - after[session.id].created_at
            < timedelta(milliseconds=1)
            for session in before
        )


def test_the_way_back_names_the_other_sessions(make_cockroach_database: Make) -> None:
    url = make_cockroach_database()
    agentdb.connect(url, migrate=True).close()
    with (
        psycopg.connect(
            url.replace("cockroachdb:", "postgresql:"), application_name="billing"
        ) as other,
        opened(url) as connection,
    ):
        [(session,)] = other.execute("SHOW session_id").fetchall()

        with pytest.raises(CommandError) as refused:
            manage(connection, "migrate", "agentdb", "0001", verbosity=0)

    whose = f"session {session} of the cluster, whose database is not known"
    named = rf"\n  {whose}: billing, role \w+, from [\d.:]+\n"
    assert re.search(named, str(refused.value))
