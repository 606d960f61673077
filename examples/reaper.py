"""Workers that use sandboxes, and a reaper that frees the least recently used ones when there are too many.

python reaper.py [DATABASE_URL]
"""

from __future__ import annotations

import sys
import threading
import uuid

import agentdb
from agentdb import Db, SandboxState

AGENT = "reaped-bot"
WORKERS, TURNS, LIMIT = 3, 4, 6


def work(db: Db) -> None:
    for _ in range(TURNS):
        sandbox = db.insert_sandbox(str(uuid.uuid4()), AGENT, "/var/lib/sandboxes")
        db.update_sandbox_state(sandbox.id, SandboxState.RUNNING)
        db.touch_sandbox(sandbox.id)
        db.update_sandbox_state(sandbox.id, SandboxState.WAITING)


def reap(db: Db, done: threading.Event) -> int:
    freed = 0
    while not done.is_set() or db.count_sandboxes() > LIMIT:
        if db.count_sandboxes() <= LIMIT:
            done.wait(0.05)
        elif (sandbox := db.claim_eviction_candidate()) is None:
            break  # all of them are running
        elif sandbox.state == SandboxState.COLD:
            freed += 1  # its row is gone; delete its workspace here
        # Otherwise stop its process here: it is cold now, and a later claim may delete it.
    return freed


def main(url: str | None) -> None:
    with agentdb.connect(url, migrate=True) as db:
        before, done = db.count_sandboxes(), threading.Event()
        workers = [threading.Thread(target=work, args=[db]) for _ in range(WORKERS)]
        freed: list[int] = []
        reaper = threading.Thread(target=lambda: freed.append(reap(db, done)))
        for thread in (reaper, *workers):
            thread.start()
        for thread in workers:
            thread.join()
        done.set()
        reaper.join()
        made = WORKERS * TURNS
        print(
            f"{before} sandboxes before, {made} made, {freed[0]} freed, {db.count_sandboxes()} left."
        )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else None)
