"""The example programs do what their first lines say."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

import agentdb
from examples import fastapi_app, reaper

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"


def test_the_api_serves_each_tenant_its_own(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)
    with agentdb.connect(url) as db:
        acme, _ = db.issue_api_key("acme", "test")
        other, _ = db.issue_api_key("other", "test")

    with TestClient(fastapi_app.app) as client:
        assert client.get("/health").json() == {"ok": True, "reason": ""}
        assert client.get("/sessions").status_code == 401
        assert client.get("/sessions", headers={"X-API-Key": "wrong"}).status_code == 401
        key = {"X-API-Key": acme}
        assert client.post("/agents/bot/sessions", headers=key).status_code == 404
        assert client.put("/agents/bot", params={"path": "/srv/bot"}, headers=key).json()["version"] == 1
        session = client.post("/agents/bot/sessions", headers=key).json()
        assert [one["id"] for one in client.get("/sessions", headers=key).json()] == [session["id"]]
        assert client.get("/sessions", headers={"X-API-Key": other}).json() == []


def test_the_api_says_that_the_database_is_away(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATABASE_URL", url)

    async def away(self: object, key: str) -> None:
        raise agentdb.DatabaseUnavailableError("no server")

    with TestClient(fastapi_app.app) as client:
        monkeypatch.setattr(agentdb.AsyncDb, "authenticate", away)
        answer = client.get("/sessions", headers={"X-API-Key": "ak_x"})
    assert (answer.status_code, answer.headers["Retry-After"]) == (503, "5")


def test_the_reaper_leaves_as_many_sandboxes_as_may_be(url: str, capsys: pytest.CaptureFixture[str]) -> None:
    reaper.main(url)
    reaper.main(url)

    for line in capsys.readouterr().out.splitlines():
        found = re.fullmatch(r"(\d+) sandboxes before, 12 made, (\d+) freed, (\d+) left\.", line)
        assert found is not None
        before, freed, left = map(int, found.groups())
        assert (before + 12 - freed, left) == (left, reaper.LIMIT)


def test_the_tests_of_ones_own_code_pass(tmp_path: Path) -> None:
    (tmp_path / "test_own_code.py").write_bytes((EXAMPLES / "test_own_code.py").read_bytes())
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:django", "-p", "no:cacheprovider", "test_own_code.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "2 passed" in done.stdout, done.stdout
