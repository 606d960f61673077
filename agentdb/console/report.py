"""The overview: what needs attention, totals, and recent activity.

Every query has a time limit in the database and reads a window of rows by an index, so that it costs the same at ten
thousand rows and at a million. A query that fails says why, and the others still run.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import datetime
from functools import partial
from typing import Any, NamedTuple

from django.apps import apps
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone
from django.utils.text import capfirst
from django.utils.translation import gettext, ngettext_lazy

from agentdb.console.checks import Finding, Fleet, Runner, checks
from agentdb.console.questions import (
    Answer,
    Budget,
    Problem,
    place_of,
    unreadable_rows,
)
from agentdb.schema import compare, expected_tables, read_tables
from agentdb.schema.inspection import server_version, sqlite_path
from agentdb.schema.migration_record import migration_names, pending_migrations
from agentdb.schema.rows import misspelt_recently
from agentdb.sqlite_files import file_concern

MOST_UNREADABLE = 20
NEWEST = 200  # rows of each table whose times are checked for their spelling


class Schema(NamedTuple):
    """What is missing from the tables and the record of migrations, one sentence each."""

    is_recorded: bool  # whether any migration is
    pending: tuple[str, ...]
    tables: int  # the existing ones of the four
    differences: tuple[str, ...]


@dataclass
class Report:
    """The whole overview. ``problem`` is set if the database cannot be read at all."""

    place: str
    engine: str
    at: datetime
    problem: Problem | None
    schema: Answer[Schema]
    runners: Answer[list[Runner]] = Answer(None)
    findings: list[Finding] = field(default_factory=list)

    @property
    def wrong(self) -> list[Finding]:
        """What needs attention, the urgent first."""
        wrong = [found for found in self.findings if found.count]
        wrong.sort(key=lambda found: not found.urgent)
        return wrong

    @property
    def unanswered(self) -> list[tuple[list[str], Problem]]:
        """The titles of the checks that could not be made, each list with its common reason.

        A database that is away fails all of them, and is one line.
        """
        titles: dict[Problem, list[str]] = {}
        for found in self.findings:
            if found.problem is not None:
                titles.setdefault(found.problem, []).append(found.title)
        return [(alike, problem) for problem, alike in titles.items()]


def read_schema(connection: BaseDatabaseWrapper) -> Schema:
    """Compare the four tables with the models, and if they match, the spelling of the newest timestamps."""
    pending = pending_migrations(connection)
    expected = expected_tables(connection, apps)
    live = read_tables(connection, list(expected))
    differences = [
        difference.message
        for difference in compare(expected, live)
        if difference.severity == "drift"
    ]
    if not differences and not pending:
        # All checks compare times: with such ones, a runner that is silent looks alive until midnight.
        sentence = gettext(
            "%(row)s, in another spelling than agentdb's, which SQLite sorts and compares wrongly. Stop the program "
            "that writes it, and run 'agentdb baselinedb'."
        )
        for found in misspelt_recently(connection, NEWEST):
            differences.append(sentence % {"row": capfirst(str(found))})
    return Schema(
        len(pending) < len(migration_names()),
        tuple(pending),
        len(live),
        tuple(differences),
    )


def examine(budget: Budget) -> Report:
    """Run all checks. Errors of the database or of a row become part of the report.

    The order is that of the page: what the checks find, then the schema, then values and the file.
    """
    connection = budget.connection
    at = timezone.now()
    # The cheapest question first: if it fails, no other is asked, and one sentence says why.
    engine = budget.ask(lambda: _engine(connection))
    schema: Answer[Schema] = Answer(None, engine.problem)
    if engine.value:
        schema = budget.ask(lambda: read_schema(connection))
    report = Report(
        str(sqlite_path(connection) or place_of(connection)),
        engine.value or connection.display_name,
        at,
        engine.problem or _not_migrated(connection, schema.value),
        schema,
    )
    if report.problem is not None:
        return report
    fleet = Fleet(connection.alias)
    report.runners = budget.ask(lambda: fleet.runners)
    for check in checks():
        answer = budget.ask(partial(check.find_in, check, fleet))
        found = answer.value or Finding(check.code, check.title, problem=answer.problem)
        report.findings.append(found)
    report.findings += _findings_beside_rows(budget, report.schema)
    return report


def _not_migrated(
    connection: BaseDatabaseWrapper, schema: Schema | None
) -> Problem | None:
    """Return why the tables are not agentdb's, or not there, and the command that changes that; None if they are."""
    # A schema that cannot be read is a finding, beside those of the checks, some of which may still work.
    if schema is None or schema.is_recorded and schema.tables:
        return None
    if schema.tables:
        sentence = gettext("%s was made by an old server and is not adopted yet.")
        command = "agentdb baselinedb --check"
    else:
        sentence = gettext("%s has none of agentdb's tables.")
        command = "agentdb verifydb" if schema.is_recorded else "agentdb migrate"
    return Problem(sentence % place_of(connection), command)


def _findings_beside_rows(budget: Budget, schema: Answer[Schema]) -> list[Finding]:
    """Return what is wrong with the schema, with stored values, and with the file.

    All but the last are there if nothing is wrong, with a count of 0, as what was checked.
    """
    found = schema.value or Schema(False, (), 0, ())
    unreadable = budget.ask(
        # One more tells "20" from "20+".
        lambda: unreadable_rows(budget.connection, MOST_UNREADABLE + 1)
    )
    findings = [
        _named(
            "pending",
            gettext("Migrations pending"),
            ngettext_lazy("migration is pending", "migrations are pending"),
            Answer(found.pending, schema.problem),
            named=3,
        ),
        _named(
            "drift",
            gettext("Schema drift"),
            ngettext_lazy(
                "difference between the tables and the models",
                "differences between the tables and the models",
            ),
            Answer(found.differences, schema.problem),
        ),
        _named(
            "unreadable",
            gettext("Rows that cannot be read"),
            ngettext_lazy("row cannot be read", "rows cannot be read"),
            unreadable,
            most=MOST_UNREADABLE,
        ),
    ]
    path = sqlite_path(budget.connection)
    concern = file_concern(path) if path is not None else ""
    if concern:
        file = Finding(
            "file_system",
            gettext("File system"),
            1,
            urgent=True,
            sentence=gettext("danger to the file"),
            detail=concern,
        )
        findings.append(file)
    return findings


def _named(
    code: str,
    title: str,
    sentence: Any,
    answer: Answer[Any],
    *,
    named: int = 1,
    most: int | None = None,
) -> Finding:
    """Return an urgent finding that counts what was found, at most so many, and names some."""
    found = answer.value or ()
    counted = found[:most]
    return Finding(
        code,
        title,
        len(counted),
        at_least=len(counted) < len(found),
        urgent=True,
        sentence=sentence % len(counted),
        detail=", ".join(counted[:named]),
        problem=answer.problem,
    )


def _engine(connection: BaseDatabaseWrapper) -> str:
    """Return the engine with its version; raises the error of a database that is away or damaged."""
    query = "SELECT 1"
    if connection.vendor == "sqlite":
        # Reads the first page, which fails if the file is damaged.
        query = "SELECT COUNT(*) FROM sqlite_master"
    with connection.cursor() as cursor:
        cursor.execute(query)
    return f"{connection.display_name} {server_version(connection).split()[0]}"
