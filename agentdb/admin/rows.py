"""What a row names, and what its page shows beside its columns.

A session and a sandbox name an agent of their tenant, and each other; no foreign key says that it exists. Links lead
only to the tables in ``row.allowed``, which the user may see.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime
from functools import partial
from typing import Any

from django.contrib.admin import AdminSite
from django.db import connections
from django.db.models import Model, QuerySet
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext

from agentdb.admin.display import (
    Tables,
    column_value,
    cut,
    id_link,
    link,
    list_url,
    missing,
    none,
    row_url,
    unreadable,
)
from agentdb.console.checks import Fleet, said_of
from agentdb.console.display import exact, relative
from agentdb.console.questions import Problem, ask
from agentdb.console.reading import is_unreadable, read
from agentdb.models import Agent, Sandbox, Session
from agentdb.querysets import ALIVE, LIVE

# The table whose rows a session or sandbox names, and the column that names them.
_OTHER: dict[type[Model], tuple[type[Model], str]] = {
    Session: (Sandbox, "sandbox_id"),
    Sandbox: (Session, "session_id"),
}


def find_linked(
    rows: Sequence[Any],
    alias: str,
    allowed: Tables,
    problems: list[Problem],
) -> None:
    """Look up what rows of one table name, with one query for each table that the user may see.

    Sets ``row.linked_agent`` and ``row.linked``, None where nothing was found, and ``row.allowed``, the tables that
    this page may link to. A table that cannot be read is treated like one that the user may not see.
    """
    # One list for all rows, from which _found removes a table that cannot be read.
    readable = list(allowed)
    for row in rows:
        row.allowed = readable
    if not rows or type(rows[0]) not in _OTHER:
        return
    other, column = _OTHER[type(rows[0])]
    # The tenant of one row and the name of another may match an agent that neither means, which is then not looked up.
    # A condition for each pair would be fifty ORs in one query.
    agents = Agent.objects.filter(
        tenant_id__in={row.tenant_id for row in rows},
        name__in={row.agent_name for row in rows},
    )
    ids = {getattr(row, column) for row in rows}
    others = other._default_manager.filter(pk__in=ids - {None, ""})
    found = partial(
        _found,
        alias=alias,
        readable=readable,
        problems=problems,
    )
    agent_of = {(agent.tenant_id, agent.name): agent for agent in found(agents)}
    other_of = {each.pk: each for each in found(others)}
    for row in rows:
        agent = (row.tenant_id, row.agent_name)
        row.linked_agent = agent_of.get(agent)
        other_id = getattr(row, column)
        row.linked = other_of.get(other_id)


def _found(
    query: QuerySet[Any],
    alias: str,
    readable: list[type[Model]],
    problems: list[Problem],
) -> Iterable[Any]:
    """Return the rows; none of a table that the user may not see, or that cannot be read."""
    if query.model not in readable:
        return ()
    asked = partial(read, query.using(alias), problems)
    answer = ask(connections[alias], asked, problems)
    # A page whose links cannot be found is still a page. If this table stayed, each of them would be called missing.
    if answer.value is None:
        readable.remove(query.model)
    return answer.value or ()


def agent_link(site: AdminSite, row: Any) -> SafeString:
    """Return the link to the agent that a session or sandbox names.

    In red if a live session's is missing. Only the name if the user may not see agents, or they cannot be read.
    """
    name = row.agent_name
    agent = row.linked_agent
    if agent is None and Agent in row.allowed:
        is_live = isinstance(row, Session) and row.status in LIVE
        return missing(name, matters=is_live)
    return link(row_url(site, agent), name)


def sessions_link(site: AdminSite, agent: Any) -> SafeString:
    """Return the link to the sessions of an agent of a list; only the word if the user may not see sessions."""
    url = ""
    if Session in agent.allowed:
        url = list_url(site, Session, **_named_by(agent))
    return link(url, gettext("sessions"))


def other_link(site: AdminSite, row: Any) -> SafeString:
    """Return the link to a session's sandbox, or a sandbox's session.

    In red if it is missing although the row is up. Only the id if the user may not see the other table.
    """
    model, column = _OTHER[type(row)]
    id = getattr(row, column)
    if not id:
        return none()
    if model in row.allowed and row.linked is None:
        is_session = isinstance(row, Session)
        is_up = row.status in LIVE if is_session else row.state in ALIVE
        return missing(id, is_id=True, matters=is_up)
    url = row_url(site, row.linked)
    return id_link(url, id)


# -- the page of a row


def about(site: AdminSite, row: Any, alias: str) -> dict[str, Any]:
    """Return what the template of the page needs besides the row.

    ``find_linked`` has looked up what the row names. Here are the findings of the checks, the columns, the condition
    of a session's runner, and a few of the sessions that name an agent or sandbox. A part that cannot be read says why.
    """
    asked = partial(ask, connections[alias])
    said = asked(partial(said_of, row, alias))
    shown: dict[str, Any] = {
        "state": getattr(row, "status", None) or getattr(row, "state", None),
        "findings": [said.problem] if said.problem else said.value,
        "allowed": {model._meta.model_name for model in row.allowed},
        "stored": stored(row),
    }
    if isinstance(row, Session) and row.runner_id is not None:
        fleet = Fleet(alias)
        runner = asked(partial(fleet.runner, row.runner_id))
        shown["runner"] = runner.value
    named_by = _named_by(row)
    if named_by and Session in row.allowed:
        shown["sessions_url"] = list_url(site, Session, **named_by)
        its = Session.objects.using(alias).filter(**named_by)
        # No index has a sandbox's sessions: the first ones are found sooner than the newest.
        if isinstance(row, Agent):
            its = its.newest_first()
        shown["sessions"] = asked(partial(read, its[:5], []), seconds=0.5)
    return shown


def _named_by(row: Any) -> dict[str, str]:
    """Return the columns of the sessions that name this agent or sandbox; none for other rows."""
    if isinstance(row, Agent):
        return {
            "tenant_id": row.tenant_id,
            "agent_name": row.name,
        }
    if isinstance(row, Sandbox):
        return {"sandbox_id": row.pk}
    return {}


def stored(row: Model) -> list[tuple[str, SafeString | str]]:
    """Return each column with its value; of a key's hash only the beginning."""
    columns = [field.attname for field in row._meta.concrete_fields]
    return [(column, _stored(row, column)) for column in columns]


def _stored(row: Model, column: str) -> SafeString | str:
    """Return a value as it is stored. Only a text that is shown whole can be copied."""
    whole = getattr(row, column)
    if is_unreadable(whole):
        return unreadable(whole)
    value = column_value(row, column)
    if isinstance(value, datetime):
        return f"{exact(value)} ({relative(value)})"
    if value is None:
        return format_html('<span class="agentdb-quiet">{}</span>', "NULL")
    # Not a key's hash, of which only the beginning is there.
    text = str(value)
    is_whole = value == whole and text == cut(text)
    if text and is_whole and isinstance(value, str):
        return format_html('<span data-copy="{}">{}</span>', text, text)
    return cut(text)
