"""Failures of the last hour beside those before: of all sessions, of an agent, of a tenant, of an agent of a tenant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import log
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import Q, QuerySet
from django.utils.translation import gettext

from agentdb.console.figures import select_from
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

_LATELY, _FAILED = "last_active_at >= %s", f"status = '{SessionStatus.ERROR}'"
_RATES = (
    f"SELECT tenant_id, agent_name, SUM(CASE WHEN {_LATELY} THEN 1 ELSE 0 END), "
    f"SUM(CASE WHEN {_LATELY} AND {_FAILED} THEN 1 ELSE 0 END), "
    f"SUM(CASE WHEN {_LATELY} THEN 0 ELSE 1 END), "
    f"SUM(CASE WHEN NOT {_LATELY} AND {_FAILED} THEN 1 ELSE 0 END) FROM {{rows}}"
)


@dataclass(frozen=True, slots=True)
class Rate:
    """How many sessions there were, and of these how many failed."""

    sessions: int = 0
    failed: int = 0

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

    def includes(self, other: Cell) -> bool:
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
        if self.agent_name is not None and self.tenant_id is not None:
            name = gettext("agent %(agent_name)s of %(tenant_id)s")
        elif self.agent_name is not None:
            name = gettext("agent %(agent_name)s")
        elif self.tenant_id is not None:
            name = gettext("tenant %(tenant_id)s")
        else:
            name = gettext("all sessions")
        said = gettext("%(name)s: %(failed)s of %(sessions)s") % {
            "name": name % {"agent_name": self.agent_name, "tenant_id": self.tenant_id},
            "failed": f"{self.lately.failed:,}",
            "sessions": f"{self.lately.sessions:,}",
        }
        if not self.before.sessions:
            return said
        return f"{said}, " + gettext("usually %s") % f"{100 * self.before.share:.1f} %"


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


class Cell(NamedTuple):
    """The sessions of one agent of one tenant, and how many of them failed; lately, and before."""

    tenant_id: str
    agent_name: str
    sessions: int
    failed: int
    sessions_before: int
    failed_before: int


def failures(alias: str, now: datetime) -> Failures:
    """What fails far above the usual, from samples that an index finds.

    A session counts as lately by its last activity: one that was opened in the morning may fail now. Failures are
    looked for among failed sessions alone, because they can be far from the newest of all.
    """
    since = now - timedelta(minutes=FAILING_MINUTES)
    sessions = Session.objects.using(alias)
    failed = Q(status=SessionStatus.ERROR.value)
    cells = _cells(sessions.filter(failed), since, f" WHERE {_LATELY}")
    if sum(cell.failed for cell in cells) < FEWEST:
        return Failures((), since, False, 0)
    others = sessions.exclude(failed & Q(last_active_at__gte=since))
    for opened in (Q(created_at__gte=since), Q(created_at__lt=since)):
        cells += _cells(others.filter(opened), since)
    whole = _group(None, None, cells)
    told = _told(cells, whole)
    is_cut = whole.lately.sessions >= SAMPLE
    return Failures(tuple(told), since, is_cut, failed_of(cells, told))


def _cells(sessions: Any, since: datetime, condition: str = "") -> list[Cell]:
    """Those of the newest sessions; an agent of a tenant may have several."""
    newest = sessions.newest_first()
    rows = newest.values("tenant_id", "agent_name", "status", "last_active_at")[:SAMPLE]
    at = connections[rows.db].ops.adapt_datetimefield_value(since)
    query = f"{_RATES}{condition} GROUP BY 1, 2"
    after = [at] * condition.count("%s")
    return [Cell(*row) for row in select_from(rows, query, [at] * 4, after)]


def _group(agent: str | None, tenant: str | None, cells: Iterable[Cell]) -> Group:
    sums = [sum(numbers) for numbers in list(zip(*cells, strict=True))[2:]]
    sessions, failed, sessions_before, failed_before = sums or (0, 0, 0, 0)
    before = Rate(sessions_before, failed_before)
    return Group(agent, tenant, Rate(sessions, failed), before)


def _groups(cells: Sequence[Cell]) -> Iterator[Group]:
    """By agent, by tenant, by both, those with enough failures: the less there is to say of it, the earlier.

    A million sessions can have 20,000 cells, and nearly all of them no failure. So the few names with failures are
    looked for first, and only their cells are summed.
    """
    keys: tuple[Callable[[Cell], tuple[str | None, str | None]], ...] = (
        lambda cell: (cell.agent_name, None),
        lambda cell: (None, cell.tenant_id),
        lambda cell: (cell.agent_name, cell.tenant_id),
    )
    for key in keys:
        failed: Counter[tuple[str | None, str | None]] = Counter()
        for cell in cells:
            if cell.failed:
                failed[key(cell)] += cell.failed
        parts = {names: list[Cell]() for names, n in failed.items() if n >= FEWEST}
        for cell in cells if parts else ():
            if key(cell) in parts:
                parts[key(cell)].append(cell)
        for (agent, tenant), of_part in parts.items():
            yield _group(agent, tenant, of_part)


def _told(cells: Sequence[Cell], whole: Group) -> list[Group]:
    """One group for one incident: the whole, unless nearly all failures are those of a few parts of it."""
    flagged = [
        group
        for group in _groups(cells)
        if (group.lately, group.before) != (whole.lately, whole.before)
        and is_far_above(group, whole.before)
    ]
    flagged.sort(key=lambda group: -group.lately.failed * group.lately.share)
    failing = [cell for cell in cells if cell.failed]
    told: list[Group] = []
    for group in flagged:
        mine = list(filter(group.includes, failing))
        if len(told) <= MOST_TOLD and 2 * failed_of(mine, told) < group.lately.failed:
            told.append(group)
    is_part = (
        len(told) <= MOST_TOLD and failed_of(failing, told) >= 0.8 * whole.lately.failed
    )
    return told if is_part or not is_far_above(whole, whole.before) else [whole]


def failed_of(cells: Iterable[Cell], groups: Sequence[Group]) -> int:
    """How many failures of the cells belong to one of the groups."""
    return sum(
        cell.failed
        for cell in cells
        if cell.failed and any(group.includes(cell) for group in groups)
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
