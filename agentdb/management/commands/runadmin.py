from __future__ import annotations

import getpass
import json
import os
import secrets
import sys
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any, NoReturn

from django.core.management.base import CommandError, CommandParser
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

import agentdb
from agentdb.management.database_command import DatabaseCommand
from agentdb.schema.inspection import (
    inspecting,
    kept_commands,
    sqlite_path,
    translated_errors,
)
from agentdb.schema.migration_record import schema_problem
from agentdb.serving.connections import describe
from agentdb.sqlite_files import file_uri


class Command(DatabaseCommand):
    help = (
        "Serves the admin of one database to this machine. Accounts and logins are kept in a temporary file of their "
        "own: nothing is added to the database, and the superuser it prints is gone when it ends."
    )

    requires_system_checks = "__all__"
    refused = 1

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--port",
            type=int,
            default=8000,
            help="Port on 127.0.0.1; 0 takes a free one.",
        )
        parser.add_argument(
            "--read-only",
            action="store_true",
            help="The account cannot change anything, and a SQLite file is opened read-only.",
        )
        parser.add_argument(
            "--user",
            metavar="NAME",
            help="Who the audit log names; the account that runs the command unless given.",
        )
        parser.add_argument(
            "--audit-log",
            metavar="FILE",
            help="Append who did what, one line of JSON each, to this file.",
        )

    def handle(
        self,
        *args: Any,
        database: str,
        port: int,
        read_only: bool,
        user: str | None,
        audit_log: str | None,
        **options: Any,
    ) -> None:
        user = _user(user)
        # Both before the server starts: in it, the first page would be an error.
        _check_migrated(database)
        if audit_log is not None:
            audit_log = os.path.abspath(audit_log)
            _check_audit_log(audit_log)
        configured = connections[database]
        path = sqlite_path(configured)
        if path is not None and not os.access(path, os.W_OK):
            read_only = True
        settings = {
            "database": _served(configured, read_only=read_only),
            # A host name of its own, because cookies are shared between ports, and random, because a cookie of an old
            # server is not to open a new one.
            "name": f"agentdb-{secrets.token_hex(3)}",
            "port": port,
            "user": user,
            "read_only": read_only,
            "audit_log": audit_log,
        }
        _become_server(settings)


def _become_server(settings: dict[str, Any]) -> NoReturn:
    """Replace this program by the server: Django's settings cannot be changed in this one.

    It reads them from standard input, because other users can see a process's arguments and environment, and the
    settings may have a password.
    """
    environment = dict(os.environ)
    # The project's settings are not the server's; its paths come as arguments, in another order.
    environment.pop("DJANGO_SETTINGS_MODULE", None)
    environment.pop("PYTHONPATH", None)
    # A pipe holds far more than the settings, so the write does not wait for the server, which reads later. All other
    # descriptors of this process are closed on the way, as Python opens them.
    reading, writing = os.pipe()
    os.write(writing, f"{json.dumps(settings, default=str)}\n".encode())
    os.close(writing)
    os.dup2(reading, 0)
    # -P, and own paths last: no file in the working directory can shadow a library module. That directory is among them
    # only if agentdb itself is there.
    home = str(Path(agentdb.__file__).resolve().parents[1])
    paths = [path for path in sys.path if path not in ("", os.getcwd(), home)]
    arguments = [sys.executable, "-P", "-c", _START, *paths, home]
    os.execve(sys.executable, arguments, environment)


def _check_migrated(database: str) -> None:
    """Raise what ``connect()`` would, with the next command, unless the tables are those of this version."""
    configured = connections[database]
    looking: Any = nullcontext(configured)  # in autocommit, so that a query may fail
    if configured.vendor == "sqlite":
        looking = inspecting(database)  # creates no file
    with translated_errors(configured), looking as connection:
        problem = schema_problem(connection, describe(configured))
    configured.close()
    if problem is not None:
        raise problem


_START = (
    "import sys; sys.path += [each for each in sys.argv[1:] if each not in sys.path]; "
    "from agentdb.admin_project.server import main; sys.exit(main())"
)


def _served(connection: BaseDatabaseWrapper, *, read_only: bool) -> dict[str, Any]:
    """Return the settings of the shown database: with a short timeout, and without changes to its file."""
    options = dict(connection.settings_dict["OPTIONS"])
    settings = {
        **connection.settings_dict,
        # The server has neither the project's apps nor its transactions, and agentdb's timestamps are in UTC.
        "AGENTDB": {},
        "ATOMIC_REQUESTS": False,
        "AUTOCOMMIT": True,
        "TIME_ZONE": None,
        "OPTIONS": options,
    }
    path = sqlite_path(connection)
    if path is None:
        # A page, unlike a service's start, has a person waiting.
        options["connect_timeout"] = _CONNECT_SECONDS
        return settings
    options["init_command"] = ";".join(kept_commands(connection))
    options["timeout"] = _LOCK_SECONDS
    # BEGIN IMMEDIATE, as agentdb's settings say, asks for the write lock, which a read-only file refuses.
    if read_only:
        options.pop("transaction_mode", None)
        settings["NAME"] = _read_only_name(path)
    return settings


def _read_only_name(path: Path) -> str:
    """Return the URI that opens the file without a chance to change it."""
    name = file_uri(path, "mode=ro")
    # If no index of the write-ahead log can be made, nobody can be writing to the file either.
    return name if os.access(path.parent, os.W_OK) else f"{name}&immutable=1"


def _user(asked: str | None) -> str:
    """Return who the audit log names, the account's owner if nobody was asked for."""
    if asked is None:
        try:
            return getpass.getuser()
        except (OSError, KeyError):  # a container may run as an account without a name
            return "admin"
    if not asked.strip() or len(asked) > _LONGEST_USER or not asked.isprintable():
        raise CommandError(
            f"--user must be a name of at most {_LONGEST_USER} printable characters, not {asked!r}."
        )
    return asked


def _check_audit_log(path: str) -> None:
    """Raise ``CommandError`` unless lines can be appended to the file."""
    # Opened as the server will open it, because permissions alone do not tell: a full disk, a read-only mount.
    private = partial(os.open, mode=0o600)
    try:
        with open(path, "a", opener=private):
            pass
    except OSError as error:
        raise CommandError(
            f"The audit log {path!r} cannot be written: {error.strerror}."
        ) from error


# A page is shown within five seconds, and says so if another process keeps the file locked.
_LOCK_SECONDS = 3.0
_LONGEST_USER = 150  # the limit of Django's table of accounts
_CONNECT_SECONDS = 5
