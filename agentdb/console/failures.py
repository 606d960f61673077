"""Compare failures of the last hour with those before: overall, per agent, per tenant, and per agent of a tenant."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from math import log
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import Q
from django.utils.translation import gettext

from agentdb.console.figures import select_from
from agentdb.interface import SessionStatus
from agentdb.models import Session

FAILING_MINUTES = 60
SAMPLE = 10_000  # sessions that each query reads
MOST_FAILED = 50_000  # failed ones, which are few and may have been opened long ago
FEWEST = 5  # fewer failures are not an incident
FEWEST_FOR_HALF = 10  # of this many sessions half failing is an incident, however usual
RAREST = 0.01  # the lowest usual share that is assumed
FEWEST_FOR_USUAL = 20  # sessions needed to know the usual share
MOST_TOLD = (
    3  # groups reported separately; more of them are assumed to have a common cause
)
SURE = 12.0  # by chance less than once in exp(12) = 160,000 hours

_FAILED = Q(status=SessionStatus.ERROR.value)
_ACTIVE = Q(status=SessionStatus.ACTIVE.value)
_LATELY, _BAD = "last_active_at >= %s", f"status = '{SessionStatus.ERROR}'"
_COUNTS = (
    f"SELECT agent_name, tenant_id, COUNT(CASE WHEN {_LATELY} THEN 1 END), "
    f"COUNT(CASE WHEN {_LATELY} AND {_BAD} THEN 1 END), "
    f"COUNT(CASE WHEN NOT {_LATELY} THEN 1 END), "
    f"COUNT(CASE WHEN NOT {_LATELY} AND {_BAD} THEN 1 END) FROM {{rows}}"
)


class Group(NamedTuple):
    """The sessions of an agent, of a tenant, of both, or with neither all of them; of the last hour, and before."""

    agent_name: str | None
    tenant_id: str | None
    sessions: int = 0
    failed: int = 0
    sessions_before: int = 0
    failed_before: int = 0

    @property
    def share(self) -> float:
        return self.failed / self.sessions if self.sessions else 0.0

    @property
    def share_before(self) -> float:
        return (
            self.failed_before / self.sessions_before if self.sessions_before else 0.0
        )

    def includes(self, other: Group) -> bool:
        return all(
            mine in (None, its) for mine, its in zip(self[:2], other[:2], strict=True)
        )

    @property
    def matching(self) -> Q:
        named = {"agent_name": self.agent_name, "tenant_id": self.tenant_id}
        return Q(**{name: value for name, value in named.items() if value is not None})

    def __str__(self) -> str:
        name = {
            (False, False): gettext("all sessions"),
            (True, False): gettext("agent %(agent)s"),
            (False, True): gettext("tenant %(tenant)s"),
            (True, True): gettext("agent %(agent)s of %(tenant)s"),
        }[self.agent_name is not None, self.tenant_id is not None]
        numbers = {"failed": f"{self.failed:,}", "sessions": f"{self.sessions:,}"}
        said = [
            name % {"agent": self.agent_name, "tenant": self.tenant_id},
            gettext("%(failed)s of %(sessions)s") % numbers,
        ]
        if not self.sessions_before:
            return ": ".join(said)
        usual = gettext("usually %s") % f"{100 * self.share_before:.1f} %"
        return f"{': '.join(said)}, {usual}"


@dataclass(frozen=True, slots=True)
class Failures:
    """The groups that fail far more often than usual, without those that an earlier group explains."""

    groups: Sequence[Group] = ()
    since: datetime | None = None
    is_cut: bool = False
    failed: int = 0

    @property
    def detail(self) -> str:
        return "; ".join(map(str, self.groups))

    def rows(self, sessions: Any) -> Any:
        matching = Q(pk__in=[])
        for group in self.groups:
            matching |= group.matching
        return sessions.filter(_FAILED, matching, last_active_at__gte=self.since)


def failures(alias: str, now: datetime) -> Failures:
    """Return what fails far more often than usual, from samples that an index finds.

    Sessions opened within the hour are judged apart from older ones, because many sessions that run for days would hide
    that all new ones fail. An older session counts if its last activity is within the hour. No index has that, so they
    are searched among the failed, the active, and the newest others.
    """
    since = now - timedelta(minutes=FAILING_MINUTES)
    sessions = Session.objects.using(alias)
    earlier = sessions.filter(created_at__lt=since)
    lately, in_sql = Q(last_active_at__gte=since), f" WHERE {_LATELY}"
    new = _cells(sessions.filter(created_at__gte=since), since)
    old = _cells(earlier.filter(_FAILED), since, in_sql, most=MOST_FAILED)
    failing = [cell for cell in new + old if cell.failed]
    if sum(cell.failed for cell in failing) < FEWEST:
        return Failures()
    # A quiet hour, the common case, ends above without these two queries.
    old += _cells(earlier.filter(_ACTIVE), since, in_sql)
    others = _cells(earlier.exclude((_FAILED | _ACTIVE) & lately), since)
    # For new sessions the others only tell the usual share: those of them that were active in this hour are older
    # ones, which are judged apart.
    before = [cell._replace(sessions=0, failed=0) for cell in others]
    told: list[Group] = []
    flagged = _told(new + before) + _told(old + others)
    for group in sorted(flagged, key=lambda group: -group.failed):
        if not any(each.includes(group) for each in told):
            told.append(group)
    is_cut = sum(cell.sessions for cell in new) >= SAMPLE
    return Failures(told, since, is_cut, _failed(failing, told))


def _cells(
    sessions: Any, since: datetime, condition: str = "", most: int | None = None
) -> list[Group]:
    """Count the newest sessions by agent and tenant."""
    newest = sessions.newest_first()
    # Newest first by (status, created_at) or (created_at): no sort, and the LIMIT ends the walk through the index.
    columns = newest.values("tenant_id", "agent_name", "status", "last_active_at")
    rows = columns[: most or SAMPLE]
    at = connections[rows.db].ops.adapt_datetimefield_value(since)
    query = f"{_COUNTS}{condition} GROUP BY 1, 2"
    after = [at] * condition.count("%s")
    return [Group(*row) for row in select_from(rows, query, [at] * 4, after)]


def _sum(agent: str | None, tenant: str | None, cells: Iterable[Group]) -> Group:
    numbers = list(zip(*cells, strict=True))[2:]
    return Group(agent, tenant, *map(sum, numbers))


def _groups(cells: Sequence[Group]) -> Iterator[Group]:
    """By agent, by tenant, by both, those with enough failures: the less there is to say of it, the earlier.

    A million sessions can have 20,000 cells, nearly all without a failure. So the few names with failures are found
    first, and only their cells are summed.
    """
    keys: tuple[Callable[[Group], tuple[str | None, str | None]], ...] = (
        lambda cell: (cell.agent_name, None),
        lambda cell: (None, cell.tenant_id),
        lambda cell: (cell.agent_name, cell.tenant_id),
    )
    for key in keys:
        failed: Counter[tuple[str | None, str | None]] = Counter()
        for cell in cells:
            if cell.failed:
                failed[key(cell)] += cell.failed
        parts = {names: list[Group]() for names, n in failed.items() if n >= FEWEST}
        for cell in cells if parts else ():
            if key(cell) in parts:
                parts[key(cell)].append(cell)
        for (agent, tenant), of_part in parts.items():
            yield _sum(agent, tenant, of_part)


def _told(cells: Sequence[Group]) -> list[Group]:
    """Return one group for each incident: the whole, unless a few parts have nearly all failures."""
    whole = _sum(None, None, cells)
    flagged = [
        group
        for group in _groups(cells)
        if group[2:] != whole[2:] and is_far_above(group, whole)
    ]
    told: list[Group] = []
    # A group counts only if most of its failures are not explained yet, so that one bad agent of one tenant does not
    # name the agent, the tenant and the pair.
    for group in sorted(flagged, key=lambda group: -group.failed * group.share):
        mine = filter(group.includes, cells)
        if len(told) <= MOST_TOLD and 2 * _failed(mine, told) < group.failed:
            told.append(group)
    is_part = len(told) <= MOST_TOLD and _failed(cells, told) >= 0.8 * whole.failed
    return told if is_part or not is_far_above(whole, whole) else [whole]


def _failed(cells: Iterable[Group], groups: Sequence[Group]) -> int:
    """Return how many failures in the cells belong to one of the groups."""
    return sum(
        cell.failed
        for cell in cells
        if cell.failed and any(group.includes(cell) for group in groups)
    )


def is_far_above(group: Group, whole: Group) -> bool:
    """Return whether at least twice the usual share failed, and more than chance explains (Chernoff's bound)."""
    share = group.share
    if group.failed < FEWEST:
        return False
    if group.sessions >= FEWEST_FOR_HALF and share >= 0.5:
        return True
    # A group that is rarely used has no usual share of its own.
    usual = group if group.sessions_before >= FEWEST_FOR_USUAL else whole
    expected = min(max(usual.share_before, RAREST), 1 - RAREST)
    if share < 2 * expected:
        return False
    # The Kullback-Leibler divergence: n sessions fail this often by chance with a probability below exp(-n * surprise).
    surprise = share * log(share / expected)
    if share < 1:
        surprise += (1 - share) * log((1 - share) / (1 - expected))
    return group.sessions * surprise > SURE
