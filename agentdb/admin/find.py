"""One search box: any id, also quoted or shortened, a tenant, agent, runner or label, or a pasted API key."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

from django.db import connections
from django.db.models import Model, Q, QuerySet
from django.http import HttpRequest, HttpResponse, HttpResponseRedirect
from django.utils.decorators import method_decorator
from django.utils.translation import gettext
from django.views.decorators.debug import sensitive_post_parameters, sensitive_variables

from agentdb.admin.display import (
    Tables,
    heading_of,
    list_url,
    name_of,
    page,
    page_url,
    row_url,
)
from agentdb.console.figures import distinct_values
from agentdb.console.questions import Budget
from agentdb.keys import PREFIX
from agentdb.models import Agent, ApiKey, Session
from agentdb.serving.adapter import DjangoDb

SECONDS = 0.5  # seconds for one query, which may have no index
SHOWN = 6  # results of each kind
LOOKED_THROUGH = 20_000  # values compared with a shortened one
LONGEST = 512

# What surrounds an id that was copied from a log, a mail or source code.
_AROUND = " \t\r\n\"'`“”„‘’«»‹›,;()[]<>"
# As the pages show an id, 8fc693c5…2b19, or with three dots.
_SHORTENED = re.compile(r"(.+?)(?:…|\.\.\.)(.*)")
# A possible key must not appear in an address; keys of old servers can have any form.
_MAY_BE_KEY = re.compile(r"[A-Za-z0-9_\-]{40,}")


class Hit(NamedTuple):
    """One result: a row, or a page of all rows with a value."""

    kind: str  # such as session, tenant or API key
    text: str
    url: str
    is_exact: bool  # its name is the whole text


class Search(NamedTuple):
    """The text to find, the tables that the user may see, and the time limit of the page."""

    site: Any
    alias: str
    allowed: Tables
    text: str
    budget: Budget

    def hits(self) -> list[Hit]:
        """Return the distinct results, exact ones first, without those that take too long.

        A pasted key comes before everything else, so that no other query has it.
        """
        # Each search is limited by itself: one without an index must not use up the time of the others.
        found = self._answer(ApiKey, self._key)
        # A server may log its queries; a key is looked up by its hash.
        if found or self.text.startswith(PREFIX):
            return found
        for model in self.allowed:
            found += self._answer(model, self._values, model, "pk", "")
        # Each table has an index of its tenants, and sessions one of their runners.
        for model in self.allowed:
            found += self._answer(model, self._values, model, "tenant_id", "tenant")
        found += self._answer(Session, self._values, Session, "runner_id", "runner")
        # Labels and names of agents have no index of their own, but their tables are small beside the others.
        found += self._answer(Agent, self._named, Agent, "name")
        found += self._answer(ApiKey, self._named, ApiKey, "label")
        # Several tables may have the same tenant. Sorting is stable: otherwise the order above remains.
        distinct = dict.fromkeys(found)
        return sorted(distinct, key=lambda hit: not hit.is_exact)

    def _answer(
        self,
        model: type[Model],
        search: Callable[..., Iterable[Hit]],
        *of: Any,
    ) -> list[Hit]:
        """Return the results that ``search``, called with ``of``, finds in a table.

        None if the user may not see the table, or if the query takes longer than ``SECONDS``.
        """
        if model not in self.allowed:
            return []

        # A generator would run its query after the time limit.
        def read() -> list[Hit]:
            return list(search(*of))

        answer = self.budget.ask(read, SECONDS)
        return answer.value or []

    def _hit(self, row: Model, text: str, name: str) -> Hit:
        """Return the row as a result, which is exact if its name is the text."""
        kind = name_of(type(row))
        url = row_url(self.site, row)
        return Hit(
            kind,
            text,
            url,
            is_exact=name == self.text,
        )

    def _key(self) -> Iterator[Hit]:
        """Find the API key that the text is; the result names its label, or its id."""
        db = DjangoDb(self.alias)
        record = db.authenticate(self.text)
        if record is None:
            return
        row = ApiKey(pk=record.id)
        name = record.label or record.id
        yield self._hit(row, name, self.text)

    def _values(self, model: type[Model], column: str, kind: str) -> Iterator[Hit]:
        """Find values by the index of a column: their beginning, or what a page shows of them.

        ``kind`` is the name of their page; without one they are ids, and rows have pages.
        """
        beginning, end = self.text, ""
        shortened = _SHORTENED.fullmatch(self.text)
        if shortened:
            beginning, end = shortened.groups()
        # LIKE 'x%' uses an index on neither engine: SQLite's ignores case, PostgreSQL's needs the C locale. But in most
        # collations the values with this prefix follow it directly, and an exact match is the first one.
        most = LOOKED_THROUGH if end else SHOWN
        if kind:
            following = distinct_values(
                connections[self.alias],
                model,
                column,
                at_least=beginning,
                limit=most,
            )
        else:
            ids = model._default_manager.using(self.alias).filter(pk__gte=beginning)
            following = list(ids.order_by("pk").values_list("pk", flat=True)[:most])
        meant = [
            value
            for value in following
            if value.startswith(beginning) and value.endswith(end)
        ]
        for value in meant[:SHOWN]:
            if kind:
                url = page_url(self.site, kind, id=value)
                yield Hit(gettext(kind), value, url, value == self.text)
            else:
                yield self._hit(model(pk=value), value, value)

    def _named(self, model: type[Model], column: str) -> Iterator[Hit]:
        """Find rows by a part of a name; the result names the tenant, because several may have such an agent."""
        rows: QuerySet[Any] = model._default_manager.using(self.alias)
        named = rows.filter(Q((f"{column}__icontains", self.text))).order_by(column)
        for row in named[:SHOWN]:
            name = getattr(row, column)
            text = gettext("%(name)s of %(tenant)s")
            text %= {
                "name": name,
                "tenant": row.tenant_id,
            }
            yield self._hit(row, text, name)


# Hidden in Django's error reports, because the text may be a key.
@sensitive_variables()
@method_decorator(sensitive_post_parameters("q"))
def find(
    model_admin: Any,
    request: HttpRequest,
    allowed: Tables,
) -> HttpResponse:
    """Redirect to the exact match, or show the candidates, and lists of the rows that contain the text.

    The text comes by POST and is in no address or log if it may be a key.
    """
    site = model_admin.admin_site
    # PostgreSQL refuses NUL in a text.
    pasted = request.POST.get("q", "").replace("\x00", "")
    text = pasted.strip(_AROUND)[:LONGEST]
    hits: list[Hit] = []
    if text:
        alias = model_admin.alias
        with Budget(connections[alias]) as budget:
            search = Search(
                site,
                alias,
                allowed,
                text,
                budget,
            )
            hits = search.hits()
    # One exact match opens even if others begin alike.
    meant = [hit for hit in hits if hit.is_exact] or hits
    if len(meant) == 1 and meant[0].url:
        return HttpResponseRedirect(meant[0].url)
    # The page shows the text again, and links with it in their address: not if it may be a secret.
    is_secret = text.startswith(PREFIX) or _MAY_BE_KEY.fullmatch(text) is not None
    if is_secret:
        text = ""
    # The lists of the rows that have the text in any column.
    containing = [
        (heading_of(model), list_url(site, model, q=text)) for model in allowed if text
    ]
    return page(
        model_admin,
        request,
        "find",
        title=gettext("Search"),
        text=text,
        may_be_key=is_secret,
        hits=hits,
        containing=containing,
    )
