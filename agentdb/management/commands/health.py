from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from django.db import connections

from agentdb.errors import DatabaseUnavailableError
from agentdb.interface import Health
from agentdb.management.database_command import DatabaseCommand
from agentdb.schema.inspection import check_sqlite_file, sqlite_path
from agentdb.serving.adapter import DjangoDb

JSON_FORMAT = 1


class Command(DatabaseCommand):
    help = (
        "Says whether the database works, for probes: that it answers, and that no migration is pending. Changes "
        "nothing. Exits with 0 if it works, 1 if it does not."
    )
    output_is_the_result = True
    json_help = "Print one JSON object."

    def handle(self, *, json: bool, database: str, **options: Any) -> None:
        health = _health(database)
        if json:
            report = {"format": JSON_FORMAT, **asdict(health)}
            self.print_json(report)
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
            # Connecting would create an empty file at a misspelt path.
            check_sqlite_file(path)
    except DatabaseUnavailableError as error:
        place = f"SQLite database {str(path)!r}"
        return Health(False, "sqlite", "", place, None, (), 0, str(error))
    try:
        return DjangoDb(alias).health()
    finally:
        # A probe that a program runs in its own process leaves no connection behind; in a test's transaction it would
        # roll that back.
        if not connections[alias].in_atomic_block:
            connections[alias].close()
