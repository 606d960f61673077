"""What viewers of one page share."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.http import HttpRequest

from agentdb.admin import overview, sharing
from tests.helpers.admin_fixtures import Site, fill


@pytest.fixture(autouse=True)
def _forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    sharing.forget()
    monkeypatch.setattr(sharing, "SECONDS", 3600.0)


def test_viewers_who_ask_at_once_share_one_answer():
    made: list[int] = []
    together = Barrier(20)

    def make() -> int:
        made.append(len(made))
        return made[-1]

    def ask(_: int) -> int:
        together.wait()
        return int(sharing.shared("page", make))

    with ThreadPoolExecutor(20) as viewers:
        answers = list(viewers.map(ask, range(20)))

    assert (answers, made) == ([0] * 20, [0])


def test_an_answer_is_made_again_once_it_is_old_or_something_was_changed(
    monkeypatch: pytest.MonkeyPatch,
):
    numbers = iter(range(10))

    assert [sharing.shared("page", lambda: next(numbers)) for _ in range(2)] == [0, 0]
    sharing.forget()
    assert sharing.shared("page", lambda: next(numbers)) == 1
    monkeypatch.setattr(sharing, "SECONDS", -1.0)
    assert sharing.shared("page", lambda: next(numbers)) == 2


def test_an_answer_that_could_not_be_made_is_asked_for_again():
    def fail() -> None:
        raise RuntimeError("broken on purpose")

    with pytest.raises(RuntimeError):
        sharing.shared("page", fail)

    assert sharing.shared("page", lambda: "made") == "made"


def test_viewers_of_the_overview_share_it_as_far_as_they_may_see_the_same(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(sharing, "SECONDS", 3600.0)
    made: list[object] = []
    real = overview.page

    def page(request: HttpRequest) -> dict[str, Any]:
        made.append(request)
        return real(request)

    monkeypatch.setattr(overview, "page", page)
    fill(site.alias, 3)

    first, second = site.get("").text, site.get("").text
    site.log_in(site.make_user("narrow", "view_sandbox"))
    narrow = site.get("").text

    assert len(made) == 2
    assert "Top tenants" in first and "Top tenants" in second
    assert "Top tenants" not in narrow
    site.log_in(superuser)
    site.confirm("agentdb/session/?status=active", "pause_sessions", ["s0001"])
    site.get("")
    assert len(made) == 3  # what was changed here shows at once
