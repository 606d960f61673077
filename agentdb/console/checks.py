"""What can be wrong with rows. A check is a queryset: the overview counts it, a list shows it, a row's page asks it.

A runner's **sign of life** is the latest activity of one of its active, starting or ended sessions. A paused, stopped
or failed session is not one: an operator, or a server that noticed the runner's death, may have written that.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import cached_property
from typing import Any

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
from django.utils.translation import gettext, ngettext

from agentdb.console.display import lasting, readable, relative
from agentdb.console.failures import Failures, failures
from agentdb.console.questions import Problem
from agentdb.console.unreadable import is_unreadable
from agentdb.interface import SandboxState, SessionStatus
from agentdb.models import Agent, Sandbox, Session
from agentdb.querysets import FINISHED, LIVE

STARTING_MINUTES = 5
SILENT_MINUTES = 30
RUNNER_MINUTES = 10
RUNNER_LATE_MINUTES = 5
GRACE_MINUTES = 1  # a server writes a session and its sandbox one after the other
CAP = 10_000  # rows that are counted one by one
RUNNERS_ASKED_AGAIN = 200
LOOKUP_OF_RUNNER = 500  # of a runner's sessions, the newest

_UP = (
    SandboxState.RUNNING.value,
    SandboxState.WARMING.value,
    SandboxState.WAITING.value,
)
_PAUSED = SessionStatus.PAUSED.value


@dataclass(frozen=True, slots=True)
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
    runner: str = ""  # the one that is meant, if it is one

    @property
    def shown(self) -> str:
        return f"{self.count:,}{'+' if self.at_least else ''}"


@dataclass(frozen=True, slots=True)
class Runner:
    """A runner; ``seen_at`` is its last sign of life, None if there is none among its sessions."""

    id: str
    seen_at: datetime | None
    active: int
    starting: int

    @property
    def live(self) -> int:
        return self.active + self.starting

    @property
    def condition(self) -> str:
        now = timezone.now()
        if self.seen_at is None or self.seen_at < now - timedelta(
            minutes=RUNNER_MINUTES
        ):
            return "silent"
        return (
            "late"
            if self.seen_at < now - timedelta(minutes=RUNNER_LATE_MINUTES)
            else ""
        )


class Fleet:
    """The rows of a database at one moment, in which all checks see the same silent runners and failures."""

    def __init__(self, alias: str) -> None:
        self.alias = alias
        self.now = timezone.now()
        self.sessions = Session.objects.using(alias)
        self.sandboxes = Sandbox.objects.using(alias)

    def ago(self, minutes: int) -> datetime:
        return self.now - timedelta(minutes=minutes)

    @cached_property
    def runners(self) -> list[Runner]:
        """The runners with live sessions, the silent ones first, then by the number of live sessions."""
        runners = sorted(
            self._count_live(self.sessions),
            key=lambda runner: (runner.seen_at or self.now, runner.id),
        )
        # Only a runner that looks silent is looked at more closely: what it ended is a sign of life too.
        for number, runner in enumerate(runners[:RUNNERS_ASKED_AGAIN]):
            if runner.condition:
                runners[number] = self._with_ended(runner)
        order = {"silent": 0, "late": 1, "": 2}
        return sorted(
            runners,
            key=lambda runner: (order[runner.condition], -runner.live, runner.id),
        )

    @cached_property
    def silent_runners(self) -> list[Runner]:
        return [runner for runner in self.runners if runner.condition == "silent"]

    @cached_property
    def failures(self) -> Failures:
        return failures(self.alias, self.now)

    def runner(self, runner_id: str) -> Runner:
        """One runner, by the same rule."""
        counted = self._count_live(self.sessions.of_runner(runner_id))
        return self._with_ended(
            counted[0] if counted else Runner(runner_id, None, 0, 0)
        )

    def _count_live(self, sessions: Any) -> list[Runner]:
        of_status = {status: Count("pk", filter=Q(status=status)) for status in LIVE}
        # As text, because one time that Python cannot hold would keep all runners from being looked at.
        seen_at = Cast(
            Max("last_active_at", filter=Q(last_active_at__lte=self.ago(-24 * 60))),
            TextField(),
        )
        live = (
            sessions.live()
            .filter(runner_id__isnull=False)
            .order_by()
            .values("runner_id")
        )
        counted = live.annotate(seen=seen_at, **of_status)
        return [
            Runner(
                row["runner_id"], readable(row["seen"]), row["active"], row["starting"]
            )
            for row in counted
        ]

    def _with_ended(self, runner: Runner) -> Runner:
        at = Cast("last_active_at", TextField())
        newest = (
            self.sessions.of_runner(runner.id)
            .newest_first()
            .values_list("status", at)[:LOOKUP_OF_RUNNER]
        )
        ended = [
            readable(text)
            for status, text in newest
            if status == SessionStatus.ENDED.value
        ]
        seen = max(
            (at for at in [*ended, runner.seen_at] if at is not None), default=None
        )
        return Runner(runner.id, seen, runner.active, runner.starting)


@dataclass(frozen=True, slots=True)
class Check:
    """One question about rows. ``rows`` are those of which it is true."""

    code: str
    title: str
    model: type[Model]
    rows: Callable[[Fleet], QuerySet[Any]]
    urgent: bool = False
    one: str = ""
    many: str = ""
    oldest: str = ""  # what the time of the oldest is called
    by: str = "runner_id"  # the column that its rows may share
    shared: str = ""
    of_row: str = ""  # what the row's page says of one
    reads: frozenset[type[Model]] = frozenset()  # the other tables that it tells of
    beside_runners: bool = (
        False  # rows of a silent runner are counted in its line, once
    )

    @property
    def at(self) -> str:
        """The column that tells how old it is."""
        return "last_active_at" if self.model is Session else "last_used_at"

    def may_say(self, allowed: Collection[type[Model]]) -> bool:
        """Whether it says something of one row, and of no table that the reader may not see."""
        return bool(self.of_row) and self.reads.issubset(allowed)

    def say(self, row: Any, shared: str, now: datetime) -> str:
        at = getattr(row, self.at)
        state = row.status if self.model is Session else row.state
        return self.of_row.format(
            age="?" if is_unreadable(at) else lasting(now - at),
            state=state,
            shared=shared,
        )

    def counted(self, fleet: Fleet) -> QuerySet[Any]:
        """The rows that the overview counts and the list shows: what one line says is not said in another."""
        rows = self.rows(fleet)
        if not self.beside_runners:
            return rows
        return rows.exclude(
            runner_id__in=[runner.id for runner in fleet.silent_runners]
        )

    def find(self, fleet: Fleet) -> Finding:
        if self.code == "runner":
            return _find_runners(self, fleet)
        if self.code == "failing":
            return _find_failures(self, fleet)
        found = list(
            self.counted(fleet).order_by().values_list(self.by, self.at)[: CAP + 1]
        )
        if not found:
            return Finding(self.code, self.title)
        is_cut, count = len(found) > CAP, min(len(found), CAP)
        oldest = (
            self.oldest % relative(min(at for _, at in found))
            if self.oldest and not is_cut
            else ""
        )
        parts = [oldest, self._shared(Counter(value for value, _ in found))]
        sentence, detail = (
            self.one if count == 1 else self.many,
            ", ".join(part for part in parts if part),
        )
        return Finding(
            self.code, self.title, count, is_cut, self.urgent, sentence, detail
        )

    def _shared(self, counts: Counter[str | None]) -> str:
        """What all have in common, or the two largest parts."""
        largest = [(value, count) for value, count in counts.most_common() if value]
        if len(counts) == 1:
            return (
                self.shared % {"count": gettext("all"), "name": largest[0][0]}
                if largest
                else ""
            )
        shown = [
            self.shared % {"count": f"{count:,}", "name": value}
            for value, count in largest[:2]
        ]
        return ", ".join([*shown, *(["…"] if len(largest) > len(shown) else [])])


def checks() -> list[Check]:
    """In the order in which they are shown."""
    on_runner, of_agent = (
        gettext("%(count)s on %(name)s"),
        gettext("%(count)s of agent %(name)s"),
    )
    return [
        Check("failing", gettext("Failing far more often than usual"), Session, _failing, urgent=True),
        Check(
            "runner", gettext("Runner silent for %d min") % RUNNER_MINUTES, Session, _on_silent_runners, urgent=True
        ),
        Check(
            "silent", gettext("Active, no sign of life for %d min") % SILENT_MINUTES, Session, _silent,
            urgent=True,
            one=gettext("active session without a sign of life for %d min") % SILENT_MINUTES,
            many=gettext("active sessions without a sign of life for %d min") % SILENT_MINUTES,
            oldest=gettext("the longest silent: %s"), shared=on_runner,
            of_row=gettext("It is active, and has given no sign of life for {age}."), beside_runners=True,
        ),
        Check(
            "starting", gettext("Starting for more than %d min") % STARTING_MINUTES, Session, _starting,
            urgent=True,
            one=gettext("session starting for more than %d min") % STARTING_MINUTES,
            many=gettext("sessions starting for more than %d min") % STARTING_MINUTES,
            oldest=gettext("the oldest: %s"), shared=on_runner,
            of_row=gettext("It has been starting for {age}."), beside_runners=True,
        ),
        Check(
            "sandbox-alone", gettext("Sandbox up, no session needs it"), Sandbox, _alone,
            one=gettext("sandbox is up, and no session needs it"),
            many=gettext("sandboxes are up, and no session needs them"),
            oldest=gettext("the longest unused: %s"), by="whose", shared=gettext("%(count)s with session %(name)s"),
            of_row=gettext("It is {state}; its session: {shared}."), reads=frozenset({Session}),
        ),
        Check(
            "sandbox-gone", gettext("Session live, sandbox gone"), Session, _without_sandbox,
            one=gettext("live session whose sandbox is gone"), many=gettext("live sessions whose sandbox is gone"),
            oldest=gettext("the oldest sign of life: %s"), shared=on_runner,
            of_row=gettext("It is {state}, and its sandbox is gone."), reads=frozenset({Sandbox}),
        ),
        Check(
            "agent-missing", gettext("Agent named and missing"), Session, _without_agent,
            one=gettext("live session names an agent that is missing"),
            many=gettext("live sessions name an agent that is missing"),
            by="agent_name", shared=of_agent,
            of_row=gettext("It is {state}, and no agent of its tenant is called {shared!r}."), reads=frozenset({Agent}),
        ),
    ]  # fmt: skip


def check_of(code: str) -> Check | None:
    return next((check for check in checks() if check.code == code), None)


def said_of(row: Any, alias: str, allowed: Collection[type[Model]]) -> list[str]:
    """What is wrong with one row: the rules of the checks, asked of it alone, in one query."""
    fleet, model = Fleet(alias), type(row)
    asked = {
        check.code: check
        for check in checks()
        if check.model is model and check.may_say(allowed)
    }
    queries = [
        check.rows(fleet)
        .filter(pk=row.pk)
        .order_by()
        .values_list(Value(code, TextField()), check.by)
        for code, check in asked.items()
    ]
    found = queries[0].union(*queries[1:], all=True) if queries else []
    return [asked[code].say(row, shared, fleet.now) for code, shared in found]


def _find_runners(check: Check, fleet: Fleet) -> Finding:
    """One line for a silent runner and all of its sessions."""
    silent = fleet.silent_runners
    if not silent:
        return Finding(check.code, check.title)
    live = sum(runner.live for runner in silent)
    sessions = ngettext("%(count)s live session", "%(count)s live sessions", live) % {
        "count": f"{live:,}"
    }
    named = ", ".join(
        f"{runner.id}, {relative(runner.seen_at)}"
        for runner in silent[:1]
        if runner.seen_at
    )
    more = ", …" if len(silent) > 1 else ""
    sentence = ngettext("runner is silent", "runners are silent", len(silent))
    only = silent[0].id if len(silent) == 1 else ""
    return Finding(
        check.code,
        check.title,
        len(silent),
        False,
        True,
        sentence,
        f"{named}{more}; {sessions}",
        runner=only,
    )


def _find_failures(check: Check, fleet: Fleet) -> Finding:
    """One line for all that fails far more often than usual."""
    found = fleet.failures
    if not found.failed:
        return Finding(check.code, check.title)
    sentence = ngettext(
        "session failed in the last hour",
        "sessions failed in the last hour",
        found.failed,
    )
    return Finding(
        check.code,
        check.title,
        found.failed,
        found.is_cut,
        True,
        sentence,
        found.detail,
    )


# -- of which rows it is true


def _failing(fleet: Fleet) -> QuerySet[Any]:
    return fleet.failures.rows(fleet.sessions)


def _on_silent_runners(fleet: Fleet) -> QuerySet[Any]:
    return fleet.sessions.live().filter(
        runner_id__in=[runner.id for runner in fleet.silent_runners]
    )


def _silent(fleet: Fleet) -> QuerySet[Any]:
    return fleet.sessions.active().idle_since(fleet.ago(SILENT_MINUTES))


def _starting(fleet: Fleet) -> QuerySet[Any]:
    # Not since it was opened: one that was opened long ago may have been told to start a moment ago.
    return fleet.sessions.filter(status=SessionStatus.STARTING.value).idle_since(
        fleet.ago(STARTING_MINUTES)
    )


def _alone(fleet: Fleet) -> QuerySet[Any]:
    """Sandboxes that are up, without a session that is live, ended a moment ago, or is paused while they wait."""
    its = fleet.sessions.filter(pk=OuterRef("session_id"))
    over = Q(status=_PAUSED) | Q(
        status__in=FINISHED, last_active_at__lt=fleet.ago(GRACE_MINUTES)
    )
    rests = Q(
        state=SandboxState.WAITING.value, last_used_at__gte=fleet.ago(SILENT_MINUTES)
    )
    unreserved = Q(session_id__isnull=True) | Q(session_id="")
    without = Case(
        When(unreserved, then=Value("none")),
        default=Value("missing"),
        output_field=TextField(),
    )
    up = fleet.sandboxes.filter(state__in=_UP).idle_since(fleet.ago(GRACE_MINUTES))
    rows: QuerySet[Any] = (
        up.filter(~Exists(its.exclude(over)))
        .exclude(rests & Exists(its.filter(status=_PAUSED)))
        # One that no session has reserved is kept ready while it warms and waits; it runs for nobody.
        .exclude(unreserved & ~Q(state=SandboxState.RUNNING.value))
        .annotate(whose=Coalesce(Subquery(its.values("status")[:1]), without))
    )
    return rows


def _without_sandbox(fleet: Fleet) -> QuerySet[Any]:
    named = fleet.sandboxes.filter(pk=OuterRef("sandbox_id"))
    live = fleet.sessions.live().idle_since(fleet.ago(GRACE_MINUTES))
    return live.exclude(sandbox_id="").filter(~Exists(named))


def _without_agent(fleet: Fleet) -> QuerySet[Any]:
    named = Agent.objects.using(fleet.alias).filter(
        tenant_id=OuterRef("tenant_id"), name=OuterRef("agent_name")
    )
    return (
        fleet.sessions.live()
        .idle_since(fleet.ago(GRACE_MINUTES))
        .filter(~Exists(named))
    )
