"""Sessions and sandboxes counted by group in a time span, and the latest changes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from contextlib import suppress
from datetime import UTC, datetime, time, timedelta
from types import MappingProxyType
from typing import Any, NamedTuple, Self

from django.db.models import (
    CharField,
    Count,
    F,
    Model,
    OuterRef,
    Q,
    Subquery,
    Value,
)
from django.db.models.functions import Coalesce
from django.utils.translation import gettext, gettext_lazy

from agentdb.console.display import percent
from agentdb.console.figures import Begin
from agentdb.console.questions import Problem
from agentdb.console.reading import is_unreadable, read
from agentdb.inputs import age
from agentdb.interface import SessionStatus
from agentdb.models import Agent, ApiKey, Sandbox, Session
from agentdb.querysets import LIVE

MOST_GROUPS = 100
MOST_CHANGES = 100
SAMPLE = 20_000  # the newest sessions, among which changed ones are searched


def moment(text: str, now: datetime) -> datetime:
    """Parse '10m' or '2d' (ago), '14:00' or '2026-03-14 14:00' as an instant in UTC.

    A time without a date is the latest such time, and one without a zone is in UTC, as all times of the console are.
    Raises ``ValueError`` with a sentence for anything else.
    """
    with suppress(ValueError):
        return now - age(text)
    try:
        # Without a date; fromisoformat of a datetime would refuse it.
        if ":" in text and "-" not in text:
            today = now.astimezone(UTC)
            at = datetime.combine(today, time.fromisoformat(text), UTC)
            # At one o'clock, 23:00 means yesterday's.
            return at if at <= now else at - timedelta(days=1)
        at = datetime.fromisoformat(text)
        # In another zone, an hour at either end of the calendar may be outside of it in UTC.
        return at.astimezone(UTC) if at.tzinfo else at.replace(tzinfo=UTC)
    except (ValueError, OverflowError):
        sentence = gettext(
            "%r is not a time. Write 14:00, 2026-03-14, 2026-03-14 14:00, or 10m, 2h, 3d, 1w for that long ago."
        )
        raise ValueError(sentence % text[:60]) from None


class Grouped(NamedTuple):
    """One group: its value (None for NULL), its rows, and for sessions how many are live and how many failed."""

    value: str | None
    rows: int = 0
    live: int = 0
    failed: int = 0

    @property
    def percent_failed(self) -> str:
        return percent(self.failed, self.rows)


# The columns by which each table may be grouped.
BY: dict[type[Model], tuple[str, ...]] = {
    Session: (
        "agent_name",
        "tenant_id",
        "runner_id",
        "status",
        "hour",
        "day",
    ),
    Sandbox: (
        "tenant_id",
        "agent_name",
        "state",
        "session_status",
        "runner_id",
    ),
}
# The columns of a table's own, or of its session, that rows are filtered by.
FILTERS = {
    model: [name for name in names if name not in ("hour", "day", "session_status")]
    for model, names in BY.items()
}


class Grouping(NamedTuple):
    """Which rows of a table to count, and by which column.

    ``since`` and ``until`` are instants, ``until`` itself not included; ``filters`` names exact values of columns.
    """

    model: type[Model]
    by: str
    since: datetime | None = None
    until: datetime | None = None
    filters: Mapping[str, str] = MappingProxyType({})

    @property
    def at(self) -> str:
        """The indexed column to which 'from' and 'to' apply."""
        return "created_at" if self.model is Session else "last_used_at"

    @classmethod
    def of(cls, model: type[Model], asked: Mapping[str, str], now: datetime) -> Self:
        """Parse a query string. Raises ``ValueError`` with a sentence for anything invalid."""
        by = asked["by"]
        if by not in BY[model]:
            raise ValueError(gettext("%r is not a column to group by.") % by)
        begin = asked.get("from")
        end = asked.get("to")
        return cls(
            model,
            by,
            moment(begin, now) if begin else None,
            moment(end, now) if end else None,
            {name: asked[name] for name in FILTERS[model] if asked.get(name)},
        )

    def rows(self, alias: str) -> Any:
        """Return the rows to count, in no order."""
        rows: Any = self.model._default_manager.using(alias).order_by()
        filters: dict[str, Any] = dict(self.filters)
        if self.model is Sandbox and "runner_id" in filters:
            # A sandbox has no runner of its own, but its session has one. From the runner's sessions, which an index
            # has, to their sandboxes: the other way round each sandbox would be looked at.
            its = Session.objects.using(alias).of_runner(filters.pop("runner_id"))
            rows = rows.reserved_for(its)
        if self.since is not None:
            filters[f"{self.at}__gte"] = self.since
        if self.until is not None:
            filters[f"{self.at}__lt"] = self.until
        return rows.filter(**filters)

    def ask(self, alias: str) -> list[Grouped]:
        """Return the groups, the largest first; hours and days latest first.

        There is one group more than ``MOST_GROUPS`` if not all are returned.
        """
        counts = {"rows": Count("pk")}
        if self.model is Session:
            is_live = Q(status__in=LIVE)
            has_failed = Q(status=SessionStatus.ERROR.value)
            counts["live"] = Count("pk", filter=is_live)
            counts["failed"] = Count("pk", filter=has_failed)
        value = F("value")
        order = [
            F("rows").desc(),
            # NULL sorts first on SQLite and last on PostgreSQL.
            value.asc(nulls_first=True),
        ]
        if self.by in ("hour", "day"):
            order = [value.desc()]
        rows = self.rows(alias).annotate(value=self._value(alias))
        groups = rows.values("value").annotate(**counts)
        largest = groups.order_by(*order)[: MOST_GROUPS + 1]
        return [Grouped(**group) for group in largest]

    def _value(self, alias: str) -> Any:
        """Return the expression by whose value the rows are grouped.

        No foreign key leads from a sandbox to its session, which may be gone: its columns come from a subquery by
        primary key.
        """
        if self.by == "hour":
            return Begin(self.at, length=13)
        if self.by == "day":
            return Begin(self.at, length=10)
        its = Session.objects.using(alias).filter(pk=OuterRef("session_id"))
        if self.by == "session_status":
            status = Subquery(its.values("status")[:1])
            return Coalesce(status, Value("none"), output_field=CharField())
        if self.by == "runner_id" and self.model is Sandbox:
            return Subquery(its.values("runner_id")[:1])
        return F(self.by)


# -- what changed


class Change(NamedTuple):
    """A recently written row, when it was written, and what is known to have happened.

    A row keeps only the time of its last write, so what is known is little.
    """

    at: datetime
    what: str
    row: Any


# The tables, the time of a row's last write, and what is known of it. Deletions leave nothing behind; the audit log has
# those of the console.
_WRITTEN: tuple[tuple[type[Model], str, Any], ...] = (
    (Session, "last_active_at", gettext_lazy("active")),
    (Sandbox, "last_used_at", gettext_lazy("used")),
    (Agent, "updated_at", gettext_lazy("deployed")),
    (ApiKey, "created_at", gettext_lazy("issued")),
)


def changes(
    alias: str,
    since: datetime,
    tables: Collection[type[Model]],
    problems: list[Problem],
) -> list[Change]:
    """Return what was written since, the latest first, across those of the tables.

    A row whose time cannot be read has no place in this order; ``problems`` gets a sentence that names it.
    At most ``MOST_CHANGES``, and sessions only among the ``SAMPLE`` newest: no index orders them by their last
    activity, and a million take seconds to sort.
    """
    found = []
    for model, at, what in _WRITTEN:
        if model not in tables:
            continue
        written: Any = model._default_manager.using(alias)
        rows = written.filter(**{f"{at}__gte": since})
        if model is Session:
            # The subquery is read once, by the index on creation; the filter on time then sees only its rows.
            newest = written.newest_first().values("pk")[:SAMPLE]
            rows = rows.filter(pk__in=Subquery(newest))
        latest = rows.order_by(f"-{at}")[:MOST_CHANGES]
        for row in read(latest, problems):
            written_at = getattr(row, at)
            if is_unreadable(written_at):
                continue
            said = str(what)
            is_known = model is Session and not is_unreadable(row.created_at)
            if is_known and row.created_at >= since:
                said = gettext("opened")
            found.append(Change(written_at, said, row))
    found.sort(key=lambda change: change.at, reverse=True)
    return found[:MOST_CHANGES]
