"""System checks: what is wrong with an installation, and which command helps."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

from django.conf import settings
from django.core.checks import CheckMessage, Error, Tags, Warning, register
from django.db import DatabaseError, connections, router

from agentdb.errors import DatabaseUnavailableError
from agentdb.schema.inspection import check_sqlite_file, sqlite_path
from agentdb.sqlite_files import file_concern, version_concern

# Django runs checks by itself and passes them nothing of the command, so that this travels beside it; per thread and
# task, because another may run checks of its own.
_left_to_command: ContextVar[bool] = ContextVar(
    "agentdb_adoption_left_to_command", default=False
)


@contextmanager
def adoption_left_to_command() -> Iterator[None]:
    """Silence E001 for a command that deals with old tables itself."""
    token = _left_to_command.set(True)
    try:
        yield
    finally:
        _left_to_command.reset(token)


@register(Tags.database)
def check_adoption(
    databases: Sequence[str] | None = None, **_: Any
) -> list[CheckMessage]:
    """agentdb.E001: the old server's tables exist, but no migration is recorded."""
    if _left_to_command.get():
        return []
    from agentdb.adoption.shapes import unadopted

    errors: list[CheckMessage] = []
    for alias in filter(_may_be_old, databases or ()):
        connection = connections[alias]
        try:
            if path := sqlite_path(connection):
                # SQLite would create a missing file, and delete the log of one that was moved away.
                check_sqlite_file(path)
            shape = unadopted(connection)
        except (DatabaseError, DatabaseUnavailableError):
            continue  # the command that uses the database explains it better
        if shape is not None and shape.tables:
            errors.append(
                Error(
                    f"Database {alias!r} has tables of the old server that are not adopted yet: {shape.description}.",
                    hint="Run 'agentdb baselinedb --check' to see what adopting them does, then 'agentdb baselinedb'.",
                    id="agentdb.E001",
                )
            )
    return errors


def _may_be_old(alias: str) -> bool:
    # The old server ran on these two only.
    is_known = connections[alias].vendor in ("sqlite", "postgresql")
    return is_known and router.allow_migrate(alias, "agentdb")


@register(Tags.database)
def check_sqlite_file_system(
    databases: Sequence[str] | None = None, **_: Any
) -> list[CheckMessage]:
    """agentdb.W001: a file that its file system, or its several names, endanger."""
    warnings: list[CheckMessage] = []
    for alias in databases or ():
        path = sqlite_path(connections[alias])
        if path and (concern := file_concern(path)):
            warnings.append(Warning(concern, id="agentdb.W001"))
    return warnings


# With the other checks of a deployment: the remedy is not in the project's code.
@register(Tags.database, deploy=True)
def check_sqlite_version(
    databases: Sequence[str] | None = None, **_: Any
) -> list[CheckMessage]:
    """agentdb.W002: a SQLite that can lose commits without an error."""
    # The version of the library, not of the file: only a project that uses SQLite needs to know.
    uses_files = any(sqlite_path(connections[alias]) for alias in databases or ())
    concern = version_concern(sqlite3.sqlite_version)
    if not concern or not uses_files:
        return []
    return [
        Warning(
            concern,
            hint="docs/deployment.md says how to get a fixed one.",
            id="agentdb.W002",
        )
    ]


@register()
def check_time_zone(**_: Any) -> list[CheckMessage]:
    """agentdb.E002: without time zones Django reads and writes local times, and agentdb keeps UTC."""
    if settings.USE_TZ:
        return []
    return [
        Error(
            "USE_TZ is False, but agentdb keeps its timestamps in UTC.",
            hint="Set USE_TZ = True in the project's settings.",
            id="agentdb.E002",
        )
    ]
