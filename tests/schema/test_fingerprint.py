"""verifydb --fingerprint: equal where the schema is equal, and another after any change."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from typing import Any

import pytest
from django.core.management import CommandError, call_command

from agentdb.schema.fingerprint import _cockroachdb
from tests.helpers.baseline_runs import baselinedb
from tests.helpers.factories import execute
from tests.helpers.legacy_databases import opened

CHANGES = {
    "sqlite": [
        "CREATE INDEX own ON sessions (status)",
        "ALTER TABLE sessions ADD COLUMN own TEXT",
        "CREATE TRIGGER own AFTER INSERT ON agents BEGIN SELECT 1; END",
        "DROP INDEX idx_sessions_created",
    ],
    "postgresql": [
        "CREATE INDEX own ON sessions (status)",
        "ALTER TABLE sessions ADD own text",
        "ALTER TABLE sessions ALTER status SET DEFAULT 'active'",
        "ALTER TABLE sessions ALTER status DROP NOT NULL",
        "CREATE FUNCTION own() RETURNS trigger LANGUAGE plpgsql AS 'BEGIN RETURN NEW; END';"
        " CREATE TRIGGER own BEFORE UPDATE ON sessions FOR EACH ROW EXECUTE FUNCTION own()",
        "CREATE RULE own AS ON DELETE TO agents DO INSTEAD NOTHING",
        "CREATE POLICY own ON agents USING (true)",
        "ALTER TABLE sessions ENABLE ROW LEVEL SECURITY",
        "GRANT SELECT ON sessions TO PUBLIC",
        "GRANT SELECT (id) ON sessions TO PUBLIC",
        "ALTER TABLE sessions SET (fillfactor = 70)",
        "ALTER TABLE sessions OWNER TO pg_monitor",
        "ALTER TABLE sessions SET UNLOGGED",
        "ALTER TABLE sessions REPLICA IDENTITY FULL",
    ],
}


def fingerprint(url: str, *expected: str, **options: Any) -> str:
    out = io.StringIO()
    with opened(url) as connection:
        call_command("verifydb", "--fingerprint", *expected, database=connection.alias, stdout=out, **options)
    return out.getvalue().strip()


@pytest.mark.parametrize("stem", ["era-a", "era-b-small"])
def test_a_fresh_and_an_adopted_database_have_the_same(url: str, load_legacy: Callable[[str], str], stem: str) -> None:
    adopted = load_legacy(stem)
    assert baselinedb(adopted).code == 0

    found = fingerprint(adopted)
    assert found == fingerprint(url)
    assert len(found) == 64


def test_each_change_makes_another(url: str, engine: str) -> None:
    seen = [fingerprint(url)]
    for change in CHANGES[engine]:
        execute(url, change)
        seen.append(fingerprint(url))

    assert len(set(seen)) == len(seen)


def test_rows_and_what_is_not_ours_make_none(url: str, db: Any) -> None:
    before = fingerprint(url)
    db.insert_session("s", "a", "sb")
    execute(url, "CREATE TABLE own (sessions text)")

    assert fingerprint(url) == before


def test_a_pinned_one_that_is_another_exits_with_1(url: str) -> None:
    found = fingerprint(url)
    assert fingerprint(url, found) == found

    with pytest.raises(CommandError) as raised:
        fingerprint(url, "0" * 64)
    assert (raised.value.returncode, str(raised.value)) == (
        1,
        f"The schema is another than the one pinned, {'0' * 64}.",
    )


def test_it_says_what_it_is_of(url: str) -> None:
    found = fingerprint(url)
    lines = fingerprint(url, verbosity=2).splitlines()

    assert lines[-1] == found
    assert {line.partition(":")[0] for line in lines[:-1]} == {"agents", "api_keys", "sandboxes", "sessions"}
    assert json.loads(fingerprint(url, json=True)) == {"format": 1, "fingerprint": found}


def test_a_cockroachdb_is_asked_for_its_own_words() -> None:
    answers = {
        'SHOW CREATE TABLE "agents"': [("agents", "CREATE TABLE public.agents (\n\tid STRING NOT NULL\n)")],
        'SHOW GRANTS ON TABLE "agents"': [("db", "public", "agents", "root", "ALL", True)],
    }

    class Cursor:
        def execute(self, statement: str) -> None:
            self.fetchall = lambda: answers[statement]

    assert list(_cockroachdb(Cursor(), ["agents"])) == [
        "agents: ('CREATE TABLE public.agents (\\n\\tid STRING NOT NULL\\n)',)",
        "agents: ('public', 'agents', 'root', 'ALL', True)",
    ]
