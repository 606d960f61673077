"""A reliable copy of a SQLite database: consistent while others write, checked, and complete or absent."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from glob import escape
from pathlib import Path

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.progress import SILENT, Progress
from agentdb.errors import DatabaseUnavailableError, InvalidInputError
from agentdb.faults import (
    Fault,
    classify,
    describe_file,
    describe_sqlite_failure,
    needs_another_program,
)
from agentdb.schema.inspection import sqlite_path
from agentdb.schema.queries import quote_name
from agentdb.sqlite_files import file_uri
from agentdb.wording import uncapitalized

_PAGES_PER_STEP = 4096
_TIMEOUT_SECONDS = 30.0  # of a writer that has the file locked
# Suffixes of files that SQLite treats as part of the database file.
_COMPANIONS = ("-journal", "-wal", "-shm")
_WITHOUT_BACKUP = "Back the file up elsewhere and use --no-backup."
_OTHER_FILE = "Name another file."


def back_up(
    source: Path,
    progress: Progress = SILENT,
    *,
    target: Path | None = None,
) -> Path:
    """Copy the database to ``target``, or else beside itself, readable only by the owner; return the copy's path.

    The copy is a consistent snapshot in a single file, write-ahead log included. Raises ``DatabaseUnavailableError``
    if it cannot be written or the database is damaged, and ``InvalidInputError`` if the name is taken; then no copy
    is left.
    """
    beside = target is None
    # With microseconds, so that two backups have two names.
    now = f"{datetime.now(UTC):%Y%m%dT%H%M%S.%fZ}"
    target = target or source.with_name(f"{source.name}.backup-{now}")
    partial = target.with_name(f".{target.name}.{os.getpid()}.partial")
    if beside:
        _remove_leftovers(source)
    with _writing(source, target, _WITHOUT_BACKUP if beside else _OTHER_FILE):
        # Nobody else may read it, nor make it at the same time. SQLite would make it readable by whoever the umask
        # allows, before anything could be done about it.
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            _copy(source, partial, progress)
            damage = _damage(partial)
            if damage is not None:
                raise DatabaseUnavailableError(
                    describe_file(Fault.DAMAGED, source, damage)
                )
            # The content reaches the disk before the name does, and the name before anybody is told of it: after a
            # power cut the name stands for a whole copy, or there is none.
            _flush(partial)
            _put_in_place(partial, target)
            _flush(target.parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    return target


def back_up_first(connection: BaseDatabaseWrapper, progress: Progress) -> Path | None:
    """Copy a SQLite file beside itself before it is changed; None if the database is not a file."""
    if (path := sqlite_path(connection)) is None:
        return None
    progress.say("Backing up.")
    return back_up(path, progress)


@contextmanager
def _writing(source: Path, target: Path, advice: str) -> Iterator[None]:
    try:
        yield
    except (OSError, sqlite3.Error) as error:
        # The copy has been created, so what cannot be opened is the source: a read-only medium has no place for its
        # log.
        if classify(error) in (Fault.LOCKED, Fault.DAMAGED, Fault.NOT_OPENED):
            sentence = describe_sqlite_failure(source, error)
        else:
            reason = getattr(error, "strerror", None) or str(error)
            sentence = f"The backup {str(target)!r} cannot be written: {uncapitalized(reason).rstrip('.')}. {advice}"
        raise DatabaseUnavailableError(sentence) from error


def _put_in_place(partial: Path, target: Path) -> None:
    """Give the copy its name, unless a file with that name has appeared."""
    refuse_taken(target)
    try:
        # A link, because a rename would replace a file that appeared after the check.
        os.link(partial, target)
    except FileExistsError:
        raise _is_there(target) from None
    except OSError:  # a file system without hard links
        partial.rename(target)
    else:
        partial.unlink()


def refuse_taken(target: Path) -> None:
    """Raise ``InvalidInputError`` if the file exists, or one that SQLite would treat as part of it."""
    with _writing(target, target, _OTHER_FILE):
        for end in ("", *_COMPANIONS):
            path = target.with_name(target.name + end)
            if path.exists():
                raise _is_there(path)


def _is_there(path: Path) -> InvalidInputError:
    return InvalidInputError(
        f"The file {str(path)!r} already exists and is not overwritten. Name another one."
    )


def _copy(source: Path, partial: Path, progress: Progress) -> None:
    with (
        closing(_open(source, "rw")) as reading,
        closing(_open(partial, "rw")) as writing,
    ):
        # Without this the copy would start again whenever another process writes.
        reading.execute("BEGIN")
        reading.execute("SELECT count(*) FROM sqlite_master").fetchone()
        reading.backup(
            writing,
            pages=_PAGES_PER_STEP,
            progress=lambda _, left, total: progress("backup", total - left, total),
        )
        # The journal mode is copied too; a backup in WAL mode could not be opened on a read-only medium.
        writing.execute("PRAGMA journal_mode=DELETE").fetchone()


def _open(path: Path, mode: str) -> sqlite3.Connection:
    uri = file_uri(path, f"mode={mode}")
    # The class itself: if OpenTelemetry traces the driver, connect() returns a proxy, which backup() does not take.
    return sqlite3.Connection(
        uri, uri=True, timeout=_TIMEOUT_SECONDS, isolation_level=None
    )


def _damage(path: Path) -> str | None:
    """Return the first fault of the file, or None."""
    # Of the copy, not of the source: it says that what was written can be read, and holds up no writer.
    with closing(_open(path, "ro")) as connection:
        results = [_checked(connection, "1")]
        if results == [None]:
            tables = connection.execute(
                "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'"
            )
            results = [
                _checked(connection, quote_name(name)) for (name,) in tables.fetchall()
            ]
    faults = [" ".join(result.split()) for result in results if result]
    return next((fault for fault in faults if fault != "ok"), None)


def _checked(connection: sqlite3.Connection, what: str) -> str | None:
    """Check the file, or a table; return None if it has an index or a check that only the operator's program reads."""
    try:
        [found] = connection.execute(f"PRAGMA integrity_check({what})").fetchmany(1)
    except sqlite3.OperationalError as error:
        if needs_another_program(error):
            return None
        raise
    return str(found[0])


def _remove_leftovers(source: Path) -> None:
    """Remove remains of killed copies. Callers hold the migration lock, so no copy is running."""
    for path in source.parent.glob(f".{escape(source.name)}.backup-*.partial*"):
        with suppress(OSError):
            path.unlink()


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
