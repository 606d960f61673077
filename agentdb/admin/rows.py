"""What a row's page says beside its columns: what is wrong, when what happened, and what belongs to it.

Of another table it says only what the user may see, which is in ``allowed``.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any

from django.contrib.admin import AdminSite
from django.db import connections
from django.db.models import Model
from django.utils import timezone
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
    row_url,
    runner_url,
    short_text,
    tenant_url,
    unreadable,
    when,
)
from agentdb.console import report
from agentdb.console.display import exact, lasting
from agentdb.console.questions import Problem, ask
from agentdb.console.reading import read
from agentdb.console.unreadable import is_unreadable
from agentdb.interface import SandboxState, SessionStatus
from agentdb.models import Agent, ApiKey, Sandbox, Session
from agentdb.querysets import ALIVE, FINISHED, LIVE

Allowed = Collection[type[Model]]

_GAP = timedelta(seconds=60)
_SHOWN = 5
_SECONDS = 0.5  # for a question of a row's page


@dataclass(frozen=True, slots=True)
class Moment:
    """One line of the time line; ``after`` is how long nothing happened before it, where that is worth a line."""

    instant: datetime
    text: SafeString | str
    own: bool = False
    after: str = ""

    @property
    def exact(self) -> str:
        return exact(self.instant)

    @property
    def shown(self) -> str:
        return exact(self.instant).partition(".")[0].removesuffix(" UTC")


@dataclass(frozen=True, slots=True)
class Card:
    """Something that belongs to the row; ``lines`` are links and facts."""

    heading: str
    badge: SafeString | str
    name: SafeString | str
    lines: tuple[SafeString | str, ...] = ()


@dataclass(frozen=True, slots=True)
class RowPage:
    title: str  # behind what the row is called; in the browser's tab too
    heading: SafeString | str
    badge: SafeString | str
    about: tuple[SafeString | str, ...]
    findings: tuple[str, ...]
    moments: tuple[Moment, ...]
    cards: tuple[Card, ...]


def session_page(site: AdminSite, row: Any, alias: str, allowed: Allowed) -> RowPage:
    now, sandbox = timezone.now(), row.linked_sandbox if Sandbox in allowed else None
    moments = [
        Moment(row.created_at, _own(gettext("Session opened")), own=True),
        Moment(row.last_active_at, _own(gettext("Session last active")), own=True),
    ]
    cards = _agent_cards(site, row, allowed)
    if sandbox is not None:
        moments.append(Moment(sandbox.created_at, gettext("Sandbox made")))
        moments.append(Moment(sandbox.last_used_at, gettext("Sandbox last used")))
    if Sandbox in allowed:
        cards.append(_sandbox_card(site, row.sandbox_id, sandbox))
    if row.runner_id is not None:
        connection, runner_id = connections[alias], row.runner_id
        sign = ask(connection, lambda: report.last_sign_of_life(connection, runner_id), seconds=_SECONDS).value
        others = [link(runner_url(site, row.runner_id), gettext("Its sessions, and how it is"))]
        if sign is not None:
            others.insert(0, format_html(gettext("Last sign of life {}"), when(sign[0])))
        cards.append(Card(gettext("Runner"), "", link(runner_url(site, row.runner_id), row.runner_id), tuple(others)))
    if Sandbox in allowed:
        reserved = list_url(site, Sandbox, session_id=row.pk)
        cards.append(Card(gettext("Sandboxes reserved for it"), "", link(reserved, gettext("All"))))
    return RowPage(
        *_by_id(row), badge(row.status), _about(site, row, gettext("session"), row.agent_name),
        tuple(_session_findings(row, now, allowed)), _line(moments, now, row.status in LIVE, row.status), tuple(cards),
    )  # fmt: skip


def sandbox_page(site: AdminSite, row: Any, alias: str, allowed: Allowed) -> RowPage:
    now, session = timezone.now(), row.linked_session if Session in allowed else None
    moments = [
        Moment(row.created_at, _own(gettext("Sandbox made")), own=True),
        Moment(row.last_used_at, _own(gettext("Sandbox last used")), own=True),
    ]
    cards = _agent_cards(site, row, allowed)
    if session is not None:
        moments.append(Moment(session.created_at, gettext("Session opened")))
        moments.append(Moment(session.last_active_at, gettext("Session last active")))
    if row.session_id and Session in allowed:
        name = id_link(row_url(site, session), row.session_id) if session is not None else row.session_id
        state = badge(session.status) if session is not None else badge("gone")
        active = [format_html(gettext("Last active {}"), when(session.last_active_at))] if session is not None else []
        cards.append(Card(gettext("Session it is reserved for"), state, name, tuple(active)))
    if Session in allowed:
        cards.append(_naming_card(site, row.pk, alias))
    alive = row.state != SandboxState.COLD.value
    return RowPage(
        *_by_id(row), badge(row.state), _about(site, row, gettext("sandbox"), row.agent_name),
        tuple(_sandbox_findings(row, allowed)), _line(moments, now, alive, row.state), tuple(cards),
    )  # fmt: skip


def agent_page(site: AdminSite, row: Agent, alias: str, allowed: Allowed) -> RowPage:
    now = timezone.now()
    moments = [
        Moment(row.created_at, _own(gettext("Agent made")), own=True),
        Moment(row.updated_at, _deployed(row.version), own=True),
    ]
    filters, cards = {"tenant_id": row.tenant_id, "agent_name": row.name}, []
    if Session in allowed:
        everything = link(list_url(site, Session, **filters), gettext("All"))
        newest = Session.objects.using(alias).of_tenant(row.tenant_id).of_agent(row.name).newest_first()[:_SHOWN]
        problems: list[Problem] = []
        found = ask(connections[alias], lambda: read(newest, problems), problems).value
        lines = _named(site, found or ())
        nothing = gettext("none") if found is not None else problems[0].sentence
        cards.append(Card(gettext("Its newest sessions"), "", "" if lines else nothing, (*lines, everything)))
    if Sandbox in allowed:
        cards.append(Card(gettext("Its sandboxes"), "", link(list_url(site, Sandbox, **filters), gettext("All"))))
    about = (*_about(site, row, gettext("agent")), _version(row.version))
    return RowPage(cut(row.name), cut(row.name), "", about, (), _line(moments, now, False, ""), tuple(cards))


def key_page(site: AdminSite, row: ApiKey) -> RowPage:
    moments = [Moment(row.created_at, _own(gettext("Key issued")), own=True)]
    tenant = Card(gettext("Tenant that it opens"), "", link(tenant_url(site, row.tenant_id), row.tenant_id))
    label = cut(row.label) or gettext("(no label)")
    about = _about(site, row, gettext("API key"))
    return RowPage(label, label, "", about, (), _line(moments, timezone.now(), False, ""), (tenant,))


def stored(row: Model) -> list[tuple[str, SafeString | str]]:
    """Each column, and what is in it; of a key's hash the beginning."""
    columns: list[tuple[str, SafeString | str]] = []
    for field in row._meta.concrete_fields:
        whole, value = getattr(row, field.attname), column_value(row, field.attname)
        if is_unreadable(whole):
            shown: SafeString | str = unreadable(whole)
        elif isinstance(value, datetime):
            shown = exactly(value)
        elif value is None:
            shown = format_html('<span class="agentdb-quiet">{}</span>', "NULL")
        elif isinstance(value, str) and value and value == whole == cut(value):
            shown = format_html('<span data-copy="{}">{}</span>', value, value)
        else:
            shown = cut(str(value))
        columns.append((field.attname, shown))
    return columns


def _by_id(row: Model) -> tuple[str, SafeString]:
    id = cut(row.pk)
    return short_text(id), format_html('<span class="agentdb-mono agentdb-wrap" data-copy="{}">{}</span>', row.pk, id)


def _about(site: AdminSite, row: Any, kind: str, agent_name: str = "") -> tuple[SafeString | str, ...]:
    """What the row is, and whose."""
    what = gettext("%(kind)s of %(agent)s") % {"kind": capfirst(kind), "agent": cut(agent_name)} if agent_name else ""
    tenant = link(tenant_url(site, row.tenant_id), row.tenant_id)
    return (what or capfirst(kind), format_html("{} {}", gettext("tenant"), tenant))


def _version(version: Any) -> SafeString | str:
    return unreadable(version) if is_unreadable(version) else gettext("version %d") % version


def _named(site: AdminSite, sessions: Iterable[Session]) -> tuple[SafeString, ...]:
    return tuple(format_html("{} {}", id_link(row_url(site, one), one.pk), badge(one.status)) for one in sessions)


def _naming_card(site: AdminSite, id: str, alias: str) -> Card:
    """No index serves the question, so that among millions it is left to the list, which searches on by itself."""
    naming = Session.objects.using(alias).filter(sandbox_id=id).order_by()[: _SHOWN + 1]
    found = ask(connections[alias], lambda: read(naming, []), seconds=_SECONDS).value
    everything = list_url(site, Session, sandbox_id=id)
    if found is None:
        return Card(
            gettext("Sessions that name it"),
            "",
            gettext("not looked up among so many"),
            (link(everything, gettext("Search for them")),),
        )
    lines = _named(site, found[:_SHOWN])
    more = (link(everything, gettext("All of them")),) if len(found) > _SHOWN else ()
    return Card(gettext("Sessions that name it"), "", "" if found else gettext("none"), (*lines, *more))


def _deployed(version: Any) -> SafeString:
    return format_html("<strong>{}</strong> {}", gettext("Deployed"), _version(version))


def _own(text: str) -> SafeString:
    return format_html("<strong>{}</strong>", text)


def _session_findings(row: Any, now: datetime, allowed: Allowed) -> Iterator[str]:
    if row.status not in LIVE:
        return
    if row.sandbox_id and row.linked_sandbox is None and Sandbox in allowed:
        yield gettext("It is %s, and its sandbox is gone.") % row.status
    if row.linked_agent is None and Agent in allowed:
        yield gettext("It is %(status)s, and no agent of its tenant is called %(name)r.") % {
            "status": row.status,
            "name": row.agent_name,
        }
    starting, silent = timedelta(minutes=report.STARTING_MINUTES), timedelta(minutes=report.SILENT_MINUTES)
    if row.status == SessionStatus.STARTING.value and (age := _age(row.created_at, now)) > starting:
        yield gettext("It has been starting for %s.") % lasting(age)
    if row.status == SessionStatus.ACTIVE.value and (age := _age(row.last_active_at, now)) > silent:
        yield gettext("It is active, and has given no sign of life for %s.") % lasting(age)


def _age(at: datetime, now: datetime) -> timedelta:
    return timedelta() if is_unreadable(at) else now - at


def _sandbox_findings(row: Any, allowed: Allowed) -> Iterator[str]:
    session: Session | None = row.linked_session
    alive = row.state in ALIVE
    if not alive or not row.session_id or Session not in allowed:
        return
    if session is None:
        yield gettext("It is %s, and its session is gone.") % row.state
    elif session.status in FINISHED:
        yield gettext("It is %(state)s, and its session is %(status)s.") % {
            "state": row.state,
            "status": session.status,
        }


def _agent_cards(site: AdminSite, row: Any, allowed: Allowed) -> list[Card]:
    return [_agent_card(site, row)] if Agent in allowed else []


def _agent_card(site: AdminSite, row: Any) -> Card:
    agent = row.linked_agent
    if agent is None:
        return Card(
            gettext("Agent"),
            badge("gone", gettext("missing")),
            row.agent_name,
            (gettext("No agent of this tenant has the name."),),
        )
    return Card(
        gettext("Agent"),
        "",
        format_html(
            '{} <span class="agentdb-quiet">{}</span>',
            link(row_url(site, agent), agent.name),
            _version(agent.version),
        ),
        (format_html(gettext("Deployed {}"), when(agent.updated_at)),),
    )


def _sandbox_card(site: AdminSite, id: str, sandbox: Sandbox | None) -> Card:
    if sandbox is None:
        return Card(gettext("Sandbox"), badge("gone"), id or gettext("none"))
    path = format_html(
        '<span class="agentdb-mono" data-copy="{}">{}</span>', sandbox.workspace_dir, sandbox.workspace_dir
    )
    used = format_html(gettext("Last used {}"), when(sandbox.last_used_at))
    return Card(gettext("Sandbox"), badge(sandbox.state), id_link(row_url(site, sandbox), sandbox.pk), (used, path))


def _line(moments: list[Moment], now: datetime, alive: bool, state: str) -> tuple[Moment, ...]:
    """In their order, with the silence between them; what still goes on goes on until now."""
    known = [moment for moment in moments if not is_unreadable(moment.instant)]
    ordered = sorted(known, key=lambda moment: moment.instant)
    if alive:
        ordered.append(
            Moment(
                now,
                format_html('{} <span class="agentdb-quiet">{}</span>', gettext("Now"), gettext("still %s") % state),
            )
        )
    line, before = [], None
    for moment in ordered:
        gap = moment.instant - before if before is not None else timedelta()
        line.append(Moment(moment.instant, moment.text, moment.own, lasting(gap) if gap >= _GAP else ""))
        before = moment.instant
    return tuple(line)
