"""A row's page beside its columns: what is wrong with the row, and the rows that belong to it.

Shows only the tables in ``allowed``, which the user may see.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from functools import partial
from typing import Any

from django.contrib.admin import AdminSite
from django.db import connections
from django.db.models import Model, QuerySet
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.text import capfirst
from django.utils.translation import gettext

from agentdb.admin.display import (
    badge,
    column_value,
    cut,
    exactly,
    id_link,
    link,
    list_url,
    name_of,
    none,
    row_url,
    runner_link,
    runner_url,
    short_text,
    tenant_url,
    unreadable,
    when,
)
from agentdb.admin.overview import condition
from agentdb.console.checks import Fleet, said_of
from agentdb.console.questions import ask
from agentdb.console.reading import read
from agentdb.console.unreadable import is_unreadable
from agentdb.models import Agent, ApiKey, Sandbox, Session

Allowed = Collection[type[Model]]
Text = SafeString | str

_SHOWN = 5
_SECONDS = 0.5  # seconds for one query of a row's page


@dataclass(frozen=True, slots=True)
class Card:
    """A row or rows that belong to this one; ``lines`` are links and facts."""

    heading: str
    badge: Text
    name: Text
    lines: tuple[Text, ...] = ()


@dataclass(frozen=True, slots=True)
class RowPage:
    title: str  # after the row's name, also in the browser's tab
    heading: Text
    badge: Text
    about: tuple[Text, ...]
    findings: tuple[str, ...]
    cards: tuple[Card, ...]


def session_page(site: AdminSite, row: Any, alias: str, allowed: Allowed) -> RowPage:
    cards = [_agent_card(site, row)] if Agent in allowed else []
    if Sandbox in allowed:
        cards.append(_linked_card(site, gettext("Sandbox"), row.sandbox_id, row.linked))
    if row.runner_id is not None:
        cards.append(_runner_card(site, row.runner_id, alias))
    if Sandbox in allowed:
        url = list_url(site, Sandbox, session_id=row.pk)
        cards.append(_list_card(gettext("Sandboxes reserved for it"), url))
    return _page(site, row, badge(row.status), _findings(row, alias, allowed), cards)


def sandbox_page(site: AdminSite, row: Any, alias: str, allowed: Allowed) -> RowPage:
    cards = [_agent_card(site, row)] if Agent in allowed else []
    if Session in allowed:
        heading = gettext("Session it is reserved for")
        cards.append(_linked_card(site, heading, row.session_id, row.linked))
        naming = Session.objects.using(alias).filter(sandbox_id=row.pk)
        url = list_url(site, Session, sandbox_id=row.pk)
        cards.append(
            _sessions_card(site, gettext("Sessions that name it"), naming, url)
        )
    return _page(site, row, badge(row.state), _findings(row, alias, allowed), cards)


def agent_page(site: AdminSite, row: Agent, alias: str, allowed: Allowed) -> RowPage:
    of, cards = {"tenant_id": row.tenant_id, "agent_name": row.name}, []
    if Session in allowed:
        newest = Session.objects.using(alias).filter(**of).newest_first()
        url = list_url(site, Session, **of)
        cards.append(_sessions_card(site, gettext("Its newest sessions"), newest, url))
    if Sandbox in allowed:
        cards.append(
            _list_card(gettext("Its sandboxes"), list_url(site, Sandbox, **of))
        )
    about = (*_about(site, row), _version(row.version))
    return RowPage(cut(row.name), cut(row.name), "", about, (), tuple(cards))


def key_page(site: AdminSite, row: ApiKey, alias: str, allowed: Allowed) -> RowPage:
    whose = link(tenant_url(site, row.tenant_id), row.tenant_id)
    card = Card(gettext("Tenant that it opens"), "", whose)
    label = cut(row.label) or gettext("(no label)")
    return RowPage(label, label, "", _about(site, row), (), (card,))


def stored(row: Model) -> list[tuple[str, Text]]:
    """Return each column with its value; of a key's hash only the beginning."""
    return [
        (field.attname, _stored(row, field.attname))
        for field in row._meta.concrete_fields
    ]


def _stored(row: Model, column: str) -> Text:
    whole, value = getattr(row, column), column_value(row, column)
    if is_unreadable(whole):
        return unreadable(whole)
    if isinstance(value, datetime):
        return exactly(value)
    if value is None:
        return format_html('<span class="agentdb-quiet">{}</span>', "NULL")
    if isinstance(value, str) and value and value == whole == cut(value):
        return format_html('<span data-copy="{}">{}</span>', value, value)
    return cut(str(value))


def _page(
    site: AdminSite, row: Any, state: Text, findings: list[str], cards: list[Card]
) -> RowPage:
    """Return the page of a row whose name is its id."""
    heading = format_html(
        '<span class="agentdb-mono agentdb-wrap" data-copy="{}">{}</span>',
        row.pk,
        cut(row.pk),
    )
    title, about = short_text(cut(row.pk)), _about(site, row)
    return RowPage(title, heading, state, about, tuple(findings), tuple(cards))


def _about(site: AdminSite, row: Any) -> tuple[Text, ...]:
    """Return what the row is, and whose."""
    what = capfirst(name_of(type(row)))
    if agent_name := getattr(row, "agent_name", ""):
        text = gettext("%(kind)s of %(agent)s")
        what = text % {"kind": what, "agent": cut(agent_name)}
    tenant = link(tenant_url(site, row.tenant_id), row.tenant_id)
    return (what, format_html("{} {}", gettext("tenant"), tenant))


def _version(version: Any) -> Text:
    if is_unreadable(version):
        return unreadable(version)
    return str(gettext("version %d") % version)


def _findings(row: Any, alias: str, allowed: Allowed) -> list[str]:
    answer = ask(connections[alias], lambda: said_of(row, alias, allowed))
    return answer.value if answer.value is not None else [str(answer.problem)]


def _agent_card(site: AdminSite, row: Any) -> Card:
    heading, agent = gettext("Agent"), row.linked_agent
    if agent is None:
        nothing = gettext("No agent of this tenant has the name.")
        gone = badge("gone", gettext("missing"))
        return Card(heading, gone, row.agent_name, (nothing,))
    # The current version: the version that created the row is not stored.
    version, at = _version(agent.version), when(agent.updated_at)
    deployed = format_html(gettext("Now at {}, deployed {}"), version, at)
    return Card(heading, "", link(row_url(site, agent), agent.name), (deployed,))


def _linked_card(site: AdminSite, heading: str, id: str | None, linked: Any) -> Card:
    """Return the card of the row that this one names."""
    if not id:
        return Card(heading, "", none())
    if linked is None:
        return Card(heading, badge("gone"), id)
    name = id_link(row_url(site, linked), id)
    if isinstance(linked, Session):
        active = format_html(gettext("Last active {}"), when(linked.last_active_at))
        return Card(heading, badge(linked.status), name, (active,))
    used = format_html(gettext("Last used {}"), when(linked.last_used_at))
    path = format_html(
        '<span class="agentdb-mono" data-copy="{}">{}</span>',
        linked.workspace_dir,
        linked.workspace_dir,
    )
    return Card(heading, badge(linked.state), name, (used, path))


def _runner_card(site: AdminSite, runner_id: str, alias: str) -> Card:
    url = runner_url(site, runner_id)
    runner = ask(connections[alias], lambda: Fleet(alias).runner(runner_id)).value
    lines: list[Text] = []
    if runner and runner.seen_at:
        lines.append(format_html(gettext("Last sign of life {}"), when(runner.seen_at)))
    lines.append(link(url, gettext("Open runner")))
    name = runner_link(url, runner_id)
    return Card(gettext("Runner"), condition(runner), name, tuple(lines))


def _list_card(heading: str, url: str) -> Card:
    return Card(heading, "", link(url, gettext("View all")))


def _sessions_card(
    site: AdminSite, heading: str, rows: QuerySet[Session], url: str
) -> Card:
    """Return the first sessions. Without an index the query may be too slow, and only the list has them."""
    asked = partial(read, rows[:_SHOWN], [])
    answer = ask(connections[rows.db], asked, seconds=_SECONDS)
    found = answer.value
    if found is None:
        searched = link(url, gettext("Search for them"))
        return Card(heading, "", str(answer.problem), (searched,))
    lines = [
        format_html("{} {}", id_link(row_url(site, one), one.pk), badge(one.status))
        for one in found
    ]
    lines.append(link(url, gettext("View all")))
    return Card(heading, "", "" if found else none(), tuple(lines))
