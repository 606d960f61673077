"""The overview in the terminal: every line and every field of a fleet in which each check finds something."""

from __future__ import annotations

import io
import json
import sqlite3
from contextlib import closing
from datetime import timedelta
from typing import Any

import pytest
from django.core.management import call_command
from django.db import connections
from django.utils import timezone

import agentdb
from agentdb.console import checks as console_checks
from agentdb.console.checks import Finding, Fleet, Runner, check_of
from agentdb.models import Agent, Sandbox, Session
from agentdb.serving.opening import temporary_alias
from tests.helpers.admin_fixtures import Site
from tests.helpers.legacy_databases import sqlite_path

pytestmark = pytest.mark.usefixtures("frozen_time")


def _session(site: Site, id: str, minutes: float, **values: Any) -> None:
    at = timezone.now() - timedelta(minutes=minutes)
    defaults: dict[str, Any] = {"agent_name": "bot", "sandbox_id": ""}
    times = {"created_at": at, "last_active_at": at}
    Session.objects.using(site.alias).create(id=id, **defaults | times | values)


def _sandbox(site: Site, id: str, minutes: float, **values: Any) -> None:
    at = timezone.now() - timedelta(minutes=minutes)
    Sandbox.objects.using(site.alias).create(
        id=id,
        agent_name="bot",
        workspace_dir="/w",
        created_at=at,
        last_used_at=at,
        **values,
    )


def _everything_is_wrong(site: Site, times: int) -> None:
    """Each check but that of failures finds so many rows, the later of them a minute older."""
    Agent.objects.using(site.alias).create(name="bot", path="/bot")
    for n in range(times):
        _session(site, f"dead-{n}", 40 + n, status="active", runner_id=f"r{n}")
        _session(site, f"silent-{n}", 50 + n, status="active")
        _session(site, f"start-{n}", 10 + n, status="starting")
        _session(site, f"gone-{n}", 3 + n, status="active", sandbox_id="none")
        _session(site, f"lost-{n}", 2 + n, status="active", tenant_id="acme")
        _sandbox(site, f"alone-{n}", 20 + n, state="running", session_id="missing")


LINES = {
    1: """
       1  runner is silent (r0, 40 min ago; 1 live session)
       1  active session without a sign of life for 30 min (the oldest: 50 min ago)
       1  session starting for more than 5 min (the oldest: 10 min ago)
       1  sandbox is up, and no session needs it (the oldest: 20 min ago, all with session missing)
       1  live session whose sandbox is gone (the oldest: 3 min ago)
       1  live session names an agent that is missing (the oldest: 2 min ago, all of agent bot)
sessions   5
sandboxes  1
agents     1
api_keys   0
statuses   starting 1, active 4, paused 0, ended 0, error 0, stopped 0
states     cold 0, warming 0, warm 0, waiting 0, running 1
last 24 h  5 sessions opened, 0 failed
runner r0: silent, last sign of life 40 min ago, 1 active, 0 starting
""",
    2: """
       2  runners are silent (r0, 40 min ago, …; 2 live sessions)
       2  active sessions without a sign of life for 30 min (the oldest: 51 min ago)
       2  sessions starting for more than 5 min (the oldest: 11 min ago)
       2  sandboxes are up, and no session needs them (the oldest: 21 min ago, all with session missing)
       2  live sessions whose sandbox is gone (the oldest: 4 min ago)
       2  live sessions name an agent that is missing (the oldest: 3 min ago, all of agent bot)
sessions   10
sandboxes  2
agents     1
api_keys   0
statuses   starting 2, active 8, paused 0, ended 0, error 0, stopped 0
states     cold 0, warming 0, warm 0, waiting 0, running 2
last 24 h  10 sessions opened, 0 failed
runner r0: silent, last sign of life 40 min ago, 1 active, 0 starting
runner r1: silent, last sign of life 41 min ago, 1 active, 0 starting
""",
}


def _overview(site: Site, *arguments: str) -> int:
    with pytest.raises(SystemExit) as ended:
        call_command("overview", *arguments, database=site.alias)
    assert isinstance(ended.value.code, int)
    return ended.value.code


@pytest.mark.parametrize("times", LINES)
def test_every_line_of_an_overview(
    site: Site, capsys: pytest.CaptureFixture[str], times: int
) -> None:
    _everything_is_wrong(site, times)

    assert _overview(site) == 1

    first, _, rest = capsys.readouterr().out.partition("\n")
    assert first.endswith(f", as of {timezone.now():%Y-%m-%d %H:%M:%S} UTC")
    assert rest == LINES[times].lstrip("\n")


def _found(
    code: str, title: str, count: int = 0, detail: str = "", *, urgent: bool = False
) -> dict[str, Any]:
    return {
        "code": code,
        "title": title,
        "count": count,
        "at_least": False,
        "urgent": urgent,
        "detail": detail,
        "problem": None,
    }


def _rows(number: int) -> dict[str, Any]:
    return {"rows": number, "estimated": False, "at_least": False}


def test_every_field_of_an_overview(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    _everything_is_wrong(site, 1)
    # The only time of this runner cannot be right, so that it has given no sign of life.
    _session(site, "ahead", -2 * 24 * 60, status="starting", runner_id="r1")
    _session(site, "well", 0, status="active", runner_id="r2")
    _session(site, "quiet", 6, status="active", runner_id="r3")
    _session(site, "failed", 0, status="error")

    assert _overview(site, "--json") == 1

    said = json.loads(capsys.readouterr().out)
    now = timezone.now()
    hour = now.replace(minute=0, second=0, microsecond=0)
    activity = said.pop("activity")
    assert [each["hour"] for each in activity] == [
        (hour - timedelta(hours=age)).isoformat() for age in range(23, -1, -1)
    ]
    assert [list(each) for each in activity] == [["hour", "opened", "failed"]] * 24
    assert sum(each["opened"] for each in activity) == 8
    assert [each["failed"] for each in activity] == [0] * 23 + [1]
    connection = connections[site.alias]
    assert said.pop("engine").split()[0] == connection.display_name
    name = str(connection.settings_dict["NAME"])
    place = name if connection.vendor == "sqlite" else f"{name!r} at "
    assert said.pop("place").startswith(place)
    assert said == {
        "format": 1,
        "at": now.isoformat(),
        "attention": [
            _found("failing", "Failing far more often than usual"),
            _found("runner", "Runner silent for 10 min", 2, "r0, 40 min ago, …; 2 live sessions", urgent=True),
            _found(
                "silent", "Active, no sign of life for 30 min", 1, "the oldest: 50 min ago", urgent=True
            ),
            _found("starting", "Starting for more than 5 min", 1, "the oldest: 10 min ago", urgent=True),
            _found(
                "sandbox-alone", "Sandbox up, no session needs it", 1,
                "the oldest: 20 min ago, all with session missing",
            ),
            _found("sandbox-gone", "Session live, sandbox gone", 1, "the oldest: 3 min ago"),
            _found("agent-missing", "Agent named and missing", 1, "the oldest: 2 min ago, all of agent bot"),
            _found("pending", "Migrations pending", urgent=True),
            _found("drift", "Schema drift", urgent=True),
            _found("unreadable", "Rows that cannot be read", urgent=True),
        ],
        "totals": {"sessions": _rows(9), "sandboxes": _rows(1), "agents": _rows(1), "api_keys": _rows(0)},
        "sessions_by_status": {
            "starting": _rows(2), "active": _rows(6), "paused": _rows(0), "ended": _rows(0), "error": _rows(1),
            "stopped": _rows(0),
        },
        "sandboxes_by_state": {
            "cold": _rows(0), "warming": _rows(0), "warm": _rows(0), "waiting": _rows(0), "running": _rows(1),
        },
        "runners": [
            {"id": "r0", "condition": "silent", "last_sign_of_life": (now - timedelta(minutes=40)).isoformat(),
             "active": 1, "starting": 0},
            {"id": "r1", "condition": "silent", "last_sign_of_life": None, "active": 0, "starting": 1},
            {"id": "r2", "condition": "ok", "last_sign_of_life": now.isoformat(), "active": 1, "starting": 0},
            {"id": "r3", "condition": "ok", "last_sign_of_life": (now - timedelta(minutes=6)).isoformat(),
             "active": 1, "starting": 0},
        ],
    }  # fmt: skip


def test_what_is_urgent_comes_first(
    site: Site, capsys: pytest.CaptureFixture[str]
) -> None:
    _everything_is_wrong(site, 1)
    odd = "not-a-date" if connections[site.alias].vendor == "sqlite" else "infinity"
    _session(site, "odd", 3, status="paused")
    with connections[site.alias].cursor() as cursor:
        cursor.execute("UPDATE sessions SET created_at = %s WHERE id = 'odd'", [odd])

    _overview(site)

    lines = capsys.readouterr().out.splitlines()[1:8]
    assert [line.split("  ")[-1].split(" (")[0] for line in lines] == [
        "runner is silent",
        "active session without a sign of life for 30 min",
        "session starting for more than 5 min",
        "row cannot be read",
        "sandbox is up, and no session needs it",
        "live session whose sandbox is gone",
        "live session names an agent that is missing",
    ]


def test_groups_of_rows_are_shown_up_to_two_and_the_largest_first(site: Site) -> None:
    Agent.objects.using(site.alias).create(name="bot", path="/bot")
    for number, runner in enumerate(["a", "b", "b", "c", "c", "c", None]):
        _session(site, f"s{number}", 31, status="active", runner_id=runner)
    _session(site, "fresh", 1, status="active", runner_id="a")
    for alive in "bc":
        _session(site, alive, 0, status="ended", runner_id=alive)

    finding = _finding(site, "silent")

    assert finding.detail == "the oldest: 31 min ago, 3 on c, 2 on b, …"
    Session.objects.using(site.alias).filter(runner_id="a").delete()
    finding = _finding(site, "silent")
    assert finding.detail == "the oldest: 31 min ago, 3 on c, 2 on b"


def test_rows_of_a_check_are_counted_up_to_a_limit(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console_checks, "CAP", 3)
    found = []
    for number in range(5):
        _session(site, f"s{number}", 9, status="starting")
        found.append(_finding(site, "starting"))

    oldest = "the oldest: 9 min ago"
    assert [(each.shown, each.at_least, each.detail) for each in found] == [
        ("1", False, oldest),
        ("2", False, oldest),
        ("3", False, oldest),
        ("3+", True, ""),
        ("3+", True, ""),
    ]


def _finding(site: Site, code: str) -> Finding:
    check = check_of(code)
    assert check is not None
    return check.find_in(check, Fleet(site.alias))


LIMITS: list[tuple[str, int, list[bool], dict[str, Any]]] = [
    ("silent", 30, [False, False, True], {"status": "active"}),
    ("silent", -24 * 60, [True, False, False], {"status": "active"}),
    ("starting", 5, [False, False, True], {"status": "starting"}),
    ("starting", -24 * 60, [True, False, False], {"status": "starting"}),
    ("sandbox-gone", 1, [False, False, True], {"status": "active", "sandbox_id": "x"}),
    ("agent-missing", 1, [False, False, True], {"status": "active", "agent_name": "x"}),
    ("runner", 10, [False, False, True], {"status": "active", "runner_id": "x"}),
    ("runner", -24 * 60, [True, False, False], {"status": "active", "runner_id": "x"}),
]


def test_a_session_is_found_from_the_second_after_the_limit(site: Site) -> None:
    Agent.objects.using(site.alias).create(name="bot", path="/bot")
    found = []
    for code, limit, _, values in LIMITS:
        each = []
        for seconds in (-1, 0, 1):
            _session(site, "s", limit + seconds / 60, **values)
            each.append(_finding(site, code).count == 1)
            Session.objects.using(site.alias).all().delete()
        found.append((code, limit, each))

    assert found == [(code, limit, is_over) for code, limit, is_over, _ in LIMITS]


@pytest.mark.parametrize(
    ("seconds", "condition"),
    [
        (0, ""),
        (10 * 60, ""),
        (10 * 60 + 1, "silent"),
        (None, "silent"),
    ],
)
def test_a_runner_is_silent_after_ten_minutes(
    seconds: int | None, condition: str
) -> None:
    seen = None if seconds is None else timezone.now() - timedelta(seconds=seconds)

    assert Runner("r", seen, 1, 0).condition == condition
    assert Runner("r", seen, 0, 1).condition == condition
    assert Runner("r", seen, 0, 0).condition == ""


@pytest.mark.parametrize("engine", ["sqlite"])
@pytest.mark.parametrize("command", ["overview", "verifydb"])
def test_looking_at_a_file_leaves_every_byte_of_it_and_its_folder_as_it_was(
    url: str, engine: str, command: str
) -> None:
    agentdb.connect(url).close()
    path = sqlite_path(url)
    with closing(sqlite3.connect(path)) as connection:
        connection.execute("PRAGMA journal_mode = DELETE")
    before, beside = path.read_bytes(), sorted(path.parent.iterdir())

    with temporary_alias(url) as alias:
        call_command(command, database=alias, stdout=io.StringIO())

    assert path.read_bytes() == before
    assert sorted(path.parent.iterdir()) == beside
