"""What the admin's first page says about a database, each figure in a time that does not grow with the rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from django.contrib.admin import AdminSite
from django.db import connections, router
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext

from agentdb.admin.display import (
    attention_url,
    badge,
    heading_of,
    id_link,
    link,
    list_url,
    row_url,
    runner_url,
    site_of,
    tenant_url,
    viewable,
    when,
)
from agentdb.console import figures as counted
from agentdb.console.checks import Finding, Runner
from agentdb.console.display import instant
from agentdb.console.figures import Figure, Hour
from agentdb.console.questions import Answer, Budget, Problem
from agentdb.console.reading import read
from agentdb.console.report import examine
from agentdb.interface import SandboxState, SessionStatus
from agentdb.models import Agent, ApiKey, Sandbox, Session

CAP = 10_000
SAMPLE = 10_000
TOP = 8


@dataclass(frozen=True, slots=True)
class Amount:
    """A number of rows, counted up to a cap."""

    rows: int
    cap: int = CAP

    def __str__(self) -> str:
        return f"{self.cap:,}+" if self.rows > self.cap else f"{self.rows:,}"


@dataclass(frozen=True, slots=True)
class Tenant:
    id: str
    sessions: int
    live: int
    failed: int
    newest_at: datetime
    percent: float


def capped_count(rows: QuerySet[Any], cap: int = CAP) -> Amount:
    """Count at most ``cap`` rows and one more."""
    return Amount(rows.order_by()[: cap + 1].count(), cap)


def amount(alias: str, model: type[Model], tenant_id: str) -> Amount:
    """How many rows of the model the tenant has."""
    return capped_count(model._default_manager.using(alias).filter(tenant_id=tenant_id))


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


def tenant_sessions_by_status(alias: str, tenant_id: str) -> dict[str, Figure]:
    """The statuses of the tenant's newest ``SAMPLE`` sessions; no index has all of them by tenant and status."""
    rows = dict(_group_newest_sessions(alias, "status, COUNT(*)", tenant_id))
    return {value: Figure(rows.get(value, 0)) for value in [*map(str, SessionStatus), *rows]}


def top_tenants(alias: str) -> list[Tenant]:
    """The tenants with the most sessions among the newest ``SAMPLE``."""
    live = ", ".join(f"'{status.value}'" for status in (SessionStatus.ACTIVE, SessionStatus.STARTING))
    columns = f"tenant_id, COUNT(*), SUM(CASE WHEN status IN ({live}) THEN 1 ELSE 0 END), "
    columns += f"SUM(CASE WHEN status = '{SessionStatus.ERROR}' THEN 1 ELSE 0 END), MAX(created_at)"
    rows = _group_newest_sessions(alias, columns)
    largest = max((row[1] for row in rows), default=1)
    return [
        Tenant(id, n, live, failed, instant(newest), round(100 * n / largest, 1))
        for id, n, live, failed, newest in rows[:TOP]
    ]


def _group_newest_sessions(alias: str, columns: str, tenant_id: str | None = None) -> list[Any]:
    """Aggregates over the newest ``SAMPLE`` sessions by the first column, the most frequent value first."""
    newest = Session.objects.using(alias).newest_first()
    if tenant_id is not None:
        newest = newest.of_tenant(tenant_id)
    # Django groups before it limits; the other way round it has only an id IN (...), which reads every row twice.
    inner, parameters = (
        newest.values("tenant_id", "status", "created_at")[:SAMPLE].query.get_compiler(using=alias).as_sql()
    )
    with connections[alias].cursor() as cursor:
        cursor.execute(f"SELECT {columns} FROM ({inner}) AS newest GROUP BY 1 ORDER BY 2 DESC, 1", parameters)
        rows: list[Any] = cursor.fetchall()
    return rows


def oldest_idle_sandboxes(alias: str) -> list[Sandbox]:
    return read(Sandbox.objects.using(alias).in_state(SandboxState.WAITING).least_recently_used_first()[:TOP], [])


# -- the page


@dataclass(frozen=True, slots=True)
class Line:
    """One line of attention: a finding, and where its rows are."""

    finding: Finding
    url: str


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars of an SVG in percent of its width and pixels of its height; figures beside them."""

    hours: list[ChartBar]
    most_opened: int
    most_failed: int
    opened: int
    failed: int
    percent_failed: str
    last_full: Hour
    peak: Hour
    is_week: bool

    @property
    def half_opened(self) -> int:
        return self.most_opened // 2


@dataclass(frozen=True, slots=True)
class ChartBar:
    hour: Hour
    x: str
    width: str
    bar_x: str
    bar_width: str
    middle: str
    opened_y: float
    opened_height: float
    failed_y: float
    failed_height: float
    is_running: bool
    label: str
    is_minor: bool


_OPENED_HEIGHT, _OPENED_BASE, _FAILED_HEIGHT, _FAILED_BASE = 96, 104, 32, 156


def chart(hours: list[Hour]) -> Chart:
    """The bars of the hours, opened and failed each with a scale of its own."""
    most_opened = _round_up(max((hour.opened for hour in hours), default=0), 10)
    # Never below 10, so that one failure does not look like a fire.
    most_failed = _round_up(max((hour.failed for hour in hours), default=0), 10)
    step = 100 / len(hours)
    is_week = len(hours) > 48
    bars = []
    for number, hour in enumerate(hours):
        opened = _OPENED_HEIGHT * hour.opened / most_opened
        failed = max(_FAILED_HEIGHT * hour.failed / most_failed, 1.0) if hour.failed else 0.0
        if is_week:
            label = f"{hour.at:%m-%d}" if hour.at.hour == 12 else ""
        else:
            label = f"{hour.at:%H}:00" if hour.at.hour % 3 == 0 else ""
        bars.append(
            ChartBar(
                hour, f"{step * number:.2f}%", f"{step:.2f}%", f"{step * (number + 0.14):.2f}%", f"{step * 0.72:.2f}%",
                f"{step * (number + 0.5):.2f}%", round(_OPENED_BASE - opened, 1), round(opened, 1),
                round(_FAILED_BASE - failed, 1), round(failed, 1), number == len(hours) - 1, label,
                not is_week and hour.at.hour % 6 != 0,
            )
        )  # fmt: skip
    all_opened, all_failed = sum(hour.opened for hour in hours), sum(hour.failed for hour in hours)
    share = f"{100 * all_failed / all_opened:.1f} %" if all_opened else ""
    peak = max(hours, key=lambda hour: hour.opened)
    return Chart(bars, most_opened, most_failed, all_opened, all_failed, share, hours[-2], peak, is_week)


def activity_chart(request: HttpRequest, asked: Budget, **of: str) -> Answer[Chart]:
    """Sessions opened and failed per hour of the period that the page is asked for, a day or a week."""
    hours = 168 if request.GET.get("period") == "7d" else 24
    return asked.ask(lambda: chart(counted.activity(asked.connection, hours, **of)))


def _round_up(value: int, least: int) -> int:
    """A round number that is not below the value, for the top of a scale."""
    value = max(value, least)
    size: int = 10 ** (len(str(value)) - 1)
    for factor in (1, 2, 4, 6, 8):
        if factor * size >= value:
            return factor * size
    return 10 * size


@dataclass(frozen=True, slots=True)
class ShareBar:
    value: str
    label: SafeString
    figure: Figure
    percent: float
    url: str


def share_bars(figures: Mapping[str, Figure], url: Callable[[str], str]) -> list[ShareBar]:
    """The share of the whole that each value has; what there is at all is seen."""
    whole = sum(figure.rows for figure in figures.values()) or 1
    return [
        ShareBar(
            value, badge(value), figure, max(round(100 * figure.rows / whole, 1), 0.8) if figure.rows else 0, url(value)
        )
        for value, figure in figures.items()
    ]


def page(request: HttpRequest) -> dict[str, Any]:
    """What the first page shows to this user. Nothing that a database or a row can cause makes it fail."""
    site = site_of(request)
    allowed = viewable(site, request)
    if not allowed:
        return {"allowed": False}
    alias = router.db_for_read(Session)
    with Budget(connections[alias]) as asked:
        return _page(request, site, allowed, asked)


def _page(request: HttpRequest, site: AdminSite, allowed: set[type[Model]], asked: Budget) -> dict[str, Any]:
    connection, alias, answer = asked.connection, asked.connection.alias, asked.ask
    report = examine(asked)
    shown: dict[str, Any] = {"allowed": True, "report": report, "refresh": True}
    if report.problem:
        return shown
    shown["schema"] = report.schema.value
    shown["lines"] = [Line(found, _rows_url(site, found)) for found in report.wrong if _may_see(found, allowed)]
    shown["is_bad"] = any(line.finding.urgent for line in shown["lines"])
    shown["findings"] = [found for found in report.findings if _may_see(found, allowed)]
    shown["unknown"] = _unanswered([found for found in report.unknown if _may_see(found, allowed)])
    activity = activity_chart(request, asked) if Session in allowed else None
    shown["activity"] = activity
    states = statuses = None
    if Sandbox in allowed:
        states = answer(lambda: counted.by_value(connection, "sandboxes", "state", [*map(str, SandboxState)]))
        shown["states"] = mapped(
            states, lambda figures: share_bars(figures, lambda state: list_url(site, Sandbox, state=state))
        )
        shown["idle"] = answer(lambda: _idle(site, alias, allowed))
        shown["waiting_url"] = list_url(site, Sandbox, state=SandboxState.WAITING)
    if Session in allowed:
        statuses = answer(lambda: counted.by_value(connection, "sessions", "status", [*map(str, SessionStatus)]))
        shown["statuses"] = mapped(
            statuses, lambda figures: share_bars(figures, lambda status: list_url(site, Session, status=status))
        )
        shown["tenants"] = answer(
            lambda: [
                (link(tenant_url(site, each.id), each.id), each, when(each.newest_at)) for each in top_tenants(alias)
            ]
        )
        runners = report.runners
        shown["runners"] = mapped(runners, lambda found: runner_rows(site, found[:TOP]))
        shown["more_runners"] = max(len(runners.value or ()) - TOP, 0)
    shown["totals"] = []
    for model in (Session, Sandbox, Agent, ApiKey):
        if model in allowed:
            table = model._meta.db_table
            figure = answer(partial(counted.total, connection, table))
            second = ""
            if model is Session and activity and activity.value and not activity.value.is_week:
                second = gettext("%s opened in 24 h") % f"{activity.value.opened:,}"
            elif model is Sandbox and states and states.value:
                warm = sum(figure.rows for state, figure in states.value.items() if state != SandboxState.COLD)
                second = gettext("%s not cold") % f"{warm:,}"
            if model is Session and figure.value and figure.value.rows > SAMPLE:
                shown["sample"] = f"{SAMPLE:,}"
            shown["totals"].append((heading_of(model), figure, second, list_url(site, model)))
    return shown


def mapped(answer: Answer[Any] | None, change: Callable[[Any], Any]) -> Answer[Any] | None:
    """The answer with its value changed; one that is none stays as it is."""
    if answer is None or answer.problem:
        return answer
    return Answer(change(answer.value))


def _unanswered(findings: Sequence[Finding]) -> list[tuple[int, str, Problem]]:
    """What could not be looked at, together where the reason is the same: how much, what, and why."""
    alike: dict[str, tuple[list[str], Problem]] = {}
    for found in findings:
        if found.problem is not None:
            alike.setdefault(str(found.problem), ([], found.problem))[0].append(found.title)
    return [(len(titles), ", ".join(titles), problem) for titles, problem in alike.values()]


def _may_see(found: Finding, allowed: set[type[Model]]) -> bool:
    if found.code in ("pending", "drift", "unreadable"):
        return True
    return (Sandbox if found.code == "sandbox-alone" else Session) in allowed


def _rows_url(site: AdminSite, found: Finding) -> str:
    if found.code == "runner" and found.runner:
        return runner_url(site, found.runner)
    if found.code in ("pending", "drift"):
        return "#agentdb-schema"
    return attention_url(site, found.code)


def runner_rows(site: AdminSite, runners: Sequence[Runner]) -> list[tuple[Any, ...]]:
    most = max((runner.live for runner in runners), default=1) or 1
    return [
        (
            link(runner_url(site, runner.id), runner.id),
            runner,
            when(runner.seen_at) if runner.seen_at else gettext("none"),
            badge(runner.condition, gettext(runner.condition)) if runner.condition else "",
            round(100 * runner.live / most, 1),
        )
        for runner in runners
    ]


def _idle(site: AdminSite, alias: str, allowed: set[type[Model]]) -> list[tuple[Any, ...]]:
    idle = oldest_idle_sandboxes(alias)
    site._registry[Sandbox].find_linked(idle, allowed, [])  # type: ignore[attr-defined]
    return [
        (
            id_link(row_url(site, row), row.pk),
            site._registry[Sandbox].agent(row),  # type: ignore[attr-defined]
            link(tenant_url(site, row.tenant_id), row.tenant_id),
            when(row.last_used_at),
        )
        for row in idle
    ]
