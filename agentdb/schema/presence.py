"""Whether the tables are there, and are those of the recorded migrations: one look for connect() and health()."""

from __future__ import annotations

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import AgentDbError, SchemaMismatchError, SchemaOutOfDateError
from agentdb.schema.migration_record import migration_names, pending_migrations

_TABLES = ("agents", "sessions", "sandboxes", "api_keys")
_TEXTS = ("text", "character varying")
_ON_SERVER = (
    "SELECT w.name, format_type(a.atttypid, NULL) FROM unnest(%s::text[]) AS w(name) "
    "JOIN pg_class c ON c.oid = to_regclass(w.name) "
    "LEFT JOIN pg_attribute a ON a.attrelid = c.oid AND a.attname = 'created_at'"
)
_ON_SQLITE = (
    "SELECT m.name, p.type FROM sqlite_master AS m "
    "LEFT JOIN pragma_table_info(m.name) AS p ON p.name = 'created_at' WHERE m.type IN ('table', 'view')"
)


def schema_problem(connection: BaseDatabaseWrapper, place: str) -> AgentDbError | None:
    """Return what keeps agentdb from working on the tables, with the command to run; two queries."""
    pending = tuple(pending_migrations(connection))
    found = _find(connection)
    tables = {name: found[name] for name in _TABLES if name in found}
    if pending:
        is_old = "agents" in tables and len(pending) == len(migration_names())
        return SchemaOutOfDateError(
            _out_of_date(place, pending, is_old), pending=pending
        )
    if missing := [name for name in _TABLES if name not in tables]:
        return SchemaMismatchError(
            f"{place} lacks the tables {', '.join(missing)}, though their migrations are recorded. "
            "Run 'agentdb verifydb'."
        )
    if not any(kind.lower() in _TEXTS for kind in tables.values()):
        return None
    return SchemaMismatchError(
        f"{place} holds its timestamps as text, though the migrations are recorded. Run 'agentdb verifydb'."
    )


def _find(connection: BaseDatabaseWrapper) -> dict[str, str]:
    """Return the tables that are there, each with the type of its created_at."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute(_ON_SQLITE)
        else:
            cursor.execute(_ON_SERVER, [list(_TABLES)])
        return {name: kind or "" for name, kind in cursor.fetchall()}


def _out_of_date(place: str, pending: tuple[str, ...], is_old: bool) -> str:
    names = ", ".join(pending)
    if is_old:
        return (
            f"{place} was made by the old server and is not adopted yet (pending: {names}). "
            "Run 'agentdb baselinedb --check' to see what adopting it does, then 'agentdb baselinedb'."
        )
    return f"{place} lacks the migrations {names}. Run 'agentdb migrate', or pass migrate=True."
