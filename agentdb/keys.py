"""API keys: what is shown once, and what is stored."""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
import uuid
from typing import Any, Self

from agentdb.errors import InvalidInputError
from agentdb.interface import ApiKeyRecord

PREFIX = "agentdb_"
SECRET_VARIABLE = "AGENTDB_KEY_SECRET"


class KeyHashes:
    """How plain keys are stored: in hex, as HMAC-SHA256 with a secret, or else as SHA-256.

    A fast hash is enough: a key is 256 random bits, not a password to guess. The secret is in no ``repr``.
    """

    __slots__ = ("_secret",)

    def __init__(self, secret: str | None = None) -> None:
        """Use the secret, or else ``AGENTDB_KEY_SECRET``; raise ``InvalidInputError`` if it is unusable."""
        if secret is None:
            secret = os.environ.get(SECRET_VARIABLE) or None
        elif not isinstance(secret, str):
            raise InvalidInputError(
                f"key_secret must be a string, not {type(secret).__name__}."
            )
        elif not secret:
            raise InvalidInputError(
                "key_secret must not be empty. Leave it out to store keys as SHA-256."
            )
        self._secret: bytes | None = None
        if secret is None:
            return
        try:
            # An environment variable may hold bytes that are not UTF-8.
            self._secret = secret.encode(errors="surrogateescape")
        except UnicodeEncodeError:
            raise InvalidInputError("key_secret has a lone surrogate.") from None

    def generate(self) -> tuple[str, str]:
        """Return a new plain key and its hash. Show the plain key once, and do not store it."""
        plain = PREFIX + secrets.token_urlsafe(32)
        return plain, self.hash(plain)

    def hash(self, plain: str) -> str:
        """Return the hash under which a new key is stored."""
        if self._secret is None:
            return bare_hash(plain)
        keyed = hmac.new(self._secret, _encoded(plain), hashlib.sha256)
        return keyed.hexdigest()

    def known(self, plain: str) -> tuple[str, str]:
        """Return the two hashes under which the key may be stored, that of ``hash`` first; equal without a secret."""
        if not isinstance(plain, str):
            raise InvalidInputError(
                f"An API key must be a string, not {type(plain).__name__}."
            )
        # Both, so that keys that were issued before a secret was set stay valid.
        return self.hash(plain), bare_hash(plain)


class KeyIssuer:
    """Makes API keys for a ``Db``, and closes it at the end of a ``with``."""

    _hashes: KeyHashes

    # Any, because only together with the other methods it is a Db.
    def issue_api_key(
        self: Any, tenant_id: str, label: str
    ) -> tuple[str, ApiKeyRecord]:
        """Create and store a key; return the plain key, which is not stored, and the record."""
        plain, key_hash = self._hashes.generate()
        id = str(uuid.uuid4())
        record = self.insert_api_key(id, tenant_id, key_hash, label)
        return plain, record

    def __enter__(self) -> Self:
        return self

    def __exit__(self: Any, *_: object) -> None:
        self.close()


def bare_hash(plain: str) -> str:
    """Return the SHA-256 of the plain key in hex: what servers without a secret store."""
    return hashlib.sha256(_encoded(plain)).hexdigest()


def _encoded(plain: str) -> bytes:
    # A header may hold bytes that are not UTF-8. No key has those, and an error would quote the key.
    return plain.encode(errors="surrogatepass")
