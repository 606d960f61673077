"""Changes the tables, verifies every row, and records the migrations."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any, ClassVar

from django.apps import apps
from django.db import DatabaseError, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.recorder import MigrationRecorder

from agentdb.adoption.conforming import conform_table
from agentdb.adoption.obstacles import (
    BUILT_AROUND,
    OLD_COLUMNS,
    AdoptionRefusedError,
    first_line,
    refusing,
)
from agentdb.adoption.plan import (
    Findings,
    comparable_columns,
    makes_ids,
)
from agentdb.adoption.progress import Progress
from agentdb.adoption.shapes import RECORD
from agentdb.adoption.sqlite_rebuild import rename
from agentdb.adoption.values import checksum, timestamp_sources
from agentdb.models import new_id
from agentdb.schema import APP_LABEL, Table, drift, read_tables
from agentdb.schema.migration_lock import event_triggers
from agentdb.schema.migration_record import migration_names
from agentdb.schema.queries import quote_name, rows, run

_OWN_COLLATIONS = ("BINARY", "NOCASE", "RTRIM")  # SQLite's


@dataclass
class Change:
    """The change of one database. Lives from the decision until the rows and the schema are verified.

    This class is CockroachDB's, where each step stays and the next run continues. The others extend it.
    """

    fresh_id: ClassVar = "gen_random_uuid()::text"  # SQL

    connection: BaseDatabaseWrapper
    findings: Findings
    progress: Progress

    @property
    def old(self) -> Mapping[str, Table]:
        return self.findings.shape.tables

    def run(self) -> dict[str, str]:
        """Change everything and verify it; return the checksum of each old table, in hexadecimal.

        Raises ``AdoptionRefusedError`` unless every row is there, unchanged, and agentdb can use what was created.
        """
        # Over the texts as the conversion will read them. The same sum over the converted columns proves every value,
        # and needs no copy of the old rows; both are taken in the transaction, so nobody can write in between.
        before = {
            name: self._checksum(name, table, self._sources[name])
            for name, table in self.old.items()
        }
        ids = self._ids_to_keep()
        self._reshape()
        # Before recording anything, because on CockroachDB the next run continues one that is stopped here.
        self.progress.say("Verifying.")
        self._verify_rows(before, ids)
        self._record()
        return {name: f"{total:032x}" for name, (_, total) in before.items()}

    def rehearse(self) -> None:
        """Do the same to tables without rows, so that there are none to verify."""
        self._reshape()
        self._record()

    def _reshape(self) -> None:
        for stored, name in self.findings.shape.renames.items():
            rename(self.connection, stored, name)
        if not self.findings.is_to_conform:
            return
        self.progress.say("Bringing the tables to their new shape.")
        models = list(apps.get_app_config(APP_LABEL).get_models())
        with self.connection.schema_editor() as editor:
            # agents are last: until the sessions are rebuilt, their foreign key protects the agents' key.
            for model in reversed(models):
                sources = self._sources.get(model._meta.db_table, {})
                conform_table(editor, model, sources, self.progress.say)

    @cached_property
    def _sources(self) -> dict[str, dict[str, str]]:
        """By table and column, SQL for values that are missing, or get another type or format."""
        return {name: self._sources_of(name, table) for name, table in self.old.items()}

    def _sources_of(self, name: str, table: Table) -> dict[str, str]:
        content = self.findings.contents[name]
        sources = timestamp_sources(self.connection, content)
        if makes_ids(name, table):
            sources["id"] = self.fresh_id
            if table.column("id") is not None:
                sources["id"] = f"coalesce(id, {self.fresh_id})"
        return sources

    def _record(self) -> None:
        recorder = MigrationRecorder(self.connection)
        for name in migration_names():
            if name not in self.findings.shape.recorded:
                recorder.record_applied(APP_LABEL, name)
        self._hand_over()
        # Last, because event triggers have changed by now whatever they change, the new django_migrations included.
        self._verify_schema()

    def _hand_over(self) -> None:
        """Give the new tables to whom the old ones belong."""

    # The proof ------------------------------------------------------------------------------------------------------

    def _checksum(
        self, name: str, table: Table, sources: Mapping[str, str]
    ) -> tuple[int, int]:
        """Return row count and checksum over the old table's columns, which ``table`` holds now."""
        columns = comparable_columns(name, self.old[name])
        return checksum(self.connection, name, table, columns, sources)

    def _ids_to_keep(self) -> set[tuple[Any, ...]]:
        """Return name and id of the agents that have one, if the checksum omits ids because others have none."""
        agents = self.old.get("agents")
        if agents is None or not makes_ids("agents", agents) or not agents.column("id"):
            return set()
        sql = f"SELECT name, id FROM {quote_name(agents.name)} WHERE id IS NOT NULL"
        return set(rows(self.connection, sql))

    def _verify_rows(
        self, before: Mapping[str, tuple[int, int]], ids: set[tuple[Any, ...]]
    ) -> None:
        live = read_tables(self.connection)
        changed = []
        by_name = "SELECT name, id FROM agents"
        if ids and not ids.issubset(rows(self.connection, by_name)):
            changed.append("agents: other ids")
        for name, expected in before.items():
            after = self._checksum(name, live[name], {})
            if after != expected:
                changed.append(
                    f"{name}: {expected[0]:,} rows before, {after[0]:,} after"
                )
        # Not on a server: the adoption does not touch other tables there, and others may change them meanwhile.
        if self.connection.vendor == "sqlite":
            others = self.findings.shape.others
            changed += [
                name
                for name in others
                if live.get(name) != self.findings.shape.live[name]
            ]
        if changed:
            raise AdoptionRefusedError.of(
                "The rows differ after the conversion. Please report this as a bug of agentdb. Tables: "
                f"{'; '.join(changed)}."
            )

    def _verify_schema(self) -> None:
        live = read_tables(self.connection)
        differences = drift(self.findings.wanted, live)
        if RECORD in live and "row security" in live[RECORD].options:
            differences.append(
                f"Table {RECORD} has row security: agentdb could not read the record of migrations."
            )
        if differences:
            raise AdoptionRefusedError.of(
                "\n  ".join(
                    ["The tables would still differ from the models:", *differences]
                ),
                *event_triggers(self.connection),
            )


class _OnSqlite(Change):
    fresh_id = "agentdb_new_id()"

    def _reshape(self) -> None:
        self.connection.connection.create_function("agentdb_new_id", 0, new_id)
        self._stand_in_for_collations()
        super()._reshape()

    def _stand_in_for_collations(self) -> None:
        """Let SQLite parse indexes of other tables whose collations only the operator's program defines.

        Renaming a table parses every index. Nothing is compared, because the other tables are not written to.
        """
        raw = self.connection.connection
        ours = self.findings.shape.stored_as.values()
        found = raw.execute(
            "SELECT DISTINCT lower(m.tbl_name), x.coll FROM sqlite_master m, pragma_index_xinfo(m.name) x"
            " WHERE m.type = 'index' AND x.coll IS NOT NULL"
        )
        for table, collation in found.fetchall():
            if table not in ours and collation.upper() not in _OWN_COLLATIONS:
                raw.create_collation(collation, lambda one, other: 0)


class _OnPostgreSql(Change):
    def run(self) -> dict[str, str]:
        # What could not be updated before is not the adoption's doing.
        not_updatable = self._not_updatable(self.old)
        with refusing(BUILT_AROUND):
            checksums = super().run()
        now = self._not_updatable(OLD_COLUMNS)
        broken = [now[table] for table in now if table not in not_updatable]
        if broken:
            raise AdoptionRefusedError.of(*broken)
        return checksums

    def _not_updatable(self, tables: Iterable[str]) -> dict[str, str]:
        """Return by table why PostgreSQL refuses updates, for example a publication without the key."""
        reasons = {}
        for table in tables:
            # A column that every old shape has. The server checks publications before it reads rows.
            sql = f"UPDATE {quote_name(table)} SET created_at = created_at WHERE false"
            try:
                # Rolled back, because a trigger of the operator's for each statement fires without rows too.
                with transaction.atomic(using=self.connection.alias):
                    run(self.connection, sql)
                    transaction.set_rollback(True, using=self.connection.alias)
            except DatabaseError as error:
                reasons[table] = (
                    f"Table {table} could not be updated: {first_line(error)}"
                )
        return reasons

    def _hand_over(self) -> None:
        """Give new tables to the owner of the old ones, if this role can SET ROLE to it, and to those who use them."""
        # After all changes of the schema: until now this role owns the tables that it created, and could change them.
        live = self.findings.shape.live
        parameters = {
            "old": [quote_name(name) for name in self.old],
            "made": [name for name in (RECORD, *OLD_COLUMNS) if name not in live],
            "record": RECORD,
        }
        for (statement,) in rows(self.connection, _HAND_OVER, parameters):
            run(self.connection, statement)


def change_of(
    connection: BaseDatabaseWrapper,
    findings: Findings,
    progress: Progress,
) -> Change:
    kinds = {"sqlite": _OnSqlite, "postgresql": _OnPostgreSql}
    kind = kinds.get(connection.vendor, Change)
    return kind(connection, findings, progress)


# Roles with write access to an old table get the same rights on a new one; roles that can use one at all can also read
# the record of migrations, as connect() does. PUBLIC is role 0. Granted before the owner changes: afterwards this role
# may no longer grant. With several owners none is the right one; then the new table stays this role's.
_HAND_OVER = """
    WITH old AS (SELECT * FROM pg_class WHERE oid = ANY(%(old)s::text[]::regclass[])),
    rights AS (
        SELECT CASE x.grantee WHEN 0 THEN 'PUBLIC' ELSE quote_ident(pg_get_userbyid(x.grantee)) END AS role,
            string_agg(DISTINCT x.privilege_type, ', ') AS list, bool_or(x.privilege_type = 'INSERT') AS writes
        FROM old, aclexplode(relacl) x WHERE x.grantee <> relowner GROUP BY 1
    ),
    owner AS (
        SELECT min(relowner::text)::oid AS oid, min(relnamespace::text)::oid AS schema
        FROM old HAVING count(DISTINCT relowner) = 1
    )
    SELECT format('GRANT %%s ON %%s TO %%s', CASE name WHEN %(record)s THEN 'SELECT' ELSE list END, name, role)
    FROM rights, unnest(%(made)s::text[]) name WHERE writes OR name = %(record)s
    UNION ALL
    SELECT format('ALTER TABLE %%s OWNER TO %%I', name, pg_get_userbyid(oid))
    FROM owner, unnest(%(made)s::text[]) name,
        -- Being a member without the right to SET ROLE is possible from PostgreSQL 16 on.
        (SELECT CASE WHEN current_setting('server_version_num')::int < 160000 THEN 'MEMBER' ELSE 'SET' END) r (set_role)
    WHERE oid <> current_user::regrole AND pg_has_role(current_user, oid, set_role)
        AND has_schema_privilege(oid, schema, 'CREATE')
    ORDER BY 1 DESC
"""
