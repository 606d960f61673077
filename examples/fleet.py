"""Two runners and a coordinator: when a runner dies, another one continues its sessions, and none runs twice.

export DATABASE_URL=postgresql://localhost/agents
agentdb migrate
python fleet.py submit 20
python fleet.py runner r1 &
python fleet.py runner r2 &
python fleet.py coordinator &
kill -9 %1                                 (r2 continues its sessions after --silent-after seconds)
"""

from __future__ import annotations

import argparse
import random
import signal
import threading
import time
import uuid
from concurrent.futures import Future, ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

import agentdb
from agentdb import Db, SessionRecord

AGENT = "support-bot"
AT_ONCE = 8  # sessions of one runner
POOL, MOST = 4, 40  # warm sandboxes without a session, and sandboxes in all


class Runner:
    def __init__(
        self, db: Db, name: str, workspaces: Path, turns: int, silent_after: timedelta
    ) -> None:
        self.db, self.name, self.workspaces, self.turns = db, name, workspaces, turns
        # A runner may miss some heartbeats before it counts as dead.
        self.beat_seconds = silent_after.total_seconds() / 5
        # For each session that runs here, an event: set when another runner has it.
        self.lost: dict[str, threading.Event] = {}

    def run(self, stop: threading.Event) -> None:
        self.put_down()  # what a killed runner of this name left
        with ThreadPoolExecutor(AT_ONCE) as threads:
            while not stop.wait(self.beat_seconds):
                self.beat()
                while len(self.lost) < AT_ONCE and (session := self.take()) is not None:
                    self.lost[session.id] = threading.Event()
                    # The callback raises and logs an error of the thread.
                    threads.submit(self.work, session, stop).add_done_callback(
                        Future.result
                    )
        self.put_down()

    def put_down(self) -> None:
        # Sandboxes first: once another runner has claimed a paused session, its sandboxes count as that runner's.
        self.db.mark_sandboxes_cold_by_runner(self.name)
        self.db.bulk_pause_sessions_by_runner(self.name)

    def beat(self) -> None:
        if ids := list(self.lost):
            for id in set(ids) - set(self.db.touch_sessions(ids, runner_id=self.name)):
                if (lost := self.lost.get(id)) is not None:
                    lost.set()

    def take(self) -> SessionRecord | None:
        waiting = [
            s.id
            for s in self.db.list_sessions(status=("starting", "paused"), limit=50)
            if s.id not in self.lost
        ]
        for id in random.sample(waiting, len(waiting)):
            if (
                session := self.db.run_transaction(
                    partial(claim, id=id, runner_id=self.name)
                )
            ) is not None:
                return session
        return None

    def work(self, session: SessionRecord, stop: threading.Event) -> None:
        lost = self.lost[session.id]
        sandbox = self.db.claim_warm_sandbox(AGENT, session.id)
        if sandbox is None:
            sandbox = self.db.insert_sandbox(
                str(uuid.uuid4()), AGENT, "/srv/sandboxes", session.id
            )
        try:
            self.db.update_session_sandbox(session.id, sandbox.id)
            self.db.update_sandbox_state(sandbox.id, "running")
            workspace = self.workspaces / session.id
            workspace.mkdir(parents=True, exist_ok=True)
            for turn in range(len(list(workspace.iterdir())), self.turns):
                began = time.monotonic()
                time.sleep(random.uniform(0.05, 0.3))  # the agent works
                # True: the session is ours for the next --silent-after seconds. False: do not store this turn.
                if (
                    stop.is_set()
                    or lost.is_set()
                    or not self.db.touch_session(session.id, runner_id=self.name)
                ):
                    return
                # Fails if the turn was stored before.
                with (workspace / f"turn-{turn}").open("x") as file:
                    file.write(f"{self.name} {began} {time.monotonic()}")
            cool(self.db, session)
            self.db.update_session_status(session.id, "ended", only_if="active")
        finally:
            self.db.update_sandbox_state(sandbox.id, "cold")
            del self.lost[session.id]


def claim(tx: Db, *, id: str, runner_id: str) -> SessionRecord | None:
    """Claim the session and make it active in one transaction, because anybody can claim a paused one."""
    session = tx.claim_session(id, runner_id)
    return (
        session
        if session is not None and tx.update_session_status(id, "active")
        else None
    )


def cool(db: Db, session: SessionRecord) -> None:
    """Stop every sandbox of the session, also those of killed runners."""
    for sandbox in db.list_sandboxes(session.tenant_id, session_id=session.id):
        db.update_sandbox_state(sandbox.id, "cold")


def coordinate(db: Db, silent_after: timedelta, stop: threading.Event) -> None:
    while not stop.wait(silent_after.total_seconds() / 5):
        for session in db.get_silent_sessions(
            datetime.now(UTC) - silent_after, limit=100
        ):
            db.run_transaction(partial(free, id=session.id, silent_after=silent_after))
        waiting = [
            s
            for s in db.list_sandboxes(state=("warming", "warm"), agent=AGENT)
            if s.session_id is None
        ]
        for _ in range(POOL - len(waiting)):
            sandbox = db.insert_sandbox(str(uuid.uuid4()), AGENT, "/srv/sandboxes")
            db.update_sandbox_state(sandbox.id, "warm")  # its process has started
        while db.count_sandboxes() > MOST and db.claim_eviction_candidate() is not None:
            pass


def free(tx: Db, *, id: str, silent_after: timedelta) -> None:
    """Take the session from its silent runner, so that any other can claim it."""
    session = tx.claim_session(id, "coordinator", silent_for=silent_after)
    if session is None:
        return  # it gave a sign of life, or another coordinator was faster
    cool(tx, session)
    tx.update_session_runner(id, None)
    tx.update_session_status(id, "paused")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("role", choices=["submit", "runner", "coordinator"])
    parser.add_argument(
        "name",
        nargs="?",
        default="r1",
        help="of the runner; for submit: how many sessions",
    )
    parser.add_argument(
        "--silent-after",
        type=float,
        default=30,
        help="seconds until a runner counts as dead",
    )
    parser.add_argument(
        "--turns", type=int, default=3, help="of a session, until it ends"
    )
    parser.add_argument("--workspaces", type=Path, default=Path("workspaces"))
    options = parser.parse_args()
    silent_after = timedelta(seconds=options.silent_after)
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    with agentdb.connect() as db:
        if options.role == "submit":
            for _ in range(int(options.name)):
                db.insert_session(str(uuid.uuid4()), AGENT, "none yet")
        elif options.role == "runner":
            Runner(
                db, options.name, options.workspaces, options.turns, silent_after
            ).run(stop)
        else:
            coordinate(db, silent_after, stop)


if __name__ == "__main__":
    main()
