"""kill -9 at any point leaves a database that the next run finishes.

``AGENTDB_KILL_RUNS`` says how many random moments are tried for each engine, ``AGENTDB_KILL_ROWS`` with how many rows;
by hand, 100 and 50000 are good values.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.baseline_runs import (
    TABLES,
    assert_next_run_finishes,
    baselinedb,
    digest,
)
from tests.helpers.forks import Forks
from tests.helpers.legacy_databases import FOLDER, opened, psql, rows, sqlite_path

Load = Callable[[str], str]

RUNS = int(os.environ.get("AGENTDB_KILL_RUNS", "4"))
ROWS = int(os.environ.get("AGENTDB_KILL_ROWS", "5000"))


def fill(url: str) -> None:
    """Sessions in all the formats of the old server, as many as ROWS."""
    many = {
        "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {}) ",
        "postgresql": "WITH n(i) AS (SELECT generate_series(1, {})) ",
    }
    with opened(url) as connection:
        other = (
            "'2026-02-19 20:53:' || substr('0' || (i %% 60), -2)"
            if connection.vendor == "sqlite"
            else "'2026-02-19 15:53:' || lpad((i %% 60)::text, 2, '0') || '.00' || (i %% 9) || '-05'"
        )
        rows(
            connection,
            (
                "INSERT INTO sessions (id, agent_name, sandbox_id, created_at, last_active_at) "
                + many[connection.vendor].format(ROWS)
                + "SELECT 'session-' || i, 'alpha', 'sandbox-' || i, '2026-02-19T20:53:16.123Z', "
                + f"CASE i %% 3 WHEN 0 THEN '2026-02-19T20:53:16.123Z' ELSE {other} END FROM n"
            ),
            [],
        )


BASELINEDB = """
from agentdb.serving.opening import configure
alias = configure()
from django.core.management import call_command
call_command("baselinedb", database=alias)
"""


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_killed_at_random_moments(
    engine: str, forks: Forks, tmp_path: Path, request: pytest.FixtureRequest
):
    random_ = random.Random(engine)
    if engine == "sqlite":
        original = tmp_path / "original.db"
        shutil.copyfile(FOLDER / "sqlite" / "era-a.db", original)
        fill(f"sqlite:///{original}")

        def fresh(number: int) -> str:
            folder = tmp_path / str(number)
            folder.mkdir()
            shutil.copyfile(original, folder / "era-a.db")
            return f"sqlite:///{folder}/era-a.db"

        template = f"sqlite:///{original}"
    else:
        make = request.getfixturevalue("make_postgres_database")
        template = make()
        psql(template, "-f", str(FOLDER / "pg" / "era-a.sql"))
        fill(template)

        def fresh(number: int) -> str:
            url: str = make(template=template.partition("?")[0].rpartition("/")[2])
            return url

    before = digest(template)
    assert before["sessions"][0] > ROWS
    url = fresh(0)
    began = time.monotonic()
    forks.start(url, BASELINEDB)
    assert forks.end() == 0
    whole = time.monotonic() - began
    assert digest(url) == before

    killed = number = 0
    while killed < RUNS:
        number += 1
        url = fresh(number)
        process = forks.start(url, BASELINEDB)
        time.sleep(random_.uniform(0, whole))
        os.kill(
            process, signal.SIGKILL
        )  # does nothing to one that has ended and waits for its end to be read
        killed += forks.end() == -signal.SIGKILL
        assert_next_run_finishes(url, before)
        if engine == "sqlite":
            shutil.rmtree(sqlite_path(url).parent)
    print(f"{engine}: killed {killed} times, {number - killed} runs were done before")  # noqa: T201 (shown with -s)


KILLED_IN = """
import os, signal, sys
from pkgutil import resolve_name
from agentdb.serving.opening import configure
alias = configure()
module, _, name = sys.argv[1].rpartition(".")
holder, calls = resolve_name(module), int(sys.argv[2])
function = getattr(holder, name)
def killing(*args, **kwargs):
    global calls
    calls -= 1
    if calls == 0:
        os.kill(os.getpid(), signal.SIGKILL)
    return function(*args, **kwargs)
setattr(holder, name, killing)
from django.core.management import call_command
call_command("baselinedb", database=alias)
"""

# Just before each of these; the number says at which call.
POINTS = [
    ("agentdb.adoption.execution.read", 1),
    ("agentdb.adoption.sqlite_backup._copy", 1),
    ("agentdb.adoption.sqlite_backup._damage", 1),
    ("agentdb.adoption.sqlite_backup._flush", 1),
    ("agentdb.adoption.sqlite_backup._flush", 2),
    ("agentdb.adoption.change.Change._reshape", 1),
    ("agentdb.adoption.change.conform_table", 1),
    ("agentdb.adoption.change.conform_table", 2),
    ("agentdb.adoption.conforming.create_table", 1),
    ("agentdb.adoption.change.conform_table", 3),
    ("agentdb.adoption.change.MigrationRecorder", 1),
    ("agentdb.adoption.change.Change._verify_rows", 1),
    ("agentdb.adoption.change.checksum", 6),
]


@pytest.mark.parametrize(("point", "call"), POINTS)
def test_killed_at_a_chosen_point(
    forks: Forks, load_legacy: Load, engine: str, point: str, call: int
):
    if engine == "postgresql" and ".sqlite_backup." in point:
        pytest.skip("only SQLite files are backed up")
    url = load_legacy("era-a")
    before = digest(url)

    forks.start(url, KILLED_IN, point, str(call))
    assert forks.end() == -signal.SIGKILL
    with opened(url) as connection:
        tables = {
            name
            for (name,) in rows(
                connection,
                "SELECT name FROM sqlite_master WHERE type = 'table'"
                if engine == "sqlite"
                else "SELECT relname FROM pg_class WHERE relkind = 'r' AND relnamespace = 'public'::regnamespace",
            )
        }
    assert tables == set(TABLES) - {"api_keys"}  # nothing of the adoption is there
    assert_next_run_finishes(url, before)


HOT = """
import os, signal, sqlite3, sys
c = sqlite3.connect(sys.argv[1], isolation_level=None)
c.execute("PRAGMA journal_mode = DELETE")
c.execute("PRAGMA cache_size = 5")
c.execute("BEGIN")
c.execute("UPDATE sessions SET sandbox_id = hex(randomblob(500))")
os.kill(os.getpid(), signal.SIGKILL)
"""


def test_what_a_killed_transaction_left_half_written_is_looked_at_as_it_was_before(
    tmp_path: Path,
):
    """With a rollback journal, as a Django project may have it, the file itself holds the half of a transaction."""
    folder = tmp_path / "hot"
    folder.mkdir()
    path = folder / "era-a.db"
    shutil.copyfile(FOLDER / "sqlite" / "era-a.db", path)
    before = digest(f"sqlite:///{path}")
    subprocess.run([sys.executable, "-c", HOT, str(path)])
    hot = {found.name: found.read_bytes() for found in folder.iterdir()}
    assert set(hot) == {"era-a.db", "era-a.db-journal"}

    link = tmp_path / "link.db"
    link.symlink_to(path)  # SQLite keeps the journal beside the file itself
    for name in (path, link):
        check = baselinedb(f"sqlite:///{name}", "--check")

        assert (check.code, f"file {name}," in check.out) == (1, True)
    assert {found.name: found.read_bytes() for found in folder.iterdir()} == hot
    assert_next_run_finishes(f"sqlite:///{path}", before)
