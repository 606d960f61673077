"""connect() and connect_async(): from a URL to a Db, with or without a Django project around."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from django.apps import apps as django_apps
from django.conf import settings
from django.core.management import CommandError
from django.db import DEFAULT_DB_ALIAS, connections
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.conf import INSTALLED_APPS, URL_VARIABLE, database_from_url, database_url
from agentdb.errors import (
    DatabaseUnavailableError,
    InvalidInputError,
    SchemaMismatchError,
    SchemaOutOfDateError,
)
from agentdb.faults import Fault, classify, is_final
from agentdb.keys import KeyHashes
from agentdb.schema.inspection import sqlite_path
from agentdb.schema.migration_record import migration_names
from agentdb.serving import forking, host, own_apps
from agentdb.serving.adapter import DjangoDb
from agentdb.serving.aio import DEFAULT_MAX_WORKERS, AsyncDb
from agentdb.serving.connections.threads import Threads
from agentdb.sqlite_files import encoding_concern, left_log_concern

_FIRST_DELAY_SECONDS = 0.05
_LONGEST_DELAY_SECONDS = 2.0
_SHORTEST_ATTEMPT_SECONDS = (
    0.5  # a running server gets a chance, whatever the time limit
)

_standalone = False  # whether Django's settings are this module's
_numbers = itertools.count(1)


def connect(
    url: str | None = None,
    *,
    migrate: bool = False,
    timeout_seconds: float = 30.0,
    key_secret: str | None = None,
    apps: Sequence[str] | None = None,
) -> DjangoDb:
    """Open a database and return a ``Db`` on it.

    ``url`` defaults to the environment's ``DATABASE_URL``, then, in a Django project, to its ``default`` database,
    then to the SQLite file ``agentdb.sqlite3`` in the working directory. ``migrate`` brings the schema up to date
    first. A server that is not up yet is retried for ``timeout_seconds``. With ``key_secret``, or else
    ``AGENTDB_KEY_SECRET`` in the environment, API keys are stored as HMAC-SHA256. ``apps``, or else those in
    ``AGENTDB_APPS``, are Django apps of your own, whose tables are in this database and migrated with it.

    Raises ``InvalidInputError`` for a bad URL, ``DatabaseUnavailableError``, ``SchemaOutOfDateError`` if migrations are
    pending, and ``SchemaMismatchError`` if the old server's tables are not adopted yet.
    """
    if not isinstance(timeout_seconds, int | float) or not timeout_seconds >= 0:  # type: ignore[redundant-expr]
        raise InvalidInputError(
            f"timeout_seconds must be 0 or more, not {timeout_seconds!r}."
        )
    KeyHashes(key_secret)  # refuses a bad secret before anything is opened
    names = own_apps.app_names(apps)
    alias, owned = _alias(url, names)

    threads = Threads(alias, owned=owned)
    try:
        _check_file(connections[alias], create=migrate)
        _wait(threads, timeout_seconds)
        _bring_up_to_date(threads, migrate)
    except BaseException:
        threads.close()
        raise
    return DjangoDb(alias, key_secret=key_secret, _threads=threads)


def connect_async(
    url: str | None = None,
    *,
    migrate: bool = False,
    timeout_seconds: float = 30.0,
    key_secret: str | None = None,
    apps: Sequence[str] | None = None,
    max_workers: int = DEFAULT_MAX_WORKERS,
) -> AsyncDb:
    """Return an ``AsyncDb`` that opens the database, like ``connect()``, when it is entered or first used.

    Its calls run in up to ``max_workers`` threads, each with its own connection.
    """
    return AsyncDb.opening(
        lambda: connect(
            url,
            migrate=migrate,
            timeout_seconds=timeout_seconds,
            key_secret=key_secret,
            apps=apps,
        ),
        max_workers=max_workers,
    )


def copy_database(source_url: str, target_url: str) -> dict[str, int]:
    """Copy the four tables to another database, on any engine; return the number of rows of each table.

    The source may be in use; it is read in one snapshot and not changed. The target is migrated first and must have no
    rows. Everything is read back. After an interruption the same call resumes. Raises ``InvalidInputError`` (with the
    table, id and column of values that cannot be copied), ``SchemaOutOfDateError``, ``SchemaMismatchError`` or
    ``DatabaseUnavailableError``.
    """
    for url in (source_url, target_url):
        database_from_url(url)
    configure(source_url)

    from agentdb.moving import copydb

    with temporary_alias(source_url) as source, temporary_alias(target_url) as target:
        return copydb.copy(source, target)


def open_alias(alias: str) -> DjangoDb:
    """Return a ``DjangoDb`` on a configured alias, like ``connect()`` for a URL, without retries.

    Raises ``SchemaOutOfDateError`` if migrations are missing, and creates no file.
    """
    _check_file(connections[alias], create=False)
    threads = Threads(alias)
    threads.ensure_connected()
    _bring_up_to_date(threads, migrate=False)
    return DjangoDb(alias, _threads=threads)


def configure(url: str | None = None) -> str:
    """Configure Django, unless the host has, with the database of ``url`` as ``default``; return the alias of ``url``.

    A host's settings stay as they are, and the ``url`` becomes another alias.
    """
    return _alias(url, own_apps.app_names(None))[0]


def _alias(url: str | None, names: Sequence[str] | None) -> tuple[str, bool]:
    """Return the alias for the URL, and whether agentdb closes it; install the named apps."""
    wanted = names or ()
    # One thread sets Django up. A fork waits for that, because the child could not finish it.
    with forking.opening:
        if not settings.configured and host.SETTINGS_VARIABLE not in os.environ:
            _configure_alone(url, wanted)
            return DEFAULT_DB_ALIAS, True
        check_configured(wanted)
        if url is None and not os.environ.get(URL_VARIABLE) and not _standalone:
            return DEFAULT_DB_ALIAS, False
        if names is None and _standalone:
            wanted = own_apps.installed_names()
        return _add_database(database_url(url), wanted), True


def _configure_alone(url: str | None, names: Sequence[str]) -> None:
    """Configure Django for a program that is not a Django project."""
    global _standalone
    # Refuses what is not an app, before the one time that Django can be configured.
    own_apps.labels_of(names)
    database = _database(database_url(url), names)
    settings.configure(
        DATABASES={DEFAULT_DB_ALIAS: database},
        INSTALLED_APPS=[*INSTALLED_APPS, *names],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        USE_TZ=True,
        TIME_ZONE="UTC",
        LOGGING_CONFIG=None,  # the program's own settings stay
    )
    _standalone = True
    host.set_up()


def _database(url: str, names: Sequence[str]) -> dict[str, Any]:
    """Return the ``DATABASES`` entry of a database that has the tables of these apps."""
    database = database_from_url(url)
    database["AGENTDB"]["apps"] = tuple(names)
    return database


def check_configured(names: Sequence[str]) -> None:
    """Load the apps of an already configured Django, and check that it has what agentdb needs."""
    if not django_apps.ready:
        host.set_up()
    host.check_set_up()
    own_apps.check_installed(names)


def _add_database(url: str, names: Sequence[str] = ()) -> str:
    alias = f"agentdb_{next(_numbers)}"
    database = _database(url, names)
    # Adds Django's defaults.
    connections.configure_settings({DEFAULT_DB_ALIAS: database})
    connections.settings[alias] = database
    return alias


@contextmanager
def temporary_alias(url: str) -> Iterator[str]:
    """Yield a temporary alias for the database of ``url``; Django must be configured."""
    alias = _add_database(url)
    try:
        yield alias
    finally:
        connections[alias].close()
        del connections[alias], connections.settings[alias]


def _check_file(connection: BaseDatabaseWrapper, *, create: bool) -> None:
    """Refuse a SQLite file with UTF-16 texts, and create or refuse a missing one: connections open only what exists."""
    path = sqlite_path(connection)
    if path is None:
        return
    try:
        os.stat(path)
    except PermissionError:
        return  # The error of opening it names the folder.
    except OSError:
        if create:
            if concern := left_log_concern(path):
                raise DatabaseUnavailableError(concern) from None
            with suppress(OSError):  # The error of opening it has the reason.
                path.touch(mode=0o644)
            return
        raise SchemaOutOfDateError(
            f"The database file {str(path)!r} does not exist. Run 'agentdb migrate' to create it.",
            pending=migration_names(),
        ) from None
    if concern := encoding_concern(path) or left_log_concern(path):
        raise DatabaseUnavailableError(concern)


def _wait(threads: Threads, timeout_seconds: float) -> None:
    """Open this thread's connection; retry while a server is not up yet, or another process writes to a SQLite file."""
    engine = threads.engine
    deadline = time.monotonic() + engine.seconds_to_open(timeout_seconds)
    delay = _FIRST_DELAY_SECONDS
    while True:
        try:
            return threads.ensure_connected(
                max(_SHORTEST_ATTEMPT_SECONDS, deadline - time.monotonic())
            )
        except DatabaseUnavailableError as error:
            left = deadline - time.monotonic()
            is_locked = classify(error.__cause__ or error) is Fault.LOCKED
            if left <= 0 or is_final(error) or not (engine.has_server or is_locked):
                raise
            time.sleep(min(delay, left))
            delay = min(delay * 2, _LONGEST_DELAY_SECONDS)


def _bring_up_to_date(threads: Threads, migrate: bool) -> None:
    """Raise the problem with the schema; if ``migrate`` and migrations are missing, first apply them."""
    slot = threads.slot()
    place = threads.engine.describe()
    with slot.operation():
        problem = own_apps.schema_problem(slot.wrapper, place)
        if isinstance(problem, SchemaOutOfDateError) and migrate:
            try:
                own_apps.migrate(threads.alias)
            except CommandError as error:
                raise SchemaMismatchError(str(error)) from error
            problem = own_apps.schema_problem(slot.wrapper, place)
    if problem is not None:
        raise problem
