from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from django.core.management.commands import inspectdb
from django.db import connections

from agentdb.schema.introspection import LOCK_TABLE

# CockroachDB lists the tables of its spatial extension in every schema.
_OF_COCKROACHDB = (
    "geography_columns",
    "geometry_columns",
    "spatial_ref_sys",
    LOCK_TABLE,
)


class Command(inspectdb.Command):
    """Django's inspectdb, without the tables that are CockroachDB's own."""

    def handle_inspection(self, options: dict[str, Any]) -> Iterator[str]:
        connection = connections[options["database"]]
        if connection.vendor == "cockroachdb":
            introspection: Any = connection.introspection
            introspection.ignored_tables = _OF_COCKROACHDB
        yield from super().handle_inspection(options)
