"""AsyncDb: every method of Db, awaitable, in threads of its own."""

from __future__ import annotations

import asyncio
import contextvars
import gc
import inspect
import linecache
import threading
import time
import warnings
import weakref
from collections.abc import Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from typing import Any, TypeVar

import pytest

import agentdb
from agentdb import (
    AgentDbError,
    AgentRecord,
    AsyncDb,
    DatabaseClosedError,
    DatabaseUnavailableError,
    Db,
    DuplicateKeyError,
    InvalidInputError,
    SessionRecord,
)
from agentdb.serving import aio, workers
from agentdb.testing import MemoryDb
from agentdb.testing.conformance.refusals import METHODS, valid_arguments
from tests.helpers.factories import execute, instant, make_session
from tests.helpers.moments import wait_until

R = TypeVar("R")


def run(work: Callable[[], Coroutine[Any, Any, R]]) -> R:
    """Run a coroutine as a program would, with its own loop, and in debug mode, which reports what is forgotten."""
    return asyncio.run(work(), debug=True)


class FakeDb:
    """Any Db will do: this one answers every call with its name, its arguments and its thread."""

    def __init__(self, pause: float = 0) -> None:
        self.pause = pause
        self.calls: list[str] = []
        self.threads: set[str] = set()
        self.closed = 0
        self._lock = threading.Lock()

    def __getattr__(self, name: str) -> Callable[..., Any]:
        if name.startswith("_"):
            raise AttributeError(name)

        def call(*args: object, **kwargs: object) -> object:
            time.sleep(self.pause)
            with self._lock:
                self.calls.append(name)
                self.threads.add(threading.current_thread().name)
            return name, args, kwargs

        return call

    def close(self) -> None:
        self.closed += 1


class HeldDb(FakeDb):
    """Its ``get_session`` goes on when it is told to."""

    def __init__(self) -> None:
        super().__init__()
        self.begun, self.go_on = threading.Event(), threading.Event()

    def get_session(self, id: str) -> bool:
        self.calls.append("get_session")
        self.begun.set()
        return self.go_on.wait(120)


def fake(pause: float = 0) -> tuple[FakeDb, Db]:
    db: Any = FakeDb(pause)
    return db, db


# -- the same names


def _public(kind: type) -> set[str]:
    return {name for name in vars(kind) if not name.startswith("_")}


def test_asyncdb_has_the_names_of_db_and_one_way_to_open() -> None:
    assert _public(AsyncDb) == _public(Db) | {"opening"}


@pytest.mark.parametrize("name", sorted(_public(Db) - {"for_tenant"}))
def test_method_has_the_signature_and_the_docstring_of_db(name: str) -> None:
    method, original = getattr(AsyncDb, name), getattr(Db, name)

    assert inspect.iscoroutinefunction(
        inspect.unwrap(method, stop=inspect.iscoroutinefunction)
    )
    if (
        name != "run_transaction"
    ):  # which has two signatures; tests/helpers/typing_usage.py holds them
        assert inspect.signature(method) == inspect.signature(original)
    assert method.__name__ == name
    assert method.__doc__


@pytest.mark.parametrize("name", sorted({*METHODS} - {"for_tenant"}))
def test_method_passes_its_arguments_on(name: str) -> None:
    _, db = fake()
    values = valid_arguments(name)
    positional = [
        value for key, value in values.items() if key not in ("limit", "before")
    ]

    async def work() -> tuple[object, object]:
        async with AsyncDb(db) as adb:
            return await getattr(adb, name)(*positional), await getattr(adb, name)(
                **values
            )

    assert run(work) == ((name, tuple(positional), {}), (name, (), values))


def test_every_method_works_on_a_database(url: str) -> None:
    async def work() -> list[object]:
        async with agentdb.connect_async(url) as db:
            agent = await db.upsert_agent("a", "/a", tenant_id="acme")
            session = await db.insert_session("s1", "a", "sb1")
            sandbox = await db.insert_sandbox("sb1", "a", "/tmp")
            plain, key = await db.issue_api_key("acme", "ci")
            return [
                await db.get_agent("a", "acme") == agent,
                await db.list_agents("acme") == [agent],
                await db.get_session("s1") == session,
                await db.list_sessions(limit=5) == [session],
                await db.update_session_runner("s1", "r1"),
                [found.id for found in await db.list_sessions_by_runner("r1")]
                == ["s1"],
                await db.get_sandbox("sb1") == sandbox,
                await db.count_sandboxes() == 1,
                await db.mark_all_sandboxes_cold() == 1,
                [found.id for found in await db.get_cold_sandboxes(instant(10**9))]
                == ["sb1"],
                await db.bulk_pause_active_sessions() == 1,
                await db.authenticate(plain) == key,
                await db.delete_agent("a", "acme"),
                await db.run_transaction(lambda inside: inside.touch_session("s1")),
            ]

    assert run(work) == [True] * 14


# -- threads


def test_slow_calls_use_several_threads_and_no_more_than_allowed() -> None:
    five = threading.Barrier(5, timeout=120)
    threads = []

    class Meeting(FakeDb):
        def get_session(self, id: str) -> None:
            threads.append(threading.current_thread().name)
            five.wait()

    db: Any = Meeting()

    async def work() -> None:
        async with AsyncDb(db, max_workers=5) as adb:
            await asyncio.gather(*(adb.get_session(f"s{n}") for n in range(35)))

    run(work)

    assert len(threads) == 35
    assert len(set(threads)) == 5


def test_calls_run_at_the_same_time() -> None:
    meet = threading.Barrier(8, timeout=120)

    class Meeting(FakeDb):
        def get_session(self, id: str) -> None:
            meet.wait()

    db: Any = Meeting()

    async def work() -> None:
        async with AsyncDb(db) as adb:
            await asyncio.gather(*(adb.get_session("s") for _ in range(8)))

    run(work)


def test_calls_of_a_server_go_side_by_side_before_anybody_looks_whether_they_are_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "_LOOK_SECONDS", 3600)
    meet = threading.Barrier(8, timeout=60)

    class Remote(FakeDb):
        _has_server = True

        def list_sessions(self) -> None:
            meet.wait()

    db: Any = Remote()

    async def work() -> None:
        async with AsyncDb(db) as adb:
            await asyncio.gather(*(adb.list_sessions() for _ in range(8)))

    run(work)


def test_reads_of_a_db_in_this_process_go_one_after_the_other_unless_they_are_stuck(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "_LOOK_SECONDS", 3600)
    recording, db = fake()

    async def work() -> None:
        async with AsyncDb(db) as adb:
            await asyncio.gather(*(adb.list_sessions() for _ in range(50)))

    run(work)

    assert recording.calls == ["list_sessions"] * 50
    assert len(recording.threads) == 1


def test_a_call_beside_one_that_was_found_stuck_goes_on_before_anybody_looks_again(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    began, free = threading.Event(), threading.Event()

    class Waiting(FakeDb):
        def get_session(self, id: str) -> str:
            if id == "slow":
                began.set()
                free.wait(120)
            return id

    db: Any = Waiting()

    async def work() -> None:
        async with AsyncDb(db) as adb:
            slow = asyncio.ensure_future(adb.get_session("slow"))
            await asyncio.to_thread(began.wait, 120)
            await adb.get_session("first")
            monkeypatch.setattr(workers, "_LOOK_SECONDS", 3600)
            try:
                for id in ("second", "third", "fourth"):
                    await asyncio.wait_for(adb.get_session(id), 30)
            finally:
                free.set()
            await slow

    run(work)


def test_a_cancelled_call_that_keeps_its_thread_busy_does_not_hold_up_the_next_one() -> (
    None
):
    free = threading.Event()

    class Waiting(FakeDb):
        def get_session(self, id: str) -> str:
            if id == "slow":
                free.wait(120)
            return id

    db: Any = Waiting()

    async def work() -> object:
        async with AsyncDb(db, max_workers=2) as adb:
            with pytest.raises(TimeoutError):
                await asyncio.wait_for(adb.get_session("slow"), 0.05)
            try:
                return await asyncio.wait_for(adb.get_session("quick"), 60)
            finally:
                free.set()

    assert run(work) == "quick"


def _no_thread(_: threading.Thread) -> None:
    raise RuntimeError("can't start new thread")


def test_calls_go_on_in_the_threads_that_the_system_allows(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_db, db = fake()

    async def work() -> None:
        async with AsyncDb(db) as adb:  # has begun a thread
            with monkeypatch.context() as refused:
                refused.setattr(threading.Thread, "start", _no_thread)
                await asyncio.gather(
                    *(adb.update_session_status(f"s{n}", "ended") for n in range(9))
                )

    run(work)

    assert len(fake_db.calls) == 9
    assert len(fake_db.threads) == 1


def test_a_call_without_any_thread_raises_and_is_not_made_later(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    fake_db, db = fake()

    async def work() -> None:
        adb = AsyncDb(db)
        with monkeypatch.context() as refused:
            refused.setattr(threading.Thread, "start", _no_thread)
            with pytest.raises(RuntimeError, match="can't start new thread"):
                await adb.touch_session("s1")
        await adb.get_session("s1")
        await adb.close()

    run(work)

    assert fake_db.calls == ["get_session"]


def test_threads_are_its_own_and_not_those_of_the_loop_or_of_asgiref() -> None:
    slow, db = fake()

    async def work() -> str:
        loop = asyncio.get_running_loop()
        loop.set_default_executor(_Refusing())
        async with AsyncDb(db) as adb:
            await adb.get_session("s1")
        return threading.current_thread().name

    assert run(work) not in slow.threads
    assert all(name.startswith("agentdb") for name in slow.threads)


class _Refusing(ThreadPoolExecutor):
    def submit(self, *args: object, **kwargs: object) -> Any:
        raise AssertionError("the loop's default executor was used")


def test_the_loop_goes_on_while_calls_wait() -> None:
    db: Any = HeldDb()

    async def work() -> object:
        async with AsyncDb(db) as adb:
            call = asyncio.create_task(adb.get_session("s1"))
            while not db.begun.is_set():
                await asyncio.sleep(0.01)
            db.go_on.set()
            return await call

    assert run(work) is True


def test_many_concurrent_callers_on_a_database_all_succeed(url: str) -> None:
    async def work() -> int:
        async with agentdb.connect_async(url) as db:
            await db.insert_session("s1", "a", "sb1")
            await asyncio.gather(
                *(db.upsert_agent("a", f"/{n}") for n in range(64)),
                *(_touch(db) for _ in range(32)),
            )
            agent = await db.get_agent("a")
        assert agent is not None
        return agent.version

    async def _touch(db: AsyncDb) -> None:
        assert await db.touch_session("s1")
        assert await db.get_session("s1")

    assert run(work) == 64


def test_postgresql_connections_are_no_more_than_the_threads(
    make_postgres_database: Callable[..., str],
) -> None:
    url = make_postgres_database()
    count = "SELECT count(*) FROM pg_stat_activity WHERE application_name = 'agentdb' AND datname = current_database()"

    async def work() -> int:
        async with agentdb.connect_async(url, migrate=True) as db:
            await asyncio.gather(*(db.list_agents() for _ in range(200)))
            [(connections,)] = await asyncio.to_thread(execute, url, count)
        return int(connections)

    assert 1 <= run(work) <= 8
    wait_until(lambda: execute(url, count) == [(0,)])


@pytest.mark.parametrize("max_workers", [0, -1, 1.5, "8", None, True])
@pytest.mark.parametrize(
    "make",
    [
        lambda number: AsyncDb(fake()[1], max_workers=number),
        lambda number: agentdb.connect_async(max_workers=number),
    ],
)
def test_max_workers_other_than_a_number_from_one_is_refused(
    make: Callable[[Any], AsyncDb], max_workers: Any
) -> None:
    with pytest.raises(InvalidInputError) as raised:
        make(max_workers)

    assert (
        str(raised.value)
        == f"max_workers must be a whole number from 1, not {max_workers!r}."
    )


def test_context_variables_reach_the_call_and_what_it_sets_stays_there() -> None:
    variable: contextvars.ContextVar[str] = contextvars.ContextVar(
        "variable", default="unset"
    )

    class Reading(FakeDb):
        def get_session(self, id: str) -> str:
            value = variable.get()
            variable.set("changed in the thread")
            return value

    db: Any = Reading()

    async def work() -> tuple[object, str]:
        async with AsyncDb(db) as adb:
            variable.set("set by the caller")
            return await adb.get_session("s1"), variable.get()

    assert run(work) == ("set by the caller", "set by the caller")


# -- errors


def test_exceptions_pass_through(url: str) -> None:
    async def work() -> None:
        async with agentdb.connect_async(url) as db:
            await db.insert_session("s1", "a", "sb1")
            with pytest.raises(
                DuplicateKeyError,
                match=r"^A session with the id 's1' exists already\.$",
            ):
                await db.insert_session("s1", "a", "sb1")
            with pytest.raises(InvalidInputError, match="must not be empty"):
                await db.get_session("")
            with pytest.raises(ZeroDivisionError):
                await db.run_transaction(lambda inside: 1 // 0)

    run(work)


def test_transaction_of_a_coroutine_function_keeps_all_or_nothing(url: str) -> None:
    async def both(tx: AsyncDb) -> str:
        await tx.insert_session("s1", "a", "sb")
        await asyncio.sleep(0)
        await tx.insert_session("s2", "a", "sb")
        return "kept"

    async def fail(tx: AsyncDb) -> None:
        await tx.insert_session("s3", "a", "sb")
        raise LookupError

    async def work() -> None:
        async with agentdb.connect_async(url) as db:
            assert await db.run_transaction(both) == "kept"
            with pytest.raises(LookupError):
                await db.run_transaction(fail)
            assert [
                await db.get_session(each) is not None for each in ("s1", "s2", "s3")
            ] == [True, True, False]

    run(work)


def test_calls_on_the_transaction_of_a_coroutine_function_raise_after_its_end(
    url: str,
) -> None:
    kept: list[AsyncDb] = []

    async def keep(tx: AsyncDb) -> None:
        kept.append(tx)

    async def work() -> None:
        async with agentdb.connect_async(url) as db:
            await db.run_transaction(keep)
            with pytest.raises(DatabaseClosedError) as raised:
                await kept[0].touch_session("s1")
            assert (
                str(raised.value)
                == "The transaction has ended. Call the AsyncDb that ran it."
            )

    run(work)


def test_transactions_that_wait_for_calls_of_other_tasks_find_a_thread_free_for_those(
    url: str,
) -> None:
    everybody = 12

    async def work() -> None:
        async with agentdb.connect_async(url, max_workers=2) as db:
            await db.insert_session("s1", "a", "sb")

            async def wait_for_a_read(tx: AsyncDb) -> bool:
                return await read

            async def read_outside() -> bool:
                await asyncio.sleep(0.05)
                return await db.get_session("s1") is not None

            read = asyncio.create_task(read_outside())
            transactions = asyncio.gather(
                *(db.run_transaction(wait_for_a_read) for _ in range(everybody))
            )
            assert await asyncio.wait_for(transactions, 120) == [True] * everybody

    run(work)


def test_transaction_of_a_coroutine_function_is_tried_again_after_a_conflict(
    make_postgres_database: Callable[..., str], _migrated_postgres: str
) -> None:
    url = make_postgres_database(template=_migrated_postgres)

    async def work() -> None:
        async with agentdb.connect_async(url) as db:
            await db.upsert_agent("counter", "0")

            async def add(tx: AsyncDb) -> None:
                agent = await tx.get_agent("counter")
                assert agent is not None
                await tx.upsert_agent("counter", str(int(agent.path) + 1))

            await asyncio.gather(*(db.run_transaction(add) for _ in range(10)))
            agent = await db.get_agent("counter")
            assert agent is not None
            assert agent.path == "10"

    run(work)


def test_transaction_of_a_coroutine_function_that_is_cancelled_is_undone(
    url: str,
) -> None:
    async def work() -> None:
        async with agentdb.connect_async(url) as db:
            inserted = asyncio.Event()

            async def wait(tx: AsyncDb) -> None:
                await tx.insert_session("s1", "a", "sb")
                inserted.set()
                await asyncio.sleep(60)

            call = asyncio.create_task(db.run_transaction(wait))
            await inserted.wait()
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            await db.insert_session("s2", "a", "sb")
            assert await db.get_session("s1") is None

    run(work)


def test_an_inner_transaction_of_a_coroutine_function_undoes_only_itself(
    url: str,
) -> None:
    async def inner(tx: AsyncDb) -> None:
        await tx.insert_session("inner", "a", "sb")
        raise LookupError

    async def outer(tx: AsyncDb) -> None:
        await tx.insert_session("outer", "a", "sb")
        with suppress(LookupError):
            await tx.run_transaction(inner)
        await tx.for_tenant("acme").insert_session("acme", "a", "sb")

    async def work() -> None:
        async with agentdb.connect_async(url) as db:
            await db.run_transaction(outer)
            found = [await db.get_session(each) for each in ("outer", "inner", "acme")]
            assert [session and session.tenant_id for session in found] == [
                "default",
                None,
                "acme",
            ]

    run(work)


def test_first_calls_to_a_database_that_is_away_open_it_once() -> None:
    tries = 0
    all_have_asked = threading.Event()

    def away() -> Db:
        nonlocal tries
        tries += 1
        all_have_asked.wait(120)
        raise DatabaseUnavailableError("away")

    async def work() -> list[object]:
        db = AsyncDb.opening(away)
        calls = [asyncio.create_task(db.get_session("s")) for _ in range(8)]
        await asyncio.sleep(0)  # each has begun
        all_have_asked.set()
        failed = await asyncio.gather(*calls, return_exceptions=True)
        await db.close()
        return [str(error) for error in failed]

    assert run(work) == ["away"] * 8
    assert tries == 1


def test_close_from_two_loops_and_a_call_without_a_loop(url: str) -> None:
    db = agentdb.connect_async(url)
    assert asyncio.run(db.get_session("s")) is None
    asyncio.run(db.close())
    asyncio.run(db.close())

    call = agentdb.connect_async(url).get_session("s")
    with pytest.raises(
        AgentDbError,
        match="AsyncDb needs a running asyncio event loop; trio is not supported",
    ):
        call.send(None)


def test_transaction_runs_whole_in_one_thread_and_is_undone_by_an_error(
    url: str,
) -> None:
    threads = set()

    def both(inside: Db) -> SessionRecord:
        for id in ("s1", "s2"):
            threads.add(threading.get_ident())
            session = inside.insert_session(id, "a", "sb")
        if len(threads) > 1:
            raise AssertionError
        return session

    def fail(inside: Db) -> None:
        inside.insert_session("s3", "a", "sb")
        raise LookupError

    async def work() -> tuple[SessionRecord, list[str]]:
        async with agentdb.connect_async(url) as db:
            returned = await db.run_transaction(both)
            with pytest.raises(LookupError):
                await db.run_transaction(fail)
            return returned, sorted(session.id for session in await db.list_sessions())

    session, ids = run(work)
    assert (session.id, ids) == ("s2", ["s1", "s2"])


# -- cancellation


def test_cancelled_transaction_of_a_plain_function_is_rolled_back_once_the_function_ends(
    url: str, engine: str
) -> None:
    begun, go_on = threading.Event(), threading.Event()

    def slow(inside: Db) -> None:
        inside.insert_session("s1", "a", "sb")
        begun.set()
        go_on.wait()
        inside.insert_session("s2", "a", "sb")

    async def work() -> list[str]:
        async with agentdb.connect_async(url) as db:
            call = asyncio.create_task(db.run_transaction(slow))
            await asyncio.to_thread(begun.wait)
            call.cancel()
            with pytest.raises(asyncio.CancelledError):
                await call
            if engine == "cockroachdb":
                go_on.set()  # where readers wait for the end of the transaction
            reads = await asyncio.gather(*(db.list_sessions() for _ in range(32)))
            assert reads == [[]] * 32  # what is not committed is seen by nobody
            go_on.set()
        async with agentdb.connect_async(url) as db:
            await asyncio.gather(*(db.upsert_agent("a", "/") for _ in range(16)))
            return sorted(session.id for session in await db.list_sessions())

    assert run(work) == []


def test_many_cancelled_calls_leave_every_connection_usable(url: str) -> None:
    async def work() -> int:
        async with agentdb.connect_async(url) as db:
            for round in range(10):
                calls = [
                    asyncio.create_task(db.upsert_agent(f"a{n}", "/"))
                    for n in range(20)
                ]
                await asyncio.sleep(0.001 * round)
                for call in calls:
                    call.cancel()
                await asyncio.gather(*calls, return_exceptions=True)
            return (await db.upsert_agent("last", "/")).version

    assert run(work) == 1


def test_cancelled_call_that_has_not_begun_is_never_run() -> None:
    db: Any = HeldDb()

    async def work() -> None:
        async with AsyncDb(db, max_workers=1) as adb:
            first = asyncio.create_task(adb.get_session("s1"))
            await asyncio.to_thread(db.begun.wait)
            second = asyncio.create_task(adb.touch_session("s1"))
            await asyncio.sleep(0.05)
            second.cancel()
            db.go_on.set()
            await first

    run(work)

    assert db.calls == ["get_session"]


def test_time_out_of_the_caller_works(url: str) -> None:
    go_on = threading.Event()

    async def work() -> None:
        async with agentdb.connect_async(url) as db:
            with pytest.raises(TimeoutError):
                async with asyncio.timeout(0.05):
                    await db.run_transaction(lambda inside: go_on.wait())
            go_on.set()
            assert await db.list_sessions() == []

    run(work)


# -- closing


def test_close_waits_for_the_calls_under_way_and_closes_the_db_once() -> None:
    slow, db = fake(0.1)

    async def work() -> None:
        adb = AsyncDb(db)
        calls = [asyncio.create_task(adb.get_session("s1")) for _ in range(3)]
        await asyncio.sleep(0.02)
        await asyncio.gather(adb.close(), adb.close())
        assert slow.calls == ["get_session"] * 3
        assert slow.closed == 1
        await adb.close()
        await asyncio.gather(*calls)

    run(work)

    assert slow.closed == 1


def test_close_lets_busy_threads_run_the_calls_that_wait_for_one() -> None:
    gates = {"first": threading.Event(), "second": threading.Event()}
    begun: dict[str, threading.Thread] = {}

    class Gated(FakeDb):
        def get_session(self, id: str) -> str:
            begun[id] = threading.current_thread()
            if id in gates:
                assert gates[id].wait(60)
            return id

    db: Any = Gated()

    async def until(condition: Callable[[], bool]) -> None:
        await asyncio.to_thread(wait_until, condition)

    async def work() -> list[Any]:
        adb = AsyncDb(db, max_workers=2)
        ids = ("first", "second", "third", "fourth")
        calls = [asyncio.create_task(adb.get_session(id)) for id in ids]
        await until(lambda: len(begun) == 2)
        closing = asyncio.create_task(adb.close())
        await until(lambda: adb._workers.max_workers == 0)
        gates["first"].set()
        await until(lambda: calls[2].done() or not begun["first"].is_alive())
        await asyncio.sleep(0.01)  # the loop has looked at what waits
        gates["second"].set()
        await closing
        return await asyncio.wait_for(asyncio.gather(*calls), 60)

    assert run(work) == ["first", "second", "third", "fourth"]


def test_close_that_is_cancelled_closes_all_the_same() -> None:
    db: Any = HeldDb()

    async def work() -> None:
        adb = AsyncDb(db)
        call = asyncio.create_task(adb.get_session("s1"))
        await asyncio.to_thread(db.begun.wait)
        closing = asyncio.create_task(adb.close())
        await asyncio.sleep(0.05)
        closing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await closing
        db.go_on.set()
        await adb.close()
        assert (
            db.closed == 1
        )  # the one that was cancelled went on, and this one waited for it
        await call

    run(work)


@pytest.mark.parametrize("name", [*METHODS, "run_transaction"])
def test_call_after_close_says_closed(name: str) -> None:
    slow, db = fake()
    values = {"fn": len} if name == "run_transaction" else valid_arguments(name)

    async def work() -> None:
        adb = AsyncDb(db)
        await adb.close()
        with pytest.raises(DatabaseClosedError) as raised:
            await getattr(adb, name)(**values)
        assert (
            str(raised.value)
            == "The AsyncDb is closed. Open another one with agentdb.connect_async()."
        )

    run(work)
    assert slow.calls == []


def test_close_of_one_that_was_never_used_opens_nothing() -> None:
    async def work() -> None:
        await agentdb.connect_async("postgresql://127.0.0.1:1/never").close()

    run(work)


def test_with_closes_also_when_the_body_raises() -> None:
    slow, db = fake()

    async def work() -> None:
        with pytest.raises(ZeroDivisionError):
            async with AsyncDb(db):
                raise ZeroDivisionError

    run(work)

    assert slow.closed == 1


def test_one_asyncdb_serves_one_loop_after_the_other(url: str) -> None:
    db = agentdb.connect_async(url)

    run(lambda: db.insert_session("s1", "a", "sb1"))
    assert run(lambda: db.get_session("s1")) is not None
    run(db.close)


def test_one_asyncdb_keeps_no_loop_that_is_closed() -> None:
    loops: list[weakref.ref[asyncio.AbstractEventLoop]] = []
    abandoned = threading.Event()

    class Slow(MemoryDb):
        def list_agents(self, tenant_id: str = "default") -> list[AgentRecord]:
            abandoned.wait(120)
            return []

    adb = AsyncDb(Slow())

    async def leave_calls_behind() -> None:
        loops.append(weakref.ref(asyncio.get_running_loop()))
        asyncio.ensure_future(adb.list_agents())
        # More than wait for nothing, so that the loop looks after them, and is closed before it looks again.
        await asyncio.gather(*(adb.get_session(f"s{number}") for number in range(20)))

    for _ in range(5):
        asyncio.run(leave_calls_behind())
    abandoned.set()
    run(adb.close)
    gc.collect()

    assert [loop for loop in loops if loop() is not None] == []


# -- opening


def test_connect_async_raises_what_connect_raises_when_entered(tmp_path: Any) -> None:
    adb = agentdb.connect_async(f"sqlite:///{tmp_path}/missing.sqlite3")

    async def work() -> None:
        with pytest.raises(agentdb.SchemaOutOfDateError):
            async with adb:
                raise AssertionError("entered")

    run(work)


def test_connect_async_opens_once_for_many_first_calls(url: str) -> None:
    opened = []

    def open_db() -> Db:
        opened.append(1)
        time.sleep(0.05)
        return agentdb.connect(url)

    async def work() -> None:
        db = AsyncDb.opening(open_db)
        await asyncio.gather(*(db.list_agents() for _ in range(20)))
        await db.close()

    run(work)

    assert opened == [1]


def test_connect_async_that_failed_is_tried_again_on_the_next_call(url: str) -> None:
    tries: Iterator[int] = iter(range(2))

    def open_db() -> Db:
        if next(tries) == 0:
            raise agentdb.DatabaseUnavailableError("not yet")
        return agentdb.connect(url)

    async def work() -> None:
        db = AsyncDb.opening(open_db)
        with pytest.raises(agentdb.DatabaseUnavailableError):
            await db.list_agents()
        assert await db.list_agents() == []
        await db.close()

    run(work)


def test_djangodb_used_in_a_running_loop_says_what_to_use(
    make_postgres_database: Callable[..., str],
) -> None:
    url = make_postgres_database()

    async def work() -> None:
        with pytest.raises(agentdb.AgentDbError) as raised:
            agentdb.connect(url)
        assert str(raised.value) == (
            "A DjangoDb was first used inside a running event loop, which it would block. "
            "Use agentdb.connect_async(), or call it in a thread."
        )

    run(work)


def test_djangodb_called_in_a_running_loop_warns_once_and_names_the_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentdb.serving.executor._warn_in_loops", True)
    db = agentdb.connect(f"sqlite:///{tmp_path / 'a.db'}", migrate=True)

    async def work() -> None:
        with pytest.warns(RuntimeWarning) as warned:
            db.list_agents()
            db.run_transaction(lambda inside: inside.list_agents())
        [warning] = warned
        assert str(warning.message) == (
            "A DjangoDb was called inside a running event loop, which it blocks until the database has answered. "
            "Use agentdb.connect_async(), or call it in a thread. (Said once.)"
        )
        assert (
            linecache.getline(warning.filename, warning.lineno).strip()
            == "db.list_agents()"
        )

    run(work)
    db.close()


def test_asyncdb_warns_of_no_blocked_loop(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentdb.serving.executor._warn_in_loops", True)

    async def in_transaction(inside: AsyncDb) -> None:
        await inside.list_agents()

    async def work() -> None:
        async with agentdb.connect_async(url) as db:
            await db.list_agents()
            await db.run_transaction(in_transaction)
            await db.run_transaction(lambda inside: inside.list_agents())

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(work)


def test_memory_database_is_shared_by_the_threads() -> None:
    async def work() -> int:
        async with agentdb.connect_async("sqlite://:memory:", migrate=True) as db:
            await asyncio.gather(*(db.upsert_agent("a", "/") for _ in range(40)))
            return (await db.upsert_agent("a", "/")).version

    assert run(work) == 41


def test_asyncdb_that_is_forgotten_lets_its_threads_go_and_leaves_the_db_open(
    db: agentdb.DjangoDb,
) -> None:
    session = make_session(db)

    def workers() -> list[threading.Thread]:
        return [
            thread
            for thread in threading.enumerate()
            if thread.name.startswith("agentdb")
        ]

    async def work() -> SessionRecord | None:
        return await AsyncDb(db).get_session("s1")

    before = len(workers())
    assert run(work) == session

    gc.collect()
    wait_until(lambda: len(workers()) <= before)
    assert db.get_session("s1") == session


def test_stop_iteration_of_a_transaction_is_an_error_and_no_hang(url: str) -> None:
    async def work() -> None:
        async with agentdb.connect_async(url) as db:
            with pytest.raises(RuntimeError, match="which a coroutine cannot raise"):
                await db.run_transaction(lambda inside: next(iter([])))

    run(work)


@pytest.mark.parametrize(
    "ids",
    [["a", "b"], {"a", "b"}, {"a": 1, "b": 2}.keys()],
    ids=["list", "set", "keys"],
)
def test_the_ids_of_any_collection_keep_calls_in_order(ids: Any) -> None:
    assert sorted(aio._keys(ids)) == ["a", "b"]
