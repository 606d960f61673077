from __future__ import annotations

from django.apps import AppConfig


class AgentDbConfig(AppConfig):
    name = "agentdb"
    label = "agentdb"
    verbose_name = "agentdb"
    default_auto_field = "django.db.models.BigAutoField"

    def ready(self) -> None:
        from agentdb import checks  # noqa: F401 (importing registers the checks)
