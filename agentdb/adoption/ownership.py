"""What an adoption adds on PostgreSQL belongs to whom the old tables belong, and is used by who uses them."""

from __future__ import annotations

from collections.abc import Collection

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.schema.sqltext import quote_name

RECORD = "django_migrations"

_OWNERS = """
    SELECT DISTINCT pg_get_userbyid(c.relowner), c.relowner <> current_user::regrole
        AND pg_has_role(current_user, c.relowner, %s)
        AND has_schema_privilege(c.relowner, c.relnamespace, 'CREATE')
    FROM pg_class c WHERE c.oid = ANY(%s::text[]::regclass[])
"""
# What each role but the owner may do; PUBLIC is role 0.
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
    """Give the tables ``made`` to the owner of the ``old`` ones, if that is one role that this one may act as.

    Whoever may do anything with the old tables may read the record of migrations, as ``connect()`` does, and who may
    write to them has the same rights on a new table.
    """
    if not made:
        return
    names = [quote_name(name) for name in old]
    with connection.cursor() as cursor:
        right = "SET" if connection.pg_version >= 160000 else "MEMBER"  # type: ignore[attr-defined]
        cursor.execute(_OWNERS, [right, names])
        owners = cursor.fetchall()
        cursor.execute(_RIGHTS, [names])
        rights = cursor.fetchall()
        for name in map(quote_name, made):
            for role, granted in rights:
                wanted = (
                    ["SELECT"]
                    if name == quote_name(RECORD)
                    else granted
                    if "INSERT" in granted
                    else []
                )
                if wanted:
                    cursor.execute(f"GRANT {', '.join(wanted)} ON {name} TO {role}")
            if len(owners) == 1 and owners[0][1]:
                cursor.execute(
                    f"ALTER TABLE {name} OWNER TO {quote_name(owners[0][0])}"
                )
