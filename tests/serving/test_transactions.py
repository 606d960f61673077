from __future__ import annotations

import asyncio
import sqlite3
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from typing import Any

import django.db
import pytest
from django.db import connections, transaction
from django.test.utils import CaptureQueriesContext

import agentdb
from agentdb import (
    AgentDbError,
    ConflictError,
    DatabaseClosedError,
    Db,
    DjangoDb,
    DuplicateKeyError,
    InvalidInputError,
    SchemaMismatchError,
)
from tests.helpers.factories import (
    execute,
    make_agent,
    make_sandbox,
    make_session,
    sqlite_path,
)
from tests.serving.test_inputs import no_sql


class Stop(Exception):
    """What a caller's own function raises."""


@pytest.fixture
def postgres_db(
    make_postgres_database: Callable[..., str],
) -> Iterator[tuple[DjangoDb, str]]:
    url = make_postgres_database()
    with agentdb.connect(url, migrate=True) as db:
        yield db, url


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """How long each retry waits at most; here none of them waits."""
    longest: list[float] = []
    executor = "agentdb.serving.executor"
    monkeypatch.setattr(f"{executor}.random.uniform", lambda _, high: high)
    monkeypatch.setattr(f"{executor}.time.sleep", longest.append)
    return longest


def test_transaction_keeps_all_and_returns_what_fn_returns(
    db: DjangoDb, url: str, engine: str
) -> None:
    def work(inside: Db) -> str:
        make_agent(inside)
        make_session(inside)
        if engine != "cockroachdb":  # where it would wait for this transaction
            assert execute(url, "SELECT count(*) FROM sessions") == [(0,)]
        return "done"

    assert db.run_transaction(work) == "done"

    assert execute(url, "SELECT count(*) FROM sessions") == [(1,)]
    assert db.get_agent("support-bot") is not None


@pytest.mark.parametrize("end", ["returns", "raises", "is refused"])
def test_a_transaction_that_has_ended_is_no_part_of_a_later_one(
    db: DjangoDb, end: str
) -> None:
    ended: list[Db] = []

    def first(tx: Db) -> None:
        ended.append(tx)
        if end == "raises":
            raise Stop
        if end == "is refused":
            with suppress(DuplicateKeyError):
                for _ in range(2):
                    make_session(tx)

    def calls_the_ended_one(_: Db) -> None:
        with pytest.raises(DatabaseClosedError) as refused:
            make_agent(ended[0])
        assert str(refused.value) == _ENDED

    with suppress(Stop, DuplicateKeyError):
        db.run_transaction(first)
    calls_the_ended_one(db)
    db.run_transaction(calls_the_ended_one)
    db.run_transaction(lambda tx: tx.run_transaction(calls_the_ended_one))

    ended.clear()

    def runs_an_inner_one(tx: Db) -> None:
        make_session(tx, "outer")
        with suppress(Stop, DuplicateKeyError):
            tx.run_transaction(first)
        calls_the_ended_one(tx)

    db.run_transaction(runs_an_inner_one)
    calls_the_ended_one(db)
    assert db.get_session("outer") is not None
    assert db.list_agents() == []


_ENDED = "The transaction has ended. Call the Db that ran it."


def test_every_method_works_inside_a_transaction(db: DjangoDb) -> None:
    def work(inside: Db) -> list[object]:
        agent, session, sandbox = (
            make_agent(inside),
            make_session(inside),
            make_sandbox(inside),
        )
        return [
            inside.get_agent("support-bot") == agent,
            inside.list_sessions() == [session],
            inside.get_best_eviction_candidate() is None,
            inside.mark_all_sandboxes_cold(),
            inside.bulk_pause_active_sessions(),
            inside.count_sandboxes(),
            inside.get_cold_sandboxes(sandbox.created_at) == [],
            inside.delete_agent("support-bot"),
        ]

    assert db.run_transaction(work) == [True, True, True, 1, 1, 1, True, True]
    assert db.get_session("s1") is None


def test_a_failure_that_fn_swallows_does_not_look_like_success(
    db: DjangoDb, url: str
) -> None:
    def work(inside: Db) -> str:
        make_session(inside)
        with pytest.raises(agentdb.SchemaMismatchError):
            inside.count_sandboxes()
        with pytest.raises(agentdb.SchemaMismatchError):
            inside.get_session("s1")
        return "done"

    def outer(inside: Db) -> None:
        make_agent(inside)
        with pytest.raises(agentdb.SchemaMismatchError):
            inside.run_transaction(work)

    execute(url, "DROP TABLE sandboxes")
    with pytest.raises(agentdb.SchemaMismatchError):
        db.run_transaction(work)
    db.run_transaction(outer)

    assert db.get_session("s1") is None
    assert db.get_agent("support-bot") is not None


def test_an_unreadable_row_is_an_answer_that_fn_may_handle(
    db: DjangoDb, url: str, engine: str
) -> None:
    make_session(db)
    unreadable = "created_at = 'infinity'"
    if engine == "sqlite":
        unreadable = "sandbox_id = CAST(x'ff' AS TEXT)"
    execute(url, f"UPDATE sessions SET {unreadable}")

    def work(inside: Db) -> None:
        with pytest.raises(agentdb.SchemaMismatchError):
            inside.get_session("s1")
        make_session(inside, "s2")

    db.run_transaction(work)

    assert db.get_session("s2") is not None


# -- functions that are not plain


def test_coroutine_functions_are_refused_before_anything_runs(db: DjangoDb) -> None:
    async def work(inside: Db) -> None:
        make_session(inside)

    with no_sql(db), pytest.raises(InvalidInputError) as raised:
        db.run_transaction(work)  # type: ignore[unused-coroutine]

    assert str(raised.value) == (
        "run_transaction() takes a plain function, not a coroutine or generator, which would run after its end."
    )


def test_functions_that_return_an_awaitable_are_refused_and_undone(
    db: DjangoDb,
) -> None:
    async def later() -> None:
        await asyncio.sleep(0)

    def work(inside: Db) -> Any:
        make_session(inside)
        return later()

    with pytest.raises(InvalidInputError, match="takes a plain function"):
        db.run_transaction(work)
    assert db.get_session("s1") is None


def test_generator_functions_are_refused_before_anything_runs(db: DjangoDb) -> None:
    def work(inside: Db) -> Iterator[None]:
        make_session(inside)
        yield

    async def async_work(inside: Db) -> AsyncIterator[None]:
        make_session(inside)
        yield

    refused: list[Any] = [work, async_work, lambda inside: work(inside)]
    for fn in refused:
        with pytest.raises(InvalidInputError) as raised:
            db.run_transaction(fn)

        assert str(raised.value) == (
            "run_transaction() takes a plain function, not a coroutine or generator, which would run after its end."
        )


def test_an_alias_without_autocommit_is_refused(
    db: DjangoDb, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(connections[db.alias].settings_dict, "AUTOCOMMIT", False)

    with pytest.raises(AgentDbError, match="has AUTOCOMMIT = False"):
        DjangoDb(db.alias).get_session("s1")


@pytest.mark.parametrize("host", [False, True])
def test_a_failed_call_of_an_inner_transaction_is_undone_with_it_alone(
    db: DjangoDb, url: str, host: bool
) -> None:
    execute(url, "ALTER TABLE sandboxes RENAME TO hidden")

    def inner(inside: Db) -> None:
        make_session(inside, "inner")
        inside.count_sandboxes()

    def outer(inside: Db) -> str:
        make_session(inside, "before")
        with pytest.raises(agentdb.SchemaMismatchError):
            inside.run_transaction(inner)
        make_session(inside, "after")
        return "stored"

    if host:
        with transaction.atomic(using=db.alias):
            assert db.run_transaction(outer) == "stored"
    else:
        assert db.run_transaction(outer) == "stored"

    assert {session.id for session in db.list_sessions()} == {"before", "after"}


def test_an_insert_in_a_transaction_needs_no_savepoint_on_postgresql(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, _ = postgres_db

    with CaptureQueriesContext(connections[db.alias]) as seen:
        db.run_transaction(make_session)

    assert [query["sql"].partition(" ")[0] for query in seen.captured_queries] == [
        "INSERT"
    ]


# -- a transaction of the host around it


def test_calls_join_a_transaction_of_the_host(db: DjangoDb) -> None:
    with pytest.raises(Stop), transaction.atomic(using=db.alias):
        make_session(db)
        db.run_transaction(lambda inside: make_session(inside, "s2"))
        db.delete_agent("a")
        raise Stop

    assert db.list_sessions() == []
    with transaction.atomic(using=db.alias):
        make_session(db)
    assert db.get_session("s1") is not None


def test_a_savepoint_that_was_half_entered_leaves_the_host_its_own_blocks(
    db: DjangoDb,
) -> None:
    class HalfWay(list[Any]):
        def append(self, item: object) -> None:
            super().append(item)
            raise Stop

    wrapper = connections[db.alias]
    with transaction.atomic(using=db.alias):
        wrapper.savepoint_ids = HalfWay()
        with pytest.raises(Stop):
            db.run_transaction(make_session)

    assert not wrapper.in_atomic_block
    make_session(db, "s2")
    assert [session.id for session in db.list_sessions()] == ["s2"]


def test_a_unique_index_of_an_operators_own_is_not_said_to_be_a_taken_id(
    db: DjangoDb, url: str
) -> None:
    execute(url, "CREATE UNIQUE INDEX one_each ON sessions (sandbox_id)")
    db.insert_session("s1", "a", "sb")

    for insert in (
        lambda: db.insert_session("s2", "a", "sb"),
        lambda: db.run_transaction(lambda tx: tx.insert_session("s2", "a", "sb")),
    ):
        with pytest.raises(
            DuplicateKeyError, match=r"^The key is taken in .*: .*(one_each|sandbox_id)"
        ):
            insert()
    assert db.list_sessions() == [db.get_session("s1")]


@pytest.mark.parametrize("engine", ["sqlite", "postgresql"])
def test_a_row_that_a_trigger_skips_is_not_said_to_be_there(
    db: DjangoDb, url: str, engine: str
) -> None:
    db.insert_session("s1", "a", "sb")
    if engine == "postgresql":
        execute(
            url,
            "CREATE FUNCTION skip() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN RETURN NULL; END $$",
        )
    for table in ("sessions", "agents"):
        skip = "EXECUTE FUNCTION skip()"
        if engine == "sqlite":
            skip = "BEGIN SELECT RAISE(IGNORE); END"
        execute(
            url,
            f"CREATE TRIGGER skip_{table} BEFORE INSERT ON {table} FOR EACH ROW {skip}",
        )
    view = db.for_tenant("acme")

    for table, call in (
        ("sessions", lambda: db.insert_session("s2", "a", "sb")),
        ("sessions", lambda: view.insert_session("s2", "a", "sb")),
        ("agents", lambda: db.upsert_agent("a", "/a")),
    ):
        with pytest.raises(
            SchemaMismatchError,
            match=f"table '{table}' took no row; a trigger may have skipped it",
        ):
            call()
    # A key that is taken is told all the same, another tenant's too.
    for other in (db, view):
        with pytest.raises(DuplicateKeyError):
            other.insert_session("s1", "a", "sb")
    assert db.get_session("s2") is None


def test_an_insert_whose_rival_is_deleted_before_it_is_found_is_made(
    db: DjangoDb, url: str
) -> None:
    """Nothing is wrong with the schema then, as after a trigger that skips a row."""
    db.insert_session("s1", "a", "sb")
    rivals = ["s1"]

    def watch(run: Any, sql: str, *arguments: Any) -> Any:
        if rivals and sql.startswith("SELECT COUNT"):
            execute(url, f"DELETE FROM sessions WHERE id = '{rivals.pop()}'")
        return run(sql, *arguments)

    with connections[db.alias].execute_wrapper(watch):
        made = db.insert_session("s1", "b", "sb")

    assert not rivals
    assert made.agent_name == "b"
    assert db.list_sessions() == [made]


def test_a_duplicate_leaves_the_hosts_transaction_usable(db: DjangoDb) -> None:
    make_session(db)

    with transaction.atomic(using=db.alias):
        with pytest.raises(DuplicateKeyError):
            make_session(db)
        make_session(db, "s2")

    assert db.get_session("s2") is not None


def test_a_failed_call_ends_the_hosts_transaction_and_the_next_one_is_fresh(
    db: DjangoDb, url: str
) -> None:
    execute(url, "DROP TABLE sandboxes")

    with transaction.atomic(using=db.alias):
        make_session(db)
        for _ in range(2):
            with pytest.raises(agentdb.SchemaMismatchError):
                db.count_sandboxes()

    assert db.get_session("s1") is None
    with transaction.atomic(using=db.alias):
        make_session(db)
    assert db.get_session("s1") is not None


def test_a_transaction_that_the_host_has_broken_says_so_and_not_what_failed_before(
    db: DjangoDb, url: str
) -> None:
    execute(url, "DROP TABLE sandboxes")
    with transaction.atomic(using=db.alias), pytest.raises(agentdb.SchemaMismatchError):
        db.count_sandboxes()

    with transaction.atomic(using=db.alias):
        transaction.set_rollback(True, using=db.alias)
        with pytest.raises(AgentDbError) as raised:
            db.get_session("s1")

    assert (
        str(raised.value)
        == "The transaction has already failed; it can only be rolled back."
    )


# -- conflicts

_CONFLICT = """
CREATE SEQUENCE tries;
CREATE FUNCTION in_the_way() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN
    IF nextval('tries') <= {times} THEN RAISE 'try again' USING ERRCODE = '{state}'; END IF;
    RETURN NEW;
END $$;
CREATE {kind} TRIGGER in_the_way {when} INSERT OR UPDATE ON sessions {deferred}
    FOR EACH ROW EXECUTE FUNCTION in_the_way();
"""
# Sequences are outside transactions: they count the tries that were undone, too.


def _conflicts(
    url: str, times: int, *, state: str = "40001", at_commit: bool = False
) -> None:
    execute(
        url,
        _CONFLICT.format(
            times=times,
            state=state,
            kind="CONSTRAINT" if at_commit else "",
            when="AFTER" if at_commit else "BEFORE",
            deferred="DEFERRABLE INITIALLY DEFERRED" if at_commit else "",
        ),
    )


@pytest.mark.parametrize("state", ["40001", "40P01"])
@pytest.mark.parametrize("at_commit", [False, True])
def test_postgresql_conflict_is_tried_again_as_a_whole(
    postgres_db: tuple[DjangoDb, str], state: str, at_commit: bool
) -> None:
    db, url = postgres_db
    _conflicts(url, 3, state=state, at_commit=at_commit)
    calls = []

    def work(inside: Db) -> str:
        calls.append(1)
        make_agent(inside)
        make_session(inside)
        return "done"

    assert db.run_transaction(work) == "done"

    assert len(calls) == 4
    assert [agent.version for agent in db.list_agents()] == [1]
    assert len(db.list_sessions()) == 1


@pytest.mark.parametrize("at_commit", [False, True])
def test_postgresql_conflict_of_a_single_call_is_tried_again(
    postgres_db: tuple[DjangoDb, str], at_commit: bool
) -> None:
    db, url = postgres_db
    make_session(db)
    _conflicts(url, 3, at_commit=at_commit)

    assert db.touch_session("s1") is True
    assert make_session(db, "s2") == db.get_session("s2")


def test_postgresql_conflict_that_stays_is_a_conflict_error_and_leaves_nothing(
    postgres_db: tuple[DjangoDb, str], waits: list[float]
) -> None:
    db, url = postgres_db
    _conflicts(url, 10**6)
    calls = []

    def work(inside: Db) -> None:
        calls.append(1)
        make_agent(inside)
        make_session(inside)

    with pytest.raises(ConflictError) as raised:
        db.run_transaction(work)

    assert (
        str(raised.value)
        == f"Other writers of {db.describe()} were in the way: try again."
    )
    assert getattr(raised.value.__cause__, "sqlstate", None) == "40001"
    assert len(calls) == 16
    assert db.list_agents() == []
    # As the docs say: 15 retries in about five seconds, at growing intervals.
    assert len(waits) == 15
    assert waits == sorted(waits)
    assert waits[0] < 0.01
    assert 4 < sum(waits) < 6

    of_transaction = waits.copy()
    waits.clear()
    with pytest.raises(ConflictError):
        make_session(db)

    assert waits == of_transaction


def test_postgresql_conflict_that_fn_swallows_is_tried_again_all_the_same(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, url = postgres_db
    _conflicts(url, 2)

    def work(inside: Db) -> str:
        make_agent(inside)
        try:
            make_session(inside)
        except ConflictError as error:
            with pytest.raises(ConflictError) as raised:
                inside.list_agents()
            assert raised.value is error
            return "gave up"
        return "done"

    assert db.run_transaction(work) == "done"
    assert (len(db.list_agents()), len(db.list_sessions())) == (1, 1)


@pytest.mark.parametrize(
    "wrapped",
    [Stop, lambda: ExceptionGroup("of tasks", [Stop()])],
    ids=["its own", "a group"],
)
def test_postgresql_conflict_that_fn_turns_into_another_error_is_tried_again(
    postgres_db: tuple[DjangoDb, str], wrapped: Callable[[], Exception]
) -> None:
    db, url = postgres_db
    _conflicts(url, 2)
    calls = []

    def work(inside: Db) -> None:
        calls.append(1)
        try:
            make_session(inside)
        except ConflictError as error:
            raise wrapped() from error

    db.run_transaction(work)
    assert (len(calls), len(db.list_sessions())) == (3, 1)


def test_postgresql_conflict_in_a_nested_transaction_tries_the_outermost_again(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, url = postgres_db
    _conflicts(url, 2)
    calls = []

    def work(inside: Db) -> None:
        calls.append(1)
        make_agent(inside)
        inside.run_transaction(make_session)

    db.run_transaction(work)

    assert len(calls) == 3
    assert (len(db.list_agents()), len(db.list_sessions())) == (1, 1)


def test_postgresql_conflict_in_a_hosts_transaction_is_the_hosts_to_try_again(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, url = postgres_db
    _conflicts(url, 1)

    with pytest.raises(ConflictError), transaction.atomic(using=db.alias):
        db.run_transaction(make_session)

    assert make_session(db) == db.get_session("s1")


def test_postgresql_conflict_of_a_decorated_function_of_the_host_is_over_at_its_next_call(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, url = postgres_db
    _conflicts(url, 1)

    def undone(inside: Db) -> None:
        make_session(inside, "s2")
        raise Stop

    @transaction.atomic(using=db.alias)
    def of_the_host() -> None:
        make_session(db)
        with pytest.raises(Stop):
            db.run_transaction(undone)
        make_session(db, "s3")

    with pytest.raises(ConflictError):
        of_the_host()
    of_the_host()

    assert {session.id for session in db.list_sessions()} == {"s1", "s3"}


def test_postgresql_write_skew_of_two_threads_is_resolved(
    make_postgres_database: Callable[..., str],
) -> None:
    url = make_postgres_database()
    agentdb.connect(url, migrate=True).close()
    serializable = url + "&options=-c%20default_transaction_isolation%3Dserializable"
    if "?" not in url:
        serializable = (
            url + "?options=-c%20default_transaction_isolation%3Dserializable"
        )
    meet = threading.Barrier(2)
    calls: list[str] = []

    def at_most_one(db: DjangoDb, id: str) -> bool:
        """Insert a session if there is none: two of these at once must not both do it."""
        first = True

        def work(inside: Db) -> bool:
            nonlocal first
            calls.append(id)
            free = not inside.list_sessions()
            if first:
                first = False
                meet.wait()
            if free:
                make_session(inside, id)
            return free

        return db.run_transaction(work)

    with agentdb.connect(serializable) as db, ThreadPoolExecutor(2) as threads:
        done = sorted(threads.map(lambda id: at_most_one(db, id), ["s1", "s2"]))
        assert len(db.list_sessions()) == 1

    assert done == [False, True]
    assert len(calls) == 3


def test_postgresql_deadlock_of_two_threads_is_resolved(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, _ = postgres_db
    make_session(db, "s1")
    make_session(db, "s2")
    meet = threading.Barrier(2)

    def work(order: tuple[str, str]) -> None:
        met = False

        def crosswise(inside: Db) -> None:
            nonlocal met
            inside.touch_session(order[0])
            if not met:
                met = True
                meet.wait()
            inside.update_session_runner(order[1], "r1")

        db.run_transaction(crosswise)

    with ThreadPoolExecutor(2) as threads:
        list(threads.map(work, [("s1", "s2"), ("s2", "s1")]))

    assert len(db.list_sessions_by_runner("r1")) == 2


def test_read_then_write_transactions_of_many_threads_wait_for_each_other_on_sqlite(
    tmp_path: Any,
) -> None:
    url = f"sqlite:///{tmp_path}/one.sqlite3"

    def count_up(db: DjangoDb) -> None:
        def work(inside: Db) -> None:
            session = inside.get_session("counter")
            assert session is not None
            inside.update_session_sandbox("counter", str(int(session.sandbox_id) + 1))

        for _ in range(20):
            db.run_transaction(work)

    with agentdb.connect(url, migrate=True) as db, ThreadPoolExecutor(8) as threads:
        make_session(db, "counter", sandbox_id="0")
        for future in [threads.submit(count_up, db) for _ in range(8)]:
            future.result()
        session = db.get_session("counter")

    assert session is not None
    assert session.sandbox_id == "160"


def test_sqlite_lock_that_outlasts_the_time_out_is_a_conflict_error(
    tmp_path: Any,
) -> None:
    url = f"sqlite:///{tmp_path}/one.sqlite3?timeout=0.05"
    with agentdb.connect(url, migrate=True) as db:
        make_session(db)
        with closing(sqlite3.connect(sqlite_path(url), isolation_level=None)) as other:
            other.execute("BEGIN IMMEDIATE")
            for call in (
                lambda: db.touch_session("s1"),
                lambda: db.run_transaction(lambda inside: None),
            ):
                with pytest.raises(ConflictError) as raised:
                    call()
                assert str(raised.value) == (
                    "Another connection, of this process or another, "
                    f"holds {db.describe()} locked: database is locked."
                )
            assert db.get_session("s1") is not None
            other.execute("ROLLBACK")

        assert db.touch_session("s1") is True


def test_close_inside_a_transaction_undoes_it(db: DjangoDb, url: str) -> None:
    def work(inside: Db) -> None:
        make_session(inside)
        inside.close()

    with pytest.raises(agentdb.DatabaseClosedError):
        db.run_transaction(work)

    assert execute(url, "SELECT count(*) FROM sessions") == [(0,)]
    db.close()
    assert db.alias not in connections.settings


def test_commit_that_the_server_refuses_is_no_success(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, url = postgres_db
    _conflicts(url, 10**6, state="P0001", at_commit=True)

    with pytest.raises(
        AgentDbError, match=r"refused the statement: try again\.$"
    ) as raised:
        db.run_transaction(make_session)

    assert type(raised.value) is AgentDbError
    assert db.get_session("s1") is None


@pytest.mark.parametrize("engine", ["postgresql"])
def test_an_agent_and_its_sessions_are_deleted_by_one_statement(db: DjangoDb) -> None:
    name = make_agent(db).name
    make_session(db, agent_name=name)

    with CaptureQueriesContext(connections[db.alias]) as seen:
        assert db.delete_agent(name)

    assert len(seen.captured_queries) == 1
    assert (db.get_agent(name), db.list_sessions()) == (None, [])


def test_what_a_host_does_on_commit_is_done_once_it_is_stored(db: DjangoDb) -> None:
    found: list[object] = []

    def work(inside: Db) -> None:
        # As in Django's own atomic().
        assert not transaction.get_autocommit(db.alias)
        make_session(inside)
        transaction.on_commit(
            lambda: found.append(
                (connections[db.alias].in_atomic_block, db.get_session("s1"))
            ),
            db.alias,
        )

    db.run_transaction(work)

    assert found == [(False, db.get_session("s1"))]


def test_what_a_host_does_on_commit_is_forgotten_with_a_transaction_that_fails(
    db: DjangoDb,
) -> None:
    done: list[str] = []

    def work(inside: Db) -> None:
        transaction.on_commit(lambda: done.append("failed"), db.alias)
        raise Stop

    with pytest.raises(Stop):
        db.run_transaction(work)
    db.run_transaction(make_session)

    assert done == []


def test_what_a_host_does_on_commit_waits_for_the_outermost_transaction(
    db: DjangoDb,
) -> None:
    done: list[str] = []

    def work(outer: Db) -> None:
        outer.run_transaction(
            lambda inner: transaction.on_commit(lambda: done.append("done"), db.alias)
        )
        assert done == []

    db.run_transaction(work)

    assert done == ["done"]


def test_what_a_host_does_on_commit_is_outside_the_transaction(db: DjangoDb) -> None:
    def work(inside: Db) -> None:
        transaction.on_commit(lambda: make_session(inside), db.alias)

    with pytest.raises(
        agentdb.DatabaseClosedError, match=r"^The transaction has ended\."
    ):
        db.run_transaction(work)

    assert db.list_sessions() == []


def test_an_error_of_what_a_host_does_on_commit_is_the_hosts(db: DjangoDb) -> None:
    def work(inside: Db) -> None:
        make_session(inside)
        transaction.on_commit(
            lambda: connections[db.alias].cursor().execute("SELECT 1 FROM nowhere"),
            db.alias,
        )

    with pytest.raises(django.db.DatabaseError, match="nowhere"):
        db.run_transaction(work)

    assert db.get_session("s1") is not None


def test_a_transaction_leaves_the_hosts_isolation_level_as_it_was(
    postgres_db: tuple[DjangoDb, str],
) -> None:
    db, _ = postgres_db

    def level(_: object = None) -> str:
        with connections[db.alias].cursor() as cursor:
            cursor.execute("SHOW transaction_isolation")
            return str(cursor.fetchone()[0])

    def fail(_: object) -> None:
        raise Stop

    before = level()

    assert db.run_transaction(level) == "serializable"
    assert level() == before == "read committed"
    with pytest.raises(Stop):
        db.run_transaction(fail)
    assert level() == before


def test_after_a_reset_the_next_block_of_the_host_is_a_whole_transaction() -> None:
    # In memory the connection stays; Django forgets an old one's blocks as it opens another.
    with agentdb.connect("sqlite://:memory:", migrate=True) as db:
        transaction.atomic(using=db.alias).__enter__()
        transaction.atomic(using=db.alias).__enter__()  # a savepoint
        db._threads.slot().reset()

        with transaction.atomic(using=db.alias):
            make_session(db, "s1")

        assert not connections[db.alias].connection.in_transaction
        assert db.get_session("s1") is not None
