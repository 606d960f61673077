from __future__ import annotations

import sys
from typing import Any

from django.core.management.base import CommandParser
from django.db import connections

from agentdb.adoption.execution import adopt, look
from agentdb.adoption.obstacles import AdoptionRefusedError
from agentdb.adoption.plan import Findings, Plan
from agentdb.adoption.report import (
    as_json,
    describe_findings,
    describe_outcome,
    describe_plan,
    error_as_json,
)
from agentdb.errors import AgentDbError
from agentdb.management.database_command import DatabaseCommand


class Command(DatabaseCommand):
    help = (
        "Adopts the database of an old server, whatever state it is in, all of it or nothing. Exits with 0 if that is "
        "done or there is nothing to do, 1 if --check finds something to do, 2 if it refuses; then nothing was changed."
    )
    json_help = "Print one JSON object, as docs/adoption.md says."

    def add_arguments(self, parser: CommandParser) -> None:
        parser.add_argument(
            "--check",
            action="store_true",
            help="Say what is to be done, and do not do it.",
        )
        parser.add_argument(
            "--no-backup",
            action="store_true",
            help="Do not copy a SQLite file before changing it.",
        )
        super().add_arguments(parser)

    def handle(
        self,
        *,
        check: bool,
        json: bool,
        no_backup: bool,
        database: str,
        **options: Any,
    ) -> None:
        # Called after the decision and before the first change, so that what is printed is what happens.
        def found(findings: Findings, plan: Plan) -> None:
            # One object is printed at the end, which has the refusals.
            if json:
                return
            self.print_lines(describe_findings(findings))
            self.print_lines(describe_plan(connections[database], findings, plan))
            if plan.refusals:
                raise AdoptionRefusedError(plan.refusals)

        run = look if check else adopt
        outcome = run(database, self.progress, found, backup=not no_backup)
        if json:
            self.print_json(as_json(outcome, checked=check))
        elif outcome.plan.actions and not check:
            self.print_lines(describe_outcome(outcome))
        if outcome.plan.refusals:
            sys.exit(2)
        if check and outcome.plan.actions:
            sys.exit(1)

    def error_report(self, error: AgentDbError) -> object:
        return error_as_json(error)
