"""16 claimers in 4 processes: each session and each sandbox goes to one of them, and none is left over."""

from __future__ import annotations

import multiprocessing
import random
import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import psycopg
import pytest

import agentdb
from agentdb import Db, DjangoDb
from tests.helpers.factories import execute, instant, make_sandbox, make_session
from tests.helpers.moments import wait_until

PROCESSES, THREADS, ROWS = 4, 4, 60
SESSIONS = [f"s{number}" for number in range(ROWS)]
SOMEBODY_WAITS = "SELECT 1 FROM pg_stat_activity WHERE wait_event_type = 'Lock' AND datname = current_database()"

Won = list[tuple[str, str]]  # what was claimed, and by whom


def _claim_all(db: Db, runner_id: str) -> Won:
    ids = random.sample(SESSIONS, ROWS)
    claimed = [
        db.claim_session(id, runner_id, silent_for=timedelta(hours=1)) for id in ids
    ]
    return [(session.id, runner_id) for session in claimed if session is not None]


def _resume_all(db: Db, runner_id: str) -> Won:
    def resume(inside: Db, id: str) -> bool:
        if inside.claim_session(id, runner_id) is None:
            return False
        return inside.update_session_status(id, "active", only_if="paused")

    ids = random.sample(SESSIONS, ROWS)
    resumed = [id for id in ids if db.run_transaction(partial(resume, id=id))]
    return [(id, runner_id) for id in resumed]


def _take_from_pool(db: Db, runner_id: str) -> Won:
    taken = []
    while (
        sandbox := db.claim_warm_sandbox("support-bot", f"session of {runner_id}")
    ) is not None:
        taken.append((sandbox.id, runner_id))
    return taken


def _runners_of_a_process(
    url: str, process: int, claim: Callable[[Db, str], Won]
) -> Won:
    with agentdb.connect(url) as db, ThreadPoolExecutor(THREADS) as pool:
        ready = threading.Barrier(THREADS)

        def run(thread: int) -> Won:
            db.count_sandboxes()  # on the connection of this thread
            ready.wait()
            return claim(db, f"r{process}.{thread}")

        return [won for each in pool.map(run, range(THREADS)) for won in each]


def _claimed_by_16(url: str, claim: Callable[[Db, str], Won]) -> Won:
    with multiprocessing.get_context("spawn").Pool(PROCESSES) as pool:
        results = pool.starmap(
            _runners_of_a_process,
            [(url, process, claim) for process in range(PROCESSES)],
            1,
        )
    return [won for each in results for won in each]


@pytest.mark.parametrize("case", ["nobody has it", "its runner is silent"])
def test_each_session_is_claimed_by_one_of_16_runners(
    db: DjangoDb, url: str, case: str
) -> None:
    for id in SESSIONS:
        make_session(db, id)
    if case == "its runner is silent":
        execute(
            url, "UPDATE sessions SET runner_id = 'dead', last_active_at = ?", instant()
        )

    won = _claimed_by_16(url, _claim_all)

    assert Counter(id for id, _ in won) == Counter(SESSIONS)
    assert {session.id: session.runner_id for session in db.list_sessions()} == dict(
        won
    )


def test_each_paused_session_is_resumed_by_one_of_16_runners(
    db: DjangoDb, url: str
) -> None:
    for id in SESSIONS:
        make_session(db, id)
    execute(url, "UPDATE sessions SET runner_id = 'before', status = 'paused'")

    won = _claimed_by_16(url, _resume_all)

    assert Counter(id for id, _ in won) == Counter(SESSIONS)
    assert {
        session.id: session.runner_id for session in db.list_sessions(status="active")
    } == dict(won)


def test_each_warm_sandbox_is_handed_to_one_of_16_runners(
    db: DjangoDb, url: str
) -> None:
    for number in range(ROWS):
        make_sandbox(db, f"sb{number}")
    execute(url, "UPDATE sandboxes SET state = 'warm', last_used_at = ?", instant())

    won = _claimed_by_16(url, _take_from_pool)

    assert Counter(id for id, _ in won) == Counter(
        f"sb{number}" for number in range(ROWS)
    )
    assert {
        sandbox.id: sandbox.session_id for sandbox in db.list_sandboxes(state="waiting")
    } == {id: f"session of {runner_id}" for id, runner_id in won}


def test_a_claim_that_waited_for_another_finds_the_other_runner(
    make_postgres_database, _migrated_postgres
) -> None:
    """PostgreSQL evaluates the conditions again on the row as the transaction that held its lock left it."""
    url = make_postgres_database(template=_migrated_postgres)
    with agentdb.connect(url) as db, ThreadPoolExecutor(1) as pool:
        make_session(db)

        def claim(inside: Db) -> object:
            claimed = inside.claim_session("s1", "r1")
            late.append(pool.submit(db.claim_session, "s1", "r2"))
            wait_until(lambda: execute(url, SOMEBODY_WAITS))
            return claimed

        late: list[Any] = []
        assert db.run_transaction(claim) is not None
        assert late[0].result() is None


def test_a_claim_passes_over_a_warm_sandbox_that_another_is_taking(
    make_postgres_database, _migrated_postgres
) -> None:
    with (
        agentdb.connect(make_postgres_database(template=_migrated_postgres)) as db,
        ThreadPoolExecutor(1) as pool,
    ):
        for id in ("sb1", "sb2"):
            make_sandbox(db, id)
            db.update_sandbox_state(id, "warm")

        def claim(inside: Db) -> list[Any]:
            first = inside.claim_warm_sandbox("support-bot", "s1")
            return [
                first,
                pool.submit(db.claim_warm_sandbox, "support-bot", "s2").result(120),
            ]

        assert [sandbox.id for sandbox in db.run_transaction(claim)] == ["sb1", "sb2"]


def _prune(db: DjangoDb) -> int:
    soon = datetime.now(UTC) + timedelta(hours=1)
    return db.prune_sessions(soon, 3)


# Each changes all rows of the table, and waits for the lock of each.
LOCKING: dict[str, tuple[str, Callable[[DjangoDb], object]]] = {
    "touch_sessions": ("sessions", lambda db: db.touch_sessions(["3", "2", "1"])),
    "bulk_pause_sessions_by_runner": (
        "sessions",
        lambda db: db.bulk_pause_sessions_by_runner("r1"),
    ),
    "bulk_pause_active_sessions": (
        "sessions",
        lambda db: db.bulk_pause_active_sessions(),
    ),
    "delete_agent": ("sessions", lambda db: db.delete_agent("a")),
    "touch_sandboxes": ("sandboxes", lambda db: db.touch_sandboxes(["3", "2", "1"])),
    "mark_sandboxes_cold_by_runner": (
        "sandboxes",
        lambda db: db.mark_sandboxes_cold_by_runner("r1"),
    ),
    "mark_all_sandboxes_cold": ("sandboxes", lambda db: db.mark_all_sandboxes_cold()),
    "prune_sessions": ("sessions", _prune),
    "prune_sessions, their sandboxes": ("sandboxes", _prune),
}


def _store_three(url: str, status: str, state: str) -> None:
    """Store three sessions, each with a sandbox, in the order opposite to that of their ids."""
    for number in (3, 2, 1):
        execute(
            url,
            "INSERT INTO sessions (id, agent_name, sandbox_id, status, runner_id) VALUES (?, 'a', 'x', ?, 'r1')",
            str(number),
            status,
        )
        execute(
            url,
            "INSERT INTO sandboxes (id, agent_name, session_id, state, workspace_dir) VALUES (?, 'a', ?, ?, '/')",
            str(number),
            str(number),
            state,
        )


@pytest.mark.parametrize("method", LOCKING)
def test_a_change_of_many_rows_waits_for_them_in_the_order_of_their_ids(
    method, make_postgres_database, _migrated_postgres
) -> None:
    """Otherwise two such calls may wait for each other, a second long, until PostgreSQL notices the deadlock."""
    url = make_postgres_database(template=_migrated_postgres)
    if method.startswith("prune_sessions"):
        _store_three(url, "ended", "cold")
    else:
        _store_three(url, "active", "warm")
    table, call = LOCKING[method]
    with (
        agentdb.connect(url) as db,
        psycopg.connect(url) as other,
        ThreadPoolExecutor(1) as pool,
    ):
        other.execute(f"SELECT 1 FROM {table} WHERE id = '1' FOR UPDATE".encode())
        waiting = pool.submit(call, db)
        wait_until(lambda: waiting.done() or execute(url, SOMEBODY_WAITS))
        # Raises if the call, which waits for the first row, has locked another.
        other.execute(f"SELECT 1 FROM {table} FOR UPDATE NOWAIT".encode())
        other.rollback()
        waiting.result(60)


def test_heartbeats_of_the_same_sessions_in_any_order_do_not_wait_for_each_other_in_a_circle(
    db: DjangoDb, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO", "agentdb")
    for id in SESSIONS:
        make_session(db, id)

    def beat(number: int) -> None:
        for _ in range(20):
            ids = random.sample(SESSIONS, ROWS)
            assert db.touch_sessions(ids) == ids

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(beat, range(8)))
    # PostgreSQL notices a deadlock after a second; the call is then repeated.
    assert "deadlock" not in caplog.text
