"""The admin's first page. The time for each figure does not grow with the number of rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.contrib.admin import AdminSite
from django.db import connections, router
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils.safestring import SafeString
from django.utils.translation import gettext

from agentdb.admin.display import (
    badge,
    heading_of,
    id_link,
    link,
    list_url,
    none,
    page_url,
    row_url,
    runner_link,
    runner_url,
    site_of,
    tenant_url,
    viewable,
    when,
)
from agentdb.console.checks import Finding, Runner, check_of
from agentdb.console.figures import (
    NEWEST,
    TOP,
    Figure,
    Hour,
    activity,
    by_value,
    oldest_idle_sandboxes,
    top_tenants,
    total,
)
from agentdb.console.questions import Answer, Budget, Problem
from agentdb.console.report import Report, examine, unanswered
from agentdb.interface import SandboxState
from agentdb.models import Agent, ApiKey, Sandbox, Session


@dataclass(frozen=True, slots=True)
class Line:
    """A finding, and the link to its rows."""

    finding: Finding
    url: str


# -- pictures


@dataclass(frozen=True, slots=True)
class Chart:
    """Bars of an SVG, in percent of its width and pixels of its height, and their labels."""

    hours: list[ChartBar]
    step: str  # the width of an hour
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
    opened_y: float
    opened_height: float
    failed_y: float
    failed_height: float
    is_running: bool
    label: str
    is_minor: bool
    url: str


# In pixels, as in activity.html: the height of a full bar, and the base line.
_OPENED_HEIGHT, _OPENED_BASE, _FAILED_HEIGHT, _FAILED_BASE = 96, 104, 32, 156


def chart(hours: list[Hour], url: Callable[[datetime], str]) -> Chart:
    """Return the bars of each hour; opened and failed sessions have separate scales."""
    most_opened = _round_up(max(hour.opened for hour in hours))
    most_failed = _round_up(max(hour.failed for hour in hours))
    opened = sum(hour.opened for hour in hours)
    failed = sum(hour.failed for hour in hours)
    step, is_week = 100 / len(hours), len(hours) > 48
    bars = []
    for number, hour in enumerate(hours):
        opened_height = round(_OPENED_HEIGHT * hour.opened / most_opened, 1)
        # At least a pixel, so that a single failure is visible.
        failed_height = round(max(_FAILED_HEIGHT * hour.failed / most_failed, 1), 1)
        bars.append(
            ChartBar(
                hour,
                x=f"{step * number:.2f}%",
                opened_y=round(_OPENED_BASE - opened_height, 1),
                opened_height=opened_height,
                failed_y=round(_FAILED_BASE - failed_height, 1),
                failed_height=failed_height,
                is_running=hour is hours[-1],
                label=_label(hour.at, is_week),
                is_minor=not is_week and hour.at.hour % 6 != 0,
                url=url(hour.at),
            )
        )
    return Chart(
        bars,
        f"{step:.2f}%",
        most_opened,
        most_failed,
        opened,
        failed,
        f"{100 * failed / opened:.1f} %" if opened else "",
        last_full=hours[-2],
        peak=max(hours, key=lambda hour: hour.opened),
        is_week=is_week,
    )


def _label(at: datetime, is_week: bool) -> str:
    """A day at its noon, or every third hour."""
    if is_week:
        return f"{at:%m-%d}" if at.hour == 12 else ""
    return f"{at:%H}:00" if at.hour % 3 == 0 else ""


def activity_chart(request: HttpRequest, budget: Budget, **of: str) -> Answer[Chart]:
    """Return sessions opened and failed per hour of the requested period, a day or a week."""
    hours = 168 if request.GET.get("period") == "7d" else 24
    site = site_of(request)

    def url(hour: datetime) -> str:
        return list_url(site, Session, **of, **period_query(hour, timedelta(hours=1)))

    return budget.ask(lambda: chart(activity(budget.connection, hours, **of), url))


def period_query(begin: datetime, span: timedelta) -> dict[str, str]:
    """Return the list filter for the period."""
    return {"from": f"{begin:%Y-%m-%dT%H:%M}", "to": f"{begin + span:%Y-%m-%dT%H:%M}"}


def _round_up(value: int) -> int:
    """Return the top of a scale, rounded; at least 10, so that one failure does not look like an incident."""
    size: int = 10 ** max(len(str(value)) - 1, 1)
    return max(-(-value // size), 1) * size


@dataclass(frozen=True, slots=True)
class ShareBar:
    value: str
    label: SafeString
    figure: Figure
    percent: float
    url: str


def share_bars(
    figures: Mapping[str, Figure], url: Callable[[str], str]
) -> list[ShareBar]:
    """Return each value's share of the whole; a share above zero stays visible."""
    whole = sum(figure.rows for figure in figures.values()) or 1
    return [
        ShareBar(
            value,
            badge(value),
            figure,
            max(round(100 * figure.rows / whole, 1), 0.8) if figure.rows else 0,
            url(value),
        )
        for value, figure in figures.items()
    ]


# -- the page


def page(request: HttpRequest) -> dict[str, Any]:
    """Return the first page for this user. No error of the database or of a row makes it fail."""
    site = site_of(request)
    allowed = viewable(site, request)
    if not allowed:
        return {"allowed": False}
    with Budget(connections[router.db_for_read(Session)]) as budget:
        return _Overview(request, site, allowed, budget).shown()


class _Overview:
    def __init__(
        self,
        request: HttpRequest,
        site: AdminSite,
        allowed: set[type[Model]],
        budget: Budget,
    ) -> None:
        self.request, self.site, self.allowed, self.budget = (
            request,
            site,
            allowed,
            budget,
        )
        self.connection = budget.connection

    def shown(self) -> dict[str, Any]:
        report = examine(self.budget)
        shown: dict[str, Any] = {"allowed": True, "report": report, "refresh": True}
        if report.problem:
            return shown
        models = (Session, Sandbox, Agent, ApiKey)
        totals = {each: self._total(each) for each in models if each in self.allowed}
        is_empty = all(total.value == Figure(0) for total in totals.values())
        shown |= {**self._attention(report), "is_empty": is_empty}
        if is_empty:
            return shown
        if Sandbox in self.allowed:
            shown |= self._sandboxes()
        if Session in self.allowed:
            shown |= self._sessions(report.runners, totals[Session])
        shown["totals"] = [
            (
                heading_of(model),
                total,
                _second(model, shown),
                list_url(self.site, model),
            )
            for model, total in totals.items()
        ]
        return shown

    def _attention(self, report: Report) -> dict[str, Any]:
        # No tick for what somebody may not see: it may need attention all the same.
        reason = Problem(gettext("Your account may not see these rows."))
        seen = [each for each in report.findings if _may_see(each, self.allowed)]
        hidden = [
            replace(each, problem=reason)
            for each in report.findings
            if not _may_see(each, self.allowed)
        ]
        report.findings = seen
        return {
            "schema": report.schema.value,
            "lines": [Line(each, _rows_url(self.site, each)) for each in report.wrong],
            "is_bad": any(each.urgent for each in report.wrong),
            "findings": seen,
            "unknown": unanswered([*report.unknown, *hidden]),
        }

    def _total(self, model: type[Model]) -> Answer[Figure]:
        return self.budget.ask(partial(total, self._rows(model)))

    def _rows(self, model: type[Model]) -> QuerySet[Any]:
        return model._default_manager.using(self.connection.alias)

    def _sandboxes(self) -> dict[str, Any]:
        site, ask = self.site, self.budget.ask
        return {
            "states": ask(
                lambda: share_bars(
                    by_value(self._rows(Sandbox), "state"),
                    lambda state: list_url(site, Sandbox, state=state),
                )
            ),
            "idle": ask(lambda: _idle(site, self.connection.alias, self.allowed)),
            "waiting_url": list_url(site, Sandbox, state=SandboxState.WAITING),
        }

    def _sessions(
        self, runners: Answer[list[Runner]], sessions: Answer[Figure]
    ) -> dict[str, Any]:
        site, ask, found = self.site, self.budget.ask, runners.value or []
        is_sample = sessions.value is not None and sessions.value.rows > NEWEST
        return {
            "activity": activity_chart(self.request, self.budget),
            "statuses": ask(
                lambda: share_bars(
                    by_value(self._rows(Session), "status"),
                    lambda status: list_url(site, Session, status=status),
                )
            ),
            "tenants": ask(
                lambda: [
                    (
                        link(tenant_url(site, each.id), each.id),
                        each,
                        when(each.newest_at),
                    )
                    for each in top_tenants(self.connection.alias)
                ]
            ),
            "sample": f"{NEWEST:,}" if is_sample else "",
            "runners": Answer(runner_rows(site, found[:TOP]), runners.problem),
            "more_runners": max(len(found) - TOP, 0),
            "groups_url": page_url(site, "groups"),
            "changes_url": page_url(site, "changes"),
        }


def _second(model: type[Model], shown: Mapping[str, Any]) -> str:
    """Return the line below a total."""
    if model is Session and (drawn := shown["activity"].value) and not drawn.is_week:
        return gettext("%s opened in 24 h") % f"{drawn.opened:,}"
    if model is Sandbox and (bars := shown["states"].value):
        warm = sum(bar.figure.rows for bar in bars if bar.value != SandboxState.COLD)
        return gettext("%s not cold") % f"{warm:,}"
    return ""


def _may_see(found: Finding, allowed: set[type[Model]]) -> bool:
    check = check_of(found.code)
    return check is None or check.model in allowed


def _rows_url(site: AdminSite, found: Finding) -> str:
    if found.code == "runner" and found.runner:
        return runner_url(site, found.runner)
    if found.code in ("pending", "drift"):
        return "#agentdb-schema"
    return page_url(site, "attention", check=found.code)


def condition(runner: Runner | None) -> SafeString | str:
    """Return the badge of a runner with live sessions but no sign of life."""
    if runner is None or not runner.live or not runner.condition:
        return ""
    return badge(runner.condition, gettext(runner.condition))


def runner_rows(site: AdminSite, runners: Sequence[Runner]) -> list[tuple[Any, ...]]:
    most = max((runner.live for runner in runners), default=1) or 1
    return [
        (
            runner_link(runner_url(site, runner.id), runner.id),
            runner,
            when(runner.seen_at) if runner.seen_at else none(),
            condition(runner),
            round(100 * runner.live / most, 1),
        )
        for runner in runners
    ]


def _idle(
    site: AdminSite, alias: str, allowed: set[type[Model]]
) -> list[tuple[Any, ...]]:
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
