"""A view of one tenant: every call, by id included, sees and changes that tenant's rows only."""

from __future__ import annotations

import asyncio
import inspect
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

import agentdb
from agentdb import (
    DatabaseClosedError,
    Db,
    DjangoDb,
    DuplicateKeyError,
    InvalidInputError,
)
from agentdb.serving import queries
from tests.helpers.factories import (
    execute,
    instant,
    make_agent,
    make_api_key,
    make_sandbox,
    make_session,
    set_column,
)

FUTURE = instant(10**9)

# What a call on the view of "acme" with the ids of "other" must answer: as if there were no such row.
ANSWERS: dict[str, tuple[Callable[[Any], object], object]] = {
    "get_agent": (lambda db: db.get_agent("theirs"), None),
    "list_agents": (lambda db: db.list_agents(), []),
    "delete_agent": (lambda db: db.delete_agent("theirs"), False),
    "update_session_status": (
        lambda db: db.update_session_status("theirs", "ended"),
        False,
    ),
    "update_session_sandbox": (
        lambda db: db.update_session_sandbox("theirs", "sb"),
        False,
    ),
    "update_session_runner": (
        lambda db: db.update_session_runner("theirs", None),
        False,
    ),
    "get_session": (lambda db: db.get_session("theirs"), None),
    "list_sessions": (lambda db: db.list_sessions(), []),
    "count_sessions": (lambda db: db.count_sessions(), 0),
    "claim_session": (lambda db: db.claim_session("theirs", "r"), None),
    "get_silent_sessions": (lambda db: db.get_silent_sessions(FUTURE), []),
    "list_sessions_by_runner": (lambda db: db.list_sessions_by_runner("r"), []),
    "touch_session": (lambda db: db.touch_session("theirs"), False),
    "touch_sessions": (lambda db: db.touch_sessions(["theirs"]), []),
    "delete_session": (lambda db: db.delete_session("theirs"), False),
    "update_sandbox_state": (
        lambda db: db.update_sandbox_state("theirs", "warm"),
        False,
    ),
    "update_sandbox_session": (
        lambda db: db.update_sandbox_session("theirs", None),
        False,
    ),
    "touch_sandbox": (lambda db: db.touch_sandbox("theirs"), False),
    "touch_sandboxes": (lambda db: db.touch_sandboxes(["theirs"]), []),
    "list_sandboxes": (lambda db: db.list_sandboxes(), []),
    "list_sandboxes_by_runner": (lambda db: db.list_sandboxes_by_runner("r"), []),
    "claim_warm_sandbox": (lambda db: db.claim_warm_sandbox("support-bot", "s"), None),
    "get_sandbox": (lambda db: db.get_sandbox("theirs"), None),
    "count_sandboxes": (lambda db: db.count_sandboxes(), 0),
    "get_best_eviction_candidate": (lambda db: db.get_best_eviction_candidate(), None),
    "claim_eviction_candidate": (lambda db: db.claim_eviction_candidate(), None),
    "get_idle_sandboxes": (lambda db: db.get_idle_sandboxes(FUTURE), []),
    "get_cold_sandboxes": (lambda db: db.get_cold_sandboxes(FUTURE), []),
    "delete_sandbox": (lambda db: db.delete_sandbox("theirs"), False),
    "mark_all_sandboxes_cold": (lambda db: db.mark_all_sandboxes_cold(), 0),
    "mark_sandboxes_cold_by_runner": (
        lambda db: db.mark_sandboxes_cold_by_runner("r"),
        0,
    ),
    "bulk_pause_sessions_by_runner": (
        lambda db: db.bulk_pause_sessions_by_runner("r"),
        0,
    ),
    "bulk_pause_active_sessions": (lambda db: db.bulk_pause_active_sessions(), 0),
    "get_api_key_by_hash": (lambda db: db.get_api_key_by_hash("theirs"), None),
    "list_api_keys_by_tenant": (lambda db: db.list_api_keys_by_tenant("acme"), []),
    "delete_api_key": (lambda db: db.delete_api_key("theirs"), False),
    "authenticate": (lambda db: db.authenticate("agentdb_theirs"), None),
    "prune_sessions": (lambda db: db.prune_sessions(FUTURE, 10), 0),
    "run_transaction": (
        lambda db: db.run_transaction(lambda inside: inside.get_session("theirs")),
        None,
    ),
}
INSERTS: dict[str, Callable[[Any], object]] = {
    "insert_session": lambda db: db.insert_session("theirs", "a", "sb"),
    "insert_sandbox": lambda db: db.insert_sandbox("theirs", "a", "/"),
    "insert_api_key": lambda db: db.insert_api_key("theirs", "acme", "a hash", ""),
}
OWN = {
    "upsert_agent",
    "issue_api_key",
    "for_tenant",
    "health",
    "close",
}  # each has a test of its own


def test_every_method_of_db_is_looked_at_here() -> None:
    assert {*ANSWERS, *INSERTS, *OWN} == {
        name for name in vars(Db) if not name.startswith("_")
    }


def _their_rows(
    db: DjangoDb, url: str, status: str = "active", state: str = "cold"
) -> None:
    make_agent(db, "theirs", tenant_id="other")
    make_session(db, "theirs", tenant_id="other")
    make_sandbox(db, "theirs", tenant_id="other")
    make_api_key(db, "theirs", "other", "theirs")
    set_column(
        url,
        "sessions",
        "theirs",
        status=status,
        runner_id="r",
        last_active_at=instant(),
    )
    set_column(
        url,
        "sandboxes",
        "theirs",
        state=state,
        session_id="theirs",
        last_used_at=instant(),
    )


def _all_rows(url: str) -> list[object]:
    return [
        sorted(execute(url, f"SELECT * FROM {t}"))
        for t in ("agents", "sessions", "sandboxes", "api_keys")
    ]


@pytest.mark.parametrize(
    ("status", "state"),
    [("active", "warm"), ("ended", "cold"), ("starting", "waiting")],
)
def test_no_call_sees_or_changes_a_row_of_another_tenant(
    db: DjangoDb, url: str, status: str, state: str
) -> None:
    _their_rows(db, url, status, state)
    before, view = _all_rows(url), db.for_tenant("acme")

    for name, (call, answer) in ANSWERS.items():
        assert call(view) == answer, name
        assert _all_rows(url) == before, name


STATES_OF_CALLS = {
    "get_idle_sandboxes": "waiting",
    "mark_all_sandboxes_cold": "waiting",
    "mark_sandboxes_cold_by_runner": "waiting",
    "claim_warm_sandbox": "warm",
}


def test_the_tenant_of_the_rows_gets_other_answers(db: DjangoDb, url: str) -> None:
    """The test above would pass on a view that never finds anything."""
    for name, (call, answer) in ANSWERS.items():
        if name in ("authenticate", "list_api_keys_by_tenant"):
            continue
        execute(url, "DELETE FROM agents")
        for table in ("sessions", "sandboxes", "api_keys"):
            execute(url, f"DELETE FROM {table}")
        _their_rows(
            db,
            url,
            status="ended" if name == "prune_sessions" else "active",
            state=STATES_OF_CALLS.get(name, "cold"),
        )
        if name == "claim_warm_sandbox":
            set_column(url, "sandboxes", "theirs", session_id=None)
        assert call(db.for_tenant("other")) != answer, name


@pytest.mark.parametrize("name", INSERTS)
def test_an_id_that_another_tenant_has_is_taken_and_no_more_is_said(
    db: DjangoDb, url: str, name: str
) -> None:
    _their_rows(db, url)
    before = _all_rows(url)

    with pytest.raises(DuplicateKeyError) as raised:
        INSERTS[name](db.for_tenant("acme"))

    assert "'theirs'" in str(raised.value)
    assert "other" not in str(raised.value)
    assert _all_rows(url) == before


def test_a_call_that_names_another_tenant_is_refused(db: DjangoDb) -> None:
    view = db.for_tenant("acme")
    values: dict[str, Any] = dict.fromkeys(
        ("id", "name", "path", "agent_name", "sandbox_id", "workspace_dir"), "x"
    )
    values |= {"key_hash": "x", "label": "x", "session_id": "x"}
    methods = [name for name in vars(Db) if not name.startswith("_")]
    named = [
        name
        for name in methods
        if "tenant_id" in inspect.signature(getattr(Db, name)).parameters
    ]
    assert len(named) == 14

    for name in sorted(set(named) - {"for_tenant"}):
        signature = inspect.signature(getattr(view, name))
        given = {
            key: values[key]
            for key, p in signature.parameters.items()
            if key in values and p.default is p.empty
        }
        for other in ("other", "default"):
            with pytest.raises(InvalidInputError) as raised:
                getattr(view, name)(**given, tenant_id=other)
            assert (
                str(raised.value)
                == f"This view is of the tenant 'acme'; {other!r} is another."
            )
        getattr(view, name)(**given, tenant_id="acme")


def test_closing_a_view_ends_it_alone(db: DjangoDb) -> None:
    view = db.for_tenant("acme")
    view.close()
    view.close()

    with pytest.raises(agentdb.DatabaseClosedError) as raised:
        view.list_agents()

    assert (
        str(raised.value)
        == "The view of a tenant is closed. Make another one with for_tenant()."
    )
    assert db.list_agents() == []
    assert db.for_tenant("acme").health().ok


def test_an_awaitable_view(url: str) -> None:
    async def work() -> None:
        async with agentdb.connect_async(url) as db:
            view = db.for_tenant("acme")
            await db.insert_session("theirs", "a", "sb")
            assert (await view.insert_session("ours", "a", "sb")).tenant_id == "acme"
            assert [s.id for s in await view.list_sessions()] == ["ours"]
            assert await view.get_session("theirs") is None
            inner = view.for_tenant("acme")
            await inner.close()
            with pytest.raises(DatabaseClosedError):
                await inner.list_sessions()
            assert [s.id for s in await view.list_sessions()] == ["ours"]
            with pytest.raises(InvalidInputError):
                view.for_tenant("other")
            with pytest.raises(InvalidInputError):
                db.for_tenant("")
            await view.close()
            with pytest.raises(agentdb.DatabaseClosedError):
                await view.list_sessions()
            assert len(await db.list_sessions()) == 1

    asyncio.run(work())


def test_every_query_asks_for_rows_through_its_parameters() -> None:
    """Only those can be narrowed; the one exception looks up by id what the rows around it have found."""
    source = inspect.getsource(queries)

    assert [line.strip() for line in source.splitlines() if ".objects" in line] == [
        'same_row = Sandbox.objects.filter(id=OuterRef("id"))'
    ]


# -- claims


def test_each_sandbox_is_claimed_once_while_others_touch_them(
    db: DjangoDb, url: str
) -> None:
    """16 claimers on warm sandboxes: each is handed out once warm, and once more cold."""
    count = 1000
    for number in range(count):
        make_sandbox(db, f"sb{number}")
    execute(url, "UPDATE sandboxes SET state = 'warm'")
    claimed: list[tuple[str, str]] = []
    done = threading.Event()

    def claim() -> None:
        # None while others hold what is left; what is left in the end is claimed below.
        while (sandbox := db.claim_eviction_candidate()) is not None:
            claimed.append((sandbox.id, sandbox.state))

    def touch() -> None:
        number = 0
        while not done.is_set():
            db.touch_sandbox(f"sb{number % count}")
            number += 7

    touchers = [threading.Thread(target=touch) for _ in range(2)]
    claimers = [threading.Thread(target=claim) for _ in range(16)]
    for thread in touchers + claimers:
        thread.start()
    for thread in claimers:
        thread.join()
    done.set()
    for thread in touchers:
        thread.join()
    claim()

    assert sorted(claimed) == sorted(
        (f"sb{number}", state) for number in range(count) for state in ("warm", "cold")
    )
    assert db.count_sandboxes() == 0


# -- pruning


# -- health


def test_health_of_a_database_that_works(
    db: DjangoDb, engine: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    moments = iter([1.0, 1.25])  # of the clock, in seconds
    monkeypatch.setattr(time, "perf_counter", lambda: next(moments))
    health = db.health()
    monkeypatch.undo()

    assert (health.ok, health.engine, health.reason, health.pending_migrations) == (
        True,
        engine,
        "",
        (),
    )
    assert health.server_version[0].isdigit()
    assert health.place == db.describe()
    assert health.round_trip_ms == 250
    assert health.connections == 1


def test_health_of_a_database_with_pending_migrations_is_not_ok(
    db: DjangoDb, url: str
) -> None:
    execute(
        url, "DELETE FROM django_migrations WHERE app = 'agentdb' AND name LIKE '0004%'"
    )

    health = db.health()

    assert (health.ok, health.pending_migrations) == (False, ("0004_fleet_indexes",))
    assert health.reason == (
        f"{db.describe()} lacks the migrations 0004_fleet_indexes. Run 'agentdb migrate'."
    )


def test_health_of_a_server_that_is_gone_is_an_answer(
    make_postgres_database: Callable[[], str],
) -> None:
    url = make_postgres_database()
    with agentdb.connect(url, migrate=True) as db:
        name = urlsplit(url).path[1:]
        other = make_postgres_database()
        execute(other, f"DROP DATABASE {name} WITH (FORCE)")

        health = db.health()

        assert (
            health.ok,
            health.round_trip_ms,
            health.server_version,
            health.connections,
        ) == (False, None, "", 0)
        assert "does not exist" in health.reason


def test_health_of_a_file_that_is_no_database_is_an_answer(tmp_path: Path) -> None:
    path = tmp_path / "agentdb.sqlite3"
    with agentdb.connect(f"sqlite:///{path}", migrate=True) as db:
        db._threads.slot().discard()
        for file in tmp_path.iterdir():
            file.unlink()
        path.write_bytes(b"no database " * 1000)

        health = db.health()

        assert not health.ok
        assert health.reason == (
            f"{str(path)!r} is not a SQLite database, or it is encrypted. Check the database URL."
        )


def test_health_of_a_file_that_was_cut_short_is_not_good(tmp_path: Path) -> None:
    path = tmp_path / "agentdb.sqlite3"
    with agentdb.connect(f"sqlite:///{path}?journal=delete", migrate=True) as db:
        assert db.health().ok
        os.truncate(path, path.stat().st_size - 100)

        health = db.health()

    assert not health.ok
    assert f"The database file {str(path)!r} is damaged: it has" in health.reason


def test_health_beside_a_writer_that_removes_its_journal_is_an_answer(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    url = f"sqlite:///{tmp_path / 'agentdb.sqlite3'}?journal=delete"
    with agentdb.connect(url, migrate=True) as db:
        # It was there a moment ago.
        monkeypatch.setattr(Path, "exists", lambda path: True)
        assert db.health().ok


def test_health_of_a_file_that_was_moved_away_does_not_advise_to_make_another(
    tmp_path: Path,
) -> None:
    path = tmp_path / "agentdb.sqlite3"
    with agentdb.connect(f"sqlite:///{path}", migrate=True) as db:
        path.rename(tmp_path / "moved")

        # The second has no connection.
        for _ in range(2):
            assert db.health().reason.endswith(
                "was removed or moved while it was open. Stop every program that uses it, put the file back, and "
                "start them again."
            )


def test_health_of_a_closed_db_raises(url: str) -> None:
    with agentdb.connect(url) as db:
        pass

    with pytest.raises(agentdb.DatabaseClosedError):
        db.health()
