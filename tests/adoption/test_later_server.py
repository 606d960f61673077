"""The newest old server goes on working on an adopted PostgreSQL database, beside agentdb: the gradual way over."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from functools import partial

import pytest

import agentdb
from agentdb import Db, DjangoDb
from tests.helpers.factories import execute
from tests.helpers.later_server import NEWER_COLUMNS, LaterServer
from tests.helpers.legacy_databases import manage, opened

pytestmark = pytest.mark.parametrize(
    "engine", ["postgresql"]
)  # on SQLite its texts and agentdb's would not sort

KEY, SECRET = "ash_plain-key", "the old server's secret"


@pytest.fixture
def url(load_legacy: Callable[[str], str]) -> str:
    """A later server's database with its newest columns and a key of its own, adopted."""
    url = load_legacy("era-d")
    for statement in NEWER_COLUMNS:
        execute(url, statement)
    with LaterServer(url) as old:
        old.insert_api_key(
            "hmac",
            "acme",
            hmac.new(SECRET.encode(), KEY.encode(), "sha256").hexdigest(),
        )
    with opened(url) as connection:
        manage(connection, "baselinedb")
    return url


def test_the_adoption_says_what_db_does_not_show_and_what_the_keys_may_need(
    load_legacy: Callable[[str], str],
) -> None:
    url = load_legacy("era-d")
    for statement in NEWER_COLUMNS:
        execute(url, statement)
    with opened(url) as connection:
        said = manage(connection, "baselinedb")

    assert (
        "Note: agents has additional columns, which stay, and which Db does not show: env, config, active_version_id.\n"
        "Note: sessions has additional columns, which stay, and which Db does not show: parent_session_id, model, "
        "config.\n"
        "Note: A later server with a secret (its ASH_CREDENTIAL_KEY) stores API keys as HMAC-SHA256 of it. If it had "
        "one, set AGENTDB_KEY_SECRET to the same value; authenticate() would reject its keys otherwise.\n"
    ) in said
    assert (
        "other tables, which stay as they are: messages (90 rows), session_events (68 rows)"
        in said
    )


@pytest.fixture
def old(url: str) -> Iterator[LaterServer]:
    with LaterServer(url) as old:
        yield old


@pytest.fixture
def db(url: str) -> Iterator[DjangoDb]:
    with agentdb.connect(url, key_secret=SECRET) as db:
        yield db


def matches(url: str) -> bool:
    with opened(url) as connection:
        return "The schema matches the models" in manage(connection, "verifydb")


def test_each_reads_what_the_other_writes(
    old: LaterServer, db: DjangoDb, url: str
) -> None:
    old.upsert_agent("a1", "new-bot", "/srv/1", "acme")
    deployed = db.upsert_agent("new-bot", "/srv/2", "acme")
    old.upsert_agent("ignored", "new-bot", "/srv/3", "acme")

    agent = db.get_agent("new-bot", "acme")
    assert (
        (agent.id, agent.version, agent.path)
        == (deployed.id, 3, "/srv/3")
        == ("a1", 3, "/srv/3")
    )
    assert old.get_agent("new-bot", "acme")["env"] == '{"A": "1"}'

    old.insert_session("old-1", "new-bot", "sb1", "acme")
    theirs = db.get_session("old-1")
    ours = db.insert_session("ours-1", "new-bot", "sb2", "acme")
    assert theirs.created_at == old.get_session("old-1")["created_at"]
    assert old.get_session("ours-1")["created_at"] == ours.created_at
    assert old.get_session("ours-1")["model"] is None
    assert [session.id for session in db.list_sessions("acme", agent="new-bot")] == [
        "ours-1",
        "old-1",
    ]
    assert old.list_sessions("acme")[:2] == ["ours-1", "old-1"]

    old.update_session("ours-1", "status", "active")
    old.update_session("ours-1", "runner_id", "r1")
    assert [session.id for session in db.list_sessions_by_runner("r1")] == ["ours-1"]
    assert db.bulk_pause_sessions_by_runner("r1") == 1
    assert old.get_session("ours-1")["status"] == "paused"
    db.update_session_status("old-1", "active")
    db.update_session_runner("old-1", "r1")
    old.pause_sessions_of("r1")
    assert db.get_session("old-1").status == "paused"
    old.insert_message("m1", "ours-1", "acme")
    old.touch_session("ours-1")
    assert db.touch_session("ours-1")
    assert matches(url)


def test_sandboxes_age_alike_for_both(old: LaterServer, db: DjangoDb, url: str) -> None:
    execute(url, "DELETE FROM sandboxes")
    old.insert_sandbox("theirs", "bot", "s1", "acme")
    db.insert_sandbox("ours", "bot", "/w", "s2", "acme")
    for id in ("theirs", "ours"):
        old.update_sandbox_state(id, "waiting")
    db.touch_sandbox("theirs")
    later = datetime.now(UTC) + timedelta(minutes=1)

    assert [sandbox.id for sandbox in db.get_idle_sandboxes(later)] == [
        "ours",
        "theirs",
    ]
    assert old.unused_sandboxes("waiting", later) == ["ours", "theirs"]
    assert (
        old.best_eviction_candidate() == db.get_best_eviction_candidate().id == "ours"
    )
    assert db.claim_eviction_candidate().id == "ours"
    assert old.unused_sandboxes("cold", later) == ["ours"]
    old.touch_sandbox("ours")
    assert [sandbox.id for sandbox in db.get_cold_sandboxes(later)] == ["ours"]


def test_its_keys_work_with_its_secret_and_a_new_one_with_it(
    old: LaterServer, db: DjangoDb, url: str
) -> None:
    assert db.authenticate(KEY).id == "hmac"
    with agentdb.connect(url) as without:
        assert without.authenticate(KEY) is None
    plain, issued = db.issue_api_key("acme", "new")
    assert (
        issued.key_hash
        == hmac.new(SECRET.encode(), plain.encode(), "sha256").hexdigest()
    )  # which it looks up


def test_both_work_at_once_and_nothing_is_lost(db: DjangoDb, url: str) -> None:
    def theirs(number: int) -> None:
        with LaterServer(url) as old:
            for turn in range(20):
                id = f"old-{number}-{turn}"
                old.insert_session(id, "busy-bot", f"sb-{id}", "acme")
                old.insert_sandbox(f"sb-{id}", "busy-bot", id, "acme")
                old.update_session(id, "status", "active")
                old.touch_session(id)

    def activate(id: str, tx: Db) -> bool:
        return tx.update_session_status(id, "active") and tx.touch_session(id)

    def ours(number: int) -> None:
        for turn in range(20):
            id = f"new-{number}-{turn}"
            db.insert_session(id, "busy-bot", f"sb-{id}", "acme")
            db.insert_sandbox(f"sb-{id}", "busy-bot", "/w", id, "acme")
            db.run_transaction(partial(activate, id))
            db.upsert_agent("busy-bot", f"/srv/{id}", "acme")

    with ThreadPoolExecutor(4) as pool:
        list(
            pool.map(
                lambda work: work[0](work[1]),
                [(theirs, 1), (ours, 1), (theirs, 2), (ours, 2)],
            )
        )

    sessions = db.list_sessions("acme", agent="busy-bot")
    assert (len(sessions), {session.status for session in sessions}) == (80, {"active"})
    assert db.get_agent("busy-bot", "acme").version == 40
    assert matches(url)


def test_deleting_and_pruning_leave_its_other_tables_as_they_are(
    old: LaterServer, db: DjangoDb, url: str
) -> None:
    old.upsert_agent("a1", "new-bot", "/srv/1", "acme")
    old.insert_session("old-1", "new-bot", "sb1", "acme")
    old.insert_message("m1", "old-1", "acme")
    old.update_session("old-1", "status", "ended")
    before = execute(url, "SELECT count(*) FROM messages")

    assert (
        db.for_tenant("acme").prune_sessions(
            datetime.now(UTC) + timedelta(minutes=1), 1000
        )
        > 0
    )
    assert execute(url, "SELECT count(*) FROM messages") == before
    old.insert_session("old-2", "new-bot", "sb1", "acme")
    old.delete_agent("new-bot", "acme")
    assert (db.get_agent("new-bot", "acme"), db.get_session("old-2")) == (None, None)
