"""What sessions and sandboxes name: an agent of their tenant, and each other. No foreign key says that it exists."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from functools import partial
from typing import Any

from django.contrib.admin import AdminSite
from django.db import connections
from django.db.models import Model
from django.utils.safestring import SafeString

from agentdb.admin.display import id_link, link, missing, none, row_url
from agentdb.console.questions import Problem, ask
from agentdb.console.reading import read
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
    allowed: Collection[type[Model]],
    problems: list[Problem],
) -> None:
    """Look up what rows of one table name, with one query for each table that the user may see.

    Sets ``row.linked_agent`` and ``row.linked``, None where nothing was found, and ``row.allowed``, the tables that
    this page may link to. A table that cannot be read is treated like one that the user may not see.
    """
    # One list for all rows, from which _named removes a table that cannot be read.
    readable = list(allowed)
    for row in rows:
        row.allowed = readable
    if not rows or type(rows[0]) not in _OTHER:
        return
    _, column = _OTHER[type(rows[0])]
    found = _named(rows, alias, readable, problems)
    for row in rows:
        agent = (row.tenant_id, row.agent_name)
        row.linked_agent = found.get(agent)
        other = getattr(row, column)
        row.linked = found.get(other)


def _named(
    rows: Sequence[Any],
    alias: str,
    readable: list[type[Model]],
    problems: list[Problem],
) -> dict[Any, Any]:
    """Return agents by tenant and name, and the rows of the other table by id."""
    other, column = _OTHER[type(rows[0])]
    # The tenant of one row and the name of another may match an agent that neither means, which the key tells apart. A
    # condition for each pair would be fifty ORs in one query.
    tenants = {row.tenant_id for row in rows}
    names = {row.agent_name for row in rows}
    ids = {getattr(row, column) for row in rows}
    ids -= {None, ""}
    agents = Agent.objects.filter(
        tenant_id__in=tenants,
        name__in=names,
    )
    others = other._default_manager.filter(pk__in=ids)
    queries: list[tuple[type[Model], Any]] = [
        (Agent, agents),
        (other, others),
    ]
    found = {}
    for model, query in queries:
        if model not in readable:
            continue
        asked = partial(read, query.using(alias), problems)
        answer = ask(connections[alias], asked, problems)
        # A page whose links cannot be found is still a page. If this table stayed, each of them would be called
        # missing.
        if answer.value is None:
            readable.remove(model)
        for each in answer.value or ():
            key = (each.tenant_id, each.name) if model is Agent else each.pk
            found[key] = each
    return found


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
