"""makemigrations of the console script: for a program's own apps, without a database."""

from __future__ import annotations

from typing import Any

from django.core.management.commands import makemigrations

from agentdb.errors import InvalidInputError
from agentdb.schema import APP_LABEL
from agentdb.serving.own_apps import APPS_VARIABLE, installed_names, labels_of


class Command(makemigrations.Command):
    """Django's command, without labels for all own apps, and never for agentdb, whose migrations are released."""

    def handle(self, *app_labels: str, **options: Any) -> None:
        labels = labels_of(installed_names())
        if not labels:
            raise InvalidInputError(
                f"There are no apps of your own. Name them, with a comma between them, in {APPS_VARIABLE}."
            )
        if APP_LABEL in app_labels:
            raise InvalidInputError(
                f"{APP_LABEL!r} is not one of your own apps, which are {', '.join(labels)}."
            )
        # Without labels Django itself would leave out an app that has no migrations yet.
        super().handle(*(app_labels or labels), **options)
