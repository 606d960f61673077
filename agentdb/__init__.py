"""The persistence layer of an agent server. Importing it imports no Django and touches no database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentdb.errors import (
    AgentDbError,
    ConflictError,
    DatabaseClosedError,
    DatabaseUnavailableError,
    DuplicateKeyError,
    InvalidInputError,
    OutcomeUnknownError,
    SchemaMismatchError,
    SchemaOutOfDateError,
)
from agentdb.interface import (
    AgentRecord,
    ApiKeyRecord,
    Db,
    Health,
    SandboxRecord,
    SandboxState,
    SessionRecord,
    SessionStatus,
)

if TYPE_CHECKING:
    from agentdb.serving.adapter import DjangoDb
    from agentdb.serving.aio import AsyncDb
    from agentdb.serving.opening import connect, connect_async, copy_database

__all__ = [
    "AgentDbError",
    "AgentRecord",
    "ApiKeyRecord",
    "AsyncDb",
    "ConflictError",
    "DatabaseClosedError",
    "DatabaseUnavailableError",
    "Db",
    "DjangoDb",
    "DuplicateKeyError",
    "Health",
    "InvalidInputError",
    "OutcomeUnknownError",
    "SandboxRecord",
    "SandboxState",
    "SchemaMismatchError",
    "SchemaOutOfDateError",
    "SessionRecord",
    "SessionStatus",
    "connect",
    "connect_async",
    "copy_database",
]

# Imported at their first use: a program can configure Django before the adapter imports it, and one that only names
# records and errors does not wait for any of these.
_MODULES = {
    "AsyncDb": "agentdb.serving.aio",
    "DjangoDb": "agentdb.serving.adapter",
    "connect": "agentdb.serving.opening",
    "connect_async": "agentdb.serving.opening",
    "copy_database": "agentdb.serving.opening",
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value: object = getattr(import_module(_MODULES[name]), name)
    globals()[name] = value  # so that the next use finds it without this function
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
