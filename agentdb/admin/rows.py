"""What a row's page shows beside its columns: what is wrong with the row, and the rows that belong to it.

Only from the tables in ``row.allowed``, which the user may see.
"""

from __future__ import annotations

from datetime import datetime
from functools import partial
from typing import Any

from django.contrib.admin import AdminSite
from django.db import connections
from django.db.models import Model
from django.utils.html import format_html
from django.utils.safestring import SafeString
from django.utils.translation import gettext

from agentdb.admin.display import (
    column_value,
    cut,
    exactly,
    list_url,
    unreadable,
)
from agentdb.console.checks import Fleet, said_of
from agentdb.console.questions import ask
from agentdb.console.reading import is_unreadable, read
from agentdb.models import Agent, ApiKey, Sandbox, Session

_SHOWN = 5
_SECONDS = 0.5  # seconds for one query of a row's page


def about(site: AdminSite, row: Any, alias: str) -> dict[str, Any]:
    """Return what the template of the page needs besides the row.

    ``find_linked`` has looked up what the row names. Here are the findings of the checks, the columns, the condition
    of a session's runner, and the sessions that name an agent or sandbox. A part that cannot be read says why.
    """
    asked = partial(ask, connections[alias])
    checks = partial(said_of, row, alias, row.allowed)
    said = asked(checks)
    shown: dict[str, Any] = {
        "name": _name(row),
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
        sessions = partial(_some_sessions, alias, row, named_by)
        shown["sessions_url"] = list_url(site, Session, **named_by)
        shown["sessions"] = asked(sessions, seconds=_SECONDS)
    return shown


def _some_sessions(alias: str, row: Any, named_by: dict[str, str]) -> list[Any]:
    """Return a few of the sessions that name the agent or sandbox, an agent's newest ones."""
    sessions = Session.objects.using(alias).filter(**named_by)
    # No index has a sandbox's sessions: the first ones are found sooner than the newest.
    if isinstance(row, Agent):
        sessions = sessions.newest_first()
    return read(sessions[:_SHOWN], [])


def _named_by(row: Any) -> dict[str, str]:
    """Return the columns of the sessions that name this agent or sandbox; nothing for other rows."""
    if isinstance(row, Agent):
        return {
            "tenant_id": row.tenant_id,
            "agent_name": row.name,
        }
    if isinstance(row, Sandbox):
        return {"sandbox_id": row.pk}
    return {}


def label_of(row: ApiKey) -> str:
    """Return the label, which a link needs to be seen."""
    return row.label or gettext("(no label)")


def _name(row: Any) -> str:
    """Return what the title calls the row."""
    name = row.pk
    if isinstance(row, ApiKey):
        name = label_of(row)
    elif isinstance(row, Agent):
        name = row.name
    return cut(name)


def stored(row: Model) -> list[tuple[str, SafeString | str]]:
    """Return each column with its value; of a key's hash only the beginning."""
    shown = []
    for field in row._meta.concrete_fields:
        column = field.attname
        value = _stored(row, column)
        shown.append((column, value))
    return shown


def _stored(row: Model, column: str) -> SafeString | str:
    """Return a value as it is stored. Only a text that is shown whole can be copied."""
    whole = getattr(row, column)
    if is_unreadable(whole):
        return unreadable(whole)
    value = column_value(row, column)
    if isinstance(value, datetime):
        return exactly(value)
    if value is None:
        return format_html('<span class="agentdb-quiet">{}</span>', "NULL")
    # Not a key's hash, of which only the beginning is there.
    text = str(value)
    is_whole = value == whole and text == cut(text)
    if text and is_whole and isinstance(value, str):
        return format_html('<span data-copy="{}">{}</span>', text, text)
    return cut(text)
