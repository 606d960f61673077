"""What an operator looks at first: what needs attention, how much there is of everything, and what happened lately.

Every question has a time limit in the database and reads a window of rows by an index, so that it costs the same at ten
thousand rows and at a million. A question that cannot be answered says why, and the others are answered all the same.
"""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

from django.apps import apps
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone
from django.utils.translation import gettext, ngettext

from agentdb.console.display import instant, relative
from agentdb.console.questions import SECONDS, Answer, Budget, Problem, logger, place_of, unusable_file
from agentdb.console.unreadable import unreadable_rows
from agentdb.schema import compare, expected_tables, read_tables
from agentdb.schema.inspection import sqlite_path
from agentdb.schema.migration_record import migration_names, pending_migrations
from agentdb.sqlite_files import file_concern

STARTING_MINUTES = 5
SILENT_MINUTES = 30
RUNNER_MINUTES = 10
RUNNER_LATE_MINUTES = 5
GRACE_MINUTES = 1  # a server inserts a session before its sandbox
WINDOW = 10_000
MOST_LISTED = 200
SCHEMA_SECONDS = 60.0
LOOKUP_OF_RUNNER = 500


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check found. ``count`` is a lower bound where ``at_least``."""

    code: str
    title: str  # what is checked
    count: int = 0
    at_least: bool = False
    urgent: bool = False
    sentence: str = ""
    detail: str = ""
    problem: Problem | None = None
    runner: str = ""  # the one that is meant, where it is one

    @property
    def shown(self) -> str:
        return f"{self.count:,}{'+' if self.at_least else ''}"


@dataclass(frozen=True, slots=True)
class Runner:
    id: str
    seen_at: datetime
    active: int
    starting: int

    @property
    def live(self) -> int:
        return self.active + self.starting

    @property
    def condition(self) -> str:
        age = timezone.now() - self.seen_at
        if age > timedelta(minutes=RUNNER_MINUTES):
            return "silent"
        return "late" if age > timedelta(minutes=RUNNER_LATE_MINUTES) else ""


@dataclass(frozen=True, slots=True)
class Schema:
    applied: tuple[str, ...]
    pending: tuple[str, ...]
    tables: int  # of the four, that are there
    differences: tuple[str, ...]

    @property
    def is_good(self) -> bool:
        return not (self.pending or self.differences)


@dataclass
class Report:
    """The whole overview. ``problem`` is set where the database cannot be looked at at all."""

    place: str
    engine: str
    at: datetime
    round_trip_ms: float | None = None
    problem: Problem | None = None
    schema: Answer[Schema] = field(default_factory=lambda: Answer(None))
    runners: Answer[list[Runner]] = field(default_factory=lambda: Answer(None))
    findings: list[Finding] = field(default_factory=list)
    check_ms: float = 0.0

    @property
    def wrong(self) -> list[Finding]:
        return sorted((found for found in self.findings if found.count), key=lambda found: not found.urgent)

    @property
    def unknown(self) -> list[Finding]:
        return [found for found in self.findings if found.problem]


# -- the checks


_SESSION = "id, tenant_id, agent_name, sandbox_id, runner_id, status, created_at, last_active_at"
# Oldest first: what is stuck is old.
_LIVE = " UNION ALL ".join(
    f"SELECT * FROM (SELECT {_SESSION} FROM sessions WHERE status = '{status}' ORDER BY created_at LIMIT {WINDOW}) AS "
    f"{status}_ones"
    for status in ("active", "starting")
)
_SANDBOX = "id, tenant_id, agent_name, session_id, state, last_used_at"
_ALIVE = " UNION ALL ".join(
    f"SELECT * FROM (SELECT {_SANDBOX} FROM sandboxes WHERE state = '{state}' ORDER BY last_used_at LIMIT {WINDOW}) AS "
    f"{state}_ones"
    for state in ("running", "waiting")
)


@dataclass(frozen=True, slots=True)
class Check:
    """One question about rows: the rows are ``FROM source WHERE condition``; %s is the moment ``minutes`` ago."""

    code: str
    title: str
    urgent: bool
    model: str  # session or sandbox: what the rows are
    source: str
    condition: str
    minutes: int
    order: str
    one: str
    many: str
    detail: str = ""

    @property
    def sql(self) -> str:
        return f"FROM ({self.source}) AS l WHERE {self.condition}"


def checks() -> list[Check]:
    """In the order in which they are shown."""
    return [
        Check(
            "silent", gettext("Active, no sign of life for %d min") % SILENT_MINUTES, True, "session", _LIVE,
            "l.status = 'active' AND l.last_active_at < %s", SILENT_MINUTES, "last_active_at",
            gettext("active session without a sign of life for %d min") % SILENT_MINUTES,
            gettext("active sessions without a sign of life for %d min") % SILENT_MINUTES,
            gettext("the longest silent: %s"),
        ),
        Check(
            "starting", gettext("Starting for more than %d min") % STARTING_MINUTES, True, "session", _LIVE,
            "l.status = 'starting' AND l.last_active_at < %s", STARTING_MINUTES, "last_active_at",
            gettext("session starting for more than %d min") % STARTING_MINUTES,
            gettext("sessions starting for more than %d min") % STARTING_MINUTES,
            gettext("the oldest: %s"),
        ),
        Check(
            "sandbox-alone", gettext("Sandbox alive, session gone or ended"), False, "sandbox", _ALIVE,
            "l.session_id IS NOT NULL AND l.session_id <> '' AND l.last_used_at < %s AND NOT EXISTS (SELECT 1 FROM "
            "sessions s WHERE s.id = l.session_id AND s.status NOT IN ('ended', 'error', 'stopped'))",
            GRACE_MINUTES, "last_used_at",
            gettext("sandbox running or waiting, its session gone or ended"),
            gettext("sandboxes running or waiting, their session gone or ended"),
            gettext("last used: %s"),
        ),
        Check(
            "sandbox-gone", gettext("Session live, sandbox gone"), False, "session", _LIVE,
            "l.sandbox_id <> '' AND l.last_active_at < %s AND NOT EXISTS (SELECT 1 FROM sandboxes b WHERE "
            "b.id = l.sandbox_id)", GRACE_MINUTES, "last_active_at",
            gettext("live session whose sandbox is gone"),
            gettext("live sessions whose sandbox is gone"),
            gettext("the oldest sign of life: %s"),
        ),
        Check(
            "agent-missing", gettext("Agent named and missing"), False, "session", _LIVE,
            "l.last_active_at < %s AND NOT EXISTS (SELECT 1 FROM agents a WHERE a.tenant_id = l.tenant_id AND "
            "a.name = l.agent_name)", GRACE_MINUTES, "last_active_at",
            gettext("live session names an agent that is missing"),
            gettext("live sessions name an agent that is missing"),
        ),
    ]  # fmt: skip


def rows_of(connection: BaseDatabaseWrapper, check: Check, limit: int = MOST_LISTED) -> list[str]:
    """The ids of what a check found, the oldest first."""
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT l.id {check.sql} ORDER BY l.{check.order} LIMIT {limit}", [_ago(connection, check)])
        return [id for (id,) in cursor.fetchall()]


def _ago(connection: BaseDatabaseWrapper, check: Check) -> Any:
    return connection.ops.adapt_datetimefield_value(timezone.now() - timedelta(minutes=check.minutes))


def _find(connection: BaseDatabaseWrapper, check: Check) -> Finding:
    group = "runner_id" if check.model == "session" else "agent_name"
    if check.code == "agent-missing":
        group = "agent_name"
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT COUNT(*), MIN(l.{check.order}), COUNT(DISTINCT l.{group}), MIN(l.{group}), "
            f"SUM(CASE WHEN l.{group} IS NULL THEN 1 ELSE 0 END) {check.sql}",
            [_ago(connection, check)],
        )
        count, oldest, groups, group_value, without = cursor.fetchone()
    if not count:
        return Finding(check.code, check.title)
    parts = [check.detail % relative(instant(oldest))] if check.detail and oldest is not None else []
    if groups == 1 and not without:
        parts.append(
            gettext("all on %s") % group_value if group == "runner_id" else gettext("all of agent %s") % group_value
        )
    elif check.code == "agent-missing":
        parts.append(ngettext("%d name", "%d names", groups) % groups)
    sentence = check.one if count == 1 else check.many
    return Finding(
        check.code, check.title, count, count >= WINDOW, check.urgent, sentence, ", ".join(parts),
        runner=str(group_value) if group == "runner_id" and groups == 1 and not without else "",
    )  # fmt: skip


def live_runners(connection: BaseDatabaseWrapper) -> list[Runner]:
    """The runners of the sessions that are live, the silent ones first, then by the number of live sessions.

    A sign of life is the newest activity of one of a runner's sessions.
    """
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT l.runner_id, MAX(l.last_active_at), SUM(CASE WHEN l.status = 'active' THEN 1 ELSE 0 END), "
            f"SUM(CASE WHEN l.status = 'starting' THEN 1 ELSE 0 END) FROM ({_LIVE}) AS l "
            "WHERE l.runner_id IS NOT NULL GROUP BY l.runner_id"
        )
        runners = [Runner(id, instant(at), int(active), int(starting)) for id, at, active, starting in cursor]
    runners.sort(key=lambda runner: (runner.seen_at, runner.id))
    seen = []
    for number, runner in enumerate(runners):
        # Only of a runner that looks silent: its ended and paused sessions are signs of life too.
        if number < 50 and runner.condition:
            newest = last_sign_of_life(connection, runner.id)
            if newest is not None:
                runner = Runner(runner.id, max(newest[0], runner.seen_at), runner.active, runner.starting)
        seen.append(runner)
    order = {"silent": 0, "late": 1, "": 2}
    return sorted(seen, key=lambda runner: (order[runner.condition], -runner.live, runner.id))


def last_sign_of_life(connection: BaseDatabaseWrapper, runner_id: str) -> tuple[datetime, str] | None:
    """When, and of which session, among the runner's newest sessions."""
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT last_active_at, id FROM (SELECT last_active_at, id FROM sessions WHERE runner_id = %s "
            f"ORDER BY created_at DESC LIMIT {LOOKUP_OF_RUNNER}) AS newest ORDER BY last_active_at DESC LIMIT 1",
            [runner_id],
        )
        row = cursor.fetchone()
    return None if row is None else (instant(row[0]), row[1])


def _runner_finding(runners: Sequence[Runner]) -> Finding:
    silent = [runner for runner in runners if runner.condition == "silent"]
    title = gettext("Runner silent for %d min") % RUNNER_MINUTES
    if not silent:
        return Finding("runner", title)
    first = silent[0]
    live = sum(runner.live for runner in silent)
    detail = ngettext("%(count)s live session", "%(count)s live sessions", live) % {"count": f"{live:,}"}
    detail = f"{first.id}, {relative(first.seen_at)}{', …' if len(silent) > 1 else ''}; {detail}"
    return Finding(
        "runner", title, len(silent), False, True, ngettext("runner is silent", "runners are silent", len(silent)),
        detail, runner=first.id if len(silent) == 1 else "",
    )  # fmt: skip


_schemas: dict[str, tuple[float, Schema]] = {}


def current_schema(connection: BaseDatabaseWrapper) -> Schema:
    """What verifydb and the record of migrations say; read once a minute while it is good, for it reads the catalog."""
    looked_at, schema = _schemas.get(connection.alias, (0.0, None))
    if schema is None or not schema.is_good or time.monotonic() - looked_at > SCHEMA_SECONDS:
        schema = read_schema(connection)
        _schemas[connection.alias] = (time.monotonic(), schema)
    return schema


def read_schema(connection: BaseDatabaseWrapper) -> Schema:
    pending = tuple(pending_migrations(connection))
    expected = expected_tables(connection, apps)
    live = read_tables(connection, list(expected))
    differences = compare(expected, live)
    return Schema(
        tuple(name for name in migration_names() if name not in pending),
        pending,
        len(live),
        tuple(found.message for found in differences if found.severity == "drift"),
    )


def examine(page: Budget) -> Report:
    """Look at everything that may need attention. Raises nothing that a database or a row can cause."""
    connection = page.connection
    report = Report(str(sqlite_path(connection) or place_of(connection)), connection.display_name, timezone.now())
    began = time.monotonic()
    report.problem = unusable_file(connection)
    if report.problem is None:
        ready = page.ask(lambda: _round_trip(connection))
        report.problem = ready.problem
    if report.problem is not None:
        logger.warning("%s %s", report.problem.sentence, report.problem.said)
        return report
    assert ready.value is not None
    report.round_trip_ms, report.engine = ready.value
    report.schema = page.ask(lambda: current_schema(connection), 2 * SECONDS)
    if report.schema.value is not None and not report.schema.value.applied:
        report.problem = _not_migrated(connection, report.schema.value)
        return report
    runners = report.runners = page.ask(lambda: live_runners(connection))
    runner_title = gettext("Runner silent for %d min") % RUNNER_MINUTES
    report.findings.append(
        _runner_finding(runners.value or ())
        if runners.problem is None
        else Finding("runner", runner_title, problem=runners.problem)
    )
    for check in checks():
        answer = page.ask(lambda check=check: _find(connection, check))  # type: ignore[misc]
        report.findings.append(answer.value or Finding(check.code, check.title, problem=answer.problem))
    if report.unknown and not (report.schema.problem or report.schema.value and report.schema.value.differences):
        _schemas.pop(connection.alias, None)  # something has changed since it was looked at
        report.schema = page.ask(lambda: current_schema(connection), 2 * SECONDS)
    report.findings += _schema_findings(report.schema)
    unreadable = page.ask(lambda: unreadable_rows(connection, 20), 1.0)
    rows = unreadable.value or []
    report.findings.append(
        Finding(
            "unreadable", gettext("Rows that cannot be read"), len(rows), len(rows) == 20, True,
            ngettext("row cannot be read", "rows cannot be read", len(rows)), rows[0] if rows else "",
            problem=unreadable.problem,
        )
    )  # fmt: skip
    path = sqlite_path(connection)
    if path is not None and (concern := file_concern(path)):
        title = gettext("File system")
        report.findings.append(
            Finding("file_system", title, 1, urgent=True, sentence=gettext("danger to the file"), detail=concern)
        )
    report.check_ms = 1000 * (time.monotonic() - began)
    return report


def _not_migrated(connection: BaseDatabaseWrapper, schema: Schema) -> Problem:
    place = {"place": place_of(connection)}
    if schema.tables:
        sentence = gettext("%(place)s was made by an old server and is not adopted yet.") % place
        return Problem(sentence, "agentdb baselinedb --check")
    return Problem(gettext("%(place)s has none of agentdb's tables.") % place, "agentdb migrate")


def _schema_findings(schema: Answer[Schema]) -> list[Finding]:
    pending = schema.value.pending if schema.value else ()
    drift = schema.value.differences if schema.value else ()
    return [
        Finding(
            "pending", gettext("Migrations pending"), len(pending), False, True,
            ngettext("migration is pending", "migrations are pending", len(pending)), ", ".join(pending[:3]),
            problem=schema.problem,
        ),
        Finding(
            "drift", gettext("Schema drift"), len(drift), False, True,
            ngettext(
                "difference between the tables and the models", "differences between the tables and the models",
                len(drift),
            ),
            drift[0] if drift else "", problem=schema.problem,
        ),
    ]  # fmt: skip


def _round_trip(connection: BaseDatabaseWrapper) -> tuple[float, str]:
    with connection.cursor() as cursor:
        began = time.monotonic()
        # The first page of a file is read, which a damaged one does not survive.
        cursor.execute("SELECT COUNT(*) FROM sqlite_master" if connection.vendor == "sqlite" else "SELECT 1")
        cursor.fetchone()
        took = 1000 * (time.monotonic() - began)
        if connection.vendor == "sqlite":
            return took, f"SQLite {sqlite3.sqlite_version}"
        cursor.execute("SHOW server_version")
        return took, f"{connection.display_name} {cursor.fetchone()[0].split()[0]}"
