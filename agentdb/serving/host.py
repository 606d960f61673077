"""Checks the surrounding Django project and packages, and explains what is missing."""

from __future__ import annotations

import django
from django.apps import apps

from agentdb.errors import AgentDbError, InvalidInputError

SETTINGS_VARIABLE = "DJANGO_SETTINGS_MODULE"


def set_up() -> None:
    """Load the settings and apps; ``InvalidInputError`` says why that fails."""
    try:
        django.setup()
    except Exception as error:
        raise InvalidInputError(
            f"Django cannot be set up: {in_one_line(error)}. Correct that, or {SETTINGS_VARIABLE} if it is set, and "
            "start the process again."
        ) from error


def check_set_up() -> None:
    """Raise ``AgentDbError`` unless the project's apps are loaded and include agentdb."""
    if not apps.apps_ready:
        raise AgentDbError(
            "Django's apps are not loaded yet. Call django.setup() before DjangoDb(), and in a project make it in a "
            "function, not while modules are imported; or use agentdb.connect()."
        )
    if not apps.is_installed("agentdb"):
        raise AgentDbError(
            'Django is configured without agentdb. Add "agentdb" to INSTALLED_APPS.'
        )


def cannot_load(engine: str, error: BaseException) -> str:
    """Return what to do if Django cannot load a database engine or its driver."""
    if engine == "django_cockroachdb":
        return "CockroachDB needs one more package. Install agentdb with its extra: 'django-agentdb[cockroachdb]'."
    while error.__context__ is not None:  # Django's own error does not give the reason
        error = error.__context__
    reason = in_one_line(error)
    return (
        f"The database engine {engine!r} cannot be loaded: {reason}. Install its package, or correct ENGINE in "
        "DATABASES."
    )


def in_one_line(error: BaseException) -> str:
    """Return the error's message on one line, with its class unless that is ``ImportError``."""
    words = str(error).split()
    text = " ".join(words).removesuffix(".")
    if isinstance(error, ImportError):
        return text
    return f"{type(error).__name__}: {text}"
