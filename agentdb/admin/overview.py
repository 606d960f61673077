"""What the admin's first page says about a database, each figure in a time that does not grow with the rows."""

from __future__ import annotations

import time
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from django.apps import apps
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model, QuerySet

from agentdb.errors import AgentDbError
from agentdb.inspection import translated_errors
from agentdb.interface import SandboxState, SessionStatus
from agentdb.migration_record import migration_names, pending_migrations
from agentdb.models import LEAST_RECENTLY_USED_FIRST, NEWEST_FIRST, Agent, ApiKey, Sandbox, Session
from agentdb.schema import compare, expected_tables, read_tables

CAP = 10_000
SAMPLE = 10_000
TOP = 8
MOST_VALUES = 20
MOST_RUNNERS = 100
MOST_PER_RUNNER = 1_000
SCHEMA_SECONDS = 60.0


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of rows, counted up to a cap."""

    rows: int
    cap: int = CAP

    def __str__(self) -> str:
        return f"{self.cap:,}+" if self.rows > self.cap else f"{self.rows:,}"


@dataclass(frozen=True, slots=True)
class Bar:
    """One value of a column: how many rows have it, and that as a share of the largest."""

    value: str
    amount: Amount
    percent: float


@dataclass(frozen=True, slots=True)
class Tenant:
    id: str
    sessions: int
    live: int
    newest_at: datetime
    percent: float


@dataclass(frozen=True, slots=True)
class SchemaState:
    applied: tuple[str, ...]
    pending: tuple[str, ...]
    differences: tuple[str, ...]
    problem: str = ""  # why it could not be looked at

    @property
    def is_good(self) -> bool:
        return not (self.pending or self.differences or self.problem)


@dataclass(frozen=True, slots=True)
class Totals:
    agents: Amount
    sessions: Amount
    sandboxes: Amount
    api_keys: Amount


def capped_count(rows: QuerySet[Any], cap: int = CAP) -> Amount:
    """Count at most ``cap`` rows and one more."""
    return Amount(rows.order_by()[: cap + 1].count(), cap)


def totals(alias: str, tenant_id: str | None = None) -> Totals:
    where = {} if tenant_id is None else {"tenant_id": tenant_id}
    agents, sessions, sandboxes, api_keys = (
        capped_count(model._default_manager.using(alias).filter(**where)) for model in (Agent, Session, Sandbox, ApiKey)
    )
    return Totals(agents, sessions, sandboxes, api_keys)


def distinct_values(
    connection: BaseDatabaseWrapper, model: type[Model], column: str, *, at_least: str = "", limit: int
) -> list[str]:
    """The first distinct values of an indexed text column, by one index probe each."""
    return [value for value, _ in distinct_counts(connection, model, column, at_least=at_least, limit=limit, cap=0)]


def distinct_counts(
    connection: BaseDatabaseWrapper, model: type[Model], column: str, *, at_least: str = "", limit: int, cap: int
) -> list[tuple[str, Amount]]:
    """The same, each with the number of its rows up to the cap."""
    table, name = model._meta.db_table, connection.ops.quote_name(column)
    with connection.cursor() as cursor:
        cursor.execute(
            f"WITH RECURSIVE v(value, n) AS ("
            f" SELECT (SELECT {name} FROM {table} WHERE {name} >= %s ORDER BY {name} LIMIT 1), 1 UNION ALL"
            f" SELECT (SELECT {name} FROM {table} WHERE {name} > v.value ORDER BY {name} LIMIT 1), v.n + 1"
            f" FROM v WHERE v.value IS NOT NULL AND v.n < %s"
            f") SELECT value, (SELECT COUNT(*) FROM (SELECT 1 FROM {table} WHERE {name} = v.value LIMIT %s) AS c)"
            f" FROM v WHERE value IS NOT NULL",
            [at_least, limit, cap + 1],
        )
        return [(value, Amount(rows, cap)) for value, rows in cursor.fetchall()]


def sandboxes_by_state(alias: str) -> list[Bar]:
    return _bars(alias, Sandbox, "state", SandboxState)


def sessions_by_status(alias: str) -> list[Bar]:
    return _bars(alias, Session, "status", SessionStatus)


def _bars(alias: str, model: type[Model], column: str, known: type[SessionStatus | SandboxState]) -> list[Bar]:
    # A newer server may have written values that this version does not know; they come last.
    counted = dict(distinct_counts(connections[alias], model, column, limit=MOST_VALUES, cap=CAP))
    return _as_bars({value: counted.get(value, Amount(0)) for value in [*map(str, known), *counted]})


def tenant_sessions_by_status(alias: str, tenant_id: str) -> list[Bar]:
    """The statuses of the tenant's newest ``SAMPLE`` sessions; no index has all of them by tenant and status."""
    rows = _group_newest_sessions(alias, "status, COUNT(*)", tenant_id)
    counted = {status: Amount(n) for status, n in rows}
    return _as_bars({value: counted.get(value, Amount(0)) for value in [*map(str, SessionStatus), *counted]})


def _as_bars(amounts: dict[str, Amount]) -> list[Bar]:
    largest = max((amount.rows for amount in amounts.values()), default=0) or 1
    return [Bar(value, amount, round(100 * amount.rows / largest, 1)) for value, amount in amounts.items()]


def top_tenants(alias: str) -> list[Tenant]:
    """The tenants with the most sessions among the newest ``SAMPLE``."""
    live = ", ".join(f"'{status.value}'" for status in (SessionStatus.ACTIVE, SessionStatus.STARTING))
    columns = f"tenant_id, COUNT(*), SUM(CASE WHEN status IN ({live}) THEN 1 ELSE 0 END), MAX(created_at)"
    rows = _group_newest_sessions(alias, columns)
    largest = max((row[1] for row in rows), default=1)
    return [Tenant(id, n, live, _instant(newest), round(100 * n / largest, 1)) for id, n, live, newest in rows[:TOP]]


def _group_newest_sessions(alias: str, columns: str, tenant_id: str | None = None) -> list[Any]:
    """Aggregates over the newest ``SAMPLE`` sessions by the first column, the most frequent value first."""
    newest = Session.objects.using(alias).order_by(*NEWEST_FIRST)
    if tenant_id is not None:
        newest = newest.filter(tenant_id=tenant_id)
    # Django groups before it limits; the other way round it has only an id IN (...), which reads every row twice.
    inner, parameters = (
        newest.values("tenant_id", "status", "created_at")[:SAMPLE].query.get_compiler(using=alias).as_sql()
    )
    with connections[alias].cursor() as cursor:
        cursor.execute(f"SELECT {columns} FROM ({inner}) AS newest GROUP BY 1 ORDER BY 2 DESC, 1", parameters)
        rows: list[Any] = cursor.fetchall()
    return rows


def _instant(value: datetime | str) -> datetime:
    """SQLite stores text, in UTC."""
    return datetime.fromisoformat(value).replace(tzinfo=UTC) if isinstance(value, str) else value


def runners(alias: str) -> list[Bar]:
    """The runners with the most sessions, of the first ``MOST_RUNNERS`` by id."""
    counted = distinct_counts(connections[alias], Session, "runner_id", limit=MOST_RUNNERS, cap=MOST_PER_RUNNER)
    counted.sort(key=lambda pair: (-pair[1].rows, pair[0]))
    return _as_bars(dict(counted[:TOP]))


def oldest_idle_sandboxes(alias: str) -> list[Sandbox]:
    rows = Sandbox.objects.using(alias).filter(state=SandboxState.WAITING)
    return list(rows.order_by(*LEAST_RECENTLY_USED_FIRST)[:TOP])


_schema_states: dict[str, tuple[float, SchemaState]] = {}


def schema_state(alias: str) -> SchemaState:
    """What verifydb and the record of migrations say; looked at once a minute, because it reads the whole catalog."""
    looked_at, state = _schema_states.get(alias, (0.0, None))
    if state is None or not state.is_good or time.monotonic() - looked_at > SCHEMA_SECONDS:
        state = _read_schema_state(connections[alias])
        _schema_states[alias] = (time.monotonic(), state)
    return state


def _read_schema_state(connection: BaseDatabaseWrapper) -> SchemaState:
    try:
        with translated_errors(connection):
            pending = tuple(pending_migrations(connection))
            expected = expected_tables(connection, apps)
            differences = compare(expected, read_tables(connection, list(expected)))
    except AgentDbError as error:
        return SchemaState((), (), (), str(error))
    applied = tuple(name for name in migration_names() if name not in pending)
    return SchemaState(applied, pending, tuple(found.message for found in differences if found.severity == "drift"))
