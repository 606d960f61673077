"""A real PgBouncer in front of a test's PostgreSQL."""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path

import psycopg
import pytest

from tests.helpers.servers import Server, free_port


def version() -> tuple[int, int]:
    program = shutil.which("pgbouncer") or pytest.skip(
        "needs PgBouncer (Debian: apt-get install pgbouncer)"
    )
    found = re.search(
        r"PgBouncer (\d+)\.(\d+)",
        subprocess.run([program, "-V"], capture_output=True, text=True).stdout,
    )
    assert found
    return int(found[1]), int(found[2])


class PgBouncer:
    """Started by :meth:`start`, as a user without rights; ended, with its folder, at the end of the ``with`` block."""

    def __init__(self, mode: str, **settings: object) -> None:
        self.port = free_port()
        self.url = f"postgresql://agent@127.0.0.1:{self.port}/agents"
        self._folder = Path(tempfile.mkdtemp(prefix="agentdb-bouncer-"))
        self._folder.chmod(0o755)
        self._log = self._folder / "log"
        self._process: subprocess.Popen[bytes] | None = None
        self._settings = {
            "listen_addr": "127.0.0.1",
            "listen_port": self.port,
            "unix_socket_dir": "",
            "auth_type": "trust",
            "auth_file": self._folder / "users",
            "admin_users": "agent",
            "pool_mode": mode,
            "max_client_conn": 1000,
            **settings,
        }

    def __enter__(self) -> PgBouncer:
        return self

    def __exit__(self, *error: object) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()
        shutil.rmtree(self._folder)

    def _write(self, server: Server, database: str) -> Path:
        (self._folder / "users").write_text('"agent" ""\n')
        path = self._folder / "pgbouncer.ini"
        path.write_text(
            f"[databases]\nagents = host=127.0.0.1 port={server.port} dbname={database} user=postgres\n[pgbouncer]\n"
            + "".join(
                f"{setting} = {value}\n" for setting, value in self._settings.items()
            )
        )
        return path

    def start(self, server: Server, database: str = "postgres") -> None:
        """Start it in front of ``database``, and wait until that can be reached through it."""
        path = self._write(server, database)
        nobody = (
            65534 if os.geteuid() == 0 else None
        )  # PgBouncer refuses to run as root
        with self._log.open("wb") as log:
            command = [shutil.which("pgbouncer") or "", str(path)]
            self._process = subprocess.Popen(
                command, user=nobody, group=nobody, stdout=log, stderr=log
            )
        for _ in range(2000):
            try:
                psycopg.connect(
                    self.url, prepare_threshold=None, connect_timeout=60
                ).close()
            except psycopg.OperationalError as error:
                assert self._process.poll() is None, self._log.read_text()
                last = error
                time.sleep(0.05)
            else:
                return
        raise AssertionError(last)

    def point_at(self, server: Server, database: str = "postgres") -> None:
        """Send its callers to another server, as an operator does after a failover: a new file, and RELOAD."""
        assert self._process
        self._write(server, database)
        self._process.send_signal(signal.SIGHUP)
