"""Queries of the console: each has a time limit in the database, cannot break others, and explains its failure."""

from __future__ import annotations

import logging
import sqlite3
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from types import MappingProxyType
from typing import Any, Generic, NamedTuple, Self, TypeVar

from django.db import Error as DjangoDatabaseError
from django.db import transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils.text import capfirst
from django.utils.translation import gettext, gettext_noop

from agentdb.conf import server_name
from agentdb.errors import AgentDbError
from agentdb.faults import Fault, classify, describe_failure
from agentdb.schema.inspection import check_sqlite_file, sqlite_path
from agentdb.schema.rows import unreadable_values

logger = logging.getLogger("agentdb.console")

SECONDS = 2.0  # for one query
PAGE_SECONDS = 5.0  # for all queries of a page
LOCK_SECONDS = 3.0

DATABASE_ERRORS = (
    DjangoDatabaseError,
    AgentDbError,
    sqlite3.Error,
)
EXPECTED_ERRORS = (
    *DATABASE_ERRORS,
    # What reading a value that Python cannot represent raises.
    ValueError,
    OverflowError,
    TypeError,
    AttributeError,
)

Value = TypeVar("Value")


@dataclass(frozen=True)
class Problem:
    """Why a value is missing: a sentence, the command to run next, and the database's message."""

    sentence: str
    command: str = ""
    said: str = field(default="", compare=False)

    def __str__(self) -> str:
        if not self.command:
            return self.sentence
        return f"{self.sentence} " + gettext("Run %s.") % f"'{self.command}'"


class Answer(NamedTuple, Generic[Value]):
    """A value, or the problem that prevented it."""

    value: Value | None
    problem: Problem | None = None


class Unanswered(Exception):
    """The database, or a value in it, raised ``cause``. The explanation is computed when it is first read."""

    def __init__(self, connection: BaseDatabaseWrapper, cause: Exception) -> None:
        super().__init__(str(cause))
        self.connection = connection
        self.cause = cause

    @cached_property
    def problem(self) -> Problem:
        return explain(self.connection, self.cause)

    @property
    def is_mistake(self) -> bool:
        """Return whether no stored row explains what looks like an unreadable value, so that agentdb has a fault."""
        return _is_unreadable(self.cause) and self.problem.command != ""

    @property
    def is_cut_off(self) -> bool:
        """Return whether the query ran into its time limit."""
        return classify(self.cause) is Fault.CUT_OFF


@contextmanager
def question(
    connection: BaseDatabaseWrapper, seconds: float | None = None
) -> Iterator[None]:
    """Run queries within a time limit that the database enforces; a failure rolls back only these.

    Waits for a lock half as long, and at most ``LOCK_SECONDS``. Nested calls use the shorter limit. Without
    ``seconds`` the limit of the outer call holds, or ``SECONDS``. Raises ``Unanswered`` for any error that the
    database or a stored value causes.
    """
    try:
        # The savepoint is inside: only after its rollback does a server accept the statement that lifts the limit.
        with _limit(connection, seconds), _savepoint(connection):
            yield
    except EXPECTED_ERRORS as error:
        raise Unanswered(connection, error) from error


def ask(
    connection: BaseDatabaseWrapper,
    asked: Callable[[], Value],
    problems: list[Problem] | None = None,
    seconds: float | None = None,
) -> Answer[Value]:
    """Return the answer, or why there is none, which is also appended to ``problems`` and logged.

    A page has many questions, and a database that is away fails all of them: ``problems`` has each reason once.
    """
    try:
        with question(connection, seconds):
            return Answer(asked())
    except Unanswered as error:
        problem = error.problem
        if problems is None:
            problems = []
        if problem not in problems:
            problems.append(problem)
            trace = error.cause if error.is_mistake else None
            logger.warning("%s %s", problem.sentence, problem.said, exc_info=trace)
        return Answer(None, problem)


class Budget:
    """The time that all queries of a page share, so that a page does not wait a dozen times for one locked table.

    It begins when it is made, and lasts ``PAGE_SECONDS``. A server that cannot be reached is tried once.
    """

    def __init__(self, connection: BaseDatabaseWrapper) -> None:
        self.connection = connection
        self.ends_at = time.monotonic() + PAGE_SECONDS
        self._problem: Problem | None = None
        self._limit = ExitStack()

    def __enter__(self) -> Self:
        # A server's limit applies to each statement, so it is set once for all queries. SQLite's is a moment, which
        # each query sets for itself.
        if self.connection.vendor != "sqlite":
            try:
                self._limit.enter_context(_limit(self.connection, SECONDS))
            except EXPECTED_ERRORS as error:
                self._problem = explain(self.connection, error)
        return self

    def __exit__(self, *error: object) -> None:
        self._limit.close()

    def ask(
        self, asked: Callable[[], Value], seconds: float | None = None
    ) -> Answer[Value]:
        """Return the answer; without asking, if the page's time is up or its server could not be reached.

        Each question may use up its own seconds, so the last one can end that much after the page's time.
        """
        if self._problem is not None:
            return Answer(None, self._problem)
        if time.monotonic() > self.ends_at:
            sentence = gettext("The page's time was up before this query.")
            return Answer(None, Problem(sentence, "agentdb health"))
        return ask(self.connection, asked, seconds=seconds)


# -- limits

# The current limit by alias: on SQLite the moment of its end, on a server the seconds of each statement. A nested
# query may shorten it but not extend it, and each thread or task has its own.
_limits: ContextVar[Mapping[str, float]] = ContextVar(
    "agentdb_limits", default=MappingProxyType({})
)


@contextmanager
def _limit(connection: BaseDatabaseWrapper, seconds: float | None) -> Iterator[None]:
    """Let no query inside take longer, and extend no limit outside; see ``question``."""
    outer = _limits.get().get(connection.alias)
    if outer is None:
        _check_file(connection)
    # Both kinds of limit belong to the driver's connection, which Django opens with the first query.
    connection.ensure_connection()
    if seconds is None:
        seconds = SECONDS if outer is None else float("inf")
    is_file = connection.vendor == "sqlite"
    limit = time.monotonic() + seconds if is_file else seconds
    # A shorter limit outside stays as it is, so a nested question usually costs no round trip.
    if outer is not None and outer <= limit:
        yield
        return
    # Replaced, not changed: another thread or task may hold the old mapping.
    token = _limits.set({**_limits.get(), connection.alias: limit})
    try:
        if not is_file:
            limited: Any = _server_limit(connection, seconds)
        elif outer is None:
            limited = _file_limit(connection, seconds)
        else:
            limited = nullcontext()  # the handler of the outer limit reads this one
        with limited:
            yield
    finally:
        _limits.reset(token)


def _check_file(connection: BaseDatabaseWrapper) -> None:
    """Raise an error for a missing SQLite file, which connecting would create, or one that is not a whole database."""
    path = sqlite_path(connection)
    # In a transaction the file is open already.
    if path is not None and not connection.in_atomic_block:
        check_sqlite_file(path)


@contextmanager
def _file_limit(connection: BaseDatabaseWrapper, seconds: float) -> Iterator[None]:
    """SQLite has no limit for a statement, but it calls a progress handler, and stops if that returns 1.

    It does so every 2,000 steps of its virtual machine, some 20 microseconds. A wait for a lock makes no steps and has
    a limit of its own.
    """
    # On the driver's own connection: Django's cursor would count these among the queries of the page.
    raw = connection.connection
    alias = connection.alias
    before = raw.execute("PRAGMA busy_timeout").fetchone()[0]
    raw.execute(f"PRAGMA busy_timeout = {min(before, _lock_milliseconds(seconds))}")
    raw.set_progress_handler(
        lambda: int(time.monotonic() > _limits.get()[alias]), 2_000
    )
    try:
        yield
    except DjangoDatabaseError as error:
        # Ctrl-C is raised in the handler, and SQLite takes that for its answer, though the time is not over.
        if classify(error) is Fault.CUT_OFF and time.monotonic() < _limits.get()[alias]:
            raise KeyboardInterrupt from error
        raise
    finally:
        # A connection that was reopened meanwhile never had the limit.
        if connection.connection is raw:
            raw.set_progress_handler(None, 0)
            raw.execute(f"PRAGMA busy_timeout = {before}")


@contextmanager
def _server_limit(connection: BaseDatabaseWrapper, seconds: float) -> Iterator[None]:
    """Set the limits for the session, not the transaction: outside one, SET LOCAL has no effect."""
    limits = {"statement_timeout": int(1000 * seconds)}
    # CockroachDB counts the wait for a lock as part of the statement.
    if connection.vendor == "postgresql":
        limits["lock_timeout"] = _lock_milliseconds(seconds)
    before = _set(connection, limits)
    try:
        yield
    finally:
        if connection.connection is not None:
            # This fails in a failed transaction, whose end resets the limits, and on a lost connection.
            with suppress(DjangoDatabaseError):
                _set(connection, before)


def _lock_milliseconds(seconds: float) -> int:
    return int(1000 * min(seconds / 2, LOCK_SECONDS))


def _set(
    connection: BaseDatabaseWrapper, settings: Mapping[str, object]
) -> dict[str, Any]:
    """Set the session's settings and return their previous values, in one round trip.

    A number without a unit is one of milliseconds.
    """
    olds = ", ".join(f"current_setting('{name}')" for name in settings)
    news = ", ".join(f"set_config('{name}', %s, false)" for name in settings)
    with connection.cursor() as cursor:
        # PostgreSQL evaluates the subquery before it changes the settings: OFFSET 0 keeps the planner from merging the
        # two, which would read the new values.
        cursor.execute(
            f"SELECT o.*, {news} FROM (SELECT {olds} OFFSET 0) AS o",
            [str(value) for value in settings.values()],
        )
        # The old values come first.
        return dict(zip(settings, cursor.fetchone(), strict=False))


def _savepoint(connection: BaseDatabaseWrapper) -> Any:
    # In a transaction (a host project's ATOMIC_REQUESTS), one failed statement would make a server refuse all others of
    # the page. Outside of one, each statement stands alone, and a savepoint would cost two round trips.
    if connection.in_atomic_block:
        return transaction.atomic(using=connection.alias)
    return nullcontext()


# -- explanations

_SENTENCES = {
    Fault.CUT_OFF: (
        gettext_noop("%(place)s did not answer in time, and the query was stopped."),
        "agentdb health",
    ),
    Fault.MISMATCH: (
        gettext_noop("The tables of %(place)s are not as agentdb expects them."),
        "agentdb verifydb",
    ),
}


def explain(connection: BaseDatabaseWrapper, error: Exception) -> Problem:
    """Return the sentence and the next command for an error of a query, without a password.

    If a value cannot be read, finding its row takes another query.
    """
    if isinstance(error, AgentDbError):
        return Problem(str(error))
    said = " ".join(str(error).split())
    if password := connection.settings_dict.get("PASSWORD"):
        said = said.replace(password, "***")
    place = {"place": place_of(connection)}
    fault = classify(error)
    if fault in _SENTENCES:
        sentence, command = _SENTENCES[fault]
        return Problem(gettext(sentence) % place, command, said)
    if _is_unreadable(error):
        # The failed query did not say which row it was. Finding it reads the tables, within the limit of a question.
        with suppress(Unanswered), question(connection):
            for row in unreadable_rows(connection, limit=1, thorough=True):
                return Problem(f"{holds_unreadable(connection)} {row}", "", said)
        sentence = gettext(
            "A value of %(place)s cannot be read, or agentdb has a fault: no row was found that explains it."
        )
        return Problem(sentence % place, "agentdb verifydb", said)
    return Problem(
        describe_failure(connection, error), "agentdb health"
    )  # has the reason


def holds_unreadable(connection: BaseDatabaseWrapper) -> str:
    """Return the sentence that the named rows or values follow."""
    sentence = gettext("A row of %(place)s holds a value that cannot be read.")
    return sentence % {"place": place_of(connection)}


def unreadable_rows(
    connection: BaseDatabaseWrapper, limit: int, *, thorough: bool = False
) -> list[str]:
    """Return a sentence for each value that cannot be read, at most ``limit``.

    ``thorough`` reads all rows; otherwise only the ends of an index are searched, where nearly all of them sort.
    """
    found = unreadable_values(connection, limit, thorough=thorough)
    return [f"{capfirst(str(each))}." for each in islice(found, limit)]


def place_of(connection: BaseDatabaseWrapper) -> str:
    """Return what sentences call the database: its file, or its server with the port and the name."""
    if connection.vendor == "sqlite":
        return repr(str(sqlite_path(connection) or "the database in memory"))
    return server_name(connection.settings_dict)


def _is_unreadable(error: Exception) -> bool:
    """Return whether Python, a driver or a server could not represent a value."""
    if not isinstance(error, DATABASE_ERRORS):
        return True
    return classify(error) in (Fault.UNREADABLE, Fault.BAD_VALUE)
