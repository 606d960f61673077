"""How much there is of everything, and what happened lately, each in a time that does not grow with the rows."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone
from django.utils.translation import gettext

from agentdb.console.display import relative
from agentdb.console.questions import Unanswered, question

WINDOW = 10_000  # rows that are counted one by one
COUNT_SECONDS = 0.5
EXACT_UP_TO = 200_000
SAMPLE = 5_000  # rows from which the shares of a SQLite table's values are estimated


@dataclass(frozen=True, slots=True)
class Figure:
    """A number of rows, and how it was got: counted, estimated, or counted up to a limit."""

    rows: int
    how: str = ""  # for an estimate: from what, how old
    at_least: bool = False

    @property
    def is_estimate(self) -> bool:
        return bool(self.how) and not self.at_least

    def __str__(self) -> str:
        return f"{'≈ ' if self.is_estimate else ''}{self.rows:,}{'+' if self.at_least else ''}"


@dataclass(frozen=True, slots=True)
class Hour:
    at: datetime
    opened: int
    failed: int


def total(connection: BaseDatabaseWrapper, table: str) -> Figure:
    """The rows of a table: counted where that is quick, else estimated."""
    estimate = estimated_rows(connection, table) if connection.vendor == "postgresql" else None
    if estimate is not None and estimate.rows > EXACT_UP_TO:
        return estimate
    counted = _counted_quickly(connection, f"SELECT COUNT(*) FROM {table}")
    if counted is not None:
        return Figure(counted[0][0])
    return estimate or estimated_rows(connection, table) or _counted_up_to(connection, table)


def estimated_rows(connection: BaseDatabaseWrapper, table: str) -> Figure | None:
    """From the statistics of the engine, if it has any."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'sqlite_stat1'")
            if not cursor.fetchone()[0]:
                return None
            cursor.execute("SELECT MAX(CAST(stat AS INTEGER)) FROM sqlite_stat1 WHERE tbl = %s", [table])
            (rows,) = cursor.fetchone()
            return None if rows is None else Figure(rows, gettext("Estimated from the statistics of ANALYZE"))
        if connection.vendor != "postgresql":
            return None
        cursor.execute(
            "SELECT c.reltuples::bigint, GREATEST(s.last_analyze, s.last_autoanalyze) FROM pg_class c "
            "LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid WHERE c.oid = to_regclass(%s)",
            [table],
        )
        row = cursor.fetchone()
    if row is None or row[0] < 0:
        return None
    how = gettext("Estimated from the statistics of %s") % (relative(row[1]) if row[1] else gettext("an unknown time"))
    return Figure(row[0], how)


def _counted_up_to(connection: BaseDatabaseWrapper, table: str) -> Figure:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*) FROM (SELECT 1 FROM {table} LIMIT {WINDOW + 1}) AS c")
        rows = cursor.fetchone()[0]
    return Figure(min(rows, WINDOW), at_least=rows > WINDOW)


def by_value(connection: BaseDatabaseWrapper, table: str, column: str, known: Sequence[str]) -> dict[str, Figure]:
    """How many rows have each value of an indexed column; values that only newer servers know come last."""
    whole = estimated_rows(connection, table) if connection.vendor == "postgresql" else None
    if whole is None or whole.rows <= EXACT_UP_TO:
        rows = _counted_quickly(
            connection, f"SELECT {column}, COUNT(*) FROM {table} GROUP BY {column} ORDER BY {column}"
        )
        if rows is not None:
            counted = {"NULL" if value is None else value: Figure(count) for value, count in rows}
            return {value: counted.get(value, Figure(0)) for value in [*known, *counted]}
    shares: dict[str, float] = {}
    if connection.vendor == "postgresql" and whole is not None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT unnest(most_common_vals::text::text[]), unnest(most_common_freqs) FROM pg_stats "
                "WHERE schemaname = current_schema() AND tablename = %s AND attname = %s",
                [table, column],
            )
            shares = dict(cursor.fetchall())
    if connection.vendor == "sqlite":
        whole, shares = total(connection, table), _shares_of_a_sample(connection, table, column)
        whole = Figure(whole.rows, gettext("Estimated from a sample of %s rows") % f"{SAMPLE:,}", whole.at_least)
    figures = {}
    for value in [*known, *(each for each in shares if each not in known)]:
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT COUNT(*) FROM (SELECT 1 FROM {table} WHERE {column} = %s LIMIT {WINDOW + 1}) AS c", [value]
            )
            rows = cursor.fetchone()[0]
        if rows <= WINDOW:
            figures[value] = Figure(rows)
        elif value in shares and whole is not None:
            figures[value] = Figure(max(int(shares[value] * whole.rows), WINDOW), whole.how, whole.at_least)
        else:
            figures[value] = Figure(WINDOW, at_least=True)
    return figures


def _shares_of_a_sample(connection: BaseDatabaseWrapper, table: str, column: str) -> dict[str, float]:
    """How much of a SQLite table each value has, from rows at even distances; nothing where rows have no rowid."""
    query = (
        f"WITH RECURSIVE ends(first, last) AS (SELECT MIN(rowid), MAX(rowid) FROM {table}), "
        f"places(id, step) AS (SELECT first, MAX((last - first) / {SAMPLE}, 1) FROM ends UNION ALL "
        f"SELECT id + step, step FROM places, ends WHERE id + step <= last LIMIT {SAMPLE}) "
        f"SELECT {column}, COUNT(*) FROM places JOIN {table} ON {table}.rowid = places.id GROUP BY {column}"
    )
    try:
        with question(connection), connection.cursor() as cursor:
            cursor.execute(query)
            rows = cursor.fetchall()
    except Unanswered as error:
        if "no such column" not in str(error):
            raise
        return {}
    sampled = sum(count for _, count in rows)
    return {value: count / sampled for value, count in rows}


def runner_statuses(connection: BaseDatabaseWrapper, runner_id: str) -> dict[str, Figure]:
    """How many of the runner's newest sessions have each status."""
    most = 5 * WINDOW
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT status, COUNT(*) FROM (SELECT status FROM sessions WHERE runner_id = %s ORDER BY created_at DESC "
            f"LIMIT {most}) AS newest GROUP BY status ORDER BY status",
            [runner_id],
        )
        rows = cursor.fetchall()
    is_cut = sum(count for _, count in rows) >= most
    return {status: Figure(count, at_least=is_cut) for status, count in rows}


def _counted_quickly(connection: BaseDatabaseWrapper, query: str) -> list[Any] | None:
    """What the query counts, or None if that takes too long."""
    try:
        with question(connection, COUNT_SECONDS), connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())
    except Unanswered as error:
        if not error.is_cut_off:
            raise
        return None


def activity(connection: BaseDatabaseWrapper, hours: int, **of: str) -> list[Hour]:
    """Sessions opened, and of these failed, for each hour; the last hour is the running one.

    ``of`` narrows it to a ``runner_id`` or ``tenant_id``, each of which an index finds in the order of time.
    """
    now = timezone.now().replace(minute=0, second=0, microsecond=0)
    first = now - timedelta(hours=hours - 1)
    if connection.vendor == "sqlite":
        hour = "substr(created_at, 1, 13)"
    else:
        hour = "CAST(floor(extract(epoch FROM created_at) / 3600) AS bigint)"
    # With an end, because the hour of a row at 'infinity' cannot be counted.
    condition, parameters = (
        "created_at >= %s AND created_at < %s",
        [connection.ops.adapt_datetimefield_value(at) for at in (first, now + timedelta(hours=1))],
    )
    for column, value in of.items():
        condition, parameters = f"{column} = %s AND {condition}", [value, *parameters]
    counted: list[dict[datetime, int]] = []
    with connection.cursor() as cursor:
        for more in ("", " AND status = 'error'"):
            cursor.execute(f"SELECT {hour}, COUNT(*) FROM sessions WHERE {condition}{more} GROUP BY 1", parameters)
            counted.append({_hour(value): rows for value, rows in cursor.fetchall()})
    opened, failed = counted
    each = [first + timedelta(hours=number) for number in range(hours)]
    return [Hour(at, opened.get(at, 0), failed.get(at, 0)) for at in each]


def _hour(value: Any) -> datetime:
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(f"{value}:00").replace(tzinfo=UTC)
        except ValueError:
            return datetime.max.replace(tzinfo=UTC)  # no hour of the chart
    return datetime.fromtimestamp(0, UTC) + timedelta(hours=int(value)) if value < 70_000_000 else datetime.max
