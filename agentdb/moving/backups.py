"""Backs up a database of any engine to one SQLite file, which is complete and checked, or absent."""

from __future__ import annotations

import tempfile
from pathlib import Path

from django.db import connections

from agentdb.adoption.progress import Progress
from agentdb.adoption.sqlite_backup import back_up, refuse_taken
from agentdb.conf import file_url
from agentdb.errors import DatabaseUnavailableError
from agentdb.moving import copydb
from agentdb.schema.inspection import sqlite_path
from agentdb.serving.opening import temporary_alias


def back_up_database(
    alias: str,
    target: Path,
    progress: Progress,
) -> None:
    """Write the database of ``alias`` to the new SQLite file ``target``, in one snapshot, while others write to it.

    A SQLite file is copied whole, and the four tables of a server. Raises ``InvalidInputError`` if the file is there
    already, or a log that SQLite would read with it, ``DatabaseUnavailableError`` if something cannot be read or
    written; then no file is left.
    """
    target = target.absolute()
    refuse_taken(target)
    if not target.parent.is_dir():
        raise DatabaseUnavailableError(
            f"The folder {str(target.parent)!r} for the backup does not exist. Create it first."
        )
    # A file has more than the four tables, and SQLite's own backup copies it page by page with all that is in it.
    source = sqlite_path(connections[alias])
    if source is not None:
        copydb.check_source(alias)
        back_up(source, progress, target=target)
        return
    try:
        # On the same disk, so that a rename puts the finished file in place.
        folder = tempfile.TemporaryDirectory(
            prefix=f".{target.name}-", dir=target.parent
        )
    except OSError as error:
        raise DatabaseUnavailableError(
            f"The backup {str(target)!r} cannot be written: {error.strerror}. Allow writing to its folder."
        ) from error
    with folder as name:
        copied = Path(name) / "copy.sqlite3"
        with temporary_alias(file_url(copied)) as alias_of_copy:
            copydb.copy(alias, alias_of_copy, progress)
        back_up(copied, target=target)
