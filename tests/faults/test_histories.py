"""Histories of concurrent transactions and single writes, checked for serializability.

Each transaction reads and appends to lists, which agents hold as their paths. As each appended number is unique, a list
that somebody reads says in which order its appends took effect, and each read says between which of them it was. That
gives a graph of who came before whom; a cycle in it is what no serial order explains (Elle, Kingsbury and Alvaro 2020).
"""

from __future__ import annotations

import itertools
import os
import random
import threading
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import pytest

import agentdb
from agentdb import ConflictError, Db

_TRANSACTIONS = int(
    os.environ.get("AGENTDB_HISTORY_TRANSACTIONS", "60")
)  # of each thread
_THREADS = 4
_KEYS = ["a", "b", "c"]


@dataclass
class Observed:
    """What one transaction read, before it appended anything to that list, and what it appended."""

    reads: dict[str, tuple[int, ...]] = field(default_factory=dict)
    appends: dict[str, int] = field(default_factory=dict)


def numbers(db: Db, key: str) -> tuple[int, ...]:
    agent = db.get_agent(key)
    return (
        tuple(map(int, agent.path.split(",")))
        if agent is not None and agent.path != "/"
        else ()
    )


def edges(
    history: list[Observed], final: dict[str, tuple[int, ...]]
) -> Iterable[tuple[int, int]]:
    """Who must come before whom: writer before writer, writer before reader, reader before the next writer."""
    writer = {
        number: index
        for index, each in enumerate(history)
        for number in each.appends.values()
    }
    for order in final.values():
        yield from itertools.pairwise(writer[number] for number in order)
    for index, each in enumerate(history):
        for key, seen in each.reads.items():
            assert seen == final[key][: len(seen)], (
                f"{key}: {seen} is not how {final[key]} began"
            )
            if seen:
                yield writer[seen[-1]], index
            if len(seen) < len(final[key]):
                yield index, writer[final[key][len(seen)]]


def cycle(pairs: Iterable[tuple[int, int]]) -> list[int]:
    """Return what is left after everything that comes before or after all else was taken away: nothing, or cycles."""
    after: dict[int, set[int]] = defaultdict(set)
    waiting: dict[int, int] = defaultdict(int)
    for one, other in {pair for pair in pairs if pair[0] != pair[1]}:
        after[one].add(other)
        waiting[other] += 1
    ready = [one for one in after if not waiting[one]]
    while ready:
        for other in after.pop(ready.pop(), set()):
            waiting[other] -= 1
            if not waiting[other]:
                ready.append(other)
    return sorted(one for one, others in after.items() if others)


def test_the_checker_finds_a_write_skew_and_a_lost_append() -> None:
    skew = [
        Observed({"a": (), "b": ()}, {"a": 1}),
        Observed({"a": (), "b": ()}, {"b": 2}),
    ]
    assert cycle(edges(skew, {"a": (1,), "b": (2,)})) == [0, 1]
    serial = [Observed({"a": ()}, {"a": 1}), Observed({"a": (1,), "b": ()}, {"b": 2})]
    assert cycle(edges(serial, {"a": (1,), "b": (2,)})) == []
    with pytest.raises(AssertionError, match="is not how"):
        list(
            edges(
                [Observed({"a": (2,)}, {"a": 1}), Observed({}, {"a": 2})], {"a": (1, 2)}
            )
        )


@pytest.mark.parametrize(
    "singles", [False, True], ids=["transactions", "with single reads"]
)
def test_concurrent_transactions_have_a_serial_order(url: str, singles: bool) -> None:
    counter = itertools.count(1)
    history: list[Observed] = []
    separator = "&" if "?" in url else "?"
    strict = (
        f"{url}{separator}isolation=serializable"
        if singles and url.startswith("postgresql")
        else url
    )

    def transact(db: Db, randomness: random.Random) -> None:
        chosen = [
            (randomness.choice(_KEYS), randomness.random() < 0.5)
            for _ in range(randomness.randint(1, 4))
        ]
        observed = Observed()

        def work(tx: Db) -> None:
            observed.reads.clear()
            observed.appends.clear()
            for key, appends in chosen:
                seen = numbers(tx, key)
                if key not in observed.appends:
                    observed.reads[key] = seen
                if appends and key not in observed.appends:
                    observed.appends[key] = next(counter)
                    tx.upsert_agent(
                        key, ",".join(map(str, (*seen, observed.appends[key])))
                    )

        try:
            db.run_transaction(work)
        except ConflictError:
            return  # nothing of it is stored
        history.append(observed)

    def run(db: Db, seed: int) -> None:
        randomness = random.Random(seed)
        for _ in range(_TRANSACTIONS):
            if singles and randomness.random() < 0.3:
                key = randomness.choice(_KEYS)
                history.append(Observed({key: numbers(db, key)}))
            else:
                transact(db, randomness)

    with agentdb.connect(strict) as db:
        for key in _KEYS:
            db.upsert_agent(key, "/")
        threads = [
            threading.Thread(target=run, args=(db, seed)) for seed in range(_THREADS)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        final = {key: numbers(db, key) for key in _KEYS}

    assert {number for each in history for number in each.appends.values()} == set(
        itertools.chain(*final.values())
    )
    assert cycle(edges(history, final)) == []


@pytest.mark.parametrize("strict", [True, False], ids=["serializable", "as given"])
def test_a_session_of_a_deleted_agent_is_never_left(
    url: str, strict: bool, engine: str
) -> None:
    """A transaction of ``get_agent`` and ``insert_session`` beside a plain ``delete_agent``, which deletes both."""
    if engine == "postgresql" and not strict:
        pytest.skip("holds on PostgreSQL with isolation=serializable alone")
    if engine == "sqlite" and strict:
        pytest.skip("SQLite is serializable in any case")
    separator = "&" if "?" in url else "?"
    with agentdb.connect(
        f"{url}{separator}isolation=serializable" if strict else url
    ) as db:
        for number in range(_TRANSACTIONS):
            name = f"agent {number}"
            db.upsert_agent(name, "/")
            has_read, deleted = threading.Event(), threading.Event()

            def start(
                tx: Db,
                name: str = name,
                has_read: threading.Event = has_read,
                deleted: threading.Event = deleted,
            ) -> None:
                if tx.get_agent(name) is not None:
                    has_read.set()
                    if engine != "sqlite":  # where the other waits for this one
                        deleted.wait(120)
                    tx.insert_session(name, name, "sb")

            def delete(
                name: str = name,
                has_read: threading.Event = has_read,
                deleted: threading.Event = deleted,
            ) -> None:
                has_read.wait(120)
                db.delete_agent(name)
                deleted.set()

            deleting = threading.Thread(target=delete)
            deleting.start()
            db.run_transaction(start)
            deleting.join()
        left = {session.agent_name for session in db.list_sessions()}
        assert left <= {agent.name for agent in db.list_agents()}
