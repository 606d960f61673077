"""Before the tables become the old server's again: who else has the database open, and a backup of a SQLite file."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.progress import Progress
from agentdb.adoption.shapes import NATIVE
from agentdb.adoption.sqlite_backup import back_up_first
from agentdb.errors import InvalidInputError
from agentdb.schema.inspection import sqlite_path
from agentdb.schema.migration_record import migration_names, recorded_migrations
from agentdb.schema.queries import rows
from agentdb.sqlite_files import identity, is_kept_open

_SHOWN = 10
# A server notices only after a moment that a program has gone.
_LOOKS = 20
_SECONDS_BETWEEN_LOOKS = 0.05
_PROCESSES = Path("/proc")  # Linux; elsewhere the processes of a file are not known


_SESSIONS = {
    "postgresql": """
        SELECT 'process ' || pid || ' of the server', coalesce(nullif(application_name, ''), 'unnamed'), usename,
            coalesce(host(client_addr), 'local')
        FROM pg_stat_activity
        WHERE datname = current_database() AND backend_type = 'client backend' AND pid <> pg_backend_pid()
        ORDER BY pid
    """,
    # All sessions of the cluster, which does not tell their databases, except those that it opens itself. Not from
    # crdb_internal, which 26.1 closes to everybody unless a session variable opens it.
    "cockroachdb": """
        SELECT 'session ' || session_id || ' of the cluster, whose database is not known',
            coalesce(nullif(application_name, ''), 'unnamed'), user_name, regexp_replace(client_address, ':[0-9]+$', '')
        FROM [SHOW CLUSTER SESSIONS]
        WHERE session_id <> current_setting('session_id') AND status <> 'CLOSED' AND application_name NOT LIKE '$ %'
        ORDER BY session_start DESC
    """,
}


def leads_back(connection: BaseDatabaseWrapper, target: str | None) -> bool:
    """Whether ``migrate agentdb TARGET`` undoes the conversion of the timestamps."""
    # As Django does, take the beginning of a name, if only one begins so.
    names = [name for name in migration_names() if name.startswith(target or "")]
    is_before = len(names) == 1 and names[0] < NATIVE
    goes_back = target == "zero" or is_before
    return goes_back and NATIVE in recorded_migrations(connection)


def refuse_others(connection: BaseDatabaseWrapper) -> None:
    """Raise ``InvalidInputError`` that counts and names the other connections to the database.

    A program that keeps running would write timestamps in the form that its tables no longer have.
    """
    if connection.vendor == "sqlite":
        path = sqlite_path(connection)
        if path is None:
            return  # in memory
        connection.close()
        find = partial(_processes, path)
    else:
        find = partial(_sessions, connection)
    for _ in range(_LOOKS):
        if not (others := list(find())):
            return
        time.sleep(_SECONDS_BETWEEN_LOOKS)
    listed = "".join(f"\n  {other}" for other in others[:_SHOWN])
    more = f"\n  and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    raise InvalidInputError(
        f"Other connections are open ({len(others)}):{listed}{more}\n"
        "A running agentdb would lose or corrupt what it writes after the way back. Nothing was changed. Close them "
        "and run the command again, or go back all the same with --force."
    )


def _sessions(connection: BaseDatabaseWrapper) -> Iterator[str]:
    for what, name, role, client in rows(connection, _SESSIONS[connection.vendor]):
        yield f"{what}: {name}, role {role}, from {client}"


def _processes(path: Path) -> Iterator[str]:
    """Each process that has the file open, once for each of its descriptors."""
    file = identity(path)
    for folder in _PROCESSES.glob("[0-9]*"):
        is_own = folder.name == str(os.getpid())
        try:
            links = list((folder / "fd").iterdir())
            command = (
                (folder / "cmdline")
                .read_bytes()
                .replace(b"\0", b" ")
                .decode(errors="replace")
                .strip()
            )
        except OSError:  # gone meanwhile, or another user's
            continue
        for link in links:
            is_kept = is_own and is_kept_open(int(link.name))
            if identity(link) == file and not is_kept:
                yield f"process {folder.name}: {command[:100]}"


def back_up(connection: BaseDatabaseWrapper, progress: Progress) -> None:
    """Copy a SQLite file beside itself, as an adoption does."""
    copy = back_up_first(connection, progress)
    if copy is not None:
        progress.say(f"Backup: {copy}")
