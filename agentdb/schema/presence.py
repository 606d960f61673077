"""A cheap check for connect() and health(): the tables exist and match the recorded migrations."""

from __future__ import annotations

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import AgentDbError, SchemaMismatchError, SchemaOutOfDateError
from agentdb.inputs import OWN_TABLES
from agentdb.schema.migration_record import migration_names, pending_migrations
from agentdb.schema.queries import rows
from agentdb.schema.search_path import tables_elsewhere

_TEXTS = ("text", "character varying")
# In the current schema, whose record of migrations is read: tables later in the search_path are another's.
_ON_SERVER = (
    "SELECT c.relname, format_type(a.atttypid, NULL) FROM pg_class c "
    "JOIN pg_namespace n ON n.oid = c.relnamespace AND n.nspname = current_schema() "
    "LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'created_at' "
    "WHERE c.relname = ANY(%s::text[])"
)
_ON_SQLITE = (
    "SELECT m.name, p.type FROM sqlite_master AS m "
    "LEFT JOIN pragma_table_info(m.name) AS p ON p.name = 'created_at' WHERE m.type IN ('table', 'view')"
)


def schema_problem(connection: BaseDatabaseWrapper, place: str) -> AgentDbError | None:
    """Return why agentdb cannot work on the tables, with the command to run.

    Takes two queries if all is well.
    """
    pending = tuple(pending_migrations(connection))
    found = _find(connection)
    tables = {name: found[name] for name in OWN_TABLES if name in found}
    if pending:
        is_old = "agents" in tables and len(pending) == len(migration_names())
        return SchemaOutOfDateError(
            _two_schemas(connection, place) or _out_of_date(place, pending, is_old),
            pending=pending,
        )
    if missing := [name for name in OWN_TABLES if name not in tables]:
        return SchemaMismatchError(
            _two_schemas(connection, place)
            or f"{place} lacks the tables {', '.join(missing)}, though their migrations are recorded. "
            "Run 'agentdb verifydb'."
        )
    if not any(kind.lower() in _TEXTS for kind in tables.values()):
        return None
    return SchemaMismatchError(
        f"{place} holds its timestamps as text, though the migrations are recorded. Run 'agentdb verifydb'."
    )


def _two_schemas(connection: BaseDatabaseWrapper, place: str) -> str | None:
    cause = tables_elsewhere(connection, OWN_TABLES)
    if cause is None:
        return None
    return f"The search_path of {place} leads to more than one schema. {cause}"


def _find(connection: BaseDatabaseWrapper) -> dict[str, str]:
    """Return the existing tables, each with the type of its created_at."""
    found = (
        rows(connection, _ON_SQLITE)
        if connection.vendor == "sqlite"
        else rows(connection, _ON_SERVER, [list(OWN_TABLES)])
    )
    return {name: kind or "" for name, kind in found}


def _out_of_date(place: str, pending: tuple[str, ...], is_old: bool) -> str:
    names = ", ".join(pending)
    if is_old:
        return (
            f"{place} was made by the old server and is not adopted yet (pending: {names}). "
            "Run 'agentdb baselinedb --check' to see what adopting it does, then 'agentdb baselinedb'."
        )
    return f"{place} lacks the migrations {names}. Run 'agentdb migrate', or pass migrate=True."
