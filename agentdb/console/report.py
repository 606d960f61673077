"""What an operator looks at first: what needs attention, how much there is of everything, and what happened lately.

Every question has a time limit in the database and reads a window of rows by an index, so that it costs the same at ten
thousand rows and at a million. A question that cannot be answered says why, and the others are answered all the same.
"""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Generic, TypeVar

from django.apps import apps
from django.db import DatabaseError, transaction
from django.db import Error as DjangoDatabaseError
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone
from django.utils.translation import gettext, ngettext

from agentdb.conf import server_name
from agentdb.console.display import relative
from agentdb.errors import AgentDbError, DatabaseUnavailableError
from agentdb.schema import compare, expected_tables, read_tables
from agentdb.schema.inspection import check_sqlite_file, describe_failure, sqlite_path
from agentdb.schema.migration_record import migration_names, pending_migrations
from agentdb.serving.connections import open_channel
from agentdb.serving.connections.base import Fault, driver_error
from agentdb.sqlite_files import file_concern

logger = logging.getLogger("agentdb.console")

STARTING_MINUTES = 5
SILENT_MINUTES = 30
RUNNER_MINUTES = 10
RUNNER_LATE_MINUTES = 5
GRACE_MINUTES = 1  # a server inserts a session before its sandbox
WINDOW = 10_000
MOST_LISTED = 200
SECONDS = 2.0  # for one question
PAGE_SECONDS = 5.0  # for all of them
LOCK_SECONDS = 3.0
COUNT_SECONDS = 0.5
SCHEMA_SECONDS = 60.0
EXACT_UP_TO = 200_000
SAMPLE = 5_000  # rows from which the shares of a SQLite table's values are estimated
LOOKUP_OF_RUNNER = 500

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True)
class Problem:
    """Why something is not known: a sentence, the command to run next, and what the database said."""

    sentence: str
    command: str = ""
    said: str = ""

    def __str__(self) -> str:
        if not self.command:
            return self.sentence
        return f"{self.sentence} " + gettext("Run %s.") % f"'{self.command}'"


@dataclass(frozen=True, slots=True)
class Answer(Generic[Value]):
    """A value, or the problem that kept it from being known."""

    value: Value | None
    problem: Problem | None = None


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
class Figure:
    """A number of rows, and how it was got: counted, estimated, or counted up to a limit."""

    rows: int
    how: str = ""  # for an estimate: from what, how old
    at_least: bool = False

    @property
    def is_estimate(self) -> bool:
        return bool(self.how) and not self.at_least

    def __str__(self) -> str:
        return f"{'≈ ' if self.is_estimate else ''}{self.rows:,}{'+' if self.at_least else ''}"


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
class Hour:
    at: datetime
    opened: int
    failed: int


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


# -- time limits and problems


@contextmanager
def time_limit(connection: BaseDatabaseWrapper, seconds: float) -> Iterator[None]:
    """Let the database itself stop what takes longer; a lock is waited for half as long, and never ``LOCK_SECONDS``.

    Raises what connecting raises. The connection's own limits are back afterwards.
    """
    connection.ensure_connection()
    if connection.vendor == "sqlite":
        raw = connection.connection
        deadline = time.monotonic() + seconds
        raw.set_progress_handler(lambda: int(time.monotonic() > deadline), 2_000)
        before = raw.execute("PRAGMA busy_timeout").fetchone()[0]
        raw.execute(f"PRAGMA busy_timeout = {min(before, int(1000 * _lock_seconds(seconds)))}")
        try:
            yield
        finally:
            if connection.connection is raw:
                raw.set_progress_handler(None, 0)
                raw.execute(f"PRAGMA busy_timeout = {before}")
        return
    active = getattr(connection, _LIMIT, None)
    if active is not None and active <= seconds:
        yield  # a statement has that limit already, each anew
        return
    names = ("statement_timeout", "lock_timeout") if connection.vendor == "postgresql" else ("statement_timeout",)
    before_values = _set_limits(connection, names, [str(int(1000 * seconds)), str(int(1000 * _lock_seconds(seconds)))])
    setattr(connection, _LIMIT, seconds)
    try:
        yield
    finally:
        setattr(connection, _LIMIT, active)
        if connection.connection is not None:
            # It fails in a failed transaction, whose end takes the limits back, and on a connection that is lost.
            with suppress(DjangoDatabaseError):
                _set_limits(connection, names, before_values)


def _lock_seconds(seconds: float) -> float:
    return min(seconds / 2, LOCK_SECONDS)


_LIMIT = "agentdb_limit_seconds"
_PAGE = "agentdb_page"


@dataclass
class _Page:
    """What all questions of a page share: when its time is up, and why none of them can be asked."""

    ends_at: float
    problem: Problem | None = None


def _set_limits(connection: BaseDatabaseWrapper, names: Sequence[str], values: Sequence[str]) -> list[str]:
    """Set the limits, and return what they were, in one round trip."""
    wanted = list(zip(names, values, strict=False))
    olds = ", ".join(f"current_setting('{name}')" for name, _ in wanted)
    news = ", ".join(f"set_config('{name}', %s, false)" for name, _ in wanted)
    with connection.cursor() as cursor:
        # The subquery is evaluated before the settings change.
        cursor.execute(f"SELECT o.*, {news} FROM (SELECT {olds} OFFSET 0) AS o", [value for _, value in wanted])
        return list(cursor.fetchone()[: len(wanted)])


@contextmanager
def looking(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """One limit for each question of a page, where there is a connection, and one for all of them: what is asked after
    ``PAGE_SECONDS`` gets no answer, so that a table that is locked is not waited for a dozen times, and a server that
    cannot be reached is tried once.
    """
    with ExitStack() as stack:
        page = _Page(time.monotonic() + PAGE_SECONDS)
        if connection.vendor != "sqlite":  # there a limit is one of the whole time, so each question has its own
            try:
                stack.enter_context(time_limit(connection, SECONDS))
            except EXPECTED_ERRORS as error:
                page.problem = explain(connection, error)
        setattr(connection, _PAGE, page)
        stack.callback(setattr, connection, _PAGE, None)
        yield


DATABASE_ERRORS: tuple[type[Exception], ...] = (DjangoDatabaseError, AgentDbError, sqlite3.Error)
# What a stored value that Python cannot hold becomes on its way into a page.
VALUE_ERRORS: tuple[type[Exception], ...] = (ValueError, OverflowError, TypeError, AttributeError)
EXPECTED_ERRORS = DATABASE_ERRORS + VALUE_ERRORS


def is_unreadable(error: BaseException) -> bool:
    """Whether a stored value was read that Python cannot hold."""
    if not isinstance(error, DATABASE_ERRORS):
        return True
    lower = str(error).lower()
    state = getattr(error.__cause__, "sqlstate", None) or ""
    return "timestamp too" in lower or "could not decode to utf-8" in lower or state.startswith("22")


def is_mismatch(connection: BaseDatabaseWrapper, error: BaseException) -> bool:
    """Whether a table or a column is not there, or not as it should be."""
    return open_channel(connection).fault(driver_error(error)) is Fault.MISMATCH


def explain(connection: BaseDatabaseWrapper, error: BaseException) -> Problem:
    """The sentence and the next command for an error that reading the database raised. It holds no password."""
    said = " ".join(str(error).split())
    password = connection.settings_dict.get("PASSWORD")
    said = said.replace(password, "***") if password else said
    if isinstance(error, AgentDbError):
        return Problem(str(error))
    state = getattr(error.__cause__, "sqlstate", None)
    lower = said.lower()
    name = place_of(connection)
    if state == "57014" or "interrupted" in lower:
        return Problem(
            gettext("%(place)s did not answer in time, and the question was cut off.") % {"place": name},
            "agentdb health",
            said,
        )
    if is_mismatch(connection, error):
        return Problem(
            gettext("The tables of %(place)s are not as agentdb expects them.") % {"place": name},
            "agentdb verifydb",
            said,
        )
    if is_unreadable(error):
        row = unreadable_row(connection)
        where = f" {row}" if row else ""
        return Problem(
            gettext("A row of %(place)s holds a value that cannot be read.") % {"place": name} + where,
            "" if row else "agentdb verifydb",
            said,
        )
    if not isinstance(error, DjangoDatabaseError):
        return Problem(gettext("%(place)s cannot be used.") % {"place": name}, "agentdb health", said)
    command = "agentdb health"
    if connection.vendor == "sqlite" and ("malformed" in lower or "not a database" in lower):
        command = "agentdb verifydb"
    return Problem(describe_failure(connection, error), command, said)


def place_of(connection: BaseDatabaseWrapper) -> str:
    if connection.vendor == "sqlite":
        return repr(str(sqlite_path(connection) or "the database in memory"))
    return server_name(connection.settings_dict)


def ask(connection: BaseDatabaseWrapper, question: Callable[[], Value], seconds: float = SECONDS) -> Answer[Value]:
    """The answer within the time, or why there is none; a transaction that is open stays usable."""
    page: _Page | None = getattr(connection, _PAGE, None)
    if page is not None and page.problem is not None:
        return Answer(None, page.problem)
    if page is not None and time.monotonic() > page.ends_at:
        return Answer(None, Problem(gettext("The page's time was up before this was asked."), "agentdb health"))
    try:
        with time_limit(connection, seconds), savepoint(connection):
            return Answer(question())
    except EXPECTED_ERRORS as error:
        problem = explain(connection, error)
        logger.warning("%s %s", problem.sentence, problem.said)
        return Answer(None, problem)


# -- one row that cannot be read

# The instants of each table, one that an index orders first, and the texts.
_INSTANTS = {
    "sessions": ("created_at", "last_active_at"),
    "sandboxes": ("last_used_at", "created_at"),
    "agents": ("created_at", "updated_at"),
    "api_keys": ("created_at",),
}
_TEXTS = {
    "sessions": ("tenant_id", "agent_name", "sandbox_id", "status", "runner_id"),
    "sandboxes": ("tenant_id", "session_id", "agent_name", "state", "workspace_dir"),
    "agents": ("tenant_id", "name", "path"),
    "api_keys": ("tenant_id", "label"),
}


def unreadable_row(connection: BaseDatabaseWrapper) -> str:
    """A sentence that names one row with a time or text that Python cannot hold, or an empty text."""
    try:
        with savepoint(connection), time_limit(connection, SECONDS):
            found = unreadable_rows(connection, limit=1, thorough=True)
    except EXPECTED_ERRORS:
        return ""
    return found[0] if found else ""


def unreadable_rows(connection: BaseDatabaseWrapper, limit: int, *, thorough: bool = False) -> list[str]:
    """A sentence for each. Times are looked for at both ends of an index, where nearly all of them sort; ``thorough``
    reads each row.
    """
    found: list[str] = []
    with connection.cursor() as cursor:
        for table, columns in _INSTANTS.items():
            for column in columns if thorough else columns[:1]:
                where = _odd_instants(connection, column, thorough=thorough)
                found += _shown_rows(connection, cursor, table, column, where, limit)
        if thorough and connection.vendor == "sqlite":
            connection.connection.create_function("agentdb_is_text", 1, _is_text, deterministic=True)
            for table, columns in _TEXTS.items():
                for column in columns:
                    where = f"{column} IS NOT NULL AND NOT agentdb_is_text(CAST({column} AS BLOB))"
                    found += _shown_rows(connection, cursor, table, column, where, limit)
    return found[:limit]


def _is_text(value: bytes) -> bool:
    try:
        value.decode()
    except UnicodeDecodeError:
        return False
    return True


def _odd_instants(connection: BaseDatabaseWrapper, column: str, *, thorough: bool) -> str:
    if connection.vendor != "sqlite":
        return f"{column} >= '9999-12-31' OR {column} < '0001-01-02'"
    where = f"{column} >= '9999-12-31 23' OR {column} < '0001'"
    if thorough:
        where += f" OR typeof({column}) <> 'text' OR datetime({column}) IS NULL"
    return where


def _shown_rows(
    connection: BaseDatabaseWrapper, cursor: Any, table: str, column: str, where: str, limit: int
) -> list[str]:
    if connection.vendor == "sqlite":
        # As hexadecimal text, because bytes that are no UTF-8 could not be fetched as text.
        shown = f"hex(CAST(id AS BLOB)), hex(CAST({column} AS BLOB))"
        cursor.execute(f"SELECT {shown} FROM {table} WHERE {where} LIMIT {limit}")
        rows = [[bytes.fromhex(each or "").decode(errors="backslashreplace") for each in row] for row in cursor]
    else:
        cursor.execute(f"SELECT id, CAST({column} AS text) FROM {table} WHERE {where} LIMIT {limit}")
        rows = [[str(each) for each in row] for row in cursor]
    return [unreadable_sentence(table, id, column, value) for id, value in rows]


def unreadable_sentence(table: str, id: str, column: str, value: str) -> str:
    sentence = gettext("Row %(id)s of %(table)s has %(column)s = %(value)s.")
    return sentence % {"id": repr(id), "table": table, "column": column, "value": repr(value[:60])}


# -- the checks


def instant(value: Any) -> datetime:
    """SQLite stores text, in UTC; some connections to it parse that text."""
    at: datetime = datetime.fromisoformat(value) if isinstance(value, str) else value
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def _stored(connection: BaseDatabaseWrapper, at: datetime) -> Any:
    return connection.ops.adapt_datetimefield_value(at)


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
    return _stored(connection, timezone.now() - timedelta(minutes=check.minutes))


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


def examine(connection: BaseDatabaseWrapper) -> Report:
    """Look at everything that may need attention. Raises nothing that a database or a row can cause."""
    report = Report(str(sqlite_path(connection) or place_of(connection)), connection.display_name, timezone.now())
    began = time.monotonic()
    report.problem = unusable_file(connection)
    if report.problem is None:
        ready = ask(connection, lambda: _round_trip(connection))
        report.problem = ready.problem
    if report.problem is not None:
        logger.warning("%s %s", report.problem.sentence, report.problem.said)
        return report
    assert ready.value is not None
    report.round_trip_ms, report.engine = ready.value
    report.schema = ask(connection, lambda: current_schema(connection), 2 * SECONDS)
    if report.schema.value is not None and not report.schema.value.applied:
        report.problem = _not_migrated(connection, report.schema.value)
        return report
    runners = report.runners = ask(connection, lambda: live_runners(connection))
    runner_title = gettext("Runner silent for %d min") % RUNNER_MINUTES
    report.findings.append(
        _runner_finding(runners.value or ())
        if runners.problem is None
        else Finding("runner", runner_title, problem=runners.problem)
    )
    for check in checks():
        answer = ask(connection, lambda check=check: _find(connection, check))  # type: ignore[misc]
        report.findings.append(answer.value or Finding(check.code, check.title, problem=answer.problem))
    if report.unknown and not (report.schema.problem or report.schema.value and report.schema.value.differences):
        _schemas.pop(connection.alias, None)  # something has changed since it was looked at
        report.schema = ask(connection, lambda: current_schema(connection), 2 * SECONDS)
    report.findings += _schema_findings(report.schema)
    unreadable = ask(connection, lambda: unreadable_rows(connection, 20), COUNT_SECONDS * 2)
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


def unusable_file(connection: BaseDatabaseWrapper) -> Problem | None:
    """What is wrong with a SQLite file, to be asked before connecting, which would make one at a misspelt path."""
    path = sqlite_path(connection)
    if path is None or connection.in_atomic_block:
        return None
    try:
        check_sqlite_file(path)
    except DatabaseUnavailableError as error:
        return Problem(str(error), said=str(error))
    return None


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


# -- how much there is


def total(connection: BaseDatabaseWrapper, table: str) -> Figure:
    """The rows of a table: counted where that is quick, else estimated."""
    estimate = estimated_rows(connection, table) if connection.vendor == "postgresql" else None
    if estimate is not None and estimate.rows > EXACT_UP_TO:
        return estimate
    counted = _counted_quickly(connection, f"SELECT COUNT(*) FROM {table}")
    if counted is not None:
        return Figure(counted[0][0])
    return estimate or estimated_rows(connection, table) or _counted_up_to(connection, table)


def estimated_rows(connection: BaseDatabaseWrapper, table: str) -> Figure | None:
    """From the statistics of the engine, if it has any."""
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            cursor.execute("SELECT COUNT(*) FROM sqlite_master WHERE name = 'sqlite_stat1'")
            if not cursor.fetchone()[0]:
                return None
            cursor.execute("SELECT MAX(CAST(stat AS INTEGER)) FROM sqlite_stat1 WHERE tbl = %s", [table])
            (rows,) = cursor.fetchone()
            return None if rows is None else Figure(rows, gettext("Estimated from the statistics of ANALYZE"))
        if connection.vendor != "postgresql":
            return None
        cursor.execute(
            "SELECT c.reltuples::bigint, GREATEST(s.last_analyze, s.last_autoanalyze) FROM pg_class c "
            "LEFT JOIN pg_stat_all_tables s ON s.relid = c.oid WHERE c.oid = to_regclass(%s)",
            [table],
        )
        row = cursor.fetchone()
    if row is None or row[0] < 0:
        return None
    how = gettext("Estimated from the statistics of %s") % (relative(row[1]) if row[1] else gettext("an unknown time"))
    return Figure(row[0], how)


def _counted_up_to(connection: BaseDatabaseWrapper, table: str) -> Figure:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT COUNT(*) FROM (SELECT 1 FROM {table} LIMIT {WINDOW + 1}) AS c")
        rows = cursor.fetchone()[0]
    return Figure(min(rows, WINDOW), at_least=rows > WINDOW)


def by_value(connection: BaseDatabaseWrapper, table: str, column: str, known: Sequence[str]) -> dict[str, Figure]:
    """How many rows have each value of an indexed column; values that only newer servers know come last."""
    whole = estimated_rows(connection, table) if connection.vendor == "postgresql" else None
    if whole is None or whole.rows <= EXACT_UP_TO:
        rows = _counted_quickly(
            connection, f"SELECT {column}, COUNT(*) FROM {table} GROUP BY {column} ORDER BY {column}"
        )
        if rows is not None:
            counted = {"NULL" if value is None else value: Figure(count) for value, count in rows}
            return {value: counted.get(value, Figure(0)) for value in [*known, *counted]}
    shares: dict[str, float] = {}
    if connection.vendor == "postgresql" and whole is not None:
        with connection.cursor() as cursor:
            cursor.execute(
                "SELECT unnest(most_common_vals::text::text[]), unnest(most_common_freqs) FROM pg_stats "
                "WHERE schemaname = current_schema() AND tablename = %s AND attname = %s",
                [table, column],
            )
            shares = dict(cursor.fetchall())
    if connection.vendor == "sqlite":
        whole, shares = total(connection, table), _shares_of_a_sample(connection, table, column)
        whole = Figure(whole.rows, gettext("Estimated from a sample of %s rows") % f"{SAMPLE:,}", whole.at_least)
    figures = {}
    for value in [*known, *(each for each in shares if each not in known)]:
        with connection.cursor() as cursor:
            cursor.execute(
                f"SELECT COUNT(*) FROM (SELECT 1 FROM {table} WHERE {column} = %s LIMIT {WINDOW + 1}) AS c", [value]
            )
            rows = cursor.fetchone()[0]
        if rows <= WINDOW:
            figures[value] = Figure(rows)
        elif value in shares and whole is not None:
            figures[value] = Figure(max(int(shares[value] * whole.rows), WINDOW), whole.how, whole.at_least)
        else:
            figures[value] = Figure(WINDOW, at_least=True)
    return figures


def _shares_of_a_sample(connection: BaseDatabaseWrapper, table: str, column: str) -> dict[str, float]:
    """How much of a SQLite table each value has, from rows at even distances; nothing where rows have no rowid."""
    query = (
        f"WITH RECURSIVE ends(first, last) AS (SELECT MIN(rowid), MAX(rowid) FROM {table}), "
        f"places(id, step) AS (SELECT first, MAX((last - first) / {SAMPLE}, 1) FROM ends UNION ALL "
        f"SELECT id + step, step FROM places, ends WHERE id + step <= last LIMIT {SAMPLE}) "
        f"SELECT {column}, COUNT(*) FROM places JOIN {table} ON {table}.rowid = places.id GROUP BY {column}"
    )
    try:
        with savepoint(connection), connection.cursor() as cursor:
            cursor.execute(query)
            rows = cursor.fetchall()
    except DatabaseError as error:
        if "no such column" not in str(error):
            raise
        return {}
    sampled = sum(count for _, count in rows)
    return {value: count / sampled for value, count in rows}


def runner_statuses(connection: BaseDatabaseWrapper, runner_id: str) -> dict[str, Figure]:
    """How many of the runner's newest sessions have each status."""
    most = 5 * WINDOW
    with connection.cursor() as cursor:
        cursor.execute(
            "SELECT status, COUNT(*) FROM (SELECT status FROM sessions WHERE runner_id = %s ORDER BY created_at DESC "
            f"LIMIT {most}) AS newest GROUP BY status ORDER BY status",
            [runner_id],
        )
        rows = cursor.fetchall()
    is_cut = sum(count for _, count in rows) >= most
    return {status: Figure(count, at_least=is_cut) for status, count in rows}


@contextmanager
def savepoint(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """In a transaction one that is undone alone, so that what goes wrong does not doom the rest; else nothing."""
    if not connection.in_atomic_block:
        yield
        return
    with transaction.atomic(using=connection.alias):
        yield


def _counted_quickly(connection: BaseDatabaseWrapper, query: str) -> list[Any] | None:
    """What the query counts, or None where that takes too long."""
    try:
        with savepoint(connection), time_limit(connection, COUNT_SECONDS), connection.cursor() as cursor:
            cursor.execute(query)
            return list(cursor.fetchall())
    except DatabaseError as error:
        if not _was_cut_off(error):
            raise
        return None


def _was_cut_off(error: DatabaseError) -> bool:
    return getattr(error.__cause__, "sqlstate", None) == "57014" or "interrupted" in str(error)


# -- what happened lately


def activity(connection: BaseDatabaseWrapper, hours: int, **of: str) -> list[Hour]:
    """Sessions opened, and of these failed, for each hour; the last hour is the running one.

    ``of`` narrows it to a ``runner_id`` or ``tenant_id``, each of which an index finds in the order of time.
    """
    now = timezone.now().replace(minute=0, second=0, microsecond=0)
    first = now - timedelta(hours=hours - 1)
    if connection.vendor == "sqlite":
        hour = "substr(created_at, 1, 13)"
    else:
        hour = "CAST(floor(extract(epoch FROM created_at) / 3600) AS bigint)"
    # With an end, because the hour of a row at 'infinity' cannot be counted.
    condition, parameters = (
        "created_at >= %s AND created_at < %s",
        [_stored(connection, at) for at in (first, now + timedelta(hours=1))],
    )
    for column, value in of.items():
        condition, parameters = f"{column} = %s AND {condition}", [value, *parameters]
    counted: list[dict[datetime, int]] = []
    with connection.cursor() as cursor:
        for more in ("", " AND status = 'error'"):
            cursor.execute(f"SELECT {hour}, COUNT(*) FROM sessions WHERE {condition}{more} GROUP BY 1", parameters)
            counted.append({_hour(value): rows for value, rows in cursor.fetchall()})
    opened, failed = counted
    each = [first + timedelta(hours=number) for number in range(hours)]
    return [Hour(at, opened.get(at, 0), failed.get(at, 0)) for at in each]


def _hour(value: Any) -> datetime:
    if isinstance(value, str):
        try:
            return datetime.fromisoformat(f"{value}:00").replace(tzinfo=UTC)
        except ValueError:
            return datetime.max.replace(tzinfo=UTC)  # no hour of the chart
    return datetime.fromtimestamp(0, UTC) + timedelta(hours=int(value)) if value < 70_000_000 else datetime.max
