"""The peers: each does the operations of ``Db`` under the same names, in its own best manner."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import Any

from benchmarks.databases import Database

# Raw and agentdb return records; the others return what they give their users, which spares them that work.
MODULES = {
    "raw": "benchmarks.peers.raw",
    "read committed": "benchmarks.peers.read_committed",
    "agentdb": "benchmarks.peers.own",
    "django": "benchmarks.peers.plain_django",
    "sqlalchemy core": "benchmarks.peers.sqlalchemy_core",
    "sqlalchemy orm": "benchmarks.peers.sqlalchemy_orm",
    "djanorm": "benchmarks.peers.djanorm",
}


def open_peer(name: str, database: Database) -> Any:
    """Return the peer on the database; ``ImportError`` where its package is not installed."""
    open_on: Callable[[Database], Any] = import_module(MODULES[name]).open_peer
    return open_on(database)
