from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model, QuerySet

from agentdb.console.checks import Finding, Runner
from agentdb.console.display import relative
from agentdb.console.figures import Figure, Hour, activity, by_value, total
from agentdb.console.questions import Answer, Budget
from agentdb.console.report import Report, examine, unanswered
from agentdb.errors import DatabaseUnavailableError
from agentdb.management.database_command import DatabaseCommand
from agentdb.models import Agent, ApiKey, Sandbox, Session
from agentdb.schema.inspection import inspecting

JSON_FORMAT = 1
TABLES: dict[str, type[Model]] = {
    "sessions": Session,
    "sandboxes": Sandbox,
    "agents": Agent,
    "api_keys": ApiKey,
}
VALUES = (("statuses", Session, "status"), ("states", Sandbox, "state"))


class Command(DatabaseCommand):
    help = (
        "Says what needs attention, how much there is of everything and what happened in the last 24 hours. Changes "
        "nothing. Exits with 0 if nothing needs attention, 1 if something does, 2 if the database cannot be read."
    )
    output_is_the_result = True
    json_help = "Print one JSON object."

    def handle(self, *, json: bool, database: str, **options: Any) -> None:
        with _reading(database) as connection, Budget(connection) as page:
            report = examine(page)
            summary = {} if report.problem else _summary(page)
        if json:
            self.print_json(_as_json(report, summary))
        else:
            self._print(report, summary)
        if report.problem:
            sys.exit(2)
        if report.wrong or report.unknown:
            sys.exit(1)

    def _print(self, report: Report, summary: dict[str, _Shown]) -> None:
        at = f"{report.at:%Y-%m-%d %H:%M:%S} UTC"
        self.stdout.write(f"{report.engine}, {report.place}, as of {at}")
        if report.problem:
            self.stdout.write(self.style.ERROR(str(report.problem)))
            return
        self.print_lines(self._attention(report))
        for name, shown in summary.items():
            self.stdout.write(f"{name:<10} {shown}")
        for runner in report.runners.value or ():
            seen = relative(runner.seen_at) if runner.seen_at else "none"
            self.stdout.write(
                f"runner {runner.id}: {runner.condition or 'ok'}, last sign of life {seen}, "
                f"{runner.active:,} active, {runner.starting:,} starting"
            )

    def _attention(self, report: Report) -> Iterator[str]:
        if not report.wrong and not report.unknown:
            yield self.style.SUCCESS("Nothing needs attention.")
        for found in report.wrong:
            line = f"{found.shown:>8}  {found.sentence}"
            if found.detail:
                line += f" ({found.detail})"
            style = self.style.ERROR if found.urgent else self.style.WARNING
            yield style(line)
        for titles, problem in unanswered(report.unknown):
            line = f"       ?  not checked: {', '.join(titles)}. {problem}"
            yield self.style.WARNING(line)


class _Shown:
    """A result as text, and as a value for JSON."""

    def __init__(self, answer: Answer[Any], text: str, value: Any) -> None:
        self.problem = answer.problem
        self.text = text
        self.value = value

    def __str__(self) -> str:
        return "not known" if self.problem else self.text

    def as_json(self) -> Any:
        if self.problem:
            return {"problem": str(self.problem)}
        return self.value


@contextmanager
def _reading(alias: str) -> Iterator[BaseDatabaseWrapper]:
    """A connection that creates no file and switches no journal mode, if the file can be read at all.

    If it cannot, the report on the configured connection says why.
    """
    configured = connections[alias]
    with ExitStack() as stack:
        stack.callback(configured.close)
        if configured.vendor == "sqlite":
            with suppress(DatabaseUnavailableError):
                # The ORM finds a connection by its alias.
                connections[alias] = stack.enter_context(inspecting(alias))
                stack.callback(connections.__setitem__, alias, configured)
        yield connections[alias]


def _summary(page: Budget) -> dict[str, _Shown]:
    """Return the figures by the name that the terminal calls each."""
    shown = {}
    for table, model in TABLES.items():
        counted = page.ask(partial(total, _rows(page, model)))
        shown[table] = _Shown(counted, str(counted.value), _figure(counted.value))
    for name, model, column in VALUES:
        answer = page.ask(partial(by_value, _rows(page, model), column))
        texts = []
        numbers = {}
        for value, figure in (answer.value or {}).items():
            texts.append(f"{value} {figure}")
            numbers[value] = _figure(figure)
        shown[name] = _Shown(answer, ", ".join(texts), numbers)
    hours = page.ask(partial(activity, page.connection, 24))
    shown["last 24 h"] = _activity(hours)
    return shown


def _rows(page: Budget, model: type[Model]) -> QuerySet[Any]:
    return model._default_manager.using(page.connection.alias)


def _activity(answer: Answer[list[Hour]]) -> _Shown:
    opened = failed = 0
    each_hour = []
    for hour in answer.value or ():
        opened += hour.opened
        failed += hour.failed
        each_hour.append(
            {
                "hour": hour.at.isoformat(),
                "opened": hour.opened,
                "failed": hour.failed,
            }
        )
    return _Shown(answer, f"{opened:,} sessions opened, {failed:,} failed", each_hour)


def _figure(figure: Figure | None) -> dict[str, Any] | None:
    """Return a figure for JSON: a number, and how exact it is."""
    if figure is None:
        return None
    return {
        "rows": figure.rows,
        "estimated": figure.is_estimate,
        "at_least": figure.at_least,
    }


def _as_json(report: Report, summary: dict[str, _Shown]) -> dict[str, Any]:
    head = {
        "format": JSON_FORMAT,
        "engine": report.engine,
        "place": report.place,
        "at": report.at.isoformat(),
    }
    if report.problem:
        return {**head, "error": str(report.problem)}
    return {
        **head,
        "attention": [_finding(found) for found in report.findings],
        "totals": {table: summary[table].as_json() for table in TABLES},
        "sessions_by_status": summary["statuses"].as_json(),
        "sandboxes_by_state": summary["states"].as_json(),
        "activity": summary["last 24 h"].as_json(),
        "runners": [_runner(runner) for runner in report.runners.value or ()],
    }


def _finding(found: Finding) -> dict[str, Any]:
    return {
        "code": found.code,
        "title": found.title,
        "count": found.count,
        "at_least": found.at_least,
        "urgent": found.urgent,
        "detail": found.detail,
        "problem": str(found.problem) if found.problem else None,
    }


def _runner(runner: Runner) -> dict[str, Any]:
    seen_at = runner.seen_at
    return {
        "id": runner.id,
        "condition": runner.condition or "ok",
        "last_sign_of_life": seen_at.isoformat() if seen_at else None,
        "active": runner.active,
        "starting": runner.starting,
    }
