"""Django's atomic(), cut off by an exception from a signal handler: agentdb acknowledges nothing that is lost."""

from __future__ import annotations

import gc
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

import django.db
import pytest
from django.db import connections, transaction

import agentdb
from agentdb import AgentDbError, Db, DjangoDb
from agentdb.models import Session
from agentdb.serving.opening import temporary_alias

_BACKENDS = ("base", "sqlite3", "postgresql")
_FILES = [("db", "transaction.py"), *((each, "base.py") for each in _BACKENDS)]
# A lock that is cut off stays locked in a trace, and not after a signal, which Python handles elsewhere.
_HAS_A_LOCK = "allow_thread_sharing"


class Interrupt(BaseException):
    """As a signal handler raises."""


@contextmanager
def interrupted_at(step: int) -> Iterator[list[str]]:
    """Raise before that line, of all that the body runs in the files that atomic() consists of, and yield the lines."""
    lines: list[str] = []

    def trace(frame: FrameType, event: str, _: object) -> Any:
        code = frame.f_code
        if event == "call":
            is_one = Path(code.co_filename).parts[-2:] in _FILES
            return trace if is_one and code.co_name != _HAS_A_LOCK else None
        if event == "line":
            lines.append(f"{code.co_name}:{frame.f_lineno}")
            if len(lines) == step:
                sys.settrace(None)
                raise Interrupt
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        yield lines
    finally:
        sys.settrace(before)


class Host:
    """A Django project that uses one alias; it notes what was acknowledged."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.db = DjangoDb(alias)
        self.acknowledged: list[str] = []
        self._number = 0

    def insert(self, db: Db | None = None) -> None:
        self._number += 1
        (db or self.db).insert_session(f"s{self._number}", "a", "sb")

    def plain(self) -> None:
        self.insert()

    def in_transaction(self) -> None:
        self.db.run_transaction(self.insert)

    def in_atomic(self) -> None:
        with transaction.atomic(using=self.alias):
            self.insert()

    def nested(self) -> None:
        with transaction.atomic(using=self.alias):
            self.insert()
            with transaction.atomic(using=self.alias):
                self.insert()

    def acknowledge(self, call: Callable[[], None]) -> None:
        """Note the row if the call returns; after an error reconnect as its message says, and then it must return."""
        try:
            call()
            is_refused = False
        except (AgentDbError, django.db.Error):
            is_refused = True
        if is_refused:
            # A cursor that lives, as one may after a trace, keeps SQLite's lock although the connection is closed.
            gc.collect(1)
            connections[self.alias].close()
            connections[self.alias].connect()
            call()
        self.acknowledged.append(f"s{self._number}")


def lost(url: str, host: Host) -> set[str]:
    with agentdb.connect(url) as fresh:
        stored = {session.id for session in fresh.list_sessions()}
    assert host.acknowledged
    return set(host.acknowledged) - stored


@pytest.fixture
def host(url: str) -> Iterator[Host]:
    with temporary_alias(url) as alias:
        yield Host(alias)


@pytest.mark.parametrize(
    ("first", "while_handled"),
    [("plain", True), ("in_transaction", False), ("in_atomic", False)],
)
def test_a_call_after_an_atomic_that_was_cut_off_at_any_line_is_stored_or_raises(
    host: Host, url: str, first: str, while_handled: bool
) -> None:
    call = getattr(host, first)
    host.plain()
    step = 0
    while True:
        step += 1
        try:
            with interrupted_at(step) as lines:
                host.nested()
        except (Interrupt, django.db.Error):
            if while_handled:
                host.acknowledge(call)
        if len(lines) < step:
            break
        if not while_handled:
            host.acknowledge(call)
        host.acknowledge(host.in_atomic)
        host.acknowledge(host.plain)

    assert step > 60
    assert lost(url, host) == set()


@contextmanager
def cut_off_at_its_end(alias: str) -> Iterator[None]:
    """Django's atomic() around the body, interrupted in the first step of its end."""

    def interrupted(*_: object) -> None:
        raise Interrupt

    with (
        pytest.MonkeyPatch.context() as patch,
        suppress(Interrupt),
        transaction.atomic(using=alias),
    ):
        yield
        patch.setattr(transaction, "get_connection", interrupted)


def test_an_inner_atomic_that_was_cut_off_fails_the_outer_one(
    host: Host, url: str
) -> None:
    with (
        pytest.raises(AgentDbError) as raised,
        transaction.atomic(using=host.alias),
    ):
        host.plain()
        with cut_off_at_its_end(host.alias):
            host.plain()
        # From here on Django would end a savepoint in place of the transaction.
        host.plain()

    assert str(raised.value) == (
        "An exception from a signal handler cut off an atomic() in this transaction, and Django will not commit it. "
        "It can only be rolled back: let this error leave the outermost atomic()."
    )
    assert host.db.list_sessions() == []
    host.acknowledged.append(host.db.insert_session("s9", "a", "sb").id)
    assert lost(url, host) == set()


@pytest.mark.parametrize("first", ["plain", "in_transaction"])
def test_a_call_says_that_it_has_rolled_back_a_transaction_that_nobody_can_end(
    host: Host, first: str
) -> None:
    sessions = Session.objects.using(host.alias)
    transaction.atomic(using=host.alias).__enter__()
    sessions.create(id="host", agent_name="a", sandbox_id="sb")

    with pytest.raises(AgentDbError) as raised:
        getattr(host, first)()

    assert str(raised.value) == (
        "An exception from a signal handler cut off an atomic(), and nothing was left to end its transaction, which is "
        "rolled back now. This call did nothing; the next one works."
    )
    assert not sessions.exists()
    host.db.insert_session("next", "a", "sb")
    assert sessions.get().id == "next"


def test_a_function_in_atomic_may_be_called_again_while_its_error_is_handled(
    host: Host, url: str
) -> None:
    def fail() -> None:
        raise ValueError

    @transaction.atomic(using=host.alias)
    def insert(then: Callable[[], None]) -> None:
        transaction.on_commit(then, using=host.alias)
        host.plain()

    try:
        insert(fail)
    except ValueError:
        insert(lambda: host.acknowledged.extend(["s1", "s2"]))

    assert lost(url, host) == set()


def test_autocommit_that_a_host_has_switched_off_is_refused_and_its_work_kept(
    host: Host, url: str
) -> None:
    refusal = (
        f"The connection of the database alias '{host.alias}' has autocommit off, and nothing would commit this call: "
        "an exception from a signal handler in atomic() leaves it so, or set_autocommit(False). Outside of atomic() "
        f"call connections['{host.alias}'].close() and then connect(), which switches it on."
    )
    host.plain()
    transaction.set_autocommit(False, using=host.alias)
    with connections[host.alias].cursor() as cursor:
        cursor.execute("UPDATE sessions SET agent_name = 'host'")

    for call in (host.plain, host.in_transaction, host.in_atomic):
        with pytest.raises(AgentDbError) as raised:
            call()
        assert str(raised.value) == refusal
    assert host.db.health().reason == refusal

    transaction.commit(using=host.alias)
    transaction.set_autocommit(True, using=host.alias)
    assert [each.agent_name for each in host.db.list_sessions()] == ["host"]


def test_what_was_to_be_done_on_commit_is_forgotten_with_an_atomic_that_was_cut_off() -> (
    None
):
    done: list[str] = []
    with agentdb.connect("sqlite://:memory:", migrate=True) as db:
        with cut_off_at_its_end(db.alias):
            transaction.on_commit(lambda: done.append("hook"), using=db.alias)
            db.insert_session("s1", "a", "sb")

        with pytest.raises(AgentDbError, match="^An exception from a signal handler"):
            db.run_transaction(lambda tx: tx.list_sessions())
        db.run_transaction(lambda tx: tx.insert_session("s2", "a", "sb"))

        assert [session.id for session in db.list_sessions()] == ["s2"]
    assert done == []
