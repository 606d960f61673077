from __future__ import annotations

import getpass
import json
import os
import re
import secrets
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote

from django.core.management.base import CommandError, CommandParser
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

import agentdb
from agentdb.adoption.shapes import unadopted
from agentdb.management.database_command import DatabaseCommand
from agentdb.schema.inspection import inspecting, sqlite_path, translated_errors
from agentdb.schema.migration_record import pending_migrations
from agentdb.wording import counted


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
            _check_audit_log(audit_log)
        configured = connections[database]
        path = sqlite_path(configured)
        read_only = read_only or (path is not None and not os.access(path, os.W_OK))
        # Another process, because Django's settings cannot be changed in this one. It reads them from standard input:
        # other users can see a process's arguments and environment, and the settings may have a password.
        settings = {
            "database": _served(configured, read_only=read_only),
            "name": _name(configured),
            "port": port,
            "user": user,
            "read_only": read_only,
            "audit_log": audit_log and os.path.abspath(audit_log),
        }
        if code := _run(settings):
            sys.exit(code)


def _run(settings: dict[str, Any]) -> int:
    """Serve in another process until it ends or is interrupted, and return its exit code."""
    environment = {
        name: value
        for name, value in os.environ.items()
        # The project's settings are not the server's; its paths come as arguments, in another order.
        if name not in ("DJANGO_SETTINGS_MODULE", "PYTHONPATH")
    }
    server = subprocess.Popen(
        # -P, and own paths last: no file in the working directory can shadow a library module.
        [sys.executable, "-P", "-c", _START, *_module_paths()],
        stdin=subprocess.PIPE,
        text=True,
        env=environment,
    )
    # The pipe stays open until this process ends, which tells the server to end.
    assert server.stdin is not None
    with server.stdin:
        server.stdin.write(f"{json.dumps(settings, default=str)}\n")
        server.stdin.flush()
        try:
            code = server.wait()
        except KeyboardInterrupt:
            # The terminal sent it to the server as well, unless a program did, and to this process alone.
            server.stdin.close()
            code = server.wait()
    return code


def _check_migrated(database: str) -> None:
    """Raise ``CommandError`` with the next command unless the tables are those of this version."""
    try:
        with _looked_at(database) as connection:
            pending = pending_migrations(connection)
            shape = unadopted(connection) if pending else None
    finally:
        connections[database].close()
    if shape is not None:
        raise CommandError(
            f"The database has tables of the old server that are not adopted yet: {shape.description}. Run "
            "'agentdb baselinedb --check' to see what adopting them does, then 'agentdb baselinedb'."
        )
    if pending:
        raise CommandError(
            f"The database lacks {counted(len(pending), 'migration')}: "
            f"{', '.join(pending)}. Run 'agentdb migrate'."
        )


_KEPT = (
    "ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS", "CONN_MAX_AGE", "CONN_HEALTH_CHECKS",
    "DISABLE_SERVER_SIDE_CURSORS",
)  # fmt: skip


@contextmanager
def _looked_at(alias: str) -> Iterator[BaseDatabaseWrapper]:
    """Yield a connection that creates and changes no file; on a server in autocommit, so that a query may fail."""
    configured = connections[alias]
    if configured.vendor == "sqlite":
        with inspecting(alias) as connection:
            yield connection
        return
    with translated_errors(configured):
        yield configured


_START = (
    "import sys; sys.path += [each for each in sys.argv[1:] if each not in sys.path]; "
    "from agentdb.admin_project.server import main; sys.exit(main())"
)


def _module_paths() -> list[str]:
    """Return the module paths of this process, without the working directory unless agentdb itself is there."""
    home = str(Path(agentdb.__file__).resolve().parent.parent)
    here = os.getcwd()
    paths = [os.path.abspath(each) for each in sys.path if each]
    return [*(each for each in paths if each not in (here, home)), home]


def _served(connection: BaseDatabaseWrapper, *, read_only: bool) -> dict[str, Any]:
    """Return the settings of the shown database: with a short timeout, and without changes to its file."""
    settings = {
        name: connection.settings_dict[name]
        for name in _KEPT
        if name in connection.settings_dict
    }
    options = settings["OPTIONS"] = dict(settings.get("OPTIONS") or {})
    path = sqlite_path(connection)
    if connection.vendor != "sqlite":
        asked = int(options.get("connect_timeout", 0))
        # 0 would wait forever.
        # A page, unlike a service's start, has a person waiting.
        quick = min(asked, _CONNECT_SECONDS) if asked > 0 else _CONNECT_SECONDS
        options["connect_timeout"] = quick
    elif path is not None:
        commands = [each.strip() for each in options.pop("init_command", "").split(";")]
        # The file keeps its journal mode.
        kept = [each for each in commands if each and "journal_mode" not in each]
        options |= {"timeout": _LOCK_SECONDS, "init_command": "; ".join(kept)}
        # BEGIN IMMEDIATE, as agentdb's settings say, asks for the write lock, which a read-only file refuses.
        if read_only:
            options.pop("transaction_mode", None)
            settings["NAME"] = _read_only_name(path)
    return settings


def _read_only_name(path: Path) -> str:
    name = f"file:{quote(str(path.absolute()))}?mode=ro"
    # If no index of the write-ahead log can be made, nobody can be writing to the file either.
    return name if os.access(path.parent, os.W_OK) else f"{name}&immutable=1"


def _name(connection: BaseDatabaseWrapper) -> str:
    """Return a host name of its own for this server, because cookies are shared between ports."""
    path = sqlite_path(connection)
    called = path.stem if path is not None else str(connection.settings_dict["NAME"])
    readable = (
        re.sub(r"[^a-z0-9]+", "-", called.lower()).strip("-")[:30].strip("-")
        or "agentdb"
    )
    # Random as well: two servers may show databases of one name, and a cookie of an old one is not to open a new one.
    return f"{readable}-{secrets.token_hex(3)}"


def _user(asked: str | None) -> str:
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
    # Opened as the server will open it, because permissions alone do not tell: a full disk, a read-only mount.
    try:
        with open(path, "a"):
            pass
    except OSError as error:
        raise CommandError(
            f"The audit log {path!r} cannot be written: {error.strerror}."
        ) from error


_LOCK_SECONDS = 3.0
_LONGEST_USER = 150  # the limit of Django's table of accounts
_CONNECT_SECONDS = 5
