"""Drops and recreates the objects that prevent PostgreSQL from changing a column's type.

Views, rules, policies and triggers are found in the catalog and recreated as they were. If any other object stands in
the way, the server refuses the change and names it. The server rebuilds indexes, constraints and statistics itself, and
does not say which one failed; the message then lists those that read a changing column.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any, NamedTuple

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.obstacles import AdoptionRefusedError, refusing
from agentdb.schema.queries import rows, run

_DROP_FIRST = "Drop it, run the command again, and recreate it."


class Dependent(NamedTuple):
    """A view, rule, trigger or policy, as statements."""

    title: str  # View 'own'
    drop: str
    recreate: list[str]
    view: str | None = None  # the name of a view, as SQL spells it
    set_owner: str | None = None  # None: the role that creates it
    grants: list[tuple[Any, ...]] = []


# The columns that change, the views above them at any height, and everything that reads either. A view's query is a
# rule, which depends on the view itself, hence the last condition of views. A materialized view is not among those
# above: it stores rows, so it is not recreated.
_READERS = """
    WITH RECURSIVE changing(oid, number) AS (
        SELECT attrelid, attnum FROM pg_attribute
        WHERE attrelid = to_regclass(quote_ident(%s)) AND attname = ANY(%s) AND attnum > 0
    ),
    views(oid, depth) AS (
        SELECT r.ev_class, 1 FROM changing c
        JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid AND d.refobjsubid = c.number
        JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid AND r.rulename = '_RETURN'
        UNION
        SELECT r.ev_class, v.depth + 1 FROM views v
        JOIN pg_class k ON k.oid = v.oid AND k.relkind = 'v'
        JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = v.oid
        JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid AND r.rulename = '_RETURN'
            AND r.ev_class <> v.oid
    ),
    above AS (
        SELECT v.oid, max(v.depth) AS depth FROM views v JOIN pg_class k USING (oid)
        WHERE k.relkind = 'v' GROUP BY v.oid
    ),
    readers AS (
        SELECT d.* FROM changing c
        JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid AND d.refobjsubid = c.number
        UNION
        SELECT d.* FROM above a JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = a.oid
    )
"""

# The rows are Dependents. A missing comment, default or state makes its whole statement NULL, which is removed.
_VIEWS = """
    SELECT 'View ' || quote_literal(v.name), 'DROP VIEW ' || v.name,
        array_remove(ARRAY[
            'CREATE VIEW ' || v.name || coalesce(' WITH (' || array_to_string(c.reloptions, ', ') || ')', '')
                || ' AS ' || pg_get_viewdef(c.oid),
            'COMMENT ON VIEW ' || v.name || ' IS ' || quote_literal(obj_description(c.oid, 'pg_class'))], NULL)
        || ARRAY(SELECT 'ALTER VIEW ' || v.name || ' ALTER COLUMN ' || quote_ident(a.attname) || ' SET DEFAULT '
            || pg_get_expr(d.adbin, d.adrelid) FROM pg_attrdef d JOIN pg_attribute a ON a.attrelid = d.adrelid
            AND a.attnum = d.adnum WHERE d.adrelid = c.oid ORDER BY d.adnum)
        || ARRAY(SELECT 'COMMENT ON COLUMN ' || v.name || '.' || quote_ident(attname) || ' IS '
            || quote_literal(col_description(attrelid, attnum)) FROM pg_attribute WHERE attrelid = c.oid AND attnum > 0
            AND col_description(attrelid, attnum) IS NOT NULL ORDER BY attnum),
        v.name,
        CASE WHEN c.relowner <> current_user::regrole THEN
            'ALTER VIEW ' || v.name || ' OWNER TO ' || quote_ident(pg_get_userbyid(c.relowner)) END
    FROM above JOIN pg_class c USING (oid) CROSS JOIN LATERAL (SELECT c.oid::regclass::text AS name) v
    ORDER BY above.depth, c.oid
"""

_ATTACHED = """,
    attached(word, name, class, sql, enabled, comment) AS (
        SELECT 'RULE', r.rulename, r.ev_class, pg_get_ruledef(r.oid, true), r.ev_enabled,
            obj_description(r.oid, 'pg_rewrite')
        FROM readers d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
        WHERE r.rulename <> '_RETURN'
        UNION
        SELECT 'TRIGGER', t.tgname, t.tgrelid, pg_get_triggerdef(t.oid, true), t.tgenabled,
            obj_description(t.oid, 'pg_trigger')
        FROM readers d JOIN pg_trigger t ON d.classid = 'pg_trigger'::regclass AND t.oid = d.objid
        WHERE NOT t.tgisinternal
        UNION
        SELECT 'POLICY', p.polname, p.polrelid, 'CREATE POLICY ' || quote_ident(p.polname) || ' ON '
            || p.polrelid::regclass || CASE WHEN p.polpermissive THEN ' AS PERMISSIVE' ELSE ' AS RESTRICTIVE' END
            || ' FOR ' || CASE p.polcmd WHEN 'r' THEN 'SELECT' WHEN 'a' THEN 'INSERT' WHEN 'w' THEN 'UPDATE'
                WHEN 'd' THEN 'DELETE' ELSE 'ALL' END
            || ' TO ' || (SELECT string_agg(CASE o WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(o)) END, ', ')
                FROM unnest(p.polroles) o)
            || coalesce(' USING (' || pg_get_expr(p.polqual, p.polrelid) || ')', '')
            || coalesce(' WITH CHECK (' || pg_get_expr(p.polwithcheck, p.polrelid) || ')', ''),
            NULL, obj_description(p.oid, 'pg_policy')
        FROM readers d JOIN pg_policy p ON d.classid = 'pg_policy'::regclass AND p.oid = d.objid
    )
    SELECT initcap(a.word) || ' ' || quote_literal(a.name)
            || CASE c.relkind WHEN 'v' THEN ' on view ' ELSE ' on table ' END || quote_literal(c.oid::regclass::text),
        'DROP ' || w.what,
        array_remove(ARRAY[
            a.sql,
            'ALTER TABLE ' || c.oid::regclass || CASE a.enabled WHEN 'D' THEN ' DISABLE '
                WHEN 'R' THEN ' ENABLE REPLICA ' WHEN 'A' THEN ' ENABLE ALWAYS ' END || a.word || ' '
                || quote_ident(a.name),
            'COMMENT ON ' || w.what || ' IS ' || quote_literal(a.comment)], NULL)
    FROM attached a JOIN pg_class c ON c.oid = a.class
    CROSS JOIN LATERAL (SELECT a.word || ' ' || quote_ident(a.name) || ' ON ' || c.oid::regclass AS what) w
    ORDER BY a.word, c.oid, a.name
"""

# All rights on a view and its columns, also those that an empty list implies: grantee, statement, grantor.
_GRANTS = """
    SELECT g.grantee, 'GRANT ' || x.privilege_type || coalesce(' (' || l.column_name || ')', '') || ' ON '
            || l.oid::regclass || ' TO ' || g.grantee || CASE WHEN x.is_grantable THEN ' WITH GRANT OPTION' ELSE '' END,
        x.grantor
    FROM (
        SELECT oid, NULL AS column_name, coalesce(relacl, acldefault('r', relowner)) AS list FROM pg_class
        UNION ALL SELECT attrelid, quote_ident(attname), attacl FROM pg_attribute
    ) l
    CROSS JOIN aclexplode(l.list) x
    CROSS JOIN LATERAL (
        SELECT CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END AS grantee
    ) g
    WHERE l.oid = %s::regclass ORDER BY 1, 2, 3
"""

# What the server rebuilds for a column's new type, if the type matters to it.
_REBUILT = """
    SELECT DISTINCT pg_describe_object(d.classid, d.objid, 0)
    FROM pg_depend d JOIN pg_attribute a ON a.attrelid = d.refobjid AND a.attnum = d.refobjsubid
    JOIN pg_class t ON t.oid = a.attrelid
    LEFT JOIN pg_index i ON d.classid = 'pg_class'::regclass AND i.indexrelid = d.objid
    WHERE d.refclassid = 'pg_class'::regclass AND t.relname = %s AND a.attname = ANY(%s)
        AND t.relnamespace = quote_ident(current_schema())::regnamespace AND (
            i.indexprs IS NOT NULL OR i.indpred IS NOT NULL
            OR EXISTS (SELECT FROM pg_opclass WHERE oid = ANY(i.indclass) AND NOT opcdefault)
            OR EXISTS (SELECT FROM pg_attribute k WHERE k.attrelid = i.indexrelid AND k.attname = a.attname
                AND k.attcollation <> a.attcollation)
            OR EXISTS (SELECT FROM pg_statistic_ext WHERE d.classid = 'pg_statistic_ext'::regclass AND oid = d.objid
                AND stxexprs IS NOT NULL))
    ORDER BY 1
"""


def rebuilt_objects(
    connection: BaseDatabaseWrapper, table: str, columns: Collection[str]
) -> list[str]:
    """Return the objects that the server rebuilds with the columns, and that may not accept their new types."""
    return [what for (what,) in rows(connection, _REBUILT, [table, list(columns)])]


def _dependents(
    connection: BaseDatabaseWrapper, table: str, columns: Collection[str]
) -> list[Dependent]:
    """Return what reads the columns, in the order in which it is recreated; it goes in the opposite one."""
    views, attached = (
        [
            Dependent(*row)
            for row in rows(connection, _READERS + sql, [table, list(columns)])
        ]
        for sql in (_VIEWS, _ATTACHED)
    )
    # Views first: a rule or a trigger may be on one of them.
    return [
        *(
            view._replace(grants=rows(connection, _GRANTS, [view.view]))
            for view in views
        ),
        *attached,
    ]


@contextmanager
def without_dependents(
    connection: BaseDatabaseWrapper, table: str, columns: Collection[str]
) -> Iterator[None]:
    """Drop what depends on the columns, and recreate it after the body, or raise ``AdoptionRefusedError``."""
    # PostgreSQL changes no type under a view, a rule, a policy or a trigger's columns. They are dropped and recreated
    # in the transaction that converts, so nobody ever sees them missing.
    found = _dependents(connection, table, columns)
    # The views that stand on other views first. Never CASCADE, which would take what was not found.
    for dependent in reversed(found):
        with _naming(dependent):
            run(connection, dependent.drop)
    yield
    for dependent in found:
        with _naming(dependent):
            for sql in dependent.recreate:
                run(connection, sql)
    # Owners come last: this role may create a trigger on a view of its own, but not on another role's.
    for dependent in found:
        if dependent.view is not None:
            with _naming(dependent):
                _restore_rights(connection, dependent)


def _naming(dependent: Dependent) -> AbstractContextManager[None]:
    return refusing(
        f"{dependent.title} cannot be recreated with the new types of the columns it reads:",
        _DROP_FIRST,
    )


def _restore_rights(connection: BaseDatabaseWrapper, view: Dependent) -> None:
    """Restore a view's owner and rights: ALTER DEFAULT PRIVILEGES may have given the new one others."""
    if view.set_owner is not None:
        run(connection, view.set_owner)
    given = rows(connection, _GRANTS, [view.view])
    if given == view.grants:
        return
    # All of them first: what remained of a default privilege could not be told from what was granted.
    for grantee in sorted({grantee for grantee, *_ in given}):
        run(connection, f"REVOKE ALL ON {view.view} FROM {grantee} CASCADE")
    for _, grant, _ in view.grants:
        run(connection, grant)
    # The server records who granted a right. What a role other than the owner granted, only that role can grant again.
    if rows(connection, _GRANTS, [view.view]) != view.grants:
        raise AdoptionRefusedError.of(
            f"{view.title} cannot be recreated with exactly the rights that were granted on it. {_DROP_FIRST}"
        )
