"""Issuing an API key in the admin: shown once, kept nowhere."""

from __future__ import annotations

import re
import sys
import uuid
from typing import Any

import pytest
from django.conf import settings
from django.contrib.admin.models import ADDITION, LogEntry
from django.contrib.auth.models import User
from django.contrib.sessions.models import Session as LoginSession
from django.core.signals import got_request_exception
from django.test import Client, override_settings
from django.views.debug import ExceptionReporter

from agentdb import DjangoDb
from agentdb.errors import DatabaseUnavailableError
from agentdb.keys import KeyHashes
from tests.helpers.admin_fixtures import Page, Site

PLAIN = "agentdb_" + "s3cret" * 7


def new_id(page: Page) -> str:
    match = re.search(r'name="id" value="([0-9a-f-]{36})"', page.html)
    assert match is not None
    return match[1]


def issue(
    site: Site, tenant_id: str = "acme", label: str = "laptop"
) -> tuple[Page, dict[str, Any]]:
    data: dict[str, Any] = {
        "tenant_id": tenant_id,
        "label": label,
        "id": new_id(site.get("agentdb/apikey/add/")),
    }
    return site.post("agentdb/apikey/add/", follow=False, **data), data


def shown_key(page: Page) -> str:
    match = re.search(r"<output[^>]*>(agentdb_[A-Za-z0-9_-]{43})</output>", page.html)
    assert match is not None, page.text
    return match[1]


def test_issued_key_is_shown_once_on_a_page_that_nothing_stores(
    site: Site, superuser: User
):
    page, _ = issue(site)

    plain = shown_key(page)
    (record,) = site.db.list_api_keys_by_tenant("acme")
    assert site.db.authenticate(plain) == record
    assert page.status == 200
    assert page.response["Cache-Control"].startswith("no-store, ")
    assert f"revoke key {record.id}" in page.text
    for path in (
        "agentdb/apikey/",
        f"agentdb/apikey/{record.id}/change/",
        f"agentdb/apikey/{record.id}/history/",
        "",
    ):
        assert plain not in site.get(path).html
    secret = plain.removeprefix("agentdb_")
    assert not any(
        secret in str(session.get_decoded()) for session in LoginSession.objects.all()
    )
    entry = LogEntry.objects.get()
    assert (entry.action_flag, entry.object_id, entry.object_repr) == (
        ADDITION,
        record.id,
        "laptop of acme",
    )
    assert secret not in entry.change_message


def test_sending_the_form_again_issues_nothing_and_shows_nothing(
    site: Site, superuser: User
):
    first, data = issue(site)

    again = site.post("agentdb/apikey/add/", **data)

    assert len(site.db.list_api_keys_by_tenant("acme")) == 1
    assert shown_key(first) not in again.html
    assert (
        "This form has been used, and its key was shown. Open the form again to issue another one."
        in again.text
    )


@pytest.mark.parametrize("tenant_id", ["   ", "\t", "\u00a0"])
def test_tenant_of_blanks_is_refused(site: Site, superuser: User, tenant_id: str):
    page, _ = issue(site, tenant_id=tenant_id)

    assert "The tenant cannot be blank." in page.text
    assert "Copy this key now" not in page.text


def test_key_of_a_tenant_that_has_nothing_comes_with_a_warning(
    site: Site, superuser: User
):
    warning = "Nothing else is stored for tenant “acme”. If the name is misspelt, revoke the key."

    first, _ = issue(site)
    second, _ = issue(site)

    assert warning in first.text
    assert warning not in second.text


def test_two_open_forms_can_both_be_sent(site: Site, superuser: User):
    forms = [new_id(site.get("agentdb/apikey/add/")) for _ in range(2)]

    for each in forms:
        shown_key(
            site.post("agentdb/apikey/add/", tenant_id="acme", label="x", id=each)
        )

    assert len(site.db.list_api_keys_by_tenant("acme")) == 2


def test_form_says_what_the_db_refuses_and_can_be_sent_again(
    site: Site, superuser: User
):
    page, data = issue(site, tenant_id="t" * 513)

    assert page.status == 200
    assert "512" in page.text
    shown_key(site.post("agentdb/apikey/add/", **{**data, "tenant_id": "acme"}))


@pytest.mark.parametrize("tenant_id", ["", "a\x00b"])
def test_form_refuses_a_tenant_that_is_none(
    site: Site, superuser: User, tenant_id: str
):
    page, _ = issue(site, tenant_id=tenant_id)

    assert page.status == 200
    assert 'class="errorlist"' in page.html
    assert site.get("agentdb/apikey/").rows == []


def test_issuing_needs_the_add_permission(site: Site):
    site.log_in(site.make_user("changer", "view_apikey", "change_apikey"))

    assert site.get("agentdb/apikey/add/").status == 403
    assert (
        site.post("agentdb/apikey/add/", tenant_id="acme", label="x", id="x").status
        == 403
    )
    assert "Issue API key" not in site.get("agentdb/apikey/").text


def test_user_who_may_only_add_gets_the_key_and_no_list(site: Site):
    site.log_in(site.make_user("issuer", "add_apikey"))

    page, _ = issue(site)

    assert site.db.authenticate(shown_key(page)) is not None
    assert site.get("agentdb/apikey/").status == 403


@pytest.mark.parametrize(
    "path", ["apikey/add/", "session/find/", "session/undo/", "session/"]
)
def test_a_form_of_another_site_is_refused_even_without_the_middleware_against_it(
    site: Site, superuser: User, path: str
):
    others = [each for each in settings.MIDDLEWARE if "csrf" not in each]
    assert len(others) == len(settings.MIDDLEWARE) - 1
    site.client = Client(enforce_csrf_checks=True)
    site.log_in(superuser)
    id = str(uuid.uuid4())

    with override_settings(MIDDLEWARE=others):
        page = site.post(f"agentdb/{path}", tenant_id="acme", label="x", id=id)

    assert page.status == 403
    assert site.db.list_api_keys_by_tenant("acme") == []


def test_no_cache_keeps_the_form(site: Site, superuser: User):
    form = site.get("agentdb/apikey/add/")

    assert "no-store" in form.response["Cache-Control"]


def test_error_page_of_a_failed_issue_holds_no_plain_key(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(KeyHashes, "generate", lambda _: (PLAIN, "hash"))

    def fail(self: DjangoDb, *arguments: object) -> None:
        raise RuntimeError("broken on purpose")

    monkeypatch.setattr(DjangoDb, "insert_api_key", fail)
    site.client.raise_request_exception = False

    page, _ = issue(site)

    assert page.status == 500
    assert "broken on purpose" not in page.html
    assert PLAIN not in page.html


def test_error_after_the_key_was_made_does_not_report_it(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    reports: list[str] = []
    monkeypatch.setattr(KeyHashes, "generate", lambda _: (PLAIN, "hash"))

    def fail(*arguments: object) -> None:
        raise RuntimeError("broken on purpose")

    def keep(sender: object, request: Any, **more: object) -> None:
        reports.append(
            ExceptionReporter(request, *sys.exc_info()).get_traceback_html()
        )  # what Django mails

    monkeypatch.setattr("agentdb.admin.keys.log_in_project", fail)
    site.client.raise_request_exception = False
    got_request_exception.connect(keep)

    page, _ = issue(site)

    assert page.status == 500
    [report] = reports
    assert "broken on purpose" in report
    assert PLAIN not in report


def test_database_that_is_away_is_said_in_the_form(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    def fail(self: DjangoDb, *arguments: object) -> None:
        raise DatabaseUnavailableError("The database is away.")

    monkeypatch.setattr(DjangoDb, "insert_api_key", fail)

    page, _ = issue(site)

    assert "The database is away." in page.text
