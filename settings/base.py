"""What this repository's Django project decides; how a database is opened is decided in agentdb.conf."""

from __future__ import annotations

from agentdb.conf import INSTALLED_APPS as AGENTDB_APPS
from agentdb.conf import database_from_env

INSTALLED_APPS = ["django.contrib.contenttypes", *AGENTDB_APPS]
DATABASES = {"default": database_from_env()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"
USE_TZ = True
TIME_ZONE = "UTC"
