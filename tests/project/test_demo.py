"""The programs in examples/, run as a reader of the README runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import agentdb
from examples import serve

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def environment() -> dict[str, str]:
    inherited = {
        k: v
        for k, v in os.environ.items()
        if k not in ("DATABASE_URL", "DJANGO_SETTINGS_MODULE")
    }
    return {**inherited, "PYTHONPATH": str(EXAMPLES.parent)}


def run(*arguments: str, cwd: Path) -> str:
    finished = subprocess.run(
        [sys.executable, *arguments],
        cwd=cwd,
        env=environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
    )
    assert finished.returncode == 0, finished.stderr
    return finished.stdout


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """The folder in which the demo ran twice, and what it printed each time."""
    folder = tmp_path_factory.mktemp("demo")
    (folder / "demo").mkdir()
    (folder / "demo" / "notes.txt").write_text("mine")
    return folder, [run(str(EXAMPLES / "demo.py"), cwd=folder) for _ in range(2)]


def test_demo_adopts_a_database_runs_a_program_and_does_so_again(demo):
    _, outputs = demo

    for output in outputs:
        assert "The 'default' tenant has 26 agents" in output
        assert "support-bot is at version 2 in /srv/agents/support-2." in output
        assert "Evicted " in output


def test_demo_leaves_an_adopted_database_that_can_be_opened(demo):
    folder, _ = demo

    with agentdb.connect(f"sqlite:///{folder}/demo/agentdb.sqlite3") as db:
        assert len(db.list_agents()) == 26 + 2


def test_demo_leaves_the_shipped_database_as_it_is(demo):
    # The copy in tests/legacy is the same file, and no program of the examples knows of it.
    legacy = EXAMPLES.parent / "tests" / "legacy" / "sqlite" / "era-b.db"

    assert (EXAMPLES / "ash.db").read_bytes() == legacy.read_bytes()
    assert list(EXAMPLES.glob("ash.db?*")) == []


def test_demo_keeps_what_else_is_in_the_folder(demo):
    folder, _ = demo

    assert (folder / "demo" / "notes.txt").read_text() == "mine"


def test_serve_moves_sessions_and_sandboxes_and_evicts(url, tmp_path):
    output = run(str(EXAMPLES / "serve.py"), url, cwd=tmp_path)

    with agentdb.connect(url) as db:
        assert [agent.version for agent in db.list_agents()] == [2]
        assert [session.status for session in db.list_sessions()] == ["paused"] * 3
        assert db.count_sandboxes() == 2
    assert re.search(
        r"Evicted [0-9a-f]{8} of agent 'support-bot': cold, last used \d+ ms ago\.",
        output,
    )
    assert "Paused 2 of its sessions." in output


@pytest.mark.parametrize("program", ["serve.py", "serve_async.py"])
def test_a_database_without_tables_gives_one_sentence(program, tmp_path):
    finished = subprocess.run(
        [sys.executable, str(EXAMPLES / program), f"sqlite:///{tmp_path}/none.db"],
        env=environment(),
        capture_output=True,
        text=True,
    )

    assert finished.returncode == 1
    assert finished.stderr == (
        f"The database file '{tmp_path}/none.db' does not exist. Run 'agentdb migrate' to create it.\n"
    )


def test_serve_shows_names_that_would_break_a_table_on_one_line(url, tmp_path):
    with agentdb.connect(url) as db:
        db.upsert_agent("new\nline\tand \u202e more", "/a")

    output = run(str(EXAMPLES / "serve.py"), url, cwd=tmp_path)

    assert r"new\nline\tand \u202e more" in output


def test_serve_async_opens_twenty_sessions_at_once(url, tmp_path):
    output = run(str(EXAMPLES / "serve_async.py"), url, cwd=tmp_path)

    assert output.splitlines() == [
        "async-bot is at version 1.",
        "Opened 20 sessions at once; the database lists 20.",
        "Ended 20 of them.",
    ]


def test_serve_aligns_names_by_the_columns_a_terminal_needs(capsys):
    serve.table(("name", "n"), [("名前", 1), ("e\u0301clair", 2), ("plain", 3)])

    assert capsys.readouterr().out.splitlines() == [
        "  name    n",
        "  名前    1",
        "  e\u0301clair  2",
        "  plain   3",
    ]
