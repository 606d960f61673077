"""What a Django project around agentdb's admin needs: apps, middleware, templates, a secret key, static files."""

from __future__ import annotations

import os
import secrets
from collections.abc import Callable
from pathlib import Path
from typing import Any

from agentdb.errors import AgentDbError

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
    "agentdb.admin_project.settings.content_security_policy",
    "django.contrib.sessions.middleware.SessionMiddleware",
    "django.middleware.common.CommonMiddleware",
    "django.middleware.csrf.CsrfViewMiddleware",
    "django.contrib.auth.middleware.AuthenticationMiddleware",
    "django.contrib.messages.middleware.MessageMiddleware",
    "django.middleware.clickjacking.XFrameOptionsMiddleware",
]

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
    "default-src 'none'; style-src 'self'; script-src 'self'; img-src 'self' data:; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)

_OFF = ("", "0", "off", "false", "no")


def words(variable: str) -> list[str]:
    """The comma-separated values of an environment variable."""
    return [word.strip() for word in os.environ.get(variable, "").split(",") if word.strip()]


def flag(variable: str) -> bool:
    return os.environ.get(variable, "").strip().lower() not in _OFF


def secret_key(path: Path | None = None) -> str:
    """Return this machine's secret key; the first call makes it, in a file that its user alone can read."""
    path = path or _state_folder() / "secret_key"
    try:
        if not path.exists():
            _write_secret(path)
        key = path.read_text().strip()
    except OSError as error:
        raise AgentDbError(
            f"The secret key cannot be kept in {str(path)!r}: {error.strerror}. Set AGENTDB_SECRET_KEY to 50 or more "
            "random characters."
        ) from error
    if len(key) < 50:
        raise AgentDbError(f"The secret key in {str(path)!r} is too short to be one. Delete the file, and try again.")
    return key


def _write_secret(path: Path) -> None:
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    draft = path.with_name(f"{path.name}.{secrets.token_hex(8)}")
    descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w") as file:
        file.write(secrets.token_urlsafe(64))
    try:
        # Of several processes that start at once, the first one's key stays.
        os.link(draft, path)
    except FileExistsError:
        pass
    finally:
        draft.unlink()


def _state_folder() -> Path:
    if os.name == "nt":
        return Path(os.environ.get("LOCALAPPDATA") or Path.home() / "AppData" / "Local") / "agentdb"
    return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state") / "agentdb"


def content_security_policy(get_response: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """Middleware: pages load nothing from elsewhere and run no script that stands in them."""

    def respond(request: Any) -> Any:
        response = get_response(request)
        response.headers.setdefault("Content-Security-Policy", _POLICY)
        return response

    return respond
