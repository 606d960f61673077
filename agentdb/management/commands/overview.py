from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from logging import NullHandler, getLogger
from typing import Any

from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.console.checks import Finding, Runner
from agentdb.console.display import relative
from agentdb.console.figures import Figure, activity, by_value, total
from agentdb.console.questions import Answer, Budget
from agentdb.console.report import Report, examine
from agentdb.errors import DatabaseUnavailableError
from agentdb.management.database_command import DatabaseCommand
from agentdb.models import Agent, ApiKey, Sandbox, Session
from agentdb.schema.inspection import inspecting

JSON_FORMAT = 1
TABLES = (Session, Sandbox, Agent, ApiKey)


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
            figures = {} if report.problem else _ask(page)
        if json:
            self.print_json(_as_json(report, figures))
        else:
            self._print(report, figures)
        if report.problem:
            sys.exit(2)
        if report.wrong or report.unanswered:
            sys.exit(1)

    def _print(self, report: Report, figures: dict[str, Answer[Any]]) -> None:
        at = f"{report.at:%Y-%m-%d %H:%M:%S} UTC"
        self.stdout.write(f"{report.engine}, {report.place}, as of {at}")
        if report.problem:
            self.stdout.write(self.style.ERROR(str(report.problem)))
            return
        self.print_lines(self._attention(report))
        for name, answer in figures.items():
            self.stdout.write(f"{name:<10} {_text(answer.value)}")
        for runner in report.runners.value or ():
            seen = relative(runner.seen_at) if runner.seen_at else "none"
            self.stdout.write(
                f"runner {runner.id}: {runner.condition or 'ok'}, last sign of life {seen}, "
                f"{runner.active:,} active, {runner.starting:,} starting"
            )

    def _attention(self, report: Report) -> Iterator[str]:
        if not report.wrong and not report.unanswered:
            yield self.style.SUCCESS("Nothing needs attention.")
        for found in report.wrong:
            line = f"{found.shown:>8}  {found.sentence}"
            if found.detail:
                line += f" ({found.detail})"
            style = self.style.ERROR if found.urgent else self.style.WARNING
            yield style(line)
        for titles, problem in report.unanswered:
            line = f"       ?  not checked: {', '.join(titles)}. {problem}"
            yield self.style.WARNING(line)


@contextmanager
def _reading(alias: str) -> Iterator[BaseDatabaseWrapper]:
    """A connection that creates no file and switches no journal mode, if the file can be read at all.

    If it cannot, the report on the configured connection says why.
    """
    configured = connections[alias]
    with ExitStack() as stack:
        stack.callback(configured.close)
        if configured.vendor == "sqlite":
            # Django's own connection would create a missing file, and switch the journal mode as the settings say.
            try:
                # The ORM finds a connection by its alias.
                connections[alias] = stack.enter_context(inspecting(alias))
                stack.callback(connections.__setitem__, alias, configured)
            except DatabaseUnavailableError:
                # Without a handler of the program's Python would print the log's line beside the report.
                getLogger("agentdb.console").addHandler(NullHandler())
        yield connections[alias]


def _ask(page: Budget) -> dict[str, Answer[Any]]:
    """Return the figures by the names that the terminal gives them."""
    alias = page.connection.alias
    asked: dict[str, Callable[[], Any]] = {}
    for model in TABLES:
        rows: Any = model._default_manager.using(alias)
        asked[model._meta.db_table] = partial(total, rows)
    asked["statuses"] = partial(by_value, Session.objects.using(alias), "status")
    asked["states"] = partial(by_value, Sandbox.objects.using(alias), "state")
    asked["last 24 h"] = partial(activity, page.connection, 24)
    return {name: page.ask(question) for name, question in asked.items()}


def _text(value: Any) -> str:
    """Return a figure, or several, as the terminal shows it."""
    if value is None:
        return "not known"
    if isinstance(value, Figure):
        return str(value)
    if isinstance(value, dict):
        return ", ".join(f"{name} {figure}" for name, figure in value.items())
    opened = sum(hour.opened for hour in value)
    failed = sum(hour.failed for hour in value)
    return f"{opened:,} sessions opened, {failed:,} failed"


def _plain(answer: Answer[Any]) -> Any:
    """Return a figure, or several, for JSON; the problem instead if there is none."""
    value = answer.value
    if value is None:
        return {"problem": str(answer.problem)}
    if isinstance(value, Figure):
        return value._asdict()
    if isinstance(value, dict):
        return {name: figure._asdict() for name, figure in value.items()}
    return [
        {
            "hour": hour.at.isoformat(),
            "opened": hour.opened,
            "failed": hour.failed,
        }
        for hour in value
    ]


def _as_json(report: Report, figures: dict[str, Answer[Any]]) -> dict[str, Any]:
    head = {
        "format": JSON_FORMAT,
        "engine": report.engine,
        "place": report.place,
        "at": report.at.isoformat(),
    }
    if report.problem:
        return {**head, "error": str(report.problem)}
    plain = {name: _plain(answer) for name, answer in figures.items()}
    return {
        **head,
        "attention": [_finding(found) for found in report.findings],
        "sessions_by_status": plain.pop("statuses"),
        "sandboxes_by_state": plain.pop("states"),
        "activity": plain.pop("last 24 h"),
        "totals": plain,
        "runners": [_runner(runner) for runner in report.runners.value or ()],
    }


def _finding(found: Finding) -> dict[str, Any]:
    """Return what a check found, without the sentence, which is for people."""
    names = ("code", "title", "count", "at_least", "urgent", "detail")
    problem = str(found.problem) if found.problem else None
    return {name: getattr(found, name) for name in names} | {"problem": problem}


def _runner(runner: Runner) -> dict[str, Any]:
    seen_at = runner.seen_at
    return {
        "id": runner.id,
        "condition": runner.condition or "ok",
        "last_sign_of_life": seen_at.isoformat() if seen_at else None,
        "active": runner.active,
        "starting": runner.starting,
    }
