from __future__ import annotations

import sys
from dataclasses import asdict
from typing import Any

from django.db import connections

from agentdb.interface import Health
from agentdb.management.database_command import DatabaseCommand
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
        health = DjangoDb(database).health()
        # A probe that a program runs in its own process leaves no connection behind; in a test's transaction it would
        # roll that back.
        if not connections[database].in_atomic_block:
            connections[database].close()
        if json:
            self.print_json({"format": JSON_FORMAT, **asdict(health)})
        else:
            self._print(health)
        if not health.ok:
            sys.exit(1)

    def _print(self, health: Health) -> None:
        """Print one line, and one for each thing that may go wrong later."""
        if health.ok:
            answered = f"{health.place} ({health.server_version}) answered in {health.round_trip_ms:.1f} ms."
            self.stdout.write(self.style.SUCCESS(answered))
        else:
            self.stdout.write(self.style.ERROR(health.reason))
        for warning in health.warnings:
            self.stdout.write(self.style.WARNING(warning))
