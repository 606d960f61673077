"""Pages of the console besides lists and rows: a runner, a tenant, sums, and the latest changes.

Each gets the tables that the user may see, at least one.
"""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.contrib.admin import AdminSite
from django.core.exceptions import PermissionDenied
from django.db import connections
from django.db.models import Model
from django.http import Http404, HttpRequest
from django.http.response import HttpResponseBase
from django.utils import timezone
from django.utils.translation import gettext, gettext_lazy

from agentdb.admin import overview
from agentdb.admin.display import (
    Tables,
    heading_of,
    list_url,
    page,
    page_url,
)
from agentdb.console.checks import Fleet
from agentdb.console.figures import (
    Figure,
    amount,
    by_status,
)
from agentdb.console.groups import (
    BY,
    FILTERS,
    MOST_GROUPS,
    Change,
    Grouped,
    Grouping,
    changes,
    moment,
)
from agentdb.console.questions import Answer, Budget, Problem, ask, unreadable_rows
from agentdb.console.reading import read
from agentdb.models import Sandbox, Session
from agentdb.querysets import LIVE

LIVE_SHOWN = 10
SUM_SECONDS = 4.0  # out of the five seconds of a page

# What sessions and sandboxes are grouped by, and filtered by before.
COLUMNS = {
    "agent_name": gettext_lazy("Agent"),
    "tenant_id": gettext_lazy("Tenant"),
    "runner_id": gettext_lazy("Runner"),
    "status": gettext_lazy("Status"),
    "state": gettext_lazy("State"),
    "session_status": gettext_lazy("Status of its session"),
    "hour": gettext_lazy("Hour"),
    "day": gettext_lazy("Day"),
}


# -- a runner


def runner(
    model_admin: Any,
    request: HttpRequest,
    allowed: Tables,
) -> HttpResponseBase:
    """Show the page of a runner; its form is that of a list's action."""
    if Session not in allowed:
        raise PermissionDenied
    site = model_admin.admin_site
    runner_id = request.GET.get("id", "")
    alias = model_admin.alias
    problems: list[Problem] = []
    its = Session.objects.using(alias).of_runner(runner_id)
    judged = partial(Fleet(alias).runner, runner_id)
    seen = ask(connections[alias], judged, problems).value
    figures = by_status(its)
    if seen is not None:
        # by_status counts the newest sessions, and a live one may be older than all of these.
        figures["active"] = Figure(seen.active)
        figures["starting"] = Figure(seen.starting)
    whole = sum(figure.rows for figure in figures.values())
    # by_status stops at a limit, and then each figure is a lower bound.
    is_cut = any(figure.at_least for figure in figures.values())
    live = sum(figures[status].rows for status in LIVE)
    newest = its.live().newest_first()
    rows = read(newest[:LIVE_SHOWN], problems)
    listed = partial(list_url, site, Session, runner_id=runner_id)
    budget = Budget(connections[alias])
    sandboxes = None
    if Sandbox in allowed:
        by_state = Grouping(Sandbox, "state", filters={"runner_id": runner_id})
        sandboxes = ask(connections[alias], partial(by_state.ask, alias), problems)
    return page(
        model_admin,
        request,
        "runner",
        title=gettext("Runner %s") % runner_id,
        runner_id=runner_id,
        runner=seen,
        figures=figures,
        live=live,
        whole=Figure(whole, at_least=is_cut),
        statuses=Answer(overview.share_bars(figures, "status", listed)),
        activity=overview.activity_chart(request, budget, runner_id=runner_id),
        sessions=rows,
        sandboxes=sandboxes,
        may_act=model_admin.has_act_permission(request),
        problems=problems,
    )


def attention(
    model_admin: Any,
    request: HttpRequest,
    allowed: Tables,
) -> HttpResponseBase:
    """Show the rows that cannot be read. They are of several tables; those of other checks are in lists."""
    if request.GET.get("check") != "unreadable":
        raise Http404
    connection = connections[model_admin.alias]
    return page(
        model_admin,
        request,
        "attention",
        title=gettext("Rows that cannot be read"),
        rows=unreadable_rows(connection, 20),
    )


def tenant(
    model_admin: Any,
    request: HttpRequest,
    allowed: Tables,
) -> HttpResponseBase:
    """Show the page of a tenant: totals with links, and its sessions by hour and by status."""
    site = model_admin.admin_site
    tenant_id = request.GET.get("id", "")
    alias = model_admin.alias
    activity = statuses = None
    parts = []
    with Budget(connections[alias]) as budget:
        for model in allowed:
            count = partial(amount, alias, model, tenant_id)
            url = list_url(site, model, tenant_id=tenant_id)
            parts.append((heading_of(model), budget.ask(count), url))
        if Session in allowed:
            its = Session.objects.using(alias).of_tenant(tenant_id)
            listed = partial(list_url, site, Session, tenant_id=tenant_id)

            def counted() -> list[overview.Bar]:
                return overview.share_bars(by_status(its), "status", listed)

            statuses = budget.ask(counted)
            activity = overview.activity_chart(request, budget, tenant_id=tenant_id)
    return page(
        model_admin,
        request,
        "tenant",
        title=gettext("Tenant %s") % tenant_id,
        parts=parts,
        activity=activity,
        statuses=statuses,
    )


# -- sums


def groups(
    model_admin: Any,
    request: HttpRequest,
    allowed: Tables,
) -> HttpResponseBase:
    """Show sessions or sandboxes counted by a column, and the form that asks for it.

    All of it is in the address, so that it can be bookmarked.
    """
    is_sessions = request.GET.get("table") != "sandbox"
    model: type[Model] = Session if is_sessions else Sandbox
    if model not in allowed:
        raise PermissionDenied
    # Without a period: the sessions of a day, and all sandboxes.
    default = {
        "by": BY[model][0],
        "from": "24h" if is_sessions else "",
        "to": "",
    }
    asked = default | request.GET.dict()
    context = {
        "title": gettext("%s, summed up") % heading_of(model),
        "table": model._meta.model_name,
        "tables": [
            (each._meta.model_name, heading_of(each)) for each in BY if each in allowed
        ],
        "choices": [(name, COLUMNS[name]) for name in BY[model]],
        "column": COLUMNS.get(asked["by"], ""),
        "fields": [
            (name, label, asked.get(name, ""))
            for name, label in COLUMNS.items()
            if name in FILTERS[model]
        ],
        "asked": asked,
    }
    try:
        grouping = Grouping.of(model, asked, timezone.now())
    except ValueError as error:
        context["mistake"] = str(error)
    else:
        context |= _sums(model_admin, grouping)
    return page(model_admin, request, "groups", **context)


def _sums(model_admin: Any, grouping: Grouping) -> dict[str, Any]:
    """Return the groups with links to their rows, and their sum; or why there are none."""
    alias = model_admin.alias
    asked = partial(grouping.ask, alias)
    answer = ask(connections[alias], asked, seconds=SUM_SECONDS)
    groups = answer.value or []
    linked = []
    for group in groups[:MOST_GROUPS]:
        url = _group_url(model_admin.admin_site, grouping, group)
        linked.append((url, group))
    # The longest bar, and the sum: also of the groups that are not shown.
    most = max((group.rows for group in groups), default=0)
    counts = zip(*(group[1:] for group in groups), strict=True)
    whole = Grouped(None, *map(sum, counts))
    return {
        "problem": answer.problem,
        "groups": linked,
        "most": most,
        "is_cut": len(groups) > MOST_GROUPS,
        "whole": whole,
    }


_SPANS = {
    "hour": timedelta(hours=1),
    "day": timedelta(days=1),
}


def _group_url(site: AdminSite, grouping: Grouping, group: Grouped) -> str | None:
    """Return the list of the group's rows; None if no list has a filter for them, or their time cannot be read."""
    # A link with an empty value would lead to all rows.
    if not group.value or grouping.by == "session_status":
        return None
    if grouping.model is Sandbox:
        # Only their sessions have a runner.
        if grouping.by == "runner_id":
            return page_url(site, "runner", id=group.value)
        if "runner_id" in grouping.filters:
            return None
    query = dict(grouping.filters)
    # As instants: "24h" would mean another day by the time that the link is followed.
    period = {
        "from": grouping.since,
        "to": grouping.until,
    }
    for name, at in period.items():
        if at is not None:
            query[name] = at.isoformat(timespec="seconds")
    span = _SPANS.get(grouping.by)
    if span is None:
        query[grouping.by] = group.value
    else:
        # An hour or a day is a shorter period, within the one asked for.
        try:
            begin = datetime.fromisoformat(group.value)
            query |= overview.period_query(begin, span)
        except (ValueError, OverflowError):  # such as infinity
            return None
    return list_url(site, grouping.model, **query)


# -- what changed


def what_changed(
    model_admin: Any,
    request: HttpRequest,
    allowed: Tables,
) -> HttpResponseBase:
    """Show the latest writes across the tables, by default those of ten minutes."""
    text = request.GET.get("from") or "10m"
    alias = model_admin.alias
    problems: list[Problem] = []
    found: list[Change] = []
    mistake = ""
    try:
        since = moment(text, timezone.now())
    except ValueError as error:
        mistake = str(error)
    else:
        asked = partial(changes, alias, since, allowed, problems)
        answer = ask(connections[alias], asked, problems, SUM_SECONDS)
        found = answer.value or []
    return page(
        model_admin,
        request,
        "changes",
        title=gettext("What changed"),
        period=text,
        mistake=mistake,
        problems=problems,
        changes=found,
    )
