"""Failures of the last hour beside those before: of all sessions, of an agent, of a tenant, of an agent of a tenant."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import log
from typing import Any

from django.db import connections
from django.db.models import Q, QuerySet
from django.utils.translation import gettext

from agentdb.interface import SessionStatus
from agentdb.models import Session

FAILING_MINUTES = 60
SAMPLE = 10_000  # sessions of the last hour that are looked at, and as many before
FEWEST = 5  # failures that can be an incident
FEWEST_FOR_HALF = 10  # sessions of which half may not fail, however usual that is
RAREST = 0.01  # no share of failures is taken to be rarer than this
FEWEST_FOR_USUAL = 20  # sessions from which a share is known
MOST_TOLD = 3  # groups with a cause of their own; more of them have one in common
SURE = 12.0  # chance would do it less than once in exp(12) = 160,000 hours


@dataclass(frozen=True, slots=True)
class Rate:
    """How many sessions there were, and of these how many failed."""

    sessions: int = 0
    failed: int = 0

    def __add__(self, other: Rate) -> Rate:
        return Rate(self.sessions + other.sessions, self.failed + other.failed)

    @property
    def share(self) -> float:
        return self.failed / self.sessions if self.sessions else 0.0


@dataclass(frozen=True, slots=True)
class Group:
    """The sessions of an agent, of a tenant, of both, or with neither all of them; lately, and before."""

    agent_name: str | None
    tenant_id: str | None
    lately: Rate
    before: Rate

    def includes(self, other: Group) -> bool:
        return self.agent_name in (None, other.agent_name) and self.tenant_id in (
            None,
            other.tenant_id,
        )

    @property
    def matching(self) -> Q:
        named = {"agent_name": self.agent_name, "tenant_id": self.tenant_id}
        return Q(
            **{column: value for column, value in named.items() if value is not None}
        )

    def __str__(self) -> str:
        name = {
            (False, False): gettext("all sessions"),
            (True, False): gettext("agent %(agent)s"),
            (False, True): gettext("tenant %(tenant)s"),
            (True, True): gettext("agent %(agent)s of %(tenant)s"),
        }[self.agent_name is not None, self.tenant_id is not None]
        rate = gettext("%(failed)s of %(sessions)s") % {
            "failed": f"{self.lately.failed:,}",
            "sessions": f"{self.lately.sessions:,}",
        }
        usual = (
            gettext("usually %s") % f"{100 * self.before.share:.1f} %"
            if self.before.sessions
            else ""
        )
        shown = name % {"agent": self.agent_name, "tenant": self.tenant_id}
        return f"{shown}: {rate}{', ' if usual else ''}{usual}"


@dataclass(frozen=True, slots=True)
class Failures:
    """The groups that fail far more often than usual, without those that are explained by one before them."""

    groups: tuple[Group, ...]
    since: datetime
    is_cut: bool
    failed: int

    @property
    def detail(self) -> str:
        return "; ".join(map(str, self.groups))

    def rows(self, sessions: Any) -> QuerySet[Any]:
        matching = Q(pk__in=[])
        for group in self.groups:
            matching |= group.matching
        failed = sessions.filter(
            status=SessionStatus.ERROR.value, last_active_at__gte=self.since
        )
        rows: QuerySet[Any] = failed.filter(matching)
        return rows


def failures(alias: str, now: datetime) -> Failures:
    """What fails far above the usual, from a sample that an index finds."""
    since = now - timedelta(minutes=FAILING_MINUTES)
    cells = _cells(alias, since)
    told = _told(cells)
    is_cut = sum(cell.lately.sessions for cell in cells) >= SAMPLE
    return Failures(tuple(told), since, is_cut, failed_of(cells, told))


def _cells(alias: str, since: datetime) -> list[Group]:
    """Each agent of each tenant, with the sessions that were active in the last hour, and those before.

    A session counts as lately by its last activity: one that was opened in the morning may fail now.
    """
    newest = Session.objects.using(alias).newest_first()
    sessions = newest.values("tenant_id", "agent_name", "status", "last_active_at")
    connection = connections[alias]
    inner, parameters = [], []
    for opened in (
        sessions.filter(created_at__gte=since),
        sessions.filter(created_at__lt=since),
    ):
        sql, values = opened[:SAMPLE].query.get_compiler(using=alias).as_sql()
        inner.append(f"SELECT * FROM ({sql}) AS newest")
        parameters += values
    lately, failed = (
        "CASE WHEN last_active_at >= %s THEN 1 ELSE 0 END",
        "CASE WHEN status = %s THEN 1 ELSE 0 END",
    )
    at = connection.ops.adapt_datetimefield_value(since)
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT tenant_id, agent_name, {lately} AS lately, COUNT(*), SUM({failed}) "
            f"FROM ({' UNION ALL '.join(inner)}) AS sampled GROUP BY tenant_id, agent_name, lately",
            [at, SessionStatus.ERROR.value, *parameters],
        )
        rows = cursor.fetchall()
    cells = []
    for tenant, agent, is_lately, number, bad in rows:
        rate = Rate(number, int(bad))
        cells.append(
            Group(agent, tenant, rate, Rate())
            if is_lately
            else Group(agent, tenant, Rate(), rate)
        )
    return cells


def _groups(cells: Sequence[Group]) -> Iterator[Group]:
    """By agent, by tenant, by both: the less there is of it to say, the earlier."""
    for names in (("agent_name",), ("tenant_id",), ("agent_name", "tenant_id")):
        summed: dict[tuple[str | None, str | None], tuple[Rate, Rate]] = {}
        for cell in cells:
            key = (
                cell.agent_name if "agent_name" in names else None,
                cell.tenant_id if "tenant_id" in names else None,
            )
            lately, before = summed.get(key, (Rate(), Rate()))
            summed[key] = (lately + cell.lately, before + cell.before)
        for (agent_name, tenant_id), (lately, before) in summed.items():
            yield Group(agent_name, tenant_id, lately, before)


def _told(cells: Sequence[Group]) -> list[Group]:
    """One group for one incident: the whole, unless nearly all failures are those of a few parts of it."""
    whole = Group(
        None,
        None,
        sum((c.lately for c in cells), Rate()),
        sum((c.before for c in cells), Rate()),
    )
    parts = [
        group
        for group in _groups(cells)
        if (group.lately, group.before) != (whole.lately, whole.before)
    ]
    flagged = [group for group in parts if is_far_above(group, whole.before)]
    told: list[Group] = []
    for group in sorted(
        flagged, key=lambda each: -each.lately.failed * each.lately.share
    ):
        mine = list(filter(group.includes, cells))
        if len(told) <= MOST_TOLD and 2 * failed_of(mine, told) < group.lately.failed:
            told.append(group)
    is_part = (
        len(told) <= MOST_TOLD and failed_of(cells, told) >= 0.8 * whole.lately.failed
    )
    return told if is_part or not is_far_above(whole, whole.before) else [whole]


def failed_of(cells: Sequence[Group], groups: Sequence[Group]) -> int:
    """How many failures of the cells belong to one of the groups."""
    return sum(
        cell.lately.failed
        for cell in cells
        if any(group.includes(cell) for group in groups)
    )


def is_far_above(group: Group, usual_of_all: Rate) -> bool:
    """Whether more failed than chance explains (Chernoff's bound on the binomial tail), and twice the usual share."""
    lately = group.lately
    if lately.failed < FEWEST:
        return False
    if lately.sessions >= FEWEST_FOR_HALF and lately.share >= 0.5:
        return True
    before = group.before if group.before.sessions >= FEWEST_FOR_USUAL else usual_of_all
    usual = min(max(before.share, RAREST), 1 - RAREST)
    if lately.share < 2 * usual:
        return False
    surprise = lately.share * log(lately.share / usual)
    if lately.share < 1:
        surprise += (1 - lately.share) * log((1 - lately.share) / (1 - usual))
    return lately.sessions * surprise > SURE
