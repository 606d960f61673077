"""The admin's first page. The time for each figure does not grow with the number of rows."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from datetime import datetime, timedelta
from functools import partial
from typing import Any, NamedTuple

from django.contrib.admin import AdminSite
from django.db import connections, router
from django.db.models import Model, QuerySet
from django.http import HttpRequest
from django.utils.translation import gettext

from agentdb.admin.display import (
    Tables,
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
from agentdb.console.report import Report, examine
from agentdb.models import Sandbox, Session

# A value, its rows, their share of the whole in percent, and the link to them.
Bar = tuple[str, Figure, str, str]


def chart(hours: list[Hour], url: Callable[[datetime], str]) -> dict[str, Any]:
    """Return the bars of an SVG, in percent of its width, and their labels; the template knows its height.

    Opened and failed sessions have separate scales. The last hour is the current one, so the last full hour is the one
    before it.
    """
    step = 100 / len(hours)
    bars = [
        (hour, f"{step * number:.2f}%", url(hour.at))
        for number, hour in enumerate(hours)
    ]
    opened = sum(hour.opened for hour in hours)
    failed = sum(hour.failed for hour in hours)
    most_opened = _round_up(max(hour.opened for hour in hours))
    return {
        "bars": bars,
        "step": f"{step:.2f}%",
        "most_opened": most_opened,
        "half_opened": most_opened // 2,
        "most_failed": _round_up(max(hour.failed for hour in hours)),
        "opened": opened,
        "failed": failed,
        "percent_failed": percent(failed, opened),
        "last_full": hours[-2],
        "peak": max(hours, key=lambda hour: hour.opened),
    }


def activity_chart(
    request: HttpRequest,
    budget: Budget,
    **of: str,
) -> Answer[dict[str, Any]]:
    """Return sessions opened and failed per hour of the requested period, a day or a week.

    ``of`` narrows it to a runner or a tenant.
    """
    is_week = request.GET.get("period") == "7d"
    hours = 7 * 24 if is_week else 24
    site = site_of(request)

    def url(begin: datetime) -> str:
        period = period_query(begin, timedelta(hours=1))
        return list_url(site, Session, **of, **period)

    def ask() -> dict[str, Any]:
        counted = activity(budget.connection, hours, **of)
        return chart(counted, url)

    return budget.ask(ask)


def period_query(begin: datetime, span: timedelta) -> dict[str, str]:
    """Return the parameters of a list that limit it to the period, in UTC."""
    end = begin + span
    return {
        "from": f"{begin:%Y-%m-%dT%H:%M}",
        "to": f"{end:%Y-%m-%dT%H:%M}",
    }


def _round_up(value: int) -> int:
    """Return the top of a scale, rounded; at least 10, so that one failure does not look like an incident."""
    # 1,386 is below 2,000, and 98 below 100: the labels at the top and in the middle are short numbers.
    zeros = len(str(value)) - 1
    unit: int = 10 ** (zeros or 1)
    return math.ceil((value or 1) / unit) * unit


def share_bars(
    figures: Mapping[str, Figure],
    column: str,
    url: Callable[..., str],
) -> list[Bar]:
    """Return each value of the column with its rows, its share of the whole in percent, and the link to its rows.

    ``url`` returns the address of a list for the value of the column, which it gets by keyword.
    """
    whole = sum(figure.rows for figure in figures.values())
    bars = []
    for value, figure in figures.items():
        share = percent_of(figure.rows, whole)
        filters = {column: value}
        bars.append((value, figure, share, url(**filters)))
    return bars


# -- the page


def page(request: HttpRequest) -> dict[str, Any]:
    """Return what the template of the first page needs, for all users who may see the same tables.

    No error of the database or of a row makes it fail: what cannot be read says why.
    """
    site = site_of(request)
    allowed = viewable(site, request)
    if not allowed:
        return {"allowed": False}
    connection = connections[router.db_for_read(Session)]
    with Budget(connection) as budget:
        overview = _Overview(
            request,
            site,
            allowed,
            budget,
        )
        return overview.shown()


class _Overview(NamedTuple):
    """The first page for users who may see the same tables: they share it, see ``sharing``."""

    request: HttpRequest
    site: AdminSite
    allowed: Tables
    budget: Budget

    def shown(self) -> dict[str, Any]:
        """Return plain values and rows, no lazy queries: several users' pages are drawn from this, later."""
        # The checks come first, because they matter most and the page's time may run out.
        report = examine(self.budget)
        shown: dict[str, Any] = {"allowed": True, "report": report}
        if report.problem:
            return shown
        shown |= self._attention(report)
        totals = {}
        for model in self.allowed:
            count = partial(total, self._rows(model))
            totals[model] = self.budget.ask(count)
        # Of all four tables: who may see only some of them is not told that nothing is stored. A count that failed has
        # no value, and is not taken for 0.
        if [total.value for total in totals.values()] == [Figure(0)] * 4:
            return shown | {"is_empty": True}
        shown["totals"] = [
            (heading_of(model), answer, list_url(self.site, model))
            for model, answer in totals.items()
        ]
        if Sandbox in self.allowed:
            shown["states"] = self._shares(Sandbox, "state")
            idle = partial(oldest_idle_sandboxes, self.budget.connection.alias)
            shown["idle"] = self.budget.ask(idle)
        if Session in self.allowed:
            shown |= self._sessions(report.runners, totals[Session])
        return shown

    def _attention(self, report: Report) -> dict[str, Any]:
        """Return the findings of the checks, urgent ones first, and the checks that were not made.

        What somebody may not see gets no tick: it may need attention all the same.
        """
        # One reason, so that all hidden checks are one line.
        reason = Problem(gettext("Your account may not see these rows."))
        for number, found in enumerate(report.findings):
            check = check_of(found.code)
            if check is not None and check.model not in self.allowed:
                report.findings[number] = Finding(
                    found.code,
                    found.title,
                    problem=reason,
                )
        lines = [(found, _rows_url(self.site, found)) for found in report.wrong]
        return {
            "schema": report.schema.value,
            "lines": lines,
            "is_bad": any(found.urgent for found, _ in lines),
            "findings": report.findings,
            "unknown": report.unanswered,
        }

    def _rows(self, model: type[Model]) -> QuerySet[Any]:
        alias = self.budget.connection.alias
        return model._default_manager.using(alias)

    def _shares(self, model: type[Model], column: str) -> Answer[Any]:
        """Count the rows of a table by an indexed column; the answer has what ``share_bars`` returns."""
        rows = self._rows(model)
        listed = partial(list_url, self.site, model)

        def ask() -> list[Bar]:
            figures = by_value(rows, column)
            return share_bars(figures, column, listed)

        return self.budget.ask(ask)

    def _sessions(
        self,
        runners: Answer[list[Runner]],
        sessions: Answer[Figure],
    ) -> dict[str, Any]:
        """Return the parts about sessions; ``sample`` says of how many newest ones the tenants are counted."""
        found = runners.value or []
        most_live = max((runner.live for runner in found), default=0)
        # All sessions are too many to count by tenant: only the newest are.
        counted = sessions.value
        is_sample = counted is not None and counted.rows > NEWEST
        tenants = partial(top_tenants, self.budget.connection.alias)
        return {
            "activity": activity_chart(self.request, self.budget),
            "statuses": self._shares(Session, "status"),
            "tenants": self.budget.ask(tenants),
            "sample": f"{NEWEST:,}" if is_sample else "",
            "runners": Answer(found[:TOP], runners.problem),
            "most_live": most_live,
            "more_runners": len(found[TOP:]),
        }


def _rows_url(site: AdminSite, found: Finding) -> str:
    """Return the address of what a finding is about: a runner, this page's part on the schema, or rows.

    It is '' if it is about the file.
    """
    if found.runner:
        return page_url(site, "runner", id=found.runner)
    if found.code in ("pending", "drift"):
        return "#agentdb-schema"
    if found.code == "unreadable":
        return page_url(site, "attention", check=found.code)
    check = check_of(found.code)
    return list_url(site, check.model, check=found.code) if check else ""
