"""API keys: what is shown once, and what is stored."""

from __future__ import annotations

import hashlib
import secrets

PREFIX = "agentdb_"


def generate_api_key() -> tuple[str, str]:
    """Return a new plain key and its hash. The plain key is to be shown once and kept nowhere."""
    plain = PREFIX + secrets.token_urlsafe(32)
    return plain, hash_api_key(plain)


def hash_api_key(plain: str) -> str:
    """Return the SHA-256 of the plain key in hex, the form the old server stores.

    A fast hash is enough: the key is 256 random bits, not a password to guess.
    """
    # A header may hold bytes that are no UTF-8; they belong to no key, and an error would name the key.
    return hashlib.sha256(plain.encode(errors="surrogatepass")).hexdigest()
