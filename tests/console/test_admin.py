"""The admin's lists, pages and actions, on both engines."""

from __future__ import annotations

import csv
import io
import itertools
import json
import re
import uuid
from datetime import UTC, datetime, timedelta
from functools import partial
from html import escape, unescape
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlencode, urlsplit

import pytest
from django.conf import settings
from django.contrib import admin
from django.contrib.admin.models import LogEntry
from django.contrib.auth.models import User
from django.db import connections
from django.test import Client
from django.test.utils import CaptureQueriesContext
from django.utils import timezone

from agentdb import AgentDbError
from agentdb.admin import actions, changelist, filters
from agentdb.admin import display as admin_display
from agentdb.admin.changelist import Order
from agentdb.console import display, questions
from agentdb.console.reading import Missing, Unreadable
from agentdb.models import Agent, ApiKey, Sandbox, Session
from tests.helpers.admin_fixtures import Page, Site, audited, fields, fill

LISTS = ("agent", "session", "sandbox", "apikey")


def ids(page: Page) -> list[str]:
    """The first cell with an id of each row."""
    return [
        next(cell for cell in row if re.fullmatch(r"[sbk]\d{4}", cell))
        for row in page.rows
    ]


def count(site: Site, model: Any, **values: str) -> int:
    return int(model.objects.using(site.alias).filter(**values).count())


def walk(site: Site, path: str, direction: str, **query: str) -> list[list[str]]:
    """The ids of this page and of all that the link in one direction leads to."""
    pages = []
    for _ in range(100):
        page = site.get(path, **query)
        pages.append(ids(page))
        link = [url for url, text in page.links if text.strip("‹› ") == direction]
        if not link:
            return pages
        query = dict(parse_qsl(urlsplit(link[0]).query))
    raise AssertionError("The pages do not end.")


# -- who may look


def test_admin_asks_anonymous_visitors_to_log_in(site: Site):
    page = site.get("agentdb/session/")

    assert page.status == 302
    assert page.response["Location"] == "/admin/login/?next=/admin/agentdb/session/"


@pytest.mark.parametrize("name", LISTS)
def test_list_is_forbidden_without_permission_on_its_table(site: Site, name: str):
    others = [f"view_{other}" for other in LISTS if other != name]
    site.log_in(site.make_user("partial", *others))

    assert site.get(f"agentdb/{name}/").status == 403
    assert site.get(f"agentdb/{others[0].removeprefix('view_')}/").status == 200


def test_view_permission_opens_every_page(site: Site):
    fill(site.alias, 3)
    site.log_in_viewer()

    paths = [
        "",
        "agentdb/",
        *(f"agentdb/{name}/" for name in LISTS),
        "agentdb/agent/tenant/?id=t0",
    ]
    paths += [
        f"agentdb/{name}/{name[0] if name != 'sandbox' else 'b'}0001/change/"
        for name in ("agent", "session")
    ]
    paths += [
        "agentdb/sandbox/b0001/change/",
        "agentdb/apikey/k0001/change/",
        "agentdb/session/s0001/history/",
    ]
    assert {path: site.get(path).status for path in paths} == dict.fromkeys(paths, 200)


def test_a_projects_own_permissions_may_depend_on_the_row(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    fill(site.alias, 2)
    monkeypatch.setattr(
        admin.site._registry[Session],
        "has_view_permission",
        lambda request, row=None: row is None or row.pk != "s0001",
    )

    assert site.get("agentdb/session/s0000/change/").status == 200
    assert site.get("agentdb/session/s0001/change/").status == 403


@pytest.mark.parametrize(
    "page",
    [
        "agent/tenant",
        "session/attention",
        "session/changes",
        "session/find",
        "session/groups",
        "session/runner",
        "session/undo",
    ],
)
def test_a_page_is_forbidden_to_who_may_see_no_table(
    site: Site, caplog: pytest.LogCaptureFixture, page: str
):
    site.log_in(site.make_user("nobody"))

    assert site.get(f"agentdb/{page}/").status == 403
    assert [line["outcome"] for line in audited(caplog)] == ["refused"]


def test_viewer_cannot_add_change_or_delete(site: Site):
    fill(site.alias, 1)
    site.log_in_viewer()

    for name, id in (
        ("agent", "a0000"),
        ("session", "s0000"),
        ("sandbox", "b0000"),
        ("apikey", "k0000"),
    ):
        assert (
            site.post(f"agentdb/{name}/add/", tenant_id="t0", label="x").status == 403
        )
        assert (
            site.post(f"agentdb/{name}/{id}/change/", tenant_id="other").status == 403
        )
        assert site.post(f"agentdb/{name}/{id}/delete/", post="yes").status == 403
        assert "selected" not in site.get(f"agentdb/{name}/").text
    assert site.act("agentdb/session/", "pause_sessions", ["s0000"]).status == 403
    assert site.act("agentdb/sandbox/", "delete_sandboxes", ["b0000"]).status == 403
    assert site.act("agentdb/apikey/", "revoke_keys", ["k0000"]).status == 403

    assert Session.objects.using(site.alias).get().status == "starting"
    assert site.db.get_sandbox("b0000") is not None
    assert len(site.db.list_api_keys_by_tenant("t0")) == 1
    request = site.get("agentdb/session/").response.wsgi_request
    sessions: Any = admin.site._registry[Session]
    assert sessions.get_actions(request) == {}
    assert "pause_sessions" not in site.get("agentdb/session/s0000/change/").html
    for has_permission in (
        sessions.has_add_permission,
        sessions.has_change_permission,
        sessions.has_delete_permission,
    ):
        assert has_permission(request) is False


def test_nobody_edits_a_row_in_a_form_not_even_a_superuser(site: Site, superuser: User):
    fill(site.alias, 1)

    for path in ("agent/a0000", "session/s0000", "sandbox/b0000", "apikey/k0000"):
        page = site.get(f"agentdb/{path}/change/")
        assert 'name="_save"' not in page.html
        assert '<input type="text"' not in page.html
        assert (
            site.post(f"agentdb/{path}/change/", tenant_id="other", id="new").status
            == 403
        )
        assert site.post(f"agentdb/{path}/delete/", post="yes").status == 403
    for name in ("agent", "session", "sandbox"):
        assert site.post(f"agentdb/{name}/add/", id="new").status == 403
    assert Agent.objects.using(site.alias).get().tenant_id == "t0"


def test_deleting_many_rows_at_once_is_not_offered(site: Site, superuser: User):
    fill(site.alias, 2)

    for name in LISTS:
        assert "delete_selected" not in site.get(f"agentdb/{name}/").html


# -- lists


def test_an_action_of_the_project_for_all_models_is_for_those_who_may_act(site: Site):
    called: list[list[str]] = []

    def note(model_admin: Any, request: Any, rows: Any) -> None:
        called.append([row.pk for row in rows])

    fill(site.alias, 3)
    admin.site.add_action(note, "note")
    try:
        operator(site)
        assert 'value="note"' in site.get("agentdb/session/").html
        site.act("agentdb/session/", "note", ["s0001"])
        site.log_in_viewer()
        assert 'value="note"' not in site.get("agentdb/session/").html
        refused = site.act("agentdb/session/", "note", ["s0002"])
    finally:
        admin.site.disable_action("note")

    assert (refused.status, called) == (403, [["s0001"]])


def test_lists_show_the_newest_first(site: Site, superuser: User):
    fill(site.alias, 5)
    site.db.touch_sandbox("b0003")

    assert ids(site.get("agentdb/session/")) == [
        "s0000",
        "s0001",
        "s0002",
        "s0003",
        "s0004",
    ]
    assert ids(site.get("agentdb/sandbox/")) == [
        "b0003",
        "b0000",
        "b0001",
        "b0002",
        "b0004",
    ]
    assert ids(site.get("agentdb/apikey/")) == [
        "k0000",
        "k0001",
        "k0002",
        "k0003",
        "k0004",
    ]
    assert [row[0] for row in site.get("agentdb/agent/").rows] == [
        f"agent-{n}" for n in range(5)
    ]


@pytest.mark.usefixtures("frozen_time")
def test_session_list_shows_what_matters_of_a_session(site: Site, superuser: User):
    fill(site.alias, 2)

    page = site.get("agentdb/session/", q="s0001")

    assert [cell for cell in page.rows[0] if cell] == [
        "s0001", "active", "agent-1", "t1", "b0001", "runner-1", "60 s ago", "60 s ago"
    ]  # fmt: skip


@pytest.mark.usefixtures("frozen_time")
def test_instants_are_relative_with_the_exact_one_on_hover(site: Site, superuser: User):
    at = timezone.now().replace(microsecond=123000) - timedelta(days=3, minutes=1)
    Session.objects.using(site.alias).create(
        id="s1",
        agent_name="a",
        sandbox_id="b",
        created_at=at,
        last_active_at=at.replace(microsecond=0),
    )

    page = site.get("agentdb/session/")

    assert f'title="{at:%Y-%m-%d %H:%M:%S}.123000 UTC">3 d ago</time>' in page.html
    assert f'title="{at:%Y-%m-%d %H:%M:%S} UTC">3 d ago</time>' in page.html
    assert (
        f"{at:%Y-%m-%d %H:%M:%S}.123000 UTC (3 d ago)"
        in site.get("agentdb/session/s1/change/").text
    )


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "just now"),
        (59, "59 s ago"),
        (119, "119 s ago"),
        (7199, "119 min ago"),
        (86400, "24 h ago"),
        (86400 * 45, "45 d ago"),
        (86400 * 1100, "3 y ago"),
        (-7200, "in 2 h"),
    ],
)
def test_relative_names_the_unit_that_still_tells(seconds: int, text: str):
    now = timezone.now()

    assert display.relative(now - timedelta(seconds=seconds), now) == text


def _hides(text: str) -> str:
    return f'<span class="agentdb-mid">{text}</span>'


IDS = [
    # Hiding four characters would gain nothing.
    ("12345678" + "mid." + "wxyz", "12345678mid.wxyz"),
    ("12345678" + "mid.." + "wxyz", f"12345678{_hides('mid..')}wxyz"),
    ("<b>", "&lt;b&gt;"),
]


@pytest.mark.parametrize(("id", "shown"), IDS)
def test_an_id_shows_both_ends_and_the_whole_on_hover(id: str, shown: str):
    whole = escape(id)
    rest = f'class="agentdb-id" title="{whole}" data-copy="{whole}">{shown}'

    assert admin_display.id_link("", id) == f"<span {rest}</span>"
    assert admin_display.id_link("/a?b", id) == f'<a href="/a?b" {rest}</a>'


def test_a_text_too_long_for_a_page_is_cut_and_not_to_be_copied():
    id = f"12345678{'m' * 600}wxyz"
    shown = f"12345678{'m' * 192} … {'m' * 46}wxyz (612 characters)"

    assert admin_display.id_link("", id) == shown
    assert admin_display.id_link("/a?b", id) == f'<a href="/a?b">{shown}</a>'
    assert admin_display.cut("m" * 500) == "m" * 500
    assert admin_display.cut("m" * 501).endswith("m (501 characters)")
    assert admin_display.cut("m" * 1_501).endswith("m (1,501 characters)")


@pytest.mark.parametrize(
    ("runner", "shown"),
    [
        # Short enough to be shown whole, with its domain.
        ("runner-1.example.o", "runner-1.example.o"),
        ("runner-1.example.or", f"runner-1{_hides('.example.or')}"),
        (
            "12345678middluvwxyz.a.org",
            f"12345678{_hides('middl')}uvwxyz{_hides('.a.org')}",
        ),
    ],
)
def test_a_runner_shows_no_domain(runner: str, shown: str):
    url = f"/admin/agentdb/session/runner/?id={runner}"
    assert admin_display.runner_link(admin.site, runner) == (
        f'<a href="{url}" class="agentdb-id" title="{runner}" data-copy="{runner}">{shown}</a>'
    )


def test_a_page_that_is_not_there_or_whose_address_is_too_long_has_none():
    page_url = partial(admin_display.page_url, admin.site)
    address = "/admin/agentdb/session/runner/"

    assert page_url("nowhere") == ""
    assert page_url("runner", id="a b", other="") == f"{address}?id=a+b"
    assert page_url("runner", id="") == address
    most = 4_000 - len(f"{address}?id=")
    assert len(page_url("runner", id="x" * most)) == 4_000
    assert page_url("runner", id="x" * (most + 1)) == ""


def test_a_long_path_shows_its_beginning_and_end():
    short, long = "/srv/a", f"/srv/agents/{'x' * 60}/support-bot"

    assert f">{short}<" in admin_display.short_path(short)
    assert f">{long[:10]}{_hides(long[10:-14])}{long[-14:]}<" in (
        admin_display.short_path(long)
    )


def test_the_badge_of_a_newer_servers_status_has_a_neutral_style():
    assert admin_display.badge("running") == (
        '<span class="agentdb-badge agentdb-is-running">running</span>'
    )
    assert admin_display.badge('"frozen"') == (
        '<span class="agentdb-badge agentdb-is-frozen">&quot;frozen&quot;</span>'
    )


def test_what_is_missing_is_red_only_if_something_live_needs_it():
    missing = (
        '<span class="agentdb-quiet" title="Nothing with this name is stored.">'
        '{} <em class="{}">(missing)</em></span>'
    )
    id = admin_display.id_link("", "b1")

    assert admin_display.missing("bot") == missing.format("bot", "")
    assert admin_display.missing("b1", is_id=True, matters=True) == (
        missing.format(id, "agentdb-wrong")
    )


@pytest.mark.parametrize(
    ("value", "why", "text"),
    [
        (Unreadable("infinity"), "This value cannot be read.", "infinity"),
        (Missing(), "The table lacks this column.", "?"),
    ],
)
def test_what_cannot_be_read_says_why_on_hover(value: Any, why: str, text: str):
    shown = f'<span class="agentdb-unreadable" title="{why}">{text}</span>'

    for show in (
        admin_display.badge,
        admin_display.when,
        partial(admin_display.link, "/x"),
    ):
        assert show(value) == shown


FILTERS: list[tuple[str, dict[str, str], list[str]]] = [
    ("session", {"tenant_id": "t3"}, ["s0003", "s0013"]),
    ("session", {"status": "error"}, ["s0004", "s0009", "s0014", "s0019"]),
    ("session", {"status": "error", "tenant_id": "t4"}, ["s0004", "s0014"]),
    ("session", {"runner_id": "runner-0"}, ["s0003", "s0009", "s0015"]),
    ("session", {"tenant_id": "t3", "agent_name": "agent-13"}, ["s0013"]),
    ("session", {"sandbox_id": "b0007"}, ["s0007"]),
    ("session", {"tenant_id": "t"}, []),
    ("sandbox", {"state": "waiting"}, ["b0003", "b0008", "b0013", "b0018"]),
    ("sandbox", {"session_id": "s0011"}, ["b0011"]),
    ("sandbox", {"tenant_id": "t3", "state": "waiting"}, ["b0003", "b0013"]),
    ("apikey", {"tenant_id": "t9"}, ["k0009", "k0019"]),
    (
        "session",
        {"age": "1h", "status": "active"},
        ["s0001", "s0006", "s0011", "s0016"],
    ),
    ("session", {"age": "over7d"}, []),
]


def test_filters_narrow_a_list(site: Site, superuser: User):
    fill(site.alias, 20)

    for path, query, expected in FILTERS:
        pages = walk(site, f"agentdb/{path}/", "Older", **query)
        assert list(itertools.chain(*pages)) == expected, (path, query)


def test_age_filter_separates_at_its_limit(site: Site, superuser: User):
    fill(site.alias, 1)
    old = timezone.now() - timedelta(days=8)
    Session.objects.using(site.alias).create(
        id="s0008", agent_name="a", sandbox_id="b", created_at=old
    )

    assert ids(site.get("agentdb/session/", age="7d")) == ["s0000"]
    assert ids(site.get("agentdb/session/", age="6d")) == ["s0000"]
    assert ids(site.get("agentdb/session/", age="over7d")) == ["s0008"]
    assert ids(site.get("agentdb/session/", age="over30d")) == []


SEARCHES: list[tuple[str, str, list[str]]] = [
    ("session", "s0007", ["s0007"]),
    ("session", "s000", [f"s000{n}" for n in range(10)]),
    ("session", "gent-1", ["s0001", *(f"s00{n}" for n in range(10, 20))]),
    ("session", "RUNNER-2", ["s0005", "s0011", "s0017"]),
    ("session", "b0012", ["s0012"]),
    ("session", " s0007 ", ["s0007"]),
    ("session", "100%", []),
    ("session", "_", []),
    ("sandbox", "work/7", ["b0007"]),
    ("apikey", '"key 3"', ["k0003"]),
    ("apikey", "3 key", ["k0003", "k0013"]),
    ("apikey", "0000", ["k0000"]),
]


def test_search_finds_ids_by_their_beginning_and_names_by_a_part(
    site: Site, superuser: User
):
    fill(site.alias, 20)

    for path, text, expected in SEARCHES:
        pages = walk(site, f"agentdb/{path}/", "Older", q=text)
        assert list(itertools.chain(*pages)) == expected, (path, text)


def test_agents_are_found_by_id_name_path_and_tenant(site: Site, superuser: User):
    fill(site.alias, 10)

    for text in ("a0005", "agent-5", "srv/5", "T5"):
        assert [row[0] for row in site.get("agentdb/agent/", q=text).rows] == [
            "agent-5"
        ], text
    assert site.get("agentdb/agent/", name="agent-5", tenant_id="t4").rows == []


def test_a_search_that_takes_too_long_is_stopped_and_says_so(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    fill(site.alias, 10)
    connection = connections[site.alias]
    endless = "SELECT pg_sleep(60)"
    if connection.vendor == "sqlite":
        numbers = "SELECT 1 UNION ALL SELECT i + 1 FROM n"
        endless = f"WITH RECURSIVE n(i) AS ({numbers}) SELECT MAX(i) FROM n"

    def read_for_ever(rows: Any, problems: Any) -> list[Any]:
        with connection.cursor() as cursor:
            cursor.execute(endless)
        return []

    monkeypatch.setattr(changelist, "SEARCH_SECONDS", 0.1)
    monkeypatch.setattr(changelist, "read", read_for_ever)

    page = site.get("agentdb/session/", q="agent-8")

    assert page.rows == []
    assert "The search was stopped after 0.1 seconds." in page.text
    assert "No sessions found in this time" in page.text
    assert "0 sessions" not in page.text  # nobody knows
    assert "<span>0</span>" not in page.html
    later = site.get("agentdb/session/", q="agent-8", after="2020-01-01T00:00:00Z,x")
    assert "No sessions found in this time" in later.text
    # Without a filter an index answers at once, or else the database is in trouble.
    monkeypatch.setattr(
        "agentdb.admin.guard.question",
        lambda connection, seconds: questions.question(connection, 0.5),
    )
    assert site.get("agentdb/session/").status == 503


def test_a_full_page_of_a_search_leads_to_the_next(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agentdb.admin.model_admins.ReadFirstAdmin.list_per_page", 2)
    fill(site.alias, 20)

    many = site.get("agentdb/session/", q="agent-1")

    assert ids(many) == ["s0001", "s0010"]
    assert "11 sessions" in many.text
    assert ids(
        Page(site.client.get(f"/admin/agentdb/session/{many.link('Older ›')}"))
    ) == ["s0011", "s0012"]


@pytest.mark.parametrize(
    ("path", "query"),
    [
        ("session", {}),
        ("session", {"q": "agent"}),
        ("sandbox", {"tenant_id": "t1"}),
        ("session", {"status": "active"}),
    ],
)
def test_pages_go_through_all_rows_once(
    site: Site,
    superuser: User,
    monkeypatch: pytest.MonkeyPatch,
    path: str,
    query: dict[str, str],
):
    monkeypatch.setattr(
        "agentdb.admin.model_admins.ReadFirstAdmin.list_per_page", 5
    )  # four full pages of sessions
    fill(site.alias, 20, tenants=2)
    # Three instants, so that many rows share one and the id decides.
    for number in range(3):
        at = timezone.now() - timedelta(hours=number)
        for model, column in ((Session, "created_at"), (Sandbox, "last_used_at")):
            rows = [
                row
                for row in model.objects.using(site.alias).all()
                if int(row.pk[1:]) % 3 == number
            ]
            model.objects.using(site.alias).filter(
                pk__in=[row.pk for row in rows]
            ).update(**{column: at})
    model, column = (
        (Session, "created_at") if path == "session" else (Sandbox, "last_used_at")
    )
    equal = {name: value for name, value in query.items() if name != "q"}
    stored = model.objects.using(site.alias).filter(**equal)
    expected = [
        row.pk
        for row in sorted(
            stored, key=lambda row: (getattr(row, column), row.pk), reverse=True
        )
    ]

    older = walk(site, f"agentdb/{path}/", "Older", **query)

    assert list(itertools.chain(*older)) == expected
    assert all(0 < len(page) <= 5 for page in older)


def test_rows_are_counted_up_to_a_limit(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agentdb.admin.model_admins.ReadFirstAdmin.list_per_page", 3)
    fill(site.alias, 20)
    assert "20 sessions" in site.get("agentdb/session/").text
    assert re.search(r"\b1 session\b", site.get("agentdb/session/", q="s0007").text)

    monkeypatch.setattr("agentdb.console.figures.WINDOW", 3)

    assert "3+ sessions" in site.get("agentdb/session/", status="error").text
    assert "3+ sessions" in site.get("agentdb/session/").text


@pytest.mark.parametrize(
    "cursor", ["x", "%%%", "WzEsMl0", "WyIyMDI2LTAxLTAxIiwgIjEiXQ", "bnVsbA"]
)
def test_cursor_that_means_nothing_leads_to_the_first_page(
    site: Site, superuser: User, cursor: str
):
    page = site.get("agentdb/session/", after=cursor)

    assert (page.status, page.response["Location"]) == (
        302,
        "/admin/agentdb/session/?e=1",
    )


@pytest.mark.parametrize(
    "lookup", ["key_hash__startswith", "key_hash", "label__contains", "id__gt"]
)
def test_lookups_that_no_filter_offers_are_refused(
    site: Site, superuser: User, lookup: str
):
    page = site.get("agentdb/apikey/", **{lookup: "a"})

    assert (page.status, f"Filtering by {lookup} not allowed" in page.text) == (
        400,
        True,
    )


def test_an_address_that_means_nothing_gets_a_page_that_names_it(
    site: Site, superuser: User
):
    for path in ("agentdb/session/", "agentdb/session/export/csv/"):
        page = site.get(path, sort="oldest", e="1")
        assert (page.status, "Filtering by sort not" in page.text) == (400, True)
    page = site.get("agentdb/session/export/csv/", after="x")
    assert (page.status, "Invalid isoformat string: 'x'" in page.text) == (400, True)


def test_nul_in_a_parameter_finds_nothing_and_breaks_nothing(
    site: Site, superuser: User
):
    fill(site.alias, 1)

    assert site.get("agentdb/session/", q="s0000\x00x").status == 200
    assert site.get("agentdb/session/", tenant_id="t\x000").status == 200
    assert site.get("agentdb/agent/tenant/", id="t\x000").status == 200
    sums = site.get("agentdb/session/groups/", tenant_id="t\x000")
    assert (sums.status, "1 session" in sums.text) == (200, True)
    assert site.get("agentdb/session/s_000000/change/").status == 302


def test_filters_offer_the_values_that_there_are(site: Site, superuser: User):
    fill(site.alias, 9, tenants=2)
    Session.objects.using(site.alias).filter(pk="s0000").update(runner_id="")

    offered = site.get("agentdb/session/").offered

    assert ("?status=active", "active") in offered
    assert ("?tenant_id=t1", "t1") in offered
    assert ("?agent_name=agent-1", "agent-1") in offered
    assert ("?runner_id=runner-1", "runner-1") in offered
    assert "" not in [text for _, text in offered]
    narrowed = site.get("agentdb/session/", tenant_id="t1").offered
    assert ("?status=active&tenant_id=t1", "active") in narrowed
    assert ("?agent_name=agent-6&tenant_id=t1", "agent-6") not in narrowed
    assert ("?agent_name=agent-7&tenant_id=t1", "agent-7") in narrowed
    current = re.findall(
        r'aria-current="true">(.*?)</a>',
        site.get("agentdb/session/", tenant_id="t1").html,
    )
    assert current == ["t1"]


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"age": "10 x"}, "'10 x' is not a time. Write 14:00, "),
        ({"active": "oversoon"}, "'soon' is not a time. Write 14:00, "),
        ({"check": "nonsense"}, "nonsense is not a check of this table."),
    ],
)
def test_a_filter_that_means_nothing_says_so_and_shows_no_row(
    site: Site, superuser: User, query: dict[str, str], sentence: str
):
    fill(site.alias, 3)

    page = site.get("agentdb/session/", **query)

    assert sentence in page.text
    assert page.rows == []
    assert "No sessions match" in page.text
    assert json.loads(site.exported("agentdb/session/export/json/", **query)) == []


def test_a_place_that_means_nothing_says_so(site: Site, superuser: User):
    fill(site.alias, 3)

    page = site.get("agentdb/session/", e="1")

    assert "The link names an invalid position; this is the first page." in page.text
    assert ids(page) == ["s0000", "s0001", "s0002"]


def test_filters_offer_a_few_names_of_agents(site: Site, superuser: User):
    fill(site.alias, 20)

    offered = [text for _, text in site.get("agentdb/agent/").offered]

    names = sorted(f"agent-{number}" for number in range(20))
    assert [text for text in offered if text in names] == names[: filters.SUGGESTIONS]


def test_filters_offer_no_agents_to_a_user_who_may_not_see_them(site: Site):
    fill(site.alias, 3)
    site.log_in(site.make_user("narrow", "view_session"))

    assert not [
        text
        for _, text in site.get("agentdb/session/").offered
        if text.startswith("agent-")
    ]


def test_last_active_filters_without_an_index(site: Site, superuser: User):
    fill(site.alias, 10)
    Session.objects.using(site.alias).update(
        last_active_at=timezone.now() - timedelta(hours=3)
    )
    Session.objects.using(site.alias).filter(pk="s0008").update(
        last_active_at=timezone.now()
    )

    assert ids(site.get("agentdb/session/", active="5m")) == ["s0008"]
    assert "s0008" not in ids(site.get("agentdb/session/", active="over30m"))
    assert ids(site.get("agentdb/session/", active="5m", tenant_id="t0")) == ids(
        site.get("agentdb/session/", active="5m", q="t0")
    )


def test_empty_list_names_its_filters_and_removes_each(site: Site, superuser: User):
    fill(site.alias, 20, tenants=2)

    page = site.get(
        "agentdb/session/", tenant_id="t1", runner_id="runner-9", age="24h", q="nowhere"
    )

    assert "No sessions match" in page.text
    assert "Runner runner-9 Created Past 24 hours Contains nowhere" in page.text


def test_page_behind_the_last_row_says_that_there_is_no_further_one(
    site: Site, superuser: User
):
    fill(site.alias, 3)
    end = "2001-01-01T00:00:00+00:00,x"

    assert "No further sessions" in site.get("agentdb/session/", after=end).text


def test_empty_table_says_that_there_is_nothing_yet(site: Site, superuser: User):
    assert "There are no sessions yet" in site.get("agentdb/session/").text


def test_oldest_first_is_the_same_list_from_its_other_end(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agentdb.admin.model_admins.ReadFirstAdmin.list_per_page", 3)
    fill(site.alias, 10)

    newest = [id for page in walk(site, "agentdb/session/", "Older") for id in page]
    further = site.get(
        "agentdb/session/",
        **dict(parse_qsl(site.get("agentdb/session/").link("Older ›")[1:])),
    )
    assert further.link("‹ First page") == "?"
    first = site.get("agentdb/session/").link("Created")
    oldest = [
        id
        for page in walk(
            site, "agentdb/session/", "Newer", **dict(parse_qsl(first[1:]))
        )
        for id in page
    ]

    assert oldest == newest[::-1]
    assert len(oldest) == 10


def test_status_of_a_newer_server_is_shown_and_can_be_filtered(
    site: Site, superuser: User
):
    Session.objects.using(site.alias).create(
        id="s1", agent_name="a", sandbox_id="b", status="dreaming"
    )

    page = site.get("agentdb/session/", status="dreaming")

    assert "dreaming" in page.rows[0]
    assert "Status dreaming" in page.text


# -- links


def test_links_lead_from_agent_to_sessions_to_sandbox_and_back(
    site: Site, superuser: User
):
    fill(site.alias, 20)

    agents = site.get("agentdb/agent/", q="agent-13")
    sessions = Page(site.client.get(agents.link("sessions")))
    assert ids(sessions) == ["s0013"]
    sandbox = Page(site.client.get(sessions.link("b0013")))
    assert sandbox.link("s0013") == "/admin/agentdb/session/s0013/change/"
    assert sandbox.link("agent-13") == "/admin/agentdb/agent/a0013/change/"
    session = Page(site.client.get(sandbox.link("s0013")))
    assert ids(Page(site.client.get(session.link("View all")))) == ["b0013"]


def test_link_names_the_agent_of_the_same_tenant(site: Site, superuser: User):
    site.db.upsert_agent("bot", "/srv/a", tenant_id="acme")
    site.db.insert_session("s1", "bot", "sb", tenant_id="other")

    row = site.get("agentdb/session/").rows[0]

    assert "bot (missing)" in row


def test_missing_targets_are_said_to_be_missing_and_are_no_links(
    site: Site, superuser: User
):
    site.db.insert_session("s1", "gone-agent", "gone-box")
    site.db.insert_sandbox("b1", "gone-agent", "/w", session_id="gone-session")
    site.db.insert_sandbox("b2", "gone-agent", "/w")

    sessions, sandboxes = site.get("agentdb/session/"), site.get("agentdb/sandbox/")
    one = site.get("agentdb/session/s1/change/")

    assert {"gone-agent (missing)", "gone-box (missing)", "none"} <= set(
        sessions.rows[0]
    )
    assert {"gone-agent (missing)", "gone-session (missing)"} <= {
        cell for row in sandboxes.rows for cell in row
    }
    assert {"none"} <= {cell for row in sandboxes.rows for cell in row}
    assert "Sandbox gone gone-box" in one.text
    for page in (sessions, sandboxes, one):
        assert not [url for url, text in page.links if text.startswith("gone-")]


def _ago(site: Site, id: str, **minutes: int) -> None:
    instants: dict[str, Any] = {
        column: timezone.now() - timedelta(minutes=age)
        for column, age in minutes.items()
    }
    Session.objects.using(site.alias).filter(pk=id).update(**instants)


def test_a_sessions_page_says_what_is_wrong_when_what_happened_and_what_belongs_to_it(
    site: Site, superuser: User
):
    agent = site.db.upsert_agent("bot", "/srv/bot")
    site.db.insert_session("s1", "bot", "gone-box")
    site.db.update_session_runner("s1", "runner-1")
    _ago(site, "s1", created_at=125, last_active_at=6)

    page = site.get("agentdb/session/s1/change/")

    assert "Session live, sandbox gone" in page.text
    assert "Starting for more than 5 min" in page.text
    assert page.link("bot").endswith(f"/agent/{agent.id}/change/")
    assert "runner/?id=runner-1" in page.link("Open runner")
    assert "Last sign of life 6 min ago" in page.text

    site.db.update_session_status("s1", "active")
    _ago(site, "s1", created_at=125, last_active_at=45)
    assert (
        "Active, no sign of life for 30 min"
        in site.get("agentdb/session/s1/change/").text
    )
    site.db.update_session_status("s1", "ended")
    ended = site.get("agentdb/session/s1/change/").text
    assert "sandbox gone" not in ended


def test_a_sessions_page_names_an_agent_that_is_missing(site: Site, superuser: User):
    site.db.insert_session("s1", "gone-agent", "gone-box")
    _ago(site, "s1", last_active_at=2)

    page = site.get("agentdb/session/s1/change/")

    assert "Agent named and missing" in page.text
    site.db.upsert_agent("gone-agent", "/srv")
    assert "Agent named and missing" not in site.get("agentdb/session/s1/change/").text


def test_the_related_rows_are_under_headings(site: Site, superuser: User):
    site.db.upsert_agent("bot", "/srv/bot")
    site.db.insert_sandbox("b1", "bot", "/w")

    page = site.get("agentdb/sandbox/b1/change/")

    assert re.findall("<h3>(.*?)</h3>", page.html) == [
        "Agent",
        "Session it is reserved for",
        "Sessions that name it",
    ]


def test_a_sandboxs_page_names_the_sessions_that_name_it(site: Site, superuser: User):
    site.db.insert_sandbox("b1", "gone-agent", "/w", session_id="s1")
    site.db.update_sandbox_state("b1", "running")
    old = timezone.now() - timedelta(minutes=2)
    Sandbox.objects.using(site.alias).update(last_used_at=old)
    assert (
        "Sandbox up, no session needs it" in site.get("agentdb/sandbox/b1/change/").text
    )
    for number in range(6):
        site.db.insert_session(f"s{number}", "gone-agent", "b1")
    site.db.update_session_status("s1", "ended")
    _ago(site, "s1", last_active_at=2)

    page = site.get("agentdb/sandbox/b1/change/")

    assert "Sandbox up, no session needs it" in page.text
    assert "sandbox_id=b1" in page.link("View all")
    assert page.link("s1").endswith("/session/s1/change/")


def test_a_rows_page_says_nothing_of_tables_that_the_user_may_not_see(site: Site):
    agent = site.db.upsert_agent("bot", "/srv/bot")
    site.db.insert_session("hidden-session", "bot", "hidden-box")
    site.db.update_session_status("hidden-session", "ended")
    site.db.insert_sandbox(
        "hidden-box", "bot", "/hidden/folder", session_id="hidden-session"
    )
    site.db.update_sandbox_state("hidden-box", "running")

    site.log_in(site.make_user("agents", "view_agent"))
    assert "hidden" not in site.get(f"agentdb/agent/{agent.id}/change/").text
    site.log_in(site.make_user("sessions", "view_session"))
    page = site.get("agentdb/session/hidden-session/change/").text
    assert (
        "/hidden/folder" not in page
        and "running" not in page
        and "version 1" not in page
    )
    site.log_in(site.make_user("sandboxes", "view_sandbox"))
    assert "ended" not in site.get("agentdb/sandbox/hidden-box/change/").text


def test_an_agents_page_has_its_newest_sessions_alone(site: Site, superuser: User):
    agent = site.db.upsert_agent("bot", "/srv/bot")
    for number in range(7):
        site.db.insert_session(f"s{number}", "bot", "b")
    site.db.insert_session("other", "bot", "b", "other-tenant")

    page = site.get(f"agentdb/agent/{agent.id}/change/")

    assert [text for _, text in page.links if re.fullmatch(r"s\d|other", text)] == [
        "s6",
        "s5",
        "s4",
        "s3",
        "s2",
    ]
    assert len(re.findall("agentdb-is-starting", page.html)) == 5


def test_what_is_filtered_is_exported_whole_and_nothing_else(
    site: Site, superuser: User
):
    fill(site.alias, 120, tenants=2)
    link = site.get("agentdb/session/", tenant_id="t1").link("CSV")

    text = site.exported(urlsplit(link).path.removeprefix("/admin/"), tenant_id="t1")
    assert text.startswith("\ufeff")  # by which a spreadsheet knows that it is UTF-8
    lines = list(csv.DictReader(io.StringIO(text.removeprefix("\ufeff"))))
    assert re.fullmatch(
        r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d\.\d{3}", lines[0]["created_at"]
    )
    found = json.loads(site.exported("agentdb/session/export/json/", tenant_id="t1"))

    assert "tenant_id=t1" in link
    assert len(lines) == len(found) == 60
    assert {line["tenant_id"] for line in lines} == {"t1"}
    listed = [
        id
        for page in walk(site, "agentdb/session/", "Older", tenant_id="t1")
        for id in page
    ]
    assert [line["id"] for line in lines] == [row["id"] for row in found] == listed
    assert (
        list(found[0])
        == list(lines[0])
        == [field.attname for field in Session._meta.concrete_fields]
    )
    Session.objects.using(site.alias).filter(pk="s0003").update(agent_name="übersetzer")
    searched = site.exported("agentdb/session/export/json/", q="s0003")
    assert [row["id"] for row in json.loads(searched)] == ["s0003"]
    assert '"agent_name": "übersetzer"' in searched  # for people to read


def test_an_export_starts_no_formula_in_a_spreadsheet(site: Site, superuser: User):
    for name in ("=1+1", "+1", "-1", "@x", "\tx", "plain", 'a,b\n"c"'):
        site.db.upsert_agent(name, "=cmd|' /C calc'!A0")

    lines = list(
        csv.DictReader(
            io.StringIO(
                site.exported("agentdb/agent/export/csv/").removeprefix("\ufeff")
            )
        )
    )

    assert {line["name"] for line in lines} == {
        "'=1+1",
        "'+1",
        "'-1",
        "'@x",
        "'\tx",
        "plain",
        'a,b\n"c"',
    }
    assert {line["path"] for line in lines} == {"'=cmd|' /C calc'!A0"}
    assert {
        row["name"] for row in json.loads(site.exported("agentdb/agent/export/json/"))
    } >= {"=1+1", "plain"}


def test_an_export_holds_no_hash_of_a_key(site: Site, superuser: User):
    _, key = site.db.issue_api_key("acme", "ci")

    text = site.exported("agentdb/apikey/export/csv/") + site.exported(
        "agentdb/apikey/export/json/"
    )

    assert key.key_hash not in text and key.key_hash[:8] in text


def test_an_export_needs_the_permission_to_look(site: Site):
    site.log_in(site.make_user("partial", "view_agent"))

    assert site.client.get("/admin/agentdb/session/export/csv/").status_code == 403
    assert site.client.get("/admin/agentdb/agent/export/csv/").status_code == 200
    assert site.client.get("/admin/agentdb/agent/export/xml/").status_code == 404


def test_tenant_page_leads_to_everything_of_the_tenant(site: Site, superuser: User):
    fill(site.alias, 20, tenants=5)

    page = Page(site.client.get(site.get("agentdb/session/", q="s0003").link("t3")))

    assert "Tenant t3" in page.text
    assert ids(Page(site.client.get(page.link("Sessions 4")))) == [
        "s0003",
        "s0008",
        "s0013",
        "s0018",
    ]
    assert ids(Page(site.client.get(page.link("Sandboxes 4")))) == [
        "b0003",
        "b0008",
        "b0013",
        "b0018",
    ]
    assert ids(Page(site.client.get(page.link("API keys 4")))) == [
        "k0003",
        "k0008",
        "k0013",
        "k0018",
    ]
    assert len(Page(site.client.get(page.link("Agents 4"))).rows) == 4
    assert ids(Page(site.client.get(page.link("ended 4")))) == [
        "s0003",
        "s0008",
        "s0013",
        "s0018",
    ]


def test_tenant_page_hides_tables_the_user_may_not_see(site: Site):
    fill(site.alias, 3)
    site.log_in(site.make_user("keys-only", "view_apikey"))
    site.client.raise_request_exception = True

    page = site.get("agentdb/agent/tenant/", id="t0")

    assert "API keys 1" in page.text
    assert "Sessions" not in page.text


def test_ids_and_names_with_odd_characters_are_shown_as_text_and_their_links_work(
    site: Site, superuser: User
):
    odd = "<b>/?&_5F\"'é"
    site.db.upsert_agent(odd, odd, tenant_id=odd)
    site.db.insert_session(odd, odd, odd, tenant_id=odd)
    site.db.insert_sandbox(odd, odd, odd, session_id=odd, tenant_id=odd)

    page = site.get("agentdb/session/")

    assert [cell for cell in page.rows[0] if cell == odd] == [odd] * 4
    assert "<b>/" not in page.html
    addresses = {url for url, text in page.links if text == odd}
    assert len(addresses) == 4
    assert all(odd in Page(site.client.get(url)).text for url in addresses)


# -- keys in lists


def test_no_page_shows_a_whole_key_hash(site: Site, superuser: User):
    _, record = site.db.issue_api_key("t0", "laptop")

    pages = [
        site.get("agentdb/apikey/"),
        site.get(f"agentdb/apikey/{record.id}/change/"),
        site.get(""),
    ]

    assert f"{record.key_hash[:8]}…" in pages[0].text
    assert f"{record.key_hash[:8]}…" in pages[1].text
    assert not any(record.key_hash[:9] in page.html for page in pages)


# -- actions


def operator(site: Site) -> User:
    user = site.make_user(
        "operator", "change_session", "change_sandbox", "change_apikey"
    )
    site.log_in(user)
    return user


def test_pausing_asks_first_then_pauses_and_says_what_it_did(site: Site):
    fill(site.alias, 5)
    user = operator(site)
    sessions = Session.objects.using(site.alias)
    before = sessions.get(pk="s0001")

    question = site.act("agentdb/session/", "pause_sessions", ["s0001", "s0003"])
    assert "Pause 1 session?" in question.text
    assert "agent-1 session s0001 (active)" in question.text
    assert "s0003" not in question.text  # it has ended
    assert sessions.get(pk="s0001").status == "active"

    answer = site.post("agentdb/session/", **fields(question))

    paused = sessions.get(pk="s0001")
    # What an operator writes is not a sign of life.
    assert (paused.status, paused.last_active_at) == ("paused", before.last_active_at)
    assert sessions.get(pk="s0003").status == "ended"
    assert "Paused 1 session" in answer.text
    assert "Skipped" not in answer.text
    entry = LogEntry.objects.get()
    assert (entry.user_id, entry.object_id, entry.change_message) == (
        user.pk,
        "s0001",
        "pause: active → paused",
    )


def test_rows_that_change_after_the_question_are_skipped(site: Site):
    fill(site.alias, 15)
    operator(site)
    chosen = ["s0000", "s0001", "s0005", "s0006"]
    question = site.act("agentdb/session/", "pause_sessions", chosen)
    site.db.update_session_status("s0000", "ended")
    site.db.delete_session("s0001")

    answer = site.post("agentdb/session/", **fields(question))

    assert "Pause 4 sessions?" in question.text
    assert "Paused 2 sessions" in answer.text
    assert "Skipped 2: gone, or changed meanwhile." in answer.text
    record = site.db.get_session("s0000")
    assert record is not None and record.status == "ended"


def test_lines_that_are_edited_between_two_steps_resume_nothing_else(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agentdb.admin.actions.BATCH", 1)
    fill(site.alias, 8)
    operator(site)
    line = '{"action": "pause", "before": {"s0002": "active", "s0007": "active"}}'
    page = site.post("agentdb/session/undo/", lines=line)
    edited = line.replace("s0007", "s0002")

    page = site.post("agentdb/session/undo/", **{**fields(page), "lines": edited})

    assert "Resumed 1 session" in page.text
    assert "Skipped 1: gone, or changed meanwhile." in page.text


@pytest.mark.parametrize("edited", ["x", "x:y:z", "0"])
def test_a_confirmation_that_was_edited_by_hand_is_asked_for_again(
    site: Site, edited: str
):
    fill(site.alias, 3)
    operator(site)
    form = fields(site.act("agentdb/session/", "pause_sessions", ["s0001"]))

    for asked in (edited, edited + form["asked"], form["asked"][:-1]):
        page = site.post("agentdb/session/", **{**form, "asked": asked})
        assert "Pause 1 session?" in page.text

    assert count(site, Session, status="active") == 1


def test_an_action_refuses_nul_in_an_id(site: Site, superuser: User):
    page = site.act("agentdb/session/", "pause_sessions", ["a\x00"])

    assert (page.status, "An id has a NUL character." in page.text) == (400, True)


def test_marking_cold_leaves_last_used_alone(site: Site):
    fill(site.alias, 5)
    operator(site)
    before = Sandbox.objects.using(site.alias).get(pk="b0004")

    cold = site.act("agentdb/sandbox/", "mark_cold", ["b0000"])
    answer = site.confirm("agentdb/sandbox/", "mark_cold", ["b0004", "b0000"])

    assert "None of these sandboxes can be changed." in cold.text
    after = Sandbox.objects.using(site.alias).get(pk="b0004")
    assert (after.state, after.last_used_at) == ("cold", before.last_used_at)
    assert "Marked 1 sandbox cold" in answer.text


def test_deleting_sandboxes_removes_the_chosen_ones_only(site: Site):
    fill(site.alias, 8)
    operator(site)
    chosen = ["b0001", "b0002", "b0003", "b0004", "b0005"]

    question = site.act("agentdb/sandbox/", "delete_sandboxes", chosen)
    assert "Delete 5 sandboxes?" in question.text
    assert site.db.count_sandboxes() == 8
    answer = site.confirm("agentdb/sandbox/", "delete_sandboxes", chosen)

    assert ids(site.get("agentdb/sandbox/")) == ["b0000", "b0006", "b0007"]
    assert "Deleted 5 sandboxes" in answer.text
    assert "b0003 /work/3" in answer.text  # the only pointer to the folder, which stays
    assert LogEntry.objects.count() == 5


def test_all_that_match_are_acted_on_after_a_question_with_the_count(site: Site):
    fill(site.alias, 60, tenants=2)
    operator(site)
    listed = "agentdb/sandbox/?tenant_id=t1"

    question = site.act(listed, "delete_sandboxes", ["b0001"], select_across="1")
    assert "Delete 30 sandboxes?" in question.text
    assert "All 30 sandboxes that match:" in question.text
    assert "and 20 more" in question.text
    assert site.db.count_sandboxes() == 60
    answer = site.post(listed, **fields(question))

    assert "Deleted 30 sandboxes" in answer.text
    assert set(
        Sandbox.objects.using(site.alias).values_list("tenant_id", flat=True)
    ) == {"t0"}
    assert LogEntry.objects.count() == 30


def test_many_rows_are_acted_on_in_steps_that_say_how_far_they_are(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agentdb.admin.actions.BATCH", 7)
    fill(site.alias, 30)
    operator(site)
    page = site.act("agentdb/session/", "pause_sessions", ["s0000"], select_across="1")
    steps = 0

    page = site.post("agentdb/session/", **fields(page))
    while "data-send-on" in page.html:
        assert "of 12; the rest follows" in page.text
        page = site.post("agentdb/session/", **fields(page))
        steps += 1

    assert steps == 1
    assert "Paused 12 sessions" in page.text
    assert count(site, Session, status="paused") == 12 + 6
    [lines] = re.findall(r'name="lines" value="([^"]*)"', page.html)
    ids = re.findall(r"s\d{4}", lines)
    site.db.update_session_status(min(ids), "ended")
    undone = site.post("agentdb/session/undo/", lines=unescape(lines))
    assert "Resumed 6 sessions of 12; the rest follows" in undone.text
    undone = site.post("agentdb/session/undo/", **fields(undone))
    assert "Resumed 11 sessions" in undone.text
    assert "Skipped 1: gone, or changed meanwhile." in undone.text
    assert count(site, Session, status="paused") == 6


def test_the_folders_of_all_steps_are_named_at_the_end(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agentdb.admin.actions.BATCH", 7)
    fill(site.alias, 20)
    operator(site)
    page = site.act(
        "agentdb/sandbox/",
        "delete_sandboxes",
        ["b0000"],
        select_across="1",
        sure="1",
    )

    page = site.post("agentdb/sandbox/", **fields(page), sure="1")
    while "data-send-on" in page.html:
        page = site.post("agentdb/sandbox/", **fields(page))

    assert "Deleted 20 sandboxes" in page.text
    assert [f"b{n:04} /work/{n}" in page.text for n in range(20)] == [True] * 20


@pytest.mark.parametrize("longest", [0, 185])
def test_a_result_says_that_it_names_not_all_rows_of_so_many(
    site: Site, monkeypatch: pytest.MonkeyPatch, longest: int
):
    monkeypatch.setattr("agentdb.admin.actions.BATCH", 7)
    monkeypatch.setattr("agentdb.admin.actions.LONGEST_LINE", longest)
    fill(site.alias, 20)
    operator(site)

    def run(path: str, action: str, id: str) -> Page:
        page = site.act(path, action, [id], select_across="1", sure="1")
        page = site.post(path, **fields(page), sure="1")
        while "data-send-on" in page.html:
            page = site.post(path, **fields(page))
        return page

    paused = run("agentdb/session/", "pause_sessions", "s0000")
    deleted = run("agentdb/sandbox/", "delete_sandboxes", "b0000")

    # A part of them must not look like all of them.
    too_many = "These are too many to be listed here. The audit log names all."
    undo = paused.link("Undo it with the lines of the audit log")
    assert undo.endswith("/session/undo/")
    assert 'name="lines"' not in paused.html
    assert too_many in paused.text and too_many in deleted.text
    assert "s0001" not in paused.text and "/work/1" not in deleted.text


def test_rows_that_came_after_the_question_are_not_acted_on(site: Site):
    fill(site.alias, 4)
    operator(site)
    question = site.act(
        "agentdb/sandbox/", "delete_sandboxes", ["b0001"], select_across="1"
    )
    site.db.delete_sandbox("b0003")  # so that the number alone does not keep it
    site.db.insert_sandbox("b9-new", "agent-1", "/work/new")

    page = site.post("agentdb/sandbox/", **fields(question))

    assert "data-send-on" not in page.html

    assert list(Sandbox.objects.using(site.alias).values_list("pk", flat=True)) == [
        "b9-new"
    ]


def test_a_runners_page_counts_its_sandboxes_by_state(site: Site, superuser: User):
    fill(site.alias, 30)
    Sandbox.objects.using(site.alias).filter(pk="b0001").update(state="hot")

    page = site.get("agentdb/session/runner/", id="runner-1").text

    # Of s0001, s0007, s0013, s0019 and s0025.
    assert "Sandboxes of its sessions cold 1 hot 1 running 1 waiting 1 warm 1" in page
    assert "hot" not in site.get("agentdb/session/runner/", id="runner-0").text


def test_a_row_that_comes_while_the_rows_are_counted_is_not_acted_on(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    fill(site.alias, 5)
    operator(site)

    def read(*arguments: Any) -> list[Any]:
        site.db.insert_session("s-new", "agent", "box")
        return []

    with monkeypatch.context() as patch:
        patch.setattr("agentdb.admin.actions.read", read)
        question = site.act(
            "agentdb/session/", "pause_sessions", ["s0001"], select_across="1"
        )
    answer = site.post("agentdb/session/", **fields(question))

    assert "Pause 2 sessions?" in question.text
    assert "Paused 2 sessions" in answer.text


def test_a_pause_is_no_sign_of_life_if_the_project_hides_paused_sessions(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    fill(site.alias, 3)
    operator(site)
    active = Session.objects.using(site.alias).active()
    monkeypatch.setattr(
        type(admin.site._registry[Session]),
        "get_queryset",
        lambda self, request: active.all(),
    )
    before = active.get().last_active_at

    site.confirm("agentdb/session/", "pause_sessions", ["s0001"])

    paused = Session.objects.using(site.alias).get(pk="s0001")
    assert (paused.status, paused.last_active_at) == ("paused", before)


def test_the_longest_line_fits_into_a_request_with_what_is_done():
    before = {str(uuid.uuid4()): "starting" for _ in range(19_000)}
    line = json.dumps({"action": "pause", "before": before})
    asked = actions.Asked(list(before), False, len(before), "", "", 0, before)

    form = urlencode({"lines": line, "asked": asked})

    assert 0.98 * actions.LONGEST_LINE < len(line) < actions.LONGEST_LINE
    assert len(form) + 10_000 < settings.DATA_UPLOAD_MAX_MEMORY_SIZE


def test_no_more_rows_than_the_user_confirmed_are_acted_on(site: Site):
    fill(site.alias, 10)
    operator(site)
    path = "agentdb/session/?status=active"
    question = site.act(path, "pause_sessions", ["s0001"], select_across="1")
    site.db.update_session_status("s0009", "active")

    answer = site.post(path, **fields(question))

    assert "Pause 2 sessions?" in question.text
    assert "Paused 2 sessions" in answer.text and "data-send-on" not in answer.html
    assert list(Session.objects.using(site.alias).active()) == [
        Session.objects.using(site.alias).get(pk="s0009")
    ]


def test_deleting_a_sandbox_in_which_a_live_session_runs_asks_more(site: Site):
    fill(site.alias, 5)
    operator(site)
    Session.objects.using(site.alias).filter(pk="s0004").update(
        status="active"
    )  # b0004 runs for it
    chosen = ["b0000", "b0004"]

    question = site.act("agentdb/sandbox/", "delete_sandboxes", chosen)
    assert (
        "A live session runs in one of them and would lose it. Delete that one too."
        in question.text
    )
    assert (
        "live session"
        not in site.act("agentdb/sandbox/", "delete_sandboxes", ["b0000", "b0001"]).text
    )
    unsure = site.confirm("agentdb/sandbox/", "delete_sandboxes", chosen)

    assert "Deleted 1 sandbox" in unsure.text
    assert "Skipped 1: gone, or a live session runs in it." in unsure.text
    assert site.db.get_sandbox("b0004") is not None
    sure = site.confirm("agentdb/sandbox/", "delete_sandboxes", ["b0004"], sure="1")
    assert "Deleted 1 sandbox" in sure.text
    assert site.db.get_sandbox("b0004") is None


def test_what_was_paused_is_resumed_as_it_was_from_the_audit_line(
    site: Site, caplog: pytest.LogCaptureFixture
):
    caplog.set_level("INFO", logger="agentdb.audit")
    fill(site.alias, 12)
    operator(site)
    site.confirm("agentdb/session/", "pause_sessions", ["s0000", "s0001", "s0005"])
    [line] = [each.message for each in caplog.records if each.name == "agentdb.audit"]
    site.db.update_session_status("s0005", "ended")

    page = site.post(
        "agentdb/session/undo/", lines=f"2026-02-19 20:53:16,123 INFO {line}\n"
    )

    assert "Resumed 2 sessions" in page.text
    assert "Skipped 1: gone, or changed meanwhile." in page.text
    statuses = {
        id: site.db.get_session(id).status for id in ("s0000", "s0001", "s0005")
    }
    assert statuses == {"s0000": "starting", "s0001": "active", "s0005": "ended"}
    undone = audited(caplog)[-1]
    assert (undone["action"], undone["before"], undone["after"]) == (
        "resume", {"s0000": "paused", "s0001": "paused"}, {"s0000": "starting", "s0001": "active"}
    )  # fmt: skip


@pytest.mark.parametrize(
    ("lines", "sentence"),
    [
        ("nonsense", "This line does not say that sessions were paused: nonsense"),
        ("x" * 81, f"This line does not say that sessions were paused: {'x' * 80} "),
        (
            '{"action": 1}',
            'This line does not say that sessions were paused: {"action": 1}',
        ),
        (
            '{"a":' * 9_000,
            'This line does not say that sessions were paused: {"a":{"a":',
        ),
        (
            '{"action": "delete", "before": {"s1": "cold"}}',
            "This line does not say that sessions were paused: ",
        ),
        (
            '{"action": "pause", "before": {"s1": "ended"}}',
            "This line does not say that sessions were paused: ",
        ),
        (
            r'{"action": "pause", "before": {"a\u0000b": "active"}}',
            "This line does not say that sessions were paused: ",
        ),
        (
            r'{"action": "pause", "before": {"a\ud800b": "active"}}',
            "This line does not say that sessions were paused: ",
        ),
    ],
)
def test_what_is_not_a_line_of_a_pause_is_not_undone(
    site: Site, lines: str, sentence: str
):
    operator(site)

    assert sentence in site.post("agentdb/session/undo/", lines=lines).text


def test_undoing_needs_the_permission_to_act(site: Site):
    fill(site.alias, 5)
    operator(site)
    url = site.get("agentdb/session/", status="paused").link(
        "Resume from the audit log"
    )
    assert site.client.get(url).status_code == 200
    site.log_in_viewer()
    assert (
        "Resume from the audit log"
        not in site.get("agentdb/session/", status="paused").text
    )

    assert site.get("agentdb/session/undo/").status == 403
    assert site.post("agentdb/session/undo/", lines="{}").status == 403


def test_actions_keys_and_refusals_are_written_to_the_audit_log(
    site: Site,
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
):
    caplog.set_level("INFO", logger="agentdb.audit")
    file = tmp_path / "audit.log"
    monkeypatch.setattr(settings, "AGENTDB_AUDIT_LOG", str(file), raising=False)
    fill(site.alias, 3)
    operator(site)

    site.confirm("agentdb/session/", "pause_sessions", ["s0001"])
    site.confirm("agentdb/sandbox/", "delete_sandboxes", ["b0001"])
    site.confirm("agentdb/apikey/", "revoke_keys", ["k0001"])
    site.log_in_viewer()
    site.act("agentdb/session/", "pause_sessions", ["s0002"])
    site.post("agentdb/apikey/add/", tenant_id="t0")
    site.act("agentdb/session/", "\né", ["s0002"])

    logged = [each.message for each in caplog.records if each.name == "agentdb.audit"]
    assert file.read_text() == "".join(f"{line}\n" for line in logged)
    assert all(line.isascii() for line in logged)
    assert file.stat().st_mode & 0o777 == 0o600
    lines = [
        (line["user"], line["action"], line["outcome"], line["before"], line["after"])
        for line in audited(caplog)
    ]
    assert lines == [
        ("operator", "pause", "done", {"s0001": "active"}, {"s0001": "paused"}),
        (
            "operator",
            "delete",
            "done",
            {"b0001": {"state": "warming", "workspace_dir": "/work/1"}},
            {"b0001": None},
        ),
        (
            "operator",
            "revoke",
            "done",
            {"k0001": lines[2][3]["k0001"]},
            {"k0001": None},
        ),
        ("viewer", "pause_sessions of sessions", "refused", {}, {}),
        ("viewer", "issue", "refused", {}, {}),
        ("viewer", "\né of sessions", "refused", {}, {}),
    ]


def test_what_cannot_be_written_down_is_not_done(
    site: Site, settings: Any, tmp_path: Path
):
    settings.AGENTDB_AUDIT_LOG = str(tmp_path / "no such folder" / "audit.jsonl")
    fill(site.alias, 3)
    operator(site)

    answer = site.confirm("agentdb/sandbox/", "delete_sandboxes", ["b0001"])

    assert "Nothing was changed. [Errno 2] No such file or directory: " in answer.text
    assert site.db.count_sandboxes() == 3
    assert LogEntry.objects.count() == 0


def test_action_that_is_undone_says_so_in_the_audit_log(
    site: Site, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
):
    fill(site.alias, 3)
    operator(site)
    real = type(site.db).run_transaction

    def fail_at_the_end(self: Any, fn: Any, **options: Any) -> Any:
        def then_fail(tx: Any) -> None:
            fn(tx)
            raise AgentDbError("The database is away.")

        return real(self, then_fail, **options)

    monkeypatch.setattr(type(site.db), "run_transaction", fail_at_the_end)
    caplog.set_level("INFO", logger="agentdb.audit")
    answer = site.confirm("agentdb/sandbox/", "delete_sandboxes", ["b0001"])

    assert "Nothing was changed. The database is away." in answer.text
    assert [line["outcome"] for line in audited(caplog)] == ["done", "undone"]
    assert (site.db.count_sandboxes(), LogEntry.objects.count()) == (3, 0)


def test_revoking_a_key_locks_its_user_out(site: Site):
    operator(site)
    plain, record = site.db.issue_api_key("acme", "laptop")

    answer = site.confirm("agentdb/apikey/", "revoke_keys", [record.id])

    assert "Revoked 1 API key" in answer.text and record.id in answer.text
    assert site.db.authenticate(plain) is None
    assert LogEntry.objects.get().object_repr == "laptop of acme"


def test_action_that_the_database_refuses_changes_nothing_and_says_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    fill(site.alias, 5)
    operator(site)
    real = type(site.db).delete_sandbox

    def fail_on_second(self: Any, id: str) -> bool:
        if id == "b0002":
            raise AgentDbError("The database is away.")
        return real(self, id)

    monkeypatch.setattr(type(site.db), "delete_sandbox", fail_on_second)
    answer = site.confirm("agentdb/sandbox/", "delete_sandboxes", ["b0001", "b0002"])

    assert "Nothing was changed. The database is away." in answer.text
    assert site.db.count_sandboxes() == 5
    assert LogEntry.objects.count() == 0


def test_action_keeps_the_filter_of_the_list(site: Site):
    fill(site.alias, 10)
    operator(site)

    question = site.act("agentdb/session/?status=active", "pause_sessions", ["s0001"])

    assert 'action="/admin/agentdb/session/?status=active"' in question.html


def test_cells_link_only_where_the_user_may_look(site: Site):
    fill(site.alias, 3)
    site.log_in(site.make_user("narrow", "view_session"))
    opened: dict[str, int] = {}

    for path in (
        "agentdb/session/",
        "agentdb/session/s0001/change/",
        "agentdb/session/runner/?id=runner-1",
        "",
    ):
        page = Page(site.client.get(f"/admin/{path}"))
        links = {url for url, _ in page.links if url.startswith("/admin/agentdb/")}
        assert links
        for url in links - opened.keys():
            opened[url] = site.client.get(url).status_code
    assert set(opened.values()) == {200}, opened
    assert "b0001" in site.get("agentdb/session/").text
    assert "agent-1" in site.get("agentdb/session/").text
    assert "missing" not in site.get("agentdb/session/").text


def test_long_values_are_cut_in_lists_and_said_how_long(site: Site, superuser: User):
    long = "/" + "x" * 499_999
    for number in range(30):
        Agent.objects.using(site.alias).create(
            id=f"a{number}", name=f"agent-{number}", path=long
        )
        Sandbox.objects.using(site.alias).create(
            id=f"b{number}", agent_name="agent-1", workspace_dir=long
        )
    if (
        connections[site.alias].vendor == "sqlite"
    ):  # PostgreSQL's indexes take no such name
        Session.objects.using(site.alias).create(
            id="s", agent_name="n" * 300_000, sandbox_id="b" * 300_000
        )

    for path in (
        "agentdb/agent/",
        "agentdb/sandbox/",
        "agentdb/session/",
        "agentdb/agent/a1/change/",
    ):
        page = site.get(path)
        assert page.status == 200
        assert len(page.html) < 200_000
    assert "(500,000 characters)" in site.get("agentdb/agent/").html


@pytest.mark.parametrize(
    "place",
    [
        "2020-01-01T00:00:00+00:00,a\x00",
        "9999-12-31T23:59:59.999999-12:00,x",
        "0001-01-01T00:00:00+12:00,x",
        "2020-01-01T00:00:00,x",
        "[" * 20_000,
        ",",
    ],
)
def test_place_made_by_hand_leads_back_to_the_list(
    site: Site, superuser: User, place: str
):
    fill(site.alias, 3)

    response = site.client.get("/admin/agentdb/session/", {"after": place})
    assert response.status_code in (200, 302), response.content.decode()


# -- other projects' admins


@pytest.mark.urls("tests.helpers.custom_admin_urls")
def test_a_site_of_the_project_with_one_of_the_models_has_its_pages_and_links_only_there(
    site: Site, superuser: User
):
    fill(site.alias, 3)
    paths = (
        "",
        "agentdb/",
        "agentdb/session/",
        "agentdb/session/s0001/change/",
        "agentdb/session/runner/?id=runner-1",
    )

    pages = [Page(site.client.get(f"/operations/{path}")) for path in paths]

    assert [page.status for page in pages] == [200] * len(paths)
    links = {url for page in pages for url, _ in page.links if url.startswith("/")}
    assert {url for url in links if not url.startswith("/operations/")} == {
        "/"
    }  # "View site"
    assert "/operations/agentdb/session/s0001/change/" in links
    assert not [
        url
        for url in links
        if "/sandbox/" in url or "/agent/" in url or "/apikey/" in url
    ]


# -- speed


@pytest.mark.parametrize(
    ("path", "query", "most"),
    [
        ("", {}, 60),
        ("agentdb/agent/", {}, 5),
        ("agentdb/session/", {}, 9),
        ("agentdb/session/", {"tenant_id": "t1", "status": "active", "q": "agent"}, 10),
        ("agentdb/sandbox/", {}, 8),
        (
            "agentdb/sandbox/",
            {"tenant_id": "t1", "state": "waiting", "session_id": "s0001"},
            23,
        ),
        ("agentdb/apikey/", {}, 4),
        ("agentdb/session/s0001/change/", {}, 9),
        ("agentdb/agent/tenant/", {"id": "t1"}, 7),
    ],
)
def test_page_makes_the_same_few_queries_however_many_rows_it_shows(
    site: Site, superuser: User, path: str, query: dict[str, str], most: int
):
    counts = []
    for rows in (60, 90):
        Agent.objects.using(site.alias).all().delete()
        for model in (Session, Sandbox, ApiKey):
            model.objects.using(site.alias).all().delete()
        fill(site.alias, rows, tenants=2)
        with CaptureQueriesContext(connections[site.alias]) as queries:
            assert site.get(path, **query).status == 200
        counts.append(len(queries))

    # On a server, setting a time limit and taking it back are a query each: of a page, of a page of questions, and of
    # the rows of a list and their number. The overview asks once more for each runner that looks silent.
    limits = 0 if connections[site.alias].vendor == "sqlite" else 8
    assert counts[0] == counts[1] or path == "", counts
    assert max(counts) <= most + limits, [
        query["sql"] for query in queries.captured_queries
    ]


def test_no_list_counts_its_table(site: Site, superuser: User):
    fill(site.alias, 20)

    with CaptureQueriesContext(connections[site.alias]) as queries:
        for name in LISTS:
            site.get(f"agentdb/{name}/")

    counts = [
        query["sql"]
        for query in queries.captured_queries
        if "COUNT(*)" in query["sql"].upper()
    ]
    unbounded = [sql for sql in counts if "LIMIT" not in sql.upper()]
    assert unbounded == []


def test_a_place_survives_its_own_text():
    at = datetime.fromisoformat("2026-02-19T20:53:16.123456+00:00")
    order, row = Order("created_at"), Session(pk="ü/\"',x", created_at=at)

    beyond = str(order.beyond(order.place([row]) or ""))

    assert repr(at.astimezone(UTC)) in beyond
    assert repr(row.pk) in beyond


def test_logging_in_needs_the_password(site: Site):
    site.make_user("someone", "view_session")
    client = Client()

    wrong = client.post("/admin/login/", {"username": "someone", "password": "wrong"})
    right = client.post(
        "/admin/login/?next=/admin/",
        {"username": "someone", "password": "a long password"},
    )

    assert (wrong.status_code, right.status_code) == (200, 302)


# -- orders


def test_a_list_is_ordered_by_another_timestamp(site: Site, superuser: User):
    fill(site.alias, 60, tenants=2)
    for number in range(60):  # the older a session is, the later it was active
        at = timezone.now() - timedelta(minutes=100 - number)
        Session.objects.using(site.alias).filter(pk=f"s{number:04}").update(
            last_active_at=at
        )

    page = site.get("agentdb/session/", tenant_id="t1")
    by_activity = page.link("Last active")
    longest_silent = walk(
        site, "agentdb/session/", "Newer", **dict(parse_qsl(by_activity[1:]))
    )
    again = Page(site.client.get(f"/admin/agentdb/session/{by_activity}"))
    newest = walk(
        site,
        "agentdb/session/",
        "Older",
        **dict(parse_qsl(again.link("Last active")[1:])),
    )

    assert [id for each in newest for id in each] == [
        f"s{number:04}" for number in range(59, 0, -2)
    ]
    assert [id for each in longest_silent for id in each] == [
        f"s{number:04}" for number in range(1, 60, 2)
    ]
    assert again.html.count('aria-sort="ascending"') == 1
    assert 'aria-sort="descending"' not in again.html


def test_a_made_up_order_is_the_lists_own(site: Site, superuser: User):
    fill(site.alias, 3)

    # 0 is the checkbox, 2 the status: only timestamps can order a list.
    for order in ("key_hash", "-id", "0", "2", "-2.1", "99", "-", "oldest; DROP"):
        assert ids(site.get("agentdb/session/", o=order)) == [
            "s0000",
            "s0001",
            "s0002",
        ]


def test_every_heading_that_is_a_link_leads_to_pages_in_its_order(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agentdb.admin.model_admins.ReadFirstAdmin.list_per_page", 5)
    fill(site.alias, 8)

    for name in ("session", "sandbox", "agent", "apikey"):
        path = f"agentdb/{name}/"
        columns = site.get(path).html.count('<th scope="col"')
        for number in range(columns):
            for order in (f"{number}", f"-{number}"):
                first = site.get(path, o=order)
                further = "Newer" if "Newer" in first.text else "Older"
                link = first.link(f"{further} ›")
                assert site.get(path, **dict(parse_qsl(link[1:]))).status == 200
        headings = re.findall(r'href="\?o=[-.\d]+">\s*(.+?)\s*<', site.get(path).html)
        assert set(headings) <= {"Created", "Last active", "Last used", "Updated"}


# -- what a row's page and a finding's rows offer


def test_a_rows_page_offers_what_can_be_done_to_it_and_is_come_back_to(site: Site):
    fill(site.alias, 5)
    operator(site)
    path = "agentdb/session/s0001/change/"

    page = site.get(path)
    assert "Pause…" in page.text
    assert (
        "Pause…" not in site.get("agentdb/session/s0003/change/").text
    )  # it has ended
    assert (
        "Mark cold…" not in site.get("agentdb/sandbox/b0000/change/").text
    )  # it is cold
    question = site.act(
        "agentdb/session/",
        "pause_sessions",
        ["s0001"],
        headers={"Referer": f"/admin/{path}"},
    )
    assert question.link("No, go back") == f"/admin/{path}"
    answer = site.post("agentdb/session/", **fields(question))

    assert "Paused 1 session" in answer.text
    assert answer.link("Go back") == f"/admin/{path}"
    assert "Pause…" not in site.get(path).text


@pytest.mark.parametrize(
    "elsewhere",
    ["https://example.org/", "//example.org/", "javascript:alert(1)", "/\\example.org"],
)
def test_an_action_leads_to_no_other_site(site: Site, elsewhere: str):
    fill(site.alias, 3)
    operator(site)

    question = site.act(
        "agentdb/session/",
        "pause_sessions",
        ["s0001"],
        headers={"Referer": elsewhere},
    )

    assert question.link("No, go back") == "/admin/agentdb/session/"


def test_the_rows_of_a_check_are_the_ordinary_list(site: Site):
    fill(site.alias, 5)
    operator(site)
    _ago(site, "s0001", last_active_at=90)
    Session.objects.using(site.alias).filter(pk="s0001").update(runner_id=None)

    page = site.get("agentdb/session/", check="silent")
    assert ids(page) == ["s0001"]
    assert "Pause selected sessions" in page.text
    assert [
        row["id"]
        for row in json.loads(
            site.exported("agentdb/session/export/json/", check="silent")
        )
    ] == ["s0001"]
    site.confirm("agentdb/session/?check=silent", "pause_sessions", ["s0001"])

    assert "No sessions match" in site.get("agentdb/session/", check="silent").text


def test_a_rows_page_has_the_row_as_json_without_a_keys_hash(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    fill(site.alias, 2)
    ApiKey.objects.using(site.alias).filter(pk="k0001").update(key_hash="f" * 64)

    session, key = (
        site.get("agentdb/session/s0001/change/"),
        site.get("agentdb/apikey/k0001/change/"),
    )

    [text] = re.findall(r'data-copy-text="([^"]+)"', session.html)
    assert (
        json.loads(unescape(text))
        == json.loads(site.exported("agentdb/session/export/json/", q="s0001"))[0]
    )
    assert "f" * 9 not in key.html
    assert "ffffffff…" in key.text
    # A button must not make the page much larger.
    for longest in (len(unescape(text)), len(unescape(text)) - 1):
        monkeypatch.setattr("agentdb.admin.model_admins.LONGEST_JSON", longest)
        page = site.get("agentdb/session/s0001/change/")
        assert ("data-copy-text" in page.html) is (longest == len(unescape(text)))


def test_the_history_of_a_row_says_what_was_done_to_it(site: Site, superuser: User):
    fill(site.alias, 3)
    site.confirm("agentdb/session/", "pause_sessions", ["s0001"])

    assert "pause: active → paused" in site.get("agentdb/session/s0001/history/").text
    none = site.get("agentdb/session/s0000/history/").text
    assert "paused" not in none
    assert "doesn’t have a change history" in none


def test_a_rows_page_leads_to_its_history_where_one_is_kept(
    site: Site, superuser: User, settings: Any
):
    fill(site.alias, 2)

    assert (
        site.get("agentdb/session/s0001/change/").link("History")
        == "/admin/agentdb/session/s0001/history/"
    )
    settings.AGENTDB_ADMIN_LOG = (
        False  # as under 'runadmin', whose accounts are gone when it ends
    )
    assert "History" not in [
        text for _, text in site.get("agentdb/session/s0001/change/").links
    ]
