"""The four tables in Django's admin; autodiscovery imports this package."""

from __future__ import annotations

from agentdb.admin import model_admins  # noqa: F401 (importing registers the admins)
