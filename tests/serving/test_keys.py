"""How API keys are made, stored and checked."""

from __future__ import annotations

import asyncio
import re
import traceback
from typing import Any

import psycopg
import pytest
from django.db import connections

import agentdb
from agentdb import ApiKeyRecord, DjangoDb, InvalidInputError, keys
from agentdb.serving import adapter, queries
from agentdb.serving.executor import Executor

PLAIN = "agentdb_" + "s3cret" * 7


def test_generated_key_is_a_prefix_and_256_random_bits():
    plain, key_hash = keys.generate_api_key()

    assert re.fullmatch(r"agentdb_[A-Za-z0-9_-]{43}", plain)
    assert key_hash == keys.hash_api_key(plain)
    assert len({keys.generate_api_key()[0] for _ in range(100)}) == 100


def test_hash_is_the_sha_256_that_existing_databases_hold():
    assert keys.hash_api_key("abc") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    assert keys.hash_api_key("ключ") == "1de36a32af798da0c1ac9297603a320ed8fe567cf21c9177112a4ce914ebb8be"


def test_issued_key_authenticates_as_its_record(db: DjangoDb):
    plain, record = db.issue_api_key("acme", "laptop")

    assert (record.tenant_id, record.label) == ("acme", "laptop")
    assert record.key_hash == keys.hash_api_key(plain)
    assert db.authenticate(plain) == record
    assert db.list_api_keys_by_tenant("acme") == [record]


async def _issue_and_check(url: str) -> tuple[Any, Any, Any]:
    async with agentdb.connect_async(url) as db:
        plain, record = await db.issue_api_key("acme", "laptop")
        return record, await db.authenticate(plain), await db.authenticate(f"{plain}x")


def test_keys_work_through_async_db(url: str):
    record, found, other = asyncio.run(_issue_and_check(url))

    assert found == record
    assert other is None


@pytest.mark.parametrize("wrong", ["", "agentdb_", "x", "\x00", "\ud800", "ü", "A" * 10_000])
def test_authenticate_returns_none_for_what_is_no_key(db: DjangoDb, wrong: str):
    plain, record = db.issue_api_key("acme", "laptop")

    assert db.authenticate(wrong) is None
    assert db.authenticate(plain.upper()) is None
    assert db.authenticate(record.key_hash) is None


def test_authenticate_refuses_what_is_no_text_without_repeating_it(db: DjangoDb):
    with pytest.raises(InvalidInputError) as raised:
        db.authenticate(PLAIN.encode())  # type: ignore[arg-type]

    assert str(raised.value) == "An API key must be a string, not bytes."


def test_revoked_key_authenticates_no_more(db: DjangoDb):
    plain, record = db.issue_api_key("acme", "laptop")

    db.delete_api_key(record.id)

    assert db.authenticate(plain) is None


def test_database_holds_no_plain_key(db: DjangoDb, url: str, engine: str):
    plain, _ = db.issue_api_key("acme", "laptop")
    secret = plain.removeprefix(keys.PREFIX)
    db.authenticate(plain)

    if engine == "sqlite":
        with connections[db.alias].cursor() as cursor:
            stored = "\n".join(str(row) for row in cursor.execute("SELECT * FROM api_keys").fetchall())
    else:
        with psycopg.connect(url) as connection:
            stored = str(connection.execute("SELECT * FROM api_keys").fetchall())
    assert keys.hash_api_key(plain) in stored
    assert secret not in stored


def test_record_of_an_issued_key_does_not_show_it(db: DjangoDb):
    plain, record = db.issue_api_key("acme", "laptop")

    assert plain not in repr(record)
    assert plain not in repr(db)


def test_error_of_a_failed_issue_does_not_show_the_key(db: DjangoDb, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(adapter, "generate_api_key", lambda: (PLAIN, "taken"))
    db.issue_api_key("acme", "first")

    with pytest.raises(agentdb.DuplicateKeyError) as raised:
        db.issue_api_key("acme", "second")

    assert PLAIN not in "".join(traceback.format_exception(raised.value))


def test_error_of_a_failed_check_does_not_show_the_key(db: DjangoDb):
    with connections[db.alias].cursor() as cursor:
        cursor.execute("DROP TABLE api_keys")

    with pytest.raises(agentdb.AgentDbError) as raised:
        db.authenticate(PLAIN)

    assert PLAIN not in "".join(traceback.format_exception(raised.value))


def test_authenticate_is_one_lookup_by_hash(db: DjangoDb, monkeypatch: pytest.MonkeyPatch):
    plain, record = db.issue_api_key("acme", "laptop")
    calls: list[Any] = []
    real = Executor.first

    def first(self: Executor, *arguments: Any, **parameters: Any) -> Any:
        calls.append((arguments, parameters))
        return real(self, *arguments, **parameters)

    monkeypatch.setattr(Executor, "first", first)

    assert db.authenticate(plain) == record
    assert calls == [((ApiKeyRecord, queries.GET_API_KEY_BY_HASH), {"key_hash": record.key_hash})]
