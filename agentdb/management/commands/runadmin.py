from __future__ import annotations

import json
import os
import subprocess
import sys
from argparse import ArgumentParser
from typing import Any

from django.core.management.base import BaseCommand, CommandError
from django.db import DEFAULT_DB_ALIAS, connections

from agentdb.errors import AgentDbError
from agentdb.inspection import translated_errors
from agentdb.migration_record import pending_migrations


class Command(BaseCommand):
    help = (
        "Serves the admin of one database to this machine. Accounts and logins are kept in a temporary file of their "
        "own: nothing is added to the database, and the superuser it prints is gone when it ends."
    )

    def add_arguments(self, parser: ArgumentParser) -> None:
        parser.add_argument("--database", default=DEFAULT_DB_ALIAS, help="Alias of the database. Default: %(default)s.")
        parser.add_argument("--port", type=int, default=8000, help="Port on 127.0.0.1; 0 takes a free one.")
        parser.add_argument("--read-only", action="store_true", help="The account can look and cannot change.")

    def handle(self, *args: Any, database: str, port: int, read_only: bool, **options: Any) -> None:
        connection = connections[database]
        try:
            with translated_errors(connection):
                pending = pending_migrations(connection)
        except AgentDbError as error:
            raise CommandError(str(error)) from error
        finally:
            connection.close()
        if pending:
            raise CommandError(
                f"The database lacks {len(pending)} migration{'' if len(pending) == 1 else 's'}: "
                f"{', '.join(pending)}. Run 'agentdb migrate'."
            )
        # Another process, because Django's settings cannot be changed in this one; through its standard input,
        # because arguments and environment of a process can be seen by others and a password may be among them.
        settings = {
            "database": {name: connection.settings_dict[name] for name in _KEPT if name in connection.settings_dict},
            "port": port,
            "read_only": read_only,
        }
        environment = {name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"}
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        server = subprocess.Popen(
            [sys.executable, "-m", "agentdb.admin_project.server"], stdin=subprocess.PIPE, text=True, env=environment
        )
        # Open for as long as this process lives: its end tells the server to end.
        assert server.stdin is not None
        with server.stdin:
            server.stdin.write(f"{json.dumps(settings, default=str)}\n")
            server.stdin.flush()
            try:
                code = server.wait()
            except KeyboardInterrupt:
                server.stdin.close()
                code = server.wait()
        if code:
            sys.exit(code)


_KEPT = (
    "ENGINE", "NAME", "USER", "PASSWORD", "HOST", "PORT", "OPTIONS", "CONN_MAX_AGE", "CONN_HEALTH_CHECKS",
    "DISABLE_SERVER_SIDE_CURSORS",
)  # fmt: skip
