from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

from django.core.management.base import CommandError, CommandParser
from django.db import connections

from agentdb.errors import AgentDbError
from agentdb.management.database_command import DatabaseCommand
from agentdb.management.progress import ProgressLine
from agentdb.moving.backups import back_up_database
from agentdb.serving.connections import open_channel


class Command(DatabaseCommand):
    help = (
        "Writes a backup of the database, whatever its engine, to a new SQLite file. The database may be in use: the "
        "backup is of one moment. Exits with 0 if the file is there and checked, 2 if it is not."
    )

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("file", metavar="FILE", help="The file to make. One that is there is not overwritten.")
        super().add_arguments(parser)

    def handle(self, *, file: str, database: str, **options: Any) -> None:
        progress = ProgressLine(self.stderr, verbosity=options["verbosity"])
        progress.say(f"Backing up {open_channel(connections[database]).describe()}.")
        try:
            back_up_database(database, Path(file), progress)
        except AgentDbError as error:
            progress.clear()
            raise CommandError(str(error), returncode=2) from error
        except KeyboardInterrupt:
            progress.say("Interrupted. There is no backup, and nothing was changed.")
            sys.exit(130)
        progress.clear()
        self.stdout.write(f"Backup: {file}")
