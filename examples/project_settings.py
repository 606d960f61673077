"""Settings of a Django project with agentdb and an app of its own."""

from __future__ import annotations

from agentdb.conf import database_from_env

INSTALLED_APPS = ["django.contrib.contenttypes", "agentdb", "conversations"]
DATABASES = {"default": database_from_env()}
USE_TZ = True
