"""Drops and recreates the objects that prevent PostgreSQL from changing a column's type.

Views, rules, policies and triggers are found in the catalog and recreated as they were. Any other object that reads
such a column is reported as an obstacle, by name. The server rebuilds indexes, constraints and statistics itself, and
does not say which one failed. So each of those is then tried on temporary tables.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from itertools import starmap
from typing import Any, NamedTuple

from django.db import DatabaseError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.obstacles import (
    AdoptionRefusedError,
    first_line,
    is_transient,
)
from agentdb.errors import SchemaMismatchError
from agentdb.schema.queries import quote_name, rows, run
from agentdb.wording import capitalized

DROP_FIRST = "Drop it, run the command again, and recreate it."


class _Grant(NamedTuple):
    grantor: str
    grantee: str
    privilege: str
    column: str | None
    may_grant: bool


class _View(NamedTuple):
    name: str  # as SQL spells it
    owner: str | None  # None: the role that creates it
    grants: frozenset[_Grant]


class Dependent(NamedTuple):
    """A view, rule, trigger or policy, as statements."""

    title: str  # View 'own'
    drop: str
    recreate: list[str]
    view: _View | None = None


class Dependents(NamedTuple):
    """In the order in which they are recreated; they go in the opposite one."""

    found: tuple[Dependent, ...] = ()
    obstacles: tuple[str, ...] = ()


# The columns that change, the views above them at any height, and everything that reads either. A view is a relation
# and a type, and its query is a rule: pg_depend names all three, so each is looked up apart. A view's rule depends on
# the view itself, hence the last condition of views. A materialized view is not among those above: it stores rows, so
# it is an obstacle and not recreated.
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
        CASE WHEN c.relowner <> current_user::regrole THEN quote_ident(pg_get_userbyid(c.relowner)) END
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
    connection: BaseDatabaseWrapper, columns: Mapping[str, Collection[str]]
) -> dict[int, list[int]]:
    """Return the columns' numbers in the catalog, by the oid of their table in the current schema."""
    numbers: dict[int, list[int]] = {}
    for oid, table, number, column in rows(
        connection,
        "SELECT c.oid, c.relname, a.attnum, a.attname FROM pg_class c JOIN pg_attribute a ON a.attrelid = c.oid"
        " WHERE c.relnamespace = quote_ident(current_schema())::regnamespace AND c.relname = ANY(%s) AND a.attnum > 0",
        [list(columns)],
    ):
        numbers.setdefault(oid, [])
        if column in columns[table]:
            numbers[oid].append(number)
    return numbers


def read_dependents(
    connection: BaseDatabaseWrapper, columns: Mapping[str, Collection[str]]
) -> Dependents:
    """Return what reads the columns, which are given by their table, and what does not let them change.

    Called before an adoption, for the plan, and again before each conversion, because the one before recreates views.
    """
    numbers = column_numbers(connection, columns)
    oids = list(numbers)
    of_tables = [message for (message,) in rows(connection, _KINDS, [oids] * 4)]
    pairs = [(oid, number) for oid in oids for number in numbers[oid]]
    if not pairs:
        return Dependents(obstacles=tuple(of_tables))
    # Two arrays of the same length, as unnest() takes them.
    parameters = list(map(list, zip(*pairs, strict=True)))

    def of(sql: str) -> list[tuple[Any, ...]]:
        return rows(connection, _READERS + sql, parameters)

    # Views first: a rule or a trigger may be on one of them.
    found = []
    for title, dropping, statements, name, owner in of(_VIEWS):
        view = _View(name, owner, _grants(connection, name))
        found.append(Dependent(title, dropping, statements, view))
    found += starmap(Dependent, of(_ATTACHED))
    # Being a member of a role without the right to SET ROLE is possible from PostgreSQL 16 on.
    right = "SET" if connection.features.is_postgresql_16 else "MEMBER"  # type: ignore[attr-defined]
    obstacles = [
        *of_tables,
        *starmap(_reader, of(_OBSTACLES)),
        *starmap(_ROW_HOLDER.format, rows(connection, _ROW_TYPES, [oids])),
        *starmap(_OTHER_ROLE.format, of(_ROLES.format(right=right))),
        *starmap(_CLOSED_SCHEMA.format, of(_SCHEMAS)),
    ]
    return Dependents(tuple(found), tuple(map(capitalized, obstacles)))


def _reader(
    what: str, table: str | None, column: str | None, row_of: str | None
) -> str:
    if column is not None:
        return f"{what} reads column {column!r} of table {table!r}, whose type changes. {DROP_FIRST}"
    return f"{what} depends on view {row_of or table!r}, which must be recreated. {DROP_FIRST}"


_ROW_HOLDER = (
    f"{{}} holds rows of table {{!r}}, whose columns change their type. {DROP_FIRST}"
)
_OTHER_ROLE = (
    "{0} must be recreated, but this role cannot SET ROLE to {1!r}, its owner or grantor. Run 'GRANT {1} TO …', or use "
    "another role."
)
_CLOSED_SCHEMA = (
    "{0} must be recreated, but its owner or this role, {1!r}, cannot create objects in schema {2!r}. Run 'GRANT "
    "CREATE ON SCHEMA {2} TO {1}'."
)


@contextmanager
def without_dependents(
    connection: BaseDatabaseWrapper, table: str, columns: Collection[str]
) -> Iterator[None]:
    """Drop what depends on the columns, and recreate it after the body; raise ``SchemaMismatchError`` if impossible."""
    # PostgreSQL changes no type under a view, a rule, a policy or a trigger's columns. They are dropped and recreated
    # in the transaction that converts, so nobody ever sees them missing.
    dependents = read_dependents(connection, {table: columns})
    # baselinedb has refused all of them before; 'migrate --fake-initial' has no plan and comes here first.
    for obstacle in dependents.obstacles:
        raise SchemaMismatchError(obstacle)
    # The views that stand on other views first. Never CASCADE, which would take what was not found.
    for dependent in reversed(dependents.found):
        run(connection, dependent.drop)
    yield
    _recreate(connection, dependents.found)


def _recreate(connection: BaseDatabaseWrapper, found: Collection[Dependent]) -> None:
    """Raise ``SchemaMismatchError`` with the name of what cannot be recreated as it was."""
    for dependent in found:
        with naming(dependent.title):
            for sql in dependent.recreate:
                run(connection, sql)
    # Owners come last: this role may create a trigger on a view of its own, but not on another role's.
    for dependent in found:
        if (view := dependent.view) is not None:
            with naming(dependent.title):
                if view.owner is not None:
                    run(connection, f"ALTER VIEW {view.name} OWNER TO {view.owner}")
                _restore_grants(connection, view)


@contextmanager
def naming(title: str) -> Iterator[None]:
    """Raise ``SchemaMismatchError`` with the title of what a statement of the block could not make."""
    try:
        yield
    except DatabaseError as error:
        if is_transient(error):
            raise
        raise SchemaMismatchError(
            f"{title} cannot be recreated with the new types of the columns it reads: {first_line(error)} {DROP_FIRST}"
        ) from error


def _grants(connection: BaseDatabaseWrapper, name: str) -> frozenset[_Grant]:
    """Return all rights on the view and its columns, also those that an empty list implies."""
    return frozenset(
        starmap(
            _Grant,
            rows(
                connection,
                "SELECT quote_ident(pg_get_userbyid(x.grantor)), CASE x.grantee WHEN 0 THEN 'PUBLIC'"
                " ELSE quote_ident(pg_get_userbyid(x.grantee)) END, x.privilege_type, l.column_name, x.is_grantable"
                " FROM (SELECT NULL AS column_name, coalesce(relacl, acldefault('r', relowner)) AS list FROM pg_class"
                "   WHERE oid = %s::regclass UNION ALL"
                "   SELECT quote_ident(attname), attacl FROM pg_attribute WHERE attrelid = %s::regclass) l"
                " CROSS JOIN aclexplode(l.list) x",
                [name, name],
            ),
        )
    )


def _restore_grants(connection: BaseDatabaseWrapper, view: _View) -> None:
    """Restore the view's rights: ALTER DEFAULT PRIVILEGES may have given the new one others."""
    given = _grants(connection, view.name)
    if given == view.grants:
        return
    # All of them first: what remained of a default privilege could not be told from what was granted.
    for grantee in sorted({grant.grantee for grant in given}):
        run(connection, f"REVOKE ALL ON {view.name} FROM {grantee} CASCADE")
    [(owner, role)] = rows(
        connection,
        "SELECT quote_ident(pg_get_userbyid(relowner)), quote_ident(current_setting('role')) FROM pg_class"
        " WHERE oid = %s::regclass",
        [view.name],
    )
    for grant in _in_order(view.grants, owner):
        # The server records who granted a right, and lets each role revoke only what it granted itself.
        if grant.grantor != owner:
            run(connection, f"SET LOCAL ROLE {grant.grantor}")
        run(connection, _grant_sql(grant, view.name, owner))
        if grant.grantor != owner:
            run(connection, f"SET LOCAL ROLE {role}")
    if _grants(connection, view.name) != view.grants:
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
        return any(
            (grant.grantor, grant.privilege, column) in may_grant
            for column in (None, grant.column)
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
    sql = f"GRANT {grant.privilege}{columns} ON {view} TO {grant.grantee}"
    # The owner may grant without the option.
    if grant.may_grant and grant.grantee != owner:
        sql += " WITH GRANT OPTION"
    return sql


# What the server rebuilds --------------------------------------------------------------------------------------------


@contextmanager
def explaining(culprit: Callable[[], str | None] = lambda: None) -> Iterator[None]:
    """Raise ``SchemaMismatchError`` with what the operator built that failed the block; ``culprit`` may name it."""
    try:
        yield
    except (DatabaseError, SchemaMismatchError) as error:
        # These already name the object and what to do.
        is_said = isinstance(error, AdoptionRefusedError)
        if is_said or is_transient(error) or str(error).endswith(DROP_FIRST):
            raise
        raise SchemaMismatchError(culprit() or _sentence(error)) from error


@contextmanager
def naming_culprits(
    connection: BaseDatabaseWrapper, changing: Mapping[str, Mapping[str, str]]
) -> Iterator[None]:
    """The same on PostgreSQL. ``changing`` has the final types of each table's changing columns.

    The block is rolled back first.
    """
    with (
        explaining(lambda: _culprit(connection, changing)),
        transaction.atomic(using=connection.alias),
    ):
        yield


def _sentence(error: Exception) -> str:
    reason = first_line(error).removesuffix(".").replace("; nothing was changed", "")
    return (
        f"The adoption would fail on what was built around the tables: {reason}. Rename or drop that, run the command "
        "again, and recreate it."
    )


def _culprit(
    connection: BaseDatabaseWrapper, changing: Mapping[str, Mapping[str, str]]
) -> str | None:
    [(schemas,)] = rows(connection, "SELECT current_schemas(false)")
    # Temporary tables without rows and with the final types: what cannot be created on them could not be rebuilt. They
    # are dropped with the savepoint, whose rollback leaves the operator's tables as they were.
    try:
        with transaction.atomic(using=connection.alias):
            definitions = _definitions(connection, changing)
            # There every name shadows the real one.
            path = ", ".join(map(quote_name, ["pg_temp", *schemas]))
            run(connection, f"SET LOCAL search_path = {path}")
            for table, types in changing.items():
                if own := [
                    definition for definition in definitions if definition[0] == table
                ]:
                    _make_empty(connection, schemas[0], table, types)
                for _, title, sql in own:
                    with naming(title):
                        run(connection, sql)
            transaction.set_rollback(True, using=connection.alias)
    except SchemaMismatchError as error:
        return str(error)
    except DatabaseError:
        pass  # report the known reason; also if this role may make no temporary table
    return None


# What the server rebuilds for a column's new type. Statistics over plain columns compute nothing from a value.
_REBUILT = """
    SELECT 'Index ' || quote_literal(c.relname), i.indrelid, pg_get_indexdef(i.indexrelid, 0, true),
        ARRAY(SELECT refobjsubid FROM pg_depend WHERE classid = 'pg_class'::regclass AND objid = i.indexrelid
            AND refclassid = 'pg_class'::regclass AND refobjid = i.indrelid)
    FROM pg_index i JOIN pg_class c ON c.oid = i.indexrelid
    WHERE NOT EXISTS (SELECT FROM pg_constraint WHERE conindid = i.indexrelid AND contype IN ('p', 'u', 'x'))
    UNION ALL
    SELECT 'Statistics ' || quote_literal(stxname), stxrelid, pg_get_statisticsobjdef(oid), NULL
    FROM pg_statistic_ext WHERE stxexprs IS NOT NULL
    UNION ALL
    SELECT CASE contype WHEN 'x' THEN 'Exclusion constraint ' ELSE 'Check ' END || quote_literal(conname), conrelid,
        'ALTER TABLE ' || conrelid::regclass || ' ADD CONSTRAINT ' || quote_ident(conname) || ' '
            || pg_get_constraintdef(oid, true),
        coalesce(conkey::int[], '{}')
    FROM pg_constraint WHERE contype IN ('x', 'c')
"""


def _definitions(
    connection: BaseDatabaseWrapper, changing: Mapping[str, Collection[str]]
) -> list[tuple[str, str, str]]:
    """Return the table, the title and the statement of what reads a column whose type changes."""
    columns = column_numbers(connection, changing)
    return [
        (table, f"{what} of table {table!r}", sql)
        for what, oid, table, sql, numbers in rows(
            connection,
            f"SELECT what, oid, oid::regclass::text, sql, numbers FROM ({_REBUILT}) AS r (what, oid, sql, numbers)"
            " WHERE oid = ANY(%s::oid[]) ORDER BY what",
            [list(columns)],
        )
        if numbers is None or set(numbers) & set(columns[oid])
    ]


def _make_empty(
    connection: BaseDatabaseWrapper, schema: str, table: str, types: Mapping[str, str]
) -> None:
    """Create a table with the columns of another and their final types."""
    name = quote_name(table)
    run(connection, f"CREATE TABLE {name} (LIKE {quote_name(schema)}.{name})")
    for column, type_ in types.items():
        run(
            connection,
            f"ALTER TABLE {name} ALTER {quote_name(column)} TYPE {type_} USING NULL::{type_}",
        )
