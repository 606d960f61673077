"""Calls on one id through one AsyncDb take effect in the order in which they were made, awaited or not."""

from __future__ import annotations

import asyncio
import random
import threading
import time
from collections import defaultdict
from typing import Any, cast

import pytest

import agentdb
from agentdb import AsyncDb


class Recording:
    """Any Db: notes the argument of each call by id, and that no other call on the id was under way."""

    def __init__(self) -> None:
        self.seen: defaultdict[str, list[object]] = defaultdict(list)
        self.overlaps: list[str] = []
        self._under_way: set[str] = set()

    def update_session_status(self, id: str, status: Any) -> bool:
        if id in self._under_way:
            self.overlaps.append(id)
        self._under_way.add(id)
        time.sleep(random.random() / 2000)
        self.seen[id].append(status)
        self._under_way.discard(id)
        return True

    def get_session(self, id: str) -> object:
        return self.seen[id][-1] if self.seen[id] else None

    def close(self) -> None:
        pass


def recording() -> tuple[Recording, Any]:
    db = Recording()
    return db, db


def test_calls_that_nobody_awaits_run_one_after_the_other_for_each_id() -> None:
    record, db = recording()

    async def work() -> None:
        async with AsyncDb(db) as adb:
            calls = [
                asyncio.ensure_future(
                    adb.update_session_status(f"s{number % 7}", cast(Any, number))
                )
                for number in range(300)
            ]
            await asyncio.gather(*calls)

    asyncio.run(work())

    assert record.overlaps == []
    assert all(seen == sorted(seen, key=int) for seen in record.seen.values())  # type: ignore[arg-type]
    assert sum(map(len, record.seen.values())) == 300


def test_a_read_sees_the_calls_before_it_and_not_those_after_it() -> None:
    _, db = recording()

    async def work() -> list[object]:
        async with AsyncDb(db) as adb:
            calls: list[Any] = []
            for number in range(50):
                calls += [
                    adb.update_session_status("s", cast(Any, number)),
                    adb.get_session(id="s"),
                ]
            return list((await asyncio.gather(*calls))[1::2])

    assert asyncio.run(work()) == list(range(50))


def test_the_last_of_many_updates_stays(url: str) -> None:
    async def work() -> list[str]:
        last = []
        async with agentdb.connect_async(url) as db:
            await asyncio.gather(
                *(db.insert_sandbox(f"sb{n}", "a", "/") for n in range(10))
            )
            # All eight threads and connections are there before the calls that matter.
            await asyncio.gather(
                *(db.run_transaction(lambda tx: time.sleep(0.05)) for _ in range(8))
            )
            for round in range(20):
                for state in (
                    "running",
                    "waiting",
                    "warm",
                    ("waiting", "running")[round % 2],
                ):
                    calls = [
                        asyncio.ensure_future(db.update_sandbox_state(f"sb{n}", state))
                        for n in range(10)
                    ]
                await asyncio.gather(*calls)
                found = await asyncio.gather(
                    *(db.get_sandbox(f"sb{n}") for n in range(10))
                )
                last += [sandbox.state for sandbox in found if sandbox is not None]
        return last

    assert asyncio.run(work()) == (["waiting"] * 10 + ["running"] * 10) * 10


def test_calls_on_another_id_do_not_wait() -> None:
    go_on = threading.Event()

    class Blocking(Recording):
        def update_session_status(self, id: str, status: Any) -> bool:
            return id != "stuck" or go_on.wait(120)

    db: Any = Blocking()

    async def work() -> None:
        async with AsyncDb(db, max_workers=2) as adb:
            stuck = [
                asyncio.ensure_future(adb.update_session_status("stuck", "active"))
                for _ in range(5)
            ]
            await asyncio.wait_for(adb.update_session_status("other", "active"), 60)
            go_on.set()
            assert await asyncio.gather(*stuck) == [True] * 5

    asyncio.run(work())


def test_two_calls_that_waited_for_the_same_one_do_not_wait_for_each_other() -> None:
    both, first = threading.Event(), threading.Event()

    class Blocking(Recording):
        def touch_sessions(self, ids: list[str]) -> list[str]:
            return ids if both.wait(120) else []

        def update_session_status(self, id: str, status: Any) -> bool:
            return id != "stuck" or first.wait(120)

    db: Any = Blocking()

    async def work() -> None:
        async with AsyncDb(db) as adb:
            touch = asyncio.ensure_future(adb.touch_sessions(["stuck", "other"]))
            stuck, other = (
                asyncio.ensure_future(adb.update_session_status(id, "active"))
                for id in ("stuck", "other")
            )
            await asyncio.sleep(0)  # the tasks make their calls
            both.set()
            try:
                assert await asyncio.wait_for(other, 60)
            finally:
                first.set()
            assert await touch == ["stuck", "other"]
            assert await stuck

    asyncio.run(work())


def test_a_cancelled_call_lets_the_next_one_on_its_id_go() -> None:
    record, db = recording()

    async def work() -> None:
        async with AsyncDb(db, max_workers=1) as adb:
            calls = [
                asyncio.ensure_future(adb.update_session_status("s", cast(Any, number)))
                for number in range(20)
            ]
            await asyncio.sleep(0)
            for call in calls[1:-1]:
                call.cancel()
            await asyncio.gather(*calls, return_exceptions=True)

    asyncio.run(work())

    assert record.seen["s"][0] == 0
    assert record.seen["s"][-1] == 19


@pytest.mark.parametrize("ids", [None, [], 5, ["s", 5]])
def test_ids_that_are_no_texts_are_left_to_the_call_to_refuse(ids: Any) -> None:
    _, db = recording()

    async def work() -> None:
        async with AsyncDb(db) as adb:
            with pytest.raises(TypeError):
                await adb.get_session(ids, ids)  # type: ignore[call-arg]

    asyncio.run(work())
