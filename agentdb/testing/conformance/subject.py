"""The base of the contract's tests: the ``Db`` under test, a way around it, and rows to test with."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable, Iterable, Iterator
from datetime import UTC, datetime, timedelta
from typing import Any, ClassVar, Protocol

import pytest

from agentdb.interface import (
    AgentRecord,
    ApiKeyRecord,
    Db,
    SandboxRecord,
    SessionRecord,
)

# In code-point order. A locale puts "a" before "B" and "é" before "z", a case-insensitive comparison takes "a" for "A",
# and UTF-16 (Java, JavaScript) puts the emoji, a surrogate pair, before U+FFEE: each of them fails a test.
IDS = ["10", "9", "B", "Z", "_", "a", "a b", "ab", "é", "\uffee", "😀"]

# Long past: whatever a call writes with the clock of the database under test is later, without sleeping.
START = datetime(
    2026,
    3,
    1,
    12,
    0,
    tzinfo=UTC,
)


class Rewrite(Protocol):
    def __call__(self, table: str, id: str, **columns: object) -> None:
        """Set columns of one row that a ``Db`` cannot set, above all timestamps."""
        ...


class Kind:
    """Sessions or sandboxes, by the calls that are named alike."""

    noun: str
    time: str  # the column of the last sign of life, or use
    state: str  # the column of the status or state
    make: Callable[..., Any]
    get: Callable[[str], Any]
    delete: Callable[[str], bool]
    page: Callable[..., Any]
    touch: Callable[[Any], list[str]]

    def __init__(self, db: Db, rows: Rows, noun: str) -> None:
        self.noun = noun
        plural, self.time, self.state = KINDS[noun]
        self.make = getattr(rows, noun)
        self.get = getattr(db, f"get_{noun}")
        self.delete = getattr(db, f"delete_{noun}")
        self.page = getattr(db, f"list_{plural}")
        self.touch = getattr(db, f"touch_{plural}")

    def times(self) -> dict[str, datetime]:
        """Return by their ids when the rows were last active, or used."""
        return {row.id: getattr(row, self.time) for row in self.page()}


class Rows:
    """Inserts rows with a content and an age that no ``Db`` gives them."""

    def __init__(self, db: Db, request: pytest.FixtureRequest) -> None:
        self._db = db
        self._request = request

    def session(self, id: str = "s1", **columns: object) -> SessionRecord:
        """Insert a session, set these columns of it, and return it as a get does."""
        make_session(self._db, id)
        self._set("sessions", id, columns)
        return session_of(self._db, id)

    def sandbox(self, id: str = "sb1", **columns: object) -> SandboxRecord:
        """Insert a sandbox, set these columns of it, and return it as a get does."""
        make_sandbox(self._db, id)
        self._set("sandboxes", id, columns)
        return sandbox_of(self._db, id)

    def _set(self, table: str, id: str, columns: dict[str, object]) -> None:
        if not columns:
            return
        # Only now, because this skips the test if there is no way around the Db.
        rewrite = self._request.getfixturevalue("rewrite")
        rewrite(table, id, **columns)


KINDS = {
    "session": ("sessions", "last_active_at", "status"),
    "sandbox": ("sandboxes", "last_used_at", "state"),
}


class Subject:
    """The ``Db`` under test: ``factory`` returns an empty ``Db`` or ``AsyncDb``. Or override the fixture ``db``."""

    factory: ClassVar[Callable[[], Any]]

    @pytest.fixture
    def db(self) -> Iterator[Db]:
        """An empty ``Db``; an ``AsyncDb`` is called through :func:`awaited`."""
        # A plain function as the attribute of a class would become a method of the test; take it as it was written.
        factory = inspect.getattr_static(type(self), "factory")
        if isinstance(factory, staticmethod):
            factory = factory.__func__
        made = factory()
        if not inspect.iscoroutinefunction(made.get_session):
            yield made
            made.close()
            return
        with asyncio.Runner() as runner:
            db = awaited(made, runner)
            yield db
            db.close()

    @pytest.fixture
    def rewrite(self) -> Rewrite:
        """A way around the ``Db``; without one, tests that need it are skipped. Override it if you can."""
        pytest.skip(
            "needs a way around the Db: override the fixture 'rewrite' of the contract's tests"
        )

    @pytest.fixture
    def rows(self, db: Db, request: pytest.FixtureRequest) -> Rows:
        """Rows of a given age; a test that sets one is skipped without ``rewrite``."""
        return Rows(db, request)

    @pytest.fixture(params=KINDS)
    def kind(self, db: Db, rows: Rows, request: pytest.FixtureRequest) -> Kind:
        """Sessions, then sandboxes, for what is promised of both."""
        return Kind(db, rows, request.param)


def awaited(db: Any, runner: asyncio.Runner) -> Any:
    """Wrap an ``AsyncDb`` as a ``Db``: each call is awaited on the runner's loop."""
    return _Awaited(db, runner)


class _Awaited:
    # Only what is a coroutine is awaited: for_tenant() returns a view at once, whose calls are awaited in turn.
    def __init__(self, db: Any, runner: asyncio.Runner) -> None:
        self._db = db
        self._runner = runner

    def __getattr__(self, name: str) -> Callable[..., Any]:
        method = getattr(self._db, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            result = method(*args, **kwargs)
            if inspect.iscoroutine(result):
                return self._runner.run(result)
            return _Awaited(result, self._runner)

        return call


def method_of(call: tuple[Any, ...]) -> str:
    """Return the name of the method that the call is of, for the name of a test."""
    return str(call[0])


def run(db: Db, call: Iterable[Any]) -> Any:
    """Make the call, which is a method's name and its arguments, and return the answer."""
    method, *arguments = call
    return getattr(db, method)(*arguments)


def instant(seconds: float = 0) -> datetime:
    """Return an instant some seconds after a fixed one."""
    return START + timedelta(seconds=seconds)


def ids(records: Iterable[Any]) -> list[str]:
    return [record.id for record in records]


def drained(take: Callable[[], Any]) -> list[Any]:
    """Return what the calls return, up to the first None; a wrong implementation fails instead of going on forever."""
    taken: list[Any] = []
    row = take()
    while row is not None:
        taken.append(row)
        assert len(taken) <= 20, f"{row.id!r} and others are taken again and again"
        row = take()
    return taken


def session_of(db: Db, id: str = "s1") -> SessionRecord:
    """Return the stored session, and fail if there is none."""
    session = db.get_session(id)
    assert session is not None, f"session {id!r} does not exist"
    return session


def sandbox_of(db: Db, id: str = "sb1") -> SandboxRecord:
    """Return the stored sandbox, and fail if there is none."""
    sandbox = db.get_sandbox(id)
    assert sandbox is not None, f"sandbox {id!r} does not exist"
    return sandbox


def make_agent(
    db: Db,
    name: str = "support-bot",
    path: str = "/srv/agents/support",
    **values: Any,
) -> AgentRecord:
    return db.upsert_agent(name, path, **values)


def make_session(
    db: Db,
    id: str = "s1",
    agent_name: str = "support-bot",
    sandbox_id: str = "sb1",
    **values: Any,
) -> SessionRecord:
    return db.insert_session(
        id,
        agent_name,
        sandbox_id,
        **values,
    )


def make_sandbox(
    db: Db,
    id: str = "sb1",
    agent_name: str = "support-bot",
    workspace_dir: str = "/tmp/sb1",
    **values: Any,
) -> SandboxRecord:
    return db.insert_sandbox(
        id,
        agent_name,
        workspace_dir,
        **values,
    )


def make_api_key(
    db: Db,
    id: str = "k1",
    tenant_id: str = "acme",
    key_hash: str = "hash-1",
    label: str = "ci",
) -> ApiKeyRecord:
    return db.insert_api_key(
        id,
        tenant_id,
        key_hash,
        label,
    )
