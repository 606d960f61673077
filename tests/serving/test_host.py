"""A Django project or a driver that is not what agentdb needs: one sentence with the reason."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.apps.registry import Apps
from django.test import override_settings

import agentdb
from agentdb import AgentDbError, DatabaseUnavailableError, InvalidInputError
from agentdb.serving import host
from agentdb.serving.connections import describe
from agentdb.serving.opening import temporary_alias
from tests.project.test_import import run_python

SAYING = """
import agentdb
try:
    {call}
except agentdb.AgentDbError as error:
    print(f"{{type(error).__name__}}: {{error}}")
"""

PROJECT = """
from django.conf import settings
settings.configure(
    INSTALLED_APPS={apps!r}, USE_TZ=True, DATABASES={{"default": {{"ENGINE": {engine!r}, "NAME": "x"}}}}
)
{then}
"""
SETUP = "import django; django.setup()"
POSTGRESQL = "django.db.backends.postgresql"


def said(call: str, folder: Path, before: str = "", **environment: str) -> str:
    return run_python(before + SAYING.format(call=call), folder, **environment)


def project(
    apps: tuple[str, ...] = ("agentdb",),
    engine: str = "django.db.backends.sqlite3",
    then: str = SETUP,
) -> str:
    return PROJECT.format(apps=apps, engine=engine, then=then)


@pytest.mark.parametrize("before", ["", project(then="")])
def test_before_the_apps_are_loaded(tmp_path: Path, before: str) -> None:
    assert said("agentdb.DjangoDb()", tmp_path, before) == (
        "AgentDbError: Django's apps are not loaded yet. Call django.setup() before DjangoDb(), and in a project make "
        "it in a function, not while modules are imported; or use agentdb.connect().\n"
    )


@pytest.mark.parametrize(
    "call", ["agentdb.DjangoDb()", "agentdb.connect('sqlite://:memory:')"]
)
def test_without_the_app(tmp_path: Path, call: str) -> None:
    assert said(call, tmp_path, project(apps=())) == (
        'AgentDbError: Django is configured without agentdb. Add "agentdb" to INSTALLED_APPS.\n'
    )


def test_without_a_database(tmp_path: Path) -> None:
    before = f"from django.conf import settings; settings.configure(INSTALLED_APPS=['agentdb'], USE_TZ=True)\n{SETUP}"

    assert said("agentdb.DjangoDb().list_agents()", tmp_path, before) == (
        "AgentDbError: agentdb does not know the engine 'django.db.backends.dummy' of the database alias 'default'. "
        "Correct DATABASES.\n"
    )


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (None, "No module named 'project_settings'"),
        ("import no_such_package", "No module named 'no_such_package'"),
        ("raise RuntimeError('no secret.')", "RuntimeError: no secret"),
    ],
)
def test_settings_that_cannot_be_imported(
    tmp_path: Path, content: str | None, reason: str
) -> None:
    if content is not None:
        (tmp_path / "project_settings.py").write_text(content)

    call = "agentdb.connect('sqlite://:memory:')"
    assert said(call, tmp_path, DJANGO_SETTINGS_MODULE="project_settings") == (
        f"InvalidInputError: Django cannot be set up: {reason}. Correct that, or DJANGO_SETTINGS_MODULE if it is set, "
        "and start the process again.\n"
    )


def test_an_engine_that_is_not_installed(tmp_path: Path) -> None:
    assert said("agentdb.DjangoDb()", tmp_path, project(engine="no_such_engine")) == (
        "DatabaseUnavailableError: The database engine 'no_such_engine' cannot be loaded: No module named "
        "'no_such_engine'. Install its package, or correct ENGINE in DATABASES.\n"
    )


BROKEN = "raise ImportError('no pq wrapper available.\\nAttempts made:\\n- no libpq')"
MISSING = "raise ModuleNotFoundError(\"No module named 'psycopg'\")"


def without_psycopg(folder: Path, how: str) -> None:
    (folder / "psycopg").mkdir()
    (folder / "psycopg/__init__.py").write_text(how)


@pytest.mark.parametrize(
    ("how", "reason"),
    [
        (BROKEN, "no pq wrapper available. Attempts made: - no libpq"),
        (MISSING, "No module named 'psycopg'"),
    ],
)
@pytest.mark.parametrize("by", ["connect", "DjangoDb", "command"])
def test_a_driver_that_cannot_be_loaded(
    tmp_path: Path, how: str, reason: str, by: str
) -> None:
    without_psycopg(tmp_path, how)
    sentence = (
        f"The database engine {POSTGRESQL!r} cannot be loaded: {reason}. Install its package, or correct ENGINE in "
        "DATABASES.\n"
    )

    if by == "connect":
        call = "agentdb.connect('postgresql://localhost/x')"
        assert said(call, tmp_path) == f"DatabaseUnavailableError: {sentence}"
    elif by == "DjangoDb":
        assert said("agentdb.DjangoDb()", tmp_path, project(engine=POSTGRESQL)) == (
            f"DatabaseUnavailableError: {sentence}"
        )
    else:
        code = "import sys; from agentdb.__main__ import main; sys.stderr = sys.stdout; print(main(['migrate']))"
        assert (
            run_python(code, tmp_path, DATABASE_URL="postgresql://localhost/x")
            == f"{sentence}2\n"
        )


def test_psycopg2_in_place_of_psycopg(tmp_path: Path) -> None:
    # Django has its engine, and agentdb finds no psycopg.
    load = (
        f"{SETUP}\nfrom django.db import connections; connections['default']\n"
        "import sys; sys.modules['psycopg'] = None"
    )
    before = project(engine=POSTGRESQL, then=load)

    assert said("agentdb.DjangoDb().list_agents()", tmp_path, before).startswith(
        f"DatabaseUnavailableError: The database engine {POSTGRESQL!r} cannot be loaded: "
    )


def test_an_alias_of_a_driver_that_cannot_be_loaded_does_not_stay(
    tmp_path: Path,
) -> None:
    without_psycopg(tmp_path, MISSING)
    after = "\nfrom django.db import connections; print(sorted(connections))"
    code = (
        project(then=SETUP)
        + SAYING.format(call="agentdb.connect('postgresql://localhost/x')")
        + after
    )

    assert run_python(code, tmp_path).endswith("\n['default']\n")


# -- the same in this process, where Django is set up


def test_what_a_host_lacks_is_said_before_it_is_used(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def refused() -> str:
        with pytest.raises(AgentDbError) as raised:
            agentdb.DjangoDb()
        return str(raised.value).partition(". ")[0]

    monkeypatch.setattr(host, "apps", SimpleNamespace(apps_ready=False))
    assert refused() == "Django's apps are not loaded yet"
    monkeypatch.setattr(host, "apps", Apps([]))
    assert refused() == "Django is configured without agentdb"


@pytest.mark.parametrize(
    ("vendor", "options", "message"),
    [
        ("sqlite", {"TIME_ZONE": "UTC"}, ""),
        ("sqlite", {}, ""),
        ("sqlite", {"TIME_ZONE": "Asia/Tokyo"}, "does not keep its timestamps in UTC"),
        ("sqlite", {"AUTOCOMMIT": False}, "has AUTOCOMMIT = False"),
        (
            "oracle",
            {},
            "agentdb does not know the engine 'django.db.backends.oracle' of the database alias 'mine'.",
        ),
    ],
)
def test_an_alias_that_agentdb_cannot_use_is_refused(
    vendor: str, options: dict[str, Any], message: str
) -> None:
    own = {
        "ENGINE": f"django.db.backends.{vendor}",
        "NAME": ":memory:",
        "TIME_ZONE": None,
        "AUTOCOMMIT": True,
        "OPTIONS": {},
        **options,
    }
    wrapper: Any = SimpleNamespace(vendor=vendor, alias="mine", settings_dict=own)

    if not message:
        assert describe(wrapper) == "SQLite database ':memory:'"
        return
    with pytest.raises(AgentDbError, match=message):
        describe(wrapper)
    if vendor == "sqlite":
        with override_settings(USE_TZ=False), pytest.raises(AgentDbError, match="UTC"):
            describe(wrapper)


def test_an_engine_that_cannot_be_loaded_has_the_first_reason() -> None:
    first = ImportError("no libpq\nhere.")
    second = ValueError("Error loading psycopg")
    second.__context__ = first

    assert host.cannot_load("django_cockroachdb", second).endswith(
        "Install agentdb with its extra: 'django-agentdb[cockroachdb]'."
    )
    assert host.cannot_load("mine", second) == (
        "The database engine 'mine' cannot be loaded: no libpq here. Install its package, or correct ENGINE in "
        "DATABASES."
    )
    assert host.cannot_load("mine", ValueError("bad.")).startswith(
        "The database engine 'mine' cannot be loaded: ValueError: bad. "
    )


def test_a_hosts_file_that_is_missing_is_not_created(tmp_path: Path) -> None:
    path = tmp_path / "misspelt.sqlite3"
    with temporary_alias(f"sqlite:///{path}") as alias:
        with pytest.raises(DatabaseUnavailableError):
            agentdb.DjangoDb(alias).list_agents()
        with pytest.raises(InvalidInputError, match="^Unknown database alias 'mine'; "):
            agentdb.DjangoDb("mine")
    assert list(tmp_path.iterdir()) == []
