from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import partial
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import QuerySet

from agentdb.console.display import relative
from agentdb.console.figures import Figure, Hour, activity, by_value, total
from agentdb.console.questions import Answer, Budget
from agentdb.console.report import Report, examine, unanswered
from agentdb.errors import DatabaseUnavailableError
from agentdb.management.database_command import DatabaseCommand
from agentdb.models import Agent, ApiKey, Sandbox, Session
from agentdb.schema.inspection import inspecting

JSON_FORMAT = 1
TABLES = {each._meta.db_table: each for each in (Session, Sandbox, Agent, ApiKey)}
VALUES = (("statuses", "sessions", "status"), ("states", "sandboxes", "state"))


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
            style = self.style.ERROR if found.urgent else self.style.WARNING
            detail = f" ({found.detail})" if found.detail else ""
            yield style(f"{found.shown:>8}  {found.sentence}{detail}")
        for titles, problem in unanswered(report.unknown):
            line = f"       ?  not checked: {', '.join(titles)}. {problem}"
            yield self.style.WARNING(line)


class _Shown:
    """A result as text, and as a value for JSON."""

    def __init__(self, answer: Answer[Any], text: str, value: Any) -> None:
        self.answer, self.text, self.value = answer, text, value

    def __str__(self) -> str:
        return "not known" if self.answer.problem else self.text

    def as_json(self) -> Any:
        problem = self.answer.problem
        return {"problem": str(problem)} if problem else self.value


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
    """By what the terminal calls it."""
    connection = page.connection
    shown = {}
    rows: dict[str, QuerySet[Any]] = {
        table: model._default_manager.using(connection.alias)
        for table, model in TABLES.items()
    }
    for table in TABLES:
        counted = page.ask(partial(total, rows[table]))
        shown[table] = _Shown(counted, str(counted.value), _figure(counted.value))
    for name, table, column in VALUES:
        answer = page.ask(partial(by_value, rows[table], column))
        figures = answer.value or {}
        text = ", ".join(f"{value} {figure}" for value, figure in figures.items())
        numbers = {value: _figure(figure) for value, figure in figures.items()}
        shown[name] = _Shown(answer, text, numbers)
    shown["last 24 h"] = _activity(page.ask(partial(activity, connection, 24)))
    return shown


def _activity(answer: Answer[list[Hour]]) -> _Shown:
    hours = answer.value or []
    opened, failed = (
        sum(each.opened for each in hours),
        sum(each.failed for each in hours),
    )
    each_hour = [
        {"hour": each.at.isoformat(), "opened": each.opened, "failed": each.failed}
        for each in hours
    ]
    return _Shown(answer, f"{opened:,} sessions opened, {failed:,} failed", each_hour)


def _figure(figure: Figure | None) -> dict[str, Any] | None:
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
    names = ("code", "title", "count", "at_least", "urgent", "detail")
    return {
        **head,
        "attention": [
            {name: getattr(found, name) for name in names}
            | {"problem": str(found.problem) if found.problem else None}
            for found in report.findings
        ],
        "totals": {table: summary[table].as_json() for table in TABLES},
        "sessions_by_status": summary["statuses"].as_json(),
        "sandboxes_by_state": summary["states"].as_json(),
        "activity": summary["last 24 h"].as_json(),
        "runners": [
            {
                "id": runner.id,
                "condition": runner.condition or "ok",
                "last_sign_of_life": runner.seen_at.isoformat() if runner.seen_at else None,
                "active": runner.active,
                "starting": runner.starting,
            }
            for runner in report.runners.value or ()
        ],
    }  # fmt: skip
