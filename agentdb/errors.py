"""The exceptions: one base class, and a subclass for each case that a caller can handle differently."""

from __future__ import annotations


class AgentDbError(Exception):
    """Base class of every error that agentdb raises. ``__cause__`` is the driver's error, if there is one."""


class InvalidInputError(AgentDbError, ValueError):
    """An argument that no engine can store; raised before any SQL runs."""


class DuplicateKeyError(AgentDbError):
    """The id or key hash is taken."""


class ConflictError(AgentDbError):
    """Other writers conflicted until the retries ran out; this call wrote nothing."""


class SchemaOutOfDateError(AgentDbError):
    """The database lacks migrations.

    ``pending`` holds their names in order; the message says which command applies them.
    """

    def __init__(self, message: str, *, pending: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.pending = pending


class SchemaMismatchError(AgentDbError):
    """The tables differ from what the migrations make: an old server's shape, or a manual change."""


class DatabaseUnavailableError(AgentDbError):
    """The database is down, missing or damaged, a permission is missing, or the connection was lost."""


class OutcomeUnknownError(DatabaseUnavailableError):
    """A write or COMMIT was sent and no answer came, so it may be stored. Read, then decide."""


class DatabaseClosedError(AgentDbError):
    """A call after ``close()``."""
