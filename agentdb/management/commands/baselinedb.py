from __future__ import annotations

import json
import sys
import time
from typing import Any

from django.core.management.base import BaseCommand, CommandError, CommandParser
from django.db import DEFAULT_DB_ALIAS, connections

from agentdb.adoption.execution import AdoptionRefusedError, Listener, Outcome, adopt, look
from agentdb.adoption.report import as_json, describe_findings, describe_outcome, describe_plan, error_as_json
from agentdb.errors import AgentDbError


class Command(BaseCommand):
    help = (
        "Adopts the database of an old server, whatever state it is in, all of it or nothing. Exits with 0 if that is "
        "done or there is nothing to do, 1 if --check finds something to do, 2 if it refuses; then nothing was changed."
    )
    # Some of the checks need the very tables that are in question.
    requires_system_checks = []

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument("--check", action="store_true", help="Say what is to be done, and do not do it.")
        parser.add_argument("--json", action="store_true", help="Print one JSON object, as docs/adoption.md says.")
        parser.add_argument("--no-backup", action="store_true", help="Do not copy a SQLite file before changing it.")
        parser.add_argument(
            "--database",
            default=DEFAULT_DB_ALIAS,
            choices=tuple(connections),
            help="The alias of the database to adopt (default: %(default)s).",
        )

    def handle(self, *, check: bool, json: bool, no_backup: bool, database: str, **options: Any) -> None:
        listener = Listener(self._say, self._progress)
        self._last_shown = time.monotonic()
        self._line_is_open = False
        try:
            findings, plan = look(database, listener, backup=not no_backup)
            outcome = Outcome(findings, plan)
            if not json:
                self._print(describe_findings(findings))
                self._print(describe_plan(connections[database], findings, plan))
            if plan.refusals and not json:
                raise AdoptionRefusedError(plan.refusals)
            if plan.has_work and not check:
                outcome = adopt(database, listener, backup=not no_backup)
        except AgentDbError as error:
            self._clear()
            if json:
                self._print_json(error_as_json(error))
                sys.exit(2)
            raise CommandError(str(error), returncode=2) from error
        except KeyboardInterrupt:
            self._say("Interrupted. Nothing was changed.")
            sys.exit(130)
        if json:
            self._print_json(as_json(outcome, checked=check))
        elif plan.has_work and not check:
            self._print(describe_outcome(outcome))
        if plan.refusals:
            sys.exit(2)
        if plan.has_work and check:
            sys.exit(1)

    def _print(self, lines: list[str]) -> None:
        self._clear()
        for line in lines:
            self.stdout.write(line)

    def _print_json(self, report: dict[str, Any]) -> None:
        self._clear()
        self.stdout.write(json.dumps(report, indent=2, ensure_ascii=False))

    def _say(self, text: str) -> None:
        self._clear()
        self.stderr.write(text, style_func=str)

    def _progress(self, table: str, done: int, total: int) -> None:
        """One line that is updated on a terminal; elsewhere a line now and then."""
        on_terminal = self.stderr.isatty()
        now = time.monotonic()
        if now - self._last_shown < (0.2 if on_terminal else 10.0):
            return
        self._last_shown = now
        text = f"{table}: {done:,} of {total:,}"
        if on_terminal:
            self.stderr.write(f"\r\x1b[K{text}", style_func=str, ending="")
            self.stderr.flush()
            self._line_is_open = True
        else:
            self.stderr.write(text, style_func=str)

    def _clear(self) -> None:
        if self._line_is_open:
            self.stderr.write("\r\x1b[K", style_func=str, ending="")
            self._line_is_open = False
