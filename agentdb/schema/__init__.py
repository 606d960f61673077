"""The schema as data: what the models expect, what a database has, and the differences. Read-only."""

from __future__ import annotations

from agentdb.schema.comparison import Difference, compare, drift
from agentdb.schema.expected import APP_LABEL, expected_table, expected_tables
from agentdb.schema.introspection import read_tables, table_names
from agentdb.schema.tables import Column, Table

__all__ = [
    "APP_LABEL",
    "Column",
    "Difference",
    "Table",
    "compare",
    "drift",
    "expected_table",
    "expected_tables",
    "read_tables",
    "table_names",
]
