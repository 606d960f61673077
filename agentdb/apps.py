from __future__ import annotations

from django.apps import AppConfig


class AgentDbConfig(AppConfig):
    name = "agentdb"
    label = "agentdb"
    verbose_name = "agentdb"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from django.conf import settings

        from agentdb import checks  # noqa: F401 (importing registers the checks)

        if not hasattr(settings, "DISABLE_COCKROACHDB_TELEMETRY"):
            # django-cockroachdb counts its users unless told not to; nobody asked agentdb for that.
            settings.DISABLE_COCKROACHDB_TELEMETRY = True
