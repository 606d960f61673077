"""Reads a database without changing it."""

from __future__ import annotations

import os
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import unquote_to_bytes

from django.db import Error as DjangoDatabaseError
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper

from agentdb.errors import DatabaseUnavailableError
from agentdb.faults import (
    Fault,
    classify,
    describe_failure,
    describe_file,
)
from agentdb.schema.queries import lifted_limits, run
from agentdb.sqlite_files import (
    copy_file,
    encoding_concern,
    file_uri,
    filled_log,
    is_in_wal_mode,
    left_log_concern,
    read_header,
)
from agentdb.wording import uncapitalized

R = TypeVar("R")

_LOOKS = 3  # of a file to which another process begins to write
_MAGIC = b"SQLite format 3\0"
_INSPECTED = "AGENTDB_INSPECTED"  # the file that is read, under whatever name


@contextmanager
def inspecting(alias: str) -> Iterator[BaseDatabaseWrapper]:
    """Yield a read-only connection in one transaction; creates no file and leaves the journal mode alone.

    Raises ``DatabaseUnavailableError`` if the database cannot be read, also for errors of the body.
    """
    configured = connections[alias]
    path = sqlite_path(configured)
    if path is None and configured.vendor == "sqlite":
        with translated_errors(configured):
            yield configured  # in memory: a second connection is impossible
        return
    if path is not None:
        check_sqlite_file(path)
    with ExitStack() as stack:
        stack.enter_context(translated_errors(configured))
        connection = _reading(configured, path, stack)
        stack.callback(connection.close)
        connection.ensure_connection()
        with lifted_limits(connection), _transaction(connection):
            yield connection


class MissingFileError(DatabaseUnavailableError):
    """The path has no SQLite file."""


def server_version(connection: BaseDatabaseWrapper) -> str:
    """Return the version of SQLite, or of the connected server."""
    if connection.vendor == "sqlite":
        return sqlite3.sqlite_version
    report = connection.connection.info.parameter_status
    # CockroachDB announces itself as PostgreSQL 13; version() has "CockroachDB CCL v25.4.0 (x86_64 ...)".
    if name := report("crdb_version"):
        return str(name).split()[2].removeprefix("v")
    return str(report("server_version"))


class ChangedMeanwhileError(DatabaseUnavailableError):
    """Another process began to write to a SQLite file that was read without locks, so the result is void."""


def unless_changed(look: Callable[[], R]) -> R:
    """Return ``look()``; call it again if another process began to write to the file meanwhile."""
    for _ in range(_LOOKS - 1):
        with suppress(ChangedMeanwhileError):
            return look()
    return look()


@contextmanager
def _unchanged(path: Path) -> Iterator[None]:
    def state() -> tuple[int, int, bool] | None:
        with suppress(FileNotFoundError):
            found = path.stat()
            has_log = os.path.exists(f"{os.path.realpath(path)}-wal")
            return found.st_mtime_ns, found.st_size, has_log
        return None

    # An immutable database is read without locks, and nobody is kept from writing. If somebody did, what was read may
    # be of two moments, and an error may come of that.
    before = state()
    error: BaseException | None = None
    try:
        yield
    except DjangoDatabaseError as raised:
        error = raised
    if state() != before:
        raise ChangedMeanwhileError(
            f"Another process began to write to {str(path)!r} while it was being read. Run the command again."
        ) from error
    if error is not None:
        raise error


def sqlite_path(connection: BaseDatabaseWrapper) -> Path | None:
    """Return the database file; None for another engine, or a database in memory."""
    if connection.vendor != "sqlite":
        return None
    if (inspected := connection.settings_dict.get(_INSPECTED)) is not None:
        return Path(str(inspected))
    name = str(connection.settings_dict["NAME"])
    if name.startswith("file:"):
        name, _, parameters = name.removeprefix("file:").partition("?")
        in_bytes = unquote_to_bytes(os.fsencode(name))
        name = ":memory:" if "mode=memory" in parameters else os.fsdecode(in_bytes)
    return None if name == ":memory:" else Path(name)


def kept_commands(connection: BaseDatabaseWrapper) -> list[str]:
    """Return the ``init_command`` of a SQLite database in parts, without those that would switch its journal mode."""
    commands = connection.settings_dict["OPTIONS"].get("init_command", "").split(";")
    return [command for command in commands if "journal_mode" not in command.lower()]


def check_target_file(path: Path) -> None:
    """Raise ``DatabaseUnavailableError`` unless the path is such a file, or one can be created there."""
    if os.path.exists(path):
        check_sqlite_file(path)
    elif concern := left_log_concern(path):
        raise DatabaseUnavailableError(concern)


def check_sqlite_file(path: Path) -> None:
    """Raise ``DatabaseUnavailableError`` unless the path is a readable, whole SQLite database or an empty file."""
    # Not the methods of Path: before Python 3.13 they raise an error in a folder that this user may not enter.
    if os.path.isdir(path):
        raise DatabaseUnavailableError(
            f"{str(path)!r} is a directory, not a database file. Check the database URL."
        )
    if not os.path.isdir(path.parent):
        raise DatabaseUnavailableError(
            f"The folder {str(path.parent)!r} of the database file {path.name!r} does not exist. Check the database "
            "URL."
        )
    header, size = _header(path)
    if not size:
        if concern := left_log_concern(path):
            raise DatabaseUnavailableError(concern)
        return
    if not header.startswith(_MAGIC) or len(header) < 100:
        raise DatabaseUnavailableError(describe_file(Fault.NOT_A_DATABASE, path))
    if _is_newer(header):
        raise DatabaseUnavailableError(
            f"{str(path)!r} has a file format that SQLite {sqlite3.sqlite_version}, which Python uses here, does not "
            "know. Upgrade SQLite."
        )
    if expected := _size_if_cut_short(path, header, size):
        reason = f"it has {size:,} of the {expected:,} bytes that its header names"
        raise DatabaseUnavailableError(describe_file(Fault.DAMAGED, path, reason))
    if concern := encoding_concern(path):
        raise DatabaseUnavailableError(concern)


def _header(path: Path) -> tuple[bytes, int]:
    """Return the header and the size of the file."""
    if not os.path.isfile(path) and os.path.exists(path):
        raise DatabaseUnavailableError(
            f"{str(path)!r} is a device or a pipe, not a database file. Check the database URL."
        )
    try:
        return read_header(path)
    except FileNotFoundError:
        raise MissingFileError(
            f"The database file {str(path)!r} does not exist. Check the database URL, or run 'agentdb migrate' to make "
            "a new one."
        ) from None
    except OSError as error:
        raise DatabaseUnavailableError(
            f"The database file {str(path)!r} cannot be read: {uncapitalized(error.strerror or str(error))}."
        ) from error


def _is_newer(header: bytes) -> bool:
    """Return whether the file's format is newer than the library (https://sqlite.org/fileformat.html, 1.3)."""
    # 1 is a rollback journal, 2 a write-ahead log. SQLite itself calls a file with a newer version "not a database".
    newest_journal = max(header[18:20])  # to write and to read
    schema_format = int.from_bytes(header[44:48])
    return newest_journal > 2 or schema_format > 4


def _size_if_cut_short(path: Path, header: bytes, size: int) -> int:
    """Return the size that the header names if the file ends within a page; 0 otherwise."""
    # SQLite itself finds out if whole pages are missing, but reads the rest of one as zeros.
    page = int.from_bytes(header[16:18])
    if page == 1:
        page = 65536
    expected = page * int.from_bytes(header[28:32])
    # A log has the whole page, as after a power cut in a checkpoint; an empty one has none.
    is_short = size < expected and size % page and not filled_log(path)
    return expected if is_short else 0


@contextmanager
def translated_errors(connection: BaseDatabaseWrapper) -> Iterator[None]:
    """Turn errors of Django and the driver into a ``DatabaseUnavailableError`` with one sentence."""
    try:
        yield
    except DjangoDatabaseError as error:
        # Ctrl-C is raised in a function of agentdb's that SQLite calls for each row, and SQLite takes that for an error
        # of the statement. These functions raise nothing else.
        if "user-defined function raised" in str(error):
            raise KeyboardInterrupt from error
        raise DatabaseUnavailableError(describe_failure(connection, error)) from error


def _reading(
    configured: BaseDatabaseWrapper, path: Path | None, stack: ExitStack
) -> BaseDatabaseWrapper:
    """Return a connection that is not open yet, and will change nothing."""
    connection = configured.copy()
    settings = connection.settings_dict
    options = settings["OPTIONS"]
    options.pop("pool", None)
    if path is None:
        return connection
    settings[_INSPECTED] = path
    settings["OPTIONS"] = {key: options[key] for key in ("timeout",) if key in options}
    # SQLite keeps its log and its journal beside the target of a link.
    opened = real = Path(os.path.realpath(path))
    mode = _read_only_mode(real)
    if mode == "mode=ro" and _has_hot_journal(real):
        # A process died in a transaction. Only a connection that writes can roll it back: do it in a copy.
        folder = stack.enter_context(temporary_folder())
        opened = Path(folder) / path.name
        copy_file(real, opened)
        shutil.copyfile(f"{real}-journal", f"{opened}-journal")
        mode = "mode=rw"
    settings["NAME"] = file_uri(opened, mode)
    if "vfs=" in mode:
        # Keep the index of the write-ahead log in memory instead of in a -shm file.
        settings["OPTIONS"]["init_command"] = "PRAGMA locking_mode=EXCLUSIVE"
    if "immutable=" in mode:
        stack.enter_context(_unchanged(path))
    return connection


def temporary_folder() -> tempfile.TemporaryDirectory[str]:
    """Make a folder that its ``with`` block removes; raise ``DatabaseUnavailableError`` if it cannot."""
    try:
        return tempfile.TemporaryDirectory(prefix="agentdb-")
    except OSError as error:
        raise DatabaseUnavailableError(
            f"A temporary folder is needed, but cannot be made: {uncapitalized(error.strerror or str(error))}. Name a "
            "folder that can be written to with TMPDIR=FOLDER."
        ) from error


def _has_hot_journal(path: Path) -> bool:
    if not Path(f"{path}-journal").exists():
        return False
    # A journal is hot if no process holds a lock that belongs to it. SQLite finds that out at the first read, and can
    # roll back only if it may write.
    try:
        with closing(
            sqlite3.connect(file_uri(path, "mode=ro"), uri=True, timeout=0)
        ) as connection:
            connection.execute("SELECT count(*) FROM sqlite_master")
    except sqlite3.OperationalError as error:
        return classify(error) is Fault.READ_ONLY
    return False


def _read_only_mode(path: Path) -> str:
    """Return URI parameters that read the file and its write-ahead log, and leave no file behind.

    A read-only connection to a database in WAL mode creates -wal and -shm files and cannot remove them.
    """
    # A -shm file means that a process has the file open, or was killed. Its locks count, and the file is there already.
    uses_wal = is_in_wal_mode(path)
    index = Path(f"{path}-shm")
    if not uses_wal or index.exists() or os.name != "posix":
        return "mode=ro"
    if filled_log(path) == f"{path}-wal":
        return "mode=ro&vfs=unix-none"  # left by a dead process: a live one would have a -shm file
    # Without a log the file is complete. Immutable means without locks: whether somebody wrote is found out afterwards.
    return "mode=ro&immutable=1"


@contextmanager
def _transaction(connection: BaseDatabaseWrapper) -> Iterator[None]:
    # Not transaction.atomic(), which finds a connection by its alias: this one has none.
    connection.set_autocommit(
        False, force_begin_transaction_with_broken_autocommit=True
    )
    try:
        if connection.vendor != "sqlite":
            # One snapshot for all queries: counts and rows of different tables belong together.
            run(
                connection,
                "SET TRANSACTION ISOLATION LEVEL REPEATABLE READ, READ ONLY",
            )
        yield
    finally:
        connection.rollback()
