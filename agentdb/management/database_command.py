"""The base of agentdb's commands: turns errors into exit codes, and handles Ctrl-C and broken output."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterable
from copy import copy
from typing import Any, ClassVar

from django.conf import settings
from django.core.management.base import (
    BaseCommand,
    CommandError,
    CommandParser,
    OutputWrapper,
)
from django.db import DEFAULT_DB_ALIAS, connections

from agentdb.errors import AgentDbError
from agentdb.management.output import (
    Output,
    ProgressLine,
    occupy_closed_descriptors,
    write_any_character,
)
from agentdb.serving.connections import describe

INTERRUPTED = 130  # as in a shell: 128 + SIGINT


class AgentDbCommand(BaseCommand):
    """A command whose ``handle()`` raises ``AgentDbError`` to refuse, and that Ctrl-C may stop.

    What it prints on standard output is its answer; names, steps and progress go to standard error.
    """

    # The exit code for an AgentDbError; 1 is the answer "no" of a command that checks.
    refused: ClassVar[int] = 2
    # Whether unwritable output is a failure.
    output_is_the_result: ClassVar[bool] = False
    progress: ProgressLine

    # Any: Django asks for its own OutputWrapper or a text stream, and wraps what it gets.
    def __init__(self, stdout: Any = None, stderr: Any = None, **colors: bool) -> None:
        self._output = Output(sys.stdout if stdout is None else stdout)
        output: Any = self._output
        errors: Any = Output(sys.stderr if stderr is None else stderr)
        super().__init__(output, errors, **colors)

    def interrupted(self) -> str:
        """Return the sentence about what is stored after Ctrl-C."""
        return "Nothing was changed."

    def explained(self, error: AgentDbError) -> str:
        """Return the sentence for an error that ends the command."""
        return str(error)

    def error_report(self, error: AgentDbError) -> object | None:
        """Return the ``--json`` report of the error, or None."""
        return None

    def run_from_argv(self, argv: list[str]) -> None:
        # The code that Django exits with says what is stored. Whether the output arrived is known only after a flush,
        # which Python would do as it ends, with an exit code of its own.
        occupy_closed_descriptors()
        write_any_character()
        code: Any = 0
        try:
            super().run_from_argv(argv)
        except SystemExit as end:
            # Django has printed the sentence of a CommandError, and ends with its code.
            code = end.code
        if code := self._code_after_output(code):
            sys.exit(code)

    def execute(self, *args: Any, **options: Any) -> str | None:
        # call_command() may pass another stream, which Django puts in place only later. Progress goes to standard
        # error, so that a pipe gets the answer alone, and the line vanishes before the answer is written.
        given = options.get("stderr")
        stderr = self.stderr if given is None else OutputWrapper(given)
        self.progress = ProgressLine(stderr, verbosity=options.get("verbosity", 1))
        self._output.progress = self.progress
        try:
            return super().execute(*args, **options)
        except AgentDbError as error:
            # A program that asked for JSON reads one object, whatever happened.
            report = self.error_report(error) if options.get("json") else None
            if report is None:
                said = self.explained(error)
                raise CommandError(said, returncode=self.refused) from error
            self.print_json(report)
            sys.exit(self.refused)
        except KeyboardInterrupt as stopped:
            # Whoever was interrupted may know better what is stored.
            said = str(stopped) or self.interrupted()
            self.progress.say(f"Interrupted. {said}")
            sys.exit(INTERRUPTED)
        finally:
            self.progress.clear()

    def name_database(self, alias: str) -> None:
        """Name the database on standard error."""
        self.progress.say(f"{describe(connections[alias])}.")

    def print_lines(self, lines: Iterable[str]) -> None:
        """Print each as it comes, so that a generator may take its time."""
        for line in lines:
            self.stdout.write(line)

    def print_json(self, report: object) -> None:
        """Print the report, with instants and paths as text."""
        text = json.dumps(
            report,
            indent=2,
            ensure_ascii=False,  # people read it too
            default=str,
        )
        self.stdout.write(text)

    def _code_after_output(self, code: Any) -> Any:
        """Return the exit code, which says what is stored; an unreadable result counts as a failure."""
        # Work that is done stays done if the sentence about it is lost; a report that is lost was not made.
        self._output.flush()
        if self._output.failure is None:
            return code
        said = f"The output could not be written: {self._output.failure}."
        self.stderr.write(said, style_func=str)
        return code or (2 if self.output_is_the_result else 0)


class DatabaseCommand(AgentDbCommand):
    """Takes ``--database`` and, if ``json_help`` says what it prints, ``--json``.

    A subclass adds its own arguments before these, so that its help lists them first.
    """

    # No system checks: some need the tables in question, and the command must answer without a database.
    requires_system_checks: Any = []
    json_help: ClassVar[str] = ""

    def add_arguments(self, parser: CommandParser) -> None:
        if self.json_help:
            parser.add_argument("--json", action="store_true", help=self.json_help)
        parser.add_argument(
            "--database",
            default=default_alias(),
            # A misspelt alias would be a traceback otherwise.
            choices=tuple(connections),
            help=f"The alias of the database (default: {default_alias()}).",
        )

    def add_action(
        self, parser: CommandParser, actions: Any, name: str, help: str
    ) -> argparse.ArgumentParser:
        """Add an action that also takes the options of its command, because people write them at the end."""
        action: argparse.ArgumentParser = actions.add_parser(name, help=help)
        for option in parser._actions:
            if option.option_strings and option.dest != "help":
                # Without this an action's default would overwrite what stands before the action.
                option = copy(option)
                option.default = option.help = argparse.SUPPRESS
                action._add_action(option)
        return action


def default_alias() -> str:
    """The alias that a project gave agentdb's tables with ``AGENTDB_ALIAS``, else Django's default one."""
    return getattr(settings, "AGENTDB_ALIAS", None) or DEFAULT_DB_ALIAS
