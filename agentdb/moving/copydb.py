"""Moving the four tables from one database to another, on the same engine or a different one."""

from __future__ import annotations

import re
import sqlite3
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain, islice
from typing import Any

from django.apps import apps
from django.db import DatabaseError, connections, transaction
from django.db.backends.base.base import BaseDatabaseWrapper
from django.db.models import DateTimeField, IntegerField, Model

from agentdb.adoption.obstacles import (
    SHOWN_ROWS,
    UnusableValue,
    too_wide,
    unusable_reason,
)
from agentdb.adoption.timestamps import native_text
from agentdb.errors import (
    AgentDbError,
    InvalidInputError,
    SchemaMismatchError,
    SchemaOutOfDateError,
)
from agentdb.schema import (
    APP_LABEL,
    compare,
    expected_tables,
    migration_record,
    read_tables,
)
from agentdb.schema.inspection import (
    MissingFileError,
    check_sqlite_file,
    inspecting,
    sqlite_path,
    translated_errors,
    unless_changed,
)
from agentdb.schema.limits import lifted_limits
from agentdb.schema.rows import (
    StoredColumn,
    decoded,
    is_usual_on_sqlite,
    read_sqlite,
    shown,
)
from agentdb.schema.spelling import unreadable_timestamps
from agentdb.schema.sqltext import quote_name
from agentdb.serving.connections import describe
from agentdb.sqlite_files import identity
from agentdb.wording import counted

# Rows are hashed by the block, in the order of their keys: a resumed copy has the same blocks.
_ROWS_A_BLOCK = 10_000
# A block is read and sent in pieces, so that a server works on one while the next is read.
_ROWS_A_CHUNK = 1_000
# What stands for NULL among the values of a SQLite file: in no UTF-8 text.
_NULL = b"\xff"
# What COPY's text format has a backslash for. A tab or a line feed in a value shows in the count of them.
_ESCAPED = b"\\\b\v\f\r"
_ESCAPES = {
    b"\\": b"\\\\",
    b"\b": b"\\b",
    b"\t": b"\\t",
    b"\n": b"\\n",
    b"\v": b"\\v",
    b"\f": b"\\f",
    b"\r": b"\\r",
}
_UNESCAPES = {escape[1:]: plain for plain, escape in _ESCAPES.items()}
# Where an unfinished copy is; in the target for as long as there is one, and written with the rows it counts.
CHECKPOINT = "agentdb_copy"

Progress = Callable[[str, int, int], None]  # table, rows done, rows in all
# Rows as COPY's text format has them, a line each: what is hashed, sent to a server and received from one.
Chunk = bytes
Row = tuple[bytes | None, ...]


@dataclass(frozen=True)
class TableSummary:
    """What a table holds: equal for equal rows, on every engine."""

    rows: int
    checksum: int


Summary = dict[str, TableSummary]


def copy(
    source: str,
    target: str,
    progress: Progress = lambda table, done, total: None,
    say: Callable[[str], None] = lambda text: None,
) -> Summary:
    """Copy the tables of the alias ``source`` to the alias ``target``; return what the target holds then.

    The source is read as of one moment and not changed. The target is migrated first if it has to be. The rows are
    committed block by block; after a stop at any moment the same call goes on where it was. Raises
    ``InvalidInputError`` for a target with rows of its own and for values that cannot be copied (before the first
    write), ``SchemaOutOfDateError`` and ``SchemaMismatchError`` where either side is not what the models say.
    """
    refuse_same(source, target)
    with inspecting(source) as reading, translated_errors(reading):
        _check_schema(reading, connections[source])
        writing = connections[target]
        if (path := sqlite_path(writing)) is not None and path.exists():
            check_sqlite_file(path)
        _refuse_unusable(reading, writing)
        place = describe(connections[source])
        with translated_errors(writing), lifted_limits(writing, say):
            _migrate_if_unfinished(writing, target)
            done = _begin(writing, place)
            totals = {model: _count(reading, model) for model in _models()}
            copied: Summary = {}
            for model in _models():
                table = model._meta.db_table
                copied[table] = _copy_table(
                    reading,
                    writing,
                    model,
                    done.get(table),
                    totals[model],
                    progress,
                    say,
                )
            _build_indexes(writing, progress)
            for model in _models():
                # What was written is read back: a copy that differs is worse than none.
                table = model._meta.db_table
                if (
                    _summary(writing, model, _named("checking", progress))
                    != copied[table]
                ):
                    raise AgentDbError(
                        f"The target does not hold what was written to {table!r}. Copy into a new database."
                    )
            _check_schema(writing, writing)
            with writing.cursor() as cursor:
                cursor.execute(f"DROP TABLE {CHECKPOINT}")
            return copied


def refuse_same(source: str, target: str) -> None:
    """Raise ``InvalidInputError`` if both aliases lead to one database."""
    one, other = connections[source], connections[target]
    paths = sqlite_path(one), sqlite_path(other)
    if None in paths:
        same = one.vendor == other.vendor != "sqlite" and describe(one) == describe(
            other
        )
    else:
        same = identity(paths[0]) == identity(paths[1]) is not None  # type: ignore[arg-type]
    if same:
        raise InvalidInputError(
            f"The source and the target are one database, {describe(one)}. Name two."
        )


def already_copied(source: str, target: str) -> bool:
    """Whether the target has rows, and exactly those of the source."""
    refuse_same(source, target)
    try:
        if not has_rows(target):
            return False
        return not differences(summarise(source), summarise(target))
    except AgentDbError:
        return False  # copying says what is wrong


def _named(what: str, progress: Progress) -> Progress:
    return lambda table, done, total: progress(f"{what} {table}", done, total)


def summarise(
    alias: str, progress: Progress = lambda table, done, total: None
) -> Summary:
    """Return what the tables of the alias hold."""
    with inspecting(alias) as connection:
        _check_schema(connection, connections[alias])
        return {
            model._meta.db_table: _summary(connection, model, progress)
            for model in _models()
        }


def check(source: str, target: str) -> dict[str, int]:
    """Raise what ``copy`` would raise before its first write; return the rows of each table. Changes nothing."""
    refuse_same(source, target)
    with inspecting(source) as reading, translated_errors(reading):
        _check_schema(reading, connections[source])
        _refuse_unusable(reading, connections[target])
        rows = {model._meta.db_table: _count(reading, model) for model in _models()}
    try:
        with inspecting(target) as there:
            tables = set(there.introspection.table_names())
            if CHECKPOINT not in tables:
                _refuse_rows(there, tables)
    except MissingFileError:
        pass
    return rows


def check_source(alias: str) -> None:
    """Raise what a copy from the alias would raise because of its schema."""

    def look() -> None:
        with inspecting(alias) as connection:
            _check_schema(connection, connections[alias])

    unless_changed(look)


def differing_rows(source: str, target: str) -> list[str]:
    """Return a sentence for each of the first rows that are not the same on both sides, and for each table."""
    found: list[str] = []
    with inspecting(source) as one, inspecting(target) as other:
        for model in _models():
            table = model._meta.db_table
            columns = [str(field.column) for field in model._meta.concrete_fields]
            named = 0
            for first, second in _merged(_rows(one, model), _rows(other, model)):
                if named == SHOWN_ROWS:
                    found.append(f"Table {table!r}: more rows differ.")
                    break
                named += 1
                if first is None or second is None:
                    row = first or second
                    assert row is not None
                    side = "source" if second is None else "target"
                    found.append(
                        f"Table {table!r}, id {_shown(row[0])}: only in the {side}."
                    )
                    continue
                different = [
                    f"{column} is {_shown(a)} in the source, {_shown(b)} in the target"
                    for column, a, b in zip(columns, first, second, strict=True)
                    if a != b
                ]
                found.append(
                    f"Table {table!r}, id {_shown(first[0])}: {'; '.join(different)}."
                )
    return found


def differences(source: Summary, target: Summary) -> list[str]:
    """Return a sentence for each table whose rows are not the same on both sides."""
    return [
        f"Table {name!r} differs: {summary.rows:,} rows in the source, {target[name].rows:,} in the target"
        + ("." if summary.rows != target[name].rows else ", with different values.")
        for name, summary in source.items()
        if summary != target[name]
    ]


def has_rows(alias: str) -> bool:
    """Whether any of the tables is there and has a row, and no copy into them is unfinished."""
    with inspecting(alias) as connection:
        there = set(connection.introspection.table_names())
        return CHECKPOINT not in there and bool(_filled(connection, there))


def _migrate_if_unfinished(writing: BaseDatabaseWrapper, target: str) -> None:
    there = set(writing.introspection.table_names())
    ours = set(expected_tables(writing, apps)) & there
    # A migration that was stopped half-way leaves some of them applied, and no rows.
    begun = bool(migration_record.recorded_migrations(writing)) and not _filled(
        writing, there
    )
    if (not ours or begun) and migration_record.pending_migrations(writing):
        migration_record.migrate(target)


def _begin(writing: BaseDatabaseWrapper, place: str) -> dict[str, tuple[str, int, int]]:
    """Return the checkpoints of a copy from ``place``, begun here if it is not: table -> last id, rows, checksum."""
    there = set(writing.introspection.table_names())
    if CHECKPOINT not in there:
        _check_schema(writing, writing)
        _refuse_rows(writing, there)
        with transaction.atomic(using=writing.alias), writing.cursor() as cursor:
            cursor.execute(
                f"CREATE TABLE {CHECKPOINT} (name text PRIMARY KEY, last_id text NOT NULL, copied integer NOT NULL,"
                " checksum text NOT NULL)"
            )
            # The source is kept in the same table, under a name that no table has.
            cursor.execute(f"INSERT INTO {CHECKPOINT} VALUES ('', %s, 0, '0')", [place])
            if (
                writing.vendor != "cockroachdb"
            ):  # there each schema change is a job of its own, over all nodes
                # Sorting all rows once takes half the time of finding a place for each row, index by index.
                for model in _models():
                    for index in model._meta.indexes:
                        cursor.execute(
                            f"DROP INDEX {writing.ops.quote_name(index.name)}"
                        )
        return {}
    _check_migrations(writing, writing)
    with writing.cursor() as cursor:
        cursor.execute(f"SELECT name, last_id, copied, checksum FROM {CHECKPOINT}")
        found = {
            name: (last, int(rows), int(checksum))
            for name, last, rows, checksum in cursor.fetchall()
        }
    begun = found.pop("", ("", 0, 0))[0]
    if begun != place:
        raise InvalidInputError(
            f"The target holds an unfinished copy of {begun}. Run that copy again, or copy into a new database; "
            "nothing was changed."
        )
    return found


def _refuse_rows(connection: BaseDatabaseWrapper, there: set[str]) -> None:
    if filled := _filled(connection, there):
        raise InvalidInputError(
            f"The target has rows already, in {', '.join(filled)}. Copy into a new database; nothing was changed."
        )


def _filled(connection: BaseDatabaseWrapper, there: set[str]) -> list[str]:
    return [
        model._meta.db_table
        for model in _models()
        if model._meta.db_table in there and _has_rows(connection, model._meta.db_table)
    ]


def _copy_table(
    reading: BaseDatabaseWrapper,
    writing: BaseDatabaseWrapper,
    model: type[Model],
    checkpoint: tuple[str, int, int] | None,
    total: int,
    progress: Progress,
    say: Callable[[str], None],
) -> TableSummary:
    table = model._meta.db_table
    after, count, checksum = None, 0, 0
    if checkpoint is not None:
        after, copied, expected = checkpoint
        for block in _blocks(_chunks(reading, model, limit=copied)):
            last, rows, hash_ = _consume(block, lambda chunk: None)
            count, checksum = count + rows, (checksum + hash_) % 2**128
            progress(table, count, total)
        if (count, checksum) == (copied, expected) and last == after:
            say(f"{table}: going on after {count:,} rows.")
        else:
            # Somebody wrote to the source since. A copy is of one moment, so this table begins anew.
            say(f"{table}: the source has changed since; copying it again.")
            with transaction.atomic(using=writing.alias), writing.cursor() as cursor:
                cursor.execute(f"DELETE FROM {writing.ops.quote_name(table)}")
                cursor.execute(f"DELETE FROM {CHECKPOINT} WHERE name = %s", [table])
            after, count, checksum = None, 0, 0
    for block in _blocks(_chunks(reading, model, after=after)):
        # The checkpoint is committed with the rows it counts: neither is there without the other.
        with transaction.atomic(using=writing.alias):
            with _sink(writing, model) as write:
                last, rows, hash_ = _consume(block, write)
            count, checksum = count + rows, (checksum + hash_) % 2**128
            _keep(writing, table, last, count, checksum)
        progress(table, count, total)
    return TableSummary(count, checksum)


def _blocks(chunks: Iterator[Chunk]) -> Iterator[Iterator[Chunk]]:
    """Yield the chunks of each block; the block has to be used up before the next."""
    size = max(1, _ROWS_A_BLOCK // _ROWS_A_CHUNK)
    for first in chunks:
        yield chain([first], islice(chunks, size - 1))


def _consume(
    block: Iterable[Chunk], write: Callable[[Chunk], object]
) -> tuple[str, int, int]:
    """Write the chunks; return the last id, the number of rows and their hash."""
    digest, rows, last = blake2b(digest_size=16), 0, b""
    for chunk in block:
        write(chunk)
        digest.update(chunk)
        rows += chunk.count(b"\n")
        last = chunk
    line = last[last.rfind(b"\n", 0, -1) + 1 :]
    return _id(_fields(line)).decode(), rows, int.from_bytes(digest.digest(), "big")


def _keep(
    writing: BaseDatabaseWrapper, table: str, last: str, count: int, checksum: int
) -> None:
    with writing.cursor() as cursor:
        cursor.execute(
            f"INSERT INTO {CHECKPOINT} (name, last_id, copied, checksum) VALUES (%s, %s, %s, %s) ON CONFLICT (name)"
            " DO UPDATE SET last_id = excluded.last_id, copied = excluded.copied, checksum = excluded.checksum",
            [table, last, count, str(checksum)],
        )


def _models() -> Iterator[type[Model]]:
    return apps.get_app_config(APP_LABEL).get_models()


def _check_schema(connection: BaseDatabaseWrapper, named: BaseDatabaseWrapper) -> None:
    """Refuse a database that is not as the models say; ``named`` is the connection to name in the message."""
    place = _check_migrations(connection, named)
    drift = [
        difference.message
        for difference in compare(
            expected_tables(connection, apps), read_tables(connection)
        )
        if difference.severity == "drift"
    ]
    if drift:
        raise SchemaMismatchError(
            f"{place} is not what the models say: {drift[0]} Run 'agentdb verifydb'."
        )


def _check_migrations(
    connection: BaseDatabaseWrapper, named: BaseDatabaseWrapper
) -> str:
    """Refuse a database that lacks migrations; return its name."""
    place = describe(named)
    if pending := migration_record.pending_migrations(connection):
        raise SchemaOutOfDateError(
            f"{place} lacks the migrations {', '.join(pending)}. Run 'agentdb baselinedb' on a database of the old "
            "server, 'agentdb migrate' on any other.",
            pending=tuple(pending),
        )
    return place


def _build_indexes(writing: BaseDatabaseWrapper, progress: Progress) -> None:
    """Build the indexes that are not there, and let PostgreSQL's planner know what came into the tables."""
    if writing.vendor == "cockroachdb":
        return
    live = read_tables(writing)
    missing = [
        (model, index)
        for model in _models()
        for index in model._meta.indexes
        if live[model._meta.db_table].index(index.name) is None
    ]
    editor = writing.schema_editor()
    with writing.cursor() as cursor:
        for number, (model, index) in enumerate(missing):
            progress("indexes", number, len(missing))
            cursor.execute(str(index.create_sql(model, editor)))
        if writing.vendor == "postgresql":
            for model in _models():
                cursor.execute(
                    f"ANALYZE {writing.ops.quote_name(model._meta.db_table)}"
                )


def _has_rows(connection: BaseDatabaseWrapper, table: str) -> bool:
    with connection.cursor() as cursor:
        cursor.execute(f"SELECT 1 FROM {connection.ops.quote_name(table)} LIMIT 1")
        return cursor.fetchone() is not None


def _count(connection: BaseDatabaseWrapper, model: type[Model]) -> int:
    with connection.cursor() as cursor:
        cursor.execute(
            f"SELECT count(*) FROM {connection.ops.quote_name(model._meta.db_table)}"
        )
        return int(cursor.fetchone()[0])


def _chunks(
    connection: BaseDatabaseWrapper,
    model: type[Model],
    *,
    after: str | None = None,
    limit: int | None = None,
) -> Iterator[Chunk]:
    """Yield all rows by id in code-point order, or those after an id, without holding them all."""
    columns = ", ".join(
        _column(connection, field) for field in model._meta.concrete_fields
    )
    id_ = 'id COLLATE "C"' if connection.vendor == "postgresql" else "id"
    sql = f"SELECT {columns} FROM {connection.ops.quote_name(model._meta.db_table)}"
    if after is not None:
        sql += f" WHERE {id_} > {'?' if connection.vendor == 'sqlite' else '%s'}"
    sql += f" ORDER BY {id_}"
    if limit is not None:
        sql += f" LIMIT {limit}"
    parameters = [] if after is None else [after]
    rows_a_chunk = min(_ROWS_A_CHUNK, _ROWS_A_BLOCK)
    connection.ensure_connection()
    raw = connection.connection
    if connection.vendor == "sqlite":
        try:
            cursor = raw.execute(sql, parameters)
            while rows := cursor.fetchmany(rows_a_chunk):
                yield _encoded(rows)
        except sqlite3.Error as error:
            raise DatabaseError(str(error)) from error
        return
    # One message is one row. Left early, COPY is cancelled, which the savepoint undoes: the snapshot stays.
    copy_out = f"COPY ({sql}) TO STDOUT"
    with (
        connection.wrap_database_errors,
        raw.transaction(),
        raw.cursor().copy(copy_out, parameters) as copying,
    ):
        rows = iter(copying)
        while chunk := b"".join(islice(rows, rows_a_chunk)):
            yield chunk


def _column(connection: BaseDatabaseWrapper, field: Any) -> str:
    quoted = connection.ops.quote_name(str(field.column))
    if connection.vendor == "sqlite":
        # As bytes no converter of the driver gets in between.
        blob = f"CAST({quoted} AS BLOB)"
        return f"coalesce({blob}, x'{_NULL.hex()}')" if field.null else blob
    if isinstance(field, DateTimeField):
        return f"replace(to_char({quoted} AT TIME ZONE 'UTC', 'YYYY-MM-DD HH24:MI:SS.US'), '.000000', '')"
    return quoted


def _encoded(rows: Sequence[Sequence[bytes]]) -> Chunk:
    chunk = b"\n".join([b"\t".join(row) for row in rows]) + b"\n"
    tabs = len(rows) * (len(rows[0]) - 1)
    plain = len(chunk.translate(None, _ESCAPED)) == len(chunk)
    if not plain or chunk.count(b"\n") != len(rows) or chunk.count(b"\t") != tabs:
        escaped = [b"\t".join([_escaped(value) for value in row]) for row in rows]
        chunk = b"\n".join(escaped) + b"\n"
    return chunk.replace(_NULL, b"\\N")


def _escaped(value: bytes) -> bytes:
    return re.sub(rb"[\\\x08-\x0d]", lambda found: _ESCAPES[found[0]], value)


def _fields(line: bytes) -> Row:
    values = line.rstrip(b"\n").split(b"\t")
    if b"\\" not in line:
        return tuple(values)
    return tuple(
        None
        if value == b"\\N"
        else re.sub(rb"\\(.)", lambda found: _UNESCAPES[found[1]], value)
        for value in values
    )


def _id(row: Row) -> bytes:
    assert row[0] is not None
    return row[0]


def _lines(chunks: Iterable[Chunk]) -> Iterator[bytes]:
    for chunk in chunks:
        yield from chunk[:-1].split(b"\n")


def _rows(connection: BaseDatabaseWrapper, model: type[Model]) -> Iterator[Row]:
    return map(_fields, _lines(_chunks(connection, model)))


def _shown(value: bytes | None) -> str:
    return shown(None if value is None else decoded(value))


def _summary(
    connection: BaseDatabaseWrapper,
    model: type[Model],
    progress: Progress = lambda table, done, total: None,
) -> TableSummary:
    count = checksum = 0
    total = _count(connection, model)
    for block in _blocks(_chunks(connection, model)):
        _, rows, hash_ = _consume(block, lambda chunk: None)
        count, checksum = count + rows, (checksum + hash_) % 2**128
        progress(model._meta.db_table, count, total)
    return TableSummary(count, checksum)


@contextmanager
def _sink(
    connection: BaseDatabaseWrapper, model: type[Model]
) -> Iterator[Callable[[Chunk], None]]:
    """A function that inserts the rows of a chunk. What the target refuses becomes an ``AgentDbError``."""
    fields = model._meta.concrete_fields
    quote = connection.ops.quote_name
    table, columns = (
        quote(model._meta.db_table),
        ", ".join(quote(str(field.column)) for field in fields),
    )
    first = b""
    with ExitStack() as stack:
        cursor = stack.enter_context(connection.cursor())
        if connection.vendor == "sqlite":
            sql = f"INSERT INTO {table} ({columns}) VALUES ({', '.join('?' for _ in fields)})"

            def send(chunk: Chunk) -> None:
                texts = map(bytes.decode, chunk[:-1].split(b"\n"))
                connection.connection.executemany(sql, map(_texts, texts))
        else:
            cursor.execute("SET LOCAL TimeZone = 'UTC'")
            send = stack.enter_context(
                cursor.copy(f"COPY {table} ({columns}) FROM STDIN")
            ).write

        @contextmanager
        def refusal() -> Iterator[None]:
            try:
                with connection.wrap_database_errors:
                    yield
            except DatabaseError as error:
                raise AgentDbError(
                    f"Table {model._meta.db_table!r}: the target refused a row from id {_shown(first)} on: "
                    f"{str(error).partition(chr(10))[0]}."
                ) from error

        def write(chunk: Chunk) -> None:
            nonlocal first
            first = first or _id(_fields(chunk[: chunk.index(b"\n")]))
            with refusal():
                send(chunk)

        yield write
        with refusal():
            stack.close()


def _texts(line: str) -> tuple[str | None, ...]:
    if "\\" not in line:
        return tuple(line.split("\t"))
    return tuple(
        None if value is None else value.decode() for value in _fields(line.encode())
    )


def _refuse_unusable(
    reading: BaseDatabaseWrapper, writing: BaseDatabaseWrapper
) -> None:
    """Raise ``InvalidInputError`` with the first values that the target cannot hold."""
    find = _unusable_on_sqlite if reading.vendor == "sqlite" else _unusable_on_a_server
    first: list[UnusableValue] = []
    total = 0
    for value in find(reading, writing.vendor):
        total += 1
        if len(first) < SHOWN_ROWS:
            first.append(value)
    if total:
        more = "" if total <= SHOWN_ROWS else f" (the first {SHOWN_ROWS} are shown)"
        raise InvalidInputError(
            f"{counted(total, 'value')} cannot be copied{more}; nothing was copied.\n"
            + "\n".join(f"  {value}" for value in first)
            + "\nFix them in the source, and run the command again."
        )


def _unusable_on_sqlite(
    connection: BaseDatabaseWrapper, target: str
) -> Iterator[UnusableValue]:
    for model in _models():
        table = model._meta.db_table
        columns = [
            StoredColumn(str(field.column), _kind(field))
            for field in model._meta.concrete_fields
        ]
        values = ", ".join(f"+{column.sql}" for column in columns)
        usual = is_usual_on_sqlite(connection, columns)
        sql = f"SELECT {values} FROM {quote_name(table)} WHERE ({usual}) IS NOT TRUE"
        for row in read_sqlite(connection, sql):
            for column, value in zip(columns, row, strict=True):
                if reason := _reason(column.kind, value, target):
                    yield UnusableValue(
                        table, f"id {shown(row[0])}", column.name, shown(value), reason
                    )


def _kind(field: Any) -> str:
    if isinstance(field, DateTimeField):
        return "timestamp"
    if isinstance(field, IntegerField):
        return "integer"
    return "text or null" if field.null else "text"


def _reason(kind: str, value: Any, target: str) -> str | None:
    if reason := unusable_reason(kind, value):
        return reason
    if kind == "integer":
        return too_wide(value)
    if kind == "timestamp" and native_text(value) != value:
        return "is not in the spelling of a native timestamp; run 'agentdb baselinedb' on the source"
    if target != "sqlite" and "\0" in (value or ""):
        return "has a NUL character, which PostgreSQL cannot store"
    return None


def _unusable_on_a_server(
    connection: BaseDatabaseWrapper, target: str
) -> Iterator[UnusableValue]:
    tables = expected_tables(connection, apps).values()
    for found in unreadable_timestamps(connection, tables):
        yield UnusableValue(
            found.table,
            f"id {found.id!r}",
            found.column,
            repr(found.value),
            "is outside the years 1 to 9999",
        )


def _merged(
    first: Iterator[Row], second: Iterator[Row]
) -> Iterator[tuple[Row | None, Row | None]]:
    """Yield the rows of two tables that differ; both are in code-point order of the id."""
    one, other = next(first, None), next(second, None)
    while one is not None or other is not None:
        if other is None or (one is not None and _id(one) < _id(other)):
            yield one, None
            one = next(first, None)
        elif one is None or _id(other) < _id(one):
            yield None, other
            other = next(second, None)
        else:
            if one != other:
                yield one, other
            one, other = next(first, None), next(second, None)
