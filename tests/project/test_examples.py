"""The example programs do what their first lines say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import agentdb
from examples import fastapi_app, reaper
from tests.helpers.factories import execute

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_api_serves_each_tenant_its_own(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    with agentdb.connect(url) as db:
        acme, _ = db.issue_api_key("acme", "test")
        other, _ = db.issue_api_key("other", "test")

    with TestClient(fastapi_app.app, headers={"X-Api-Key": acme}) as client:
        assert client.get("/health").json() == {"ok": True, "reason": ""}
        assert client.get("/sessions", headers={"X-Api-Key": "wrong"}).json() == {
            "detail": "Send a valid API key in the header X-Api-Key."
        }
        assert client.put("/agents/bot/sessions/s1").status_code == 404
        assert (
            client.put("/agents/bot", params={"path": "/srv/bot"}).json()["version"]
            == 1
        )
        for id in ("s1", "s2", "s3", "s1"):
            client.put(f"/agents/bot/sessions/{id}")
        first = client.get("/sessions", params={"limit": 2}).json()
        rest = client.get(
            "/sessions", params={"limit": 2, "before": first["before"]}
        ).json()
        assert [one["id"] for one in first["sessions"] + rest["sessions"]] == [
            "s3",
            "s2",
            "s1",
        ]
        assert (
            client.get("/sessions", headers={"X-Api-Key": other}).json()["sessions"]
            == []
        )
        for wrong in (
            "bot/sessions/a%00b",
            f"bot/sessions/{'x' * 600}",
            f"{'x' * 600}/sessions/s",
        ):
            assert client.put(f"/agents/{wrong}").status_code == 422
        assert client.get("/sessions", params={"limit": -1}).status_code == 422


@pytest.mark.parametrize(
    "name", ["test_own_code.py", "test_own_db.py", "test_fastapi_app.py"]
)
def test_the_example_tests_pass(name: str, tmp_path: Path) -> None:
    for file in (name, "fastapi_app.py"):
        shutil.copyfile(EXAMPLES / file, tmp_path / file)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:django", "-p", "no:cacheprovider", name],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout


def test_the_reaper_leaves_as_many_sandboxes_as_may_be(
    url: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reaper.main(url)
    reaper.main(url)

    for line in capsys.readouterr().out.splitlines():
        found = re.fullmatch(
            r"(\d+) sandboxes before, 12 made, (\d+) freed, (\d+) left\.", line
        )
        assert found is not None
        before, freed, left = map(int, found.groups())
        assert (before + 12 - freed, left) == (left, reaper.LIMIT)


OWN_TABLES = (
    "conversations",
    "own_tables.py",
    "own_tables_async.py",
    "own_tables_project.py",
    "project_settings.py",
)

# Workers in several processes: each takes jobs and appends to one session until there is no job left.
WORK = """
import agentdb, sys
with agentdb.connect(sys.argv[1], apps=["conversations"]) as db:
    from conversations import store
    while job := db.run_transaction(lambda tx: store.take_job(tx, sys.argv[2])):
        db.run_transaction(lambda tx: store.append_message(tx, "s1", sys.argv[2], job.payload))
"""


@pytest.fixture
def own_tables(tmp_path: Path) -> Path:
    """A folder with the examples that have tables of their own."""
    folder = tmp_path / "own"
    folder.mkdir()
    for name in OWN_TABLES:
        source = EXAMPLES / name
        shutil.copytree(source, folder / name) if source.is_dir() else shutil.copyfile(
            source, folder / name
        )
    return folder


def plain_environment() -> dict[str, str]:
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name != "DJANGO_SETTINGS_MODULE"
    }
    return {**inherited, "PYTHONPATH": str(EXAMPLES.parent)}


def ran(folder: Path, *arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, "-W", "error", *arguments], cwd=folder, env={**plain_environment(), **environment},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, ""), done.stderr
    return done.stdout


def test_the_programs_with_tables_of_their_own(own_tables: Path, url: str) -> None:
    for _ in range(2):
        assert ran(own_tables, "own_tables.py", url) == (
            "asked as message 1\nended [(1, 'user', 'Where is my money?'), (2, 'assistant', {'text': 'On its way.'})]\n"
        )
        assert (
            ran(own_tables, "own_tables_async.py", url)
            == "[1, 2, 3, 4, 5, 6, 7, 8, 9, 10] 5\n"
        )

    project = {"DJANGO_SETTINGS_MODULE": "project_settings", "DATABASE_URL": url}
    ran(own_tables, "-m", "agentdb", "migrate", "--verbosity=0", **project)
    assert (
        ran(own_tables, "own_tables_project.py", **project)
        == "[(1, 'user', 'Where is my money?')]\n"
    )


def test_the_migrations_of_the_example_are_those_of_its_models(
    own_tables: Path,
) -> None:
    said = ran(
        own_tables,
        "-m",
        "agentdb",
        "makemigrations",
        "--check",
        AGENTDB_APPS="conversations",
    )

    assert said == "No changes detected in app 'conversations'\n"


def test_each_job_is_taken_by_one_worker_and_messages_are_numbered_without_gaps(
    own_tables: Path, url: str
) -> None:
    fill = f"""
import agentdb
with agentdb.connect({url!r}, apps=["conversations"], migrate=True) as db:
    from conversations import store
    def fill(tx):
        store.open_session(tx, "s1", "bot", {{}})
        for number in range(20):
            store.enqueue(tx, "s1", number)
    db.run_transaction(fill)
"""
    ran(own_tables, "-c", fill)
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", WORK, url, f"worker-{number}"], cwd=own_tables, stderr=subprocess.PIPE, text=True,
            env=plain_environment(),
        )
        for number in range(4)
    ]  # fmt: skip
    assert [(worker.communicate()[1], worker.returncode) for worker in workers] == [
        ("", 0)
    ] * 4

    said = execute(
        url, "SELECT sequence, content FROM conversations_message ORDER BY sequence"
    )
    assert [sequence for sequence, _ in said] == list(range(1, 21))
    assert sorted(int(content) for _, content in said) == list(range(20))
