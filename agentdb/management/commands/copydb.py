from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import CommandParser

from agentdb.conf import display_url
from agentdb.management.database_command import AgentDbCommand
from agentdb.moving import copydb
from agentdb.serving.opening import temporary_alias


class Command(AgentDbCommand):
    help = (
        "Copies the four tables to another database, on any engine, and reads back what it wrote. The target may have "
        "no rows; a stopped copy continues where it was. The source is not changed. Exits with 0 if the copy is "
        "complete, 2 if it was refused."
    )
    # System checks are about the project's own databases, not the two named here.
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "source_url", metavar="SOURCE_URL", help="The database to read."
        )
        parser.add_argument(
            "target_url",
            metavar="TARGET_URL",
            help="The database to fill; migrated first if empty.",
        )
        parser.add_argument(
            "--verify",
            action="store_true",
            help="Read both sides once more and compare every row. With a target that has rows, only compare: "
            "nothing is copied, the first rows that differ are named, and the exit code is 1 if there are any.",
        )
        parser.add_argument(
            "--dry-run",
            action="store_true",
            help="Check both sides and every value, and copy nothing.",
        )

    def handle(
        self,
        *,
        source_url: str,
        target_url: str,
        verify: bool,
        dry_run: bool,
        **options: Any,
    ) -> None:
        source_name, target_name = display_url(source_url), display_url(target_url)
        self.progress.say(f"From {source_name} to {target_name}.")
        with (
            temporary_alias(source_url) as source,
            temporary_alias(target_url) as target,
        ):
            # So that a script can repeat the command: a second run does not fail because of the first one's rows.
            if copydb.already_copied(source, target):
                self.stdout.write(
                    "Nothing to do: every row of the source is in the target, verified."
                )
                return
            # It reads every value, and so finds those that the target cannot hold.
            if dry_run:
                self._say(copydb.check(source, target), "to copy", source)
                self.stdout.write("Nothing was copied.")
                return
            # With --verify a target that has rows is what is to be compared, not a mistake.
            if not (verify and copydb.has_rows(target)):
                copied = copydb.copy(source, target, self.progress)
                self._say(copied, "copied", source)
            differing = copydb.differing_rows(source, target) if verify else []
        for line in differing:
            self.stdout.write(self.style.ERROR(line))
        if differing:
            sys.exit(1)
        self.stdout.write(
            self.style.SUCCESS(f"{target_name} holds what {source_name} holds.")
        )

    def interrupted(self) -> str:
        return (
            "The source was not changed; what was copied stays in the target, and the same "
            "command goes on from there."
        )

    def _say(self, rows: dict[str, int], what: str, source: str) -> None:
        """Print what happens to the rows of each table, and what is not copied."""
        for table, number in rows.items():
            self.stdout.write(f"{table}: {number:,} rows {what}.")
        self.print_lines(copydb.left_behind(source))
