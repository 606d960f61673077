"""From, to, group by, and what changed lately."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta

import pytest
from django.contrib import admin
from django.contrib.auth.models import User
from django.utils import timezone

from agentdb.admin.display import runner_link
from agentdb.console.groups import Grouped, Grouping, changes, moment
from agentdb.models import Agent, Sandbox, Session
from tests.helpers.admin_fixtures import Page, Site

NOW = datetime(2026, 3, 14, 15, 9, 26, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("10m", NOW - timedelta(minutes=10)),
        ("2h", NOW - timedelta(hours=2)),
        ("1w", NOW - timedelta(weeks=1)),
        ("3d", NOW - timedelta(days=3)),
        ("14:00", datetime(2026, 3, 14, 14, tzinfo=UTC)),
        ("23:30", datetime(2026, 3, 13, 23, 30, tzinfo=UTC)),
        ("2026-03-01", datetime(2026, 3, 1, tzinfo=UTC)),
        ("2026-03-01T05:30", datetime(2026, 3, 1, 5, 30, tzinfo=UTC)),
        ("2026-03-01 05:30+01:00", datetime(2026, 3, 1, 4, 30, tzinfo=UTC)),
    ],
)
def test_a_moment_is_what_somebody_means(text: str, expected: datetime):
    assert moment(text, NOW) == expected


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "10",
        "25:00",
        "2026-02-30",
        "999999d",
        "-5m",
        "today",
        "2 h",
        "0001-01-01T00:00+14:00",
        "9999-12-31T23:59-14:00",
    ],
)
def test_what_is_not_a_time_is_said(text: str):
    with pytest.raises(
        ValueError, match=re.escape(f"{text!r} is not a time. Write 14:00,")
    ):
        moment(text, NOW)


def opened(site: Site, id: str, hours: float, **values: str | None) -> None:
    at = timezone.now() - timedelta(hours=hours)
    defaults = {
        "agent_name": "bot",
        "sandbox_id": "",
        "status": "ended",
        "created_at": at,
        "last_active_at": at,
    }
    Session.objects.using(site.alias).create(id=id, **{**defaults, **values})


def sandbox(
    site: Site, id: str, state: str, session_id: str | None, **values: str
) -> None:
    defaults = {
        "agent_name": "bot",
        "workspace_dir": "/w",
        "last_used_at": timezone.now() - timedelta(minutes=5),
    }
    Sandbox.objects.using(site.alias).create(
        id=id, state=state, session_id=session_id, **{**defaults, **values}
    )


def test_sessions_are_summed_up_by_what_they_share(site: Site):
    opened(site, "s1", 1, status="error", runner_id="r1")
    opened(site, "s2", 1, status="active", runner_id="r1")
    opened(site, "s3", 2, agent_name="other")
    opened(site, "s4", 30, status="error")
    now = timezone.now()

    day = Grouping(Session, "agent_name", since=now - timedelta(days=1))

    assert day.ask(site.alias) == [Grouped("bot", 2, 1, 1), Grouped("other", 1, 0, 0)]
    assert day.ask(site.alias)[0].percent_failed == "50.0 %"
    assert Grouping(Session, "runner_id").ask(site.alias) == [
        Grouped(None, 2, 0, 1),
        Grouped("r1", 2, 1, 1),
    ]
    before = Grouping(
        Session, "status", until=now - timedelta(days=1), filters={"agent_name": "bot"}
    )
    assert before.ask(site.alias) == [Grouped("error", 1, 0, 1)]


@pytest.mark.usefixtures("frozen_time")
def test_days_and_hours_are_those_of_utc_from_the_latest_on(site: Site):
    opened(site, "s1", 0, status="error")
    opened(site, "s2", 24)
    opened(site, "s3", 24)

    days, hours = (
        Grouping(Session, "day").ask(site.alias),
        Grouping(Session, "hour").ask(site.alias),
    )

    now = timezone.now()
    expected = [
        (now - timedelta(hours=24 * ago), rows) for ago, rows in ((0, 1), (1, 2))
    ]
    assert [(each.value, each.rows) for each in days] == [
        (f"{at:%Y-%m-%d}", rows) for at, rows in expected
    ]
    assert [(each.value, each.rows) for each in hours] == [
        (f"{at:%Y-%m-%d %H}", rows) for at, rows in expected
    ]


def test_sandboxes_are_summed_up_by_their_session_and_runner(site: Site):
    opened(site, "s1", 1, status="paused", runner_id="r1")
    opened(site, "s2", 1, status="active", runner_id="r1")
    sandbox(site, "b1", "running", "s1")
    sandbox(site, "b2", "running", "s1")
    sandbox(site, "b3", "waiting", "s2")
    sandbox(site, "b4", "cold", "gone", tenant_id="acme")
    sandbox(site, "b5", "cold", None, tenant_id="acme")

    def by(column: str, **filters: str) -> dict[str | None, int]:
        return {
            each.value: each.rows
            for each in Grouping(Sandbox, column, filters=filters).ask(site.alias)
        }

    assert by("session_status") == {"paused": 2, "none": 2, "active": 1}
    assert by("runner_id") == {"r1": 3, None: 2}
    assert by("state", runner_id="r1") == {"running": 2, "waiting": 1}
    assert by("tenant_id", state="cold") == {"acme": 2}


def test_the_page_of_sums_leads_to_the_rows_of_each_group(site: Site, superuser: User):
    for number in range(3):
        opened(site, f"s{number}", 1, status="error" if number else "ended")
    opened(site, "old", 50)

    page = site.get("agentdb/session/groups/", by="agent_name")

    assert "3 sessions 0 live, 2 failed, 66.7 %" in page.text
    listed = Page(site.client.get(page.link("bot")))
    assert sorted(row[1].split()[0] for row in listed.rows) == ["s0", "s1", "s2"]
    hours = site.get(
        "agentdb/session/groups/", **{"by": "hour", "from": "3d", "agent_name": "bot"}
    )
    [hour] = {
        url
        for url, text in hours.links
        if "from=" in url and text == f"{_hour(site, 'old'):%Y-%m-%d %H}:00"
    }
    assert [row[1].split()[0] for row in Page(site.client.get(hour)).rows] == ["old"]


def test_a_group_whose_value_is_empty_does_not_lead_to_all_rows(
    site: Site, superuser: User
):
    opened(site, "s1", 1, runner_id="")
    opened(site, "s2", 1, runner_id="r2")

    page = site.get("agentdb/session/groups/", by="runner_id")

    assert [text for url, text in page.links if "session/?" in url] == ["r2"]


def _hour(site: Site, id: str) -> datetime:
    return Session.objects.using(site.alias).get(pk=id).created_at


@pytest.mark.parametrize(
    ("query", "sentence"),
    [
        ({"from": "soon"}, "'soon' is not a time."),
        ({"by": "key_hash"}, "'key_hash' is not a column to group by."),
    ],
)
def test_the_page_of_sums_says_what_means_nothing(
    site: Site, superuser: User, query: dict[str, str], sentence: str
):
    page = site.get("agentdb/session/groups/", **query)

    assert (page.status, sentence in page.text) == (200, True)


def test_sums_are_for_those_who_may_see_the_table(site: Site):
    site.log_in(site.make_user("partial", "view_sandbox"))

    assert site.get("agentdb/session/groups/").status == 403
    assert site.get("agentdb/session/groups/", table="sandbox").status == 200
    opened(site, "s1", 0)
    sandbox(site, "b1", "running", None)
    assert re.findall(
        r"\b[sb]1\b", site.get("agentdb/session/changes/", **{"from": "1h"}).text
    ) == ["b1"]


def test_a_list_takes_a_period_and_says_what_is_not_a_time(site: Site, superuser: User):
    opened(site, "s1", 1)
    opened(site, "s2", 3)

    assert [
        row[1].split()[0] for row in site.get("agentdb/session/", **{"from": "2h"}).rows
    ] == ["s1"]
    assert [
        row[1].split()[0] for row in site.get("agentdb/session/", to="2h").rows
    ] == ["s2"]
    page = site.get("agentdb/session/", to="soon")
    assert ("'soon' is not a time." in page.text, page.rows) == (True, [])


def test_the_bars_of_the_chart_lead_to_their_hour(site: Site, superuser: User):
    opened(site, "s1", 5)

    page = site.get("")

    at = Session.objects.using(site.alias).get().created_at
    [hour] = {url for url, text in page.links if text == f"{at:%m-%d %H}:00"}
    assert [row[1].split()[0] for row in Page(site.client.get(hour)).rows] == ["s1"]


def test_what_changed_is_told_across_the_tables_the_latest_first(
    site: Site, superuser: User
):
    opened(site, "old", 5)
    Session.objects.using(site.alias).filter(pk="old").update(
        last_active_at=timezone.now() - timedelta(minutes=8)
    )
    opened(site, "older", 5)
    sandbox(site, "b1", "running", None)
    site.db.upsert_agent("bot", "/a")

    since = timezone.now() - timedelta(minutes=10)
    found = changes(site.alias, since, [Session, Sandbox, Agent], [])

    assert [(each.what, str(each.row.pk)) for each in found[1:]] == [
        ("used", "b1"),
        ("active", "old"),
    ]
    assert found[0].what == "deployed"
    page = site.get("agentdb/session/changes/")
    assert page.text.index("b1") < page.text.index("old")
    assert "older" not in page.text


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("runner-1", "runner-1"),
        ("runner-eu-west-1-7f9c4d8b6-x2x4q.internal.example", "runner-e…-x2x4q…"),
        ("runner-eu-west-1-7f9c4d8b6-x2x5q.internal.example", "runner-e…-x2x5q…"),
        ("db-1.eu-central.internal.example", "db-1…"),
    ],
)
def test_runner_names_are_cut_where_they_tell_least(name: str, shown: str):
    html = runner_link(admin.site, name)

    assert (
        re.sub(
            r"<[^>]*>", "", re.sub(r'<span class="agentdb-mid">.*?</span>', "…", html)
        )
        == shown
    )
    assert re.sub(r"<[^>]*>", "", html) == name
    assert f'data-copy="{name}"' in html
