"""One hash of the schema as the server itself spells it, to pin in a deployment."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from typing import Any

from django.apps import apps
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.expected import APP_LABEL
from agentdb.schema.sqltext import canonical, matching, split, tokenize

# Of each query the first column names a table. Nothing depends on the order of columns, or on oids.
_POSTGRESQL = """
    WITH ours AS (
        SELECT c.oid, c.relname, c.relnamespace, c.relowner, c.relacl, c.relkind, c.relpersistence, c.relrowsecurity,
            c.relforcerowsecurity, c.relreplident, c.reloptions
        FROM pg_class c WHERE c.relnamespace = current_schema()::regnamespace AND c.relname = ANY(%s)
    ),
    rights AS (
        SELECT relname, '' AS on_column, coalesce(relacl, acldefault('r', relowner)) AS acl FROM ours
        UNION ALL SELECT relname, attname, attacl
        FROM ours JOIN pg_attribute ON attrelid = ours.oid AND attacl IS NOT NULL
    )
    SELECT relname, concat_ws(' ', 'table', relkind, relpersistence, relrowsecurity, relforcerowsecurity, relreplident,
        pg_get_userbyid(relowner), reloptions) FROM ours
    UNION ALL SELECT relname, concat_ws(' ', 'column', quote_ident(attname), format_type(atttypid, atttypmod),
        attnotnull, attidentity, attgenerated, pg_get_expr(adbin, adrelid),
        CASE WHEN attcollation <> typcollation THEN attcollation::regcollation::text END)
        FROM ours JOIN pg_attribute ON attrelid = ours.oid AND attnum > 0 AND NOT attisdropped
        JOIN pg_type ON pg_type.oid = atttypid
        LEFT JOIN pg_attrdef ON adrelid = attrelid AND adnum = attnum
    UNION ALL SELECT relname, concat_ws(' ', 'constraint', quote_ident(conname), pg_get_constraintdef(k.oid))
        FROM ours JOIN pg_constraint k ON conrelid = ours.oid AND contype <> 'n'
    UNION ALL SELECT relname, concat_ws(' ', 'index', pg_get_indexdef(indexrelid), indisvalid, indisclustered,
        indisreplident) FROM ours JOIN pg_index ON indrelid = ours.oid
    UNION ALL SELECT relname, concat_ws(' ', 'trigger', pg_get_triggerdef(t.oid), tgenabled)
        FROM ours JOIN pg_trigger t ON tgrelid = ours.oid AND NOT tgisinternal
    UNION ALL SELECT relname, concat_ws(' ', 'rule', pg_get_ruledef(r.oid), ev_enabled)
        FROM ours JOIN pg_rewrite r ON ev_class = ours.oid AND rulename <> '_RETURN'
    UNION ALL SELECT relname, concat_ws(' ', 'policy', quote_ident(polname), polcmd, polpermissive,
        ARRAY(SELECT pg_get_userbyid(o) FROM unnest(polroles) o ORDER BY 1),
        pg_get_expr(polqual, polrelid), pg_get_expr(polwithcheck, polrelid))
        FROM ours JOIN pg_policy ON polrelid = ours.oid
    UNION ALL SELECT relname, concat_ws(' ', 'right', on_column, privilege_type, is_grantable, pg_get_userbyid(grantor),
        CASE grantee WHEN 0 THEN 'PUBLIC' ELSE pg_get_userbyid(grantee) END)
        FROM rights CROSS JOIN aclexplode(acl)
"""


def fingerprint(connection: BaseDatabaseWrapper) -> tuple[str, list[str]]:
    """Return the SHA-256 of the four tables' schema, and the lines that it is of."""
    tables = sorted(model._meta.db_table for model in apps.get_app_config(APP_LABEL).get_models())
    with connection.cursor() as cursor:
        lines = sorted(_READERS[connection.vendor](cursor, tables))
    return hashlib.sha256("\n".join(lines).encode()).hexdigest(), lines


def _postgresql(cursor: Any, tables: list[str]) -> Iterator[str]:
    cursor.execute(_POSTGRESQL, [tables])
    for table, text in cursor.fetchall():
        yield f"{table}: {' '.join(text.split())}"


def _sqlite(cursor: Any, tables: list[str]) -> Iterator[str]:
    cursor.execute("SELECT type, tbl_name, sql FROM main.sqlite_master WHERE sql IS NOT NULL")
    for kind, owner, sql in cursor.fetchall():
        if owner.lower() not in tables:
            continue
        tokens = tokenize(sql)
        opening = next((number for number, token in enumerate(tokens) if token.text == "("), None)
        if kind != "table" or opening is None:
            yield f"{owner.lower()}: {canonical(tokens)}"
            continue
        closing = matching(tokens, opening)
        for item in split(tokens[opening + 1 : closing]):
            yield f"{owner.lower()}: {canonical(item)}"
        yield f"{owner.lower()}: table {canonical(tokens[closing + 1 :])}".rstrip()


def _cockroachdb(cursor: Any, tables: list[str]) -> Iterator[str]:
    for table in tables:
        for statement in (f'SHOW CREATE TABLE "{table}"', f'SHOW GRANTS ON TABLE "{table}"'):
            cursor.execute(statement)
            for row in cursor.fetchall():
                yield f"{table}: {' '.join(str(row[1:]).split())}"


_READERS = {"postgresql": _postgresql, "sqlite": _sqlite, "cockroachdb": _cockroachdb}
