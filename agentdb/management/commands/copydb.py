from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser

from agentdb import copydb
from agentdb.conf import display_url
from agentdb.errors import AgentDbError
from agentdb.opening import temporary_alias

_REPORT_EVERY = 100_000


class Command(BaseCommand):
    help = (
        "Copies the four tables to another database, on any engine, in one transaction that is read back before it is "
        "committed. The target may have no rows. The source is not changed. Exits with 0 if the copy is complete, "
        "2 if it was refused."
    )
    # They are about the project's own databases, not about the two that are named here.
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("source_url", metavar="SOURCE_URL", help="The database to read.")
        parser.add_argument("target_url", metavar="TARGET_URL", help="The database to fill; migrated first if empty.")
        parser.add_argument(
            "--verify",
            action="store_true",
            help="Read both sides once more and compare every row. With a target that has rows, only compare: "
            "nothing is copied, and the exit code is 1 if they differ.",
        )

    def handle(self, *, source_url: str, target_url: str, verify: bool, **options: Any) -> None:
        try:
            with temporary_alias(source_url) as source, temporary_alias(target_url) as target:
                if not (verify and self._exists_with_rows(target)):
                    for table, summary in copydb.copy(source, target, self._report("copied")).items():
                        self.stdout.write(f"{table}: {summary.rows:,} rows copied.")
                if verify:
                    self._verify(source, target)
        except AgentDbError as error:
            raise CommandError(str(error), returncode=2) from error
        self.stdout.write(self.style.SUCCESS(f"{display_url(target_url)} holds what {display_url(source_url)} holds."))

    def _exists_with_rows(self, target: str) -> bool:
        try:
            return copydb.has_rows(target)
        except AgentDbError:
            return False  # not there yet; copying makes it, or says why not

    def _verify(self, source: str, target: str) -> None:
        summaries = [copydb.summarise(alias, self._report("compared")) for alias in (source, target)]
        if found := copydb.differences(*summaries):
            for line in found:
                self.stdout.write(self.style.ERROR(line))
            sys.exit(1)

    def _report(self, verb: str) -> copydb.Progress:
        def report(table: str, rows: int) -> None:
            if not rows % _REPORT_EVERY:
                self.stderr.write(f"{table}: {rows:,} rows {verb} …")

        return report
