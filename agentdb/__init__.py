"""The persistence layer of an agent server. Importing it imports no Django and touches no database."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
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

# Each name is imported at its first use, so that a program does not wait for what it does not use, and can configure
# Django before the adapter imports it.
_MODULES = {
    "serving.adapter": ("DjangoDb",),
    "serving.aio": ("AsyncDb",),
    "interface": (
        "AgentRecord",
        "ApiKeyRecord",
        "Db",
        "Health",
        "SandboxRecord",
        "SandboxState",
        "SessionRecord",
        "SessionStatus",
    ),
    "serving.opening": ("connect", "connect_async", "copy_database"),
}


def __getattr__(name: str) -> object:
    from importlib import import_module

    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    module = next(
        (module for module, names in _MODULES.items() if name in names), "errors"
    )
    value: object = getattr(import_module(f"agentdb.{module}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
