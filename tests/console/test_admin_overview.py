"""The first page of the admin."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connections
from django.utils import timezone

from agentdb.admin import overview
from agentdb.console import figures, questions
from agentdb.console import report as attention
from agentdb.console.checks import Fleet
from agentdb.models import Agent, Sandbox, Session
from tests.helpers.admin_fixtures import Site, audited, fields, fill


def test_distinct_values_are_listed_from_a_value_on_up_to_a_limit(site: Site):
    fill(site.alias, 20)
    connection = connections[site.alias]

    assert figures.distinct_values(connection, Session, "tenant_id", limit=3) == [
        "t0",
        "t1",
        "t2",
    ]
    assert figures.distinct_values(
        connection, Session, "tenant_id", at_least="t8", limit=5
    ) == ["t8", "t9"]
    assert figures.distinct_values(connection, Session, "runner_id", limit=9) == [
        "runner-0",
        "runner-1",
        "runner-2",
    ]


def test_top_tenants_are_those_with_most_of_the_newest_sessions(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(figures, "NEWEST", 6)
    for number, tenant in enumerate(
        ["new", "new", "mid", "new", "mid", "low", "old", "old", "old", "old"]
    ):
        Session.objects.using(site.alias).create(
            id=f"s{number}",
            tenant_id=tenant,
            agent_name="a",
            sandbox_id="b",
            status="active" if number % 2 else "ended",
            created_at=timezone.now() - timedelta(hours=number),
        )

    tenants = figures.top_tenants(site.alias)

    assert [(tenant.id, tenant.sessions, tenant.live) for tenant in tenants] == [
        ("new", 3, 2), ("mid", 2, 0), ("low", 1, 1)
    ]  # fmt: skip
    assert (
        tenants[1].newest_at
        == Session.objects.using(site.alias).get(pk="s2").created_at
    )


def test_oldest_idle_sandboxes_are_the_waiting_ones_in_order(site: Site):
    fill(site.alias, 60)

    idle = figures.oldest_idle_sandboxes(site.alias)

    assert [sandbox.pk for sandbox in idle] == [f"b00{n:02}" for n in range(58, 18, -5)]
    assert {sandbox.state for sandbox in idle} == {"waiting"}


def test_overview_is_on_the_app_page_too_which_every_admin_site_has(
    site: Site, superuser: User
):
    fill(site.alias, 1)

    assert "Sandboxes by state" in site.get("agentdb/").text


def test_overview_leaves_out_what_the_user_may_not_see(site: Site):
    fill(site.alias, 5)
    site.log_in(site.make_user("partial", "view_sandbox"))

    page = site.get("")

    assert "Nothing needs attention" not in page.text
    assert "Runner silent for" in page.text
    assert "Your account may not see these rows." in page.text
    assert "Sandboxes by state" in page.text
    assert "Sessions by status" not in page.text
    assert "Top tenants" not in page.text
    assert "Runners" not in page.text


def test_counts_stop_at_their_cap(site: Site, monkeypatch: pytest.MonkeyPatch):
    fill(site.alias, 20)
    sessions = Session.objects.using(site.alias)

    monkeypatch.setattr(figures, "WINDOW", 20)
    assert str(figures.capped_count(sessions)) == "20"
    monkeypatch.setattr(figures, "WINDOW", 19)
    assert str(figures.capped_count(sessions)) == "19+"


def test_overview_shows_figures_pictures_tenants_idle_sandboxes_and_runners(
    site: Site, superuser: User
):
    fill(site.alias, 20)
    Sandbox.objects.using(site.alias).create(
        id="lonely",
        agent_name="gone",
        state="waiting",
        workspace_dir="/w",
        last_used_at=timezone.now(),
    )

    page = site.get("")

    assert page.status == 200
    for heading in (
        "Sandboxes by state", "Sessions by status", "Oldest idle sandboxes", "Runners", "Top tenants",
        "Sessions opened and failed per hour",
    ):  # fmt: skip
        assert heading in page.text
    assert page.link("Sandboxes 21") == "/admin/agentdb/sandbox/"
    assert page.link("waiting 5") == "/admin/agentdb/sandbox/?state=waiting"
    assert page.link("active 4") == "/admin/agentdb/session/?status=active"
    assert page.link("b0018") == "/admin/agentdb/sandbox/b0018/change/"
    assert page.link("runner-1") == "/admin/agentdb/session/runner/?id=runner-1"
    assert ("/admin/agentdb/agent/tenant/?id=t3", "t3") in page.links
    assert "gone" in page.text
    assert page.html.count('class="agentdb-opened') == 24
    assert "<script>" not in page.html
    assert " style=" not in page.html


def test_nothing_to_attend_to_is_one_line(site: Site, superuser: User):
    page = site.get("")

    assert "Nothing needs attention" in page.text
    assert "Nothing is stored yet" in page.text
    assert "agentdb apikey issue" in page.text
    assert "Top tenants" not in page.text
    site.db.upsert_agent("a", "/a")
    page = site.get("")
    assert "No sandbox is waiting." in page.text
    assert "No live session has a runner." in page.text
    assert "There are no sessions yet." in page.text


def test_the_overview_does_not_call_a_database_empty_whose_rows_the_user_may_not_see(
    site: Site,
):
    site.db.insert_session("s1", "coder", "box")
    site.log_in(site.make_user("keys-only", "view_apikey"))

    page = site.get("")

    assert "API keys 0" in page.text
    assert "Nothing is stored" not in page.text


def test_overview_of_a_user_without_permissions_is_empty(site: Site):
    site.log_in(site.make_user("nobody"))

    page = site.get("")

    assert page.status == 200
    assert "attention" not in page.text


def _session(site: Site, id: str, minutes: int, **values: Any) -> None:
    at = timezone.now() - timedelta(minutes=minutes)
    defaults: dict[str, Any] = {
        "agent_name": "a",
        "sandbox_id": "",
        "created_at": at,
        "last_active_at": at,
    }
    Session.objects.using(site.alias).create(id=id, **{**defaults, **values})


def test_each_line_of_attention_leads_to_its_rows(site: Site, superuser: User):
    Agent.objects.using(site.alias).create(tenant_id="default", name="a", path="/a")
    _session(site, "silent", 31, status="active")
    _session(site, "dead", 31, status="active", runner_id="r9")
    _session(site, "fresh", 2, status="active", runner_id="r1")
    _session(site, "starting", 6, status="starting")
    _session(
        site, "no-sandbox", 2, status="active", sandbox_id="nowhere", runner_id="r1"
    )
    _session(site, "no-agent", 2, status="active", agent_name="retired", runner_id="r1")
    _session(site, "ended", 90, status="ended")
    old = timezone.now() - timedelta(minutes=80)
    for id, session_id, state in (
        ("alone", "ended", "running"), ("orphan", "gone", "waiting"), ("kept", "fresh", "running"),
        ("cold", "ended", "cold"), ("idle", None, "waiting"),
    ):  # fmt: skip
        Sandbox.objects.using(site.alias).create(
            id=id,
            agent_name="a",
            session_id=session_id,
            state=state,
            workspace_dir="/w",
            last_used_at=old,
        )

    found = {
        each.code: each
        for each in attention.examine(
            questions.Budget(connections[site.alias])
        ).findings
    }

    assert {code: each.count for code, each in found.items()} == {
        "failing": 0, "runner": 1, "silent": 1, "starting": 1, "sandbox-alone": 2, "sandbox-gone": 1,
        "agent-missing": 1, "pending": 0, "drift": 0, "unreadable": 0,
    }  # fmt: skip
    assert found["silent"].detail == "the oldest: 31 min ago"
    assert found["runner"].detail == "r9, 31 min ago; 1 live session"
    page = site.get("")
    assert "Needs attention: 6" in page.text
    assert page.link("Urgent: 1 runner is silent r9, 31 min ago; 1 live session") == (
        "/admin/agentdb/session/runner/?id=r9"
    )
    listed = {}
    for code in (
        "silent",
        "starting",
        "sandbox-alone",
        "sandbox-gone",
        "agent-missing",
        "runner",
    ):
        assert (
            any(f"/?check={code}" in url for url, _ in page.links) or code == "runner"
        )
        table = "sandbox" if code == "sandbox-alone" else "session"
        answer = site.client.get(f"/admin/agentdb/{table}/", {"check": code})
        listed[code] = sorted(
            re.findall(
                r'name="_selected_action" value="([\w-]+)"', answer.content.decode()
            )
        )
    assert listed == {
        "silent": ["silent"], "starting": ["starting"], "sandbox-alone": ["alone", "orphan"],
        "sandbox-gone": ["no-sandbox"], "agent-missing": ["no-agent"], "runner": ["dead"],
    }  # fmt: skip
    assert site.get("agentdb/session/attention/", check="nothing").status == 404


def test_runner_that_ended_a_session_a_moment_ago_is_not_silent(site: Site):
    _session(site, "old", 40, status="active", runner_id="r1")
    _session(site, "done", 1, status="ended", runner_id="r1")

    (runner,) = Fleet(site.alias).runners

    assert (runner.active, runner.condition) == (1, "")


def test_rows_of_attention_are_for_those_who_may_see_the_table(site: Site):
    site.log_in(site.make_user("partial", "view_sandbox"))

    assert site.get("agentdb/session/attention/", check="unreadable").status == 200
    _session(site, "silent", 31, status="active", runner_id="r9")
    Sandbox.objects.using(site.alias).create(
        id="alone", agent_name="a", session_id="gone", state="running", workspace_dir="/w",
        last_used_at=timezone.now() - timedelta(minutes=80),
    )  # fmt: skip
    checks = {
        url.partition("check=")[2] for url, _ in site.get("").links if "check=" in url
    }
    assert checks == {"sandbox-alone"}
    assert site.get("agentdb/session/runner/", id="r1").status == 403


@pytest.mark.usefixtures("frozen_time")
def test_hours_count_what_was_opened_and_what_failed(site: Site):
    hour = timezone.now().replace(minute=0, second=0, microsecond=0)
    for number, (age, status) in enumerate(
        ((0, "active"), (2, "error"), (2, "ended"), (23, "error"), (24, "error"))
    ):
        at = hour - timedelta(hours=age)
        _session(
            site,
            f"s{number}",
            0,
            status=status,
            created_at=at,
            runner_id="r1" if number == 1 else None,
        )

    hours = figures.activity(connections[site.alias], 24)

    assert {(each.at, each.opened, each.failed) for each in hours if each.opened} == {
        (hour, 1, 0), (hour - timedelta(hours=2), 2, 1), (hour - timedelta(hours=23), 1, 1)
    }  # fmt: skip
    assert [each.at for each in hours] == [
        hour - timedelta(hours=age) for age in range(23, -1, -1)
    ]
    assert (
        sum(each.opened for each in figures.activity(connections[site.alias], 168)) == 5
    )
    assert (
        sum(
            each.opened
            for each in figures.activity(connections[site.alias], 24, runner_id="r1")
        )
        == 1
    )


@pytest.mark.parametrize(
    ("opened", "top", "middle"),
    [(0, 10, 5), (10, 10, 5), (11, 20, 10), (98, 100, 50), (1_386, 2_000, 1_000)],
)
def test_the_scale_of_the_chart_ends_at_a_round_number(
    opened: int, top: int, middle: int
):
    now = timezone.now()
    hours = [
        figures.Hour(now - timedelta(hours=3), opened // 2, 3),
        figures.Hour(now - timedelta(hours=2), opened // 2, 2),
        figures.Hour(now - timedelta(hours=1), opened, 1),
        figures.Hour(now, 0, 0),
    ]

    drawn = overview.chart(hours, lambda hour: f"/{now - hour}")

    whole = 2 * (opened // 2) + opened
    assert (drawn["most_opened"], drawn["half_opened"]) == (top, middle)
    assert drawn["most_failed"] == 10
    assert (drawn["opened"], drawn["failed"]) == (whole, 6)
    assert drawn["percent_failed"] == (f"{600 / whole:.1f} %" if opened else "")
    assert (drawn["last_full"], drawn["peak"].opened) == (hours[2], opened)
    bars = drawn["bars"]
    assert [x for _, x, _ in bars] == ["0.00%", "25.00%", "50.00%", "75.00%"]
    assert (drawn["step"], bars[1]) == ("25.00%", (hours[1], "25.00%", "/2:00:00"))


def test_values_of_a_newer_server_come_last_and_bars_are_shares_of_the_whole(
    site: Site,
):
    fill(site.alias, 12)
    Session.objects.using(site.alias).create(
        id="new", agent_name="a", sandbox_id="b", status="dreaming"
    )

    shares = figures.by_value(Session.objects.using(site.alias), "status")

    assert {value: str(figure) for value, figure in shares.items()} == {
        "starting": "3", "active": "3", "paused": "2", "ended": "2", "error": "2", "stopped": "0", "dreaming": "1"
    }  # fmt: skip
    bars = overview.share_bars(shares, "status", lambda status: "")
    percents = {value: percent for value, _, percent, _ in bars}
    assert (percents["active"], percents["stopped"]) == ("23.1", "0")


@pytest.mark.parametrize("engine", ["postgresql"], indirect=True)
def test_a_table_that_was_never_analyzed_is_not_estimated(site: Site):
    with connections[site.alias].cursor() as cursor:
        cursor.execute("TRUNCATE sessions")
    assert figures.estimated_rows(Session.objects.using(site.alias)) is None


def test_large_tables_are_estimated_or_counted_up_to_a_limit_and_say_so(
    site: Site, monkeypatch: pytest.MonkeyPatch
):
    fill(site.alias, 40)
    connection = connections[site.alias]
    with connection.cursor() as cursor:
        cursor.execute("ANALYZE sessions")
    monkeypatch.setattr(figures, "EXACT_UP_TO", 10)
    monkeypatch.setattr(figures, "WINDOW", 5)
    monkeypatch.setattr(figures, "_quickly", lambda *_: None)

    sessions = Session.objects.using(site.alias)
    figure = figures.total(sessions)
    shares = figures.by_value(sessions, "status")

    if connection.vendor == "sqlite":  # without statistics
        assert (str(figure), str(shares["active"])) == ("5+", "5+")
    else:
        assert (str(figure), str(shares["active"])) == ("≈ 40", "≈ 8")
    assert str(shares["stopped"]) == "0"


BREAKS = {
    "a renamed column": (
        "last_active_at",
        "ALTER TABLE sessions RENAME COLUMN last_active_at TO last_seen_at",
    ),
    "a dropped table": ("sandboxes", "DROP TABLE sandboxes"),
    "a dropped index": ("idx_sessions_tenant", "DROP INDEX idx_sessions_tenant"),
}


@pytest.mark.parametrize("what", BREAKS)
def test_overview_of_a_drifted_database_says_what_has_drifted(
    site: Site, superuser: User, what: str
):
    fill(site.alias, 5)
    with connections[site.alias].cursor() as cursor:
        cursor.execute(BREAKS[what][1])

    page = site.get("")

    assert page.status == 200
    assert "The schema has drifted; differences:" in page.text
    assert "agentdb verifydb" in page.text
    expected = {
        "a renamed column": "last_active_at",
        "a dropped table": "sandboxes",
        "a dropped index": "idx_sessions_tenant",
    }
    assert expected[what] in page.text
    assert page.link("Agents 5") == "/admin/agentdb/agent/"
    table = {"a renamed column": "session", "a dropped table": "sandbox"}.get(what)
    if table:
        broken = site.get(f"agentdb/{table}/")
        assert broken.status == {"session": 200, "sandbox": 503}[table]
        expected_text = {
            "session": "The table lacks a column: sessions.last_active_at.",
            "sandbox": "are not as agentdb expects them.",
        }
        assert expected_text[table] in broken.text
        assert "agentdb verifydb" in broken.text


def test_overview_names_missing_migrations(site: Site, superuser: User):
    with connections[site.alias].cursor() as cursor:
        cursor.execute("DROP TABLE sessions")
        cursor.execute(
            "DELETE FROM django_migrations WHERE app = 'agentdb' AND name LIKE '0004%%'",
            [],
        )

    page = site.get("")

    assert page.status == 200
    assert "The database lacks migrations: 1" in page.text
    assert "0004_" in page.text
    assert "agentdb migrate" in page.text


BAD_ROWS = {
    "sqlite": {
        "garbage": "UPDATE sessions SET last_active_at = 'garbage' WHERE id = 's0002'",
        "year 20000": "UPDATE sessions SET created_at = '20000-01-01 00:00:00' WHERE id = 's0002'",
        "no UTF-8": "UPDATE sessions SET agent_name = CAST(x'ff41' AS TEXT) WHERE id = 's0002'",
    },
    "postgresql": {
        "infinity": "UPDATE sessions SET last_active_at = 'infinity' WHERE id = 's0002'",
        "year 20000": "UPDATE sessions SET created_at = '20000-01-01 00:00:00Z' WHERE id = 's0002'",
    },
}
BAD_ROWS["cockroachdb"] = BAD_ROWS["postgresql"]


def test_one_bad_row_is_named_and_the_overview_opens(site: Site, superuser: User):
    fill(site.alias, 5)
    connection = connections[site.alias]
    for statement in BAD_ROWS[connection.vendor].values():
        with connection.cursor() as cursor:
            cursor.execute("DELETE FROM sessions WHERE id = 's0002'")
        Session.objects.using(site.alias).create(
            id="s0002", agent_name="a", sandbox_id="b", status="active"
        )
        with connection.cursor() as cursor:
            cursor.execute(statement)

        assert site.get("").status == 200, statement
        broken = site.get("agentdb/session/")
        assert "s0002" in broken.text, statement
        assert broken.status in (200, 503)


def test_question_is_cut_off_in_the_database_and_its_limits_are_taken_back(site: Site):
    connection = connections[site.alias]
    endless = "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n) SELECT COUNT(*) FROM n"
    slow = endless if connection.vendor == "sqlite" else "SELECT pg_sleep(300)"

    def question() -> None:
        with connection.cursor() as cursor:
            cursor.execute(slow)

    answer = questions.ask(connection, question, seconds=0.2)

    assert answer.problem is not None
    assert answer.problem.sentence.endswith(
        "did not answer in time, and the query was stopped."
    )
    with connection.cursor() as cursor:
        cursor.execute(
            "PRAGMA busy_timeout"
            if connection.vendor == "sqlite"
            else "SHOW statement_timeout"
        )
        assert cursor.fetchone()[0] in (30_000, "0")


def test_pausing_all_of_a_runner_asks_says_how_many_and_is_written_down(
    site: Site, superuser: User, caplog: pytest.LogCaptureFixture
):
    fill(site.alias, 20)
    caplog.set_level("INFO", logger="agentdb.audit")

    page = site.get("agentdb/session/runner/", id="runner-1")

    live = (
        Session.objects.using(site.alias)
        .filter(runner_id="runner-1", status__in=["active", "starting"])
        .count()
    )
    assert live
    assert f"Pause all {live}…" in page.text
    path = "agentdb/session/?runner_id=runner-1"
    address = "/admin/agentdb/session/runner/?id=runner-1"
    question = site.post(
        path, action="pause_sessions", headers={"Referer": address}, **fields(page)
    )
    assert f"Pause {live} session" in question.text
    answer = site.post(path, **fields(question))
    assert f"Paused {live} session" in answer.text
    assert "Skipped" not in answer.text
    assert "Undo" in answer.text
    assert answer.link("Go back") == address
    again = site.post(path, action="pause_sessions", **fields(page))
    assert "None of these sessions can be changed." in again.text
    assert (
        not Session.objects.using(site.alias)
        .filter(runner_id="runner-1", status__in=["active", "starting"])
        .count()
    )
    line = audited(caplog)[-1]
    assert (line["user"], line["action"], line["rows"], line["outcome"]) == (
        "root", "pause", live, "done"
    )  # fmt: skip
    assert set(line["before"].values()) <= {"active", "starting"}
    site.log_in_viewer()
    viewed = site.get("agentdb/session/runner/", id="runner-2")
    assert "Pause all" not in viewed.text
    assert site.post(path, action="pause_sessions", **fields(page)).status == 403
    assert audited(caplog)[-1]["outcome"] == "refused"


def test_pausing_all_of_a_large_runner_goes_on_until_none_is_live(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr("agentdb.admin.actions.BATCH", 2)
    for number in range(5):
        _session(site, f"live{number}", 1, status="active", runner_id="r1")
    _session(site, "others", 1, status="active", runner_id="r2")
    _session(site, "ended", 1, status="ended", runner_id="r1")
    path = "agentdb/session/?runner_id=r1"
    runner = site.get("agentdb/session/runner/", id="r1")

    page = site.post(path, action="pause_sessions", **fields(runner))
    page = site.post(path, **fields(page))
    assert "Paused 2 sessions of 5; the rest follows" in page.text
    while "data-send-on" in page.html:
        page = site.post(path, **fields(page))

    assert "Paused 5 sessions" in page.text
    assert "Undo" in page.text
    live = Session.objects.using(site.alias).live()
    assert list(live.values_list("pk", flat=True)) == ["others"]


def test_a_runners_live_sessions_are_counted_however_old_they_are(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(figures, "WINDOW", 1)
    for number in range(3):
        _session(site, f"ended{number}", 1, status="ended", runner_id="r1")
    for number in range(2):
        _session(site, f"live{number}", 60, status="active", runner_id="r1")

    assert "Pause all 2…" in site.get("agentdb/session/runner/", id="r1").text


@pytest.mark.parametrize("runner_id", ["", "é" * 6_000])
def test_the_sessions_of_a_runner_that_no_list_filters_by_cannot_be_paused(
    site: Site, superuser: User, runner_id: str
):
    _session(site, "stored by hand", 1, status="active", runner_id=runner_id)
    _session(site, "others", 1, status="active", runner_id="r2")

    assert "Pause all" in site.get("agentdb/session/runner/", id="r2").text
    page = site.get("agentdb/session/runner/", id=runner_id)
    assert "stored by hand" in page.html
    assert "Pause all" not in page.text


def test_overview_in_the_terminal_gives_the_same_answers(
    site: Site, capsys: pytest.CaptureFixture[str]
):
    call_command("overview", database=site.alias)
    assert "Nothing needs attention." in capsys.readouterr().out

    _session(site, "silent", 31, status="active", runner_id="r9")
    with pytest.raises(SystemExit) as ended:
        call_command("overview", "--json", database=site.alias)
    report = json.loads(capsys.readouterr().out)

    assert ended.value.code == 1
    assert {each["code"]: each["count"] for each in report["attention"] if each["count"]} == {
        "runner": 1, "agent-missing": 1
    }  # fmt: skip
    assert report["totals"]["sessions"] == {
        "rows": 1,
        "estimated": False,
        "at_least": False,
    }
    assert report["runners"][0]["condition"] == "silent"
    assert len(report["activity"]) == 24


@pytest.mark.parametrize("engine", ["sqlite"])
def test_a_danger_to_the_file_leads_to_no_page(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(attention, "file_concern", lambda path: "It is on NFS.")
    fill(site.alias, 1)

    page = site.get("")

    assert "It is on NFS." in page.text
    assert "check=file_system" not in page.html


@pytest.mark.parametrize("engine", ["sqlite"])
def test_overview_in_the_terminal_makes_no_file_at_a_misspelt_path(
    engine: str, tmp_path: Path
):
    result = subprocess.run(
        [sys.executable, "-m", "agentdb", "--url", f"sqlite:///{tmp_path}/no.db", "overview"],
        env={name: value for name, value in os.environ.items() if name != "DJANGO_SETTINGS_MODULE"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip

    assert result.returncode == 2
    assert "does not exist. Check the database URL" in result.stdout
    assert list(tmp_path.iterdir()) == []


@pytest.mark.usefixtures("frozen_time")
def test_hours_are_utc_whatever_the_time_zone_of_the_project(
    site: Site, superuser: User, settings: Any
):
    settings.TIME_ZONE = "America/Chicago"
    Session.objects.using(site.alias).create(
        id="s1", agent_name="bot", sandbox_id="b1", runner_id="r1"
    )
    now = timezone.now()

    page, runner = site.get(""), site.get("agentdb/session/runner/", id="r1")
    listed = site.get("agentdb/session/")

    hours = {f"{now - timedelta(minutes=1):%H}", f"{timezone.now():%H}"}
    for each in (page, listed):
        assert set(re.findall(r"as of (\d\d):\d\d:\d\d UTC", each.text)) <= hours
        assert "as of" in each.text
    assert set(re.findall(r"(\d\d):\d\d:\d\d UTC", runner.text)) <= hours
    assert re.search(r"1 at (\d\d):00", page.text)[1] in hours  # type: ignore[index]


def test_a_sample_is_called_one_only_where_there_are_more_sessions(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    fill(site.alias, 5)

    assert "Of the newest" not in site.get("").text
    monkeypatch.setattr(overview, "NEWEST", 4)
    assert "Of the newest 4 sessions." in site.get("").text


def test_rows_that_cannot_be_read_are_listed(site: Site, superuser: User):
    _session(site, "good", 1)
    _session(site, "bad", 2)
    odd = "not-a-date" if connections[site.alias].vendor == "sqlite" else "infinity"
    with connections[site.alias].cursor() as cursor:
        cursor.execute("UPDATE sessions SET created_at = %s WHERE id = 'bad'", [odd])

    page = site.get("agentdb/session/attention/", check="unreadable")

    assert page.status == 200
    [row] = re.findall(r'<li class="agentdb-wrap">(.*?)</li>', page.html, re.DOTALL)
    assert "bad" in row
    assert "created_at" in row


def test_agents_page_links_what_belongs_to_it_as_far_as_the_user_may_look(
    site: Site, superuser: User
):
    agent = Agent.objects.using(site.alias).create(tenant_id="t", name="a", path="/a")
    rows = site.get("agentdb/agent/").links
    page = site.get(f"agentdb/agent/{agent.pk}/change/")
    site.log_in(site.make_user("partial", "view_agent", "view_session"))
    partial = site.get(f"agentdb/agent/{agent.pk}/change/")

    for listed, linked in (
        (rows, {"/admin/agentdb/session/"}),
        (page.links, {"/admin/agentdb/session/", "/admin/agentdb/sandbox/"}),
    ):
        urls = {
            url.partition("?")[0]
            for url, _ in listed
            if "agent_name=a" in url and "tenant_id=t" in url
        }
        assert urls == linked
    assert ("Its sandboxes" in page.text, "Its sandboxes" in partial.text) == (
        True,
        False,
    )
    assert "Its newest sessions" in partial.text


def test_each_page_leads_to_the_tables_that_the_user_may_see(site: Site):
    site.log_in(site.make_user("partial", "view_session", "view_agent"))

    html = site.get("agentdb/session/", status="active").html

    nav = html.partition('<nav class="agentdb-nav"')[2].partition("</nav>")[0]
    assert re.findall(r'<a href="(.*?)"( aria-current="page")?>(.*?)</a>', nav) == [
        ("/admin/", "", "Overview"),
        ("/admin/agentdb/session/", ' aria-current="page"', "Sessions"),
        ("/admin/agentdb/agent/", "", "Agents"),
    ]
    site.client.logout()
    assert "agentdb-nav" not in site.get("").html
    site.log_in(site.make_user("nobody"))
    assert "agentdb-nav" not in site.get("").html
