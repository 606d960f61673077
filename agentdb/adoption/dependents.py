"""Drops and recreates the objects that prevent PostgreSQL from changing a column's type.

Views, rules, policies and triggers are found in the catalog and recreated as they were. Any other object that reads
such a column is reported as an obstacle, by name. The server rebuilds indexes, constraints and statistics itself.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import starmap
from typing import Any

from django.db import DatabaseError, OperationalError

from agentdb.adoption.obstacles import first_line
from agentdb.adoption.queries import Query, Run
from agentdb.errors import SchemaMismatchError
from agentdb.wording import capitalized

DROP_FIRST = "Drop it, run the command again, and recreate it."


@dataclass(frozen=True, slots=True)
class _Grant:
    grantor: str
    grantee: str
    privilege: str
    column: str | None
    may_grant: bool


@dataclass(frozen=True, slots=True)
class _View:
    name: str  # as SQL spells it
    owner: str | None  # None: the role that creates it
    grants: frozenset[_Grant]


@dataclass(frozen=True, slots=True)
class Dependent:
    """A view, rule, trigger or policy, as statements."""

    title: str  # View 'own'
    drop: str
    recreate: tuple[str, ...]
    view: _View | None = None


@dataclass(frozen=True, slots=True)
class Dependents:
    """In the order in which they are recreated; they go in the opposite one."""

    found: tuple[Dependent, ...] = ()
    obstacles: tuple[str, ...] = ()


# The columns that change, the views above them at any height, and everything that reads either. A view is a relation
# and a type, and its query is a rule: pg_depend names all three, so each is looked up apart.
_READERS = """
    WITH RECURSIVE changing(oid, number) AS (SELECT * FROM unnest(%s::oid[], %s::int[])),
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
        SELECT v.oid, max(v.depth) AS depth, k.reltype FROM views v JOIN pg_class k USING (oid)
        WHERE k.relkind = 'v' GROUP BY v.oid, k.reltype
    ),
    readers AS (
        SELECT d.* FROM changing c
        JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = c.oid AND d.refobjsubid = c.number
        UNION
        SELECT d.* FROM above a JOIN pg_depend d ON d.refclassid = 'pg_class'::regclass AND d.refobjid = a.oid
        UNION
        SELECT d.* FROM above a JOIN pg_type t ON t.oid = a.reltype
        JOIN pg_depend d ON d.refclassid = 'pg_type'::regclass AND d.refobjid IN (t.oid, t.typarray)
    )
"""

_VIEWS = """
    SELECT c.oid, c.oid::regclass::text, pg_get_viewdef(c.oid), c.reloptions,
        CASE WHEN c.relowner <> current_user::regrole THEN quote_ident(pg_get_userbyid(c.relowner)) END,
        quote_literal(obj_description(c.oid, 'pg_class'))
    FROM above a JOIN pg_class c USING (oid) ORDER BY a.depth, c.oid
"""

_RULES = """
    SELECT DISTINCT 'Rule', quote_ident(r.rulename), r.rulename, c.oid::regclass::text,
        c.relkind::text, pg_get_ruledef(r.oid, true), r.ev_enabled::text,
        quote_literal(obj_description(r.oid, 'pg_rewrite'))
    FROM readers d JOIN pg_rewrite r ON d.classid = 'pg_rewrite'::regclass AND r.oid = d.objid
    JOIN pg_class c ON c.oid = r.ev_class
    WHERE r.rulename <> '_RETURN' ORDER BY 4, 3
"""

_TRIGGERS = """
    SELECT DISTINCT 'Trigger', quote_ident(t.tgname), t.tgname, c.oid::regclass::text,
        c.relkind::text, pg_get_triggerdef(t.oid, true), t.tgenabled::text,
        quote_literal(obj_description(t.oid, 'pg_trigger'))
    FROM readers d JOIN pg_trigger t ON d.classid = 'pg_trigger'::regclass AND t.oid = d.objid
    JOIN pg_class c ON c.oid = t.tgrelid
    WHERE NOT t.tgisinternal ORDER BY 4, 3
"""

_POLICIES = """
    SELECT DISTINCT quote_ident(p.polname), p.polname, p.polrelid::regclass::text, p.polpermissive, p.polcmd::text,
        ARRAY(SELECT CASE o WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(o)) END FROM unnest(p.polroles) o),
        pg_get_expr(p.polqual, p.polrelid), pg_get_expr(p.polwithcheck, p.polrelid),
        quote_literal(obj_description(p.oid, 'pg_policy'))
    FROM readers d JOIN pg_policy p ON d.classid = 'pg_policy'::regclass AND p.oid = d.objid
    ORDER BY 3, 2
"""

# What neither this module nor the server recreates.
_OBSTACLES = """
    SELECT DISTINCT
        CASE d.classid
            WHEN 'pg_rewrite'::regclass THEN
                (SELECT pg_describe_object('pg_class'::regclass, ev_class, 0) FROM pg_rewrite WHERE oid = d.objid)
            WHEN 'pg_attrdef'::regclass THEN
                (SELECT pg_describe_object('pg_class'::regclass, adrelid, adnum) FROM pg_attrdef WHERE oid = d.objid)
            ELSE pg_describe_object(d.classid, d.objid, d.objsubid)
        END,
        r.relname, a.attname,
        (SELECT relname FROM pg_class WHERE d.refclassid = 'pg_type'::regclass AND reltype IN (
            SELECT oid FROM pg_type t WHERE d.refobjid IN (t.oid, t.typarray)))
    FROM readers d
    LEFT JOIN pg_class r ON d.refclassid = 'pg_class'::regclass AND r.oid = d.refobjid
    LEFT JOIN pg_attribute a ON a.attrelid = r.oid AND a.attnum = d.refobjsubid AND r.relkind <> 'v'
    WHERE NOT (
        d.classid IN ('pg_trigger'::regclass, 'pg_policy'::regclass, 'pg_constraint'::regclass,
            'pg_statistic_ext'::regclass)
        OR d.classid = 'pg_type'::regclass AND d.deptype = 'i'
        OR d.classid = 'pg_rewrite'::regclass AND EXISTS (SELECT FROM pg_rewrite w
            WHERE w.oid = d.objid AND (w.rulename <> '_RETURN' OR w.ev_class IN (SELECT oid FROM above)))
        OR d.classid = 'pg_class'::regclass AND d.objsubid = 0
            AND EXISTS (SELECT FROM pg_class i WHERE i.oid = d.objid AND i.relkind IN ('i', 'I', 'S'))
        OR d.classid = 'pg_attrdef'::regclass AND EXISTS (SELECT FROM pg_attrdef f WHERE f.oid = d.objid
            AND f.adrelid = d.refobjid AND (f.adnum = d.refobjsubid OR d.refobjid IN (SELECT oid FROM above)))
    ) ORDER BY 1
"""

# The owners of what is dropped and recreated, and the roles that granted rights on it.
_ROLES = """
    SELECT DISTINCT pg_describe_object('pg_class'::regclass, c.oid, 0), pg_get_userbyid(o.role)
    FROM (
        SELECT oid FROM above
        UNION SELECT ev_class FROM pg_rewrite WHERE rulename <> '_RETURN'
            AND oid IN (SELECT objid FROM readers WHERE classid = 'pg_rewrite'::regclass)
        UNION SELECT polrelid FROM pg_policy
            WHERE oid IN (SELECT objid FROM readers WHERE classid = 'pg_policy'::regclass)
    ) touched
    JOIN pg_class c USING (oid)
    CROSS JOIN LATERAL (
        SELECT c.relowner AS role
        UNION SELECT grantor FROM aclexplode(c.relacl) WHERE c.relkind = 'v'
        UNION SELECT x.grantor FROM pg_attribute t, aclexplode(t.attacl) x WHERE t.attrelid = c.oid AND c.relkind = 'v'
    ) o
    WHERE NOT pg_has_role(o.role, '{right}') ORDER BY 1, 2
"""

_SCHEMAS = """
    SELECT DISTINCT pg_describe_object('pg_class'::regclass, c.oid, 0), r.rolname, n.nspname
    FROM above a JOIN pg_class c USING (oid) JOIN pg_namespace n ON n.oid = c.relnamespace
    JOIN pg_roles r ON r.oid IN (c.relowner, current_user::regrole)
    WHERE NOT has_schema_privilege(r.oid, n.oid, 'CREATE')
        AND NOT (SELECT rolsuper FROM pg_roles WHERE rolname = current_user)
    ORDER BY 1, 2
"""

# Columns that store whole rows of a table, also inside arrays, domains and other composite types.
_ROW_TYPES = """
    WITH RECURSIVE types(oid, name) AS (
        SELECT reltype, relname FROM pg_class WHERE oid = ANY(%s::oid[])
        UNION
        SELECT coalesce(c.reltype, d.objid), y.name FROM types y
        JOIN pg_depend d ON d.refclassid = 'pg_type'::regclass AND d.refobjid = y.oid
        LEFT JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid AND c.relkind = 'c'
        WHERE d.classid = 'pg_type'::regclass OR c.oid IS NOT NULL
    )
    SELECT DISTINCT pg_describe_object(d.classid, d.objid, d.objsubid), y.name
    FROM types y JOIN pg_depend d ON d.refclassid = 'pg_type'::regclass AND d.refobjid = y.oid
    JOIN pg_class c ON d.classid = 'pg_class'::regclass AND c.oid = d.objid
    WHERE c.relkind IN ('r', 'm', 'p') AND d.objsubid > 0 ORDER BY 1
"""

# What about a table, whatever its columns, prevents changing them.
_KINDS = """
    SELECT 'Rule ' || quote_literal(rulename) || ' on table ' || quote_literal(c.relname) ||
        ' stands in the way of converting its columns. Drop it and run the command again.'
    FROM pg_rewrite JOIN pg_class c ON c.oid = ev_class WHERE c.oid = ANY(%s::oid[]) AND rulename <> '_RETURN'
    UNION ALL
    SELECT 'Table ' || quote_literal(c.relname) || ' inherits from table ' || quote_literal(p.relname) ||
        ', so that its rows are also those of the other. End that with ALTER TABLE, NO INHERIT or DETACH PARTITION.'
    FROM pg_inherits JOIN pg_class c ON c.oid = inhrelid JOIN pg_class p ON p.oid = inhparent
    WHERE c.oid = ANY(%s::oid[]) OR p.oid = ANY(%s::oid[])
    UNION ALL
    SELECT 'Table ' || quote_literal(relname) || ' is made of the type ' || reloftype::regtype ||
        ', which fixes its columns. Run ''ALTER TABLE ' || quote_ident(relname) || ' NOT OF''.'
    FROM pg_class WHERE oid = ANY(%s::oid[]) AND reloftype <> 0
    ORDER BY 1
"""


def column_numbers(
    query: Query, columns: Mapping[str, Collection[str]]
) -> dict[int, list[int]]:
    """Return the columns' numbers in the catalog, by the oid of their table in the current schema."""
    numbers: dict[int, list[int]] = {}
    for oid, table, number, column in query(
        "SELECT c.oid, c.relname, a.attnum, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relnamespace = quote_ident(current_schema())::regnamespace AND c.relname = ANY(%s) AND a.attnum > 0",
        [list(columns)],
    ):
        numbers.setdefault(oid, [])
        if column in columns[table]:
            numbers[oid].append(number)
    return numbers


def table_obstacles(query: Query, tables: Collection[int]) -> list[str]:
    """Return a sentence for each property of a table that prevents changing its columns."""
    oids = list(tables)
    return [message for (message,) in query(_KINDS, [oids] * 4)]


def read_dependents(
    query: Query, columns: Mapping[int, Collection[int]], *, server_version: int
) -> Dependents:
    """Return the dependents of the columns, given by the oid of their table and their numbers."""
    pairs = [(oid, number) for oid, numbers in columns.items() for number in numbers]
    if not pairs:
        return Dependents()
    parameters = [[oid for oid, _ in pairs], [number for _, number in pairs]]

    def of(sql: str) -> list[tuple[Any, ...]]:
        return query(_READERS + sql, parameters)

    # Views first: a rule or a trigger may be on one of them.
    found = [
        *(_view(query, *row) for row in of(_VIEWS)),
        *(_attached(*row) for row in (*of(_RULES), *of(_TRIGGERS))),
        *(_policy(*row) for row in of(_POLICIES)),
    ]
    # Being a member of a role without the right to SET ROLE is possible from PostgreSQL 16 on.
    right = "SET" if server_version >= 160000 else "MEMBER"
    obstacles = [
        *starmap(_reader, of(_OBSTACLES)),
        *starmap(_row_holder, query(_ROW_TYPES, [list(columns)])),
        *starmap(_other_role, of(_ROLES.format(right=right))),
        *starmap(_closed_schema, of(_SCHEMAS)),
    ]
    return Dependents(tuple(found), tuple(obstacles))


def _reader(
    what: str, table: str | None, column: str | None, row_of: str | None
) -> str:
    if column is not None:
        return f"{capitalized(what)} reads column {column!r} of table {table!r}, whose type changes. {DROP_FIRST}"
    return f"{capitalized(what)} depends on view {row_of or table!r}, which must be recreated. {DROP_FIRST}"


def _row_holder(what: str, table: str) -> str:
    return f"{capitalized(what)} holds rows of table {table!r}, whose columns change their type. {DROP_FIRST}"


def _other_role(what: str, role: str) -> str:
    return (
        f"{capitalized(what)} must be recreated, but this role cannot SET ROLE to {role!r}, its owner or grantor. Run "
        f"'GRANT {role} TO …', or use another role."
    )


def _closed_schema(what: str, role: str, schema: str) -> str:
    return (
        f"{capitalized(what)} must be recreated, but its owner or this role, {role!r}, cannot create objects in "
        f"schema {schema!r}. Run 'GRANT CREATE ON SCHEMA {schema} TO {role}'."
    )


def drop(run: Run, dependents: Dependents) -> None:
    """Drop them, the views that stand on other views first. Never CASCADE, which would take what was not found."""
    for dependent in reversed(dependents.found):
        run(dependent.drop)


def recreate(query: Query, run: Run, dependents: Dependents) -> None:
    """Raise ``SchemaMismatchError`` with the name of what cannot be recreated as it was."""
    for dependent in dependents.found:
        with _naming(dependent):
            for sql in dependent.recreate:
                run(sql)
    # Owners come last: this role may create a trigger on a view of its own, but not on another role's.
    for dependent in dependents.found:
        if (view := dependent.view) is not None:
            with _naming(dependent):
                if view.owner is not None:
                    run(f"ALTER VIEW {view.name} OWNER TO {view.owner}")
                _restore_grants(query, run, view)


@contextmanager
def _naming(dependent: Dependent) -> Iterator[None]:
    """Name the dependent in the server's error."""
    try:
        yield
    except OperationalError:
        raise
    except DatabaseError as error:
        raise SchemaMismatchError(
            cannot_be_recreated(dependent.title, error)
        ) from error


def cannot_be_recreated(title: str, error: DatabaseError) -> str:
    return f"{title} cannot be recreated with the new types of the columns it reads: {first_line(error)} {DROP_FIRST}"


def _view(
    query: Query,
    oid: int,
    name: str,
    definition: str,
    options: list[str] | None,
    owner: str | None,
    comment: str | None,
) -> Dependent:
    settings = f" WITH ({', '.join(options)})" if options else ""
    statements = [f"CREATE VIEW {name}{settings} AS {definition}"]
    statements += [
        f"ALTER VIEW {name} ALTER COLUMN {column} SET DEFAULT {default}"
        for column, default in query(
            "SELECT quote_ident(attname), pg_get_expr(adbin, adrelid) FROM pg_attrdef JOIN pg_attribute"
            " ON attrelid = adrelid AND attnum = adnum WHERE adrelid = %s ORDER BY adnum",
            [oid],
        )
    ]
    statements += [f"COMMENT ON VIEW {name} IS {comment}"] if comment else []
    statements += [
        f"COMMENT ON COLUMN {name}.{column} IS {text}"
        for column, text in query(
            "SELECT quote_ident(attname), quote_literal(col_description(attrelid, attnum)) FROM pg_attribute"
            " WHERE attrelid = %s AND attnum > 0 AND col_description(attrelid, attnum) IS NOT NULL ORDER BY attnum",
            [oid],
        )
    ]
    grants = frozenset(_grants(query, name))
    return Dependent(
        f"View {name!r}",
        f"DROP VIEW {name}",
        tuple(statements),
        _View(name, owner, grants),
    )


_STATES = {"D": "DISABLE", "R": "ENABLE REPLICA", "A": "ENABLE ALWAYS"}


def _attached(
    word: str,
    quoted: str,
    name: str,
    on: str,
    kind: str,
    sql: str,
    enabled: str,
    comment: str | None,
) -> Dependent:
    """Return a rule or trigger."""
    statements = [sql]
    if enabled in _STATES:
        statements.append(
            f"ALTER TABLE {on} {_STATES[enabled]} {word.upper()} {quoted}"
        )
    if comment:
        statements.append(f"COMMENT ON {word.upper()} {quoted} ON {on} IS {comment}")
    title = f"{word} {name!r} on {'view' if kind == 'v' else 'table'} {on!r}"
    return Dependent(
        title,
        f"DROP {word.upper()} {quoted} ON {on}",
        tuple(statements),
    )


_COMMANDS = {"r": "SELECT", "a": "INSERT", "w": "UPDATE", "d": "DELETE", "*": "ALL"}


def _policy(
    quoted: str,
    name: str,
    on: str,
    permissive: bool,
    command: str,
    roles: list[str],
    using: str | None,
    check: str | None,
    comment: str | None,
) -> Dependent:
    sql = f"CREATE POLICY {quoted} ON {on} AS {'PERMISSIVE' if permissive else 'RESTRICTIVE'}"
    sql += f" FOR {_COMMANDS[command]} TO {', '.join(roles)}"
    sql += f" USING ({using})" if using else ""
    sql += f" WITH CHECK ({check})" if check else ""
    statements = (
        sql,
        *([f"COMMENT ON POLICY {quoted} ON {on} IS {comment}"] if comment else ()),
    )
    return Dependent(
        f"Policy {name!r} on table {on!r}",
        f"DROP POLICY {quoted} ON {on}",
        statements,
    )


def _grants(query: Query, name: str) -> set[_Grant]:
    """Return all rights on the view and its columns, also those that an empty list implies."""
    return {
        _Grant(*row)
        for row in query(
            "SELECT quote_ident(pg_get_userbyid(x.grantor)), CASE x.grantee WHEN 0 THEN 'PUBLIC'"
            " ELSE quote_ident(pg_get_userbyid(x.grantee)) END, x.privilege_type, l.column_name, x.is_grantable"
            " FROM (SELECT NULL AS column_name, coalesce(relacl, acldefault('r', relowner)) AS list FROM pg_class"
            "   WHERE oid = %s::regclass UNION ALL"
            "   SELECT quote_ident(attname), attacl FROM pg_attribute WHERE attrelid = %s::regclass) l"
            " CROSS JOIN aclexplode(l.list) x",
            [name, name],
        )
    }


def _restore_grants(query: Query, run: Run, view: _View) -> None:
    """Restore the view's rights: ALTER DEFAULT PRIVILEGES may have given the new one others."""
    given = _grants(query, view.name)
    if given == view.grants:
        return
    for grantee in sorted({grant.grantee for grant in given}):
        run(f"REVOKE ALL ON {view.name} FROM {grantee} CASCADE")
    [(owner, role)] = query(
        "SELECT quote_ident(pg_get_userbyid(relowner)), quote_ident(current_setting('role')) FROM pg_class"
        " WHERE oid = %s::regclass",
        [view.name],
    )
    for grant in _in_order(view.grants, owner):
        # The server records who granted a right, and lets each role revoke only what it granted itself.
        if grant.grantor != owner:
            run(f"SET LOCAL ROLE {grant.grantor}")
        run(_grant_sql(grant, view.name, owner))
        if grant.grantor != owner:
            run(f"SET LOCAL ROLE {role}")
    if _grants(query, view.name) != view.grants:
        raise SchemaMismatchError(
            f"View {view.name!r} cannot be recreated with exactly the rights that were granted on it. {DROP_FIRST}"
        )


def _in_order(grants: Collection[_Grant], owner: str) -> Iterator[_Grant]:
    """The grants, each after the one that let its grantor grant it; one that nothing let is left out."""
    left = set(grants)
    may_grant: set[tuple[str, str, str | None]] = {
        (owner, grant.privilege, None) for grant in left
    }

    def is_ready(grant: _Grant) -> bool:
        # A right on the whole view is one on each column.
        columns = {
            None,
            grant.column,
        }
        return any(
            (grant.grantor, grant.privilege, column) in may_grant for column in columns
        )

    while ready := sorted(filter(is_ready, left), key=repr):
        yield from ready
        left.difference_update(ready)
        may_grant.update(
            (grant.grantee, grant.privilege, grant.column)
            for grant in ready
            if grant.may_grant
        )


def _grant_sql(grant: _Grant, view: str, owner: str) -> str:
    columns = f" ({grant.column})" if grant.column else ""
    option = " WITH GRANT OPTION" if grant.may_grant and grant.grantee != owner else ""
    return f"GRANT {grant.privilege}{columns} ON {view} TO {grant.grantee}{option}"
