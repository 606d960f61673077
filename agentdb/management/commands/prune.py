from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import connections

from agentdb.errors import AgentDbError
from agentdb.management.database_command import DatabaseCommand
from agentdb.serving.opening import open_alias

_BATCH = 1000
_LOCK_TIMEOUT_SECONDS = 5
_UNITS = {"m": "minutes", "h": "hours", "d": "days", "w": "weeks"}


def age(text: str) -> timedelta:
    """Read ``30d``: a whole number and m, h, d or w."""
    match = re.fullmatch(r"([1-9]\d{0,5})([mhdw])", text)
    if match is None:
        raise CommandError(
            f"--older-than {text!r} is no age. Write a whole number and a unit: 90m, 12h, 30d or 8w.", returncode=2
        )
    return timedelta(**{_UNITS[match[2]]: int(match[1])})


class Command(DatabaseCommand):
    help = (
        "Deletes sessions that ended, stopped or failed longer ago than an age, with their cold sandboxes. In batches, "
        "each stored at once, so that others can work meanwhile and a run that was stopped can be repeated. Exits with "
        "0 if it is done, 2 if it stopped."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--older-than",
            required=True,
            metavar="AGE",
            help="How long ago a session must have been active last: 90m, 12h, 30d or 8w.",
        )
        parser.add_argument("--tenant", metavar="TENANT", help="Only this tenant's sessions (default: all tenants').")
        parser.add_argument("--dry-run", action="store_true", help="Say how many there are, and delete nothing.")
        super().add_arguments(parser)

    def handle(self, *, older_than: str, tenant: str | None, dry_run: bool, database: str, **options: Any) -> None:
        ended_before = datetime.now(UTC) - age(older_than)
        self.pruned = 0
        db = open_alias(database) if tenant is None else open_alias(database).for_tenant(tenant)
        self.progress.say(f"{db.describe()}: sessions that ended before {ended_before:%Y-%m-%d %H:%M} UTC.")
        total = _count(database, tenant, ended_before)
        if dry_run:
            self.stdout.write(f"{total:,} would be deleted. Nothing was changed.")
            return
        _limit_waiting(database)
        while batch := db.prune_sessions(ended_before, _BATCH):
            self.pruned += batch
            self.progress("sessions", self.pruned, max(total, self.pruned))
        self.progress.clear()
        self.stdout.write(f"Deleted {self.pruned:,} session{'' if self.pruned == 1 else 's'}.")

    def interrupted(self) -> str:
        if not self.pruned:
            return "Nothing was deleted."
        return f"{self.pruned:,} were deleted before; the same command goes on from there."

    def explained(self, error: AgentDbError) -> str:
        return f"{error} {self.interrupted()}"


def _count(alias: str, tenant: str | None, ended_before: datetime) -> int:
    from agentdb.models import Session

    finished = Session.objects.using(alias).finished().idle_since(ended_before)
    return (finished if tenant is None else finished.of_tenant(tenant)).count()


def _limit_waiting(alias: str) -> None:
    """Let a batch that others hold up fail after a while, instead of holding up everybody behind it."""
    if connections[alias].vendor != "sqlite":  # which waits for 30 seconds at the most
        with connections[alias].cursor() as cursor:
            cursor.execute(f"SET lock_timeout = '{_LOCK_TIMEOUT_SECONDS}s'")
