"""Copies the four tables from one database to another, on the same engine or a different one."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from functools import partial
from hashlib import blake2b
from heapq import merge
from itertools import chain, groupby, islice, repeat
from typing import Any

from django.apps import apps
from django.db import connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import Model

from agentdb.adoption.obstacles import (
    SHOWN_ROWS,
    Refusal,
    too_wide,
    unusable_reason,
)
from agentdb.adoption.progress import SILENT, Progress
from agentdb.adoption.timestamps import native_text
from agentdb.adoption.values import read_contents
from agentdb.errors import (
    AgentDbError,
    InvalidInputError,
    SchemaMismatchError,
)
from agentdb.moving.chunks import Chunk, Row, insert, read_chunks
from agentdb.schema import (
    APP_LABEL,
    compare,
    drift,
    expected_tables,
    migration_record,
    read_tables,
    table_names,
)
from agentdb.schema.inspection import (
    MissingFileError,
    check_target_file,
    inspecting,
    sqlite_path,
    translated_errors,
    unless_changed,
)
from agentdb.schema.other_tables import other_tables
from agentdb.schema.queries import count_rows, lifted_limits, quote_name, rows, run
from agentdb.schema.rows import StoredColumn, shown
from agentdb.serving.connections import describe
from agentdb.sqlite_files import identity
from agentdb.wording import counted

# The progress of an unfinished copy, in the target, committed together with the rows it counts.
CHECKPOINT = "agentdb_copy"


class TableSummary:
    """The first rows of a table, or all: how many they are, and their hash. Equal for equal rows on every engine."""

    def __init__(self) -> None:
        self.rows = 0
        self._hash = blake2b(digest_size=16)

    @property
    def state(self) -> State:
        return self.rows, self._hash.hexdigest()

    def counting(self, chunks: Iterable[Chunk]) -> Iterator[Chunk]:
        """Yield the chunks, and count each in before it is yielded."""
        for chunk in chunks:
            self.rows += len(chunk)
            self._hash.update("".join(map(repr, chunk)).encode())
            yield chunk


State = tuple[int, str]
_Pair = tuple[Row | None, Row | None]  # of the source and the target


def copy(
    source: str,
    target: str,
    progress: Progress = SILENT,
) -> dict[str, int]:
    """Copy the tables of the alias ``source`` to the alias ``target``; return the number of rows of each.

    The source is read in one snapshot and not changed. The target is migrated first if necessary. The rows are
    committed block by block; after an interruption at any moment the same call resumes. Raises
    ``InvalidInputError`` for a target with other rows and for values that cannot be copied (before the first write),
    and ``SchemaOutOfDateError`` or ``SchemaMismatchError`` if either side differs from the models.
    """
    refuse_same(source, target)
    # A single read-only transaction for the source, so that the count, the check of the values and the rows see the
    # same snapshot, whatever others write meanwhile.
    with inspecting(source) as reading:
        _check_schema(reading)
        writing = connections[target]
        # Before anything opens the file: SQLite takes an empty or a foreign one for a database to begin with.
        path = sqlite_path(writing)
        if path is not None:
            check_target_file(path)
        refuse_uncopyable(reading, writing)
        with translated_errors(writing), lifted_limits(writing, progress.say):
            begun = _begin(writing, _place(reading))
            copied = {
                _table(model): _copy_table(reading, writing, model, begun, progress)
                for model in _models()
            }
            # Built before the check, so that the check reads the finished database, the order of its index included.
            _build_indexes(writing, progress)
            _check_written(writing, copied, progress)
            _check_schema(writing)
            # Last of all: until here an interruption leaves a copy that the same command completes.
            run(writing, f"DROP TABLE {CHECKPOINT}")
            return {table: rows for table, (rows, _) in copied.items()}


def _check_written(
    writing: BaseDatabaseWrapper,
    copied: Mapping[str, State],
    progress: Progress,
) -> None:
    """Read back what was written: a copy that differs is worse than none."""
    for model in _models():
        table = _table(model)
        total, _ = copied[table]
        found = TableSummary()
        for _ in found.counting(read_chunks(writing, model)):
            progress(f"checking {table}", found.rows, total)
        if found.state != copied[table]:
            raise AgentDbError(
                f"The target does not hold what was written to {table!r}. Copy into a new database."
            )


def refuse_same(source: str, target: str) -> None:
    """Raise ``InvalidInputError`` if both aliases are the same database."""
    one, other = connections[source], connections[target]
    if one.vendor != other.vendor:
        return
    place = _whereabouts(one)
    if place is not None and place == _whereabouts(other):
        raise InvalidInputError(
            f"The source and the target are the same database, {describe(one)}. Name two."
        )


def _whereabouts(connection: BaseDatabaseWrapper) -> object:
    """Return what two aliases of one database have in common; None for a file that is yet to be made."""
    # A file by its inode, because it may have several names.
    if connection.vendor == "sqlite":
        path = sqlite_path(connection)
        return path and identity(path)
    if connection.vendor == "cockroachdb":
        return describe(connection)
    # So may a server, and a copy of a database into itself would wait for its own locks without end.
    with translated_errors(connection):
        return rows(connection, "SELECT current_database(), pg_postmaster_start_time()")


def already_copied(source: str, target: str) -> bool:
    """Return whether the target has rows, and exactly those of the source."""
    refuse_same(source, target)
    # copy() reports what cannot be read.
    with suppress(AgentDbError):
        return has_rows(target) and not differing_rows(source, target)
    return False


def check(source: str, target: str) -> dict[str, int]:
    """Raise what ``copy`` would raise before its first write, else return the row counts. Changes nothing."""
    with inspecting(source) as reading:
        _check_schema(reading)
        refuse_uncopyable(reading, connections[target])
        tables = map(_table, _models())
        counts = {table: count_rows(reading, table) for table in tables}
    # A missing file does not matter: the copy creates it.
    with suppress(MissingFileError), inspecting(target) as there:
        _refuse_rows(there)
    return counts


def check_source(alias: str) -> None:
    """Raise what a copy from the alias would raise because of its schema."""

    def look() -> None:
        with inspecting(alias) as connection:
            _check_schema(connection)

    unless_changed(look)


def differing_rows(source: str, target: str) -> list[str]:
    """Return sentences about the first rows of each table that differ."""
    # Side by side in the order of the key, so that neither table has to fit in memory.
    found: list[str] = []
    with inspecting(source) as one, inspecting(target) as other:
        _check_schema(one)
        _check_schema(other)
        for model in _models():
            found += _differing_rows(one, other, model)
    return found


def _differing_rows(
    one: BaseDatabaseWrapper,
    other: BaseDatabaseWrapper,
    model: type[Model],
) -> Iterator[str]:
    """Yield a sentence about each of the first rows that differ, and one if there are more."""
    table = _table(model)
    columns = [str(field.column) for field in model._meta.concrete_fields]
    with (
        closing(read_chunks(one, model)) as chunks_of_one,
        closing(read_chunks(other, model)) as chunks_of_other,
    ):
        pairs = _differing(
            chain.from_iterable(chunks_of_one), chain.from_iterable(chunks_of_other)
        )
        for first, second in islice(pairs, SHOWN_ROWS):
            difference = _row_difference(columns, first, second)
            yield f"Table {table!r}, id {difference}."
        if next(pairs, None) is not None:
            yield f"Table {table!r}: more rows differ."


def _differing(one: Iterable[Row], other: Iterable[Row]) -> Iterator[_Pair]:
    """Yield the differing rows of two tables in code-point order of the id, None for one that is missing."""
    sides = zip(one, repeat("one")), zip(other, repeat("other"))
    by_id = groupby(merge(*sides, key=_id), key=_id)
    for _, alike in by_id:
        found = {side: row for row, side in alike}
        pair = found.get("one"), found.get("other")
        if pair[0] != pair[1]:
            yield pair


def _id(sided: tuple[Row, str]) -> Any:
    row, _ = sided
    return row[0]


def _row_difference(columns: list[str], first: Row | None, second: Row | None) -> str:
    """Return the id of the differing rows, and what differs."""
    if first is None or second is None:
        row = first or second or ()
        side = "target" if first is None else "source"
        return f"{shown(row[0])}: only in the {side}"
    different = []
    for column, one, other in zip(columns, first, second, strict=True):
        if one != other:
            different.append(
                f"{column} is {shown(one)} in the source, {shown(other)} in the target"
            )
    return f"{shown(first[0])}: {'; '.join(different)}"


def has_rows(alias: str) -> bool:
    """Whether any of the tables is there and has a row, and no copy into them is unfinished.

    No, too, if the database cannot be read: copying makes it, or says why not.
    """
    with suppress(AgentDbError), inspecting(alias) as connection:
        return bool(_filled(connection))
    return False


def _begin(writing: BaseDatabaseWrapper, place: str) -> dict[str, State]:
    """Begin a copy from ``place``, or return by table how far the one that was stopped came."""
    if CHECKPOINT in table_names(writing):
        _check_migrations(writing)
        return _checkpoints(writing, place)
    if migration_record.pending_migrations(writing):
        _refuse_rows(writing)
        migration_record.migrate(writing.alias)
    _check_schema(writing)
    _refuse_rows(writing)
    with transaction.atomic(using=writing.alias):
        run(
            writing,
            f"CREATE TABLE {CHECKPOINT} (name text PRIMARY KEY, copied integer NOT NULL,"
            " checksum text NOT NULL)",
        )
        # The same table stores the source, under a name that no table has.
        run(writing, f"INSERT INTO {CHECKPOINT} VALUES ('', 0, %s)", [place])
        # Building an index over all rows takes half the time of inserting each row into it. On CockroachDB each
        # schema change is a job of its own, over all nodes.
        if writing.vendor != "cockroachdb":
            for model in _models():
                for index in model._meta.indexes:
                    run(writing, f"DROP INDEX {quote_name(index.name)}")
    return {}


def _checkpoints(writing: BaseDatabaseWrapper, place: str) -> dict[str, State]:
    """Return by table how far a copy from ``place`` came; raises ``InvalidInputError`` if it was of another source."""
    stored = rows(writing, f"SELECT name, copied, checksum FROM {CHECKPOINT}")
    found: dict[str, State] = {name: (number, hash) for name, number, hash in stored}
    # Rows of two databases mixed in one would pass for a copy of either.
    _, begun = found.pop("", (0, ""))
    if begun != place:
        raise InvalidInputError(
            f"The target holds an unfinished copy of {begun}. Run that copy again, or copy into a new database; "
            "nothing was changed."
        )
    return found


def _refuse_rows(connection: BaseDatabaseWrapper) -> None:
    if filled := _filled(connection):
        raise InvalidInputError(
            f"The target has rows already, in {', '.join(filled)}. Copy into a new database; nothing was changed."
        )


def _filled(connection: BaseDatabaseWrapper) -> list[str]:
    """Return which of the tables have rows; none if a copy into them is unfinished."""
    there = table_names(connection)
    if CHECKPOINT in there:
        return []
    first = "SELECT 1 FROM {} LIMIT 1"
    return [
        table
        for table in map(_table, _models())
        if table in there and rows(connection, first.format(quote_name(table)))
    ]


def _copy_table(
    reading: BaseDatabaseWrapper,
    writing: BaseDatabaseWrapper,
    model: type[Model],
    begun: Mapping[str, State],
    progress: Progress,
) -> State:
    """Copy the rows of a table, or those that an interrupted copy has not copied; return the state of all."""
    table = _table(model)
    total = count_rows(reading, table)
    done = TableSummary()
    before = begun.get(table, done.state)
    with closing(read_chunks(reading, model)) as stored:
        chunks = done.counting(stored)
        # The rows that are copied are read again: a copy is of one moment, so the source must still have them.
        while done.rows < before[0] and next(chunks, None):
            progress(table, done.rows, total)
        if done.state == before:
            if done.rows:
                progress.say(f"{table}: going on after {done.rows:,} rows.")
            for chunk in chunks:
                with transaction.atomic(using=writing.alias):
                    insert(writing, model, chunk)
                    _keep(writing, table, done.state)
                progress(table, done.rows, total)
            return done.state
    progress.say(f"{table}: the source has changed since; copying it again.")
    with transaction.atomic(using=writing.alias):
        run(writing, f"DELETE FROM {quote_name(table)}")
        run(writing, f"DELETE FROM {CHECKPOINT} WHERE name = %s", [table])
    return _copy_table(reading, writing, model, {}, progress)


def _keep(writing: BaseDatabaseWrapper, table: str, done: State) -> None:
    """Store how far the table is copied, in the transaction of its rows."""
    run(
        writing,
        f"INSERT INTO {CHECKPOINT} VALUES (%s, %s, %s) ON CONFLICT (name)"
        " DO UPDATE SET copied = excluded.copied, checksum = excluded.checksum",
        [table, *done],
    )


def _table(model: type[Model]) -> str:
    return model._meta.db_table


def _models() -> Iterator[type[Model]]:
    return apps.get_app_config(APP_LABEL).get_models()


def _check_schema(connection: BaseDatabaseWrapper) -> None:
    """Refuse a database that is not as the models say."""
    _check_migrations(connection)
    expected = expected_tables(connection, apps)
    if found := drift(expected, read_tables(connection)):
        raise SchemaMismatchError(
            f"{_place(connection)} is not what the models say: {found[0]} Run 'agentdb verifydb'."
        )


def _check_migrations(connection: BaseDatabaseWrapper) -> None:
    if problem := migration_record.schema_problem(connection, _place(connection)):
        raise problem


def _place(connection: BaseDatabaseWrapper) -> str:
    # An inspecting connection has a URI for its name; the configured one has what the user wrote.
    return describe(connections[connection.alias])


def _build_indexes(writing: BaseDatabaseWrapper, progress: Progress) -> None:
    """Build the missing indexes, and update PostgreSQL's planner statistics."""
    if writing.vendor == "cockroachdb":
        return
    # Only those that are missing: a copy that was stopped here has built some.
    live = read_tables(writing)
    missing = [
        (model, index)
        for model in _models()
        for index in model._meta.indexes
        if live[_table(model)].index(index.name) is None
    ]
    editor = writing.schema_editor()
    for number, (model, index) in enumerate(missing):
        progress("indexes", number, len(missing))
        run(writing, str(index.create_sql(model, editor)))
    # Without statistics the planner would guess until autovacuum runs.
    if writing.vendor == "postgresql":
        for model in _models():
            run(writing, f"ANALYZE {quote_name(_table(model))}")


def refuse_uncopyable(
    reading: BaseDatabaseWrapper, writing: BaseDatabaseWrapper
) -> None:
    """Raise ``InvalidInputError`` with the first values that the target cannot store."""
    reason = partial(_reason, writing.vendor)
    _, values = read_contents(reading, read_tables(reading), reason=reason)
    if values.total:
        refusal = Refusal.about(
            values,
            f"{counted(values.total, 'value')} cannot be copied{values.more}; nothing was copied. Fix them in the "
            "source, and run the command again.",
        )
        raise InvalidInputError(str(refusal))


def _reason(target: str, column: StoredColumn, value: Any) -> str | None:
    """Return why the engine ``target`` cannot store the value, or a server's type has no room for it."""
    if reason := unusable_reason(column.kind, value):
        # All that a server's type has beyond the calendar: infinity, BC, and years above 9999.
        is_servers = column.type == "timestamp with time zone"
        return "is outside the years 1 to 9999" if is_servers else reason
    if column.kind == "integer":
        return too_wide(value)
    if column.kind == "timestamp" and native_text(value) != value:
        return "is not in the spelling of a native timestamp; run 'agentdb baselinedb' on the source"
    if target != "sqlite" and "\0" in (value or ""):
        return "has a NUL character, which PostgreSQL cannot store"
    return None


def left_behind(alias: str) -> list[str]:
    """Return a sentence about each table, with its rows, and each column that ``copydb`` does not carry over."""
    with inspecting(alias) as connection:
        tables = [
            f"Not copied: table {name!r}, {counted(rows, 'row')}."
            for name, rows in other_tables(connection).items()
            if name != CHECKPOINT  # of a copy into this database that was stopped
        ]
        wanted = expected_tables(connection, apps)
        return tables + [
            f"Not copied: column {found.object!r} of {found.table!r}."
            for found in compare(wanted, read_tables(connection))
            if found.code == "column.extra"
        ]
