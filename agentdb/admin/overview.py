"""The admin's first page. The time for each figure does not grow with the number of rows."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from django.contrib.admin import AdminSite
from django.db import connections, router
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext

from agentdb.admin.display import (
    heading_of,
    list_url,
    page_url,
    percent_of,
    site_of,
    viewable,
)
from agentdb.console.checks import Finding, Runner, check_of
from agentdb.console.display import percent
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


class Chart(NamedTuple):
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


class ChartBar(NamedTuple):
    hour: Hour
    x: str
    opened_height: float
    failed_height: float
    url: str


# In pixels, as in activity.html: the height of a full bar.
_OPENED_HEIGHT, _FAILED_HEIGHT = 96, 32


def chart(hours: list[Hour], url: Callable[[datetime], str]) -> Chart:
    """Return the bars of each hour; opened and failed sessions have separate scales."""
    most_opened = _round_up(max(hour.opened for hour in hours))
    most_failed = _round_up(max(hour.failed for hour in hours))
    opened = sum(hour.opened for hour in hours)
    failed = sum(hour.failed for hour in hours)
    step = 100 / len(hours)
    bars = []
    for number, hour in enumerate(hours):
        failed_height = _FAILED_HEIGHT * hour.failed / most_failed
        bars.append(
            ChartBar(
                hour,
                x=f"{step * number:.2f}%",
                opened_height=round(_OPENED_HEIGHT * hour.opened / most_opened, 1),
                # At least a pixel, so that a single failure is visible.
                failed_height=round(max(failed_height, 1), 1),
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
        percent(failed, opened),
        last_full=hours[-2],
        peak=max(hours, key=lambda hour: hour.opened),
        is_week=len(hours) > 48,
    )


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


def share_bars(
    figures: Mapping[str, Figure], url: Callable[[str], str]
) -> list[tuple[str, Figure, str, str]]:
    """Return each value with its share of the whole and the link to its rows."""
    whole = sum(figure.rows for figure in figures.values())
    return [
        (value, figure, percent_of(figure.rows, whole), url(value))
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


@dataclass(frozen=True, slots=True)
class _Overview:
    request: HttpRequest
    site: AdminSite
    allowed: Collection[type[Model]]
    budget: Budget

    def shown(self) -> dict[str, Any]:
        # The checks come first, because they matter most and the page's time may run out.
        report = examine(self.budget)
        # Plain values and rows, no lazy queries: several users' pages are drawn from this, after the budget has ended.
        shown: dict[str, Any] = {"allowed": True, "report": report, "refresh": True}
        if report.problem:
            return shown
        totals = {
            each: self.budget.ask(partial(total, self._rows(each)))
            for each in self.allowed
        }
        # One who may see only some of the tables is not told that nothing is there.
        is_empty = set(self.allowed) == {Session, Sandbox, Agent, ApiKey} and all(
            total.value == Figure(0) for total in totals.values()
        )
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
            if each not in seen
        ]
        report.findings = seen
        return {
            "schema": report.schema.value,
            "lines": [(each, _rows_url(self.site, each)) for each in report.wrong],
            "is_bad": any(each.urgent for each in report.wrong),
            "findings": seen,
            "unknown": unanswered([*report.unknown, *hidden]),
        }

    def _rows(self, model: type[Model]) -> QuerySet[Any]:
        return model._default_manager.using(self.budget.connection.alias)

    def _shares(self, model: type[Model], column: str) -> Answer[Any]:
        def listed(value: str) -> str:
            return list_url(self.site, model, **{column: value})

        rows = self._rows(model)
        return self.budget.ask(lambda: share_bars(by_value(rows, column), listed))

    def _sandboxes(self) -> dict[str, Any]:
        return {
            "states": self._shares(Sandbox, "state"),
            "idle": self.budget.ask(self._idle),
            "waiting_url": list_url(self.site, Sandbox, state=SandboxState.WAITING),
        }

    def _idle(self) -> list[Sandbox]:
        # Through the site's own admin, so that the rows know what this user may follow.
        idle = oldest_idle_sandboxes(self.budget.connection.alias)
        sandboxes: Any = self.site._registry[Sandbox]
        sandboxes.find_linked(idle, self.allowed, [])
        return idle

    def _sessions(
        self, runners: Answer[list[Runner]], sessions: Answer[Figure]
    ) -> dict[str, Any]:
        found = runners.value or []
        is_sample = sessions.value is not None and sessions.value.rows > NEWEST
        return {
            "activity": activity_chart(self.request, self.budget),
            "statuses": self._shares(Session, "status"),
            "tenants": self.budget.ask(
                partial(top_tenants, self.budget.connection.alias)
            ),
            "sample": f"{NEWEST:,}" if is_sample else "",
            "runners": Answer(found[:TOP], runners.problem),
            "most_live": max((runner.live for runner in found), default=0),
            "more_runners": max(len(found) - TOP, 0),
            "groups_url": page_url(self.site, "groups"),
            "changes_url": page_url(self.site, "changes"),
        }


def _second(model: type[Model], shown: Mapping[str, Any]) -> str:
    """Return the line below a total."""
    if model is Session and (drawn := shown["activity"].value) and not drawn.is_week:
        return gettext("%s opened in 24 h") % f"{drawn.opened:,}"
    if model is Sandbox and (bars := shown["states"].value):
        warm = sum(bar[1].rows for bar in bars if bar[0] != SandboxState.COLD)
        return gettext("%s not cold") % f"{warm:,}"
    return ""


def _may_see(found: Finding, allowed: Collection[type[Model]]) -> bool:
    check = check_of(found.code)
    return check is None or check.model in allowed


def _rows_url(site: AdminSite, found: Finding) -> str:
    if found.code == "runner" and found.runner:
        return page_url(site, "runner", id=found.runner)
    if found.code in ("pending", "drift"):
        return "#agentdb-schema"
    return page_url(site, "attention", check=found.code)
