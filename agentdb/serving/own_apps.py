"""A program's own Django apps beside agentdb: finds, checks and migrates them."""

from __future__ import annotations

import os
from collections.abc import Sequence

from django.apps import AppConfig
from django.apps import apps as django_apps
from django.core.management import call_command
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import AgentDbError, InvalidInputError, SchemaOutOfDateError
from agentdb.schema import migration_record
from agentdb.schema.migration_lock import migration_lock
from agentdb.schema.queries import lifted_limits
from agentdb.serving.host import in_one_line

APPS_VARIABLE = "AGENTDB_APPS"


def app_names(apps: Sequence[str] | None) -> list[str] | None:
    """Return the names in ``apps``, or else those in ``AGENTDB_APPS``; None without either."""
    if apps is None:
        words = os.environ.get(APPS_VARIABLE, "").split(",")
        names = [word.strip() for word in words if word.strip()]
        return names or None
    is_list = isinstance(apps, list | tuple)
    if not is_list or not all(isinstance(name, str) and name.strip() for name in apps):  # type: ignore[redundant-expr]
        raise InvalidInputError(
            f"apps must be a list of the names of Django apps, not {apps!r}."
        )
    return list(apps)


def check_installed(names: Sequence[str]) -> None:
    """Raise ``InvalidInputError`` for an app that is not installed in this process."""
    missing = [
        name for name in names if not django_apps.is_installed(_config(name).name)
    ]
    if missing:
        listed = ", ".join(map(repr, missing))
        raise InvalidInputError(
            f"Django was set up in this process without {listed}, and it loads apps only once. In a project, add what "
            "is missing to INSTALLED_APPS; in other programs, name all apps in the first connect(), or in "
            f"{APPS_VARIABLE}."
        )


def installed_names() -> list[str]:
    """Return the names of all installed apps except agentdb."""
    return [
        config.name
        for config in django_apps.get_app_configs()
        if config.name != "agentdb"
    ]


def labels_of(names: Sequence[str]) -> list[str]:
    """Return the apps' labels; ``InvalidInputError`` names one that cannot be loaded."""
    return [_config(name).label for name in names]


def schema_problem(connection: BaseDatabaseWrapper, place: str) -> AgentDbError | None:
    """Return why agentdb or the database's apps cannot work on the tables, with the command to run."""
    problem = migration_record.schema_problem(connection, place)
    if problem is not None:
        return problem
    pending = tuple(pending_migrations(connection))
    if not pending:
        return None
    names = _apps_of(connection)
    return SchemaOutOfDateError(
        f"{place} lacks the migrations {', '.join(pending)}. Run 'agentdb migrate' with "
        f"{APPS_VARIABLE}={','.join(names)}.",
        pending=pending,
    )


def migrate(alias: str) -> None:
    """Apply the missing migrations of agentdb and the database's apps; one process does so while the others wait."""
    migration_record.migrate(alias)
    connection = connections[alias]
    if not _apps_of(connection):
        return
    with lifted_limits(connection), migration_lock(connection):
        pending = pending_migrations(connection)
        labels = {migration.partition(".")[0] for migration in pending}
        for label in sorted(labels):
            call_command(
                "migrate", label, database=alias, interactive=False, verbosity=0
            )


def _apps_of(connection: BaseDatabaseWrapper) -> tuple[str, ...]:
    """Return the names that came with the URL; none for a host's own database."""
    options = connection.settings_dict.get("AGENTDB", {})
    apps: tuple[str, ...] = options.get("apps", ())
    return apps


def pending_migrations(connection: BaseDatabaseWrapper) -> list[str]:
    """Return the missing migrations of the database's apps, in order, as ``label.name``.

    Raises ``InvalidInputError`` for an app that has models and no migrations.
    """
    labels = labels_of(_apps_of(connection))
    if not labels:
        return []
    from django.db.migrations.executor import MigrationExecutor

    executor = MigrationExecutor(connection)
    for label in executor.loader.unmigrated_apps.intersection(labels):
        if django_apps.get_app_config(label).models:
            raise InvalidInputError(
                f"The app {label!r} has models and no migrations, so its tables would never be created. Run "
                f"'agentdb makemigrations {label}' with {APPS_VARIABLE}, and keep the files that it writes."
            )
    targets = [leaf for leaf in executor.loader.graph.leaf_nodes() if leaf[0] in labels]
    plan = executor.migration_plan(targets)
    return [
        f"{migration.app_label}.{migration.name}"
        for migration, _ in plan
        if migration.app_label != "agentdb"
    ]


def _config(name: str) -> AppConfig:
    """Return the app's configuration; ``InvalidInputError`` says why it cannot be loaded."""
    try:
        config = AppConfig.create(name)
        if not hasattr(config.module, "__path__"):
            raise ImportError("it is a module, not a package")
        return config
    except Exception as error:
        raise InvalidInputError(
            f"The app {name!r} cannot be loaded: {in_one_line(error)}. Name a package that is a Django app and that "
            "Python can import from here."
        ) from error
