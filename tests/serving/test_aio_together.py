"""Calls of one kind that wait together are one statement, and each has an answer of its own."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Collection
from typing import Any, cast

import psycopg
import pytest
from django.db import connections

import agentdb
from agentdb import (
    AsyncDb,
    DatabaseUnavailableError,
    InvalidInputError,
    SchemaMismatchError,
)
from agentdb.serving import workers
from agentdb.testing import MemoryDb
from tests.helpers.factories import execute
from tests.helpers.locks import watched


class Holding:
    """A Db that counts: its first call waits until it may go on, so that those behind it wait together."""

    def __init__(self, error: Exception | None = None) -> None:
        self.go_on = threading.Event()
        self.alone: list[str] = []
        self.at_once: list[list[str]] = []
        self._error = error

    def count_sandboxes(self) -> int:
        assert self.go_on.wait(120)
        return 0

    def get_session(self, id: str) -> str:
        self.alone.append(id)
        return id.upper()

    def _joins(self, method: str) -> bool:
        return method == "get_session"

    def _do_each(self, method: str, ids: list[str]) -> dict[str, str | None]:
        self.at_once.append(ids)
        if self._error is not None:
            raise self._error
        return {
            id: None if id == "missing" else id.upper() for id in ids if id != "apart"
        }

    def close(self) -> None:
        pass


def answers_of(db: Any, ids: Collection[str]) -> list[Any]:
    """Read these sessions while the only thread is held up, then let it go on."""

    async def work() -> list[Any]:
        async with AsyncDb(db, max_workers=1) as adb:
            first = asyncio.ensure_future(adb.count_sandboxes())
            reads = [asyncio.ensure_future(adb.get_session(id)) for id in ids]
            await asyncio.sleep(0)  # each is handed over
            db.go_on.set()
            await first
            return await asyncio.gather(*reads, return_exceptions=True)

    return asyncio.run(work(), debug=True)


def test_answers_reach_the_loop_together_and_what_is_shared_is_used_with_the_lock(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(workers, "_LOOK_SECONDS", 3600)
    kind, unlocked = watched(
        workers.Workers,
        "lock",
        shared=("_ready", "_lines", "_woken", "_busy", "_wakes", "_threads"),
        free=("start_anew", "stop", "_work"),
    )
    db: Any = Holding()
    wakes: list[str] = []

    async def work() -> list[Any]:
        loop = asyncio.get_running_loop()
        tell = loop.call_soon_threadsafe

        def count(*call: Any) -> Any:
            wakes.append(threading.current_thread().name)
            return tell(*call)

        def list_agents(tenant_id: str) -> str:
            looked = threading.Event()
            tell(looked.set)
            assert looked.wait(60)  # the loop has had the time to deliver
            return tenant_id

        db.list_agents = list_agents

        with monkeypatch.context() as patched:
            patched.setattr(workers, "Workers", kind)
            adb = AsyncDb(db, max_workers=1)
        calls: list[Any] = [adb.count_sandboxes()]
        for number in range(20):
            calls += [adb.get_session(f"s{number}"), adb.list_agents(f"t{number}")]
        waiting = asyncio.gather(*calls)
        await asyncio.sleep(0)  # each is handed over
        monkeypatch.setattr(loop, "call_soon_threadsafe", count)
        db.go_on.set()
        answers = await waiting
        monkeypatch.undo()

        async def in_transaction(tx: AsyncDb) -> Any:
            return await tx.get_session("s")

        db.run_transaction = lambda fn: fn(db)
        answers.append(await adb.run_transaction(in_transaction))
        await adb.close()
        return answers

    answers = asyncio.run(work())

    assert answers[1:5] == ["S0", "t0", "S1", "t1"]
    assert answers[-1] == "S"
    # Before the last call, which might take long, and after it.
    assert wakes == ["agentdb-0"] * 2
    assert unlocked == []


def test_reads_of_one_row_that_wait_are_one_call() -> None:
    db = Holding()

    assert answers_of(db, ["a", "missing", "b", "a"]) == ["A", None, "B", "A"]
    assert (db.at_once, db.alone) == ([["a", "missing", "b", "a"]], [])


def test_more_calls_than_one_takes_ids_are_several() -> None:
    db = Holding()
    ids = [f"s{number}" for number in range(2_500)]

    assert answers_of(db, ids) == [id.upper() for id in ids]
    assert [len(each) for each in db.at_once] == [1_000, 1_000, 500]
    assert db.alone == []


def test_calls_of_two_methods_that_wait_mixed_are_one_call_of_each() -> None:
    class Mixed(Holding):
        def __init__(self) -> None:
            super().__init__()
            self.calls: list[tuple[str, list[str]]] = []

        def list_agents(self) -> list[str]:
            self.calls.append(("list_agents", []))
            return []

        def _joins(self, method: str) -> bool:
            return method in ("get_session", "get_sandbox")

        def _do_each(self, method: str, ids: list[str]) -> dict[str, str | None]:
            self.calls.append((method, ids))
            return {id: f"{method} {id}" for id in ids}

    db = Mixed()

    async def work() -> list[Any]:
        async with AsyncDb(cast("Any", db), max_workers=1) as adb:
            first = asyncio.ensure_future(adb.count_sandboxes())
            calls: list[Any] = [
                adb.get_session("a"),
                adb.get_sandbox("x"),
                adb.list_agents(),
                adb.get_session("b"),
                adb.get_sandbox("y"),
            ]
            waiting = asyncio.gather(*calls)
            await asyncio.sleep(0)  # each is handed over
            db.go_on.set()
            await first
            return list(await waiting)

    assert asyncio.run(work(), debug=True) == [
        "get_session a",
        "get_sandbox x",
        [],
        "get_session b",
        "get_sandbox y",
    ]
    assert db.calls == [
        ("get_session", ["a", "b"]),
        ("get_sandbox", ["x", "y"]),
        ("list_agents", []),
    ]


def test_a_call_that_was_cancelled_before_a_thread_took_it_is_not_made() -> None:
    db = Holding()

    async def work() -> list[Any]:
        async with AsyncDb(cast("Any", db), max_workers=1) as adb:
            first = asyncio.ensure_future(adb.count_sandboxes())
            reads = [asyncio.ensure_future(adb.get_session(id)) for id in "abc"]
            await asyncio.sleep(0)  # each is handed over
            reads[1].cancel()
            await asyncio.sleep(0)
            db.go_on.set()
            await first
            return await asyncio.gather(*reads, return_exceptions=True)

    a, b, c = asyncio.run(work())

    assert (a, c) == ("A", "C")
    assert isinstance(b, asyncio.CancelledError)
    assert (db.at_once, db.alone) == ([["a", "c"]], [])


def test_what_is_refused_at_once_is_asked_for_alone() -> None:
    db = Holding(InvalidInputError("One of them is bad."))

    assert answers_of(db, ["a", "b"]) == ["A", "B"]
    assert (len(db.at_once), db.alone) == (1, ["a", "b"])


def test_what_one_call_does_not_answer_is_asked_for_alone() -> None:
    db = Holding()

    assert answers_of(db, ["a", "apart", "b"]) == ["A", "APART", "B"]
    assert (db.at_once, db.alone) == ([["a", "apart", "b"]], ["apart"])


def test_an_unavailable_database_is_waited_for_once_and_each_caller_is_told() -> None:
    db = Holding(DatabaseUnavailableError("It is away."))

    first, second = answers_of(db, ["a", "b"])

    assert type(first) is type(second) is DatabaseUnavailableError
    assert str(first) == str(second) == "It is away."
    assert first is not second  # each is raised, and gets a traceback, elsewhere
    assert (len(db.at_once), db.alone) == (1, [])


def test_calls_at_once_answer_as_calls_one_by_one_do(url: str) -> None:
    ids = [f"s{number}" for number in range(40)]

    async def at_once(call: Callable[[str], Any], ids: list[Any]) -> list[Any]:
        return await asyncio.gather(*map(call, ids), return_exceptions=True)

    async def work() -> None:
        async with agentdb.connect_async(url, max_workers=1) as db:
            for id in ids:
                await db.insert_session(id, "a", f"sb-{id}", tenant_id=id[:2])
                await db.insert_sandbox(f"sb-{id}", "a", "/w", tenant_id=id[:2])
                await db.insert_api_key(f"k-{id}", "acme", f"h-{id}", "ci")
            before = [await db.get_session(id) for id in ids]
            missing: list[Any] = ["nobody", *ids, "s0"]
            assert await at_once(db.get_session, missing) == [None, *before, before[0]]
            sandboxes = await at_once(db.get_sandbox, [f"sb-{id}" for id in ids])
            assert [found.id for found in sandboxes] == [f"sb-{id}" for id in ids]
            keys = await at_once(db.get_api_key_by_hash, [f"h-{id}" for id in ids])
            assert [found.id for found in keys] == [f"k-{id}" for id in ids]
            one = db.for_tenant("s1")
            seen = await at_once(one.get_session, ids)
            assert [found.id for found in seen if found] == [
                id for id in ids if id.startswith("s1")
            ]
            assert await at_once(db.touch_session, missing[:-1]) == [
                False,
                *[True] * 40,
            ]
            touched = await at_once(one.touch_session, ids)
            assert touched == [id.startswith("s1") for id in ids]
            assert await at_once(db.touch_sandbox, ["sb-s1", "no"]) == [True, False]
            after = await at_once(db.get_session, ids)
            assert all(
                then.last_active_at > first.last_active_at
                for first, then in zip(before, after, strict=True)
                if first is not None
            )

    asyncio.run(work())


@pytest.mark.parametrize("engine", ["postgresql"])
def test_a_touch_that_waits_for_its_row_holds_up_no_other(
    url: str, engine: str
) -> None:
    limited = f"{url}{'&' if '?' in url else '?'}call_timeout=10"

    async def work() -> None:
        async with agentdb.connect_async(limited, max_workers=1) as db:
            for id in ("s1", "s2", "s3"):
                await db.insert_session(id, "a", f"sb-{id}")
            with psycopg.connect(url) as other:
                other.execute("UPDATE sessions SET runner_id = 'r' WHERE id = 's2'")
                ids = ("nobody", "s1", "s2", "s3")
                touches = [asyncio.ensure_future(db.touch_session(id)) for id in ids]
                assert await touches[0] is False
                assert await touches[1] and await touches[3]
                assert not touches[2].done()
            assert await touches[2] is True
            touched = await db.get_session("s2")
            assert touched is not None
            assert touched.runner_id == "r"
            assert touched.last_active_at > touched.created_at

    asyncio.run(work())


def test_touches_at_once_leave_out_rows_that_are_not_there(
    db: agentdb.DjangoDb,
) -> None:
    db.insert_session("s1", "a", "sb1")
    db.insert_sandbox("sb1", "a", "/w")

    assert db._joins("touch_session") and not db._joins("delete_session")
    assert db._do_each("touch_session", ["s1", "nobody"]) == {"s1": True}
    assert db._do_each("touch_sandbox", ["nobody", "sb1"]) == {"sb1": True}
    assert db.for_tenant("other")._do_each("touch_session", ["s1"]) == {}


def test_a_bad_id_among_others_is_refused_alone(url: str) -> None:
    ids: list[Any] = ["s1", "", "s\0", 7, "s" * 600, "s1"]

    async def work() -> tuple[list[Any], list[Any]]:
        async with agentdb.connect_async(url, max_workers=1) as db:
            await db.insert_session("s1", "a", "sb1")
            reads = [db.get_session(id) for id in ids]
            touches = [db.touch_session(id) for id in ids]
            return (
                await asyncio.gather(*reads, return_exceptions=True),
                await asyncio.gather(*touches, return_exceptions=True),
            )

    reads, touches = asyncio.run(work())

    assert [reads[0].id, reads[-1].id] == ["s1", "s1"]
    assert [touches[0], touches[-1]] == [True, True]
    for answers in (reads, touches):
        assert [str(error) for error in answers[1:5]] == [
            "Session id must not be empty.",
            "Session id 's\\x00' has a NUL character, which PostgreSQL cannot store.",
            "Session id must be a string, not int.",
            "Session id has 600 bytes in UTF-8; the limit is 512.",
        ]


def test_a_row_that_cannot_be_read_costs_its_own_caller_the_answer(url: str) -> None:
    ids = [f"s{number}" for number in range(10)]

    async def work() -> list[Any]:
        async with agentdb.connect_async(url, max_workers=1) as db:
            for id in ids:
                await db.insert_session(id, "a", "sb1")
            bad = "infinity" if url.startswith("postgres") else "yesterday"
            execute(url, f"UPDATE sessions SET created_at = '{bad}' WHERE id = 's4'")
            return await asyncio.gather(
                *map(db.get_session, ids), return_exceptions=True
            )

    answers = asyncio.run(work())

    assert isinstance(answers[4], SchemaMismatchError)
    del answers[4], ids[4]
    assert [found.id for found in answers] == ids


def test_a_db_without_calls_at_once_is_called_for_each() -> None:
    async def work() -> list[Any]:
        async with AsyncDb(MemoryDb(), max_workers=1) as db:
            await db.insert_session("s1", "a", "sb1")
            return await asyncio.gather(*map(db.get_session, ["s1", "s2", "s1"]))

    first, missing, again = asyncio.run(work())

    assert first == again
    assert (first.id, missing) == ("s1", None)


def test_whoever_watches_the_statements_sees_one_for_each_call(
    db: agentdb.DjangoDb,
) -> None:
    db.insert_session("s1", "a", "sb1")

    def watch(execute: Any, *arguments: Any) -> Any:
        return execute(*arguments)

    assert db._do_each("get_session", ["s1", "s2"]) == {
        "s1": db.get_session("s1"),
        "s2": None,
    }
    with connections[db.alias].execute_wrapper(watch):
        assert db._do_each("get_session", ["s1", "s2"]) == {}


class Upper:
    """Hands on all but one method."""

    def __init__(self, db: agentdb.DjangoDb) -> None:
        self._db = db

    def __getattr__(self, name: str) -> Any:
        return getattr(self._db, name)

    def get_session(self, id: str) -> Any:
        return id.upper()


class Subclass(agentdb.DjangoDb):
    get_session = Upper.get_session


def patched(db: agentdb.DjangoDb, monkeypatch: pytest.MonkeyPatch) -> agentdb.DjangoDb:
    monkeypatch.setattr(agentdb.DjangoDb, "get_session", Upper.get_session)
    return db


def patched_alone(
    db: agentdb.DjangoDb, monkeypatch: pytest.MonkeyPatch
) -> agentdb.DjangoDb:
    monkeypatch.setattr(db, "get_session", str.upper, raising=True)
    return db


@pytest.mark.parametrize(
    "replace",
    [
        lambda db, _: Upper(db),
        lambda db, _: Subclass(db.alias),
        patched,
        patched_alone,
    ],
    ids=["wrapper", "subclass", "patched class", "patched object"],
)
def test_a_method_that_was_replaced_sees_each_call(
    db: agentdb.DjangoDb, monkeypatch: pytest.MonkeyPatch, replace: Callable[..., Any]
) -> None:
    assert db._joins("get_session")
    replaced = replace(db, monkeypatch)
    # A wrapper has no say in it: an AsyncDb asks the class.
    assert isinstance(replaced, Upper) or not replaced._joins("get_session")

    async def work() -> list[Any]:
        async with AsyncDb(replaced, max_workers=1) as adb:
            reads = [adb.get_session(id) for id in ("a", "b", "c")]
            return await asyncio.gather(*reads)

    assert asyncio.run(work()) == ["A", "B", "C"]
