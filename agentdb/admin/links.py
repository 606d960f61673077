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

    Sets ``row.linked_agent`` and ``row.linked``, None if there is no such row, and ``row.allowed``, the tables that
    this page may link to. A table that cannot be read is treated like one that the user may not see.
    """
    readable = list(allowed)
    for row in rows:
        row.allowed = readable
    if not rows or type(rows[0]) not in _OTHER:
        return
    other, column = _OTHER[type(rows[0])]

    def find(model: type[Model], **conditions: Any) -> list[Any]:
        if model not in readable:
            return []
        named = model._default_manager.using(alias).filter(**conditions)
        answer = ask(connections[alias], partial(read, named, problems), problems)
        if answer.value is None:
            readable.remove(model)
        return answer.value or []

    agents = find(
        Agent,
        tenant_id__in={row.tenant_id for row in rows},
        name__in={row.agent_name for row in rows},
    )
    ids = {getattr(row, column) for row in rows}
    others = find(other, pk__in=ids - {None, ""})
    # The tenant of one row and the name of another may match an agent that neither means.
    by_name = {(agent.tenant_id, agent.name): agent for agent in agents}
    by_id = {each.pk: each for each in others}
    for row in rows:
        row.linked_agent = by_name.get((row.tenant_id, row.agent_name))
        row.linked = by_id.get(getattr(row, column))


def agent_link(site: AdminSite, row: Any) -> SafeString:
    """Return the link to the agent that a session or sandbox names.

    In red if a live session's is missing. Only the name if the user may not see agents, or they cannot be read.
    """
    name, agent = row.agent_name, row.linked_agent
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
        state = row.status if isinstance(row, Session) else row.state
        return missing(id, is_id=True, matters=state in (*LIVE, *ALIVE))
    return id_link(row_url(site, row.linked), id)
