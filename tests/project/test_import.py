"""Importing agentdb: what a program pays that only wants its names."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import agentdb


def run_python(code: str, cwd: Path, **environment: str) -> str:
    """Run a plain program, without a trace of this process's Django, and return what it printed."""
    inherited = {
        k: v
        for k, v in os.environ.items()
        if k not in ("DJANGO_SETTINGS_MODULE", "DATABASE_URL")
    }
    root = str(Path(agentdb.__file__).parents[1])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=cwd,
        env={**inherited, "PYTHONPATH": root, **environment},
        capture_output=True,
        text=True,
        timeout=600,
    )
    assert (done.returncode, done.stderr) == (0, "")
    return done.stdout


def test_import_of_agentdb_imports_neither_django_nor_a_driver(tmp_path: Path) -> None:
    code = """
import sys
before = set(sys.modules)
import agentdb, agentdb.serving.aio, agentdb.conf, agentdb.errors, agentdb.interface, agentdb.keys
agentdb.AsyncDb, agentdb.Db, agentdb.SessionStatus
new = set(sys.modules) - before
print(sorted(name for name in new if name.split(".")[0] in ("django", "psycopg", "sqlite3",
    "dj_database_url", "asgiref")))
"""
    assert run_python(code, tmp_path) == "[]\n"
    assert list(tmp_path.iterdir()) == []


def test_djangodb_can_be_named_before_django_is_set_up(tmp_path: Path) -> None:
    code = """
from agentdb import DjangoDb, connect
with connect("sqlite://:memory:", migrate=True) as db:
    print(type(db) is DjangoDb, db.list_agents())
"""
    assert run_python(code, tmp_path) == "True []\n"


def test_agentdb_exports_what_it_names() -> None:
    assert all(hasattr(agentdb, name) for name in agentdb.__all__)
    with pytest.raises(AttributeError) as raised:
        agentdb.no_such_name  # noqa: B018
    assert str(raised.value) == "module 'agentdb' has no attribute 'no_such_name'"
