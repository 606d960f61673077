"""The audit log: a line in the terminal, in a file if configured, and in the host project's admin log."""

from __future__ import annotations

import json
import logging
import os
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from functools import partial
from typing import Any, Literal, NamedTuple, NoReturn

from django.conf import settings
from django.contrib.admin.models import ADDITION, CHANGE, DELETION, LogEntry
from django.contrib.contenttypes.models import ContentType
from django.core.exceptions import PermissionDenied
from django.db import DatabaseError
from django.db.models import Model
from django.http import HttpRequest

from agentdb.admin.sharing import forget

Outcome = Literal["done", "refused", "undone"]

# 'runadmin' sends it to the terminal; a host project configures it like any logger.
logger = logging.getLogger("agentdb.audit")

# Django's kinds of actions, by ours; all others are changes.
_FLAGS = {
    "delete": DELETION,
    "revoke": DELETION,
    "issue": ADDITION,
}


class Entry(NamedTuple):
    """What an action did to rows; ``before`` and ``after`` have the recorded columns by id.

    ``action`` begins with a verb ("pause", "delete", "revoke", "issue").
    """

    action: str
    rows: Sequence[Model] = ()
    before: Mapping[str, Any] = {}
    after: Mapping[str, Any] = {}


def record(request: HttpRequest, entry: Entry, outcome: Outcome = "done") -> None:
    """Record that the user of the request did this, was refused, or that it was rolled back.

    Raises ``OSError`` if the file cannot be written: call it inside the transaction that changes the rows, or before,
    so that nothing happens unrecorded.
    """
    forget()  # shared results are out of date
    _write(
        request,
        request.user.get_username() or "anonymous",
        entry.action,
        outcome,
        table=entry.rows[0]._meta.db_table if entry.rows else "",
        rows=len(entry.rows),
        ids=[row.pk for row in entry.rows],
        before=entry.before,
        after=entry.after,
    )


def refuse(request: HttpRequest, action: str) -> NoReturn:
    """Record that the user may not do this, and answer 403."""
    record(request, Entry(action), "refused")
    raise PermissionDenied


def record_failed_login(
    sender: object,
    credentials: Mapping[str, Any],
    request: HttpRequest | None,
    **_: Any,
) -> None:
    """Record a failed login; receives Django's signal."""
    name = str(credentials.get("username", ""))
    _write(request, name[:150], "log in", "refused")


def _write(
    request: HttpRequest | None,
    user: str,
    action: str,
    outcome: Outcome,
    **more: object,
) -> None:
    """Write a line to the file, if one is configured, and to the logger."""
    now = datetime.now(UTC)
    address = ""
    if request is not None:
        address = request.META.get("REMOTE_ADDR", "")
    line = {
        "at": now.isoformat(timespec="milliseconds"),
        "user": user,
        "from": address,
        "action": action,
        "outcome": outcome,
        **more,
    }
    # ASCII, so that an id cannot start a line or move the cursor.
    text = json.dumps(line, ensure_ascii=True, default=str)
    # The file first: if it cannot be written, the exception rolls back what the terminal would call done.
    path = getattr(settings, "AGENTDB_AUDIT_LOG", None)
    if path:
        _append(path, text)
    level = logging.INFO if outcome == "done" else logging.WARNING
    logger.log(level, "%s", text)


def keeps_history() -> bool:
    """Return whether actions go to Django's log; under 'runadmin' that would vanish with the accounts."""
    return bool(getattr(settings, "AGENTDB_ADMIN_LOG", True))


def log_in_project(request: HttpRequest, entry: Entry) -> None:
    """Add a committed action to the host project's own log.

    After the commit, because accounts may be in another database, and a failure there must not look like one here.
    """
    if request.user.pk is None or not keeps_history():
        return
    lines = [
        LogEntry(
            user_id=request.user.pk,
            content_type=ContentType.objects.get_for_model(row),
            object_id=row.pk,
            object_repr=str(row)[:200],
            action_flag=_FLAGS.get(entry.action, CHANGE),
            change_message=_message(entry, row.pk),
        )
        for row in entry.rows
    ]
    try:
        LogEntry.objects.bulk_create(lines)
    except DatabaseError:
        logger.exception(
            "The admin log of the project could not be written: %s of %d rows",
            entry.action,
            len(lines),
        )


def _message(entry: Entry, id: str) -> str:
    """Return what the row's history says, such as "pause: active → paused"."""
    if id not in entry.before:
        return entry.action
    before = entry.before[id]
    after = entry.after.get(id) or "gone"
    return f"{entry.action}: {before} → {after}"


def _append(path: str, text: str) -> None:
    """Append a line and flush it to the disk."""
    # The owner alone may read a new file: its lines name users, tenants and addresses.
    private = partial(os.open, mode=0o600)
    # Without a buffer, a single write keeps the lines of several processes apart.
    with open(path, "ab", buffering=0, opener=private) as file:
        file.write(f"{text}\n".encode())
        os.fsync(file.fileno())
