"""Writers of one SQLite file take turns and share a COMMIT: what a kill, a signal, a full disk or a moved file does."""

from __future__ import annotations

import gc
import json
import os
import random
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from django.db import connections

import agentdb
from agentdb import AgentDbError, ConflictError, DjangoDb, DuplicateKeyError
from agentdb.errors import OutcomeUnknownError
from agentdb.serving import turns
from agentdb.serving.connections.sqlite import SqliteConnection
from tests.helpers.locks import watched
from tests.helpers.moments import wait_until

THREADS = 8


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "agentdb.sqlite3"
    agentdb.connect(f"sqlite:///{path}", migrate=True).close()
    return path


def watch(db: DjangoDb) -> list[str]:
    """Give it a new queue, and return what is done to that without its lock."""
    kind, unlocked = watched(
        turns.Turns,
        "_lock",
        shared=("_queue", "_turn"),
        free=("_tell_first", "is_left", "reset"),
    )
    db._threads.engine.turns = kind()  # type: ignore[attr-defined]
    return unlocked


@pytest.fixture
def db(
    path: Path, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> Iterator[DjangoDb]:
    with agentdb.connect(f"sqlite:///{path}") as db:
        if "_interrupts" in request.fixturenames:
            yield db
            return
        # Without signals each writer is woken, and the queue is used with its lock only.
        monkeypatch.setattr(turns, "_LOOK_SECONDS", 3600)
        unlocked = watch(db)
        yield db
        assert unlocked == []


def stored(path: Path) -> list[str]:
    with closing(sqlite3.connect(path)) as connection:
        assert connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return [
            id for (id,) in connection.execute("SELECT id FROM sessions ORDER BY rowid")
        ]


class Writers:
    """Threads that make one call each and keep its result; they wait for the write lock in the order of the calls."""

    def __init__(self, db: DjangoDb, path: Path) -> None:
        self.db = db
        self.results: list[Any] = []
        self.statements: list[str] = []
        self._threads: list[threading.Thread] = []
        self._lock = sqlite3.connect(
            path, isolation_level=None, check_same_thread=False
        )
        self._lock.execute("BEGIN IMMEDIATE")

    def add(self, call: Callable[[], Any]) -> None:
        queue = self.db._threads.engine.turns._queue  # type: ignore[attr-defined]
        number = len(self._threads)
        began = threading.Event()
        self.results.append(None)

        def run() -> None:
            self.db.list_agents()  # the connection is open then
            connections[self.db.alias].connection.set_trace_callback(
                self.statements.append
            )
            began.set()
            try:
                self.results[number] = call()
            except Exception as error:
                self.results[number] = error

        self._threads.append(threading.Thread(target=run))
        self._threads[-1].start()
        assert began.wait(120)
        # The first has its turn, and waits for SQLite; the others stand behind it.
        wait_until(lambda: len(queue) >= number if number else self._writing())

    def _writing(self) -> bool:
        return any(
            statement.startswith(("INSERT", "BEGIN")) for statement in self.statements
        )

    def go_on(self) -> None:
        self._lock.execute("ROLLBACK")
        self._lock.close()
        for thread in self._threads:
            thread.join(120)


def test_writers_that_wait_share_one_commit_in_their_order(
    db: DjangoDb, path: Path
) -> None:
    writers = Writers(db, path)
    for number in range(6):
        writers.add(lambda number=number: db.insert_session(f"s{number}", "a", "sb").id)  # type: ignore[misc]
    writers.go_on()

    assert writers.results == stored(path) == [f"s{number}" for number in range(6)]
    assert writers.statements.count("COMMIT") == 1


def test_a_statement_that_fails_fails_alone(db: DjangoDb, path: Path) -> None:
    db.insert_session("taken", "a", "sb")
    writers = Writers(db, path)
    for id in ("s0", "s1", "taken", "s2", "s1"):
        writers.add(lambda id=id: db.insert_session(id, "a", "sb").id)  # type: ignore[misc]
    writers.go_on()

    assert [type(result) for result in writers.results] == [
        str,
        str,
        DuplicateKeyError,
        str,
        DuplicateKeyError,
    ]
    assert str(writers.results[2]) == "A session with the id 'taken' exists already."
    assert stored(path) == ["taken", "s0", "s1", "s2"]


def test_after_a_statement_that_rolls_all_back_each_writer_is_told_the_truth(
    db: DjangoDb, path: Path
) -> None:
    with connections[db.alias].cursor() as cursor:
        cursor.execute(
            "CREATE TRIGGER refuse BEFORE INSERT ON sessions WHEN NEW.id = 'bad' BEGIN "
            "SELECT RAISE(ROLLBACK, 'refused'); END"
        )
    writers = Writers(db, path)
    for id in ("s0", "s1", "bad", "s2"):
        writers.add(lambda id=id: db.insert_session(id, "a", "sb").id)  # type: ignore[misc]
    writers.go_on()

    told = [result for result in writers.results if isinstance(result, str)]
    assert sorted(stored(path)) == told
    assert "s2" in told


def test_a_transaction_waits_for_its_turn_and_is_not_shared(
    db: DjangoDb, path: Path
) -> None:
    def fail(tx: agentdb.Db) -> None:
        tx.insert_session("never", "a", "sb")
        raise LookupError

    def both(tx: agentdb.Db) -> str:
        tx.insert_session("t1", "a", "sb")
        return tx.insert_session("t2", "a", "sb").id

    writers = Writers(db, path)
    writers.add(lambda: db.insert_session("s0", "a", "sb").id)
    writers.add(lambda: db.run_transaction(fail))
    writers.add(lambda: db.insert_session("s1", "a", "sb").id)
    writers.add(lambda: db.run_transaction(both))
    writers.add(lambda: db.insert_session("s2", "a", "sb").id)
    writers.go_on()

    assert stored(path) == ["s0", "s1", "t1", "t2", "s2"]
    assert isinstance(writers.results[1], LookupError)


def test_a_lock_of_another_process_is_reported_to_each_writer_in_time(
    path: Path,
) -> None:
    failed: list[str] = []
    with (
        agentdb.connect(f"sqlite:///{path}?timeout=0.5") as db,
        closing(sqlite3.connect(path)) as other,
    ):
        other.execute("BEGIN IMMEDIATE")

        def touch() -> None:
            with pytest.raises(ConflictError) as raised:
                db.touch_session("s1")
            failed.append(str(raised.value))

        threads = [threading.Thread(target=touch) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(120)
        other.rollback()
        db.insert_session("s1", "a", "sb")

    told = (
        "Another connection, of this process or another, holds "
        f"SQLite database {str(path)!r} locked: database is locked."
    )
    assert failed == [told] * 4
    assert stored(path) == ["s1"]


def test_a_transaction_that_holds_the_lock_too_long_is_reported_and_then_all_goes_on(
    path: Path,
) -> None:
    with agentdb.connect(f"sqlite:///{path}?timeout=0.3") as db:
        unlocked = watch(db)
        failed: list[BaseException] = []  # each keeps the frames of its writer

        def write() -> None:
            try:
                db.insert_session("never", "a", "sb")
            except AgentDbError as error:
                failed.append(error)

        def hold(tx: agentdb.Db) -> None:
            thread = threading.Thread(target=write)
            thread.start()
            thread.join(120)

        db.run_transaction(hold)
        db.insert_session("s1", "a", "sb")

        assert [type(error) for error in failed] == [ConflictError]
        assert unlocked == []
        assert stored(path) == ["s1"]


def test_a_file_that_is_moved_during_a_shared_commit_leaves_each_writer_in_doubt(
    db: DjangoDb, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = path.with_name("moved.sqlite3")
    look = SqliteConnection.look

    def look_and_move(connection: SqliteConnection) -> None:
        look(connection)
        if connection.raw.in_transaction:  # COMMIT comes next
            for end in ("", "-wal", "-shm"):
                os.rename(f"{path}{end}", f"{moved}{end}")

    writers = Writers(db, path)
    for number in range(4):
        writers.add(lambda number=number: db.insert_session(f"s{number}", "a", "sb").id)  # type: ignore[misc]
    monkeypatch.setattr(SqliteConnection, "look", look_and_move)
    writers.go_on()

    first, *shared = writers.results  # the first wrote alone, before the file was moved
    assert first == "s0"
    assert [type(result) for result in shared] == [OutcomeUnknownError] * 3
    assert len({id(result) for result in shared}) == 3
    assert stored(moved) == ["s0", "s1", "s2", "s3"]


def test_an_error_that_the_caller_keeps_does_not_keep_the_turn(
    db: DjangoDb, path: Path
) -> None:
    db.insert_session("taken", "a", "sb")
    kept = []
    for call in (
        lambda: db.insert_session("taken", "a", "sb"),
        lambda: db.run_transaction(lambda tx: tx.insert_session("taken", "a", "sb")),
    ):
        with pytest.raises(DuplicateKeyError) as raised:
            call()
        kept.append(raised.value)  # its traceback has every frame

    thread = threading.Thread(target=db.insert_session, args=("s1", "a", "sb"))
    thread.start()
    thread.join(120)

    assert stored(path) == ["taken", "s1"]
    assert kept


# -- signals


class Interrupt(Exception):
    pass


@pytest.fixture
def _interrupts(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise Interrupt

    report = sys.unraisablehook
    monkeypatch.setattr(  # what a handler raises in a finalizer can only be reported
        sys,
        "unraisablehook",
        lambda seen: None if isinstance(seen.exc_value, Interrupt) else report(seen),
    )
    before = signal.signal(signal.SIGALRM, interrupt)
    yield
    signal.setitimer(signal.ITIMER_REAL, 0)
    signal.signal(signal.SIGALRM, before)
    gc.collect()  # here, and not in a test that comes later


def test_a_leader_that_is_interrupted_before_it_looks_at_a_moved_file_leaves_the_others_in_doubt(
    db: DjangoDb, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    moved = path.with_name("moved.sqlite3")
    look, confirm = SqliteConnection.look, SqliteConnection.confirm
    interrupted: list[SqliteConnection] = []
    monkeypatch.setattr(turns, "_LOOK_SECONDS", 0.01)  # nobody wakes the others

    def look_and_move(connection: SqliteConnection) -> None:
        look(connection)
        if connection.raw.in_transaction:  # COMMIT comes next
            for end in ("", "-wal", "-shm"):
                os.rename(f"{path}{end}", f"{moved}{end}")

    def confirm_later(connection: SqliteConnection) -> None:
        if moved.exists() and not interrupted:
            interrupted.append(connection)
            raise Interrupt
        confirm(connection)

    writers = Writers(db, path)
    for number in range(4):
        writers.add(lambda number=number: db.insert_session(f"s{number}", "a", "sb").id)  # type: ignore[misc]
    monkeypatch.setattr(SqliteConnection, "look", look_and_move)
    monkeypatch.setattr(SqliteConnection, "confirm", confirm_later)
    writers.go_on()

    first, *shared = writers.results
    assert first == "s0"
    assert [type(result) for result in shared] == [
        Interrupt,
        OutcomeUnknownError,
        OutcomeUnknownError,
    ]


def test_a_leader_that_is_interrupted_again_as_it_rolls_back_leaves_no_lock(
    db: DjangoDb, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = db._threads
    queue: Any = threads.engine.turns  # type: ignore[attr-defined]
    caught: list[type] = []
    has_ended, may_end = threading.Event(), threading.Event()

    def interrupt(*_: object) -> None:
        raise Interrupt

    def insert(connection: Any) -> None:
        connection.raw.execute("UPDATE sessions SET status = 'lost'")
        interrupt()

    def lead() -> None:
        try:
            queue.write(threads.slot().ready(), insert, 30, apart=False)
        except Interrupt as error:
            caught.append(type(error))
        has_ended.set()
        may_end.wait(120)  # its connection stays open, and is not used again

    db.insert_session("s1", "a", "sb")
    first = queue.take(30)
    leader = threading.Thread(target=lead)
    leader.start()
    while not queue._queue:
        time.sleep(0.001)
    monkeypatch.setattr(SqliteConnection, "roll_back", interrupt)
    first.end()
    assert has_ended.wait(120)

    with closing(sqlite3.connect(path, timeout=0)) as other:
        other.execute("UPDATE sessions SET status = 'kept'")
        other.commit()
    monkeypatch.undo()
    may_end.set()
    leader.join(120)

    found = db.get_session("s1")
    assert found is not None and found.status == "kept"
    assert caught == [Interrupt]


@pytest.mark.usefixtures("_interrupts")
def test_signals_in_the_leaders_thread_cost_nobody_else_an_answer(
    db: DjangoDb, path: Path
) -> None:
    seconds = float(os.environ.get("AGENTDB_INTERRUPT_SECONDS", "2"))
    randomness = random.Random(5)
    acknowledged: list[str] = []
    failures: list[BaseException] = []
    stop = threading.Event()

    def write(thread: int) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            try:
                acknowledged.append(
                    db.insert_session(f"t{thread}-{number}", "a", "sb").id
                )
            except Exception as error:
                failures.append(error)

    threads = [
        threading.Thread(target=write, args=(thread,)) for thread in range(THREADS)
    ]
    for thread in threads:
        thread.start()
    until = time.monotonic() + seconds
    number = interrupted = 0

    def insert() -> None:
        nonlocal number
        while time.monotonic() < until or not interrupted:
            number += 1
            signal.setitimer(signal.ITIMER_REAL, randomness.uniform(0.0001, 0.003))
            id = db.insert_session(f"main-{number}", "a", "sb").id
            signal.setitimer(signal.ITIMER_REAL, 0)
            acknowledged.append(id)

    while time.monotonic() < until or not interrupted:
        try:
            insert()
        except Interrupt:
            interrupted += 1
    signal.setitimer(signal.ITIMER_REAL, 0)
    stop.set()
    for thread in threads:
        thread.join(120)

    assert not any(thread.is_alive() for thread in threads)
    assert failures == []
    assert interrupted
    assert set(acknowledged) - set(stored(path)) == set()


# -- kills, full disks, moved files


WRITER = """
import json, resource, signal, sys, threading
import agentdb
from agentdb.errors import OutcomeUnknownError

url, threads, limit = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
lock = threading.Lock()
db = agentdb.connect(url)
failed = threading.Event()

def say(*what):
    with lock:
        print(json.dumps(what), flush=True)

def write(thread):
    number = 0
    while True:
        number += 1
        id = f"t{thread}-{number}"
        try:
            db.insert_session(id, "a", "x" * 300)
        except OutcomeUnknownError as error:
            say("unknown", id, str(error))
            return
        except agentdb.AgentDbError as error:
            say("failed", id, str(error))
            return
        say("done", id)

if limit:
    signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
all = [threading.Thread(target=write, args=(thread,)) for thread in range(threads)]
for each in all: each.start()
for each in all: each.join()
if limit:
    resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    db.insert_session("after", "a", "sb")
    say("done", "after")
"""


def start(path: Path, limit: int = 0) -> subprocess.Popen[str]:
    command = [
        sys.executable,
        "-c",
        WRITER,
        f"sqlite:///{path}",
        str(THREADS),
        str(limit),
    ]
    return subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def read(program: subprocess.Popen[str]) -> dict[str, set[str]]:
    said: dict[str, set[str]] = {"done": set(), "failed": set(), "unknown": set()}
    out, err = program.communicate(timeout=300)
    assert err == ""
    for line in out.splitlines():
        if line.endswith("]"):  # a kill may cut the last one
            kind, id, *_ = json.loads(line)
            said[kind].add(id)
    return said


def test_a_kill_loses_no_acknowledged_row(path: Path) -> None:
    for _ in range(3):
        before = set(stored(path))
        program = start(path)
        assert program.stdout is not None
        first = json.loads(program.stdout.readline())
        time.sleep(random.uniform(0.05, 0.3))
        program.kill()
        done = read(program)["done"] | {first[1]}

        assert done - set(stored(path)) == set()
        with closing(sqlite3.connect(path)) as connection:
            connection.execute("DELETE FROM sessions")
            connection.commit()
        assert before == set()


def test_a_full_disk_tells_each_writer_the_truth_and_is_over_when_there_is_room(
    path: Path,
) -> None:
    said = read(start(path, limit=400_000))

    assert said["done"] - set(stored(path)) == set()
    assert said["failed"] & set(stored(path)) == set()
    assert len(said["failed"] | said["unknown"]) == THREADS
    assert "after" in said["done"]


def test_a_file_that_is_moved_takes_every_acknowledged_row_along(path: Path) -> None:
    program = start(path)
    assert program.stdout is not None
    first = json.loads(program.stdout.readline())
    time.sleep(0.3)
    moved = path.with_name("moved.sqlite3")
    for end in ("", "-wal", "-shm"):
        os.rename(f"{path}{end}", f"{moved}{end}")
    said = read(program)

    assert (said["done"] | {first[1]}) - set(stored(moved)) == set()
    assert len(said["failed"] | said["unknown"]) == THREADS
    assert not path.exists()
