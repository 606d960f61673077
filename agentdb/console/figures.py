"""Totals and recent activity, each in a time that does not grow with the number of rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from django.core.exceptions import EmptyResultSet
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Count, Model, QuerySet, TextField
from django.utils import timezone

from agentdb.console.display import readable
from agentdb.console.questions import Unanswered, question
from agentdb.console.reading import Unreadable, read
from agentdb.expressions import OtherOnSqlite
from agentdb.interface import SandboxState, SessionStatus
from agentdb.models import Sandbox, Session
from agentdb.querysets import LIVE, SessionQuerySet

WINDOW = 10_000  # rows counted at most
COUNT_SECONDS = 0.5
EXACT_UP_TO = 200_000
NEWEST = 10_000  # the newest sessions, from which tenants are counted
TOP = 8
Counted = TypeVar("Counted")


class Figure(NamedTuple):
    """A number of rows: counted, estimated from a server's statistics, or counted up to a limit."""

    rows: int
    estimated: bool = False
    at_least: bool = False

    def __str__(self) -> str:
        if self.estimated:
            return f"≈ {self.rows:,}"
        return f"{self.rows:,}{'+' if self.at_least else ''}"


class Hour(NamedTuple):
    """The sessions opened in the hour that begins at ``at``, and how many of these have failed by now."""

    at: datetime
    opened: int
    failed: int


def total(rows: QuerySet[Any]) -> Figure:
    """Return the rows of a whole table: counted if that is quick, else estimated, or counted up to a limit."""
    estimate = estimated_rows(rows)
    # PostgreSQL counts by reading: a large table would take seconds, and much of its cache.
    if estimate is not None and estimate.rows > EXACT_UP_TO:
        return estimate
    # A small or unanalysed table: the estimate may be of hours ago, and counting is quick.
    counted = _quickly(rows.db, rows.count)
    if counted is not None:
        return Figure(counted)
    return estimate or capped_count(rows)


_STATISTICS = {
    "postgresql": "SELECT reltuples::bigint FROM pg_class WHERE oid = to_regclass('{table}')",
    "cockroachdb": "SELECT row_count FROM [SHOW STATISTICS FOR TABLE {table}] ORDER BY created DESC LIMIT 1",
}


def estimated_rows(rows: QuerySet[Any]) -> Figure | None:
    """Return a server's estimate of a whole table, or None if there is none.

    SQLite has none, and counts a million rows by an index in a few milliseconds.
    """
    connection = connections[rows.db]
    if connection.vendor not in _STATISTICS:
        return None
    query = _STATISTICS[connection.vendor].format(table=rows.model._meta.db_table)
    with connection.cursor() as cursor:
        cursor.execute(query)
        row = cursor.fetchone()
    # PostgreSQL says -1 of a table that was never analyzed.
    if row is None or row[0] < 0:
        return None
    return Figure(row[0], estimated=True)


def by_value(rows: QuerySet[Any], column: str) -> dict[str, Figure]:
    """Count the rows of a whole table by an indexed column; values of newer servers come last."""
    known = rows.model._meta.get_field(column).choices
    figures = {value: Figure(0) for value, _ in known}
    whole = estimated_rows(rows)
    if whole is None or whole.rows <= EXACT_UP_TO:
        # Sorted by the column, so that the index gives the groups one after the other without a hash or a sort.
        # All values, not the known ones: a newer server may write others.
        values = rows.order_by(column).values_list(column)
        groups = values.annotate(n=Count("*"))
        counted = _quickly(rows.db, lambda: list(groups))
        if counted is not None:
            for value, number in counted:
                figures[str(value or "NULL")] = Figure(number)
            return figures
    shares = _shares(rows, column)
    for value in {**figures, **shares}:
        figures[value] = _estimated(
            rows.filter(**{column: value}),
            whole,
            shares.get(value),
        )
    return figures


def _estimated(
    rows: QuerySet[Any],
    whole: Figure | None,
    share: float | None,
) -> Figure:
    """Count the rows of a rare value by the index; those of a frequent one are a share of the whole.

    Without an estimate of the whole, or a share, the count ends at ``WINDOW``.
    """
    figure = capped_count(rows)
    if not figure.at_least or whole is None or share is None:
        return figure
    estimate = int(share * whole.rows)
    return Figure(max(estimate, WINDOW), estimated=True)


def _shares(rows: QuerySet[Any], column: str) -> dict[str, float]:
    """Return the share of each frequent value, between 0 and 1, from PostgreSQL's statistics."""
    connection = connections[rows.db]
    if connection.vendor != "postgresql":
        return {}
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT unnest(most_common_vals::text::text[]), unnest(most_common_freqs) FROM pg_stats "
            "WHERE schemaname = current_schema() AND tablename = %s AND attname = %s",
            [rows.model._meta.db_table, column],
        )
        return dict(cursor.fetchall())


def select_from(
    rows: QuerySet[Any],
    query: str,
    before: Sequence[Any] = (),
    after: Sequence[Any] = (),
) -> list[Any]:
    """Run the query, in which ``{rows}`` stands for a sliced queryset; its own parameters stand before and after that.

    Django aggregates before a limit; after one it can only use ``id IN (…)``, which reads every row twice. The query
    is SQL that all engines understand, and calls the rows ``found``.
    """
    # The LIMIT caps the rows that the engine reads, whatever the outer query does with them.
    try:
        inner, values = rows.query.get_compiler(using=rows.db).as_sql()
    except EmptyResultSet:  # no row can match
        return []
    query = query.replace("{rows}", f"({inner}) AS found")
    with connections[rows.db].cursor() as cursor:
        cursor.execute(query, [*before, *values, *after])
        return list(cursor.fetchall())


def by_status(sessions: SessionQuerySet) -> dict[str, Figure]:
    """Count a runner's or a tenant's newest sessions by status, because it may have millions.

    If there are more than these, each figure is a lower bound.
    """
    most = 2 * WINDOW
    newest = sessions.newest_first().values("status")[:most]
    counts = select_from(newest, "SELECT status, COUNT(*) FROM {rows} GROUP BY 1")
    counted = sum(count for _, count in counts)
    figures = {str(status): Figure(0) for status in SessionStatus}
    for status, count in counts:
        figures[status] = Figure(count, at_least=counted >= most)
    return figures


def _quickly(alias: str, asked: Callable[[], Counted]) -> Counted | None:
    """Return the answer, or None if it takes longer than ``COUNT_SECONDS``."""
    # Its own limit, and its own savepoint: that it is cut off does not fail the question around it.
    try:
        with question(connections[alias], COUNT_SECONDS):
            return asked()
    except Unanswered as error:
        if not error.is_cut_off:
            raise
        return None


class Begin(OtherOnSqlite):
    """The first characters of an instant in UTC: 13 for the hour, 10 for the day.

    Django's ``TruncHour`` calls a Python function for each row on SQLite.
    """

    template = "substr(CAST(%(expressions)s AT TIME ZONE 'UTC' AS text), 1, %(length)s)"
    # The stored text begins with them.
    on_sqlite = "substr(%(expressions)s, 1, %(length)s)"
    output_field = TextField()


def activity(connection: BaseDatabaseWrapper, hours: int, **of: str) -> list[Hour]:
    """Return how many sessions were opened, and how many of these failed, in each hour up to the current one.

    ``of`` narrows it to a ``runner_id`` or ``tenant_id``; an index has each in the order of time.
    """
    now = timezone.now().replace(minute=0, second=0, microsecond=0)
    first = now - timedelta(hours=hours - 1)
    sessions = Session.objects.using(connection.alias).order_by().filter(**of)
    # The upper bound leaves out clocks that are ahead, and 'infinity'.
    rows = sessions.filter(
        created_at__gte=first,
        created_at__lt=now + timedelta(hours=1),
    )
    # Two queries, each answered by an index alone. A single one, with the status, would read every row of the period.
    opened = _by_hour(rows)
    failed = _by_hour(rows.filter(status=SessionStatus.ERROR.value))
    found = []
    for number in range(hours):
        at = first + timedelta(hours=number)
        name = f"{at:%Y-%m-%d %H}"
        found.append(Hour(at, opened[name], failed[name]))
    return found


def _by_hour(sessions: SessionQuerySet) -> Counter[str]:
    """Count the sessions by the hour of their creation, such as '2026-03-14 15'."""
    hour = Begin("created_at", length=13)
    counts = sessions.values_list(hour).annotate(n=Count("*"))
    return Counter(dict(counts))


# -- by tenant, and by other values of an index


class Tenant(NamedTuple):
    """A tenant, and how many of the newest sessions are its own, live, or failed."""

    id: str
    sessions: int
    live: int
    failed: int
    newest_at: datetime | Unreadable


def capped_count(rows: QuerySet[Any]) -> Figure:
    """Count one row more than ``WINDOW`` at most."""
    # COUNT(*) around a LIMIT: the engine stops at the row after the window.
    counted = rows.order_by()[: WINDOW + 1].count()
    if counted > WINDOW:
        return Figure(WINDOW, at_least=True)
    return Figure(counted)


def amount(alias: str, model: type[Model], tenant_id: str) -> Figure:
    """Return how many rows of the model the tenant has, up to ``WINDOW``."""
    rows = model._default_manager.using(alias)
    its = rows.filter(tenant_id=tenant_id)
    return capped_count(its)


def distinct_values(
    connection: BaseDatabaseWrapper,
    model: type[Model],
    column: str,
    *,
    at_least: str = "",
    limit: int,
) -> list[str]:
    """Return the first distinct values of an indexed text column, from ``at_least`` on, with one index probe each."""
    # SELECT DISTINCT would read the whole index. Here MIN(…) > the last value jumps to the next one, so a
    # tenant with a million rows costs as much as one with a single row.
    table, name = model._meta.db_table, connection.ops.quote_name(column)
    with connection.cursor() as cursor:
        cursor.execute(
            f"WITH RECURSIVE v(value, n) AS ("
            f" SELECT (SELECT MIN({name}) FROM {table} WHERE {name} >= %s), 1 UNION ALL"
            f" SELECT (SELECT MIN({name}) FROM {table} WHERE {name} > v.value), v.n + 1"
            f" FROM v WHERE v.value IS NOT NULL AND v.n < %s"
            f") SELECT value FROM v WHERE value IS NOT NULL",
            [at_least, limit],
        )
        return [value for (value,) in cursor.fetchall()]


def top_tenants(alias: str) -> list[Tenant]:
    """Return the ``TOP`` tenants with the most sessions among the newest ``NEWEST``, the largest first."""
    # Of all sessions this would read the whole table. The newest also say better who uses the fleet now.
    newest = Session.objects.using(alias).newest_first()
    sample = newest.values("tenant_id", "status", "created_at")[:NEWEST]
    rows = select_from(
        sample,
        "SELECT tenant_id, COUNT(*), COUNT(CASE WHEN status IN (%s, %s) THEN 1 END), "
        "COUNT(CASE WHEN status = %s THEN 1 END), CAST(MAX(created_at) AS text) FROM {rows} GROUP BY 1 "
        "ORDER BY 2 DESC, 1",
        [*LIVE, SessionStatus.ERROR.value],
    )
    return [
        Tenant(id, sessions, live, failed, readable(newest) or Unreadable(newest))
        for id, sessions, live, failed, newest in rows[:TOP]
    ]


def oldest_idle_sandboxes(alias: str) -> list[Sandbox]:
    """Return the ``TOP`` waiting sandboxes that were used the longest time ago."""
    waiting = Sandbox.objects.using(alias).in_state(SandboxState.WAITING)
    oldest = waiting.least_recently_used_first()
    return read(oldest[:TOP], [])
