"""What agentdb raises: one base class, and one child for each thing a caller can act on."""

from __future__ import annotations


class AgentDbError(Exception):
    """Base of every error that leaves agentdb. The driver's own error, where there is one, is its ``__cause__``."""


class InvalidInputError(AgentDbError, ValueError):
    """An argument that no engine can store; raised before any SQL runs."""


class DuplicateKeyError(AgentDbError):
    """The id or key hash is taken."""


class ConflictError(AgentDbError):
    """Other writers were in the way until the retries were used up; nothing of this call was written."""


class SchemaOutOfDateError(AgentDbError):
    """The database lacks migrations.

    ``pending`` holds their names in order; the message says which command applies them.
    """

    def __init__(self, message: str, *, pending: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.pending = pending


class SchemaMismatchError(AgentDbError):
    """The tables are not what the migrations make: an old server's shape, or a change made by hand."""


class DatabaseUnavailableError(AgentDbError):
    """The database cannot be reached or refuses: not up, not there, no permission, damaged, connection lost."""


class OutcomeUnknownError(DatabaseUnavailableError):
    """A write or COMMIT was sent and the answer never came: it may be stored, or not. Read, then decide."""


class DatabaseClosedError(AgentDbError):
    """The ``Db`` was closed before the call."""
