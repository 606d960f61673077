"""A thread's connection, on any engine."""

from __future__ import annotations

from django.conf import settings
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import AgentDbError, DatabaseUnavailableError
from agentdb.serving.connections.base import Engine
from agentdb.serving.connections.sqlite import SqliteEngine
from agentdb.serving.host import cannot_load


def engine_of(wrapper: BaseDatabaseWrapper, *, owned: bool = False) -> Engine:
    """Return the engine of a connection."""
    if not settings.USE_TZ or wrapper.settings_dict["TIME_ZONE"] not in (None, "UTC"):
        # SQLite would store the project's local times beside UTC ones, as text that looks the same.
        raise AgentDbError(
            f"The database alias {wrapper.alias!r} does not keep its timestamps in UTC. "
            "Set USE_TZ = True, and no TIME_ZONE in its entry of DATABASES."
        )
    if not wrapper.settings_dict["AUTOCOMMIT"]:
        # A call that is retried on a new connection would lose what the old one had not committed.
        raise AgentDbError(
            f"The database alias {wrapper.alias!r} has AUTOCOMMIT = False, and agentdb's calls would not be committed. "
            "Leave it out of its entry of DATABASES, and use transaction.atomic()."
        )
    if wrapper.vendor == "sqlite":
        return SqliteEngine(wrapper, owned=owned)
    if wrapper.vendor in ("postgresql", "cockroachdb"):
        try:
            from agentdb.serving.connections.postgresql import PostgresEngine
        except ImportError as error:  # Django also accepts psycopg2
            raise DatabaseUnavailableError(
                cannot_load("django.db.backends.postgresql", error)
            ) from error

        return PostgresEngine(wrapper, owned=owned)
    engine = wrapper.settings_dict["ENGINE"]  # the dummy of an alias without a database
    raise AgentDbError(
        f"agentdb does not know the engine {engine!r} of the database alias {wrapper.alias!r}. Correct DATABASES."
    )


def describe(wrapper: BaseDatabaseWrapper) -> str:
    """Return the database's name for a message, without the password."""
    return engine_of(wrapper).describe()
