"""The raw driver's transaction at PostgreSQL's default isolation, which promises less than ``run_transaction()``."""

from __future__ import annotations

from benchmarks.databases import Database
from benchmarks.peers.raw import Raw, RawPostgres
from benchmarks.peers.raw import open_peer as open_raw


def open_peer(database: Database) -> ReadCommitted:
    return ReadCommitted(open_raw(database))


class ReadCommitted:
    def __init__(self, raw: Raw) -> None:
        self.close = raw.close
        # On SQLite every transaction is serializable, so there is nothing to compare.
        if isinstance(raw, RawPostgres):
            self.run_transaction = raw.run_read_committed
