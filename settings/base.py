"""This repository's Django project: agentdb with the admin, behind any WSGI or ASGI server. docs/admin.md explains it.

Read from the environment: DATABASE_URL, AGENTDB_SECRET_KEY, AGENTDB_ALLOWED_HOSTS, AGENTDB_CSRF_TRUSTED_ORIGINS,
AGENTDB_HTTPS, AGENTDB_BEHIND_PROXY.
"""

from __future__ import annotations

import os

from django.utils.functional import lazy

from agentdb.admin_project.settings import ADMIN_APPS, LANGUAGES, MIDDLEWARE, TEMPLATES
from agentdb.conf import INSTALLED_APPS as AGENTDB_APPS
from agentdb.conf import database_from_env
from settings.environment import flag, secret_key, words

DEBUG = False
# Commands that sign nothing make no key.
SECRET_KEY = os.environ.get("AGENTDB_SECRET_KEY") or lazy(secret_key, str)()
ALLOWED_HOSTS = words("AGENTDB_ALLOWED_HOSTS") or ["localhost", "127.0.0.1", "[::1]"]
CSRF_TRUSTED_ORIGINS = words("AGENTDB_CSRF_TRUSTED_ORIGINS")

INSTALLED_APPS = [*ADMIN_APPS, *AGENTDB_APPS]
MIDDLEWARE = MIDDLEWARE
TEMPLATES = TEMPLATES
LANGUAGES = LANGUAGES
ROOT_URLCONF = "agentdb.admin_project.urls"
WSGI_APPLICATION = "settings.wsgi.application"
ASGI_APPLICATION = "settings.asgi.application"
STATIC_URL = "/static/"

DATABASES = {"default": database_from_env()}
DEFAULT_AUTO_FIELD = "django.db.models.BigAutoField"

LANGUAGE_CODE = "en-us"
USE_TZ = True
TIME_ZONE = "UTC"

AUTH_PASSWORD_VALIDATORS = [
    {
        "NAME": "django.contrib.auth.password_validation.UserAttributeSimilarityValidator"
    },
    {
        "NAME": "django.contrib.auth.password_validation.MinimumLengthValidator",
        "OPTIONS": {"min_length": 12},
    },
    {"NAME": "django.contrib.auth.password_validation.CommonPasswordValidator"},
    {"NAME": "django.contrib.auth.password_validation.NumericPasswordValidator"},
]

SESSION_COOKIE_AGE = 12 * 60 * 60
SESSION_COOKIE_HTTPONLY = True
SESSION_COOKIE_SAMESITE = "Lax"
CSRF_COOKIE_HTTPONLY = True
CSRF_FAILURE_VIEW = "agentdb.admin_project.site.csrf_failure"
X_FRAME_OPTIONS = "DENY"
SECURE_CONTENT_TYPE_NOSNIFF = True
SECURE_REFERRER_POLICY = "same-origin"

# On 127.0.0.1 there is no TLS, so what needs it is one switch.
HTTPS = flag("AGENTDB_HTTPS")
SECURE_SSL_REDIRECT = HTTPS
SESSION_COOKIE_SECURE = HTTPS
CSRF_COOKIE_SECURE = HTTPS
SECURE_HSTS_SECONDS = 365 * 24 * 60 * 60 if HTTPS else 0
SECURE_HSTS_INCLUDE_SUBDOMAINS = HTTPS
SECURE_HSTS_PRELOAD = HTTPS
# Only where a proxy sets this header itself: a client could send it otherwise.
SECURE_PROXY_SSL_HEADER = (
    ("HTTP_X_FORWARDED_PROTO", "https") if flag("AGENTDB_BEHIND_PROXY") else None
)
