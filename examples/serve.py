"""A day of an agent server in one plain Python program: no Django project, no settings module.

    python examples/serve.py [DATABASE_URL]

It reads what the database holds, deploys an agent, opens sessions, moves their sandboxes through the states, evicts
one, and shuts down as a server does.
"""

from __future__ import annotations

import sys
import unicodedata
import uuid
from collections import Counter
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime

import agentdb
from agentdb import Db, SandboxState, SessionRecord, SessionStatus

AGENT = "support-bot"
RUNNER = "runner-7"


def main() -> None:
    url = sys.argv[1] if len(sys.argv) > 1 else None
    with agentdb.connect(url) as db:
        show_what_is_there(db)
        deploy(db)
        sessions = [open_session(db) for _ in range(3)]
        show_sessions("Sessions, newest first", db.list_sessions(agent=AGENT, limit=5))
        rest(db, sessions[0])
        evict_one(db)
        shut_down(db)


def show_what_is_there(db: Db) -> None:
    agents = db.list_agents()
    sessions = db.list_sessions()
    of_agent = Counter(session.agent_name for session in sessions)
    latest = sorted(agents, key=lambda agent: agent.updated_at, reverse=True)[:6]
    heading(
        f"The 'default' tenant has {len(agents)} agents; the {len(latest)} deployed last"
    )
    table(
        ("agent", "version", "sessions", "deployed", "path"),
        [
            (a.name, a.version, of_agent[a.name], ago(a.updated_at), a.path)
            for a in latest
        ],
    )
    statuses = Counter(session.status for session in sessions)
    say(
        f"Sessions: {', '.join(f'{count} {status}' for status, count in sorted(statuses.items())) or 'none'}."
    )
    say(f"Sandboxes of all tenants: {db.count_sandboxes()}.")


def deploy(db: Db) -> None:
    heading(f"Deploying {AGENT!r} twice")
    for path in ("/srv/agents/support", "/srv/agents/support-2"):
        agent = db.upsert_agent(AGENT, path)
        say(f"{agent.name} is at version {agent.version} in {agent.path}.")


def open_session(db: Db) -> SessionRecord:
    """Make a sandbox and a session that refer to each other: both, or neither."""
    session_id, sandbox_id = str(uuid.uuid4()), str(uuid.uuid4())

    def open_both(db: Db) -> SessionRecord:
        db.insert_sandbox(
            sandbox_id, AGENT, f"/var/lib/sandboxes/{sandbox_id[:8]}", session_id
        )
        return db.insert_session(session_id, AGENT, sandbox_id)

    session = db.run_transaction(open_both)
    db.update_session_runner(session.id, RUNNER)
    db.update_sandbox_state(sandbox_id, SandboxState.RUNNING)
    db.update_session_status(session.id, SessionStatus.ACTIVE)
    return session


def rest(db: Db, session: SessionRecord) -> None:
    heading(f"Session {session.id[:8]} answers, then rests")
    states = []
    for state in (SandboxState.RUNNING, SandboxState.WAITING, SandboxState.COLD):
        db.update_sandbox_state(session.sandbox_id, state)
        if state == SandboxState.RUNNING:
            db.touch_session(session.id)
            db.touch_sandbox(session.sandbox_id)
        sandbox = db.get_sandbox(session.sandbox_id)
        assert sandbox is not None
        states.append(f"{sandbox.state} (used {ago(sandbox.last_used_at)})")
    say(f"Its sandbox {session.sandbox_id[:8]}: {' → '.join(states)}.")


def evict_one(db: Db) -> None:
    heading("Room is needed: one sandbox goes")

    def evict(db: Db) -> str:
        sandbox = db.get_best_eviction_candidate()
        if sandbox is None:
            return "No sandbox can go: none is cold, warm or waiting."
        if sandbox.session_id is not None:
            db.update_session_status(sandbox.session_id, SessionStatus.PAUSED)
        db.delete_sandbox(sandbox.id)
        return (
            f"Evicted {sandbox.id[:8]} of agent {shown(repr(sandbox.agent_name))}: {sandbox.state}, "
            + (f"last used {ago(sandbox.last_used_at)}.")
        )

    say(db.run_transaction(evict))
    say(f"Sandboxes of all tenants: {db.count_sandboxes()}.")


def shut_down(db: Db) -> None:
    heading(f"{RUNNER} stops")
    say(f"Paused {db.bulk_pause_sessions_by_runner(RUNNER)} of its sessions.")
    show_sessions("Its sessions now", db.list_sessions_by_runner(RUNNER)[:5])


def show_sessions(title: str, sessions: Iterable[SessionRecord]) -> None:
    heading(title)
    table(
        ("session", "agent", "status", "runner", "sandbox", "opened", "last active"),
        [
            (
                s.id[:8],
                s.agent_name,
                s.status,
                s.runner_id or "-",
                s.sandbox_id[:8],
                ago(s.created_at),
                ago(s.last_active_at),
            )
            for s in sessions
        ],
    )


def ago(instant: datetime) -> str:
    seconds = (datetime.now(UTC) - instant).total_seconds()
    for unit, length in (("d", 86400), ("h", 3600), ("min", 60), ("s", 1)):
        if seconds >= length:
            return f"{int(seconds // length)} {unit} ago"
    return f"{max(0, seconds) * 1000:.0f} ms ago"


def heading(text: str) -> None:
    print(f"\n{text}")


def say(text: str) -> None:
    print(f"  {text}")


def table(headings: Sequence[str], rows: Iterable[Sequence[object]]) -> None:
    cells = [[shown(cell) for cell in row] for row in (headings, *rows)]
    widths = [max(map(width, column)) for column in zip(*cells, strict=True)]
    for row in cells:
        print(
            "  "
            + "  ".join(
                cell + " " * (w - width(cell))
                for cell, w in zip(row, widths, strict=True)
            ).rstrip()
        )


def shown(value: object, limit: int = 36) -> str:
    """The value as it can stand in a table: names may hold line breaks, tabs and worse."""
    text = "".join(
        c if c.isprintable() else c.encode("unicode_escape").decode()
        for c in str(value)
    )
    return text if len(text) <= limit else text[: limit - 1] + "…"


def width(text: str) -> int:
    """How many columns a terminal needs for the text."""
    return sum(
        0
        if unicodedata.combining(c)
        else 2
        if unicodedata.east_asian_width(c) in "WF"
        else 1
        for c in text
    )


if __name__ == "__main__":
    try:
        main()
    except agentdb.AgentDbError as error:
        sys.exit(str(error))
