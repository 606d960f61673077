"""The time limit of a ``Db``'s calls, for tests in which one has to be over soon and the others may take any time."""

from __future__ import annotations

from functools import partial
from typing import Any

from django.db import connections

from agentdb import DjangoDb
from agentdb.serving.connections.postgresql import _limited


def set_call_timeout(db: DjangoDb, seconds: float) -> None:
    """Change the limit for what the calling thread has open, and for every connection from now on."""
    engine: Any = db._threads.engine
    engine.call_timeout = seconds
    raw: Any = connections[db.alias].connection
    if raw is not None:
        raw.wait = partial(_limited, engine, raw, seconds)
