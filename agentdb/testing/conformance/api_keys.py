"""API keys: by hash, by tenant, by their plain form."""

from __future__ import annotations

from datetime import UTC

import pytest

from agentdb import ApiKeyRecord, Db, DuplicateKeyError
from agentdb.testing.conformance.subject import (
    IDS,
    Rewrite,
    Subject,
    ids,
    instant,
    make_api_key,
)


class ApiKeyContract(Subject):
    def test_insert_api_key_returns_what_a_get_by_hash_returns(self, db: Db) -> None:
        key = db.insert_api_key("k1", "acme", "hash-1", "ci")

        assert key == ApiKeyRecord(
            "k1",
            "acme",
            "hash-1",
            "ci",
            key.created_at,
        )
        assert key.created_at.tzinfo is UTC
        assert db.get_api_key_by_hash("hash-1") == key

    @pytest.mark.parametrize(("id", "key_hash"), [("k1", "another"), ("k2", "hash-1")])
    def test_insert_api_key_with_a_taken_id_or_hash_raises_without_saying_the_hash(
        self, db: Db, id: str, key_hash: str
    ) -> None:
        """The message names the id, and does not say which of the two is taken: that would confirm a guessed hash."""
        # PostgreSQL's own message quotes the hash, which then stands in logs and in answers to strangers.
        key = make_api_key(db)

        with pytest.raises(DuplicateKeyError) as raised:
            make_api_key(db, id, "other", key_hash)

        message = str(raised.value)
        expected = (
            f"An API key with the id {id!r}, or with the same hash, exists already."
        )
        assert message == expected
        assert db.list_api_keys_by_tenant("acme") == [key]
        assert db.list_api_keys_by_tenant("other") == []

    def test_list_api_keys_is_of_one_tenant_newest_first_ties_by_id_descending(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        just_after = instant(0.000001)
        for id in IDS:
            make_api_key(db, id, key_hash=f"hash of {id}")
            rewrite("api_keys", id, created_at=instant())
        make_api_key(db, "new", key_hash="hash of new")
        rewrite("api_keys", "new", created_at=just_after)
        make_api_key(db, "other", "other", "hash of other")

        listed = db.list_api_keys_by_tenant("acme")

        assert ids(listed) == ["new", *IDS[::-1]]
        assert listed[0] == db.get_api_key_by_hash("hash of new")

    def test_delete_api_key_deletes_that_one(self, db: Db) -> None:
        """The first delete of a key is True, and the second, which finds nothing, is False."""
        make_api_key(db)
        make_api_key(db, "k2", key_hash="hash-2")

        deleted = db.delete_api_key("k1")

        assert deleted is True
        assert db.get_api_key_by_hash("hash-1") is None
        assert db.get_api_key_by_hash("hash-2") is not None
        assert db.delete_api_key("k1") is False

    def test_authenticate_finds_the_key_by_its_plain_form_only(self, db: Db) -> None:
        """What no key can look like is nobody's key and not an error: a request's header gets here unchecked.

        The stored hash, which a leaked backup shows, does not open the door either.
        """
        plain, key = db.issue_api_key("acme", "ci")
        others = [
            plain[:-1],
            plain.upper(),
            plain + "\0",
            key.key_hash,
            "",
            "a\ud800",
        ]

        assert db.authenticate(plain) == key
        for other in others:
            assert db.authenticate(other) is None
