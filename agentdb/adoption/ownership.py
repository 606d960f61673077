"""Owner and rights of the tables that an adoption adds on PostgreSQL: those of the old tables."""

from __future__ import annotations

from collections.abc import Collection

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.queries import quote_name, rows, run

RECORD = "django_migrations"

_OWNERS = """
    SELECT DISTINCT pg_get_userbyid(c.relowner), c.relowner <> current_user::regrole
        AND pg_has_role(current_user, c.relowner, %s)
        AND has_schema_privilege(c.relowner, c.relnamespace, 'CREATE')
    FROM pg_class c WHERE c.oid = ANY(%s::text[]::regclass[])
"""
# The rights of each role except the owner; PUBLIC is role 0.
_RIGHTS = """
    SELECT CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END,
        array_agg(DISTINCT x.privilege_type)
    FROM pg_class c, aclexplode(c.relacl) x
    WHERE c.oid = ANY(%s::text[]::regclass[]) AND x.grantee <> c.relowner
    GROUP BY x.grantee ORDER BY 1
"""


def hand_over(
    connection: BaseDatabaseWrapper, made: Collection[str], old: Collection[str]
) -> None:
    """Give the tables ``made`` to the owner of the ``old`` ones, if this role can SET ROLE to it.

    Roles with write access to the old tables get the same rights on a new one; roles that can use them at all can also
    read the record of migrations, as ``connect()`` does.
    """
    if not made:
        return
    names = [quote_name(name) for name in old]
    right = "SET" if connection.pg_version >= 160000 else "MEMBER"  # type: ignore[attr-defined]
    owners = rows(connection, _OWNERS, [right, names])
    rights = rows(connection, _RIGHTS, [names])
    for name in made:
        # Granted before the owner changes: afterwards this role may no longer grant.
        for role, granted in rights:
            wanted = _wanted(name, granted)
            if wanted:
                run(connection, f"GRANT {wanted} ON {quote_name(name)} TO {role}")
        # With several owners none is the right one; then the table stays this role's.
        if len(owners) == 1 and owners[0][1]:
            owner = quote_name(owners[0][0])
            run(connection, f"ALTER TABLE {quote_name(name)} OWNER TO {owner}")


def _wanted(name: str, granted: Collection[str]) -> str:
    if name == RECORD:
        return "SELECT"
    return ", ".join(granted) if "INSERT" in granted else ""
