"""Pages of the console besides lists and rows: a runner, a tenant, sums, and the latest changes."""

from __future__ import annotations

from datetime import datetime, timedelta
from functools import partial
from typing import Any

from django.contrib.admin import AdminSite, ModelAdmin
from django.core.exceptions import PermissionDenied
from django.db import connections, router
from django.db.models import Model
from django.http import Http404, HttpRequest, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.translation import gettext

from agentdb.admin import actions, overview
from agentdb.admin.audit import refuse
from agentdb.admin.display import (
    badge,
    heading_of,
    id_link,
    link,
    list_url,
    name_of,
    none,
    page,
    page_url,
    row_url,
    runner_url,
    tenant_url,
    viewable,
    when,
)
from agentdb.admin.guard import guard
from agentdb.console.checks import Fleet, check_of
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
from agentdb.console.questions import Answer, Budget, Problem, ask
from agentdb.console.reading import read
from agentdb.console.unreadable import unreadable_rows
from agentdb.interface import SandboxState
from agentdb.models import Agent, ApiKey, Sandbox, Session
from agentdb.querysets import LIVE

LIVE_SHOWN = 10
SUM_SECONDS = 4.0  # out of the five seconds of a page


def urls(model_admin: ModelAdmin[Any]) -> list[URLPattern]:
    """Return the addresses of the pages below the table in the admin."""
    views = {"runner": _runner, "attention": _rows, "groups": _groups, "changes": _changes}  # fmt: skip
    if model_admin.model is Agent:
        views = {"tenant": _tenant}
    checked = model_admin.admin_site.admin_view
    return [
        path(f"{name}/", checked(partial(view, model_admin)), name=f"agentdb_{name}")
        for name, view in views.items()
    ]


def _id(request: HttpRequest) -> str:
    return request.GET.get("id", "").replace("\x00", "")


# -- a runner


@guard
def _runner(model_admin: Any, request: HttpRequest) -> HttpResponseBase:
    _check(model_admin.has_view_permission(request))
    site, runner_id = model_admin.admin_site, _id(request)
    may_act = model_admin.has_act_permission(request)
    if request.method == "POST":
        if not may_act:
            refuse(request, f"pause all of runner {runner_id}")
        return actions.pause_runner(model_admin, request, runner_id)
    problems: list[Problem] = []
    alias = model_admin.alias
    connection = connections[alias]
    seen = ask(connection, lambda: Fleet(alias).runner(runner_id), problems).value
    figures = by_status(Session.objects.using(alias).of_runner(runner_id))
    whole = sum(figure.rows for figure in figures.values())
    active, starting = (figures[status].rows for status in LIVE)
    sandboxes = partial(_sandboxes, site, alias, runner_id)

    def listed(status: str) -> str:
        return list_url(site, Session, runner_id=runner_id, status=status)

    totals = [
        (gettext("Active"), figures["active"], listed("active")),
        (gettext("Starting"), figures["starting"], listed("starting")),
        (gettext("Failed"), figures["error"], listed("error")),
        (
            gettext("All its sessions"),
            Figure(whole, at_least=any(figure.at_least for figure in figures.values())),
            list_url(site, Session, runner_id=runner_id),
        ),
    ]
    return page(
        model_admin, request, "runner",
        title=gettext("Runner %s") % runner_id,
        runner_id=runner_id,
        condition=overview.condition(seen),
        seen=when(seen.seen_at) if seen and seen.seen_at else none(),
        live=active + starting,
        active=active,
        starting=starting,
        rest=whole - active - starting,
        whole=whole,
        totals=totals,
        statuses=Answer(overview.share_bars(figures, listed)),
        activity=overview.activity_chart(request, Budget(connection), runner_id=runner_id),
        query=runner_url(site, runner_id).partition("?")[2],
        sessions=_live_sessions(model_admin, request, runner_id, problems),
        sandboxes=ask(connection, sandboxes, problems) if Sandbox in viewable(site, request) else None,
        sandboxes_url=_groups_url(site, "sandbox", by="state", runner_id=runner_id),
        all_url=list_url(site, Session, runner_id=runner_id),
        may_act=may_act,
        problems=problems,
    )  # fmt: skip


def _live_sessions(
    model_admin: Any, request: HttpRequest, runner_id: str, problems: list[Problem]
) -> list[tuple[Any, ...]]:
    site = model_admin.admin_site
    sessions = Session.objects.using(model_admin.alias).of_runner(runner_id)
    rows = read(sessions.live().newest_first()[:LIVE_SHOWN], problems)
    model_admin.find_linked(rows, viewable(site, request), problems)
    return [
        (
            id_link(row_url(site, row), row.pk),
            badge(row.status),
            model_admin.agent(row),
            link(tenant_url(site, row.tenant_id), row.tenant_id),
            when(row.last_active_at),
            when(row.created_at),
        )
        for row in rows
    ]


def _sandboxes(site: AdminSite, alias: str, runner_id: str) -> list[overview.ShareBar]:
    """Count the sandboxes of the runner's sessions by state."""
    grouping = Grouping(Sandbox, "state", filters={"runner_id": runner_id})
    grouped = {each.value or "NULL": Figure(each.rows) for each in grouping.ask(alias)}
    figures = {
        state: grouped.get(state, Figure(0))
        for state in [*map(str, SandboxState), *grouped]
    }

    def listed(state: str) -> str:
        return _groups_url(
            site, "sandbox", by="session_status", runner_id=runner_id, state=state
        )

    return overview.share_bars(figures, listed)


@guard
def _rows(model_admin: Any, request: HttpRequest) -> HttpResponseBase:
    """Return the link to a finding's rows: the list, filtered by the check."""
    site, code = model_admin.admin_site, request.GET.get("check", "")
    allowed = viewable(site, request)
    if (check := check_of(code)) is not None and check.model in allowed:
        return HttpResponseRedirect(list_url(site, check.model, check=code))
    if not allowed or check is not None:
        raise PermissionDenied
    if code != "unreadable":
        raise Http404
    rows = unreadable_rows(connections[router.db_for_read(Session)], 20)
    return page(
        model_admin,
        request,
        "attention",
        title=gettext("Rows that cannot be read"),
        rows=rows,
    )


@guard
def _tenant(model_admin: Any, request: HttpRequest) -> HttpResponseBase:
    """Return the page of a tenant: totals with links."""
    site, tenant_id = model_admin.admin_site, _id(request)
    allowed = viewable(site, request)
    _check(bool(allowed))
    alias = router.db_for_read(Session)

    def listed(status: str) -> str:
        return list_url(site, Session, tenant_id=tenant_id, status=status)

    with Budget(connections[alias]) as budget:
        totals = {
            model: budget.ask(partial(amount, alias, model, tenant_id))
            for model in (Session, Sandbox, Agent, ApiKey)
        }
        activity = statuses = None
        if Session in allowed:
            its = Session.objects.using(alias).of_tenant(tenant_id)
            statuses = budget.ask(lambda: overview.share_bars(by_status(its), listed))
            activity = overview.activity_chart(request, budget, tenant_id=tenant_id)
    return page(
        model_admin, request, "tenant",
        title=gettext("Tenant %s") % tenant_id,
        parts=[
            (heading_of(model), found, list_url(site, model, tenant_id=tenant_id))
            for model, found in totals.items()
            if model in allowed
        ],
        query=tenant_url(site, tenant_id).partition("?")[2],
        activity=activity,
        statuses=statuses,
        is_empty=all(found.value is not None and not found.value.rows for found in totals.values()),
    )  # fmt: skip


def _check(may_see: bool) -> None:
    if not may_see:
        raise PermissionDenied


# -- sums


def _groups_url(site: AdminSite, table: str, **query: str) -> str:
    return page_url(site, "groups", table=table, **query)


@guard
def _groups(model_admin: Any, request: HttpRequest) -> HttpResponseBase:
    site, is_sessions = model_admin.admin_site, request.GET.get("table") != "sandbox"
    model: type[Model] = Session if is_sessions else Sandbox
    allowed = viewable(site, request)
    _check(model in allowed)
    # Without a period: the sessions of a day, and all sandboxes.
    default = {"by": BY[model][0], "from": "24h" if is_sessions else "", "to": ""}
    asked = default | request.GET.dict()
    form = {
        "title": gettext("%s, summed up") % heading_of(model),
        "table": str(model._meta.model_name),
        "tables": [(str(each._meta.model_name), heading_of(each)) for each in BY if each in allowed],
        "is_sessions": is_sessions,
        "by": asked["by"],
        "choices": [(name, _column(name)) for name in BY[model]],
        "column": _column(asked["by"]),
        "fields": [(name, _column(name), asked.get(name, "")) for name in FILTERS[model]],
        "period": asked,
    }  # fmt: skip
    try:
        grouping = Grouping.of(model, asked, timezone.now())
    except ValueError as error:
        return page(model_admin, request, "groups", mistake=str(error), **form)
    return page(model_admin, request, "groups", **form, **_sums(site, grouping))


def _sums(site: AdminSite, grouping: Grouping) -> dict[str, Any]:
    alias = router.db_for_read(grouping.model)
    answer = ask(connections[alias], lambda: grouping.ask(alias), seconds=SUM_SECONDS)
    groups = answer.value or []
    most = max((group.rows for group in groups), default=1)
    rows = [
        (
            link(_group_url(site, grouping, group), _group_name(grouping, group)),
            group,
            round(100 * group.rows / most, 1),
        )
        for group in groups[:MOST_GROUPS]
    ]
    return {
        "problem": answer.problem,
        "groups": rows,
        "is_cut": len(groups) > MOST_GROUPS,
        "whole": sum(groups, Grouped(None, 0)),
    }


def _column(name: str) -> str:
    names = {
        "agent_name": gettext("Agent"), "tenant_id": gettext("Tenant"), "runner_id": gettext("Runner"),
        "status": gettext("Status"), "state": gettext("State"), "session_status": gettext("Status of its session"),
        "hour": gettext("Hour"), "day": gettext("Day"),
    }  # fmt: skip
    return names.get(name, name)


def _group_name(grouping: Grouping, group: Grouped) -> Any:
    if group.value is None:
        return none()
    if grouping.by in ("status", "state", "session_status"):
        return badge(group.value)
    return f"{group.value}:00" if grouping.by == "hour" else group.value


_SPANS = {"hour": timedelta(hours=1), "day": timedelta(days=1)}


def _group_url(site: AdminSite, grouping: Grouping, group: Grouped) -> str:
    """Return the list of the group's rows, or ''."""
    of_sandboxes = grouping.model is Sandbox
    if group.value is None or grouping.by == "session_status":
        return ""
    if of_sandboxes and grouping.by == "runner_id":
        return runner_url(site, group.value)
    if of_sandboxes and "runner_id" in grouping.filters:
        return ""
    ends = {"from": grouping.since, "to": grouping.until}
    query = {
        name: at.isoformat(timespec="seconds") for name, at in ends.items() if at
    } | dict(grouping.filters)
    if span := _SPANS.get(grouping.by):
        query |= overview.period_query(datetime.fromisoformat(group.value), span)
    else:
        query[grouping.by] = group.value
    return list_url(site, grouping.model, **query)


# -- what changed


@guard
def _changes(model_admin: Any, request: HttpRequest) -> HttpResponseBase:
    site, text, mistake = model_admin.admin_site, request.GET.get("from") or "10m", ""
    allowed = viewable(site, request)
    _check(bool(allowed))
    alias, problems = model_admin.alias, list[Problem]()
    found: list[Change] = []
    try:
        since = moment(text, timezone.now())
    except ValueError as error:
        mistake = str(error)
    else:
        asked = partial(changes, alias, since)
        found = ask(connections[alias], asked, problems, SUM_SECONDS).value or []
    return page(
        model_admin, request, "changes",
        title=gettext("What changed"),
        period=text,
        mistake=mistake,
        problems=problems,
        changes=[(when(each.at), *_changed(site, each)) for each in found if type(each.row) in allowed],
    )  # fmt: skip


def _changed(site: AdminSite, change: Change) -> tuple[Any, ...]:
    row = change.row
    name = next(
        (
            getattr(row, column)
            for column in ("agent_name", "name", "label")
            if hasattr(row, column)
        ),
        "",
    )
    state = getattr(row, "status", "") or getattr(row, "state", "")
    return (
        f"{name_of(type(row))} {change.what}",
        badge(state) if state else "",
        id_link(row_url(site, row), row.pk),
        name,
        link(tenant_url(site, row.tenant_id), row.tenant_id),
    )
