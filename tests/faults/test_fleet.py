"""The example fleet under kill -9: nothing is lost, nothing is run twice, and no sandbox is left running.

AGENTDB_FLEET_SESSIONS=200 AGENTDB_FLEET_TURNS=45 AGENTDB_FLEET_SECONDS=120 makes it a long run.
"""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import agentdb
from examples import fleet

SESSIONS = int(os.environ.get("AGENTDB_FLEET_SESSIONS", "16"))
TURNS = int(os.environ.get("AGENTDB_FLEET_TURNS", "5"))
SECONDS = float(os.environ.get("AGENTDB_FLEET_SECONDS", "6"))
SILENT_AFTER = 8  # a runner that is only slow is not silent for so long
EXAMPLE = Path(fleet.__file__)


def _environment() -> dict[str, str]:
    """Without the settings of the tests: the example is no Django project."""
    return {
        name: value
        for name, value in os.environ.items()
        if name != "DJANGO_SETTINGS_MODULE"
    }


class Fleet:
    """The processes of the example, on one database."""

    def __init__(self, url: str, folder: Path) -> None:
        self.url, self.folder = url, folder
        self.workspaces = folder / "workspaces"
        self.errors = folder / "errors"

    def start(self, role: str, name: str) -> subprocess.Popen[bytes]:
        options = [
            "--silent-after",
            str(SILENT_AFTER),
            "--turns",
            str(TURNS),
            "--workspaces",
            str(self.workspaces),
        ]
        with self.errors.open("a") as errors:
            return subprocess.Popen(
                [sys.executable, str(EXAMPLE), role, name, *options],
                env={
                    **_environment(),
                    "DATABASE_URL": self.url,
                    "PYTHONPATH": str(EXAMPLE.parents[1]),
                },
                stderr=errors,
            )

    def turns(self) -> dict[str, list[tuple[float, float, str, str]]]:
        """For each session when its turns began and ended, the runner and the name of each."""
        return {
            folder.name: sorted(
                (float(began), float(ended), runner, file.name)
                for file in folder.iterdir()
                for runner, began, ended in [file.read_text().split()]
            )
            for folder in self.workspaces.iterdir()
        }

    def said(self) -> str:
        return self.errors.read_text()


@contextmanager
def running(fleet: Fleet) -> Iterator[list[subprocess.Popen[bytes]]]:
    """A coordinator and two runners; those that are in the list at the end are stopped as a supervisor stops them."""
    processes = [
        fleet.start("coordinator", ""),
        fleet.start("runner", "r1"),
        fleet.start("runner", "r2"),
    ]
    try:
        yield processes
    finally:
        for process in processes:
            process.terminate()
        for process in processes:
            assert process.wait(180) == 0


def test_a_fleet_loses_nothing_and_runs_nothing_twice_while_its_runners_are_killed(
    url: str, tmp_path: Path
) -> None:
    killed = 0
    members = Fleet(url, tmp_path)
    assert members.start("submit", str(SESSIONS)).wait(180) == 0

    with agentdb.connect(url) as db, running(members) as processes:
        now = time.monotonic()
        ends_at, given_up_at, kill_at = now + SECONDS, now + SECONDS + 300, now + 2
        while (
            db.count_sessions(status="ended") < SESSIONS or now < ends_at or not killed
        ):
            now = time.monotonic()
            assert now < given_up_at, (
                db.list_sessions(status=("starting", "active", "paused")),
                members.said(),
            )
            assert [process.poll() for process in processes] == [None] * 3, (
                members.said()
            )
            if kill_at < now and (now < ends_at or not killed):
                number = random.choice((1, 2))
                processes[number].send_signal(signal.SIGKILL)
                processes[number].wait()
                killed += 1
                # Started again at once under the same name, as by a supervisor; or another one starts in its place.
                name = random.choice((f"r{number}", f"r{number}-after-{killed}"))
                processes[number] = members.start("runner", name)
                kill_at = now + random.uniform(2, 5)
            time.sleep(0.1)

    with agentdb.connect(url) as db:
        turns = members.turns()
        assert {session.status for session in db.list_sessions()} == {"ended"}
        assert {session.id for session in db.list_sessions()} == set(turns)
        assert db.list_sandboxes(state=("waiting", "running")) == []
        assert db.get_silent_sessions(db.list_sessions(limit=1)[0].last_active_at) == []
    for session, made in turns.items():
        assert [name for *_, name in made] == [
            f"turn-{number}" for number in range(TURNS)
        ], session
        for (_, ended, *_), (began, *_) in zip(made, made[1:], strict=False):
            assert ended <= began, (session, made)
    assert members.said() == ""
    assert killed
    print(f"{len(turns)} sessions, {killed} runners killed")  # noqa: T201
