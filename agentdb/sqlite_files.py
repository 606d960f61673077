"""What can lose acknowledged writes of a SQLite file without any error: its file system, and SQLite itself.

Sources: https://sqlite.org/wal.html, "All processes using a database must be on the same host computer; WAL does not
work over a network filesystem" and "The WAL-Reset Bug". Imports no Django.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import quote

Read = TypeVar("Read")

# Linux only; elsewhere the file system is not known.
MOUNT_TABLE = Path("/proc/self/mountinfo")

# Other hosts write there too. They share no memory with this one, and not always its locks.
_SHARED = (
    "9p",
    "afs",
    "ceph",
    "cifs",
    "gfs2",
    "glusterfs",
    "lustre",
    "ncpfs",
    "ocfs2",
    "smb3",
    "smbfs",
    "virtiofs",
)
_SHARED_PREFIXES = ("nfs", "fuse")

_WAL_RESET_ENDS = (3, 51, 3)
_WAL_RESET_PATCHED = [
    (3, 44, 6),
    (3, 50, 7),
]


def shared_file_system(path: str | Path) -> str:
    """Return the type of the network, virtual or FUSE file system that ``path`` is on, or ''."""
    _, kind = _mount_of(path)
    return kind if kind in _SHARED or kind.startswith(_SHARED_PREFIXES) else ""


def _mount_of(path: str | Path) -> tuple[str, str]:
    """Return where the file system that ``path`` is on is mounted, and its type; '' and '' if that is not known."""
    try:
        table = MOUNT_TABLE.read_text(encoding="utf-8", errors="surrogateescape")
    except OSError:
        return "", ""
    place = _as_folder(os.path.realpath(path))
    longest = kind = ""
    for match in _MOUNT.finditer(table):
        mount = _as_folder(_OCTAL.sub(_character, match[1]))
        # A later mount at the same place hides an earlier one.
        if place.startswith(mount) and len(mount) >= len(longest):
            longest = mount
            kind = match[2]
    return longest, kind


def _as_folder(path: str) -> str:
    # With a slash at the end, so that /a is not taken for the beginning of /ab.
    return os.path.join(path, "")


# As in "36 35 98:0 / /mnt rw,noatime master:1 - ext3 /dev/root rw" (man 5 proc_pid_mountinfo).
_MOUNT = re.compile(r"^(?:[^ \n]+ ){4}([^ \n]+) .*? - ([^ \n]+)", re.MULTILINE)
# So a space, a tab, a line feed and a backslash are written in the name of a mount.
_OCTAL = re.compile(r"\\([0-7]{3})")


def _character(match: re.Match[str]) -> str:
    return chr(int(match[1], 8))


def identity(file: str | int | Path) -> tuple[int, int] | None:
    """Return the device and inode of the file that a path or descriptor names, or None."""
    try:
        found = os.stat(file)
    except (OSError, ValueError):
        return None
    return found.st_dev, found.st_ino


def descriptors() -> list[int]:
    """Return the open descriptors of this process, or none if the system does not list them."""
    try:
        # Linux, macOS and the BSDs have it.
        return [int(name) for name in os.listdir("/dev/fd")]
    except OSError:
        return []


def file_uri(path: str | Path, parameters: str) -> str:
    """Return the URI by which SQLite opens a file, also one whose name is not UTF-8."""
    # As bytes: quote() would encode the name as UTF-8.
    return f"file:{quote(os.fsencode(Path(path).absolute()))}?{parameters}"


_kept_open: list[int] = []


def read_header(path: str | Path) -> tuple[bytes, int]:
    """Return the first 100 bytes of a database file, and its size in bytes. Raises ``OSError``."""

    return _read_through(
        path, lambda number: (_read_at(number, 100, 0), os.fstat(number).st_size)
    )


def copy_file(path: str | Path, to: str | Path) -> None:
    """Copy a database file byte by byte; ``to`` is overwritten. Raises ``OSError``."""

    def copy(number: int) -> None:
        with open(to, "wb") as target:
            while chunk := _read_at(number, 1 << 20, target.tell()):
                target.write(chunk)

    _read_through(path, copy)


def _read_through(path: str | Path, read: Callable[[int], Read]) -> Read:
    """Return what ``read`` makes of a descriptor of the file.

    Closing any descriptor of a file releases all locks that the process holds on it
    (https://sqlite.org/howtocorrupt.html, 2.2), so that another process could remove the log that SQLite writes here.
    So a file that SQLite has open is read through SQLite's descriptor.
    """
    known = identity(path)
    for number in descriptors():
        if known and identity(number) == known:
            with suppress(OSError):
                found = read(number)
                if identity(number) == known:  # otherwise another thread has closed it
                    return found
    own = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
    try:
        return read(own)
    finally:
        others = [number for number in descriptors() if number != own]
        if any(identity(number) == known for number in others):
            _kept_open.append(own)  # another thread has opened it
        else:
            os.close(own)


def _read_at(number: int, size: int, offset: int) -> bytes:
    if hasattr(os, "pread"):
        return os.pread(number, size, offset)
    os.lseek(number, offset, os.SEEK_SET)
    return os.read(number, size)


def is_kept_open(number: int) -> bool:
    """Whether the descriptor is open only because closing it would drop locks."""
    return number in _kept_open


def close_kept_open() -> None:
    """In the child of a fork, which has no locks yet: close what must stay open in the parent."""
    while _kept_open:
        with suppress(OSError):
            os.close(_kept_open.pop())


def is_in_wal_mode(path: str | Path) -> bool:
    """Whether the file's header says that it has a write-ahead log."""
    header = _header_if_readable(path)
    return header[18:20] == b"\x02\x02"  # https://sqlite.org/fileformat.html, 1.3


def _header_if_readable(path: str | Path) -> bytes:
    try:
        header, _ = read_header(path)
    except OSError:
        return b""
    return header


_UTF_16 = {2: "UTF-16le", 3: "UTF-16be"}


def encoding_concern(path: str | Path) -> str:
    """Return the sentence for a file whose texts are UTF-16, '' for any other.

    There texts sort by UTF-16 unit and not by code point, and their bytes are not the UTF-8 of every other database.
    """
    number = int.from_bytes(_header_if_readable(path)[56:60])
    encoding = _UTF_16.get(number)
    if encoding is None:
        return ""
    return (
        f"The SQLite file {str(path)!r} stores its texts as {encoding}, and agentdb works with UTF-8 only. Convert it: "
        "stop every program that uses it, run 'sqlite3 FILE .dump | sqlite3 NEWFILE', and use the new file."
    )


def file_concern(path: str | Path) -> str:
    """Return the sentence for a file that can be damaged where it is, '' for any other."""
    if os.path.isdir(path):
        return (
            ""  # a folder has several names, and may be a mount; to open it is refused
        )
    kind = shared_file_system(path)
    if kind and is_in_wal_mode(path):
        return (
            f"The SQLite file {str(path)!r} has a write-ahead log on a file system of type {kind}, where SQLite "
            "can lose commits or damage the file without an error. Stop every program that has it open, then run it "
            "with ?journal=delete, or move it to a local disk."
        )
    mount, _ = _mount_of(path)
    if mount == _as_folder(os.path.realpath(path)):
        # As with "docker run --volume x.sqlite3:/x.sqlite3": the log is beside the mount, and not in it.
        return (
            f"The SQLite file {str(path)!r} is mounted without its folder. A program that opens it elsewhere uses "
            "another log, and both damage the file without an error; and what is in the log is lost with the "
            "container. Mount the folder."
        )
    try:
        names = os.stat(path).st_nlink
    except OSError:
        return ""
    if names > 1 and not kind:
        # The log has the name of the file (https://sqlite.org/howtocorrupt.html, 2.5).
        return (
            f"The SQLite file {str(path)!r} has {names} names (hard links). A program that opens it by another one "
            "uses another log, and both damage the file without an error. Remove the others: 'find / -samefile FILE' "
            "has them."
        )
    return ""


def left_log_concern(path: str | Path) -> str:
    """Return the sentence if the log of a database that was at ``path`` is still there, '' otherwise.

    SQLite deletes it when it makes a new database there, also in an empty file, and with it the last commits of the
    database that was moved.
    """
    log = filled_log(path)
    if log is None:
        return ""
    # In this order: a database that another process is making has its first page before it has a log. It has the
    # journal of that page earlier.
    with suppress(OSError):
        if os.path.getsize(path) or log.endswith("-journal"):
            return ""
    return (
        f"There is a file {log!r}, which belongs to a database that was here before and may hold its last commits. "
        "Move it to where that database is, under its name, or delete it."
    )


def filled_log(path: str | Path) -> str | None:
    """Return the log or the journal of the database at ``path`` that is not empty; None without one."""
    # SQLite keeps them beside the target of a link.
    real = os.path.realpath(path)
    for log in (f"{real}-wal", f"{real}-journal"):
        with suppress(OSError):  # a writer may have removed its journal this moment
            if os.path.getsize(log):
                return log
    return None


def version_concern(version: str) -> str:
    """Return the sentence for a SQLite that can lose commits of a write-ahead log, '' for a fixed one."""
    numbers = tuple(int(part) for part in version.split(".")[:3])
    if numbers >= _WAL_RESET_ENDS:
        return ""
    for mended in _WAL_RESET_PATCHED:
        if numbers[:2] == mended[:2] and numbers >= mended:
            return ""
    return (
        f"SQLite {version} can, very rarely, lose a commit when two connections write and checkpoint at once; "
        "3.51.3, 3.50.7 and 3.44.6 are fixed. A newer system image, or the Python of uv or conda, brings a newer one; "
        "?journal=delete avoids it at the price of slower writes. See docs/deployment.md."
    )
