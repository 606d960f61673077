"""connect(apps=) and AGENTDB_APPS: a program's own tables beside agentdb's. In processes: Django loads apps once."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from agentdb import InvalidInputError
from agentdb.serving.own_apps import app_names
from tests.helpers.factories import execute
from tests.project.test_cli import run
from tests.project.test_import import run_python

EXAMPLES = Path(__file__).parents[2] / "examples"

MODELS = """
from django.db import models

class Note(models.Model):
    session_id = models.TextField()
    text = models.TextField()
"""
MIGRATION = """
from django.db import migrations, models

class Migration(migrations.Migration):
    initial = True
    operations = [
        migrations.CreateModel("Note", [
            ("id", models.BigAutoField(primary_key=True)),
            ("session_id", models.TextField()),
            ("text", models.TextField()),
        ]),
    ]
"""


def make_app(folder: Path, name: str) -> None:
    package = folder / name
    package.mkdir()
    (package / "__init__.py").touch()
    (package / "models.py").write_text(MODELS)
    (package / "migrations").mkdir()
    (package / "migrations/__init__.py").touch()
    (package / "migrations/0001_initial.py").write_text(MIGRATION)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A folder with the app ``notes``."""
    folder = tmp_path / "program"
    folder.mkdir()
    make_app(folder, "notes")
    return folder


def refusal(folder: Path, code: str, **environment: str) -> str:
    """The text of the error that the code ends with, and its class."""
    program = (
        f"import agentdb\ntry:\n    {code}\nexcept agentdb.AgentDbError as error:\n"
    )
    return run_python(
        f"{program}    print(type(error).__name__, error)", folder, **environment
    ).strip()


# -- one database, one transaction


def test_own_tables_are_migrated_and_share_the_transaction_with_the_db(
    folder: Path, url: str
) -> None:
    code = f"""
import agentdb
with agentdb.connect({url!r}, apps=["notes"], migrate=True) as db:
    from notes.models import Note

    def both(tx):
        tx.insert_session("s1", "bot", "sb1")
        Note.objects.using(tx.alias).create(session_id="s1", text="kept")

    def neither(tx):
        Note.objects.using(tx.alias).create(session_id="s2", text="lost")
        tx.insert_session("s2", "bot", "sb1")
        raise KeyError

    db.run_transaction(both)
    try:
        db.run_transaction(neither)
    except KeyError:
        pass
    notes = Note.objects.using(db.alias)
    print([n.text for n in notes.all()], [s.id for s in db.list_sessions()])
"""
    assert run_python(code, folder) == "['kept'] ['s1']\n"
    assert execute(url, "SELECT session_id, text FROM notes_note") == [("s1", "kept")]


def test_own_tables_share_the_transaction_in_asyncio(folder: Path, url: str) -> None:
    code = f"""
import agentdb, asyncio

def note(tx, text):
    from notes.models import Note
    Note.objects.using(tx.alias).create(session_id="s1", text=text)
    return Note.objects.using(tx.alias).count()

async def main():
    async with agentdb.connect_async({url!r}, apps=["notes"], migrate=True) as db:
        async def undone(tx):
            await tx.insert_session("s1", "bot", "sb1")
            print(await tx.run_transaction(lambda inside: note(inside, "lost")))
            raise KeyError

        async def stored(tx):
            await tx.insert_session("s1", "bot", "sb1")
            await tx.run_transaction(lambda inside: note(inside, "kept"))

        try:
            await db.run_transaction(undone)
        except KeyError:
            pass
        await db.run_transaction(stored)
        print(await db.run_transaction(lambda tx: note(tx, "more")), len(await db.list_sessions()))

asyncio.run(main())
"""
    assert run_python(code, folder) == "1\n2 1\n"


def test_a_conflict_of_the_models_queries_reruns_the_transaction(
    folder: Path, make_postgres_database: Callable[..., str]
) -> None:
    code = f"""
import agentdb, threading
with agentdb.connect({make_postgres_database()!r}, apps=["notes"], migrate=True) as db:
    from django.db.models import F
    from notes.models import Note

    Note.objects.using(db.alias).create(session_id="s1", text="0")
    ready = threading.Barrier(4)

    def add(tx):
        note = Note.objects.using(tx.alias).get()
        if ready.n_waiting or not ready.broken:
            try:
                ready.wait(120)
                ready.abort()
            except threading.BrokenBarrierError:
                pass
        note.text = str(int(note.text) + 1)
        note.save()

    threads = [threading.Thread(target=db.run_transaction, args=[add]) for _ in range(4)]
    [thread.start() for thread in threads]
    [thread.join() for thread in threads]
    print(Note.objects.using(db.alias).get().text)
"""
    assert run_python(code, folder) == "4\n"


def test_two_databases_of_one_process_need_not_both_have_the_tables(
    folder: Path,
) -> None:
    code = """
import agentdb
agentdb.connect("sqlite:///one.db", apps=["notes"], migrate=True).close()
agentdb.connect("sqlite:///two.db", apps=[], migrate=True).close()
"""
    run_python(code, folder)

    assert execute(f"sqlite:///{folder}/one.db", "SELECT count(*) FROM notes_note") == [
        (0,)
    ]
    assert (
        execute(
            f"sqlite:///{folder}/two.db",
            "SELECT name FROM sqlite_master WHERE name LIKE 'notes%'",
        )
        == []
    )


def test_without_migrate_a_database_that_lacks_the_tables_is_out_of_date(
    folder: Path, url: str
) -> None:
    said = refusal(folder, f"agentdb.connect({url!r}, apps=['notes'])")

    assert said.startswith("SchemaOutOfDateError ")
    assert said.endswith(
        " lacks the migrations notes.0001_initial. Run 'agentdb migrate' with AGENTDB_APPS=notes."
    )


def test_processes_that_migrate_at_once_do_it_once(folder: Path, url: str) -> None:
    code = f"import agentdb; agentdb.connect({url!r}, apps=['notes'], migrate=True).close()"
    environment = {"PYTHONPATH": str(EXAMPLES.parent)}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", code],
            cwd=folder,
            env=environment,
            stderr=subprocess.PIPE,
            text=True,
        )
        for _ in range(4)
    ]
    assert [
        (process.communicate()[1], process.returncode) for process in processes
    ] == [("", 0)] * 4
    assert execute(
        url, "SELECT count(*) FROM django_migrations WHERE app = 'notes'"
    ) == [(1,)]


def test_migrations_may_take_longer_than_a_call_or_a_statement_of_the_role(
    folder: Path, make_postgres_database: Callable[..., str]
) -> None:
    migration = folder / "notes/migrations/0001_initial.py"
    slow = '\n        migrations.RunSQL("SELECT pg_sleep(2)"),\n    ]\n'
    migration.write_text(MIGRATION.replace("\n    ]\n", slow))
    url = make_postgres_database()
    limited = f"{url}{'&' if '?' in url else '?'}call_timeout=1"
    database = urlsplit(url).path[1:]
    execute(url, f"ALTER DATABASE {database} SET statement_timeout = '1s'")
    code = f"""
import agentdb
with agentdb.connect({limited!r}, apps=["notes"], migrate=True) as db:
    from notes.models import Note
    print(Note.objects.using(db.alias).count(), db.health().ok)
"""
    assert run_python(code, folder) == "0 True\n"


def test_apps_of_the_environment_count_unless_the_call_names_some(folder: Path) -> None:
    make_app(folder, "others")
    code = """
import agentdb
agentdb.connect("sqlite:///a.db", migrate=True, **({"apps": ["others"]} if EXPLICIT else {})).close()
from django.apps import apps
print([config.name for config in apps.get_app_configs()])
"""
    named = {"AGENTDB_APPS": " notes , others,"}
    assert (
        run_python(f"EXPLICIT = False\n{code}", folder, **named)
        == "['agentdb', 'notes', 'others']\n"
    )
    assert (
        run_python(f"EXPLICIT = True\n{code}", folder, **named)
        == "['agentdb', 'others']\n"
    )


def test_a_probe_says_what_the_apps_lack(folder: Path, url: str) -> None:
    named = {"AGENTDB_APPS": "notes", "DATABASE_URL": url}

    lacking = run(folder, "health", "--json", **named)
    assert json.loads(lacking.stdout)["pending_migrations"] == ["notes.0001_initial"]
    assert (lacking.returncode, run(folder, "health", DATABASE_URL=url).returncode) == (
        1,
        0,
    )
    assert run(folder, "migrate", **named).returncode == 0
    assert run(folder, "health", **named).returncode == 0


def test_the_pytest_fixtures_have_the_tables_of_the_environments_apps(
    folder: Path,
) -> None:
    (folder / "test_notes.py").write_text("""
def test_notes(agentdb_sqlite):
    from notes.models import Note

    Note.objects.using(agentdb_sqlite.alias).create(session_id="s1", text="kept")
    assert Note.objects.using(agentdb_sqlite.alias).count() == 1
""")
    inherited = {
        name: value
        for name, value in os.environ.items()
        if name != "DJANGO_SETTINGS_MODULE"
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:django", "-p", "no:cacheprovider", "test_notes.py"],
        cwd=folder, env={**inherited, "AGENTDB_APPS": "notes"}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "1 passed" in done.stdout, done.stdout


# -- what is refused


@pytest.mark.parametrize(
    ("apps", "message"),
    [
        ("notes", "apps must be a list of the names of Django apps, not 'notes'."),
        ({"notes"}, "apps must be a list of the names of Django apps, not {'notes'}."),
        ([7], "apps must be a list of the names of Django apps, not [7]."),
        (
            ["notes", " "],
            "apps must be a list of the names of Django apps, not ['notes', ' '].",
        ),
    ],
)
def test_what_is_no_list_of_names_is_refused(apps: Any, message: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        app_names(apps)
    assert str(raised.value) == message


@pytest.mark.parametrize(
    ("apps", "message"),
    [
        (
            ["nowhere"],
            "The app 'nowhere' cannot be loaded: No module named 'nowhere'. Name a package that is a Django app and "
            "that Python can import from here.",
        ),
        (
            ["notes", "copies.notes"],
            "Django cannot be set up: ImproperlyConfigured: Application labels aren't unique, duplicates: notes. "
            "Correct that, or DJANGO_SETTINGS_MODULE if it is set, and start the process again.",
        ),
        (
            ["os.path"],
            "The app 'os.path' cannot be loaded: it is a module, not a package. Name a package that is a "
            "Django app and that Python can import from here.",
        ),
        (
            ["broken"],
            "Django cannot be set up: ZeroDivisionError: division by zero. Correct that, or DJANGO_SETTINGS_MODULE if "
            "it is set, and start the process again.",
        ),
    ],
)
def test_a_wrong_app_is_named_and_no_database_made(
    apps: list[str], message: str, folder: Path
) -> None:
    (folder / "copies").mkdir()
    make_app(folder / "copies", "notes")
    make_app(folder, "broken")
    (folder / "broken/models.py").write_text("1 / 0")

    said = refusal(
        folder, f"agentdb.connect('sqlite:///a.db', apps={apps!r}, migrate=True)"
    )

    assert said == f"InvalidInputError {message}"
    assert not (folder / "a.db").exists()


def test_an_app_with_models_needs_migrations(folder: Path) -> None:
    make_app(folder, "bare")
    shutil.rmtree(folder / "bare/migrations")
    program = "agentdb.connect('sqlite:///a.db', apps=['bare'], migrate=True).close()"

    assert refusal(folder, program) == (
        "InvalidInputError The app 'bare' has models and no migrations, so its tables would never be created. Run "
        "'agentdb makemigrations bare' with AGENTDB_APPS, and keep the files that it writes."
    )
    command = run(folder, "migrate", AGENTDB_APPS="bare", DATABASE_URL="sqlite:///a.db")
    assert command.returncode == 1
    assert "CommandError: The app 'bare' has models and no migrations" in command.stderr
    (folder / "bare/models.py").unlink()
    run_python(f"import agentdb; {program}", folder)


def test_a_second_connect_cannot_bring_other_apps(folder: Path) -> None:
    make_app(folder, "others")
    said = refusal(
        folder,
        "agentdb.connect('sqlite:///a.db', apps=['notes'], migrate=True).close(); "
        "agentdb.connect('sqlite:///b.db', migrate=True).close(); "
        "agentdb.connect('sqlite:///a.db', apps=['notes']).close(); "
        "agentdb.connect('sqlite:///a.db', apps=['others', 'notes'])",
    )

    assert said == (
        "InvalidInputError Django was set up in this process without 'others', and it loads apps only once. In a "
        "project, add what is missing to INSTALLED_APPS; in other programs, name all apps in the first connect(), or "
        "in AGENTDB_APPS."
    )


def test_in_a_project_the_apps_are_those_of_its_settings(folder: Path) -> None:
    make_app(folder, "others")
    (folder / "site_settings.py").write_text(
        "INSTALLED_APPS = ['agentdb', 'notes']\nUSE_TZ = True\n"
        "DATABASES = {'default': {'ENGINE': 'django.db.backends.sqlite3', 'NAME': 'site.db'}}\n"
    )
    settings = {"DJANGO_SETTINGS_MODULE": "site_settings"}

    said = refusal(
        folder,
        "agentdb.connect('sqlite:///a.db', apps=['notes', 'others'], migrate=True)",
        **settings,
    )

    assert said == (
        "InvalidInputError Django was set up in this process without 'others', and it loads apps only once. In a "
        "project, add what is missing to INSTALLED_APPS; in other programs, name all apps in the first connect(), or "
        "in AGENTDB_APPS."
    )
    code = """
import agentdb
with agentdb.connect("sqlite:///a.db", apps=["notes"], migrate=True) as db:
    from notes.models import Note
    print(Note.objects.using(db.alias).count())
agentdb.connect("sqlite:///b.db", migrate=True).close()
"""
    assert run_python(code, folder, **settings) == "0\n"
    assert (
        execute(
            f"sqlite:///{folder}/b.db",
            "SELECT name FROM sqlite_master WHERE name LIKE 'notes%'",
        )
        == []
    )

    command = run(folder, "check", **settings, AGENTDB_APPS="notes,others")
    assert command.returncode == 2
    assert f"InvalidInputError {command.stderr}" == f"{said}\n"
    assert run(folder, "check", **settings, AGENTDB_APPS="notes").returncode == 0


# -- the commands


def test_commands_know_the_apps_and_leave_their_tables_alone(
    folder: Path, empty_url: str
) -> None:
    named = {"AGENTDB_APPS": "notes", "DATABASE_URL": empty_url}

    migrated = run(folder, "migrate", **named)
    shown = run(folder, "showmigrations", **named)
    asked = run(
        folder,
        "shell",
        "-v0",
        "-c",
        "print(Note.objects.count(), Session.objects.count())",
        **named,
    )
    verified = run(folder, "verifydb", **named)
    baselined = run(folder, "baselinedb", **named)

    assert "Applying notes.0001_initial... OK" in migrated.stdout
    assert "notes\n [X] 0001_initial" in shown.stdout
    assert asked.stdout == "0 0\n"
    assert (verified.returncode, baselined.returncode) == (0, 0), (
        verified.stdout + baselined.stdout
    )
    assert baselined.stdout.endswith("Nothing to do.\n")
    assert execute(empty_url, "SELECT count(*) FROM notes_note") == [(0,)]


def test_an_old_database_is_adopted_with_own_tables_in_it(folder: Path) -> None:
    shutil.copyfile(
        Path(__file__).parents[1] / "legacy/sqlite/era-b-small.db", folder / "old.db"
    )
    named = {"AGENTDB_APPS": "notes", "DATABASE_URL": "sqlite:///old.db"}
    url = f"sqlite:///{folder}/old.db"
    execute(
        url,
        "CREATE TABLE notes_note (id integer PRIMARY KEY, session_id text NOT NULL, text text NOT NULL)",
    )
    execute(url, "INSERT INTO notes_note VALUES (1, 's1', 'from before')")

    assert run(folder, "baselinedb", **named).returncode == 0
    assert run(folder, "migrate", "--fake-initial", **named).returncode == 0

    assert execute(url, "SELECT * FROM notes_note") == [(1, "s1", "from before")]
    assert execute(url, "SELECT name FROM django_migrations WHERE app = 'notes'") == [
        ("0001_initial",)
    ]
    assert run(folder, "verifydb", **named).returncode == 0


def test_makemigrations_writes_those_of_the_own_apps_without_a_database(
    folder: Path,
) -> None:
    shutil.rmtree(folder / "notes/migrations")
    named = {"AGENTDB_APPS": "notes", "DATABASE_URL": "postgresql://nowhere.invalid/x"}

    written = run(folder, "makemigrations", **named)
    checked = run(folder, "makemigrations", "--check", **named)

    assert (written.returncode, written.stderr) == (0, "")
    assert "+ Create model Note" in written.stdout
    assert (checked.returncode, checked.stdout, checked.stderr) == (
        0,
        "No changes detected in app 'notes'\n",
        "",
    )
    assert sorted(path.name for path in folder.iterdir()) == ["notes"]


def test_makemigrations_needs_an_own_app_to_write_for(folder: Path) -> None:
    for arguments, apps, message in (
        (
            [],
            "",
            "There are no apps of your own. Name them, with a comma between them, in AGENTDB_APPS.",
        ),
        (["nots"], "notes", "No installed app with label 'nots'."),
        (
            ["--empty", "agentdb"],
            "notes",
            "'agentdb' is not one of your own apps, which are notes.",
        ),
    ):
        done = run(folder, "makemigrations", *arguments, AGENTDB_APPS=apps)

        assert (done.returncode, done.stdout) == (2, "")
        assert done.stderr == f"{message}\n"
    assert sorted(path.name for path in folder.iterdir()) == ["notes"]


def test_makemigrations_writes_for_the_apps_that_are_named(folder: Path) -> None:
    make_app(folder, "labels")
    for name in ("notes", "labels"):
        shutil.rmtree(folder / name / "migrations")

    done = run(folder, "makemigrations", "-q", "notes", AGENTDB_APPS="notes,labels")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (folder / "notes/migrations/0001_initial.py").exists()
    assert not (folder / "labels/migrations").exists()

    done = run(folder, "makemigrations", "--name", "first", AGENTDB_APPS="notes,labels")

    # The value of an option is not the name of an app.
    assert (done.returncode, done.stderr) == (0, "")
    assert (folder / "labels/migrations/0001_first.py").exists()
