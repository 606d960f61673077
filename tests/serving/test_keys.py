"""How API keys are made, stored and checked."""

from __future__ import annotations

import asyncio
import hmac
import logging
import re
import traceback
from pathlib import Path
from typing import Any

import pytest
from django.db import connections
from django.test.utils import CaptureQueriesContext

import agentdb
from agentdb import DjangoDb, InvalidInputError, keys
from agentdb.keys import KeyHashes
from agentdb.testing import MemoryDb
from tests.helpers.factories import execute

PLAIN = "agentdb_" + "s3cret" * 7


def test_generated_key_is_a_prefix_and_256_random_bits():
    hashes = KeyHashes()
    plain, key_hash = hashes.generate()

    assert re.fullmatch(r"agentdb_[A-Za-z0-9_-]{43}", plain)
    assert key_hash == keys.bare_hash(plain)
    assert len({hashes.generate()[0] for _ in range(100)}) == 100


def test_hash_is_the_sha_256_that_existing_databases_hold():
    assert (
        keys.bare_hash("abc")
        == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    )
    assert (
        keys.bare_hash("ключ")
        == "1de36a32af798da0c1ac9297603a320ed8fe567cf21c9177112a4ce914ebb8be"
    )


def test_issued_key_authenticates_as_its_record(db: DjangoDb):
    plain, record = db.issue_api_key("acme", "laptop")

    assert (record.tenant_id, record.label) == ("acme", "laptop")
    assert record.key_hash == keys.bare_hash(plain)
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


@pytest.mark.parametrize(
    "wrong", ["", "agentdb_", "x", "\x00", "\ud800", "ü", "A" * 10_000]
)
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


def test_database_holds_no_plain_key(db: DjangoDb, url: str):
    plain, _ = db.issue_api_key("acme", "laptop")
    secret = plain.removeprefix(keys.PREFIX)
    db.authenticate(plain)

    stored = str(execute(url, "SELECT * FROM api_keys"))
    assert keys.bare_hash(plain) in stored
    assert secret not in stored


def test_record_of_an_issued_key_does_not_show_it(db: DjangoDb):
    plain, record = db.issue_api_key("acme", "laptop")

    assert plain not in repr(record)
    assert plain not in repr(db)


def test_error_of_a_failed_issue_does_not_show_the_key(
    db: DjangoDb, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(KeyHashes, "generate", lambda _: (PLAIN, "taken"))
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


def test_authenticate_is_one_query(db: DjangoDb):
    plain, record = db.issue_api_key("acme", "laptop")

    with CaptureQueriesContext(connections[db.alias]) as sent:
        assert db.authenticate(plain) == record
    assert len(sent) == 1


SECRET = "the server's own secret, ключ"
# What a server in JavaScript stores: createHmac("sha256", SECRET).update("abc").digest("hex")
HMAC_OF_ABC = hmac.new(SECRET.encode(), b"abc", "sha256").hexdigest()


@pytest.mark.parametrize("kind", ["memory", "connect"])
def test_with_a_secret_keys_are_stored_as_its_hmac_and_bare_ones_are_known_too(
    kind: str, url: str
):
    with (
        MemoryDb(key_secret=SECRET)
        if kind == "memory"
        else agentdb.connect(url, key_secret=SECRET) as db
    ):
        old = db.insert_api_key(
            "old", "acme", keys.bare_hash("abc"), "from before the secret"
        )
        keyed = db.insert_api_key("new", "acme", HMAC_OF_ABC, "the same key")
        plain, issued = db.issue_api_key("zenith", "laptop")

        assert (
            issued.key_hash
            == hmac.new(SECRET.encode(), plain.encode(), "sha256").hexdigest()
        )
        assert db.authenticate(plain) == issued
        assert db.authenticate("abc") == keyed
        db.delete_api_key("new")
        assert db.authenticate("abc") == old
        assert db.authenticate(keys.bare_hash("abc")) is None
        assert db.for_tenant("zenith").authenticate(plain) == issued
        assert db.for_tenant("acme").authenticate(plain) is None


def test_a_view_of_a_tenant_issues_under_the_secret(url: str):
    with agentdb.connect(url, key_secret=SECRET) as db:
        plain, issued = db.for_tenant("acme").issue_api_key("acme", "laptop")
        assert (
            issued.key_hash
            == hmac.new(SECRET.encode(), plain.encode(), "sha256").hexdigest()
        )


def test_without_the_secret_its_keys_are_unknown(db: DjangoDb):
    db.insert_api_key("k", "acme", HMAC_OF_ABC, "")

    assert db.authenticate("abc") is None
    assert DjangoDb(db.alias, key_secret="another").authenticate("abc") is None
    assert DjangoDb(db.alias, key_secret=SECRET).authenticate("abc") is not None


def test_the_environment_has_the_secret_unless_it_is_blank(
    db: DjangoDb, monkeypatch: pytest.MonkeyPatch
):
    db.insert_api_key("k", "acme", HMAC_OF_ABC, "")

    monkeypatch.setenv("AGENTDB_KEY_SECRET", SECRET)
    assert DjangoDb(db.alias).authenticate("abc") is not None
    assert DjangoDb(db.alias, key_secret="another").authenticate("abc") is None
    monkeypatch.setenv("AGENTDB_KEY_SECRET", "")
    assert DjangoDb(db.alias).authenticate("abc") is None


def test_a_secret_of_the_environment_may_be_any_bytes(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv(
        "AGENTDB_KEY_SECRET", b"\xffsecret".decode(errors="surrogateescape")
    )

    assert (
        KeyHashes().hash("abc") == hmac.new(b"\xffsecret", b"abc", "sha256").hexdigest()
    )


@pytest.mark.parametrize(
    ("secret", "message"),
    [
        ("", "key_secret must not be empty. Leave it out to store keys as SHA-256."),
        ("s3cr\ud800", "key_secret has a lone surrogate."),
        (SECRET.encode(), "key_secret must be a string, not bytes."),
        (7, "key_secret must be a string, not int."),
    ],
)
def test_what_is_not_a_secret_is_refused_before_anything_is_opened(
    secret: Any, message: str, tmp_path: Path
):
    with pytest.raises(InvalidInputError) as raised:
        agentdb.connect(f"sqlite:///{tmp_path}/new.db", migrate=True, key_secret=secret)

    assert str(raised.value) == message
    assert list(tmp_path.iterdir()) == []
    with pytest.raises(InvalidInputError, match=message):
        MemoryDb(key_secret=secret)


def test_secret_is_in_no_repr_error_or_log(url: str, caplog: pytest.LogCaptureFixture):
    caplog.set_level(logging.DEBUG)
    with agentdb.connect(url, key_secret=SECRET) as db:
        shown = [repr(db), db.describe(), repr(db.for_tenant("acme")), repr(vars(db))]
        plain, _ = db.issue_api_key("acme", "laptop")
        with connections[db.alias].cursor() as cursor:
            cursor.execute("DROP TABLE api_keys")
        with pytest.raises(agentdb.AgentDbError) as raised:
            db.authenticate(plain)

    shown += ["".join(traceback.format_exception(raised.value)), caplog.text]
    assert not any(SECRET in text or plain in text for text in shown)


async def _issued_and_found(url: str) -> tuple[Any, Any]:
    async with agentdb.connect_async(url, key_secret=SECRET) as db:
        plain, record = await db.issue_api_key("acme", "laptop")
        assert record.key_hash == KeyHashes(SECRET).hash(plain) != keys.bare_hash(plain)
        return record, await db.authenticate(plain)


def test_connect_async_takes_the_secret(url: str):
    record, found = asyncio.run(_issued_and_found(url))

    assert found == record
