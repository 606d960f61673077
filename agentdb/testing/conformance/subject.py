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
    SandboxState,
    SessionRecord,
    SessionStatus,
)

# In code-point order. A locale puts "a" before "B" and "é" before "z", a case-insensitive comparison takes "a" for "A",
# and UTF-16 (Java, JavaScript) puts the emoji, a surrogate pair, before U+FFEE: each of them fails a test.
IDS = ["10", "9", "B", "Z", "_", "a", "a b", "ab", "é", "\uffee", "😀"]

# Long past: whatever a call writes with the clock of the database under test is later, without sleeping.
START = datetime(2026, 3, 1, 12, tzinfo=UTC)


class Rewrite(Protocol):
    def __call__(self, table: str, id: str, **columns: object) -> None:
        """Set columns of one row that a ``Db`` cannot set, above all timestamps."""
        ...


# Of each kind: its table, the columns of the last sign of life or use, and of the status or state, and its values.
_KINDS = {
    "session": ("sessions", "last_active_at", "status", SessionStatus),
    "sandbox": ("sandboxes", "last_used_at", "state", SandboxState),
}


class Kind:
    """Sessions or sandboxes, by the calls that are named alike."""

    table: str
    time: str
    state: str
    states: Any
    insert: Any
    get: Any
    delete: Any
    page: Any
    touch: Any

    def __init__(self, db: Db, request: pytest.FixtureRequest, noun: str) -> None:
        self._request = request
        self.noun = noun
        self.table, self.time, self.state, self.states = _KINDS[noun]
        self.insert = getattr(db, f"insert_{noun}")
        self.get = getattr(db, f"get_{noun}")
        self.delete = getattr(db, f"delete_{noun}")
        self.page = getattr(db, f"list_{self.table}")
        self.touch = getattr(db, f"touch_{self.table}")

    def make(self, id: str = "x", **columns: object) -> Any:
        """Insert a row, set these columns of it, as no ``Db`` does, and return what is stored."""
        # The last one is the sandbox of a session, and the workspace of a sandbox.
        self.insert(id, "support-bot", "y")
        if columns:
            # Only now, because this skips the test unless there is a way around the Db.
            rewrite = self._request.getfixturevalue("rewrite")
            rewrite(self.table, id, **columns)
        row = self.get(id)
        assert row is not None, f"{self.noun} {id!r} does not exist"
        return row


class Subject:
    """The ``Db`` under test: ``factory`` returns an empty ``Db`` or ``AsyncDb``. Or override the fixture ``db``."""

    factory: ClassVar[Callable[[], Any]]

    @pytest.fixture
    def db(self) -> Iterator[Db]:
        """An empty ``Db``; an ``AsyncDb`` is called through :func:`awaited`."""
        with asyncio.Runner() as runner:
            # Asked of the class, because a plain function would become a method of the test.
            db = awaited(type(self).factory(), runner)
            yield db
            db.close()

    @pytest.fixture
    def rewrite(self) -> Rewrite:
        """A way around the ``Db``; without one, tests that need it are skipped. Override it if you can."""
        pytest.skip(
            "needs a way around the Db: override the fixture 'rewrite' of the contract's tests"
        )

    @pytest.fixture
    def kinds(self, db: Db, request: pytest.FixtureRequest) -> list[Kind]:
        """Sessions and sandboxes."""
        return [Kind(db, request, noun) for noun in _KINDS]

    @pytest.fixture(params=_KINDS)
    def kind(self, db: Db, request: pytest.FixtureRequest) -> Kind:
        """Sessions, then sandboxes, for what is promised of both."""
        return Kind(db, request, request.param)


def awaited(db: Any, runner: asyncio.Runner) -> Any:
    """Wrap an ``AsyncDb`` as a ``Db``: each call is awaited on the runner's loop. A ``Db`` is returned as it is."""
    # Whether it is to be awaited shows in its methods: a wrapper of an AsyncDb is not an instance of it.
    if not inspect.iscoroutinefunction(db.get_session):
        return db
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


def instant(seconds: float = 0) -> datetime:
    """Return an instant some seconds after a fixed one."""
    return START + timedelta(seconds=seconds)


def ids(records: Iterable[Any]) -> list[str]:
    return [record.id for record in records]


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
