"""makemigrations of the console script: for a program's own apps, without a database."""

from __future__ import annotations

from typing import Any

from django.core.management import CommandError
from django.core.management.commands import makemigrations

from agentdb.serving import own_apps


class Command(makemigrations.Command):
    """Django's makemigrations for the apps in ``AGENTDB_APPS`` only; agentdb's own migrations are released."""

    def handle(self, *app_labels: str, **options: Any) -> None:
        # Without labels Django would write migrations for every installed app: into site-packages, for agentdb.
        labels = own_apps.labels_of(own_apps.installed_names())
        if not labels:
            raise CommandError(
                f"There are no apps of your own. Name them, with a comma between them, in {own_apps.APPS_VARIABLE}.",
                returncode=2,
            )
        if others := [label for label in app_labels if label not in labels]:
            raise CommandError(
                f"{others[0]!r} is not one of your own apps, which are {', '.join(labels)}.",
                returncode=2,
            )
        super().handle(*(app_labels or labels), **options)
