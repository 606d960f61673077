"""A reliable copy of a SQLite database: consistent while others write, checked, and complete or absent."""

from __future__ import annotations

import os
import shutil
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from urllib.parse import quote

from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.adoption.progress import Progress
from agentdb.errors import DatabaseUnavailableError, InvalidInputError
from agentdb.faults import Fault, classify, describe_damage, describe_sqlite_failure
from agentdb.schema.inspection import sqlite_path
from agentdb.schema.queries import quote_name
from agentdb.wording import uncapitalized

Pages = Callable[[int, int], None]  # done, total

_PAGES_PER_STEP = 4096
_TIMEOUT_SECONDS = 30.0  # of a writer that has the file locked
# Suffixes of files that SQLite treats as part of the database file.
_COMPANIONS = ("-journal", "-wal", "-shm")
_WITHOUT_BACKUP = "back the file up elsewhere and use --no-backup"
_OTHER_FILE = "name another file"
_LEFTOVERS = tuple(f".partial{end}" for end in ("", *_COMPANIONS))


def back_up(
    source: Path,
    progress: Pages = lambda done, total: None,
    *,
    target: Path | None = None,
) -> Path:
    """Copy the database to ``target``, or else beside itself, readable only by the owner; return the copy's path.

    The copy is a consistent snapshot in a single file, write-ahead log included. Raises ``DatabaseUnavailableError``
    if it cannot be written or the database is damaged, and ``InvalidInputError`` if the name is taken; then no copy
    is left.
    """
    beside = target is None
    target = target or _free_name(source)
    partial = target.with_name(
        f"{target.name}.partial" if beside else f".{target.name}.{os.getpid()}.partial"
    )
    if beside:
        _remove_leftovers(source)
    advice = _WITHOUT_BACKUP if beside else _OTHER_FILE
    with _writing(target, advice):
        _check_space(source, target.parent, advice)
        # Nobody else may read it, nor make it at the same time. SQLite would make it readable by whoever the umask
        # allows, before anything could be done about it.
        os.close(os.open(partial, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
        try:
            try:
                _copy(source, partial, progress)
                damage = _damage(partial)
            except sqlite3.Error as error:
                raise _cannot_copy(source, target, error, advice) from error
            if damage is not None:
                raise DatabaseUnavailableError(describe_damage(source, damage))
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
    return back_up(path, lambda done, total: progress("backup", done, total))


@contextmanager
def _writing(target: Path, advice: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise DatabaseUnavailableError(
            _cannot_write(target, error.strerror or str(error), advice)
        ) from error


def _cannot_copy(
    source: Path, target: Path, error: sqlite3.Error, advice: str
) -> DatabaseUnavailableError:
    # The copy has been created, so what cannot be opened is the source: a read-only medium has no place for its log.
    if classify(error) in (Fault.LOCKED, Fault.DAMAGED, Fault.NOT_OPENED):
        sentence = describe_sqlite_failure(source, error)
    else:
        sentence = _cannot_write(target, str(error), advice)
    return DatabaseUnavailableError(sentence)


def _put_in_place(partial: Path, target: Path) -> None:
    """Give the copy its name, unless a file with that name has appeared."""
    refuse_taken(target)
    try:
        # A link, because a rename would replace a file that appeared after the check.
        os.link(partial, target)
    except FileExistsError:
        raise InvalidInputError(_is_there(target)) from None
    except OSError:  # a file system without hard links
        partial.rename(target)
    else:
        partial.unlink()


def refuse_taken(target: Path) -> None:
    """Raise ``InvalidInputError`` if the file exists, or one that SQLite would treat as part of it."""
    with _writing(target, _OTHER_FILE):
        there = _taken(target)
    if there == target:
        raise InvalidInputError(_is_there(target))
    if there is not None:
        raise InvalidInputError(
            f"There is a file {str(there)!r}, which belongs to a database that was here before. SQLite would "
            "take it for a part of the backup. Move it away, or name another file."
        )


def _taken(target: Path) -> Path | None:
    return next(
        (
            path
            for end in ("", *_COMPANIONS)
            if (path := target.with_name(target.name + end)).exists()
        ),
        None,
    )


def _is_there(target: Path) -> str:
    return f"The file {str(target)!r} already exists and is not overwritten. Name another one."


def _copy(source: Path, partial: Path, progress: Pages) -> None:
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
            progress=lambda _, left, total: progress(total - left, total),
        )
        # The journal mode is copied too; a backup in WAL mode could not be opened on a read-only medium.
        writing.execute("PRAGMA journal_mode=DELETE").fetchone()


def _open(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"file:{quote(str(path.absolute()))}?mode={mode}"
    # The class itself: if OpenTelemetry traces the driver, connect() returns a proxy, which backup() does not take.
    return sqlite3.Connection(
        uri, uri=True, timeout=_TIMEOUT_SECONDS, isolation_level=None
    )


def _damage(path: Path) -> str | None:
    """Return the first fault of the file, or None."""
    with closing(_open(path, "ro")) as connection:
        try:
            # Of the copy, not of the source: it says that what was written can be read, and holds up no writer.
            results = [connection.execute("PRAGMA integrity_check(1)").fetchone()[0]]
        except sqlite3.OperationalError as error:
            if not _needs_a_program(error):
                raise
            results = list(_checked_one_by_one(connection))
    for result in results:
        if result != "ok":
            return " ".join(str(result).split())
    return None


def _checked_one_by_one(connection: sqlite3.Connection) -> Iterator[str]:
    """Check each table except those whose indexes only the operator's program can read."""
    tables = connection.execute(
        "SELECT name FROM sqlite_master WHERE type = 'table' AND sql NOT LIKE 'CREATE VIRTUAL%'"
    )
    for (name,) in tables.fetchall():
        try:
            yield connection.execute(
                f"PRAGMA integrity_check({quote_name(name)})"
            ).fetchone()[0]
        except sqlite3.OperationalError as error:
            if not _needs_a_program(error):
                raise


def _needs_a_program(error: sqlite3.Error) -> bool:
    """Return whether SQLite lacks a function or collation that the operator's program defines."""
    return str(error).startswith(
        ("unknown function", "no such function", "no such collation")
    )


def _free_name(source: Path) -> Path:
    stem = f"{source.name}.backup-{datetime.now(UTC):%Y%m%dT%H%M%SZ}"
    target = source.with_name(stem)
    number = 1
    while _taken(target) is not None:
        number += 1
        target = source.with_name(f"{stem}-{number}")
    return target


def _remove_leftovers(source: Path) -> None:
    """Remove remains of killed copies. Callers hold the migration lock, so no copy is running."""
    prefix = f"{source.name}.backup-"
    for path in source.parent.iterdir():
        if path.name.startswith(prefix) and path.name.endswith(_LEFTOVERS):
            with suppress(OSError):
                path.unlink()


def _check_space(source: Path, folder: Path, advice: str) -> None:
    # Not exact: pages that are both in the file and in its log count twice.
    needed = sum(
        path.stat().st_size for path in (source, Path(f"{source}-wal")) if path.exists()
    )
    free = shutil.disk_usage(folder).free
    if free < needed:
        raise DatabaseUnavailableError(
            f"Not enough space for a backup in {str(folder)!r}: it needs {needed:,} bytes, {free:,} are free. Free "
            f"some space, or {advice}."
        )


def _flush(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


# What to do about a reason that has these words.
_REMEDIES = {
    "full": "Free some space for it",
    "No space": "Free some space for it",
    "I/O": "Check the disk and its quota",
    "Input/output": "Check the disk and its quota",
    "quota": "Check the disk and its quota",
    "too long": "Choose a shorter name",
    "": "Allow writing to its folder",
}


def _cannot_write(target: Path, reason: str, advice: str) -> str:
    remedy = next(_REMEDIES[words] for words in _REMEDIES if words in reason)
    return f"The backup {str(target)!r} cannot be written: {uncapitalized(reason).rstrip('.')}. {remedy}, or {advice}."
