"""Tests of fastapi_app.py without a database: python -m pytest test_fastapi_app.py"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from fastapi.testclient import TestClient
from fastapi_app import create_app

from agentdb import (
    AsyncDb,
    ConflictError,
    DatabaseUnavailableError,
    OutcomeUnknownError,
)
from agentdb.testing import MemoryDb

SESSION = "/agents/bot/sessions/11111111-1111-4111-8111-111111111111"


@pytest.fixture
def db() -> MemoryDb:
    return MemoryDb()


@pytest.fixture
def client(db: MemoryDb) -> Iterator[TestClient]:
    with TestClient(
        create_app(lambda: AsyncDb(db)), headers=key_of(db, "acme")
    ) as client:
        client.put("/agents/bot", params={"path": "/srv/bot"})
        yield client


def key_of(db: MemoryDb, tenant_id: str) -> dict[str, str]:
    plain, _ = db.issue_api_key(tenant_id, "test")
    return {"X-Api-Key": plain}


def ids(client: TestClient, **parameters: Any) -> list[str]:
    return [
        session["id"]
        for session in client.get("/sessions", params=parameters).json()["sessions"]
    ]


def test_a_session_is_opened_once_however_often_it_is_asked_for(
    client: TestClient,
) -> None:
    first, second = client.put(SESSION), client.put(SESSION)

    assert (first.status_code, second.status_code) == (201, 200)
    assert first.json() == second.json()
    assert len(ids(client)) == 1


def test_a_retry_after_a_lost_answer_opens_no_second_session(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = MemoryDb.insert_session

    def store_and_lose_the_answer(self: MemoryDb, *arguments: str) -> None:
        real(self, *arguments)
        raise OutcomeUnknownError("The connection was lost.")

    with monkeypatch.context() as patch:
        patch.setattr(MemoryDb, "insert_session", store_and_lose_the_answer)
        lost = client.put(SESSION)
    again = client.put(SESSION)

    assert (lost.status_code, "Retry-After" in lost.headers) == (504, False)
    assert (again.status_code, len(ids(client))) == (200, 1)


@pytest.mark.parametrize(
    "error",
    [DatabaseUnavailableError("It is away."), ConflictError("Others were in the way.")],
)
def test_503_is_only_said_when_nothing_was_stored(
    client: TestClient, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def fail(self: MemoryDb, *arguments: str) -> None:
        raise error

    with monkeypatch.context() as patch:
        patch.setattr(MemoryDb, "insert_session", fail)
        refused = client.put(SESSION)

    assert (refused.status_code, refused.headers["Retry-After"]) == (503, "5")
    assert ids(client) == []


def test_a_tenant_sees_and_takes_nothing_of_another(
    client: TestClient, db: MemoryDb
) -> None:
    client.put(SESSION)
    other = key_of(db, "other")
    client.put("/agents/bot", params={"path": "/srv/other"}, headers=other)

    assert client.get("/sessions", headers=other).json()["sessions"] == []
    assert client.put(SESSION, headers=other).status_code == 409
    assert client.get("/sessions", headers={"X-Api-Key": "wrong"}).status_code == 401
    assert client.get("/sessions", headers={"X-Api-Key": ""}).status_code == 401
    assert client.put("/agents/none/sessions/s1").status_code == 404


def test_bad_input_is_the_clients_mistake(client: TestClient) -> None:
    too_long = client.put(f"/agents/bot/sessions/{'x' * 600}")

    assert (too_long.status_code, too_long.json()) == (
        422,
        {"detail": "Session id has 600 bytes in UTF-8; the limit is 512."},
    )
    assert client.put("/agents/bot/sessions/a%00b").status_code == 422
    assert client.get("/sessions", params={"limit": -1}).status_code == 422
    assert client.get("/sessions", params={"before": "yesterday"}).status_code == 422


def test_pages_follow_each_other(client: TestClient) -> None:
    for number in range(5):
        client.put(f"/agents/bot/sessions/s{number}")

    first = client.get("/sessions", params={"limit": 3}).json()
    rest = client.get(
        "/sessions", params={"limit": 3, "before": first["before"]}
    ).json()

    assert [session["id"] for session in first["sessions"] + rest["sessions"]] == [
        "s4",
        "s3",
        "s2",
        "s1",
        "s0",
    ]
    assert rest["before"] is None


def test_the_probe_asks_the_database(client: TestClient) -> None:
    assert client.get("/health").json() == {"ok": True, "reason": ""}
