"""The persistence layer of an agent server. Importing it imports no Django and touches no database."""

from __future__ import annotations

from typing import TYPE_CHECKING

from agentdb.aio import AsyncDb
from agentdb.errors import (
    AgentDbError,
    ConflictError,
    DatabaseClosedError,
    DatabaseUnavailableError,
    DuplicateKeyError,
    InvalidInputError,
    SchemaMismatchError,
    SchemaOutOfDateError,
)
from agentdb.interface import (
    AgentRecord,
    ApiKeyRecord,
    Db,
    SandboxRecord,
    SandboxState,
    SessionRecord,
    SessionStatus,
)
from agentdb.opening import connect, connect_async

if TYPE_CHECKING:
    from agentdb.adapter import DjangoDb

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
    "InvalidInputError",
    "SandboxRecord",
    "SandboxState",
    "SchemaMismatchError",
    "SchemaOutOfDateError",
    "SessionRecord",
    "SessionStatus",
    "connect",
    "connect_async",
]


def __getattr__(name: str) -> object:
    # The adapter imports Django, which callers that only type against Db need not pay for.
    if name == "DjangoDb":
        from agentdb.adapter import DjangoDb

        return DjangoDb
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
