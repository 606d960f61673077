"""Compare failures of the last hour with those before: overall, per agent, per tenant, and per agent of a tenant."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from datetime import datetime, timedelta
from math import log
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import Q
from django.utils.translation import gettext, gettext_lazy

from agentdb.console.display import percent
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
# Groups reported separately; more of them are assumed to have a common cause.
MOST_TOLD = 3
SURE = 12.0  # by chance less than once in exp(12) = 160,000 hours

_FAILED = Q(status=SessionStatus.ERROR.value)
_ACTIVE = Q(status=SessionStatus.ACTIVE.value)
_LATELY = "last_active_at >= %s"
_BAD = f"status = '{SessionStatus.ERROR}'"
_COUNTS = (
    f"SELECT agent_name, tenant_id, COUNT(CASE WHEN {_LATELY} THEN 1 END), "
    f"COUNT(CASE WHEN {_LATELY} AND {_BAD} THEN 1 END), "
    f"COUNT(CASE WHEN NOT {_LATELY} THEN 1 END), "
    f"COUNT(CASE WHEN NOT {_LATELY} AND {_BAD} THEN 1 END) FROM {{rows}}"
)


# What a group is called by the columns that it is named by; the less there is to say of one, the earlier.
_NAMES = {
    (): gettext_lazy("all sessions"),
    ("agent_name",): gettext_lazy("agent %(agent_name)s"),
    ("tenant_id",): gettext_lazy("tenant %(tenant_id)s"),
    ("agent_name", "tenant_id"): gettext_lazy("agent %(agent_name)s of %(tenant_id)s"),
}


class Group(NamedTuple):
    """The sessions of an agent, of a tenant, of both, or all of them; of the last hour, and before."""

    key: tuple[tuple[str, str], ...]  # columns and their values
    sessions: int
    failed: int
    sessions_before: int
    failed_before: int

    def includes(self, other: Group) -> bool:
        """Return whether the other group's sessions are all in this one."""
        return set(self.key) <= set(other.key)

    def __str__(self) -> str:
        values = dict(self.key)
        name = _NAMES[tuple(values)] % values
        said = f"{name}: " + gettext("%(failed)s of %(sessions)s") % {
            "failed": f"{self.failed:,}",
            "sessions": f"{self.sessions:,}",
        }
        if self.sessions_before:
            usual = percent(self.failed_before, self.sessions_before)
            said += ", " + gettext("usually %s") % usual
        return said


class Failures(NamedTuple):
    """The groups that fail far more often than usual, without those that an earlier group explains.

    ``failed`` counts their sessions that failed since; ``is_cut`` says that there may be more than were read.
    """

    groups: Sequence[Group] = ()
    since: datetime | None = None
    is_cut: bool = False
    failed: int = 0

    @property
    def detail(self) -> str:
        return "; ".join(map(str, self.groups))

    def rows(self, sessions: Any) -> Any:
        """Return the sessions of the last hour that failed and belong to one of the groups."""
        matching = Q(pk__in=[])
        for group in self.groups:
            matching |= _FAILED & Q(*group.key)
        return sessions.filter(matching, last_active_at__gte=self.since)


def failures(alias: str, now: datetime) -> Failures:
    """Return what fails far more often than usual, from samples that an index finds.

    Sessions opened within the hour are judged apart from older ones, because many sessions that run for days would hide
    that all new ones fail. An older session counts if its last activity is within the hour. No index has that, so they
    are searched among the failed, the active, and the newest others.
    """
    since = now - timedelta(minutes=FAILING_MINUTES)
    sessions = Session.objects.using(alias)
    earlier = sessions.filter(created_at__lt=since)
    new = _cells(sessions.filter(created_at__gte=since), since)
    old = _cells(earlier.filter(_FAILED), since, lately=True, most=MOST_FAILED)
    failing = [cell for cell in new + old if cell.failed]
    if sum(cell.failed for cell in failing) < FEWEST:
        return Failures()
    # A quiet hour, the common case, ends above without these two queries.
    old += _cells(earlier.filter(_ACTIVE), since, lately=True)
    counted = (_FAILED | _ACTIVE) & Q(last_active_at__gte=since)
    others = _cells(earlier.exclude(counted), since)
    # For new sessions the others only tell the usual share: those of them that were active in this hour are older
    # ones, which are judged apart.
    before = [cell._replace(sessions=0, failed=0) for cell in others]
    flagged = _told(new + before) + _told(old + others)
    flagged.sort(key=lambda group: -group.failed)
    # New and old sessions may tell of the same agent or tenant.
    told: list[Group] = []
    for group in flagged:
        if not any(each.includes(group) for each in told):
            told.append(group)
    return Failures(
        told,
        since,
        is_cut=sum(cell.sessions for cell in new) >= SAMPLE,
        failed=_failed(failing, told),
    )


def _cells(
    sessions: Any,
    since: datetime,
    *,
    lately: bool = False,
    most: int | None = None,
) -> list[Group]:
    """Count the newest sessions by agent and tenant; with ``lately`` those active since.

    Not more than ``most`` are read, or ``SAMPLE`` unless given.
    """
    # Newest first by (status, created_at) or (created_at): no sort, and the LIMIT ends the walk through the index.
    newest = sessions.newest_first()[: most or SAMPLE]
    rows = newest.values("tenant_id", "agent_name", "status", "last_active_at")
    at = connections[rows.db].ops.adapt_datetimefield_value(since)
    query, after = _COUNTS, []
    if lately:
        query += f" WHERE {_LATELY}"
        after = [at]
    found = select_from(rows, f"{query} GROUP BY 1, 2", [at] * 4, after)
    return [
        Group((("agent_name", agent), ("tenant_id", tenant)), *counts)
        for agent, tenant, *counts in found
    ]


def _groups(cells: Sequence[Group]) -> Iterator[Group]:
    """Yield the groups in the cells that have a failure."""
    for columns in _NAMES:
        parts: dict[Any, list[Group]] = {}
        for cell in cells:
            key = tuple(each for each in cell.key if each[0] in columns)
            parts.setdefault(key, []).append(cell)
        for key, part in parts.items():
            # A million sessions can have 20,000 cells, nearly all without a failure.
            if any(cell.failed for cell in part):
                counts = zip(*(cell[1:] for cell in part), strict=True)
                yield Group(key, *map(sum, counts))


def _told(cells: Sequence[Group]) -> list[Group]:
    """Return one group for each incident: the whole, unless a few parts have nearly all failures.

    The cells are those of new or of old sessions. Parts are told that fail far more often than usual.
    """
    groups = list(_groups(cells))
    if not groups:
        return []
    whole, *parts = groups
    told: list[Group] = []
    # A group counts only if most of its failures are not explained yet, so that one bad agent of one tenant does not
    # name the agent, the tenant and the pair.
    for group in _far_above(parts, whole):
        mine = [cell for cell in cells if group.includes(cell)]
        if len(told) <= MOST_TOLD and 2 * _failed(mine, told) < group.failed:
            told.append(group)
    # If everything fails, so do its parts: nearly all failures must be theirs, and they must be few, or the cause is a
    # common one, and the whole is told.
    parts_explain = _failed(cells, told) >= 0.8 * whole.failed
    if parts_explain and len(told) <= MOST_TOLD:
        return told
    return [whole] if is_far_above(whole, whole) else told


def _far_above(parts: Sequence[Group], whole: Group) -> list[Group]:
    """Return the parts that fail far more often than usual, the worst first; none that is the whole."""
    far_above = [
        part for part in parts if part[1:] != whole[1:] and is_far_above(part, whole)
    ]
    # By the number of failures times their share.
    return sorted(far_above, key=lambda part: -(part.failed**2) / part.sessions)


def _failed(cells: Iterable[Group], groups: Sequence[Group]) -> int:
    """Return how many failures in the cells belong to one of the groups."""
    return sum(
        cell.failed for cell in cells if any(group.includes(cell) for group in groups)
    )


def is_far_above(group: Group, whole: Group) -> bool:
    """Return whether at least twice the usual share failed, and more than chance explains (Chernoff's bound).

    The usual share is the group's own before the hour, or that of the ``whole`` if the group was rarely used.
    """
    if group.failed < FEWEST:
        return False
    share = group.failed / group.sessions
    # Also if that is usual: a fleet in which half of all fails is not well.
    if group.sessions >= FEWEST_FOR_HALF and share >= 0.5:
        return True
    known = group if group.sessions_before >= FEWEST_FOR_USUAL else whole
    usual = known.failed_before / max(known.sessions_before, 1)
    expected = max(usual, RAREST)
    if share < 2 * expected:
        return False
    # The Kullback-Leibler divergence: n sessions fail this often by chance with a probability below exp(-n * surprise).
    surprise = share * log(share / expected)
    if share < 1:
        surprise += (1 - share) * log((1 - share) / (1 - expected))
    return group.sessions * surprise > SURE
