from __future__ import annotations

from pathlib import Path
from typing import Any

from django.core.management.base import CommandParser
from django.db import connections

from agentdb.management.database_command import DatabaseCommand
from agentdb.moving.backups import back_up_database
from agentdb.moving.copydb import left_behind
from agentdb.serving.connections import describe


class Command(DatabaseCommand):
    help = (
        "Writes a backup of the database, whatever its engine, to a new SQLite file. The database may be in use: the "
        "backup is of one moment. Exits with 0 if the file is there and checked, 2 if it is not."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "file",
            metavar="FILE",
            help="The new file. An existing one is not overwritten.",
        )
        super().add_arguments(parser)

    def handle(self, *, file: str, database: str, **options: Any) -> None:
        connection = connections[database]
        name = describe(connection)
        self.progress.say(f"Backing up {name}.")
        back_up_database(database, Path(file), self.progress)
        self.stdout.write(f"Backup: {file}")
        # The backup of a SQLite file is the whole file.
        if connection.vendor != "sqlite":
            self.print_lines(left_behind(database))

    def interrupted(self) -> str:
        # The file gets its name when it is whole.
        return "No backup was written, and nothing was changed."
