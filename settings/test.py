"""Settings of the test suite."""

from __future__ import annotations

import os

os.environ.pop("DATABASE_URL", None)  # the suite makes its own databases

from settings.base import *  # noqa: E402, F403

DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
