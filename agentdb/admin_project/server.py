"""The program that 'runadmin' becomes: an admin on 127.0.0.1 whose accounts live in a temporary file."""

from __future__ import annotations

import json
import secrets
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

from agentdb.errors import DatabaseUnavailableError
from agentdb.schema.inspection import temporary_folder

ADMIN_ALIAS = "admin"
HOST = "127.0.0.1"

_ENDS = (signal.SIGINT, signal.SIGTERM)


class AdminRouter:
    """Sends agentdb's tables to the shown database, and Django's own to the temporary file."""

    def db_for_read(self, model: Any, **hints: Any) -> str:
        return "default" if model._meta.app_label == "agentdb" else ADMIN_ALIAS

    db_for_write = db_for_read

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool:
        return (db == ADMIN_ALIAS) == (app_label != "agentdb")


def main() -> int:
    wanted = json.loads(sys.stdin.readline())
    for number in _ENDS:
        signal.signal(number, _end)
    try:
        made = temporary_folder()
    except DatabaseUnavailableError as error:
        sys.stderr.write(f"{error}\n")
        return 1
    with made as folder:
        _configure(wanted, Path(folder))
        try:
            return _serve(wanted)
        except KeyboardInterrupt:
            return 0
        finally:
            from django.db import connections

            connections.close_all()


def _end(number: int, frame: FrameType | None) -> None:
    for each in _ENDS:  # a second one would interrupt the cleanup
        signal.signal(each, signal.SIG_IGN)
    raise KeyboardInterrupt


def _configure(wanted: dict[str, Any], folder: Path) -> None:
    import django
    from django.conf import settings

    from agentdb.admin_project.settings import (
        ADMIN_APPS,
        LANGUAGES,
        MIDDLEWARE,
        TEMPLATES,
    )
    from agentdb.conf import INSTALLED_APPS

    name = wanted["name"]
    settings.configure(
        SECRET_KEY=secrets.token_urlsafe(64),
        ALLOWED_HOSTS=[f"{name}.localhost", HOST, "localhost"],
        INSTALLED_APPS=[*ADMIN_APPS, *INSTALLED_APPS],
        MIDDLEWARE=["agentdb.admin_project.server.one_name", *MIDDLEWARE],
        TEMPLATES=TEMPLATES,
        LANGUAGES=LANGUAGES,
        ROOT_URLCONF="agentdb.admin_project.urls",
        STATIC_URL="/static/",
        DATABASES={
            "default": wanted["database"],
            ADMIN_ALIAS: {
                "ENGINE": "django.db.backends.sqlite3",
                "NAME": str(folder / "accounts.sqlite3"),
                "OPTIONS": {"transaction_mode": "IMMEDIATE"},
            },
        },
        DATABASE_ROUTERS=["agentdb.admin_project.server.AdminRouter"],
        DEFAULT_AUTO_FIELD="django.db.models.BigAutoField",
        # Cookies belong to a host name, whatever the port. Only this server has this name, so no other gets them.
        SESSION_COOKIE_NAME=f"{name}_session",
        SESSION_COOKIE_SAMESITE="Strict",
        SESSION_EXPIRE_AT_BROWSER_CLOSE=True,
        CSRF_COOKIE_NAME=f"{name}_csrf",
        CSRF_COOKIE_SAMESITE="Strict",
        CSRF_COOKIE_AGE=None,  # the login ends with the browser
        CSRF_COOKIE_HTTPONLY=True,
        CSRF_FAILURE_VIEW="agentdb.admin_project.site.csrf_failure",
        TIME_ZONE="UTC",
        LOGGING=_LOGGING,
        AGENTDB_AUDIT_LOG=wanted["audit_log"],
        AGENTDB_ADMIN_LOG=False,
    )
    django.setup()
    from django.contrib import admin
    from django.contrib.auth.models import Group, User

    admin.site.unregister([User, Group])  # they vanish when this ends


# The audit log and errors, a line each.
_LOGGING = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"line": {"format": "{asctime} {levelname} {message}", "style": "{"}},
    "handlers": {"terminal": {"class": "logging.StreamHandler", "formatter": "line"}},
    "loggers": {
        "agentdb.audit": {"handlers": ["terminal"], "level": "INFO"},
        "agentdb.console": {"handlers": ["terminal"], "level": "WARNING"},
        "django.request": {"handlers": ["terminal"], "level": "ERROR"},
        "django.server": {"handlers": ["terminal"], "level": "ERROR"},
    },
}


def one_name(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Middleware: redirect from 127.0.0.1, which all local servers share, to this server's own host name."""
    from django.conf import settings
    from django.http import HttpResponseRedirect

    name = settings.ALLOWED_HOSTS[0]

    def respond(request: Any) -> Any:
        # The port is the browser's, which differs from the server's behind a tunnel.
        host, colon, port = request.get_host().partition(":")
        if host == name:
            return get_response(request)
        path = request.get_full_path()
        return HttpResponseRedirect(f"http://{name}{colon}{port}{path}")

    return respond


def _serve(wanted: dict[str, Any]) -> int:
    from django.core.servers.basehttp import ThreadedWSGIServer, WSGIRequestHandler
    from django.core.wsgi import get_wsgi_application

    port, user, read_only = wanted["port"], wanted["user"], wanted["read_only"]
    try:
        server = ThreadedWSGIServer((HOST, port), WSGIRequestHandler)
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", "it must be from 0 to 65535")
        sys.stderr.write(
            f"Port {port} of {HOST} cannot be used: {reason}. Name another one with --port.\n"
        )
        return 1
    with server:
        password = _make_account(user, read_only=read_only)
        server.set_app(get_wsgi_application())
        kind = "cannot change anything" if read_only else "is gone when this ends"
        sys.stdout.write(
            f"The admin is at http://{wanted['name']}.localhost:{server.server_port}/admin/\n"
            f"  user name  {user}\n  password   {password}\n"
            f"This account {kind}. Only this machine can reach the address. Stop with Ctrl-C.\n"
        )
        sys.stdout.flush()
        server.serve_forever()
    return 0


def make_account_tables(alias: str) -> None:
    """Create the tables of accounts, logins and actions, and the permissions on agentdb's models."""
    from django.core.management import call_command
    from django.core.management.commands.migrate import Command as Migrate

    # Django's own migrate: agentdb's would check agentdb's tables, which the router leaves to the other database.
    call_command(Migrate(), database=alias, interactive=False, verbosity=0)


def _make_account(name: str, *, read_only: bool) -> str:
    from django.contrib.auth.models import Permission, User

    make_account_tables(ADMIN_ALIAS)
    password = secrets.token_urlsafe(12)
    if read_only:
        user = User.objects.create_user(name, password=password, is_staff=True)
        user.user_permissions.set(
            Permission.objects.filter(
                content_type__app_label="agentdb", codename__startswith="view_"
            )
        )
    else:
        User.objects.create_superuser(name, password=password)
    return password


if __name__ == "__main__":
    sys.exit(main())
