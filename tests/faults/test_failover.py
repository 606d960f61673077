"""A primary and its standby, made by pg_basebackup: the primary is killed under load and the standby promoted."""

from __future__ import annotations

import asyncio
import io
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg
import pytest
from django.core.management import call_command

import agentdb
from agentdb import DatabaseUnavailableError, DjangoDb
from tests.helpers.factories import make_sandbox, make_session
from tests.helpers.poolers import PgBouncer, version
from tests.helpers.servers import FAST, Server

REPLICATION = {
    **FAST,
    "wal_level": "replica",
    "max_wal_senders": "4",
    "hot_standby": "on",
}
AWAY = 0.3  # seconds between the kill and the promotion


@dataclass
class Pair:
    primary: Server
    standby: Server

    def service(self, path: Path) -> None:
        """Write a service file with the service ``agents``, of both servers."""
        path.write_text(
            "[agents]\nhost=127.0.0.1,127.0.0.1\n"
            f"port={self.primary.port},{self.standby.port}\n"
            "dbname=postgres\nuser=postgres\ntarget_session_attrs=read-write\nconnect_timeout=2\n"
        )

    def replicate(self) -> None:
        """Make the standby, and have each COMMIT wait for it from then on."""
        self.standby.run(
            "pg_basebackup", "-D", str(self.standby.data), "--write-recovery-conf", "--checkpoint=fast", "--no-sync",
            f"--dbname={self.primary.url}",
        )  # fmt: skip
        self.standby.start(**REPLICATION)
        with psycopg.connect(self.primary.url, autocommit=True) as connection:
            connection.execute("ALTER SYSTEM SET synchronous_standby_names = '*'")
            connection.execute("SELECT pg_reload_conf()")
            until(
                lambda: (
                    connection.execute(
                        "SELECT sync_state FROM pg_stat_replication"
                    ).fetchall()
                    == [("sync",)]
                ),
                "the standby is synchronous",
            )

    def promote(self) -> None:
        self.standby.run("pg_ctl", "promote", "--wait", "-D", str(self.standby.data))
        with psycopg.connect(self.standby.url, autocommit=True) as connection:
            connection.execute(
                "ALTER SYSTEM SET synchronous_standby_names = ''"
            )  # or it waits for a standby itself
            connection.execute("SELECT pg_reload_conf()")


def until(condition: Callable[[], bool], what: str) -> None:
    end = time.monotonic() + 180
    while not condition():
        assert time.monotonic() < end, f"three minutes passed before {what}"
        time.sleep(0.05)


@pytest.fixture
def pair() -> Iterator[Pair]:
    with Server() as primary, Server() as standby:
        primary.init()
        primary.start(**REPLICATION)
        yield Pair(primary, standby)


@dataclass
class Caller:
    """Calls one method over and over, and notes what it sees."""

    name: str
    call: Callable[[int], object]
    acknowledged: list[tuple[int, float, float]] = field(default_factory=list)
    errors: Counter[str] = field(default_factory=Counter)

    def run(self, stop: threading.Event) -> None:
        number = 0
        while not stop.is_set():
            number += 1
            began = time.monotonic()
            try:
                self.call(number)
            except DatabaseUnavailableError as error:
                self.errors[type(error).__name__] += 1
                time.sleep(0.02)
            except Exception as error:
                self.errors[f"other: {error!r}"] += 1
                time.sleep(0.02)
            else:
                self.acknowledged.append((number, began, time.monotonic()))

    def outage(self) -> float:
        """The longest time without an answer, in seconds."""
        times = [at for *_, at in self.acknowledged]
        return max(
            after - before for before, after in zip(times, times[1:], strict=False)
        )


class OnALoop:
    """The calls of an ``AsyncDb`` as tasks of one event loop, for callers in threads."""

    def __init__(self, url: str) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever)
        self._thread.start()
        self._db = agentdb.connect_async(url)

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._db, name)
        return lambda *args, **kwargs: asyncio.run_coroutine_threadsafe(
            method(*args, **kwargs), self._loop
        ).result()

    def __enter__(self) -> Any:
        return self

    def __exit__(self, *error: object) -> None:
        asyncio.run_coroutine_threadsafe(self._db.close(), self._loop).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()


def fail_over(
    pair: Pair,
    url: str,
    capsys: pytest.CaptureFixture[str],
    promoted: Callable[[], object] = lambda: None,
    connect: Callable[[str], Any] = agentdb.connect,
) -> None:
    """Kill the primary under callers of each kind and promote the standby: they go on, and nothing is missing."""
    with connect(url) as db:
        make_sandbox(db, "touched")
        make_session(db, "kept")

        def transact(number: int) -> None:
            def both(db: agentdb.Db) -> None:
                make_session(db, f"t{number}")
                make_sandbox(db, f"t{number}")

            db.run_transaction(both)

        callers = [
            Caller("insert_session", lambda number: make_session(db, f"s{number}")),
            Caller("run_transaction", transact),
            Caller(
                "upsert_agent",
                lambda number: db.upsert_agent("contended", f"/{number}"),
            ),
            Caller("touch_sandbox", lambda number: db.touch_sandbox("touched")),
            Caller("get_session", lambda number: db.get_session("kept")),
        ]
        stop = threading.Event()
        threads = [
            threading.Thread(target=caller.run, args=[stop]) for caller in callers
        ]
        for thread in threads:
            thread.start()
        try:
            until(
                lambda: all(len(caller.acknowledged) > 20 for caller in callers),
                "each caller was answered",
            )
            killed_at = time.monotonic()
            pair.primary.kill()
            gone_at = time.monotonic()
            time.sleep(AWAY)
            away_until = time.monotonic()
            pair.promote()
            promoted()
            promoted_at = time.monotonic()
            until(
                lambda: all(
                    sum(at > promoted_at for *_, at in caller.acknowledged) > 20
                    for caller in callers
                ),
                "each caller was answered by the new primary",
            )
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        sessions = {session.id for session in _all_sessions(db)}
        [agent] = db.list_agents()

    with capsys.disabled():
        # The table of the documentation.
        print(f"\nPromoted {promoted_at - killed_at:.1f} s after the kill")  # noqa: T201
        for caller in callers:
            errors = (
                ", ".join(
                    f"{count} {name}" for name, count in sorted(caller.errors.items())
                )
                or "no error"
            )
            row = (
                f"{caller.name:16} {caller.outage():5.1f} s without an answer, {errors}"
            )
            print(row)  # noqa: T201
    assert [
        name for caller in callers for name in caller.errors if name.startswith("other")
    ] == []
    inserted, transacted, upserted, *_ = callers
    assert {f"s{number}" for number, *_ in inserted.acknowledged} - sessions == set()
    assert {f"t{number}" for number, *_ in transacted.acknowledged} - sessions == set()
    assert agent.version >= len(upserted.acknowledged)
    for caller in callers:
        # The server was away, and nobody was told that all was well; a pooler has calls wait.
        told = [
            number
            for number, began, ended in caller.acknowledged
            if gone_at < began and ended < away_until
        ]
        assert told == [], caller.name
        assert caller.outage() < promoted_at - killed_at + 60, caller.name


@pytest.mark.parametrize("connect", [agentdb.connect, OnALoop], ids=["sync", "async"])
def test_callers_go_on_by_themselves_and_no_acknowledged_write_is_missing(
    pair: Pair,
    connect: Callable[[str], Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    pair.service(tmp_path / "services")
    monkeypatch.setenv("PGSERVICEFILE", str(tmp_path / "services"))
    agentdb.connect(pair.primary.url, migrate=True).close()
    pair.replicate()
    fail_over(pair, "postgresql:///?service=agents", capsys, connect=connect)


@pytest.mark.parametrize("mode", ["transaction", "session"])
def test_callers_behind_pgbouncer_go_on_once_it_points_at_the_new_primary(
    pair: Pair, mode: str, capsys: pytest.CaptureFixture[str]
) -> None:
    version()
    agentdb.connect(pair.primary.url, migrate=True).close()
    pair.replicate()
    with PgBouncer(mode, default_pool_size=8, server_login_retry=1) as bouncer:
        bouncer.start(pair.primary)
        fail_over(
            pair,
            bouncer.url + "?prepare=off",
            capsys,
            lambda: bouncer.point_at(pair.standby),
        )


def _all_sessions(db: DjangoDb) -> list[agentdb.SessionRecord]:
    found: list[agentdb.SessionRecord] = []
    while page := db.list_sessions(limit=1000, before=found[-1] if found else None):
        found += page
    return found


def test_a_standby_is_read_and_copied_but_not_written(
    pair: Pair, tmp_path: Path
) -> None:
    with agentdb.connect(pair.primary.url, migrate=True) as db:
        make_session(db, "s1")
    pair.replicate()

    with agentdb.connect(pair.standby.url) as db:
        assert db.get_session("s1") is not None
        with pytest.raises(DatabaseUnavailableError, match="read-only"):
            make_session(db, "s2")
    target = f"sqlite:///{tmp_path}/copy.sqlite3"
    call_command("copydb", pair.standby.url, target, stdout=io.StringIO())
    with agentdb.connect(target) as db:
        assert db.get_session("s1") is not None
