"""One search box: any id, also quoted or shortened, a tenant, agent, runner or label, or a pasted API key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

from django.core.exceptions import PermissionDenied
from django.db import connections
from django.db.models import Model, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.template.response import TemplateResponse
from django.utils.http import url_has_allowed_host_and_scheme
from django.utils.text import capfirst
from django.utils.translation import gettext
from django.views.decorators.debug import sensitive_variables

from agentdb.admin.display import (
    heading_of,
    list_url,
    name_of,
    row_url,
    runner_url,
    tenant_url,
    viewable,
)
from agentdb.console.figures import distinct_values
from agentdb.console.questions import Budget
from agentdb.keys import PREFIX
from agentdb.models import Agent, ApiKey, Sandbox, Session
from agentdb.serving.adapter import DjangoDb

SECONDS = 0.5  # for one of the questions, which no index may serve
SHOWN = 6  # of each kind
LOOKED_THROUGH = 20_000  # ids with the same beginning as a shortened one
LONGEST = 512

_AROUND = " \t\r\n\"'`“”„‘’«»‹›,;()[]<>"
_SHORTENED = re.compile(r"(.+?)(?:…|\.\.\.)(.*)")
# What may be a key must not get into an address: those of old servers have any form.
_MAY_BE_KEY = re.compile(r"[A-Za-z0-9_\-]{40,}")


@dataclass(frozen=True, slots=True)
class Hit:
    kind: str
    text: str
    url: str
    is_exact: bool = False


class Search:
    """What is looked for, by whom, and in which time."""

    def __init__(
        self,
        site: Any,
        alias: str,
        allowed: set[type[Model]],
        text: str,
        budget: Budget,
    ) -> None:
        self.site, self.alias, self.allowed, self.budget = site, alias, allowed, budget
        self.text = text
        shortened = _SHORTENED.fullmatch(text)
        self.beginning, self.end = shortened.groups() if shortened else (text, "")

    def hits(self) -> list[Hit]:
        """Each once, the exact ones first. What cannot be answered in time is left out."""
        found = self._answer(self._keys)
        # A server may log what it is asked: a key is asked for by its hash alone.
        if found or self.text.startswith(PREFIX):
            return found
        for question in (
            self._ids,
            self._tenants,
            self._runners,
            self._agents,
            self._labels,
        ):
            found += self._answer(question)
        return sorted(dict.fromkeys(found), key=lambda hit: not hit.is_exact)

    def _answer(self, question: Callable[[], Iterator[Hit]]) -> list[Hit]:
        return self.budget.ask(lambda: list(question()), SECONDS).value or []

    def _rows(self, model: type[Model]) -> QuerySet[Any]:
        return model._default_manager.using(self.alias)

    def _keys(self) -> Iterator[Hit]:
        record = (
            DjangoDb(self.alias).authenticate(self.text)
            if ApiKey in self.allowed
            else None
        )
        if record is not None:
            yield Hit(
                name_of(ApiKey),
                record.label or record.id,
                row_url(self.site, ApiKey(pk=record.id)),
                True,
            )

    def _ids(self) -> Iterator[Hit]:
        for model in (Session, Sandbox, Agent, ApiKey):
            if model in self.allowed:
                for id in self._ids_of(model):
                    yield Hit(
                        name_of(model),
                        id,
                        row_url(self.site, model(pk=id)),
                        id == self.text,
                    )

    def _ids_of(self, model: type[Model]) -> list[str]:
        ids = self._rows(model).values_list("pk", flat=True)
        exact = list(ids.filter(pk=self.text))
        if exact:
            return exact
        # In most collations the ids that begin with a text are the first ones at or after it.
        following = ids.filter(pk__gte=self.beginning).order_by("pk")[
            : LOOKED_THROUGH if self.end else SHOWN
        ]
        return [
            id
            for id in following
            if id.startswith(self.beginning) and id.endswith(self.end)
        ][:SHOWN]

    def _tenants(self) -> Iterator[Hit]:
        for model in (Session, Agent, ApiKey, Sandbox):
            if model in self.allowed:
                yield from self._values(
                    model, "tenant_id", gettext("tenant"), tenant_url
                )

    def _runners(self) -> Iterator[Hit]:
        if Session in self.allowed:
            yield from self._values(Session, "runner_id", gettext("runner"), runner_url)

    def _values(
        self, model: type[Model], column: str, kind: str, url: Callable[..., str]
    ) -> Iterator[Hit]:
        connection = connections[self.alias]
        for value in distinct_values(
            connection, model, column, at_least=self.beginning, limit=SHOWN
        ):
            if value.startswith(self.beginning) and value.endswith(self.end):
                yield Hit(kind, value, url(self.site, value), value == self.text)

    def _agents(self) -> Iterator[Hit]:
        if Agent in self.allowed:
            for agent in (
                self._rows(Agent)
                .filter(name__startswith=self.beginning)
                .order_by("name")[:SHOWN]
            ):
                whose = gettext("%(name)s of %(tenant)s") % {
                    "name": agent.name,
                    "tenant": agent.tenant_id,
                }
                yield Hit(
                    name_of(Agent),
                    whose,
                    row_url(self.site, agent),
                    agent.name == self.text,
                )

    def _labels(self) -> Iterator[Hit]:
        if ApiKey in self.allowed:
            for key in (
                self._rows(ApiKey)
                .filter(label__icontains=self.text)
                .order_by("label")[:SHOWN]
            ):
                yield Hit(
                    name_of(ApiKey),
                    str(key),
                    row_url(self.site, key),
                    key.label == self.text,
                )


@sensitive_variables()  # in the reports of errors that Django mails: the text may be a key
def find(model_admin: Any, request: HttpRequest) -> HttpResponse:
    """The one thing that is meant, or what may be meant. The text is in no address, for it may be a key."""
    site, allowed = model_admin.admin_site, viewable(model_admin.admin_site, request)
    if not allowed:
        raise PermissionDenied
    text = request.POST.get("q", "").replace("\x00", "").strip(_AROUND)[:LONGEST]
    hits: list[Hit] = []
    if text:
        with Budget(connections[model_admin.alias]) as budget:
            hits = Search(site, model_admin.alias, allowed, text, budget).hits()
    exact = [hit for hit in hits if hit.is_exact]
    only = exact if exact else hits
    if len(only) == 1 and only[0].url:
        return HttpResponseRedirect(only[0].url)
    may_be_key = text.startswith(PREFIX) or _MAY_BE_KEY.fullmatch(text) is not None
    context = {
        **site.each_context(request),
        "title": gettext("Search"),
        "opts": model_admin.opts,
        "media": model_admin.media,
        "text": "" if may_be_key else text,
        "may_be_key": may_be_key,
        "hits": [(capfirst(hit.kind), hit.text, hit.url) for hit in hits],
        "containing": []
        if may_be_key or not text
        else list(_containing(site, request, allowed, text)),
    }
    return TemplateResponse(request, "admin/agentdb/find.html", context)


def _containing(
    site: Any, request: HttpRequest, allowed: set[type[Model]], text: str
) -> Iterator[tuple[str, str]]:
    """Lists of the rows with the text in any column: first the one that the box was on, with its filters."""
    origin = request.POST.get("from", "")
    if origin and url_has_allowed_host_and_scheme(
        origin, {request.get_host()}, require_https=request.is_secure()
    ):
        yield (
            gettext("The list you came from"),
            f"{origin}{'&' if '?' in origin else '?'}{urlencode({'q': text})}",
        )
    for model in (Session, Sandbox, Agent, ApiKey):
        if model in allowed:
            yield heading_of(model), list_url(site, model, q=text)
