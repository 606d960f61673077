"""The whole matrix with one command: ``nox``; one cell of it: ``nox -s "tests(python='3.12', django='6.0')"``."""

from __future__ import annotations

import nox

nox.options.default_venv_backend = "uv|virtualenv"

DJANGO = {
    "5.2": ("3.11", "3.12", "3.13"),
    "6.0": ("3.12", "3.13"),
    "6.1": ("3.12", "3.13", "3.14"),
}
MATRIX = [(python, django) for django, pythons in DJANGO.items() for python in pythons]


@nox.session
@nox.parametrize(["python", "django"], MATRIX)
def tests(session: nox.Session, django: str) -> None:
    """The tests on SQLite and on the PostgreSQL that they bring along."""
    session.install(
        *nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "test"),
        "-e",
        ".",
    )
    session.install(f"django~={django}.0", f"django-cockroachdb~={django}.0")
    session.run("python", "-m", "pytest", "--numprocesses=logical", *session.posargs)


@nox.session(python="3.11")
def lowest(session: nox.Session) -> None:
    """The oldest releases that pyproject.toml allows."""
    session.install(
        *nox.project.dependency_groups(nox.project.load_toml("pyproject.toml"), "test"),
        "-e",
        ".",
    )
    session.install(
        "django==5.2",
        "django-cockroachdb==5.2.2",
        "psycopg[binary,pool]==3.2.4",
        "dj-database-url==3.0.0",
    )
    session.run("python", "-m", "pytest", "--numprocesses=logical", *session.posargs)


@nox.session
def postgresql(session: nox.Session) -> None:
    """PostgreSQL's tests on each supported version."""
    session.run("make", "test-postgres", external=True)


@nox.session
def odd_places(session: nox.Session) -> None:
    """A path with a space, and a DJANGO_SETTINGS_MODULE that somebody left in the shell."""
    place = f"{session.create_tmp()}/a checkout"
    session.run("git", "clone", "--quiet", ".", place, external=True)
    with session.chdir(place):
        session.run(
            "make",
            "test",
            external=True,
            env={"DJANGO_SETTINGS_MODULE": "somebody.elses"},
        )
