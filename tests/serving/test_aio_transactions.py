"""Transactions of an AsyncDb: what ends them, and what a cancelled one has stored."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Iterator
from contextlib import suppress
from typing import Any

import anyio
import pytest

import agentdb
from agentdb import AsyncDb, ConflictError, DatabaseClosedError, Db, InvalidInputError
from agentdb.errors import AgentDbError, OutcomeUnknownError
from agentdb.serving import coroutines
from agentdb.testing import MemoryDb
from tests.helpers.locks import watched

_INSIDE = (
    "A transaction of this AsyncDb is open here, and this call would not be part of it. Inside the function given to "
    "run_transaction(), call its argument."
)


@pytest.fixture(params=["database", ":memory:", "MemoryDb"])
def make_db(request: pytest.FixtureRequest, url: str) -> Callable[[], AsyncDb]:
    """Return what opens an AsyncDb: on each engine's database, in memory, and around a Db of another kind."""
    if request.param == "database":
        return lambda: agentdb.connect_async(url)
    if request.param == ":memory:":
        return lambda: agentdb.connect_async("sqlite://:memory:", migrate=True)
    return lambda: AsyncDb(MemoryDb())


# -- the AsyncDb around


CALLS: dict[str, Callable[[AsyncDb], Coroutine[Any, Any, Any]]] = {
    "read": lambda db: db.get_session("s"),
    "write": lambda db: db.touch_session("s"),
    "view": lambda db: db.for_tenant("acme").touch_session("s"),
    "plain": lambda db: db.run_transaction(lambda tx: None),
    "coroutine": lambda db: db.run_transaction(nothing),
    "close": lambda db: db.close(),
}


async def nothing(tx: AsyncDb) -> None:
    pass


@pytest.mark.parametrize("call", CALLS)
def test_a_call_on_the_db_around_is_refused_at_once(
    make_db: Callable[[], AsyncDb], call: str
) -> None:
    async def work() -> None:
        async with make_db() as db:

            async def use_the_outer(tx: AsyncDb) -> None:
                await tx.insert_session("s", "a", "sb")
                with pytest.raises(InvalidInputError) as raised:
                    await CALLS[call](db)
                assert str(raised.value) == _INSIDE
                assert await tx.touch_session("s")

            await asyncio.wait_for(db.run_transaction(use_the_outer), 120)
            await asyncio.wait_for(
                db.for_tenant("default").run_transaction(nothing), 120
            )
            assert await db.get_session("s") is not None

    asyncio.run(work())


def test_a_task_of_the_function_is_refused_until_the_function_has_ended(
    url: str,
) -> None:
    async def work() -> None:
        async with agentdb.connect_async(url) as db:
            tasks: list[asyncio.Task[Any]] = []
            ended = asyncio.Event()

            async def later() -> None:
                await ended.wait()
                await db.insert_session("later", "a", "sb")

            async def start_tasks(tx: AsyncDb) -> None:
                tasks.append(asyncio.create_task(later()))
                with pytest.raises(InvalidInputError):
                    await asyncio.create_task(db.list_agents())

            await db.run_transaction(start_tasks)
            ended.set()
            await asyncio.gather(*tasks)
            assert await db.get_session("later") is not None

    asyncio.run(work())


def test_a_plain_function_that_asks_the_loop_for_the_db_around_is_refused(
    make_db: Callable[[], AsyncDb],
) -> None:
    async def work() -> None:
        loop = asyncio.get_running_loop()
        async with make_db() as db:

            def use_the_outer(tx: Db) -> None:
                with pytest.raises(InvalidInputError):
                    asyncio.run_coroutine_threadsafe(
                        db.touch_session("s"), loop
                    ).result(120)

            await db.run_transaction(use_the_outer)

    asyncio.run(work())


def test_the_outer_transaction_is_refused_inside_an_inner_one(
    make_db: Callable[[], AsyncDb],
) -> None:
    async def outer(tx: AsyncDb) -> None:
        async def inner(inside: AsyncDb) -> None:
            with pytest.raises(InvalidInputError):
                await tx.insert_session("s", "a", "sb")
            await inside.insert_session("s", "a", "sb")

        await tx.run_transaction(inner)
        assert await tx.get_session("s")

    async def work() -> None:
        async with make_db() as db:
            await asyncio.wait_for(db.run_transaction(outer), 120)

    asyncio.run(work())


# -- what may be called


class _Callable:
    async def __call__(self, tx: AsyncDb) -> str:
        await tx.insert_session("s1", "a", "sb")
        return "called"


def test_an_object_with_an_async_call_is_a_coroutine_function_nested_too(
    make_db: Callable[[], AsyncDb],
) -> None:
    async def nested(tx: AsyncDb) -> str:
        return await tx.run_transaction(_Callable())

    async def work() -> None:
        async with make_db() as db:
            assert await db.run_transaction(nested) == "called"
            assert await db.get_session("s1") is not None

    asyncio.run(work())


def test_the_transaction_of_a_view_refuses_another_tenant_at_once(
    make_db: Callable[[], AsyncDb],
) -> None:
    """As the view around it does, and not only when the view of the other tenant is called."""

    async def other(tx: AsyncDb) -> None:
        tx.for_tenant("globex")

    async def work() -> None:
        async with make_db() as db:
            with pytest.raises(InvalidInputError, match="of the tenant 'acme'"):
                await db.for_tenant("acme").run_transaction(other)

    asyncio.run(work())


def test_stop_iteration_out_of_a_coroutine_function_ends_the_transaction(
    make_db: Callable[[], AsyncDb],
) -> None:
    async def stop(tx: AsyncDb) -> None:
        await tx.insert_session("s1", "a", "sb")
        next(iter(()))

    async def work() -> None:
        async with make_db() as db:
            with pytest.raises(RuntimeError, match="coroutine raised StopIteration"):
                await db.run_transaction(stop)
            assert await db.get_session("s1") is None

    asyncio.run(work())


# -- cancellation


def test_a_cancelled_inner_transaction_ends_at_once_and_the_outer_goes_on(
    make_db: Callable[[], AsyncDb],
) -> None:
    async def inner(tx: AsyncDb) -> None:
        await tx.insert_session("inner", "a", "sb")
        await asyncio.sleep(60)

    async def outer(tx: AsyncDb) -> None:
        await tx.insert_session("outer", "a", "sb")
        with suppress(TimeoutError):
            async with asyncio.timeout(0.05):
                await tx.run_transaction(inner)
        await tx.touch_session("outer")

    async def work() -> None:
        async with make_db() as db:
            await asyncio.wait_for(db.run_transaction(outer), 120)
            assert [
                await db.get_session(id) is not None for id in ("outer", "inner")
            ] == [True, False]

    asyncio.run(work())


def test_a_db_that_retries_what_fails_does_not_retry_what_was_cancelled() -> None:
    class Retrying(MemoryDb):
        def run_transaction(self, fn: Any) -> Any:
            with suppress(Exception):
                return super().run_transaction(fn)
            return super().run_transaction(fn)

    begun = asyncio.Event()

    async def wait(tx: AsyncDb) -> None:
        await tx.insert_session("s", "a", "sb")
        begun.set()
        await asyncio.sleep(60)

    async def work() -> None:
        db = AsyncDb(Retrying())
        call = asyncio.create_task(db.run_transaction(wait))
        await begun.wait()
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await db.get_session("s") is None
        await asyncio.wait_for(db.close(), 30)

    asyncio.run(work())


def _plain(number: int) -> Callable[[Db], str]:
    def insert(tx: Db) -> str:
        tx.insert_session(f"s{number}", "a", "sb")
        return "stored"

    return insert


def _coroutine(number: int) -> Callable[[AsyncDb], Coroutine[Any, Any, str]]:
    async def insert(tx: AsyncDb) -> str:
        await tx.insert_session(f"s{number}", "a", "sb")
        await tx.touch_session(f"s{number}")
        return "stored"

    return insert


def _nested(number: int) -> Callable[[AsyncDb], Coroutine[Any, Any, str]]:
    async def insert(tx: AsyncDb) -> str:
        return await tx.run_transaction(_coroutine(number))

    return insert


@pytest.mark.parametrize("kind", [_plain, _coroutine, _nested])
def test_a_transaction_cancelled_at_any_moment_is_stored_or_raises(
    url: str, kind: Callable[[int], Callable[[Any], Any]]
) -> None:
    async def work() -> tuple[set[str], set[str], set[str]]:
        stored, cancelled = set(), set()
        async with agentdb.connect_async(url) as db:
            await db.insert_session("before", "a", "sb")
            for number in range(400):
                call = asyncio.create_task(db.run_transaction(kind(number)))
                for _ in range(number % 80):
                    if call.done():
                        break
                    await asyncio.sleep(0 if number % 2 else 0.0001)
                call.cancel()
                try:
                    await call
                    stored.add(f"s{number}")
                except asyncio.CancelledError:
                    cancelled.add(f"s{number}")
            found = {session.id for session in await db.list_sessions()} - {"before"}
        return stored, cancelled, found

    stored, cancelled, found = asyncio.run(work())

    assert found == stored
    assert len(stored | cancelled) == 400


class _Committing(MemoryDb):
    """Ends each transaction once it is told to, with the error that it is given."""

    def __init__(self, errors: Iterator[BaseException | None]) -> None:
        super().__init__()
        self.errors = errors
        self.committing, self.go_on = threading.Event(), threading.Event()

    def run_transaction(self, fn: Any) -> Any:
        while True:
            result = fn(self)
            self.committing.set()
            self.go_on.wait(120)
            error = next(self.errors)
            if error is None:
                return result
            if not isinstance(error, ConflictError):
                raise error


KINDS: dict[str, Any] = {"plain": _plain(1), "coroutine": _coroutine(1)}


@pytest.mark.parametrize("kind", KINDS)
def test_cancelled_during_commit_returns_what_is_stored_and_is_cancelled_where_it_waits_next(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    watching, unlocked = watched(
        coroutines.PlainTransaction,
        "_lock",
        shared=("_is_cancelled", "_is_committing"),
    )
    monkeypatch.setattr(coroutines, "PlainTransaction", watching)
    committing = _Committing(iter([None]))
    seen: list[str] = []

    async def work() -> None:
        db = AsyncDb(committing)

        async def caller() -> None:
            seen.append(await db.run_transaction(KINDS[kind]))
            seen.append("went on")
            await asyncio.sleep(60)

        call = asyncio.create_task(caller())
        await asyncio.to_thread(committing.committing.wait)
        for _ in range(2):
            call.cancel()
            await asyncio.sleep(0.01)
        assert not call.done()
        committing.go_on.set()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(call, 120)
        await db.close()

    asyncio.run(work())

    assert seen == ["stored", "went on"]
    assert unlocked == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_time_limit_that_ends_during_commit_leaves_the_task_as_it_was(
    kind: str,
) -> None:
    committing = _Committing(iter([None]))

    async def work() -> str:
        db = AsyncDb(committing)
        async with asyncio.timeout(None) as limit:

            async def end() -> None:
                await asyncio.to_thread(committing.committing.wait)
                limit.reschedule(0)
                await asyncio.sleep(0.05)
                committing.go_on.set()

            ending = asyncio.create_task(end())
            result = await db.run_transaction(KINDS[kind])
        await asyncio.sleep(0.01)
        await ending
        await db.close()
        task = asyncio.current_task()
        assert task is not None
        assert task.cancelling() == 0
        return result

    assert asyncio.run(work()) == "stored"


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("error", "raised"),
    [
        (OutcomeUnknownError("no answer"), OutcomeUnknownError),
        (ConflictError("again"), asyncio.CancelledError),
        (ValueError("refused"), asyncio.CancelledError),
    ],
)
def test_cancelled_during_a_commit_that_fails(
    kind: str, error: BaseException, raised: type[BaseException]
) -> None:
    committing = _Committing(iter([error, None]))

    async def work() -> None:
        db = AsyncDb(committing)
        call = asyncio.create_task(db.run_transaction(KINDS[kind]))
        await asyncio.to_thread(committing.committing.wait)
        call.cancel()
        await asyncio.sleep(0.01)
        committing.go_on.set()
        with pytest.raises(raised):
            await asyncio.wait_for(call, 120)
        await asyncio.wait_for(db.close(), 120)

    asyncio.run(work())


@pytest.mark.parametrize("wrapped", [True, False])
def test_a_conflict_inside_a_task_group_or_another_exception_is_retried(
    make_postgres_database: Callable[..., str], _migrated_postgres: str, wrapped: bool
) -> None:
    url = make_postgres_database(template=_migrated_postgres)

    async def add(tx: AsyncDb) -> None:
        agent = await tx.get_agent("counter")
        assert agent is not None
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(tx.upsert_agent("counter", str(int(agent.path) + 1)))
        except ExceptionGroup as error:
            if wrapped:
                raise LookupError from error
            raise

    async def work() -> str:
        async with agentdb.connect_async(url) as db:
            await db.upsert_agent("counter", "0")
            await asyncio.gather(*(db.run_transaction(add) for _ in range(12)))
            agent = await db.get_agent("counter")
            assert agent is not None
            return agent.path

    assert asyncio.run(work()) == "12"


def test_cancelled_in_the_attempt_after_a_conflict_does_not_wait_for_the_function() -> (
    None
):
    # The COMMIT that conflicted is over: nothing of it is to be waited for.
    db = _Committing(iter([ConflictError("again"), None]))
    db.go_on.set()
    attempts = iter(["first", "second"])
    is_second, release = threading.Event(), threading.Event()

    def insert(tx: Db) -> None:
        if next(attempts) == "second":
            is_second.set()
            release.wait(120)

    async def work() -> None:
        async with AsyncDb(db) as around:
            call = asyncio.create_task(around.run_transaction(insert))
            await asyncio.to_thread(is_second.wait, 120)
            call.cancel()
            ended, _ = await asyncio.wait([call], timeout=10)
            release.set()
            assert ended
            with pytest.raises(asyncio.CancelledError):
                await call

    asyncio.run(work())


def test_an_anyio_scope_cancels_a_transaction_and_waits_for_its_commit(
    url: str,
) -> None:
    committing = _Committing(iter([None]))

    async def work() -> tuple[bool, bool, object]:
        async with agentdb.connect_async(url) as db:

            async def wait(tx: AsyncDb) -> None:
                await tx.insert_session("never", "a", "sb")
                await anyio.sleep(60)

            with anyio.move_on_after(0.1) as early:
                await db.run_transaction(wait)
            found = await db.get_session("never")
        fake = AsyncDb(committing)
        result = None

        async def cancel_during_commit() -> None:
            await anyio.to_thread.run_sync(committing.committing.wait)
            late.cancel()
            await anyio.sleep(0.05)
            committing.go_on.set()

        async with anyio.create_task_group() as group:
            with anyio.CancelScope() as late:
                group.start_soon(cancel_during_commit)
                result = await fake.run_transaction(_coroutine(1))
        await anyio.sleep(0)
        await fake.close()
        return early.cancelled_caught, found is None, (late.cancelled_caught, result)

    assert anyio.run(work) == (True, True, (False, "stored"))


# -- loops that end


def test_a_loop_that_is_closed_inside_a_transaction_releases_the_lock(url: str) -> None:
    db = agentdb.connect_async(url)
    loop = asyncio.new_event_loop()
    inserted = asyncio.Event()

    async def wait(tx: AsyncDb) -> None:
        await tx.insert_session("never", "a", "sb")
        inserted.set()
        await asyncio.sleep(3600)

    task = loop.create_task(db.run_transaction(wait))
    loop.run_until_complete(asyncio.wait_for(inserted.wait(), 120))
    task._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.close()

    async def go_on() -> list[str]:
        await asyncio.wait_for(db.insert_session("s1", "a", "sb"), 120)
        sessions = [session.id for session in await db.list_sessions()]
        await db.close()
        return sessions

    assert asyncio.run(go_on()) == ["s1"]


def test_calls_that_the_function_did_not_await_are_refused_after_its_end(
    url: str,
) -> None:
    tasks: list[asyncio.Task[Any]] = []

    async def forget(tx: AsyncDb) -> None:
        tasks.append(asyncio.create_task(tx.insert_session("s1", "a", "sb")))

    async def work() -> None:
        async with agentdb.connect_async(url) as db:
            await db.run_transaction(forget)
            with pytest.raises(DatabaseClosedError, match="The transaction has ended"):
                await tasks[0]

    asyncio.run(work())


def test_a_thread_that_the_function_starts_may_not_use_its_argument(
    make_db: Callable[[], AsyncDb],
) -> None:
    async def fn(tx: AsyncDb) -> str:
        def in_thread() -> str:
            with pytest.raises(AgentDbError) as raised:
                asyncio.run(tx.insert_session("s1", "a", "sb"))
            return str(raised.value)

        return await asyncio.to_thread(in_thread)

    async def work() -> tuple[str, object]:
        async with make_db() as db:
            return await db.run_transaction(fn), await db.get_session("s1")

    assert asyncio.run(work()) == (
        "A transaction belongs to the event loop that runs it, and this call comes from another. Make the calls in the "
        "function's own loop.",
        None,
    )


# -- opening


def test_connect_async_may_be_awaited(url: str) -> None:
    async def work() -> bool:
        db = await agentdb.connect_async(url)
        await db.insert_session("s1", "a", "sb")
        found = await db.get_session("s1")
        await db.close()
        return found is not None

    assert asyncio.run(work())
