from __future__ import annotations

from typing import Any

from django.apps import AppConfig
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.backends.signals import connection_created


class AgentDbConfig(AppConfig):
    name = "agentdb"
    label = "agentdb"
    verbose_name = "agentdb"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django.conf import settings

        from agentdb import checks  # noqa: F401 (importing registers the checks)

        # For every connection of the project: Django's own queries read these tables too.
        connection_created.connect(_speak_iso, dispatch_uid="agentdb")

        if not hasattr(settings, "DISABLE_COCKROACHDB_TELEMETRY"):
            # django-cockroachdb sends telemetry by default, which nobody expects of agentdb.
            settings.DISABLE_COCKROACHDB_TELEMETRY = True


def _speak_iso(connection: BaseDatabaseWrapper, **_: Any) -> None:
    """Override the DateStyle of a role or database: psycopg reads only ISO, and dates become text in it."""
    if connection.vendor != "postgresql":
        return
    raw: Any = connection.connection
    style = raw.info.parameter_status("DateStyle")
    if not style.startswith("ISO"):
        raw.execute("SET DateStyle = 'ISO'", prepare=False)
