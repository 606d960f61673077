"""What can be wrong with rows. A check is a queryset: the overview counts it, a list shows it, a row's page runs it.

A runner's **sign of life** is the latest activity of one of its active, starting or ended sessions. A paused, stopped
or failed session is not one: an operator, or a server that noticed the runner's death, may have written that.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import (
    Case,
    Count,
    Exists,
    Max,
    Model,
    OuterRef,
    Q,
    QuerySet,
    Subquery,
    TextField,
    Value,
    When,
)
from django.db.models.functions import Cast, Coalesce
from django.utils import timezone
from django.utils.translation import gettext, ngettext, ngettext_lazy

from agentdb.console.display import readable, relative
from agentdb.console.failures import Failures, failures
from agentdb.console.figures import select_from
from agentdb.console.questions import Problem
from agentdb.interface import SandboxState, SessionStatus
from agentdb.models import Agent, Sandbox, Session
from agentdb.querysets import FINISHED, SessionQuerySet

# The sentences of checks() name these.
STARTING_MINUTES = 5
SILENT_MINUTES = 30
RUNNER_MINUTES = 10
GRACE_MINUTES = 1  # a server writes a session and its sandbox one after the other
CAP = 10_000  # rows of a check that are counted
RUNNERS_ASKED_AGAIN = 100
LOOKUP_OF_RUNNER = 500  # the newest sessions of a runner that are read

_READY = (SandboxState.WARM.value, SandboxState.WAITING.value)
_UP = (SandboxState.RUNNING.value, SandboxState.WARMING.value, *_READY)
_PAUSED = SessionStatus.PAUSED.value


@dataclass(frozen=True)
class Finding:
    """What one check found. ``count`` is a lower bound if ``at_least``."""

    code: str
    title: str  # what is checked
    count: int = 0
    at_least: bool = False
    urgent: bool = False
    sentence: str = ""
    detail: str = ""
    problem: Problem | None = None
    runner: str = ""  # the runner concerned, if it is a single one

    @property
    def shown(self) -> str:
        return f"{self.count:,}{'+' if self.at_least else ''}"


class Runner(NamedTuple):
    """A runner; ``seen_at`` is its last sign of life, or None."""

    id: str
    seen_at: datetime | None
    active: int
    starting: int

    @property
    def live(self) -> int:
        return self.active + self.starting

    @property
    def condition(self) -> str:
        """'silent', or empty if all is well or no session is live."""
        long_ago = timezone.now() - timedelta(minutes=RUNNER_MINUTES)
        is_seen = self.seen_at is not None and self.seen_at >= long_ago
        return "" if is_seen or not self.live else "silent"


class Fleet:
    """The state of a database at one moment, so that all checks see the same silent runners and failures.

    Each is asked for when a check first needs it.
    """

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.now = timezone.now()
        self.latest = self.now + timedelta(days=1)  # no clock is further ahead
        self.sessions = Session.objects.using(alias)
        self.sandboxes = Sandbox.objects.using(alias)

    def ago(self, minutes: int) -> datetime:
        """Return the instant so long before the fleet's own, which is the same for all checks."""
        return self.now - timedelta(minutes=minutes)

    @cached_property
    def runners(self) -> list[Runner]:
        """The runners with live sessions, the silent ones first, then by the number of live sessions."""
        # The longest silent first: of these the ended sessions are asked for, as far as the limit allows.
        runners = sorted(
            self._count_live(self.sessions),
            key=lambda runner: (runner.seen_at or self.now, runner.id),
        )
        # A session that a runner ended is a sign of life too, but no index has a runner's ended sessions by time. So
        # this is asked of the runners alone that look silent, and of at most so many: the others count as silent.
        for number, runner in enumerate(runners[:RUNNERS_ASKED_AGAIN]):
            if runner.condition:
                runners[number] = self._with_ended(runner)
        return sorted(
            runners,
            key=lambda runner: (not runner.condition, -runner.live, runner.id),
        )

    @cached_property
    def silent_runners(self) -> list[str]:
        """The ids of the silent runners, whose sessions some checks leave out."""
        return [runner.id for runner in self.runners if runner.condition == "silent"]

    @cached_property
    def failures(self) -> Failures:
        """What fails far more often than usual."""
        return failures(self.alias, self.now)

    def silent_for(self, minutes: int, at: str = "last_active_at") -> Q:
        """Return the condition of rows without a sign of life for so long.

        A time that cannot be right, more than a day ahead, is not a sign.
        """
        is_old = Q(**{f"{at}__lt": self.ago(minutes)})
        is_ahead = Q(**{f"{at}__gt": self.latest})
        return is_old | is_ahead

    def settled(self) -> SessionQuerySet:
        """Return live sessions except new ones: a server writes a session and what it names one after the other."""
        return self.sessions.live().idle_since(self.ago(GRACE_MINUTES))

    def runner(self, runner_id: str) -> Runner:
        """Return one runner, judged by the same rule.

        Its page also opens if none of its sessions is live: then it is not counted, and only ended ones speak for it.
        """
        counted = self._count_live(self.sessions.of_runner(runner_id))
        runner = counted[0] if counted else Runner(runner_id, None, 0, 0)
        return self._with_ended(runner)

    def _count_live(self, sessions: Any) -> list[Runner]:
        """Return the runners of the live ones among the sessions, each with the latest activity of these.

        That activity is None if none of the times can be right.
        """
        live = sessions.live().filter(runner_id__isnull=False).order_by()
        # FILTER instead of a WHERE, because a runner whose only times are wrong must be counted as well.
        newest = Max("last_active_at", filter=Q(last_active_at__lte=self.latest))
        counted = live.values("runner_id").annotate(
            # As text, because a single time that Python cannot hold would fail the whole query.
            seen=Cast(newest, TextField()),
            active=Count("pk", filter=Q(status=SessionStatus.ACTIVE.value)),
            starting=Count("pk", filter=Q(status=SessionStatus.STARTING.value)),
        )
        return [
            Runner(
                row["runner_id"],
                readable(row["seen"]),
                row["active"],
                row["starting"],
            )
            for row in counted
        ]

    def _with_ended(self, runner: Runner) -> Runner:
        """Return the runner seen at the latest activity of its ended sessions, if that is later.

        A runner may have millions of them, and the latest activity is nearly always among the newest: these follow
        each other in the index by runner and creation.
        """
        newest = self.sessions.of_runner(runner.id).newest_first()
        latest = connections[self.alias].ops.adapt_datetimefield_value(self.latest)
        [(text,)] = select_from(
            newest.values("status", "last_active_at")[:LOOKUP_OF_RUNNER],
            "SELECT CAST(MAX(CASE WHEN status = 'ended' AND last_active_at <= %s THEN last_active_at END) AS text) "
            "FROM {rows}",
            [latest],
        )
        ended_at = readable(text)
        if ended_at is None:
            return runner
        if runner.seen_at is not None and runner.seen_at > ended_at:
            return runner
        return runner._replace(seen_at=ended_at)


def _count_rows(check: Check, fleet: Fleet) -> Finding:
    """Count up to ``CAP`` rows, and say how old the oldest is and what the rows have in common."""
    # One row more than the cap tells "10,000" from "10,000+". The grouping is outside the LIMIT, see select_from.
    rows = check.counted(fleet).order_by().values(check.by, check.at)[: CAP + 1]
    # The oldest as text, because Python cannot hold every time.
    groups = select_from(
        rows,
        f"SELECT {check.by}, COUNT(*), CAST(MIN({check.at}) AS text) FROM {{rows}} GROUP BY 1 ORDER BY 2 DESC, 1",
    )
    count = 0
    times = []
    for _, number, oldest in groups:
        count += number
        at = readable(oldest)
        # A clock that is ahead does not tell how long ago it was.
        if at is not None and at <= fleet.now:
            times.append(at)
    details = _common_values(check, groups)
    # Beyond the cap the oldest of the rows that were read says nothing about the others.
    if times and count <= CAP:
        details.insert(0, gettext("the oldest: %s") % relative(min(times)))
    return check.found(
        min(count, CAP),
        ", ".join(details),
        at_least=count > CAP,
    )


def _common_values(check: Check, groups: Sequence[tuple[Any, ...]]) -> list[str]:
    """Return what all rows have in common, or the two largest parts.

    A group is the value of the column ``by``, and how many rows have it.
    """
    parts: list[str] = []
    for name, number, _ in groups:
        if not name:
            continue
        if len(parts) == 2:
            return [*parts, "…"]
        count = gettext("all") if len(groups) == 1 else f"{number:,}"
        parts.append(check.shared % {"count": count, "name": name})
    return parts


class Check(NamedTuple):
    """One question about rows. ``rows`` are those that match.

    ``find_in`` says what the overview says of them, unless the rows are simply counted.
    """

    code: str
    title: str
    model: type[Model]
    rows: Callable[[Fleet], QuerySet[Any]]
    sentence: Any  # a lazy plural, which takes the count
    urgent: bool = False
    by: str = "runner_id"  # a column whose value the rows may share
    shared: str = ""
    # A silent runner's sessions are counted in its line, once.
    leaves_out_silent_runners: bool = False
    find_in: Callable[[Check, Fleet], Finding] = _count_rows

    @property
    def at(self) -> str:
        """The column with the row's age."""
        return "last_active_at" if self.model is Session else "last_used_at"

    def counted(self, fleet: Fleet) -> QuerySet[Any]:
        """Return the rows that the overview counts and the list shows."""
        rows = self.rows(fleet)
        if self.leaves_out_silent_runners:
            rows = rows.exclude(runner_id__in=fleet.silent_runners)
        return rows

    def found(
        self,
        count: int,
        detail: str,
        *,
        at_least: bool = False,
        runner: str = "",
    ) -> Finding:
        """Return the finding of so many rows, which is silent if there are none."""
        if not count:
            return Finding(self.code, self.title)
        return Finding(
            self.code,
            self.title,
            count,
            at_least,
            self.urgent,
            self.sentence % count,
            detail,
            runner=runner,
        )


def checks() -> list[Check]:
    """Return the checks in the order in which they are shown."""
    on_runner = gettext("%(count)s on %(name)s")
    return [
        Check(
            "failing",
            gettext("Failing far more often than usual"),
            Session,
            lambda fleet: fleet.failures.rows(fleet.sessions),
            ngettext_lazy(
                "session failed in the last hour",
                "sessions failed in the last hour",
            ),
            urgent=True,
            find_in=_find_failures,
        ),
        Check(
            "runner",
            gettext("Runner silent for 10 min"),
            Session,
            lambda fleet: fleet.sessions.live().filter(
                runner_id__in=fleet.silent_runners
            ),
            ngettext_lazy("runner is silent", "runners are silent"),
            urgent=True,
            find_in=_find_runners,
        ),
        Check(
            "silent",
            gettext("Active, no sign of life for 30 min"),
            Session,
            lambda fleet: fleet.sessions.active().filter(
                fleet.silent_for(SILENT_MINUTES)
            ),
            ngettext_lazy(
                "active session without a sign of life for 30 min",
                "active sessions without a sign of life for 30 min",
            ),
            urgent=True,
            shared=on_runner,
            leaves_out_silent_runners=True,
        ),
        Check(
            "starting",
            gettext("Starting for more than 5 min"),
            Session,
            _starting,
            ngettext_lazy(
                "session starting for more than 5 min",
                "sessions starting for more than 5 min",
            ),
            urgent=True,
            shared=on_runner,
            leaves_out_silent_runners=True,
        ),
        Check(
            "sandbox-alone",
            gettext("Sandbox up, no session needs it"),
            Sandbox,
            _alone,
            ngettext_lazy(
                "sandbox is up, and no session needs it",
                "sandboxes are up, and no session needs them",
            ),
            by="whose",
            shared=gettext("%(count)s with session %(name)s"),
        ),
        Check(
            "sandbox-gone",
            gettext("Session live, sandbox gone"),
            Session,
            _without_sandbox,
            ngettext_lazy(
                "live session whose sandbox is gone",
                "live sessions whose sandbox is gone",
            ),
            shared=on_runner,
        ),
        Check(
            "agent-missing",
            gettext("Agent named and missing"),
            Session,
            _without_agent,
            ngettext_lazy(
                "live session names an agent that is missing",
                "live sessions name an agent that is missing",
            ),
            by="agent_name",
            shared=gettext("%(count)s of agent %(name)s"),
        ),
    ]


def check_of(code: str) -> Check | None:
    """Return the check that an address names, or None."""
    return next((check for check in checks() if check.code == code), None)


def said_of(row: Any, alias: str) -> list[str]:
    """Return the titles of the checks that find the row, of those that are about single rows."""
    fleet = Fleet(alias)
    return [
        check.title
        for check in checks()
        if check.model is type(row)
        and check.find_in is _count_rows
        and check.rows(fleet).filter(pk=row.pk).exists()
    ]


def _find_runners(check: Check, fleet: Fleet) -> Finding:
    """One line for all silent runners and their sessions; it names the first."""
    silent = [runner for runner in fleet.runners if runner.condition == "silent"]
    named = []
    if silent and silent[0].seen_at:
        named.append(f"{silent[0].id}, {relative(silent[0].seen_at)}")
    if len(silent) > 1:
        named.append("…")
    live = sum(runner.live for runner in silent)
    sessions = ngettext("%(count)s live session", "%(count)s live sessions", live)
    sessions %= {"count": f"{live:,}"}
    return check.found(
        len(silent),
        f"{', '.join(named)}; {sessions}",
        runner=silent[0].id if len(silent) == 1 else "",
    )


def _find_failures(check: Check, fleet: Fleet) -> Finding:
    """One line for everything that fails far more often than usual."""
    found = fleet.failures
    return check.found(
        found.failed,
        found.detail,
        at_least=found.is_cut,
    )


# -- which rows match


def _starting(fleet: Fleet) -> QuerySet[Any]:
    """Sessions that have been starting for too long since their last activity.

    Not since their creation: a session that was opened long ago may have been restarted a moment ago.
    """
    return fleet.sessions.filter(
        fleet.silent_for(STARTING_MINUTES),
        status=SessionStatus.STARTING.value,
    )


def _alone(fleet: Fleet) -> Any:
    """Sandboxes that are up, but whose session is neither live, nor just ended, nor paused while they wait.

    Annotated with ``whose``: the status of the session, 'missing', or 'none' if they have no session.
    """
    its = fleet.sessions.filter(pk=OuterRef("session_id"))
    just_now = fleet.ago(GRACE_MINUTES)
    is_paused = Q(status=_PAUSED)
    over = is_paused | Q(status__in=FINISHED, last_active_at__lt=just_now)
    # "No session that is not over" is also true for a missing session and for none, and costs one probe of a key.
    unneeded = ~Exists(its.exclude(over))
    is_unused = fleet.silent_for(GRACE_MINUTES, "last_used_at")
    # A runner may touch all of its sandboxes, also those of sessions that ended long ago.
    settled = is_unused | Exists(its.filter(last_active_at__lt=just_now))
    used_lately = Q(last_used_at__gte=fleet.ago(SILENT_MINUTES))
    rests = used_lately & Q(state__in=_READY) & Exists(its.filter(is_paused))
    unreserved = Q(session_id__isnull=True) | Q(session_id="")
    # Without a session one is kept ready, but does not run.
    kept_ready = unreserved & ~Q(state=SandboxState.RUNNING.value)
    without = Case(
        When(unreserved, then=Value("none")),
        default=Value("missing"),
        output_field=TextField(),
    )
    status = Subquery(its.values("status")[:1])
    up = fleet.sandboxes.filter(settled, unneeded, state__in=_UP)
    alone = up.exclude(rests).exclude(kept_ready)
    return alone.annotate(whose=Coalesce(status, without))


def _without_sandbox(fleet: Fleet) -> QuerySet[Any]:
    """Live sessions that name a sandbox which does not exist.

    By primary key alone: a sandbox of another tenant with this id is another fault, and not a missing sandbox.
    """
    # Sessions without a sandbox have '' there: the column is NOT NULL.
    named = fleet.sandboxes.filter(pk=OuterRef("sandbox_id"))
    naming = fleet.settled().exclude(sandbox_id="")
    return naming.filter(~Exists(named))


def _without_agent(fleet: Fleet) -> QuerySet[Any]:
    """Live sessions whose tenant has no agent of the name."""
    named = Agent.objects.using(fleet.alias).filter(
        tenant_id=OuterRef("tenant_id"),
        name=OuterRef("agent_name"),
    )
    return fleet.settled().filter(~Exists(named))
