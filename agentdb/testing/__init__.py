"""For tests of code that uses agentdb: ``MemoryDb``, and pytest fixtures in ``agentdb.testing.fixtures``."""

from __future__ import annotations

from agentdb.testing.memory import MemoryDb

__all__ = ["MemoryDb"]
