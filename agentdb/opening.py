"""connect() and connect_async(): from a URL to a Db, with or without a Django project around."""

from __future__ import annotations


def connect() -> None: ...
def connect_async() -> None: ...
