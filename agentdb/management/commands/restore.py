from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser
from django.db import connections

from agentdb.conf import file_url
from agentdb.errors import AgentDbError
from agentdb.management.database_command import DatabaseCommand
from agentdb.moving import copydb
from agentdb.schema.inspection import MissingFileError, check_sqlite_file
from agentdb.serving.connections import describe
from agentdb.serving.opening import temporary_alias


class Command(DatabaseCommand):
    help = (
        "Fills an empty database, whatever its engine, from a backup. The four tables may have no rows; a restore that "
        "was stopped goes on where it was. Exits with 0 if every row is there, 2 if it was refused."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", metavar="FILE", help="What 'agentdb backup' wrote.")
        super().add_arguments(parser)

    def handle(self, *, file: str, database: str, **options: Any) -> None:
        self.progress.say(f"Restoring into {describe(connections[database])}.")
        path = Path(file).absolute()
        # Connecting would create an empty file, and restore nothing from it.
        try:
            check_sqlite_file(path)
        except MissingFileError:
            raise AgentDbError(f"The backup {file!r} does not exist.") from None
        with temporary_alias(file_url(path)) as source:
            restored = copydb.copy(source, database, self.progress)
            left = copydb.left_behind(source)
        for table, rows in restored.items():
            self.stdout.write(f"{table}: {rows:,} rows restored.")
        self.print_lines(left)

    def interrupted(self) -> str:
        return "What was restored stays, and the same command goes on from there."
