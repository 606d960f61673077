"""Limits the database time of a page, and shows a page with the reason if it fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial, wraps
from typing import Any

from django.contrib.admin import AdminSite
from django.db import connections, router
from django.db.models import Model
from django.http import HttpRequest
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.utils.translation import gettext

from agentdb.console.questions import (
    Problem,
    Unanswered,
    logger,
    question,
    unusable_file,
)

READ_SECONDS = 5.0
WRITE_SECONDS = 60.0


def guarded(
    request: HttpRequest,
    site: AdminSite,
    model: type[Model],
    view: Callable[[], HttpResponseBase],
    read_seconds: float = READ_SECONDS,
) -> HttpResponseBase:
    """Render the view's page completely; if the database fails, return a page that says why."""
    alias = (
        router.db_for_write(model)
        if request.method == "POST"
        else router.db_for_read(model)
    )
    connection = connections[alias]
    seconds = WRITE_SECONDS if request.method == "POST" else read_seconds
    problem = unusable_file(connection)
    if problem is None:
        try:
            with question(connection, seconds):
                return _drawn(view())
        except Unanswered as error:
            # What looks like an unreadable value may be a bug of the console: then no stored row explains it.
            if error.is_unreadable and error.problem.command:
                raise error.cause from None
            problem = error.problem
    logger.error(
        "%s %s: %s %s", request.method, request.path, problem.sentence, problem.said
    )
    return _drawn(problem_page(request, site, problem))


def _drawn(response: HttpResponseBase) -> HttpResponseBase:
    if isinstance(response, TemplateResponse):
        response.render()
    return response


def problem_page(
    request: HttpRequest, site: AdminSite, problem: Problem
) -> TemplateResponse:
    context: dict[str, Any] = {
        **site.each_context(request),
        "title": gettext("Can't read the database"),
        "problem": problem,
    }
    return TemplateResponse(
        request, "admin/agentdb/problem_page.html", context, status=503
    )


View = Callable[..., Any]


def guard(view: View) -> View:
    """The same for a view that is a method of a model's admin."""

    @wraps(view)
    def answer(model_admin: Any, request: HttpRequest, *args: Any, **more: Any) -> Any:
        site, model = model_admin.admin_site, model_admin.model
        drawn = partial(view, model_admin, request, *args, **more)
        return guarded(request, site, model, drawn)

    return answer
