"""The one search box, on both engines."""

from __future__ import annotations

import sys
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.signals import got_request_exception
from django.db import connections
from django.test.utils import CaptureQueriesContext
from django.views.debug import ExceptionReporter

from agentdb.admin.find import Search
from agentdb.models import Session
from tests.helpers.admin_fixtures import Page, Site, fill

UUIDS = ["0193a7c2-7b1e-7f3a-9c51-4f0d7c1e0001", "0193a7c2-7b1e-7f3a-9c51-4f0d7c1e0002"]


def looked_for(site: Site, text: str) -> Page:
    return Page(site.client.post("/admin/agentdb/session/find/", {"q": text}))


def led_to(site: Site, text: str) -> str:
    """Where the box leads to at once; empty if it shows a page."""
    page = looked_for(site, text)
    return str(page.response["Location"]) if page.status == 302 else ""


@pytest.fixture
def rows(site: Site, superuser: User) -> None:
    fill(site.alias, 12)
    for id in UUIDS:
        Session.objects.using(site.alias).create(
            id=id, agent_name="a", sandbox_id="b", runner_id="runner-0"
        )
    Session.objects.using(site.alias).filter(pk="s0003").update(
        tenant_id="acme", runner_id="eu-1"
    )


@pytest.mark.parametrize(
    ("text", "path"),
    [
        ("s0003", "session/s0003/change/"),
        ("  'b0004', ", "sandbox/b0004/change/"),
        ('"k0005"', "apikey/k0005/change/"),
        (UUIDS[1], f"session/{UUIDS[1]}/change/"),
        ("0193a7c2…0001", f"session/{UUIDS[0]}/change/"),
        ("0193a7c2...0002", f"session/{UUIDS[1]}/change/"),
        ("acme", "agent/tenant/?id=acme"),
        ("acm", "agent/tenant/?id=acme"),
        ("eu-1", "session/runner/?id=eu-1"),
        ("key 7", "apikey/k0007/change/"),
        ("agent-4", "agent/a0004/change/"),
    ],
)
def test_what_is_meant_is_opened_at_once(site: Site, rows: None, text: str, path: str):
    assert led_to(site, text) == f"/admin/agentdb/{path}"


def test_a_shortened_runner_is_found_behind_others_that_begin_alike(
    site: Site, superuser: User
):
    for number in range(10):
        Session.objects.using(site.alias).create(
            id=f"s{number}",
            agent_name="a",
            sandbox_id="b",
            runner_id=f"runner-{number}-worker-{number}",
        )

    found = led_to(site, "runner-…worker-9")

    assert found == "/admin/agentdb/session/runner/?id=runner-9-worker-9"


def test_several_that_may_be_meant_are_listed(site: Site, rows: None):
    page = looked_for(site, "0193a7c2")

    assert [text for _, text in page.links if text in UUIDS] == UUIDS
    assert "/admin/agentdb/sandbox/?q=0193a7c2" in [url for url, _ in page.links]


def test_nothing_found_offers_the_rows_that_contain_it(site: Site, rows: None):
    page = looked_for(site, "work/7")

    assert "Nothing found" in page.text
    assert "/admin/agentdb/sandbox/?q=work%2F7" in [url for url, _ in page.links]


def test_a_pasted_key_is_found_and_is_in_no_address(site: Site, superuser: User):
    plain, record = site.db.issue_api_key("acme", "laptop")

    assert led_to(site, f" {plain}\n") == f"/admin/agentdb/apikey/{record.id}/change/"
    site.db.delete_api_key(record.id)
    page = looked_for(site, plain)
    assert "If it is a key, it was revoked or belongs elsewhere." in page.text
    assert plain not in page.html
    assert plain[9:] not in page.html


def test_the_box_tells_of_no_table_that_the_user_may_not_see(site: Site):
    fill(site.alias, 3)
    plain, _ = site.db.issue_api_key("secret-tenant", "laptop")
    site.log_in(site.make_user("narrow", "view_sandbox"))

    for text in (
        "s0001",
        "k0001",
        "agent-1",
        "runner-1",
        "secret-tenant",
        plain,
        "laptop",
    ):
        assert looked_for(site, text).status == 200
        assert "Nothing found" in looked_for(site, text).text
    assert led_to(site, "b0001") == "/admin/agentdb/sandbox/b0001/change/"


def test_the_box_asks_for_a_login(site: Site):
    assert (
        looked_for(site, "x").response["Location"]
        == "/admin/login/?next=/admin/agentdb/session/find/"
    )


def test_each_page_has_the_box_and_says_if_one_may_only_look(site: Site):
    fill(site.alias, 2)
    site.log_in_viewer()
    for path in (
        "",
        "agentdb/session/",
        "agentdb/session/s0001/change/",
        "agentdb/agent/tenant/?id=t1",
    ):
        page = Page(site.client.get(f"/admin/{path}"))
        assert 'action="/admin/agentdb/session/find/"' in page.html
        assert "Read-only" in page.text
        assert "action-select" not in page.html
    site.log_in(site.make_user("operator", "change_session"))
    assert "Read-only" not in site.get("agentdb/session/").text


@pytest.mark.parametrize("text", ["", "   ", "\x00", "x" * 5_000, "\ud800"])
def test_odd_texts_find_nothing_and_break_nothing(site: Site, rows: None, text: str):
    assert looked_for(site, text.encode(errors="replace").decode()).status == 200


def test_of_a_long_text_as_much_is_looked_for_as_a_name_may_have(
    site: Site, superuser: User
):
    agent = site.db.upsert_agent("n" * 512, "/srv/a")

    found = looked_for(site, f"  {'n' * 512}x")

    assert found.response["Location"] == f"/admin/agentdb/agent/{agent.id}/change/"


@pytest.mark.parametrize("is_revoked", [False, True])
def test_no_question_to_the_database_holds_a_pasted_key(
    site: Site, superuser: User, is_revoked: bool
):
    plain, record = site.db.issue_api_key("acme", "laptop")
    if is_revoked:
        site.db.delete_api_key(record.id)

    with CaptureQueriesContext(connections[site.alias]) as queries:
        looked_for(site, plain)

    assert len(queries) > 0
    assert not [query for query in queries if plain in query["sql"]]


def test_the_report_of_an_error_holds_no_pasted_key(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    plain, _ = site.db.issue_api_key("acme", "laptop")
    reports: list[str] = []

    def fail(self: Search) -> None:
        raise RuntimeError("broken on purpose")

    def keep(sender: object, request: Any, **more: object) -> None:
        reports.append(
            ExceptionReporter(request, *sys.exc_info()).get_traceback_html()
        )  # what Django mails

    monkeypatch.setattr(Search, "hits", fail)
    site.client.raise_request_exception = False
    got_request_exception.connect(keep)

    assert looked_for(site, plain).status == 500
    [report] = reports
    assert "broken on purpose" in report
    assert plain not in report
