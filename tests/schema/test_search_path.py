"""Two schemas on PostgreSQL's search_path: the tables and the record of migrations are of one schema, or refused."""

from __future__ import annotations

import io
from collections.abc import Callable

import psycopg
import pytest
from django.core.management import CommandError, call_command

import agentdb
from agentdb.serving.adapter import DjangoDb
from tests.helpers.baseline_runs import baselinedb
from tests.helpers.legacy_databases import FOLDER, manage, opened, psql

pytestmark = pytest.mark.parametrize("engine", ["postgresql"])


@pytest.fixture
def both(engine: str, make_postgres_database: Callable[[], str]) -> tuple[str, str]:
    """An adopted database in schema public, an old one in schema app before it; its URL, and the sentence for it."""
    url = make_postgres_database()
    psql(url, "-f", str(FOLDER / "pg" / "era-b-small.sql"))
    psql(url, "-c", "ALTER SCHEMA public RENAME TO app", "-c", "CREATE SCHEMA public")
    with agentdb.connect(url, migrate=True) as db:
        db.upsert_agent("bot", "/bot")
    with psycopg.connect(url) as server:
        [(role,)] = server.execute("SELECT quote_ident(current_user)").fetchall()
    return f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3Dapp,public", (
        "The tables are in schema 'app', but the record of migrations (django_migrations) is in 'public', further down "
        f"the search_path. Run 'ALTER ROLE {role} SET search_path = app', or add options=-csearch_path%3Dapp to the "
        "database URL."
    )


def assert_not_served(url: str, error: type[Exception], cause: str) -> None:
    """Neither connect() nor a health check that is asked later takes the two schemas for one."""
    with pytest.raises(error) as refused:
        agentdb.connect(url)
    with opened(url) as connection:
        health = DjangoDb(connection.alias).health()

    sentence = (
        f"The search_path of {health.place} leads to more than one schema. {cause}"
    )
    assert [str(refused.value), health.reason] == [sentence] * 2
    assert not health.ok


def test_an_old_schema_before_an_adopted_one_is_not_served(both: tuple[str, str]):
    assert_not_served(both[0], agentdb.SchemaOutOfDateError, both[1])


def test_a_record_before_the_tables_of_another_schema_is_not_served(
    engine: str, make_postgres_database: Callable[[], str]
):
    url = make_postgres_database()
    agentdb.connect(url, migrate=True).close()
    psql(
        url,
        "-c",
        "CREATE SCHEMA app",
        "-c",
        "CREATE TABLE app.django_migrations AS TABLE public.django_migrations",
    )
    with psycopg.connect(url) as server:
        [(role,)] = server.execute("SELECT quote_ident(current_user)").fetchall()

    assert_not_served(
        f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3Dapp,public",
        agentdb.SchemaMismatchError,
        "The tables are in schema 'public', and new ones would be created in 'app', which comes before it in the "
        f"search_path. Run 'ALTER ROLE {role} SET search_path = public', or add "
        "options=-csearch_path%3Dpublic to the database URL.",
    )


def test_commands_name_the_cause(both: tuple[str, str]):
    url, sentence = both
    out = io.StringIO()

    assert [baselinedb(url, "--check").err, baselinedb(url).err] == [sentence] * 2
    with opened(url) as connection:
        with pytest.raises(CommandError) as refused:
            manage(connection, "migrate", "agentdb")
        assert sentence in str(refused.value)
        with pytest.raises(SystemExit):
            call_command(
                "verifydb", database=connection.alias, stdout=out, no_color=True
            )
    assert out.getvalue().splitlines() == [
        sentence,
        "The search_path leads to more than one schema. Name one, and run the command again.",
    ]


def test_with_one_schema_named_it_is_adopted_there(both: tuple[str, str]):
    url = both[0].replace("app,public", "app")

    assert baselinedb(url).code == 0
    with agentdb.connect(url) as db:
        assert db.get_agent("bot") is None


def test_new_tables_would_not_share_another_programs_record(
    engine: str, make_postgres_database: Callable[[], str]
):
    url = make_postgres_database()
    psql(
        url,
        "-c",
        "CREATE SCHEMA app",
        "-c",
        "CREATE TABLE public.django_migrations (app text, name text)",
    )

    there = f"{url}{'&' if '?' in url else '?'}options=-csearch_path%3Dapp,public"
    with opened(there) as connection, pytest.raises(CommandError) as refused:
        manage(connection, "migrate", "agentdb")

    assert str(refused.value).startswith(
        "New tables would be created in schema 'app', but the record of migrations (django_migrations) is in 'public'"
    )
