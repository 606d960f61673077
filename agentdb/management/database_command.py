"""What the commands about one database have in common."""

from __future__ import annotations

import json
from typing import Any, ClassVar

from django.core.management.base import BaseCommand, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from agentdb.serving.connections import open_channel


class DatabaseCommand(BaseCommand):
    """Takes ``--database`` and, where ``json_help`` says what it prints, ``--json``."""

    # Some of the checks need the very tables that are in question, and an answer is wanted when the database is away.
    requires_system_checks: Any = []
    json_help: ClassVar[str] = ""

    def add_arguments(self, parser: CommandParser) -> None:
        if self.json_help:
            parser.add_argument("--json", action="store_true", help=self.json_help)
        parser.add_argument(
            "--database",
            default=DEFAULT_DB_ALIAS,
            choices=tuple(connections),
            help="The alias of the database (default: %(default)s).",
        )

    def name_database(self, alias: str, verbosity: int) -> None:
        """Say which database it is, beside the results."""
        if verbosity:
            self.stderr.write(f"{open_channel(connections[alias]).describe()}.", style_func=str)

    def print_json(self, report: object) -> None:
        self.stdout.write(json.dumps(report, indent=2, ensure_ascii=False, default=str))
