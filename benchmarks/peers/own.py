"""agentdb itself."""

from __future__ import annotations

import agentdb
from benchmarks.databases import Database


def open_peer(database: Database) -> agentdb.DjangoDb:
    return agentdb.connect(database.url)
