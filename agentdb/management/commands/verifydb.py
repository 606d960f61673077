from __future__ import annotations

import sys
from typing import Any

from agentdb.errors import AgentDbError
from agentdb.management.database_command import DatabaseCommand
from agentdb.schema.inspection import inspecting
from agentdb.schema.verification import JSON_FORMAT, Verification, verify


class Command(DatabaseCommand):
    help = (
        "Compares the tables of a database with the models and with its record of migrations. Changes nothing. "
        "Exits with 0 if they match, 1 if they do not (a line for each difference), 2 if it cannot read the database."
    )
    output_is_the_result = True
    json_help = "Print one JSON object, as docs/verifydb.md says."

    def handle(self, *, json: bool, database: str, **options: Any) -> None:
        if not json:
            self.name_database(database)
        # Read-only and in one snapshot: a migration that runs meanwhile is seen before or after, not in between.
        with inspecting(database) as connection:
            verification = verify(connection)
        if json:
            self.print_json(verification.as_json())
        else:
            self._print(verification)
        if not verification.matches:
            sys.exit(1)

    def error_report(self, error: AgentDbError) -> object:
        return {"format": JSON_FORMAT, "error": str(error)}

    def _print(self, verification: Verification) -> None:
        """Print a line for each difference and note, and the verdict last."""
        for difference in verification.differences:
            self.stdout.write(self.style.ERROR(difference.message))
        foreign = []
        for note in verification.notes:
            if note.code == "table.foreign":
                foreign.append(note.table)
            else:
                self.stdout.write(f"Note: {note.message}")
        if foreign:
            # In one line: a project's database may have hundreds of its own.
            names = ", ".join(foreign)
            self.stdout.write(f"Note: not agentdb's, and left alone: {names}.")
        style = self.style.SUCCESS if verification.matches else self.style.WARNING
        self.stdout.write(style(verification.verdict))
