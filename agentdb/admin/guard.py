"""Limits the database time of a page, and shows a page with the reason if it fails."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from typing import Any

from django.contrib.admin.options import IncorrectLookupParameters
from django.core.exceptions import SuspiciousOperation
from django.db import connections, router
from django.http import HttpRequest, QueryDict
from django.http.response import HttpResponseBase
from django.template.response import TemplateResponse
from django.utils.translation import gettext

from agentdb.admin.display import page
from agentdb.console.questions import (
    PAGE_SECONDS,
    Problem,
    Unanswered,
    logger,
    question,
)

# An action stops after some seconds by itself, between two transactions; this is for a server that is slow or silent.
WRITE_SECONDS = 60.0

View = Callable[..., Any]


def guard(view: View, read_seconds: float = PAGE_SECONDS) -> View:
    """Limit a view's time in the database; if the database cannot answer, answer 503 with a page that says why.

    A parameter that no filter has, or a form that no page sends, gets such a page with 400.

    The view is a model admin's, or gets one as its first argument.
    """

    @wraps(view)
    def answer(model_admin: Any, request: HttpRequest, *args: Any, **more: Any) -> Any:
        # A host project may read from a replica; the time limit belongs to the connection that does the work.
        model = model_admin.model
        if request.method == "POST":
            alias = router.db_for_write(model)
            seconds = WRITE_SECONDS
        else:
            alias = router.db_for_read(model)
            seconds = read_seconds
        connection = connections[alias]
        title, status = gettext("Can't read the database"), 503
        # A template response is lazy and would run its queries after the view, outside the limit: it is drawn here.
        try:
            # No view has to expect NUL, which PostgreSQL refuses in a text.
            query = request.GET.urlencode().replace("%00", "")
            request.GET = QueryDict(query, encoding=request.encoding)
            with question(connection, seconds):
                response = view(model_admin, request, *args, **more)
                return _drawn(response)
        except Unanswered as error:
            if error.is_mistake:
                raise error.cause from None
            problem = error.problem
        except (SuspiciousOperation, IncorrectLookupParameters) as error:
            title, status = gettext("Invalid request"), 400
            problem = Problem(str(error))
        logger.error(
            "%s %s: %s %s",
            request.method,
            request.path,
            problem.sentence,
            problem.said,
        )
        failed = page(
            model_admin,
            request,
            "problem_page",
            title=title,
            problem=problem,
        )
        failed.status_code = status
        return _drawn(failed)

    return answer


def _drawn(response: HttpResponseBase) -> HttpResponseBase:
    """Render a template response, which runs the queries of its lazy values."""
    if isinstance(response, TemplateResponse):
        response.render()
    return response
