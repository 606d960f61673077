"""The contract of ``Db`` as tests, for any implementation of it: a wrapper, a cache, a database of your own.

    from agentdb.testing.conformance import DbContract

    class TestMyDb(DbContract):
        factory = MyDb  # called for each test: returns an empty Db, or an empty AsyncDb

pytest then runs every test of the contract on it. Some need rows of a certain age, which no ``Db`` sets: they are
skipped unless the class has a fixture ``rewrite``, a function ``(table, id, **columns)`` that changes a stored row. An
implementation that needs cleaning up after a test overrides the fixture ``db`` instead of naming a factory.
"""

from __future__ import annotations

from agentdb.testing.conformance.changes import ChangeContract
from agentdb.testing.conformance.lists import ListContract
from agentdb.testing.conformance.refusals import RefusalContract
from agentdb.testing.conformance.rows import RowContract
from agentdb.testing.conformance.subject import Rewrite, awaited
from agentdb.testing.conformance.whole import WholeContract

__all__ = ["DbContract", "Rewrite", "awaited"]


class DbContract(
    RowContract,
    ChangeContract,
    ListContract,
    WholeContract,
    RefusalContract,
):
    """All tests of the contract. A subclass names its ``factory``, or overrides the fixture ``db``."""
