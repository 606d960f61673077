"""Servers as people run them: settings of roles and databases, and leftovers, that an adoption has to live with."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from django.core.management import CommandError, call_command

import agentdb
from tests.helpers.baseline_runs import assert_adopted, baselinedb
from tests.helpers.legacy_databases import FOLDER, manage, opened, psql, rows

pytestmark = pytest.mark.parametrize("engine", ["postgresql"])

Load = Callable[[str], str]


def with_options(url: str, options: str) -> str:
    return f"{url}{'&' if '?' in url else '?'}options={options}"


def execute(url: str, *statements: str) -> None:
    with psycopg.connect(url, autocommit=True, client_encoding="UTF8") as server:
        for statement in statements:
            server.execute(statement.encode())


def assert_refused(url: str, sentence: str) -> None:
    check, adoption = baselinedb(url, "--check"), baselinedb(url)
    assert (check.code, adoption.code, check.err) == (2, 2, adoption.err)
    assert sentence in check.err


def assert_can_be_adopted(url: str) -> None:
    check = baselinedb(url, "--check")
    assert check.code == 1, check.err
    run = baselinedb(url)
    assert run.code == 0, run.err
    with opened(url) as connection:
        assert_adopted(connection)


def wait_for_the_end_of(url: str, role: str) -> None:
    """A server notices a closed connection only after a moment."""
    with psycopg.connect(url, autocommit=True) as server:
        while server.execute(
            "SELECT 1 FROM pg_stat_activity WHERE usename = %s", [role]
        ).fetchall():
            pass


def test_a_schema_whose_name_needs_quotes(
    engine: str, make_postgres_database: Callable[[], str]
):
    url = make_postgres_database()
    psql(url, "-f", str(FOLDER / "pg" / "era-a.sql"))
    execute(url, 'ALTER SCHEMA public RENAME TO "AgentServer"')
    url = with_options(url, "-csearch_path%3D%22AgentServer%22")

    assert_can_be_adopted(url)
    with opened(url) as connection:
        assert "The schema matches the models" in manage(connection, "verifydb")
        manage(connection, "migrate", "agentdb", "0001")
        manage(connection, "migrate", "agentdb")


def test_all_identifiers_are_quoted(load_legacy: Load, engine: str):
    url = load_legacy("era-b-small")
    execute(url, "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET quote_all_identifiers = on', current_database());"
            " END $$")  # fmt: skip

    assert_can_be_adopted(url)


@pytest.fixture
def in_encoding(postgres_url: str) -> Iterator[Callable[[str], str]]:
    made: list[str] = []

    def make(encoding: str) -> str:
        name = f"agentdb_test_{os.getpid()}_{encoding.lower()}"
        execute(
            postgres_url,
            f"CREATE DATABASE {name} TEMPLATE template0 ENCODING '{encoding}' LOCALE 'C'",
        )
        made.append(name)
        url = urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
        psql(url, "-f", str(FOLDER / "pg" / "era-b-empty.sql"))
        return url

    yield make
    execute(postgres_url, *(f"DROP DATABASE {name} WITH (FORCE)" for name in made))


def test_a_database_in_latin_1(in_encoding: Callable[[str], str], engine: str):
    url = in_encoding("LATIN1")
    execute(url, "INSERT INTO agents (id, name, path) VALUES ('1', 'é', '/')")

    assert_can_be_adopted(url)
    with agentdb.connect(url) as db:
        assert [agent.name for agent in db.list_agents()] == ["é"]


def test_bytes_that_are_not_utf_8_are_named_by_table_id_and_column(
    in_encoding: Callable[[str], str], engine: str
):
    url = in_encoding("SQL_ASCII")
    with psycopg.connect(url, autocommit=True, client_encoding="SQL_ASCII") as server:
        server.execute(
            b"INSERT INTO agents (id, name, path) VALUES ('fine', 'caf\xc3\xa9', '/')"
        )
        server.execute(
            b"INSERT INTO agents (id, name, path) VALUES ('broken', 'caf\xe9', '/')"
        )

    assert_refused(
        url,
        r"table 'agents', id 'broken', column 'name': b'caf\xe9' is not valid UTF-8",
    )


def test_a_copy_names_bytes_that_are_not_utf_8_before_it_writes(
    in_encoding: Callable[[str], str], engine: str, tmp_path: Path
):
    url = in_encoding("SQL_ASCII")
    assert baselinedb(url).code == 0
    with psycopg.connect(url, autocommit=True, client_encoding="SQL_ASCII") as server:
        server.execute(
            b"INSERT INTO agents (id, name, path) VALUES ('broken', 'caf\xe9', '/')"
        )

    with pytest.raises(CommandError) as refused:
        call_command("copydb", url, f"sqlite:///{tmp_path}/copy.db")

    assert str(refused.value) == (
        "1 value cannot be copied; nothing was copied. Fix them in the source, and run the command again.\n"
        "  table 'agents', id 'broken', column 'name': b'caf\\xe9' is not valid UTF-8"
    )
    assert not (tmp_path / "copy.db").exists()


def test_limits_of_the_role_do_not_end_an_adoption(load_legacy: Load, engine: str):
    url = load_legacy("era-a")
    execute(
        url,
        "DO $$ BEGIN EXECUTE format('ALTER DATABASE %I SET statement_timeout = ''2s''', current_database()); END $$",
        "CREATE FUNCTION slow() RETURNS event_trigger LANGUAGE plpgsql AS 'BEGIN PERFORM pg_sleep(2.5); END'",
        "CREATE EVENT TRIGGER slow ON ddl_command_end WHEN TAG IN ('CREATE TABLE') EXECUTE FUNCTION slow()",
    )

    run = baselinedb(url)

    assert run.code == 0, run.err
    assert (
        "statement_timeout is 2s for this role. This command sets it to 0 in its own session."
        in run.err
    )


def test_the_limits_of_a_session_hold_again_after_a_command(url: str, engine: str):
    with opened(url) as connection:
        rows(connection, "SET statement_timeout = '12345ms'")

        manage(connection, "migrate")

        assert rows(connection, "SHOW statement_timeout") == [("12345ms",)]


def with_role(url: str, name: str) -> str:
    parts = urlsplit(url)
    place = parts.netloc.rpartition("@")[2]  # empty for a socket, which is an option
    return urlunsplit(parts._replace(netloc=f"{name}:@{place}"))


def test_a_role_with_one_connection_adopts_and_migrates(load_legacy: Load, engine: str):
    url = load_legacy("era-b-small")
    name = f"agentdb_single_{os.getpid()}"
    tables = ("agents", "sessions", "sandboxes", "api_keys")
    execute(
        url,
        f"CREATE ROLE {name} LOGIN CONNECTION LIMIT 1",
        f"GRANT ALL ON SCHEMA public TO {name}",
        *(f"ALTER TABLE {table} OWNER TO {name}" for table in tables),
    )
    mine = with_role(url, name)
    try:
        for words in (
            ["baselinedb"],
            ["migrate", "agentdb", "0001"],
            ["migrate", "agentdb"],
        ):
            with opened(mine) as connection:
                manage(connection, *words)
            wait_for_the_end_of(url, name)
    finally:
        execute(url, f"DROP OWNED BY {name}", f"DROP ROLE {name}")


def test_tables_of_several_owners(load_legacy: Load, engine: str):
    url = load_legacy("era-b-small")
    names = [f"agentdb_{letter}_{os.getpid()}" for letter in "abc"]
    execute(url, *(f"CREATE ROLE {name} LOGIN" for name in names), f"ALTER TABLE agents OWNER TO {names[0]}",
            f"ALTER TABLE sessions OWNER TO {names[1]}", f"GRANT ALL ON SCHEMA public TO {names[2]}",
            f"GRANT SELECT ON ALL TABLES IN SCHEMA public TO {names[2]}")  # fmt: skip
    mine = with_role(url, names[2])
    try:
        assert_refused(
            mine,
            "The tables have several owners: use a role that is a member of all of them, or give the",
        )
        assert f"table 'sessions', which '{names[1]}' owns" in baselinedb(mine).err
    finally:
        execute(url, *(f"REASSIGN OWNED BY {name} TO CURRENT_USER" for name in names),
                *(f"DROP OWNED BY {name}" for name in names), *(f"DROP ROLE {name}" for name in names))  # fmt: skip


def test_a_sequence_behind_its_rows(load_legacy: Load, engine: str):
    url = load_legacy("era-b-small")
    execute(
        url,
        "CREATE TABLE django_migrations (id bigint GENERATED BY DEFAULT AS IDENTITY PRIMARY KEY, app varchar(255)"
        " NOT NULL, name varchar(255) NOT NULL, applied timestamptz NOT NULL)",
        "INSERT INTO django_migrations VALUES (1, 'other', '0001_initial', now())",
    )

    assert_refused(
        url,
        'The sequence of django_migrations.id is behind its rows. Run "SELECT setval(',
    )
    execute(
        url,
        "SELECT setval(pg_get_serial_sequence('django_migrations', 'id'), max(id)) FROM django_migrations",
    )
    assert baselinedb(url).code == 0


def test_an_event_trigger_that_hides_the_rows_of_new_tables(
    load_legacy: Load, engine: str
):
    url = load_legacy("era-a")
    execute(
        url,
        "CREATE FUNCTION secure() RETURNS event_trigger LANGUAGE plpgsql AS $$ DECLARE made record; BEGIN"
        " FOR made IN SELECT * FROM pg_event_trigger_ddl_commands() WHERE command_tag = 'CREATE TABLE' LOOP"
        " EXECUTE format('ALTER TABLE %s ENABLE ROW LEVEL SECURITY', made.object_identity); END LOOP; END $$",
        "CREATE EVENT TRIGGER secure ON ddl_command_end EXECUTE FUNCTION secure()",
    )

    assert_refused(
        url,
        "Table django_migrations has row security: agentdb could not read the record of migrations.",
    )
    assert (
        "The event trigger 'secure' calls secure on each schema change."
        in baselinedb(url).err
    )
    execute(url, "ALTER EVENT TRIGGER secure DISABLE")
    assert_can_be_adopted(url)


def test_a_publication_that_lacks_the_new_key(load_legacy: Load, engine: str):
    url = load_legacy("era-b-stuck")
    with psycopg.connect(url) as connection:
        version = connection.info.server_version
    if version < 150_000:
        pytest.skip("publications have lists of columns from PostgreSQL 15 on")
    execute(url, "CREATE PUBLICATION own FOR TABLE agents (name, path)")

    assert_refused(
        url,
        'Table agents could not be updated: cannot update table "agents": Column list used by the publication does not '
        "cover the replica identity.",
    )


def test_a_replica_identity_that_was_the_old_key(load_legacy: Load, engine: str):
    url = load_legacy("era-b-stuck")
    execute(
        url,
        "ALTER TABLE agents REPLICA IDENTITY USING INDEX agents_pkey",
        "CREATE PUBLICATION own FOR ALL TABLES",
    )

    assert_can_be_adopted(url)
    with agentdb.connect(url) as db:
        agent = db.list_agents()[0]
        assert db.upsert_agent(agent.name, "/new", agent.tenant_id).path == "/new"


@pytest.mark.parametrize(
    "kind", ["DOMAIN api_keys AS text", "TYPE api_keys AS ENUM ('a')"]
)
def test_a_type_with_the_name_of_a_table(load_legacy: Load, engine: str, kind: str):
    url = load_legacy("era-a")
    execute(url, f"CREATE {kind}")

    assert_refused(
        url,
        'The adoption would fail on what was built around the tables: type "api_keys" already exists. Rename',
    )


def test_an_index_with_the_name_of_a_new_tables_key(load_legacy: Load, engine: str):
    url = load_legacy("era-a")
    execute(
        url,
        "CREATE TABLE notes (x int)",
        "CREATE INDEX api_keys_pkey ON notes (x)",
    )

    assert_refused(
        url,
        "Index 'api_keys_pkey' of table 'notes' has a name that agentdb needs. Rename it.",
    )


def test_an_index_that_was_half_built(load_legacy: Load, engine: str):
    url = load_legacy("era-b-small")
    execute(
        url,
        "INSERT INTO sessions (id, agent_name, sandbox_id) VALUES ('1', 'twice', 'b'), ('2', 'twice', 'b')",
    )
    with pytest.raises(psycopg.errors.UniqueViolation):
        execute(
            url,
            "CREATE UNIQUE INDEX CONCURRENTLY idx_sessions_created ON sessions (agent_name)",
        )

    assert_can_be_adopted(url)


def test_null_among_native_timestamps(load_legacy: Load, engine: str):
    url = load_legacy("era-b-small")
    assert baselinedb(url).code == 0
    execute(url, "DROP TABLE django_migrations", "ALTER TABLE sessions ALTER created_at DROP NOT NULL",
            "UPDATE sessions SET created_at = NULL WHERE id = (SELECT min(id) FROM sessions)")  # fmt: skip

    assert_refused(url, "column 'created_at': NULL is not allowed")


@pytest.mark.parametrize("instant", ["infinity", "12026-01-01", "0044-03-15 BC"])
def test_an_instant_that_python_cannot_hold_is_found_after_the_adoption_too(
    load_legacy: Load, engine: str, instant: str
):
    url = load_legacy("era-b-small")
    assert baselinedb(url).code == 0
    execute(
        url,
        f"UPDATE sessions SET created_at = '{instant}' WHERE id = (SELECT min(id) FROM sessions)",
    )

    assert_refused(url, "1 value cannot be converted.")
    with opened(url) as connection, pytest.raises((SystemExit, CommandError)):
        manage(connection, "verifydb")
