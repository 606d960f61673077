from __future__ import annotations

import json as json_module
import sys
from dataclasses import asdict
from typing import Any

from django.core.management.base import BaseCommand, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from agentdb.adapter import DjangoDb
from agentdb.errors import DatabaseUnavailableError
from agentdb.inspection import check_sqlite_file, sqlite_path
from agentdb.interface import Health

JSON_FORMAT = 1


class Command(BaseCommand):
    help = (
        "Says whether the database works, for probes: that it answers, and that no migration is pending. Changes "
        "nothing. Exits with 0 if it works, 1 if it does not."
    )
    # An answer is wanted above all when the database is away.
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--json", action="store_true", help="Print one JSON object.")
        parser.add_argument(
            "--database",
            default=DEFAULT_DB_ALIAS,
            choices=tuple(connections),
            help="The alias of the database to look at (default: %(default)s).",
        )

    def handle(self, *, json: bool, database: str, **options: Any) -> None:
        health = _health(database)
        if json:
            report = {"format": JSON_FORMAT, **asdict(health)}
            self.stdout.write(json_module.dumps(report, indent=2, ensure_ascii=False))
        elif health.ok:
            answered = f"{health.place} ({health.server_version}) answered in {health.round_trip_ms:.1f} ms."
            self.stdout.write(self.style.SUCCESS(answered))
        else:
            self.stdout.write(self.style.ERROR(health.reason))
        if not json:
            for warning in health.warnings:
                self.stdout.write(self.style.WARNING(warning))
        if not health.ok:
            sys.exit(1)


def _health(alias: str) -> Health:
    path = sqlite_path(connections[alias])
    try:
        if path is not None:
            check_sqlite_file(path)  # connecting would make an empty file of a misspelt name
    except DatabaseUnavailableError as error:
        place = f"SQLite database {str(path)!r}"
        return Health(False, "sqlite", "", place, None, (), 0, str(error))
    try:
        return DjangoDb(alias).health()
    finally:
        if not connections[alias].in_atomic_block:
            connections[alias].close()
