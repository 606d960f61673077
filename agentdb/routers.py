"""agentdb's tables in a database of their own, beside a Django project's."""

from __future__ import annotations

from typing import Any

from django.conf import settings
from django.core.exceptions import ImproperlyConfigured
from django.db import DEFAULT_DB_ALIAS

from agentdb.schema import APP_LABEL


class AgentDbRouter:
    """Puts agentdb's models, and nothing else, into the database of the alias that ``AGENTDB_ALIAS`` names.

    For ``DATABASE_ROUTERS``. ``migrate --database ALIAS`` then creates only agentdb's tables there, and ``migrate``
    creates none of them in ``default``. Raises ``ImproperlyConfigured`` if the setting names no alias.
    """

    def db_for_read(self, model: Any, **hints: Any) -> str | None:
        return _alias() if model._meta.app_label == APP_LABEL else None

    db_for_write = db_for_read

    def allow_relation(self, obj1: Any, obj2: Any, **hints: Any) -> bool | None:
        labels = {obj1._meta.app_label, obj2._meta.app_label}
        if APP_LABEL not in labels:
            return None  # leaves it to the next router
        return labels == {APP_LABEL}

    def allow_migrate(self, db: str, app_label: str, **hints: Any) -> bool | None:
        alias = _alias()
        if app_label == APP_LABEL:
            return db == alias
        # The project's own tables are in its default database, even if agentdb's are there too.
        is_ours_alone = db == alias and alias != DEFAULT_DB_ALIAS
        return False if is_ours_alone else None


def _alias() -> str:
    alias = getattr(settings, "AGENTDB_ALIAS", None)
    if alias not in settings.DATABASES:
        known = ", ".join(settings.DATABASES)
        raise ImproperlyConfigured(
            f"agentdb.routers.AgentDbRouter needs the setting AGENTDB_ALIAS, which names the database of agentdb's "
            f"tables; it is {alias!r}, and DATABASES has {known}."
        )
    return str(alias)
