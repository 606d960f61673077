from __future__ import annotations

import sys
import time
from typing import Any

from django.core.management import CommandError
from django.core.management.base import CommandParser
from django.core.management.commands import migrate
from django.db import (
    DatabaseError,
    IntegrityError,
    OperationalError,
    connections,
    router,
)
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.migrations.exceptions import MigrationSchemaMissing
from django.db.migrations.executor import MigrationExecutor

from agentdb.adoption.fake_initial import refuse_unadopted
from agentdb.adoption.obstacles import OLD_COLUMNS
from agentdb.adoption.way_back import back_up, leads_back, refuse_others
from agentdb.checks import adoption_left_to_command
from agentdb.errors import DatabaseUnavailableError
from agentdb.faults import Fault, classify, describe_failure
from agentdb.management.database_command import AgentDbCommand
from agentdb.operations import make_old_tables
from agentdb.schema import table_names
from agentdb.schema.inspection import (
    check_sqlite_file,
    check_target_file,
    sqlite_path,
    translated_errors,
)
from agentdb.schema.migration_lock import migration_lock
from agentdb.schema.migration_record import pending_migrations
from agentdb.schema.queries import count_rows, lifted_limits
from agentdb.serving import own_apps

_WAITING = "Another process is migrating this database; waiting for it."
_PAUSE_SECONDS = 0.05


class Command(AgentDbCommand, migrate.Command):
    """Django's migrate, for one process at a time, which refuses tables of another shape."""

    refused = 1  # as Django's own, which deployments know

    def add_arguments(self, parser: CommandParser) -> None:
        super().add_arguments(parser)
        parser.add_argument(
            "--force",
            action="store_true",
            help="Go back to the old server's tables although other connections are open.",
        )
        parser.add_argument(
            "--no-backup",
            action="store_true",
            help="Do not copy a SQLite file before going back to the old server's.",
        )

    def check(self, *args: Any, **options: Any) -> Any:
        # handle() reports agentdb.E001 itself, unless --fake-initial is given.
        with adoption_left_to_command():
            return super().check(*args, **options)

    def handle(self, *args: Any, **options: Any) -> None:
        connection = connections[options["database"]]
        only_looks = options["plan"] or options["check_unapplied"]
        # Connecting would create an empty file at a misspelt path.
        path = sqlite_path(connection)
        if path is not None:
            check = check_sqlite_file if only_looks else check_target_file
            check(path)
        self.name_database(connection.alias)
        # Neither waits for another process, nor takes the lock, which a role that may only read could not.
        if only_looks or not self._has_work(connection, options):
            super().handle(*args, **options)
            return
        try:
            self._prepare_and_migrate(connection, args, options)
        except DatabaseError as error:
            cause = _cause(error)
            if not _needs_an_operator(cause):
                raise
            failure = describe_failure(connection, cause)
            said = f"{failure} Migrations that were done stay."
            # connect(migrate=True) raises an AgentDbError as it is; refused rows do not mean that the database is
            # unavailable.
            if isinstance(cause, IntegrityError):
                raise CommandError(said) from cause
            raise DatabaseUnavailableError(said) from cause

    def _has_work(
        self, connection: BaseDatabaseWrapper, options: dict[str, Any]
    ) -> bool:
        """Whether agentdb's tables, or those that are migrated with them, may change.

        The usual start of a service has none, and does not wait for a process that has.
        """
        is_about_agentdb = (
            options["app_label"] in (None, "agentdb")
            and not options["prune"]
            and connection.vendor in ("sqlite", "postgresql", "cockroachdb")
            and router.allow_migrate(connection.alias, "agentdb")
        )
        if not is_about_agentdb:
            return False
        with translated_errors(connection):
            _open(connection)
        if options["migration_name"] is not None:
            return True
        with translated_errors(connection):
            if options["app_label"] is None:
                own_apps.pending_migrations(connection)  # refuses an app without any
            if pending_migrations(connection):
                return True
        if options["app_label"] is not None:
            return False
        # Apps that live beside agentdb's, with apps= or in a project.
        executor = MigrationExecutor(connection)
        newest = executor.loader.graph.leaf_nodes()
        return bool(executor.migration_plan(newest))

    def _prepare_and_migrate(
        self,
        connection: BaseDatabaseWrapper,
        args: Any,
        options: dict[str, Any],
    ) -> None:
        """Migrate with the lock, after the checks that only the holder of the lock can make."""
        # On the way back an open connection of this version would write native timestamps into text columns.
        goes_back = not options["fake"] and leads_back(
            connection, options["migration_name"]
        )
        if goes_back and not options["force"]:
            refuse_others(connection)
        # The checks come after the lock: the process that had it may have migrated meanwhile.
        with (
            lifted_limits(connection, self.progress.say),  # it is idle while it waits
            migration_lock(connection, lambda: self.progress.say(_WAITING)),
        ):
            # --fake changes the record alone, and is how an operator mends it: nothing of this is in its way.
            if not options["fake"]:
                self._refuse_loss(connection, options)
            if goes_back and not options["no_backup"]:
                back_up(connection, self.progress)
            super().handle(*args, **options)
            if not options["fake"]:
                make_old_tables(connection)

    def _refuse_loss(
        self, connection: BaseDatabaseWrapper, options: dict[str, Any]
    ) -> None:
        """Refuse tables of an old server that are not adopted, and 'zero' on tables with rows."""
        if options["migration_name"] == "zero":
            self._confirm_loss(connection)
            return
        with translated_errors(connection):
            refuse_unadopted(connection, fake_initial=options["fake_initial"])

    def interrupted(self) -> str:
        return "Migrations that were done stay; 'agentdb migrate' goes on from there."

    def _confirm_loss(self, connection: BaseDatabaseWrapper) -> None:
        """Ask before dropping tables with rows: somebody may mean the way back, which differs by one word."""
        with_rows = []
        for name in sorted(OLD_COLUMNS.keys() & table_names(connection)):
            if rows := count_rows(connection, name):
                with_rows.append(f"{name} ({rows:,})")
        if not with_rows:
            return
        listed = ", ".join(with_rows)
        loss = f"'migrate agentdb zero' drops the tables with their rows: {listed}."
        # Only a person at a terminal is asked. A script's standard input may be anything, and "yes" among it.
        if sys.stdin.isatty() and self.stderr.isatty():
            prompt = f"{loss} Type 'yes' to drop them: "
            self.stderr.write(prompt, style_func=str, ending="")
            self.stderr.flush()
            if sys.stdin.readline().strip() == "yes":
                return
        raise CommandError(
            f"{loss} Nothing was changed. To go back to the old server and lose nothing, run 'agentdb migrate agentdb "
            "0001'. To drop them, run 'agentdb backup FILE', delete the rows, and run the command again."
        )


def _open(connection: BaseDatabaseWrapper) -> None:
    """Open the connection; wait for another process that writes to a new SQLite file."""
    # For as long as SQLite waits elsewhere: it does not when it gives the file a write-ahead log.
    ends = time.monotonic() + connection.settings_dict["OPTIONS"].get("timeout", 5.0)
    while True:
        try:
            connection.ensure_connection()
            return
        except OperationalError as error:
            if classify(error) is not Fault.LOCKED or time.monotonic() > ends:
                raise
        time.sleep(_PAUSE_SECONDS)


def _cause(error: DatabaseError) -> BaseException:
    """The reason why Django could not create its own table, or the error itself."""
    # Django replaces the driver's error by its own text and chains it as the context, not as the cause.
    if isinstance(error, MigrationSchemaMissing) and error.__context__:
        return error.__context__
    return error


def _needs_an_operator(error: BaseException) -> bool:
    """Return whether an operator can fix the error: rights, space, state or rows, not a migration's code."""
    if isinstance(error, (OperationalError, IntegrityError)):
        return True
    return classify(error) is Fault.FORBIDDEN
