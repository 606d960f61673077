"""The console script: Django's commands for one database URL, without a project."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from agentdb.conf import DEFAULT_URL, URL_VARIABLE
from agentdb.errors import AgentDbError, InvalidInputError
from agentdb.management.output import occupy_closed_descriptors, write_any_character
from agentdb.serving.host import SETTINGS_VARIABLE, cannot_load
from agentdb.serving.own_apps import APPS_VARIABLE, app_names

if TYPE_CHECKING:
    from django.db.backends.base.base import BaseDatabaseWrapper

# Django's commands that are useful with a database but without a project. Not among them are flush and loaddata, which
# change the tables without the rules of Db, and all that needs a project's folder.
_DJANGO_COMMANDS = (
    "check",
    "dbshell",
    "inspectdb",
    "makemigrations",
    "shell",
    "showmigrations",
    "sqlmigrate",
)

_OPTIONS = """
options of agentdb itself:
  --url URL             The database, as postgresql://host/name or sqlite:///file; DATABASE_URL otherwise.
  -q, --quiet           Say nothing but results and errors.
"""

# Django's commands that report what is in a database, and do not name it.
_ONLY_READ = ("check", "inspectdb", "showmigrations")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code, unless the command ends the program itself."""
    arguments = list(sys.argv[1:] if argv is None else argv)
    # Before anything opens a file or writes a character.
    occupy_closed_descriptors()
    write_any_character()
    try:
        _answer(arguments)
        _say("")
        return 0
    except AgentDbError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    except KeyboardInterrupt:
        sys.stderr.write("Interrupted.\n")
        return 130
    except OSError as error:
        # The disk is full, or the reader, such as head, has closed the pipe. Without this, the interpreter would fail
        # when it flushes the rest, with a traceback and an exit code of its own.
        if error.filename is not None:
            raise  # a file's, not the output's
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        if not isinstance(error, BrokenPipeError):
            sys.stderr.write(f"agentdb: {error}\n")
        return 1


def _answer(arguments: list[str]) -> None:
    options = _take_options(arguments)
    if arguments[:1] in (["--version"], ["version"]):
        _say(f"{_versions()}\n")
        return
    if os.environ.get("NO_COLOR") or os.environ.get("TERM") == "dumb":
        os.environ["DJANGO_COLORS"] = "nocolor"  # Django knows neither variable
    _configure(options, arguments)
    # Django reads the words to complete from the environment; docs/commands.md shows how to enable it.
    if "DJANGO_AUTO_COMPLETE" in os.environ:
        _execute([])
    elif not arguments or arguments in (["help"], ["--help"], ["-h"]):
        _say(_overview())
    else:
        if options.quiet:
            # Right behind the command: an action, as in "apikey list", has its own options.
            arguments.insert(1, "--verbosity=0")
        _run(arguments)


def _say(text: str) -> None:
    """Write the text to the end."""
    print(text, end="", flush=True)  # noqa: T201 (it flushes, too)


def _run(arguments: list[str]) -> None:
    # Help needs neither a file nor a server.
    wants_help = arguments[0] == "help" or "-h" in arguments or "--help" in arguments
    if not wants_help and not os.environ.get(SETTINGS_VARIABLE):
        _look_first(arguments)
    _execute(arguments)
    if wants_help:
        _say(_OPTIONS)


def _take_options(arguments: list[str]) -> argparse.Namespace:
    """Remove the options of agentdb itself, and those of Django about settings, from anywhere before ``--``."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--url")
    parser.add_argument("-q", "--quiet", action="store_true")
    parser.add_argument("--settings")
    parser.add_argument("--pythonpath")
    options, arguments[:] = parser.parse_known_args(arguments)
    return options


def _configure(options: argparse.Namespace, arguments: Sequence[str]) -> None:
    from django.core.management.base import handle_default_options

    from agentdb.serving.opening import check_configured, configure

    # As in Django, --settings is from here on what the variable is.
    handle_default_options(options)
    settings = os.environ.get(SETTINGS_VARIABLE)
    if not settings:
        # A console script does not look for modules in the working directory; the apps may be there, as with manage.py.
        if os.environ.get(APPS_VARIABLE):
            sys.path.insert(0, os.getcwd())
        # It needs no database, and none may be up where migrations are written.
        is_needed = arguments[:1] != ["makemigrations"]
        configure(options.url if is_needed else "sqlite://:memory:")
        _choose_commands()
        return
    if options.url is not None:
        raise InvalidInputError(
            f"Both --url and the Django settings {settings!r} say which database is meant. "
            f"Leave out --url, or unset {SETTINGS_VARIABLE}."
        )
    # Like manage.py: the settings module may be in the working directory.
    sys.path.insert(0, os.getcwd())
    check_configured(app_names(None) or ())


def _choose_commands() -> None:
    """Take away the commands of Django that are of no use here, some of which empty the database without a question."""
    from django.core.management import get_commands

    # Django makes this dictionary once, and looks every command up in it.
    commands = get_commands()
    for name, app in list(commands.items()):
        if app == "django.core" and name not in _DJANGO_COMMANDS:
            del commands[name]


def _look_first(arguments: Sequence[str]) -> None:
    """Refuse a SQLite file that a command of Django's cannot work on, and name the database."""
    command = arguments[0]
    if command not in _DJANGO_COMMANDS or command == "makemigrations":
        return
    from django.db import connections

    from agentdb.serving.connections import describe

    connection = connections["default"]
    _check_file(connection, command)
    if command in _ONLY_READ and "--verbosity=0" not in arguments:
        sys.stderr.write(f"{describe(connection)}.\n")


def _check_file(connection: BaseDatabaseWrapper, command: str) -> None:
    from agentdb.schema.inspection import check_sqlite_file, sqlite_path

    path = sqlite_path(connection)
    if path is None:
        return
    # A missing file is a misspelt path, and SQLite would create it. There, and in an empty file, it makes a new
    # database, and deletes the log of one that was moved away. A damaged file is for dbshell to mend.
    is_there = os.path.isfile(path) and os.path.getsize(path)
    if command == "sqlmigrate" and not is_there:
        connection.settings_dict["NAME"] = ":memory:"  # the SQL is the same
    elif command in _ONLY_READ or not is_there:
        check_sqlite_file(path)


def _execute(arguments: Sequence[str]) -> None:
    """Run the command; says errors that Django's own commands do not handle."""
    from django.core.exceptions import ImproperlyConfigured
    from django.core.management import execute_from_command_line
    from django.db import Error, connections

    run: Callable[[list[str]], None] = execute_from_command_line
    if arguments[:1] == ["makemigrations"] and not os.environ.get(SETTINGS_VARIABLE):
        from agentdb.management.own_migrations import Command

        run = Command().run_from_argv
    try:
        run(["agentdb", *arguments])
    except SystemExit as end:
        # Django's --help ends like this as well, and the options of agentdb itself are to follow.
        if end.code:
            raise
    except ImproperlyConfigured as error:
        if "--traceback" in arguments or os.environ.get(SETTINGS_VARIABLE):
            raise
        # The settings are agentdb's own, so only the engine's driver can be missing.
        engine = connections.settings["default"]["ENGINE"]
        raise AgentDbError(cannot_load(engine, error)) from error
    except Error as error:
        if "--traceback" in arguments:
            raise
        # The driver's first line says what happened; others repeat it or quote SQL.
        reason = str(error).strip().partition("\n")[0]
        raise AgentDbError(
            f"agentdb {arguments[0]}: the database refused: {reason}"
        ) from error


def _versions() -> str:
    import platform
    from importlib.metadata import version

    return f"agentdb {version('django-agentdb')} (Django {version('django')}, Python {platform.python_version()})"


def _overview() -> str:
    from django.core.management import get_commands, load_command_class

    names = [name for name, app in sorted(get_commands().items()) if app == "agentdb"]
    width = max(map(len, names))
    commands = ""
    for name in names:
        sentence, _, _ = load_command_class("agentdb", name).help.partition(". ")
        commands += f"  {name:<{width}}  {sentence.rstrip('.')}\n"
    return f"""\
agentdb [--url URL] COMMAND …

{commands}
Django's commands work too, among them {", ".join(_DJANGO_COMMANDS)}.
'agentdb COMMAND --help' says more about one.

The database is that of --url, or of {URL_VARIABLE} in the environment; without both it is {DEFAULT_URL}.
With {SETTINGS_VARIABLE} it is that project's.
"""


if __name__ == "__main__":
    sys.exit(main())
