"""agentdb on a second alias of a Django project."""

from __future__ import annotations

import os
import re
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

_SETTINGS = """
from agentdb.conf import database_from_url
SECRET_KEY = "x"
USE_TZ = True
INSTALLED_APPS = [
    "django.contrib.contenttypes", "django.contrib.auth", "django.contrib.sessions", "agentdb",
]
DATABASES = {{
    "default": {{"ENGINE": "django.db.backends.sqlite3", "NAME": "site.sqlite3"}},
    "agents": database_from_url({url!r}),
}}
DATABASE_ROUTERS = ["agentdb.routers.AgentDbRouter"]
{alias}
"""

_USE = """
import django
django.setup()
from django.contrib.auth.models import User
from agentdb import DjangoDb
from agentdb.models import Agent
DjangoDb("agents").upsert_agent("a", "/a")
print([agent.name for agent in Agent.objects.all()], Agent.objects.all().db, User.objects.all().db)
"""


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ,
        "DJANGO_SETTINGS_MODULE": "site_settings",
        "PYTHONPATH": str(folder),
    }
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )


def project(folder: Path, url: str, alias: str = 'AGENTDB_ALIAS = "agents"') -> None:
    (folder / "site_settings.py").write_text(_SETTINGS.format(url=url, alias=alias))


def tables(path: Path) -> set[str]:
    connection = sqlite3.connect(path)
    try:
        return {
            name
            for (name,) in connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table'"
            )
        }
    finally:
        connection.close()


OURS = {"agents", "sessions", "sandboxes", "api_keys"}


def test_each_database_gets_its_own_tables_and_the_models_find_theirs(
    tmp_path: Path, empty_url: str, engine: str
):
    project(tmp_path, empty_url)

    for arguments in (["migrate"], ["migrate", "--database", "agents"]):
        finished = run(tmp_path, "-m", "django", *arguments)
        assert finished.returncode == 0, finished.stderr

    assert not tables(tmp_path / "site.sqlite3") & OURS
    assert {"auth_user", "django_session"} <= tables(tmp_path / "site.sqlite3")
    looked = run(tmp_path, "-m", "django", "inspectdb", "--database", "agents")
    assert set(re.findall(r"db_table = '(\w+)'", looked.stdout)) == OURS | {
        "django_migrations"
    }
    assert (
        run(tmp_path, "-m", "django", "verifydb", "--database", "agents").returncode
        == 0
    )
    used = run(tmp_path, "-c", _USE)
    assert (used.stdout, used.stderr) == ("['a'] agents default\n", "")
    assert run(tmp_path, "-m", "django", "makemigrations", "--check").returncode == 0


@pytest.mark.parametrize(
    ("alias", "shown"), [("", "None"), ('AGENTDB_ALIAS = "agnets"', "'agnets'")]
)
def test_a_setting_that_names_no_database_is_named(
    tmp_path: Path, alias: str, shown: str
):
    project(tmp_path, f"sqlite:///{tmp_path / 'agents.db'}", alias)

    finished = run(tmp_path, "-m", "django", "migrate")

    assert finished.returncode != 0
    assert finished.stderr.rstrip().endswith(
        "agentdb.routers.AgentDbRouter needs the setting AGENTDB_ALIAS, which names the database of agentdb's tables; "
        f"it is {shown}, and DATABASES has default, agents."
    )


def test_with_default_the_project_s_tables_stay_where_they_are(tmp_path: Path):
    project(
        tmp_path, f"sqlite:///{tmp_path / 'agents.db'}", 'AGENTDB_ALIAS = "default"'
    )

    assert run(tmp_path, "-m", "django", "migrate").returncode == 0

    assert tables(tmp_path / "site.sqlite3") >= OURS | {"auth_user"}
