"""Forks at bad moments: the child's acknowledged writes are there, and nobody waits for a lock that nobody holds."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from django.db import connections, transaction

import agentdb
from agentdb import Db, DjangoDb
from agentdb.serving import forking
from agentdb.serving.connections.base import Slot
from agentdb.serving.opening import temporary_alias
from tests.helpers.factories import make_session

pytestmark = pytest.mark.skipif(
    not hasattr(os, "fork"), reason="this system has no fork"
)


def run(program: str, url: str, folder: Path) -> str:
    """Run the program in a process of its own, since a fork of the test run would run its cleanup twice."""
    environment = {
        **os.environ,
        "PYTHONPATH": str(Path(agentdb.__file__).parents[1]),
        "DATABASE_URL": "",
    }
    # From Python 3.13 on a host's connection that is still open at the end of a process is reported.
    ignored = [f"-Wignore::{kind}Warning" for kind in ("Deprecation", "Resource")]
    done = subprocess.run(
        [sys.executable, "-W", "error", *ignored, "-c", program, url],
        capture_output=True, text=True, timeout=300, cwd=folder, env=environment,
    )  # fmt: skip
    assert done.stderr == ""
    return done.stdout


@pytest.mark.parametrize("end", ["close", "exit"])
def test_what_a_child_writes_after_its_parent_has_ended_is_there(
    url: str, end: str, tmp_path: Path
) -> None:
    program = f"""
import os, sys, agentdb
db = agentdb.connect(sys.argv[1])
db.insert_session("parent", "a", "sb")
ready, gone = os.pipe(), os.pipe()
if os.fork() == 0:
    db.insert_session("child-0", "a", "sb")
    os.write(ready[1], b"x")
    os.close(gone[1])
    os.read(gone[0], 1)  # until the parent has closed its end
    for number in range(1, 50):
        db.insert_session(f"child-{{number}}", "a", "sb")
    print("acknowledged", flush=True)
    os._exit(0)
os.read(ready[0], 1)
if {end!r} == "close":
    db.close()
    os.close(gone[1])
    os.wait()
else:
    os._exit(0)
"""
    assert run(program, url, tmp_path) == "acknowledged\n"

    with agentdb.connect(url) as db:
        assert len(db.list_sessions()) == 51


def test_a_child_can_write_once_the_transaction_of_a_parents_thread_has_ended(
    url: str, tmp_path: Path
) -> None:
    program = """
import os, sys, threading, agentdb
db = agentdb.connect(sys.argv[1])
inside, forked = threading.Event(), threading.Event()
def transaction(tx):
    tx.insert_session("parent-1", "a", "sb")
    inside.set()
    forked.wait(240)
    tx.insert_session("parent-2", "a", "sb")
thread = threading.Thread(target=db.run_transaction, args=(transaction,))
thread.start()
inside.wait()
ended = os.pipe()
pid = os.fork()
if pid == 0:
    os.close(ended[1])
    os.read(ended[0], 1)
    db.insert_session("child", "a", "sb")
    print(sorted(session.id for session in db.list_sessions()), flush=True)
    db.close()
    os._exit(0)
forked.set()
thread.join()
os.close(ended[1])
os.wait()
db.insert_session("parent-3", "a", "sb")
print(len(db.list_sessions()))
db.close()
"""
    assert run(program, url, tmp_path) == "['child', 'parent-1', 'parent-2']\n4\n"


def test_forks_while_threads_write_lose_nothing_and_hang_nobody(
    url: str, tmp_path: Path
) -> None:
    program = """
import os, sys, threading, agentdb
db = agentdb.connect(sys.argv[1])
stop = threading.Event()
written = []
def write(name):
    number = 0
    while not stop.is_set():
        db.insert_session(f"{name}-{number}", "a", "sb")
        written.append(f"{name}-{number}")
        number += 1
threads = [threading.Thread(target=write, args=(f"thread-{n}",)) for n in range(3)]
[thread.start() for thread in threads]
for number in range(8):
    if os.fork() == 0:
        for each in range(5):
            db.insert_session(f"child-{number}-{each}", "a", "sb")
        db.run_transaction(lambda tx: tx.touch_session(f"child-{number}-0"))
        db.close()
        os._exit(0)
codes = [os.wait()[1] for _ in range(8)]
stop.set()
[thread.join() for thread in threads]
stored = {session.id for session in db.list_sessions()}
missing = [name for name in written if name not in stored]
children = sum(name.startswith("child") for name in stored)
print(codes, missing, children)
db.close()
"""
    assert run(program, url, tmp_path) == "[0, 0, 0, 0, 0, 0, 0, 0] [] 40\n"


def test_a_database_in_memory_is_copied_whole_while_threads_are_busy(
    tmp_path: Path,
) -> None:
    program = """
import os, sys, threading, agentdb
db = agentdb.connect("sqlite://:memory:", migrate=True)
stop = threading.Event()
def write(name):
    number = 0
    while not stop.is_set():
        db.insert_session(f"{name}-{number}", "a", "sb")
        number += 1
threads = [threading.Thread(target=write, args=(f"thread-{n}",)) for n in range(3)]
[thread.start() for thread in threads]
for number in range(5):
    if os.fork() == 0:
        db.insert_session("child", "a", "sb")
        os._exit(0 if db.get_session("child") else 1)
codes = [os.wait()[1] for _ in range(5)]
stop.set()
[thread.join() for thread in threads]
print(codes, db.get_session("child"))
db.close()
"""
    assert run(program, "", tmp_path) == "[0, 0, 0, 0, 0] None\n"


def test_an_asyncdb_used_before_a_fork_works_in_the_child(
    url: str, tmp_path: Path
) -> None:
    program = """
import asyncio, os, sys, agentdb
db = agentdb.connect_async(sys.argv[1])
async def use(name):
    await db.insert_session(name, "a", "sb")
    return await db.get_session(name) is not None
async def end(name):
    found = await asyncio.wait_for(use(name), 240)
    await asyncio.wait_for(db.close(), 240)
    return found
asyncio.run(use("preload"))
if os.fork() == 0:
    os._exit(0 if asyncio.run(end("child")) else 1)
code = os.wait()[1]
print(code, asyncio.run(end("parent")))
"""
    assert run(program, url, tmp_path) == "0 True\n"


@pytest.mark.parametrize("step", ["set up Django", "open the database"])
def test_a_fork_while_a_thread_opens_an_asyncdb_leaves_the_child_one_to_open(
    url: str, step: str, tmp_path: Path
) -> None:
    program = f"""
import asyncio, os, sys, threading, agentdb
from agentdb.serving import host, opening
set_up, Threads = host.set_up, opening.Threads
begun, forking, forked = threading.Event(), threading.Event(), threading.Event()
def slow_set_up():
    begun.set()
    forking.wait()
    set_up()
def slow_threads(*args, **options):
    begun.set()
    forked.wait()
    return Threads(*args, **options)
if {step!r} == "set up Django":
    host.set_up = slow_set_up
    os.register_at_fork(before=forking.set)  # the fork waits for its end
opening.Threads = slow_threads
db = agentdb.connect_async(sys.argv[1])
async def use():
    return await asyncio.wait_for(db.list_agents(), 240)
thread = threading.Thread(target=lambda: asyncio.run(use()))
thread.start()
begun.wait()
if os.fork() == 0:
    opening.Threads = Threads
    os._exit(len(asyncio.run(use())))
code = os.wait()[1]
forked.set()
thread.join()
print(code, asyncio.run(use()))
asyncio.run(db.close())
"""
    assert run(program, url, tmp_path) == "0 []\n"


_HOST = """
import os, signal, sys, threading
from django.conf import settings
options = {"init_command": "PRAGMA journal_mode=WAL"}
database = {"ENGINE": "django.db.backends.sqlite3", "NAME": sys.argv[1].removeprefix("sqlite:///"), "OPTIONS": options}
settings.configure(DATABASES={"default": database}, INSTALLED_APPS=["agentdb"], USE_TZ=True)
import django
django.setup()
from django.db import connections, transaction
import agentdb
from agentdb.models import Session
db = agentdb.DjangoDb("default")
"""
_HOW_MANY_SURVIVE = """
ready, gone = os.pipe(), os.pipe()
if os.fork() == 0:
    db.insert_session("child-0", "a", "sb")
    os.write(ready[1], b"x")
    os.close(gone[1])
    os.read(gone[0], 1)
    for number in range(1, 20):
        db.insert_session(f"child-{number}", "a", "sb")
    os._exit(0)
os.read(ready[0], 1)
connections.close_all()
os.close(gone[1])
code = os.wait()[1]
print(code, Session.objects.count())
"""


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize(
    "used",
    [
        "db.get_session('s')",
        "Session.objects.count()",
        "idle = threading.Event()\n"
        "use = lambda: (Session.objects.count(), idle.set(), threading.Event().wait())\n"
        "threading.Thread(target=use, daemon=True).start()\n"
        "idle.wait()",
    ],
    ids=["by agentdb", "by the host", "by a thread of the host"],
)
def test_a_hosts_connection_that_a_fork_finds_open_costs_the_child_no_write(
    url: str, used: str, tmp_path: Path
) -> None:
    assert run(_HOST + used + _HOW_MANY_SURVIVE, url, tmp_path) == "0 20\n"


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_fork_leaves_alone_the_connections_that_a_hosts_threads_are_using(
    url: str, tmp_path: Path
) -> None:
    program = (
        _HOST
        + """
stop, errors = threading.Event(), []
def use():
    db.get_session("s")
    while not stop.is_set():
        try:
            Session.objects.filter(id="s").update(status="active")
        except Exception as error:
            errors.append(error)
threads = [threading.Thread(target=use) for _ in range(2)]
[thread.start() for thread in threads]
for number in range(15):
    if os.fork() == 0:
        os._exit(0)
    os.wait()
stop.set()
[thread.join() for thread in threads]
print(errors)
"""
    )
    assert run(program, url, tmp_path) == "[]\n"


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_file_that_is_open_on_a_foreign_connection_is_refused_in_the_child(
    url: str, tmp_path: Path
) -> None:
    program = """
import os, sqlite3, sys, agentdb
db = agentdb.connect(sys.argv[1])
foreign = sqlite3.connect(sys.argv[1].removeprefix("sqlite:///"))
foreign.execute("SELECT count(*) FROM sessions").fetchall()
if os.fork() == 0:
    try:
        db.insert_session("child", "a", "sb")
    except agentdb.AgentDbError as error:
        print(str(error).removeprefix(db.describe()), flush=True)
    foreign.close()
    print(db.insert_session("child", "a", "sb").id, flush=True)
    os._exit(0)
os.wait()
foreign.close()
db.close()
"""
    assert run(program, url, tmp_path) == (
        " was open on another connection, or in a transaction, when this process was forked. SQLite cannot use the "
        "file here without losing writes. Close that connection before the fork, or start the process with 'spawn'.\n"
        "child\n"
    )


@pytest.mark.parametrize("outside", ["db.run_transaction(work)", "host(work)"])
def test_a_transaction_that_a_fork_splits_goes_on_in_the_parent_alone(
    url: str, outside: str, tmp_path: Path
) -> None:
    program = f"""
import os, sys, agentdb
from contextlib import suppress
db = agentdb.connect(sys.argv[1])
from django.db import transaction
def host(work):
    with transaction.atomic(using=db.alias):
        return work(db)
def work(tx):
    tx.insert_session("before", "a", "sb")
    pid = os.fork()
    try:
        tx.insert_session("after" if pid else "child", "a", "sb")
    except agentdb.AgentDbError as error:
        print(error, flush=True)
    return pid
try:
    pid = {outside}
except agentdb.AgentDbError as error:
    pid = 0
if not pid:
    db.insert_session("later", "a", "sb")
    os._exit(0)
os.wait()
print(sorted(session.id for session in db.list_sessions()))
db.close()
"""
    assert run(program, url, tmp_path) == (
        "This process was forked inside a transaction, which is the parent's; nothing of it is stored from here. "
        "Leave the transaction before you call the Db in the child.\n['after', 'before', 'later']\n"
    )


def test_a_database_in_memory_forked_inside_a_threads_transaction_has_none_of_it(
    tmp_path: Path,
) -> None:
    program = """
import os, threading, agentdb
db = agentdb.connect("sqlite://:memory:", migrate=True)
db.insert_session("s1", "a", "sb")
inside, forked = threading.Event(), threading.Event()
def work(tx):
    tx.insert_session("never", "a", "sb")
    inside.set()
    forked.wait(240)
thread = threading.Thread(target=db.run_transaction, args=(work,))
thread.start()
inside.wait()
if os.fork() == 0:
    print([session.id for session in db.list_sessions()], db.insert_session("child", "a", "sb").id, flush=True)
    os._exit(0)
os.wait()
forked.set()
thread.join()
print(len(db.list_sessions()))
db.close()
"""
    assert run(program, "", tmp_path) == "['s1'] child\n2\n"


# -- the parent, in this process; called as Python does


@contextmanager
def fork_under_way() -> Iterator[None]:
    forking.before()
    try:
        yield
    finally:
        forking.after_in_parent()


def test_a_fork_closes_idle_connections_to_files_alone_and_gives_back_their_locks(
    db: DjangoDb, engine: str
) -> None:
    threads = db._threads
    with ThreadPoolExecutor(1) as other, ThreadPoolExecutor(1) as new:
        make_session(db, "s1")
        other.submit(db.list_agents).result(60)
        with fork_under_way():
            kept = threads.open_connections()
            # Other tests' may be in memory still.
            own = threads.slots()
            held = [slot for slot in forking._held if slot in own]
            # A signal handler's exception came after the note, and before the lock.
            forking._held.append(cast("Any", SimpleNamespace(lock=threading.RLock())))
        assert kept == (0 if engine == "sqlite" else 2)
        assert (not held) == (kept == 2)
        assert other.submit(db.touch_session, "s1").result(60)
        assert new.submit(db.touch_session, "s1").result(60)
        assert db.touch_session("s1")
    forking.after_in_parent()  # as after a before() that was interrupted at once
    assert (forking._held, forking.under_way) == ([], False)


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_fork_waits_for_what_runs_and_leaves_alone_what_does_not_end(
    db: DjangoDb, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "agentdb.serving.forking."
    monkeypatch.setattr(f"{module}_LONGEST_WAIT_FOR_TRANSACTIONS_SECONDS", 0.05)
    monkeypatch.setattr(f"{module}_LONGEST_WAIT_FOR_A_STATEMENT_SECONDS", 0.2)
    begun, end = threading.Event(), threading.Event()

    def insert(tx: Db) -> None:
        tx.insert_session("s1", "a", "sb")
        begun.set()
        assert end.wait(60)

    def run_a_statement() -> None:
        slot = db._threads.slot()
        with slot.lock:
            begun.set()
            assert end.wait(60)

    with ThreadPoolExecutor(1) as other:
        for work in (lambda: db.run_transaction(insert), run_a_statement):
            db.list_agents()
            begun.clear()
            end.clear()
            running = other.submit(work)
            assert begun.wait(60)
            with fork_under_way():
                [busy] = [slot for slot in db._threads.slots() if slot.is_open]
                assert busy not in forking._held
            end.set()
            running.result(60)
    assert db.get_session("s1") is not None


@pytest.mark.parametrize("engine", ["sqlite"])
def test_busy_threads_wait_until_a_fork_is_over(db: DjangoDb, engine: str) -> None:
    """Otherwise they retake their lock before the fork has it, which then waits until its time is over."""
    begun, fork_is_over = threading.Event(), threading.Event()

    def call_again_and_again() -> None:
        with db._threads.slot().lock:
            begun.set()
            while not forking.under_way:
                pass
        for _ in range(100):
            db.list_agents()
            assert fork_is_over.is_set()

    with ThreadPoolExecutor(1) as other:
        for _ in range(20):
            running = other.submit(call_again_and_again)
            assert begun.wait(60)
            with fork_under_way():
                fork_is_over.set()
            running.result(60)
            begun.clear()
            fork_is_over.clear()


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_fork_inside_a_transaction_does_not_wait_for_writers_that_wait_for_it(
    db: DjangoDb, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = "agentdb.serving.forking."
    monkeypatch.setattr(f"{module}_LONGEST_WAIT_FOR_TRANSACTIONS_SECONDS", 0.05)
    monkeypatch.setattr(f"{module}_LONGEST_WAIT_FOR_A_STATEMENT_SECONDS", 600)
    make_session(db, "s1")

    def is_busy(slot: Slot) -> bool:
        if slot.lock.acquire(blocking=False):
            slot.lock.release()
            return False
        return True

    def fork(tx: Db) -> Future[bool]:
        waiting = other.submit(db.touch_session, "s1")
        while not any(map(is_busy, db._threads.slots())):
            assert not waiting.done()
        with fork_under_way():
            tx.insert_session("s2", "a", "sb")
        return waiting

    with ThreadPoolExecutor(1) as other:
        assert db.run_transaction(fork).result(60)
    assert db.get_session("s2") is not None


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_fork_closes_a_hosts_connection_of_its_own_thread_alone(
    url: str, engine: str
) -> None:
    with (
        temporary_alias(url) as alias,
        temporary_alias(url) as beside,
        ThreadPoolExecutor(1) as other,
    ):
        db = DjangoDb(alias)
        connections[beside].ensure_connection()  # by the host alone
        db.list_agents()
        of_other = other.submit(lambda: db.list_agents() or connections[alias])
        with fork_under_way():
            assert connections[alias].connection is None
            assert connections[beside].connection is None
            assert of_other.result(60).connection is not None
        with transaction.atomic(alias), fork_under_way():
            assert connections[alias].connection is not None


def test_a_fork_leaves_a_hosts_database_in_memory_to_parent_and_child() -> None:
    with temporary_alias("sqlite://:memory:") as alias, ThreadPoolExecutor(1) as other:
        db = DjangoDb(alias)
        threads = db._threads
        threads.ensure_connected()
        other.submit(threads.ensure_connected).result(60)
        raw = [slot.wrapper.connection for slot in threads.slots()]
        with connections[alias].cursor() as cursor:
            cursor.execute("CREATE TABLE mine (id)")

        with fork_under_way():
            pass
        assert connections[alias].introspection.table_names() == ["mine"]
        threads.after_fork([])
        assert connections[alias].introspection.table_names() == ["mine"]
        for connection in raw:
            connection.close()
