"""Passwords and certificates that are not in the URL, as PostgreSQL's own clients find them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

import agentdb
from agentdb import DatabaseUnavailableError
from tests.helpers.servers import FAST, Server, programs_with_tls

PASSWORD = "geheim: so geheim"


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    """A server that asks for the password and, if it can, has a certificate of its own for the name localhost."""
    tls = programs_with_tls() if shutil.which("openssl") else None
    with Server(tls) as server:
        password = server.folder / "password"
        password.write_text(PASSWORD)
        password.chmod(0o644)
        server.init("--auth-host=scram-sha-256", f"--pwfile={password}")
        if tls:
            server.run(
                "openssl", "req", "-new", "-x509", "-nodes", "-days", "2", "-subj", "/CN=localhost",
                "-addext", "subjectAltName=DNS:localhost",
                "-keyout", str(server.data / "server.key"), "-out", str(server.data / "server.crt"),
            )  # fmt: skip
        server.start(**FAST, **({"ssl": "on"} if tls else {}))
        yield server


@pytest.fixture(autouse=True)
def no_password_of_this_shell(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in (
        "PGPASSWORD",
        "PGPASSFILE",
        "PGSERVICEFILE",
        "PGSSLMODE",
        "PGSSLROOTCERT",
    ):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))


def works(url: str) -> bool:
    with agentdb.connect(url, migrate=True) as db:
        return db.list_agents() == []


def test_a_missing_password_is_said_at_once(server: Server) -> None:
    with pytest.raises(DatabaseUnavailableError, match="no password supplied"):
        agentdb.connect(server.url)


def test_password_of_the_environment(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    assert works(server.url)


def test_password_file(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "passwords"
    escaped = PASSWORD.replace(":", "\\:")
    file.write_text(f"127.0.0.1:{server.port}:postgres:postgres:{escaped}\n")
    file.chmod(0o600)
    monkeypatch.setenv("PGPASSFILE", str(file))
    assert works(server.url)
    file.write_text(f"127.0.0.1:{server.port}:postgres:postgres:wrong\n")
    with pytest.raises(
        DatabaseUnavailableError, match="password authentication failed"
    ) as refused:
        agentdb.connect(server.url)
    assert "wrong" not in str(refused.value)


def test_service_file(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    file = tmp_path / "services"
    file.write_text(
        f"[agents]\nhost=127.0.0.1\nport={server.port}\ndbname=postgres\nuser=postgres\npassword={PASSWORD}\n"
    )
    monkeypatch.setenv("PGSERVICEFILE", str(file))
    assert works("postgresql:///?service=agents")


def test_a_certificate_is_verified_with_the_name_of_the_server(
    server: Server, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    if not (server.data / "server.crt").exists():
        pytest.skip(
            "needs openssl and a PostgreSQL built with it, which 'make test-postgres VERSIONS=18' fetches"
        )
    monkeypatch.setenv("PGPASSWORD", PASSWORD)
    certificate = tmp_path / "root.crt"
    certificate.write_text((server.data / "server.crt").read_text())
    verified = f"?sslmode=verify-full&sslrootcert={certificate}"
    named = server.url.replace("127.0.0.1", "localhost")

    assert works(named + verified)
    with pytest.raises(
        DatabaseUnavailableError, match='does not match host name "127.0.0.1"'
    ):
        agentdb.connect(server.url + verified, timeout_seconds=1)
    other = tmp_path / "other.crt"
    subprocess.run(
        ["openssl", "req", "-new", "-x509", "-nodes", "-subj", "/CN=localhost", "-keyout", "/dev/null", "-out", other],
        check=True, capture_output=True,
    )  # fmt: skip
    with pytest.raises(DatabaseUnavailableError, match="certificate verify failed"):
        agentdb.connect(
            f"{named}?sslmode=verify-full&sslrootcert={other}", timeout_seconds=1
        )
