"""Settings of the test suite."""

from __future__ import annotations

import os

os.environ.pop("DATABASE_URL", None)  # the suite makes its own databases
os.environ.pop("AGENTDB_APPS", None)
os.environ.pop("AGENTDB_KEY_SECRET", None)
os.environ["AGENTDB_SECRET_KEY"] = (
    "tests make and share no secrets, so this one may be known to all"
)

from settings.base import *  # noqa: F403

ALLOWED_HOSTS = ["localhost", "127.0.0.1", "testserver"]
DATABASES = {"default": {"ENGINE": "django.db.backends.sqlite3", "NAME": ":memory:"}}
PASSWORD_HASHERS = [
    "django.contrib.auth.hashers.MD5PasswordHasher"
]  # fast; the accounts last as long as a test
