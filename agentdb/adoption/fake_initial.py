"""Decides whether ``migrate --fake-initial`` may record ``0001_initial``; Django compares only table names."""

from __future__ import annotations

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.obstacles import OLD_COLUMNS, AdoptionRefusedError
from agentdb.adoption.plan import read
from agentdb.adoption.shapes import Kind, Shape, unadopted
from agentdb.adoption.steps import is_obsolete_key
from agentdb.errors import SchemaMismatchError


def refuse_unadopted(connection: BaseDatabaseWrapper, *, fake_initial: bool) -> None:
    """Raise ``SchemaMismatchError`` if the old server's tables prevent the first migration. Read-only.

    With ``fake_initial``, tables are accepted if 0002_native_timestamps can bring them, every row included, to their
    final shape.
    """
    shape = unadopted(connection)
    if shape is None:
        return  # later migrations check for themselves
    if shape.problems:
        then = " Then run 'agentdb baselinedb'." if shape.tables else ""
        raise SchemaMismatchError(" ".join(shape.problems) + then)
    if not shape.tables:
        return
    is_initial = _is_initial(shape)
    if not (is_initial and fake_initial):
        other = ", or 'agentdb migrate --fake-initial'" if is_initial else ""
        where = ", ".join(shape.tables)
        raise SchemaMismatchError(
            f"The database already has the old server's tables ({where}): {shape.description}. "
            f"Run 'agentdb baselinedb', which backs up, adopts and verifies them{other}."
        )
    # Before Django records 0001_initial; 0002 would only find out later.
    if refusals := read(connection).refusals:
        raise AdoptionRefusedError(refusals)


def _is_initial(shape: Shape) -> bool:
    """Return whether 0002_native_timestamps can bring the tables to their final shape, and drops no foreign key."""
    # It does not rename agents_new.
    if shape.kind not in (Kind.MULTI_TENANT, Kind.LATER) or shape.renames:
        return False
    return not any(
        is_obsolete_key(key, OLD_COLUMNS[name])
        for name, table in shape.tables.items()
        for key in table.foreign_keys
    )
