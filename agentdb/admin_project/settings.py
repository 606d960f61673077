"""What a Django project around agentdb's admin needs: apps, middleware, templates."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

ADMIN_APPS = [
    "agentdb.admin_project.site.AgentDbAdminConfig",
    "django.contrib.auth",
    "django.contrib.contenttypes",
    "django.contrib.sessions",
    "django.contrib.messages",
    "django.contrib.staticfiles",
]

MIDDLEWARE = [
    "django.middleware.security.SecurityMiddleware",
    # A live list is 90 kB every ten seconds. Django masks the CSRF token on each page, so sizes do not reveal it.
    "django.middleware.gzip.GZipMiddleware",
    "agentdb.admin_project.settings.content_security_policy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.locale.LocaleMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

# The console is in English. With Django's other languages, a page would mix two.
LANGUAGES = [("en", "English")]

TEMPLATES: list[dict[str, Any]] = [
    {
        "BACKEND": "django.template.backends.django.DjangoTemplates",
        "APP_DIRS": True,
        "OPTIONS": {
            "context_processors": [
                "django.template.context_processors.request",
                "django.contrib.auth.context_processors.auth",
                "django.contrib.messages.context_processors.messages",
            ],
        },
    }
]

_POLICY = (
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; connect-src 'self'; "
    "form-action 'self'; base-uri 'none'; frame-ancestors 'none'"
)


def content_security_policy(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Middleware: pages load nothing from other hosts and run no inline scripts."""

    def respond(request: Any) -> Any:
        response = get_response(request)
        response.headers.setdefault("Content-Security-Policy", _POLICY)
        return response

    return respond
