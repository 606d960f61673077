"""The README says what is so."""

from __future__ import annotations

import inspect
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from django.core.management import get_commands

import agentdb
from agentdb import Db, errors

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()
DOCUMENTS = [ROOT / "README.md", ROOT / "CHANGELOG.md", *(ROOT / "docs").glob("*.md")]

PROGRAMS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def test_first_program_runs_as_it_stands(tmp_path):
    run(PROGRAMS[0], tmp_path)

    with agentdb.connect(f"sqlite:///{tmp_path}/agents.sqlite3") as db:
        assert [session.id for session in db.list_sessions(agent="support-bot")] == ["s1"]


def test_program_for_a_django_project_runs_in_one(url, tmp_path):
    with agentdb.connect(url) as db:
        db.insert_session("s1", "support-bot", "sb1")
    project = f"""
import django
from django.conf import settings
from agentdb.conf import database_from_url
settings.configure(INSTALLED_APPS=["agentdb"], DATABASES={{"default": database_from_url({url!r})}}, USE_TZ=True)
django.setup()
"""

    run(project + PROGRAMS[1], tmp_path)

    with agentdb.connect(url) as db:
        assert [session.status for session in db.list_sessions()] == ["active"]


def test_transaction_program_writes_both_rows(db):
    exec(compile(PROGRAMS[2], "README.md", "exec"), {"agentdb": agentdb, "db": db})

    assert db.get_session("s2").sandbox_id == "sb2"
    assert db.get_sandbox("sb2").session_id == "s2"


def test_async_program_runs(url, tmp_path):
    body = "".join(f"    {line}\n" for line in PROGRAMS[3].splitlines())
    program = f"import asyncio, agentdb\nasync def main():\n{body}\n    print(sessions)\nasyncio.run(main())\n"

    assert run(program, tmp_path, DATABASE_URL=url) == "[]\n"


def test_settings_for_a_django_project_serve_one(tmp_path):
    (tmp_path / "host.py").write_text(PROGRAMS[4])
    environment = {"DJANGO_SETTINGS_MODULE": "host", "DATABASE_URL": f"sqlite:///{tmp_path}/host.db"}
    program = """
import sys
from django.core.management import execute_from_command_line
sys.path.insert(0, ".")
execute_from_command_line(["manage.py", "migrate", "--verbosity=0"])
from agentdb import DjangoDb
print(DjangoDb(alias="default").upsert_agent("a", "/a").version)
"""

    assert run(program, tmp_path, **environment) == "1\n"


def run(program: str, cwd: Path, **environment: str) -> str:
    inherited = {k: v for k, v in os.environ.items() if k not in ("DATABASE_URL", "DJANGO_SETTINGS_MODULE")}
    return subprocess.run(
        [sys.executable, "-c", program],
        cwd=cwd,
        env={**inherited, "PYTHONPATH": str(ROOT), **environment},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    ).stdout


def test_readme_names_every_method_of_the_interface():
    methods = [name for name, _ in inspect.getmembers(Db, inspect.isfunction) if not name.startswith("_")]

    assert [name for name in methods if f"`{name}`" not in README] == []


def test_readme_names_every_error():
    names = [
        name for name, value in vars(errors).items() if inspect.isclass(value) and value.__module__ == errors.__name__
    ]

    assert [name for name in names if f"`{name}`" not in README] == []


def test_readme_names_every_command():
    commands = [name for name, app in get_commands().items() if app == "agentdb"]

    assert [name for name in commands if f"`{name}" not in README] == []


def test_readme_names_every_system_check():
    source = "".join(path.read_text() for path in (ROOT / "agentdb").rglob("*.py"))

    assert [
        check for check in sorted(set(re.findall(r"agentdb\.[EW]\d{3}", source))) if f"`{check}`" not in README
    ] == []


def test_readme_names_no_target_that_make_lacks():
    targets = set(re.findall(r"^([a-z]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))

    assert set(re.findall(r"(?<![\w-])make ([a-z]+)(?=[`\n ])", README)) - {"them"} <= targets


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda path: path.name)
def test_links_between_documents_lead_somewhere(document):
    links = re.findall(r"\]\((?!https?:)([^)#]+)", document.read_text())

    assert [link for link in links if not (document.parent / link).exists()] == []
