from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

from django.core.management.base import CommandParser

from agentdb.errors import AgentDbError
from agentdb.inputs import age, other_tables
from agentdb.management.database_command import DatabaseCommand
from agentdb.moving import prune
from agentdb.serving.opening import open_alias
from agentdb.wording import counted


class Command(DatabaseCommand):
    help = (
        "Deletes sessions that ended, stopped or failed longer ago than an age, with their cold sandboxes. In batches, "
        "each stored at once, so that others can work meanwhile and a run that was stopped can be repeated. Says how "
        "many rows of other tables name these sessions. Exits with 0 if it is done, 2 if it stopped."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--older-than",
            required=True,
            metavar="AGE",
            help="How long ago a session must have been active last: 90m, 12h, 30d or 8w.",
        )
        parser.add_argument(
            "--tenant",
            metavar="TENANT",
            help="Only this tenant's sessions (default: all tenants').",
        )
        parser.add_argument(
            "--also",
            action="append",
            default=[],
            metavar="TABLE",
            help="Delete the rows of this table too whose session_id names a session that goes. May be repeated.",
        )
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="Say how many there are, and delete nothing.",
        )
        super().add_arguments(parser)

    def handle(
        self,
        *,
        older_than: str,
        tenant: str | None,
        also: list[str],
        dry_run: bool,
        database: str,
        **options: Any,
    ) -> None:
        self.pruned = 0  # first of all, because interrupted() reads it
        ended_before = datetime.now(UTC) - age(older_than)
        # Both refuse bad values before anything is asked of the database.
        tables = other_tables("--also", also)
        db = (
            open_alias(database)
            if tenant is None
            else open_alias(database).for_tenant(tenant)
        )
        self.progress.say(
            f"{db.describe()}: sessions that ended before {ended_before:%Y-%m-%d %H:%M} UTC."
        )
        sessions = prune.finished_sessions(database, tenant, ended_before)
        # Counted before: afterwards the sessions that the rows name are gone.
        total = sessions.count()
        rows = prune.rows_naming(sessions, tables)
        said = f"{total:,} would be deleted. Nothing was changed."
        if not dry_run:
            for batch in prune.prune(db, database, ended_before, tables):
                self.pruned += batch
                # Sessions may have ended since they were counted.
                self.progress("sessions", self.pruned, max(total, self.pruned))
            said = f"Deleted {counted(self.pruned, 'session')}."
        self.stdout.write(said)
        for table, count in rows.items():
            fate = f"They stay; --also {table} deletes them."
            if table in tables:
                fate = "They go with them."
            self.stdout.write(
                f"Rows of {table!r} that name these sessions: {count:,}. {fate}"
            )

    def interrupted(self) -> str:
        if not self.pruned:
            return "Nothing was deleted."
        return (
            f"{self.pruned:,} were deleted before; the same command goes on from there."
        )

    def explained(self, error: AgentDbError) -> str:
        return f"{error} {self.interrupted()}"
