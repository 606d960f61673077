"""The console's pages that are no list and no row: a runner, and the rows of one line of attention."""

from __future__ import annotations

from typing import Any

from django.contrib import messages
from django.contrib.admin import ModelAdmin
from django.core.exceptions import PermissionDenied
from django.db import connections, router
from django.http import Http404, HttpRequest, HttpResponseRedirect
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.urls import URLPattern, path
from django.utils import timezone
from django.utils.translation import gettext, ngettext

from agentdb.admin import overview
from agentdb.admin.audit import Outcome, log_in_project, record
from agentdb.admin.display import badge, id_link, link, list_url, row_url, runner_url, tenant_url, viewable, when
from agentdb.admin.guard import guarded
from agentdb.console.checks import Fleet, check_of
from agentdb.console.figures import Figure, runner_statuses
from agentdb.console.questions import Budget, Problem, ask
from agentdb.console.reading import read
from agentdb.console.unreadable import unreadable_rows
from agentdb.errors import AgentDbError
from agentdb.interface import SessionStatus
from agentdb.models import Session
from agentdb.querysets import LIVE
from agentdb.serving.adapter import DjangoDb

LIVE_SHOWN = 10


def urls(model_admin: ModelAdmin[Any]) -> list[URLPattern]:
    """The addresses of these pages, for the admin of sessions, whose permissions they follow."""
    site = model_admin.admin_site

    def runner(request: HttpRequest) -> HttpResponseBase:
        return guarded(request, site, Session, lambda: _runner(request, model_admin))

    def rows(request: HttpRequest) -> HttpResponseBase:
        return guarded(request, site, Session, lambda: _rows(request, model_admin))

    return [
        path("runner/", site.admin_view(runner), name="agentdb_runner"),
        path("attention/", site.admin_view(rows), name="agentdb_attention"),
    ]


def _runner(request: HttpRequest, model_admin: ModelAdmin[Any]) -> HttpResponseBase:
    site = model_admin.admin_site
    if not model_admin.has_view_permission(request):
        raise PermissionDenied
    runner_id = request.GET.get("id", "").replace("\x00", "")
    may_act = model_admin.has_act_permission(request)  # type: ignore[attr-defined]
    if request.method == "POST":
        return _pause_all(request, model_admin, runner_id, may_act)
    alias = router.db_for_read(Session)
    connection = connections[alias]
    live = Session.objects.using(alias).of_runner(runner_id).live()
    problems: list[Problem] = []
    fleet = Fleet(alias)
    seen = ask(connection, lambda: fleet.runner(runner_id), problems).value
    everything = runner_statuses(connection, runner_id)
    figures = {value: everything.get(value, Figure(0)) for value in [*map(str, SessionStatus), *everything]}
    activity = overview.activity_chart(request, Budget(connection), runner_id=runner_id)
    shown = read(live.newest_first()[:LIVE_SHOWN], problems)
    model_admin.find_linked(shown, viewable(site, request), problems)  # type: ignore[attr-defined]
    active, starting = (figures[status].rows for status in LIVE)
    context = {
        **site.each_context(request),
        "title": gettext("Runner %s") % runner_id,
        "opts": model_admin.opts,
        "media": model_admin.media,
        "runner_id": runner_id,
        "runner": seen,
        "condition": badge(seen.condition, gettext(seen.condition)) if seen and seen.live and seen.condition else "",
        "seen": when(seen.seen_at) if seen and seen.seen_at else "",
        "active": active,
        "starting": starting,
        "live": active + starting,
        "rest": sum(figure.rows for figure in figures.values()) - active - starting,
        "whole": sum(figure.rows for figure in figures.values()),
        "at_least": any(figure.at_least for figure in figures.values()),
        "failed": figures[str(SessionStatus.ERROR)],
        "urls": {
            "all": list_url(site, Session, runner_id=runner_id),
            **{str(status): list_url(site, Session, runner_id=runner_id, status=status) for status in SessionStatus},
        },
        "statuses": overview.share_bars(
            figures, lambda status: list_url(site, Session, runner_id=runner_id, status=status)
        ),
        "activity": activity,
        "query": runner_url(site, runner_id).partition("?")[2],
        "sessions": [
            (
                id_link(row_url(site, row), row.pk),
                badge(row.status),
                model_admin.agent(row),  # type: ignore[attr-defined]
                link(tenant_url(site, row.tenant_id), row.tenant_id),
                when(row.last_active_at),
                when(row.created_at),
            )
            for row in shown
        ],
        "may_act": may_act,
        "problems": problems,
        "counted_at": timezone.now(),
    }
    return TemplateResponse(request, "admin/agentdb/runner.html", context)


def _pause_all(request: HttpRequest, model_admin: ModelAdmin[Any], runner_id: str, may_act: bool) -> HttpResponseBase:
    action = f"pause all of runner {runner_id}"
    if not may_act:
        record(request, action, [], {}, {}, "refused")
        raise PermissionDenied
    alias = router.db_for_write(Session)
    written: list[Session] = []

    def pause(db: Any) -> list[Session]:
        live = Session.objects.using(alias).of_runner(runner_id).live()
        rows = list(live.only("pk", "status"))
        db.bulk_pause_sessions_by_runner(runner_id)
        written[:] = rows
        write("done")
        return rows

    def write(outcome: Outcome) -> None:
        record(request, action, written, *change(), outcome)

    def change() -> tuple[dict[str, str], dict[str, str]]:
        before = {row.pk: row.status for row in written}
        return before, dict.fromkeys(before, str(SessionStatus.PAUSED))

    back = HttpResponseRedirect(runner_url(model_admin.admin_site, runner_id))
    try:
        rows = DjangoDb(alias).run_transaction(pause)
    except (AgentDbError, OSError) as error:
        if written and isinstance(error, AgentDbError):
            write("undone")
        model_admin.message_user(request, gettext("Nothing was changed.") + f" {error}", messages.ERROR)
        return back
    log_in_project(request, action, rows, *change())
    sentence = ngettext("%d session is paused.", "%d sessions are paused.", len(rows)) % len(rows)
    model_admin.message_user(request, sentence, messages.SUCCESS)
    return back


def _rows(request: HttpRequest, model_admin: ModelAdmin[Any]) -> HttpResponseBase:
    """The rows of one line of attention: those of a check are a filter of their list."""
    site, code = model_admin.admin_site, request.GET.get("check", "")
    allowed = viewable(site, request)
    if (check := check_of(code)) is not None and check.model in allowed:
        return HttpResponseRedirect(list_url(site, check.model, check=code))
    if not allowed or check is not None:
        raise PermissionDenied
    if code != "unreadable":
        raise Http404
    context = {
        **site.each_context(request),
        "media": model_admin.media,
        "title": gettext("Rows that cannot be read"),
        "rows": unreadable_rows(connections[router.db_for_read(Session)], 20),
    }
    return TemplateResponse(request, "admin/agentdb/attention.html", context)
