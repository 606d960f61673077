"""What a row's page says beside its columns: what is wrong with it, and what belongs to it.

Of another table it says only what the user may see, which is in ``allowed``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from datetime import datetime
from typing import Any

from django.contrib.admin import AdminSite
from django.db import connections
from django.db.models import Model
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
    none,
    row_url,
    runner_link,
    runner_url,
    short_text,
    tenant_url,
    unreadable,
    when,
)
from agentdb.console.checks import Fleet, said_of
from agentdb.console.questions import Problem, ask
from agentdb.console.reading import read
from agentdb.console.unreadable import is_unreadable
from agentdb.models import Agent, ApiKey, Sandbox, Session

Allowed = Collection[type[Model]]
Text = SafeString | str

_SHOWN = 5
_SECONDS = 0.5  # for a question of a row's page


@dataclass(frozen=True, slots=True)
class Card:
    """Something that belongs to the row; ``lines`` are links and facts."""

    heading: str
    badge: Text
    name: Text
    lines: tuple[Text, ...] = ()


@dataclass(frozen=True, slots=True)
class RowPage:
    title: str  # behind what the row is called; in the browser's tab too
    heading: Text
    badge: Text
    about: tuple[Text, ...]
    findings: tuple[str, ...]
    cards: tuple[Card, ...]


def session_page(site: AdminSite, row: Any, alias: str, allowed: Allowed) -> RowPage:
    cards = _agent_cards(site, row, allowed)
    if Sandbox in allowed:
        cards.append(_sandbox_card(site, row.sandbox_id, row.linked))
    if row.runner_id is not None:
        cards.append(_runner_card(site, row.runner_id, alias))
    if Sandbox in allowed:
        reserved = list_url(site, Sandbox, session_id=row.pk)
        cards.append(
            Card(
                gettext("Sandboxes reserved for it"),
                "",
                link(reserved, gettext("View all")),
            )
        )
    return _page(
        site,
        row,
        gettext("session"),
        badge(row.status),
        _findings(row, alias, allowed),
        cards,
    )


def sandbox_page(site: AdminSite, row: Any, alias: str, allowed: Allowed) -> RowPage:
    cards = _agent_cards(site, row, allowed)
    if Session in allowed:
        cards += [_session_card(site, row), _naming_card(site, row.pk, alias)]
    return _page(
        site,
        row,
        gettext("sandbox"),
        badge(row.state),
        _findings(row, alias, allowed),
        cards,
    )


def agent_page(site: AdminSite, row: Agent, alias: str, allowed: Allowed) -> RowPage:
    filters, cards = {"tenant_id": row.tenant_id, "agent_name": row.name}, []
    if Session in allowed:
        everything = link(list_url(site, Session, **filters), gettext("View all"))
        newest = (
            Session.objects.using(alias)
            .of_tenant(row.tenant_id)
            .of_agent(row.name)
            .newest_first()[:_SHOWN]
        )
        problems: list[Problem] = []
        found = ask(connections[alias], lambda: read(newest, problems), problems).value
        lines = _named(site, found or ())
        nothing = gettext("none") if found is not None else problems[0].sentence
        cards.append(
            Card(
                gettext("Its newest sessions"),
                "",
                "" if lines else nothing,
                (*lines, everything),
            )
        )
    if Sandbox in allowed:
        cards.append(
            Card(
                gettext("Its sandboxes"),
                "",
                link(list_url(site, Sandbox, **filters), gettext("View all")),
            )
        )
    about = (*_about(site, row, gettext("agent")), _version(row.version))
    return RowPage(cut(row.name), cut(row.name), "", about, (), tuple(cards))


def key_page(site: AdminSite, row: ApiKey, alias: str, allowed: Allowed) -> RowPage:
    tenant = Card(
        gettext("Tenant that it opens"),
        "",
        link(tenant_url(site, row.tenant_id), row.tenant_id),
    )
    label = cut(row.label) or gettext("(no label)")
    return RowPage(
        label, label, "", _about(site, row, gettext("API key")), (), (tenant,)
    )


def stored(row: Model) -> list[tuple[str, Text]]:
    """Each column, and what is in it; of a key's hash the beginning."""
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
    site: AdminSite,
    row: Any,
    kind: str,
    state: Text,
    findings: list[str],
    cards: list[Card],
) -> RowPage:
    """The page of a row that is called by its id."""
    heading = format_html(
        '<span class="agentdb-mono agentdb-wrap" data-copy="{}">{}</span>',
        row.pk,
        cut(row.pk),
    )
    about = _about(site, row, kind, row.agent_name)
    return RowPage(
        short_text(cut(row.pk)), heading, state, about, tuple(findings), tuple(cards)
    )


def _about(
    site: AdminSite, row: Any, kind: str, agent_name: str = ""
) -> tuple[Text, ...]:
    """What the row is, and whose."""
    what = (
        gettext("%(kind)s of %(agent)s")
        % {"kind": capfirst(kind), "agent": cut(agent_name)}
        if agent_name
        else ""
    )
    tenant = link(tenant_url(site, row.tenant_id), row.tenant_id)
    return (what or capfirst(kind), format_html("{} {}", gettext("tenant"), tenant))


def _version(version: Any) -> Text:
    return (
        unreadable(version)
        if is_unreadable(version)
        else gettext("version %d") % version
    )


def _named(site: AdminSite, sessions: Iterable[Session]) -> tuple[SafeString, ...]:
    return tuple(
        format_html("{} {}", id_link(row_url(site, one), one.pk), badge(one.status))
        for one in sessions
    )


def _findings(row: Any, alias: str, allowed: Allowed) -> list[str]:
    answer = ask(connections[alias], lambda: said_of(row, alias, allowed))
    return answer.value if answer.value is not None else [str(answer.problem)]


def _agent_cards(site: AdminSite, row: Any, allowed: Allowed) -> list[Card]:
    if Agent not in allowed:
        return []
    agent = row.linked_agent
    if agent is None:
        nothing = gettext("No agent of this tenant has the name.")
        return [
            Card(
                gettext("Agent"),
                badge("gone", gettext("missing")),
                row.agent_name,
                (nothing,),
            )
        ]
    # The version of now: which one the row was made by is stored nowhere.
    deployed = format_html(
        gettext("Now at {}, deployed {}"),
        _version(agent.version),
        when(agent.updated_at),
    )
    return [
        Card(gettext("Agent"), "", link(row_url(site, agent), agent.name), (deployed,))
    ]


def _sandbox_card(site: AdminSite, id: str, sandbox: Sandbox | None) -> Card:
    if not id:
        return Card(gettext("Sandbox"), "", none())
    if sandbox is None:
        return Card(gettext("Sandbox"), badge("gone"), id)
    path = format_html(
        '<span class="agentdb-mono" data-copy="{}">{}</span>',
        sandbox.workspace_dir,
        sandbox.workspace_dir,
    )
    used = format_html(gettext("Last used {}"), when(sandbox.last_used_at))
    return Card(
        gettext("Sandbox"),
        badge(sandbox.state),
        id_link(row_url(site, sandbox), sandbox.pk),
        (used, path),
    )


def _runner_card(site: AdminSite, runner_id: str, alias: str) -> Card:
    url = runner_url(site, runner_id)
    runner = ask(connections[alias], lambda: Fleet(alias).runner(runner_id)).value
    lines: list[Text] = []
    if runner and runner.seen_at:
        lines.append(format_html(gettext("Last sign of life {}"), when(runner.seen_at)))
    condition = (
        badge(runner.condition, gettext(runner.condition))
        if runner and runner.live and runner.condition
        else ""
    )
    lines.append(link(url, gettext("Open runner")))
    return Card(gettext("Runner"), condition, runner_link(url, runner_id), tuple(lines))


def _session_card(site: AdminSite, row: Any) -> Card:
    heading, session = gettext("Session it is reserved for"), row.linked
    if not row.session_id:
        return Card(heading, "", none())
    if session is None:
        return Card(heading, badge("gone"), row.session_id)
    active = format_html(gettext("Last active {}"), when(session.last_active_at))
    return Card(
        heading,
        badge(session.status),
        id_link(row_url(site, session), row.session_id),
        (active,),
    )


def _naming_card(site: AdminSite, id: str, alias: str) -> Card:
    """No index serves the question, so that among millions it is left to the list, which searches on by itself."""
    heading, everything = (
        gettext("Sessions that name it"),
        list_url(site, Session, sandbox_id=id),
    )
    naming = Session.objects.using(alias).filter(sandbox_id=id).order_by()[: _SHOWN + 1]
    found = ask(connections[alias], lambda: read(naming, []), seconds=_SECONDS).value
    if found is None:
        searched = link(everything, gettext("Search for them"))
        return Card(heading, "", gettext("not looked up among so many"), (searched,))
    more = (link(everything, gettext("View all")),) if len(found) > _SHOWN else ()
    return Card(
        heading, "", "" if found else none(), (*_named(site, found[:_SHOWN]), *more)
    )
