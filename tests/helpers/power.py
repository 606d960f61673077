"""What a power cut may leave of a folder, replayed from a log of a real program's writes and syncs."""

from __future__ import annotations

import os
import random
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest


def need_strace() -> None:
    """Skip, with the reason, where system calls cannot be traced."""
    if shutil.which("strace") is None:
        pytest.skip("needs strace (Debian: apt-get install strace)")
    if subprocess.run(
        ["strace", "-o", os.devnull, "true"], capture_output=True
    ).returncode:
        pytest.skip("strace may not trace here (ptrace is forbidden)")


def run_traced(
    log: Path, strace: list[str], program: str, *arguments: str
) -> list[str]:
    """Run a Python program under strace, writing to ``log``, and return the lines that it printed."""
    environment = {
        k: v
        for k, v in os.environ.items()
        if k != "DJANGO_SETTINGS_MODULE" and not k.startswith("COV")
    }
    done = subprocess.run(
        ["strace", "-f", "-o", str(log), *strace, sys.executable, "-c", program, *arguments],
        capture_output=True, text=True, env=environment, timeout=600,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@dataclass
class File:
    """A file as it is on the disk, and the writes that the disk may or may not have."""

    synced: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(
        default_factory=list
    )  # None: cut to that length

    def sync(self) -> None:
        self.synced = self._after(self.pending)
        self.pending = []

    def _after(self, writes: list[tuple[int, bytes | None]]) -> bytes:
        content = bytearray(self.synced)
        for offset, data in writes:
            if data is None:
                content = content[:offset].ljust(offset, b"\0")
            else:
                content = content.ljust(offset, b"\0")
                content[offset : offset + len(data)] = data
        return bytes(content)

    def cut(self, random_: random.Random) -> bytes:
        kept: list[tuple[int, bytes | None]] = []
        share = random_.choice([0.0, 0.5, 0.9, 1.0])
        for offset, data in self.pending:
            if random_.random() < share:
                torn = data is not None and len(data) > 512 and random_.random() < 0.2
                kept.append(
                    (
                        offset,
                        data[: random_.randrange(512, len(data), 512)]
                        if torn and data
                        else data,
                    )
                )
        return self._after(kept)


class Disk:
    """A folder's files. One that is made, renamed or removed is so for sure once the folder is synced as well."""

    def __init__(self, folder: Path, contents: dict[Path, bytes]) -> None:
        self._folder = folder
        self._names = {path: File(content) for path, content in contents.items()}
        self._synced = self._names
        self._pending: list[
            dict[Path, File]
        ] = []  # the names after each change of them
        self._open: dict[str, File | Path] = {}

    def follow(self, call: str, arguments: list[str], result: str) -> bool:
        """Follow a system call; return whether it was one of this folder's."""
        known = self._open.get(arguments[0])
        match call:
            case "openat":
                return self._opened(
                    Path(_decoded(arguments[1]).decode()), arguments[2], result
                )
            case "close":
                return self._open.pop(arguments[0], None) is not None
            case "pwrite64" if isinstance(known, File):
                known.pending.append((int(arguments[3]), _decoded(arguments[1])))
            case "ftruncate" if isinstance(known, File):
                known.pending.append((int(arguments[1]), None))
            case "fsync" | "fdatasync" if isinstance(known, File):
                known.sync()
            case "fsync" | "fdatasync" if known is not None:
                self._synced, self._pending = self._names, []
            case "link" | "rename" | "unlink" if (
                name := Path(_decoded(arguments[0]).decode())
            ) in self._names:
                names = dict(self._names)
                file = names[name] if call == "link" else names.pop(name)
                if call != "unlink":
                    names[Path(_decoded(arguments[1]).decode())] = file
                self._change(names)
            case _:
                assert not isinstance(known, File), f"{call} of a file is not followed"
                return False
        return True

    def _opened(self, name: Path, flags: str, descriptor: str) -> bool:
        self._open.pop(descriptor, None)
        if name == self._folder:
            self._open[descriptor] = name
        elif name.parent == self._folder and not name.name.endswith(
            "-shm"
        ):  # which SQLite makes anew
            if name not in self._names:
                self._change({**self._names, name: File()})
            self._open[descriptor] = file = self._names[name]
            if "O_TRUNC" in flags:
                file.pending.append((0, None))
        return descriptor in self._open

    def _change(self, names: dict[Path, File]) -> None:
        self._names = names
        self._pending.append(names)

    def cut(self, random_: random.Random) -> dict[Path, bytes]:
        """What may be on the disk if the power is cut now."""
        names = random_.choice([self._synced, *self._pending])
        return {name: file.cut(random_) for name, file in names.items()}


FOLLOWED = [
    "-xx",
    "-s",
    "1000000",
    "-e",
    "trace=openat,close,write,writev,pwrite64,pwritev,ftruncate,fallocate,sendfile,copy_file_range,fsync,fdatasync,"
    "link,rename,unlink",
]
_CALL = re.compile(r"^\d+ +(\w+)\((.*)\) += (\d+)")


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def cuts(
    folder: Path, before: dict[Path, bytes], log: Path, number: int, seed: str
) -> Iterator[tuple[Path, str]]:
    """Cut the power at so many random moments of the program that ``log`` tells of, before its last words and after.

    Yields a folder with what is left of ``folder``, which was ``before``, and what the program had printed until then.
    """
    random_ = random.Random(seed)
    said = list(_replayed(Disk(folder, before), log))
    moments = len(said)
    at_random = random_.sample(range(moments), min(number, moments))
    chosen = {*at_random, said.index(said[-1]) - 1, moments - 1}
    disk = Disk(folder, before)
    for moment, printed in enumerate(_replayed(disk, log)):
        if moment not in chosen:
            continue
        left = log.parent / "left"
        shutil.rmtree(left, ignore_errors=True)
        left.mkdir()
        for name, content in disk.cut(random_).items():
            (left / name.name).write_bytes(content)
        yield left, printed


def _replayed(disk: Disk, log: Path) -> Iterator[str]:
    """Follow the log; after each call that says something of the folder, yield what has been printed."""
    printed = ""
    for call, arguments, result in _calls(log):
        if call == "write" and arguments[0] == "1":
            printed += _decoded(arguments[1]).decode()
        elif not disk.follow(call, arguments, result):
            continue
        yield printed


def _calls(log: Path) -> Iterator[tuple[str, list[str], str]]:
    """The calls that succeeded: name, arguments, result. One that another thread's came between is at its end."""
    begun: dict[str, str] = {}
    for line in log.read_text().splitlines():
        thread, _, rest = line.partition(" ")
        if rest.endswith(" <unfinished ...>"):
            begun[thread] = rest.removesuffix(" <unfinished ...>")
            continue
        if resumed := re.match(r" *<\.\.\. \w+ resumed>(.*)", rest):
            line = f"{thread} {begun.pop(thread)}{resumed[1]}"
        if call := _CALL.match(line):
            yield call[1], call[2].split(", "), call[3]


def _decoded(text: str) -> bytes:
    assert not text.endswith("..."), "strace cut a string off"
    return bytes.fromhex(text.strip('"').replace("\\x", ""))
