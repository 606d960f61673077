"""SQLite, PostgreSQL and MemoryDb are given the same calls at random, and answer the same.

AGENTDB_MODEL_STEPS=200000 makes it a long run.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import astuple, fields
from datetime import datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

from django.db import connections
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, rule, run_state_machine_as_test

import agentdb
from agentdb import AgentDbError, AgentRecord, Db, DjangoDb, SandboxState, SessionStatus
from agentdb.testing import MemoryDb
from tests.helpers.factories import instant

STEPS = int(os.environ.get("AGENTDB_MODEL_STEPS", "3000"))
STEPS_OF_A_RUN = 40

TENANTS = st.sampled_from(["default", "acme", "'; --"])
VIEWS = st.sampled_from([None, None, "default", "acme", "'; --"])
# Each pair of these is told apart, and each is ordered, the same way everywhere.
IDS = st.sampled_from(
    [
        "a",
        "B",
        "b ",
        "é",
        "e\u0301",
        "\uffee",
        "😀",
        "%s",
        "?",
        "\ufdd0id\ufdd0",
        '"',
        "\\",
        "\n",
    ]
)
BAD_IDS = st.sampled_from(["", "a\0b", "\ud800", "x" * 513])
ANY_ID = st.one_of(IDS, IDS, IDS, IDS, IDS, BAD_IDS)
STATUSES = st.sampled_from([*map(str, SessionStatus), "actve"])
STATES = st.sampled_from([*map(str, SandboxState), "frozen"])
SEVERAL_STATUSES = st.one_of(st.none(), STATUSES, st.lists(STATUSES, max_size=3))
SEVERAL_STATES = st.one_of(st.none(), STATES, st.lists(STATES, max_size=3))
Call = tuple[str, tuple[Any, ...], dict[str, Any]]


def _calls(
    name: str, *arguments: st.SearchStrategy[Any], **named: st.SearchStrategy[Any]
) -> st.SearchStrategy[Call]:
    return st.tuples(
        st.just(name), st.tuples(*arguments), st.fixed_dictionaries({}, optional=named)
    )


OPTIONAL_ID = st.one_of(st.none(), IDS)
CALLS = st.one_of(
    _calls("upsert_agent", ANY_ID, IDS, tenant_id=TENANTS),
    _calls("get_agent", ANY_ID, tenant_id=TENANTS),
    _calls("list_agents", tenant_id=TENANTS),
    _calls("delete_agent", ANY_ID, tenant_id=TENANTS),
    _calls("insert_session", ANY_ID, IDS, IDS, tenant_id=TENANTS),
    _calls("insert_session", IDS, IDS, IDS, tenant_id=TENANTS),
    _calls("update_session_status", ANY_ID, STATUSES, only_if=SEVERAL_STATUSES),
    _calls("update_session_sandbox", IDS, ANY_ID),
    _calls("update_session_runner", IDS, OPTIONAL_ID, only_if=OPTIONAL_ID),
    _calls(
        "claim_session",
        ANY_ID,
        ANY_ID,
        silent_for=st.sampled_from([timedelta(0), timedelta(days=1)]),
    ),
    _calls("delete_session", IDS),
    _calls("get_session", ANY_ID),
    _calls(
        "list_sessions",
        tenant_id=TENANTS,
        agent=OPTIONAL_ID,
        status=SEVERAL_STATUSES,
        runner_id=OPTIONAL_ID,
        limit=st.integers(0, 4),
    ),
    _calls(
        "count_sessions", tenant_id=TENANTS, agent=OPTIONAL_ID, status=SEVERAL_STATUSES
    ),
    _calls("list_sessions_by_runner", IDS),
    _calls("touch_session", ANY_ID, runner_id=OPTIONAL_ID),
    _calls("touch_sessions", st.lists(IDS, max_size=20), runner_id=OPTIONAL_ID),
    _calls(
        "insert_sandbox", ANY_ID, IDS, IDS, session_id=OPTIONAL_ID, tenant_id=TENANTS
    ),
    _calls("insert_sandbox", IDS, IDS, IDS, session_id=OPTIONAL_ID, tenant_id=TENANTS),
    _calls("update_sandbox_state", IDS, STATES, only_if=SEVERAL_STATES),
    _calls("update_sandbox_session", IDS, OPTIONAL_ID),
    _calls("touch_sandbox", IDS),
    _calls("touch_sandboxes", st.lists(IDS, max_size=20)),
    _calls(
        "list_sandboxes",
        tenant_id=TENANTS,
        state=SEVERAL_STATES,
        agent=OPTIONAL_ID,
        session_id=OPTIONAL_ID,
        limit=st.integers(0, 4),
    ),
    _calls("list_sandboxes_by_runner", IDS),
    _calls("mark_sandboxes_cold_by_runner", IDS),
    _calls("claim_warm_sandbox", IDS, IDS, tenant_id=TENANTS),
    _calls("get_sandbox", IDS),
    _calls("count_sandboxes", state=SEVERAL_STATES),
    _calls("get_best_eviction_candidate"),
    _calls("claim_eviction_candidate"),
    _calls("delete_sandbox", IDS),
    _calls("mark_all_sandboxes_cold"),
    _calls("bulk_pause_sessions_by_runner", IDS),
    _calls("bulk_pause_active_sessions"),
    _calls("insert_api_key", IDS, TENANTS, IDS, IDS),
    _calls("get_api_key_by_hash", IDS),
    _calls("list_api_keys_by_tenant", TENANTS),
    _calls("delete_api_key", IDS),
)


def _plain(value: Any) -> Any:
    """The value without what may differ: instants, and ids that are made up."""
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if not hasattr(value, "__dataclass_fields__"):
        return value
    row = dict(zip((f.name for f in fields(value)), astuple(value), strict=True))
    if isinstance(value, AgentRecord):
        del row["id"]
    return {name: item for name, item in row.items() if not isinstance(item, datetime)}


def _outcome(call: Callable[[], Any]) -> Any:
    try:
        return _plain(call())
    except AgentDbError as error:
        return type(error).__name__, str(error)


class _Undone(Exception):
    pass


class Machine(RuleBasedStateMachine):
    real: ClassVar[list[DjangoDb]]
    steps: ClassVar[int] = 0

    def __init__(self) -> None:
        super().__init__()
        seconds = iter(range(10**9))
        self.model = MemoryDb(clock=lambda: instant(next(seconds)))
        for db in self.real:
            with connections[db.alias].cursor() as cursor:
                for table in ("agents", "sessions", "sandboxes", "api_keys"):
                    cursor.execute(f"DELETE FROM {table}")

    def _same(self, view: str | None, call: Callable[[Any], Any]) -> None:
        type(self).steps += 1
        wanted, *answers = [
            _outcome(lambda db=db: call(db.for_tenant(view) if view else db))  # type: ignore[misc]
            for db in (self.model, *self.real)
        ]
        for db, answer in zip(self.real, answers, strict=True):
            assert answer == wanted, db

    @rule(view=VIEWS, call=CALLS)
    def one_call(self, view: str | None, call: Call) -> None:
        self._same(view, lambda db: _made(db, call))

    @rule(
        view=VIEWS,
        calls=st.lists(CALLS, max_size=5),
        fails=st.booleans(),
        catches=st.booleans(),
    )
    def a_transaction(
        self, view: str | None, calls: list[Call], fails: bool, catches: bool
    ) -> None:
        def work(inside: Db) -> list[Any]:
            made = [partial(_made, inside, call) for call in calls]
            results = [_outcome(one) if catches else one() for one in made]
            if fails:
                raise _Undone
            return results

        def run(db: Db) -> Any:
            try:
                return db.run_transaction(work)
            except _Undone:
                return "undone"

        self._same(view, run)

    @rule(
        view=VIEWS,
        id=IDS,
        method=st.sampled_from(["get_idle_sandboxes", "get_cold_sandboxes"]),
    )
    def the_unused_older_than_one(self, view: str | None, id: str, method: str) -> None:
        def call(db: Db) -> Any:
            sandbox = db.get_sandbox(id)
            return sandbox and getattr(db, method)(sandbox.last_used_at)

        self._same(view, call)

    @rule(
        view=VIEWS,
        id=IDS,
        method=st.sampled_from(
            ["get_best_eviction_candidate", "claim_eviction_candidate"]
        ),
    )
    def eviction_of_what_is_older_than_one(
        self, view: str | None, id: str, method: str
    ) -> None:
        def call(db: Db) -> Any:
            sandbox = db.get_sandbox(id)
            return sandbox and getattr(db, method)(unused_since=sandbox.last_used_at)

        self._same(view, call)

    @rule(view=VIEWS, id=IDS, limit=st.integers(0, 3))
    def silent_sessions_older_than_one(
        self, view: str | None, id: str, limit: int
    ) -> None:
        def call(db: Db) -> Any:
            session = db.get_session(id)
            return session and db.get_silent_sessions(
                session.last_active_at, limit=limit
            )

        self._same(view, call)

    @rule(view=VIEWS, id=IDS, limit=st.integers(0, 3))
    def pruning_what_is_older_than_one(
        self, view: str | None, id: str, limit: int
    ) -> None:
        def call(db: Db) -> Any:
            session = db.get_session(id)
            return session and db.prune_sessions(
                session.last_active_at + timedelta(microseconds=1), limit
            )

        self._same(view, call)

    @rule(view=VIEWS, id=IDS, limit=st.integers(1, 3), statuses=SEVERAL_STATUSES)
    def a_page_after_one(
        self, view: str | None, id: str, limit: int, statuses: Any
    ) -> None:
        def call(db: Db) -> Any:
            session = db.get_session(id)
            return session and db.list_sessions(
                session.tenant_id, status=statuses, limit=limit, before=session.cursor
            )

        self._same(view, call)

    @rule(view=VIEWS, id=IDS, limit=st.integers(1, 3), states=SEVERAL_STATES)
    def a_page_of_sandboxes_after_one(
        self, view: str | None, id: str, limit: int, states: Any
    ) -> None:
        def call(db: Db) -> Any:
            sandbox = db.get_sandbox(id)
            return sandbox and db.list_sandboxes(
                sandbox.tenant_id, state=states, limit=limit, before=sandbox
            )

        self._same(view, call)

    def teardown(self) -> None:
        for tenant in ("default", "acme", "'; --"):
            self._same(
                tenant,
                lambda db: (
                    db.list_agents(),
                    db.list_sessions(),
                    db.get_cold_sandboxes(instant(10**9)),
                ),
            )


def _made(db: Any, call: Call) -> Any:
    name, arguments, named = call
    return getattr(db, name)(*arguments, **named)


def test_the_engines_and_the_model_answer_the_same(
    _migrated_sqlite: Path,
    make_postgres_database: Callable[..., str],
    _migrated_postgres: str,
    tmp_path: Path,
) -> None:
    path = tmp_path / "agentdb.sqlite3"
    path.write_bytes(_migrated_sqlite.read_bytes())
    with (
        agentdb.connect(f"sqlite:///{path}?synchronous=NORMAL") as sqlite,
        agentdb.connect(
            make_postgres_database(template=_migrated_postgres)
        ) as postgresql,
    ):
        Machine.real, Machine.steps = [sqlite, postgresql], 0
        run_state_machine_as_test(
            Machine,
            settings=settings(
                max_examples=max(1, STEPS // STEPS_OF_A_RUN),
                stateful_step_count=STEPS_OF_A_RUN,
                deadline=None,
                database=None,
                suppress_health_check=list(HealthCheck),
            ),
        )
    print(f"{Machine.steps} steps")  # noqa: T201
    assert Machine.steps > STEPS // 4
