"""What a power cut leaves of a SQLite file, replayed from a log of a real writer's writes and syncs, and failing disks.

``AGENTDB_POWER_CUTS`` says how many moments are tried; by hand, 5000 is a good value.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path

import pytest

CUTS = int(os.environ.get("AGENTDB_POWER_CUTS", "60"))
CALLS = 40

# Says each write that was acknowledged. The log is checkpointed often, so that cuts fall into that as well.
WRITER = f"""
import os, sys
import agentdb
with agentdb.connect(sys.argv[1]) as db:
    from django.db import connections
    connections[db.alias].ensure_connection()
    connections[db.alias].connection.execute("PRAGMA wal_autocheckpoint = 12")
    os.write(1, b"ready\\n")
    for number in range({CALLS}):
        try:
            db.insert_session(f"s{{number}}", "agent", "x" * 200)
        except agentdb.AgentDbError as error:
            os.write(1, f"{{type(error).__name__}}: {{error}}\\n".encode())
        else:
            os.write(1, f"done s{{number}}\\n".encode())
    os._exit(0)
"""


@pytest.fixture(scope="module", autouse=True)
def _strace() -> None:
    if shutil.which("strace") is None:
        pytest.skip("needs strace (Debian: apt-get install strace)")
    if subprocess.run(["strace", "-o", os.devnull, "true"], capture_output=True).returncode:
        pytest.skip("strace may not trace here (ptrace is forbidden)")


@pytest.fixture
def path(_migrated_sqlite: Path, tmp_path: Path) -> Path:
    return Path(shutil.copyfile(_migrated_sqlite, tmp_path / "agentdb.sqlite3"))


def write(path: Path, *strace: str, options: str = "") -> list[str]:
    """Run the writer under strace and return what it printed."""
    environment = {k: v for k, v in os.environ.items() if k != "DJANGO_SETTINGS_MODULE" and not k.startswith("COV")}
    done = subprocess.run(
        ["strace", "-f", "-o", str(path.parent / "log"), *strace, sys.executable, "-c", WRITER,
         f"sqlite:///{path}{options}"],
        capture_output=True, text=True, env=environment, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


@dataclass
class File:
    """A file as it is on the disk, and the writes that the disk may or may not have."""

    synced: bytes = b""
    pending: list[tuple[int, bytes | None]] = field(default_factory=list)  # None: cut to that length

    def sync(self) -> None:
        self.synced = self.after(self.pending)
        self.pending = []

    def after(self, writes: list[tuple[int, bytes | None]]) -> bytes:
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
                kept.append((offset, data[: random_.randrange(512, len(data), 512)] if torn and data else data))
        return self.after(kept)


CALL = re.compile(r"^\d+ +(\w+)\((.*)\) += (-?\d+)")


def replay(log: Path, path: Path, before: bytes) -> Iterator[tuple[dict[Path, File], set[str]]]:
    """The files after each call of the writer's, and the ids it had been told are stored."""
    files = {path: File(before)}
    names: dict[str, Path] = {}
    stored: set[str] = set()
    for line in log.read_text().splitlines():
        if not (call := CALL.match(line)) or call[3].startswith("-"):
            assert "unfinished" not in line, line
            continue
        first, *rest = call[2].split(", ")
        match call[1]:
            case "openat":
                name = Path(decode(rest[0]).decode())
                if name in (path, path.with_name(f"{path.name}-wal")):
                    files.setdefault(name, File())
                    names[call[3]] = name
                else:
                    names.pop(call[3], None)
            case "close":
                names.pop(first, None)
            case "write" if first == "1":
                if (said := decode(rest[0]).decode().split())[0] == "done":
                    stored.add(said[1])
            case "pwrite64" if first in names:
                files[names[first]].pending.append((int(rest[2]), decode(rest[0])))
            case "ftruncate" if first in names:
                files[names[first]].pending.append((int(rest[0]), None))
            case "fsync" | "fdatasync" if first in names:
                files[names[first]].sync()
            case _:
                continue
        yield files, stored


def decode(text: str) -> bytes:
    assert not text.endswith("..."), "strace cut a string off"
    return bytes.fromhex(text.strip('"').replace("\\x", ""))


def check(path: Path) -> tuple[bool, set[str]]:
    """Whether SQLite finds the file whole, and the ids of its sessions."""
    with closing(sqlite3.connect(path)) as connection:
        whole = connection.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return whole, {id for (id,) in connection.execute("SELECT id FROM sessions")}


def cut_power(path: Path, options: str) -> tuple[int, int]:
    """Cut the power at CUTS random moments of a writer's; return the damaged files and the lost rows."""
    before = path.read_bytes()
    calls = "openat,close,write,pwrite64,ftruncate,fsync,fdatasync"
    said = write(path, "-xx", "-s", "100000", "-e", f"trace={calls}", options=options)
    assert said == ["ready", *(f"done s{number}" for number in range(CALLS))]
    log = path.parent / "log"
    random_ = random.Random(options)
    moments = sum(1 for _ in replay(log, path, before))
    chosen = set(random_.sample(range(moments), min(CUTS, moments)))
    damaged = lost = 0
    for moment, (files, stored) in enumerate(replay(log, path, before)):
        if moment not in chosen:
            continue
        folder = path.parent / "after"
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        for name, file in files.items():
            (folder / name.name).write_bytes(file.cut(random_))
        whole, found = check(folder / path.name)
        damaged += not whole
        lost += len(stored - found)
    return damaged, lost


def test_a_power_cut_loses_no_acknowledged_row(path: Path) -> None:
    assert cut_power(path, "") == (0, 0)


def test_a_power_cut_at_synchronous_normal_loses_rows_but_damages_nothing(path: Path) -> None:
    """As documented; and it shows that the test above can tell."""
    damaged, lost = cut_power(path, "?synchronous=NORMAL")

    assert damaged == 0
    assert lost > 0


@pytest.mark.parametrize(("error", "words"), [("EIO", "disk I/O error"), ("ENOSPC", "disk is full|disk I/O error")])
@pytest.mark.parametrize("call", ["pwrite64", "fdatasync"])
def test_a_disk_that_fails_for_a_while_is_reported_and_loses_no_acknowledged_row(
    path: Path, error: str, words: str, call: str
) -> None:
    wal = f"{path}-wal"
    said = write(path, "-P", str(path), "-P", wal, "-e", f"trace={call}",
                 "-e", f"inject={call}:error={error}:when=9..14")  # fmt: skip

    stored = {line.split()[1] for line in said if line.startswith("done")}
    errors = [line for line in said[1:] if not line.startswith("done")]
    assert errors
    assert stored
    assert [line for line in errors if not re.match(f"DatabaseUnavailableError: .*({words})", line)] == []
    whole, found = check(path)
    assert (whole, stored - found) == (True, set())
