"""System calls on the connection to PostgreSQL that fail or take long, at ever other moments of a real program."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.helpers.power import need_strace, run_traced

CALLS = 120

# Says of each write what the caller was told; a third of them are transactions, and a read follows each.
WRITER = f"""
import os, sys
import agentdb

def say(*words):
    os.write(1, (" ".join(map(str, words)) + "\\n").encode())

def both(tx):
    tx.insert_session(id, "agent", "sandbox")
    assert tx.update_session_status(id, "active")

with agentdb.connect(sys.argv[1]) as db:
    say("ready")
    for number in range({CALLS}):
        id = f"s{{number}}"
        try:
            if number % 3:
                db.insert_session(id, "agent", "sandbox")
            else:
                db.run_transaction(both)
        except agentdb.OutcomeUnknownError as error:
            say("unknown", id, error)
        except agentdb.DatabaseUnavailableError as error:
            say("refused", id, error)
        else:
            say("stored", id, "starting" if number % 3 else "active")
        try:
            found = db.get_session(id)
        except agentdb.DatabaseUnavailableError as error:
            say("unread", id, error)
        else:
            say("read", id, found and found.status)
    os._exit(0)
"""


@pytest.fixture(scope="module", autouse=True)
def _strace() -> None:
    need_strace()


@pytest.fixture
def url(make_postgres_database: Callable[..., str], _migrated_postgres: str) -> str:
    return make_postgres_database(template=_migrated_postgres)


def write(
    url: str, tmp_path: Path, inject: str, options: str = ""
) -> tuple[Counter[str], list[str]]:
    """Run the writer; return how often it was told what, and the lines of what was not so."""
    traced = ["-e", "trace=sendto,recvfrom", "-e", f"inject={inject}"]
    said = run_traced(
        tmp_path / "log", traced, WRITER, f"{url}{'&' if '?' in url else '?'}{options}"
    )
    with psycopg.connect(url) as connection:
        stored: dict[str, str] = dict(
            connection.execute("SELECT id, status FROM sessions").fetchall()
        )
    assert said.pop(0) == "ready"
    wrong = []
    for line in said:
        told, id, *_ = line.split()
        if (told in ("stored", "read") and line != f"{told} {id} {stored.get(id)}") or (
            told == "refused" and id in stored
        ):
            wrong.append(line)
    return Counter(line.split()[0] for line in said), wrong


@pytest.mark.parametrize("error", ["ECONNRESET", "EPIPE", "ETIMEDOUT"])
@pytest.mark.parametrize("every", [5, 7, 13])
def test_callers_are_told_the_truth_while_answers_are_lost_again_and_again(
    url: str, tmp_path: Path, error: str, every: int
) -> None:
    told, wrong = write(
        url, tmp_path, f"recvfrom:error={error}:when={every * 4}+{every}"
    )

    assert wrong == []
    assert min(told["stored"], told["read"], told["unknown"] + told["refused"]) > 0


# Three sessions send nine messages. Failures at such distances meet each of them.
@pytest.mark.parametrize(("error", "every"), [("ECONNRESET", 31), ("EPIPE", 37)])
def test_callers_are_told_the_truth_while_questions_are_lost(
    url: str, tmp_path: Path, error: str, every: int
) -> None:
    """The driver then waits for last words of the server's, which do not come."""
    told, wrong = write(
        url,
        tmp_path,
        f"sendto:error={error}:when={every}+{every}",
        options="call_timeout=0.5",
    )

    assert wrong == []
    assert min(told["stored"], told["read"], told["unknown"]) > 0, told


def test_callers_are_told_the_truth_while_answers_come_too_late(
    url: str, tmp_path: Path
) -> None:
    told, wrong = write(
        url,
        tmp_path,
        "recvfrom:delay_enter=800000:when=40+61",
        options="call_timeout=0.5",
    )

    assert wrong == []
    assert told["stored"] > 0
