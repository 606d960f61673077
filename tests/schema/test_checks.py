from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from django.conf import settings
from django.core.checks import Error, run_checks
from django.core.management import CommandError, call_command
from django.core.management.base import SystemCheckError
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption import shapes
from agentdb.adoption.fake_initial import refuse_unadopted
from agentdb.checks import check_adoption, check_time_zone
from agentdb.schema.migration_record import migrate
from tests.helpers.legacy_databases import manage, opened, rows

Load = Callable[[str], str]

HINT = "Run 'agentdb baselinedb --check' to see what adopting them does, then 'agentdb baselinedb'."


@pytest.mark.parametrize(
    ("stem", "shape"), [("era-b-empty", "multi-tenant"), ("era-a", "single-tenant")]
)
def test_e001_says_that_old_tables_are_not_adopted(
    load_legacy: Load, engine: str, stem: str, shape: str
):
    with opened(load_legacy(stem)) as connection:
        assert check_adoption(databases=[connection.alias]) == [
            Error(
                f"Database {connection.alias!r} has tables of the old server that are not adopted yet: {shape}.",
                hint=HINT,
                id="agentdb.E001",
            )
        ]


def test_e001_is_registered_and_fails_django_s_check_command(
    load_legacy: Load, engine: str
):
    with opened(load_legacy("era-b-empty")) as connection:
        assert [message.id for message in run_checks(databases=[connection.alias])] == [
            "agentdb.E001"
        ]
        with pytest.raises(SystemCheckError, match="agentdb.E001"):
            call_command("check", databases=[connection.alias])


def test_e001_is_silent_on_an_empty_a_migrated_and_an_adopted_database(
    load_legacy: Load, empty_url: str, url: str, engine: str
):
    for quiet in (empty_url, url):
        with opened(quiet) as connection:
            assert check_adoption(databases=[connection.alias]) == []
    with opened(load_legacy("era-b-empty")) as connection:
        manage(connection, "migrate", "agentdb", fake_initial=True)
        assert check_adoption(databases=[connection.alias]) == []


@pytest.mark.parametrize(
    "look",
    [
        lambda connection: check_adoption(databases=[connection.alias]),
        lambda connection: refuse_unadopted(connection, fake_initial=False),
    ],
    ids=["check", "migrate"],
)
def test_tables_that_another_process_migrates_meanwhile_are_not_an_old_server_s(
    look: Callable[[BaseDatabaseWrapper], object],
    empty_url: str,
    engine: str,
    monkeypatch: pytest.MonkeyPatch,
):
    recognise = shapes.recognise

    def after_a_migration(connection: BaseDatabaseWrapper) -> shapes.Shape:
        monkeypatch.undo()
        with opened(empty_url) as other:
            migrate(other.alias)
        return recognise(connection)

    with opened(empty_url) as connection:
        rows(connection, "SELECT 1")  # makes the SQLite file, which a look does not
        monkeypatch.setattr(shapes, "recognise", after_a_migration)
        assert not look(connection)
        assert shapes.recognise is recognise  # the migration came in between


def test_e001_looks_at_no_database_unless_asked(load_legacy: Load, engine: str):
    with opened(load_legacy("era-b-empty")):
        assert check_adoption() == []
        assert check_adoption(databases=None) == []


def test_e001_does_not_stop_a_migrate_that_runs_the_checks(
    load_legacy: Load, engine: str
):
    with opened(load_legacy("era-b-small")) as connection:
        printed = manage(
            connection, "migrate", "agentdb", fake_initial=True, skip_checks=False
        )

    assert "Applying agentdb.0001_initial... FAKED" in printed


def test_a_migrate_that_runs_the_checks_says_what_to_do_in_its_own_words(
    load_legacy: Load, engine: str
):
    with (
        opened(load_legacy("era-b-small")) as connection,
        pytest.raises(CommandError) as refusal,
    ):
        manage(connection, "migrate", "agentdb", skip_checks=False)

    assert "agentdb migrate --fake-initial" in str(refusal.value)


@pytest.mark.parametrize("engine", ["sqlite"])
def test_e001_leaves_a_database_that_cannot_be_read_to_whoever_uses_it(
    load_legacy: Load, engine: str
):
    with opened(load_legacy("dirty-not-a-database")) as connection:
        assert check_adoption(databases=[connection.alias]) == []


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize("is_there", [False, True])  # empty, as by touch
def test_e001_creates_no_file_and_deletes_no_log(
    engine: str, is_there: bool, tmp_path: Path
):
    log = tmp_path / "moved.db-wal"
    log.write_bytes(b"what was stored last")
    if is_there:
        (tmp_path / "moved.db").touch()
    with opened(f"sqlite:///{tmp_path}/moved.db") as connection:
        assert check_adoption(databases=[connection.alias]) == []

    sizes = {file.name: file.stat().st_size for file in tmp_path.iterdir()}
    assert sizes == {log.name: 20, **({"moved.db": 0} if is_there else {})}


def test_a_table_of_the_same_name_in_another_app_s_database_is_looked_at_only_where_agentdb_may_migrate(
    load_legacy: Load, engine: str, monkeypatch: pytest.MonkeyPatch
):
    with opened(load_legacy("era-b-empty")) as connection:
        monkeypatch.setattr("django.db.router.allow_migrate", lambda *_, **__: False)
        assert check_adoption(databases=[connection.alias]) == []
        assert rows(connection, "SELECT count(*) FROM agents") == [(0,)]


def test_use_tz_false_is_an_error_that_says_what_to_set(
    monkeypatch: pytest.MonkeyPatch,
):
    assert check_time_zone() == []

    # Not by override_settings, which tells every connection of the process, also one that another test has broken.
    monkeypatch.setattr(settings, "USE_TZ", False)
    (error,) = check_time_zone()

    assert (error.id, error.hint) == (
        "agentdb.E002",
        "Set USE_TZ = True in the project's settings.",
    )
