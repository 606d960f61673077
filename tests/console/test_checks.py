"""Each check: a problem that is there and one that is not, beside what is said of it."""

from __future__ import annotations

import json
from datetime import timedelta
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.core.management import call_command
from django.db import connections
from django.utils import timezone

from agentdb.console import failures, figures
from agentdb.console.checks import Finding, Fleet, Runner, checks
from agentdb.console.failures import Group, is_far_above
from agentdb.console.groups import changes
from agentdb.console.questions import Budget
from agentdb.console.report import examine
from agentdb.models import Agent, Sandbox, Session
from tests.helpers.admin_fixtures import Site, fields

MINUTE, HOUR = 60, 3_600


@pytest.fixture
def fleet(site: Site) -> Site:
    """A database whose agent "bot" exists."""
    Agent.objects.using(site.alias).create(name="bot", path="/bot")
    return site


def sessions(
    site: Site,
    number: int = 1,
    *,
    age: float = 0,
    opened: float | None = None,
    **values: Any,
) -> list[str]:
    """Sessions that were active ``age`` seconds ago; their sandboxes exist, if they name any."""
    begin = Session.objects.using(site.alias).count()
    now = timezone.now()
    defaults = {"agent_name": "bot", "sandbox_id": "", "status": "active"}
    rows = [
        Session(**{
            "id": f"s{begin + each}", **defaults, **values, "last_active_at": now - timedelta(seconds=age),
            "created_at": now - timedelta(seconds=age if opened is None else opened),
        })
        for each in range(number)
    ]  # fmt: skip
    Session.objects.using(site.alias).bulk_create(rows)
    return [row.id for row in rows]


def sandbox(
    site: Site, state: str, session_id: str | None, age: float = 5 * MINUTE
) -> str:
    at = timezone.now() - timedelta(seconds=age)
    number = Sandbox.objects.using(site.alias).count()
    Sandbox.objects.using(site.alias).create(
        id=f"b{number}",
        agent_name="bot",
        session_id=session_id,
        state=state,
        workspace_dir="/w",
        last_used_at=at,
    )
    return f"b{number}"


def found(site: Site) -> dict[str, Finding]:
    return {
        each.code: each for each in examine(Budget(connections[site.alias])).findings
    }


def said(site: Site) -> dict[str, int]:
    return {code: each.count for code, each in found(site).items() if each.count}


# -- failures

USUAL: dict[str, Any] = {"age": 3 * 3600, "status": "ended"}


def test_an_hour_in_which_everything_failed_is_the_first_thing_to_say(fleet: Site):
    sessions(fleet, 300, **USUAL)
    sessions(fleet, 6, age=3 * 3600, status="error")
    sessions(fleet, 108, age=10 * MINUTE, status="error")

    report = examine(Budget(connections[fleet.alias]))

    assert [(each.code, each.count) for each in report.wrong] == [("failing", 108)]
    assert report.wrong[0].detail == "all sessions: 108 of 108, usually 2.0 %"
    check = next(check for check in checks() if check.code == "failing")
    assert check.counted(Fleet(fleet.alias)).count() == 108


@pytest.mark.parametrize(
    ("lately", "usually", "far"),
    [
        ((108, 108), (306, 6), True),
        ((100, 2), (1000, 20), False),
        ((100, 30), (1000, 300), False),  # it is always like that, which the chart says
        ((40, 20), (1000, 600), True),  # half of all is never usual
        ((4, 4), (1000, 0), False),
        ((5, 5), (1000, 0), True),
        ((5, 5), (0, 0), True),
        ((1000, 25), (1000, 10), False),
        ((1000, 28), (1000, 10), False),
        ((1000, 29), (1000, 10), True),  # once in 160,000 hours by chance
        ((10, 5), (1000, 600), True),
        ((9, 5), (1000, 600), False),
        ((9, 9), (30, 30), False),
        ((1000, 200), (10_000, 1000), True),  # exactly twice
        ((0, 0), (0, 0), False),
    ],
)
def test_failures_are_far_above_the_usual_if_chance_does_not_explain_them(
    lately: tuple[int, int], usually: tuple[int, int], far: bool
):
    group = Group((), *lately, *usually)

    assert is_far_above(group, group) is far


@pytest.mark.parametrize(("sessions_before", "far"), [(19, True), (20, False)])
def test_a_group_that_was_rarely_used_is_measured_by_the_usual_share_of_all(
    sessions_before: int, far: bool
):
    group = Group(
        (("agent_name", "bot"),), 100, 40, sessions_before, sessions_before // 2
    )
    whole = Group((), 1000, 40, 1000, 10)

    assert is_far_above(group, whole) is far


def test_older_sessions_are_measured_by_what_older_ones_did_before(fleet: Site):
    morning = {"opened": 5 * 3600}
    sessions(fleet, 90, **morning, age=3 * 3600, status="ended")
    sessions(fleet, 10, **morning, age=3 * 3600, status="error")
    sessions(fleet, 100, **morning, age=2 * 3600, status="active")
    sessions(fleet, 20, **morning, age=10 * MINUTE, status="ended")
    sessions(fleet, 40, **morning, age=MINUTE, status="active")
    sessions(fleet, 40, **morning, age=10 * MINUTE, status="error")

    finding = found(fleet)["failing"]

    assert (finding.count, finding.detail) == (
        40,
        "all sessions: 40 of 100, usually 5.0 %",
    )


@pytest.mark.parametrize(("age", "failed"), [(3570, 108), (3630, 0)])
def test_an_hour_has_sixty_minutes(fleet: Site, age: int, failed: int):
    sessions(fleet, 300, **USUAL)
    sessions(fleet, 108, age=age, status="error")

    assert found(fleet)["failing"].count == failed


def test_failures_of_one_agent_or_tenant_are_seen_among_many_that_work(fleet: Site):
    sessions(fleet, 900, **USUAL)
    sessions(fleet, 400, age=10 * MINUTE, status="ended")
    sessions(fleet, 12, age=10 * MINUTE, status="error", agent_name="broken")
    assert found(fleet)["failing"].detail == "agent broken: 12 of 12"

    sessions(fleet, 9, age=10 * MINUTE, status="error", tenant_id="acme")

    finding = found(fleet)["failing"]
    assert (finding.count, finding.detail) == (
        21,
        "agent broken: 12 of 12; tenant acme: 9 of 9",
    )
    check = next(check for check in checks() if check.code == "failing")
    assert check.counted(Fleet(fleet.alias)).count() == 21


@pytest.mark.parametrize("agents", [3, 4])
def test_a_few_agents_that_fail_are_named_and_more_have_a_common_cause(
    fleet: Site, agents: int
):
    sessions(fleet, 300, **USUAL)
    sessions(fleet, 200, age=10 * MINUTE, status="ended")
    sizes = {f"broken-{number}": 30 - number for number in range(agents)}
    for agent, size in sizes.items():
        sessions(fleet, size, age=10 * MINUTE, status="error", agent_name=agent)

    finding = found(fleet)["failing"]

    failed = sum(sizes.values())
    named = "; ".join(
        f"agent {agent}: {size} of {size}" for agent, size in sizes.items()
    )
    together = f"all sessions: {failed} of {200 + failed}, usually 0.0 %"
    assert finding.count == failed
    assert finding.detail == (named if agents == 3 else together)


def test_sessions_of_the_morning_that_fail_now_are_failures_of_now(fleet: Site):
    sessions(fleet, 300, **USUAL)
    sessions(fleet, 40, age=10 * MINUTE, opened=5 * 3600, status="error")

    assert said(fleet) == {"failing": 40}


def test_failures_of_sessions_opened_long_before_the_newest_are_said(
    fleet: Site, monkeypatch: pytest.MonkeyPatch
):
    sessions(fleet, 60, age=3 * 3600, status="ended")
    sessions(fleet, 8, age=10 * MINUTE, opened=86_400, status="error", tenant_id="acme")
    monkeypatch.setattr(failures, "SAMPLE", 50)

    assert found(fleet)["failing"].detail == "tenant acme: 8 of 8"


def test_failures_among_many_old_sessions_that_go_on_are_not_said(
    fleet: Site, monkeypatch: pytest.MonkeyPatch
):
    sessions(fleet, 60, age=3 * 3600, status="ended")
    sessions(fleet, 100, age=10, opened=86_400, tenant_id="acme")
    sessions(fleet, 5, age=10 * MINUTE, opened=86_400, status="error", tenant_id="acme")
    monkeypatch.setattr(failures, "SAMPLE", 50)

    assert found(fleet)["failing"].count == 0


def test_new_failures_are_seen_beside_many_old_sessions_that_go_on(fleet: Site):
    sessions(fleet, 300, **USUAL)
    sessions(fleet, 1000, age=10, opened=86_400)
    sessions(fleet, 10, age=10 * MINUTE, status="error")

    assert found(fleet)["failing"].detail == "all sessions: 10 of 10, usually 0.0 %"


def test_sessions_that_ended_count_beside_those_that_failed(fleet: Site):
    sessions(fleet, 300, **USUAL)
    sessions(fleet, 294, age=55 * MINUTE, opened=80 * 60, status="ended")
    sessions(fleet, 6, age=55 * MINUTE, opened=80 * 60, status="error")

    assert said(fleet) == {}


def test_failures_of_yesterday_are_not_said(fleet: Site):
    sessions(fleet, 100, age=20 * 3600, status="error")
    sessions(fleet, 100, age=10 * MINUTE, status="ended")

    assert said(fleet) == {}


# -- runners


def test_a_dead_runner_and_its_sessions_are_one_line(fleet: Site):
    sessions(fleet, 60, age=31 * MINUTE, runner_id="dead")
    sessions(fleet, 2, age=31 * MINUTE, runner_id="dead", status="starting")
    sessions(fleet, 5, runner_id="well")

    finding = found(fleet)["runner"]

    assert said(fleet) == {"runner": 1}
    assert (finding.detail, finding.runner) == (
        "dead, 31 min ago; 62 live sessions",
        "dead",
    )


def test_pausing_some_or_all_of_a_dead_runners_sessions_is_no_sign_of_its_life(
    fleet: Site, superuser: User
):
    ids = sessions(fleet, 62, age=31 * MINUTE, runner_id="dead")
    for id in ids:
        sandbox(fleet, "running", id)

    fleet.confirm("agentdb/session/", "pause_sessions", ids[:1])

    assert said(fleet) == {"runner": 1, "sandbox-alone": 1}
    undone = fleet.post(
        "agentdb/session/undo/",
        lines=json.dumps({"action": "pause", "before": {ids[0]: "active"}}),
    )
    assert "Resumed 1 session" in undone.text
    assert said(fleet) == {"runner": 1}
    fleet.confirm("agentdb/session/", "pause_sessions", ids[:1])
    assert "31 min ago" in found(fleet)["runner"].detail
    page = fleet.get("agentdb/session/runner/", id="dead")
    assert "silent" in page.text
    assert "31 min ago" in page.text
    asked = fleet.post(
        "agentdb/session/?runner_id=dead", action="pause_sessions", **fields(page)
    )
    fleet.post("agentdb/session/?runner_id=dead", **fields(asked))
    sandboxes_whose = found(fleet)["sandbox-alone"]
    assert Session.objects.using(fleet.alias).live().count() == 0
    assert (sandboxes_whose.count, sandboxes_whose.detail.partition(", ")[2]) == (
        62,
        "all with session paused",
    )


@pytest.mark.parametrize(
    ("status", "is_sign"),
    [
        ("active", True),
        ("starting", True),
        ("ended", True),
        ("paused", False),
        ("error", False),
        ("stopped", False),
    ],
)
def test_what_the_runner_itself_writes_is_its_sign_of_life(
    fleet: Site, status: str, is_sign: bool
):
    sessions(fleet, 3, age=40 * MINUTE, runner_id="r")
    sessions(fleet, 1, age=20, runner_id="r", status=status)

    (runner,) = Fleet(fleet.alias).runners

    assert runner.condition == ("" if is_sign else "silent")
    assert Fleet(fleet.alias).runner("r") == runner


def test_of_the_runners_that_look_silent_a_hundred_are_asked_for_what_they_ended(
    fleet: Site,
):
    now = timezone.now()
    Session.objects.using(fleet.alias).bulk_create(
        Session(
            id=f"{status}-{number}",
            agent_name="bot",
            sandbox_id="",
            runner_id=f"r{number}",
            status=status,
            created_at=now,
            last_active_at=now - timedelta(seconds=age),
        )
        for number in range(101)
        for status, age in (("active", HOUR - number), ("ended", 60))
    )

    # The longest silent are asked first.
    assert Fleet(fleet.alias).silent_runners == ["r100"]


def test_a_sign_of_life_is_searched_among_a_runners_500_newest_sessions(fleet: Site):
    sessions(fleet, 1, age=60, opened=9000, runner_id="r", status="ended")
    sessions(fleet, 499, age=60, opened=8000, runner_id="r", status="paused")
    assert Fleet(fleet.alias).runner("r").seen_at is not None

    sessions(fleet, 1, age=60, opened=7000, runner_id="r", status="paused")

    assert Fleet(fleet.alias).runner("r") == Runner("r", None, 0, 0)


# -- sessions


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ({"age": 31 * MINUTE}, {"silent": 1}),
        ({"age": 29 * MINUTE}, {}),
        ({"age": 31 * MINUTE, "status": "paused"}, {}),
        ({"age": -2 * 86_400}, {"silent": 1}),  # a clock that is wrong tells nothing
        ({"age": -3 * MINUTE}, {}),
        ({"age": 6 * MINUTE, "status": "starting"}, {"starting": 1}),
        ({"age": -2 * 86_400, "status": "starting"}, {"starting": 1}),
        ({"age": 23, "opened": 10 * 86_400, "status": "starting"}, {}),
        ({"age": 2 * MINUTE, "sandbox_id": "gone"}, {"sandbox-gone": 1}),
        ({"age": 20, "sandbox_id": "not-yet"}, {}),
        ({"age": 2 * MINUTE, "sandbox_id": "gone", "status": "ended"}, {}),
        ({"age": 2 * MINUTE, "agent_name": "retired"}, {"agent-missing": 1}),
        ({"age": 2 * MINUTE, "tenant_id": "other"}, {"agent-missing": 1}),
        ({"age": 2 * MINUTE, "agent_name": "retired", "status": "paused"}, {}),
    ],
)
def test_sessions_and_what_is_said_of_them(
    fleet: Site, superuser: User, values: dict[str, Any], expected: dict[str, int]
):
    (id,) = sessions(fleet, **values)

    assert said(fleet) == expected
    # The page of the row has the rule of the check.
    assert (
        "agentdb-finding" in fleet.get(f"agentdb/session/{id}/change/").html
    ) is bool(expected)


def test_a_time_still_to_come_is_not_called_the_oldest(fleet: Site):
    sessions(fleet, age=-2 * 86_400)
    assert found(fleet)["silent"].detail == ""

    sessions(fleet, age=40 * MINUTE)
    assert found(fleet)["silent"].detail == "the oldest: 40 min ago"


# -- sandboxes


@pytest.mark.parametrize(
    ("state", "status", "age", "session_age", "is_said"),
    [
        ("running", "none", 5, 5, True),
        ("running", "missing", 5, 5, True),
        ("running", "paused", 5, 5, True),
        ("running", "ended", 5, 5, True),
        ("running", "error", 5, 5, True),
        ("running", "stopped", 5, 5, True),
        ("running", "active", 5, 5, False),
        ("running", "starting", 5, 4, False),
        ("running", "ended", 5, 0.2, False),  # the server has not come to it yet
        ("running", "none", 0.2, 5, False),
        ("running", "missing", 0.2, 5, False),
        ("running", "ended", 0.2, 5, True),  # touched, but by no session
        ("running", "paused", 0.2, 5, True),
        ("running", "paused", 0.2, 0.2, False),
        ("running", "active", 0.2, 5, False),
        ("running", "none", -2 * 1440, 5, True),  # a clock that is wrong
        ("warming", "paused", 5, 5, True),
        ("warming", "missing", 5, 5, True),
        ("warming", "none", 5, 5, False),  # kept ready
        ("waiting", "ended", 5, 5, True),
        ("waiting", "missing", 5, 5, True),
        ("waiting", "none", 5, 5, False),
        ("waiting", "paused", 5, 5, False),  # it may go on at once
        ("waiting", "paused", 31, 31, True),
        ("warm", "none", 50, 50, False),
        ("warm", "ended", 5, 5, True),  # no pool has it
        ("warm", "missing", 5, 5, True),
        ("warm", "active", 5, 5, False),
        ("warm", "paused", 5, 5, False),
        ("cold", "ended", 50, 50, False),
        ("cold", "missing", 50, 50, False),
    ],
)
def test_sandboxes_and_what_is_said_of_them(
    fleet: Site,
    superuser: User,
    state: str,
    status: str,
    age: float,
    session_age: float,
    is_said: bool,
):
    session_id: str | None = {"none": None, "missing": "gone"}.get(status)
    if status not in ("none", "missing"):
        (session_id,) = sessions(fleet, age=session_age * MINUTE, status=status)
    id = sandbox(fleet, state, session_id, age * MINUTE)

    assert said(fleet) == ({"sandbox-alone": 1} if is_said else {})
    assert (
        "agentdb-finding" in fleet.get(f"agentdb/sandbox/{id}/change/").html
    ) is is_said
    if is_said:
        assert found(fleet)["sandbox-alone"].detail.endswith(
            f"all with session {status}"
        )


# -- what verifydb finds beside the schema


@pytest.mark.parametrize(
    ("table", "column"),
    [("sessions", "last_active_at"), ("sandboxes", "last_used_at")],
)
def test_an_old_server_that_writes_to_an_adopted_file_is_said(
    fleet: Site, table: str, column: str
):
    connection = connections[fleet.alias]
    if connection.vendor != "sqlite":
        pytest.skip("a server stores instants, and not their spelling")
    sessions(fleet, age=2 * MINUTE)
    sandbox(fleet, "cold", "s0")
    assert said(fleet) == {}
    spelt = f"{timezone.now():%Y-%m-%dT%H:%M:%S}.123Z"
    with connection.cursor() as cursor:
        cursor.execute(f"UPDATE {table} SET {column} = %s", [spelt])

    assert said(fleet) == {"drift": 1}
    assert found(fleet)["drift"].detail == (
        f"Row {'s0' if table == 'sessions' else 'b0'!r} of {table} has {column} = {spelt!r}, in another spelling than "
        "agentdb's, which SQLite sorts and compares wrongly. Stop the program that writes it, and run 'agentdb "
        "baselinedb'."
    )


def test_the_spelling_of_the_newest_200_rows_is_checked(fleet: Site):
    connection = connections[fleet.alias]
    if connection.vendor != "sqlite":
        pytest.skip("a server stores instants, and not their spelling")
    sessions(fleet, 1, age=300, status="paused")
    with connection.cursor() as cursor:
        spelt = "replace(last_active_at, ' ', 'T')"
        cursor.execute(f"UPDATE sessions SET last_active_at = {spelt}")
    sessions(fleet, 199, age=200, status="paused")
    assert said(fleet) == {"drift": 1}

    sessions(fleet, 1, age=200, status="paused")

    assert said(fleet) == {}


def test_rows_that_cannot_be_read_are_counted_up_to_twenty(fleet: Site):
    connection = connections[fleet.alias]
    odd = "not-a-date" if connection.vendor == "sqlite" else "infinity"
    shown = []
    for number in (19, 1, 1):
        sessions(fleet, number, status="paused")
        with connection.cursor() as cursor:
            cursor.execute("UPDATE sessions SET created_at = %s", [odd])
        shown.append(found(fleet)["unreadable"].shown)

    assert shown == ["19", "20", "20+"]


# -- a fleet


def test_a_fleet_of_40_000_is_well_and_then_not(fleet: Site):
    connection = connections[fleet.alias]
    numbers, ago = (
        "generate_series(1, 40000) AS n(i)",
        "now() - ({0}) * interval '1 second'",
    )
    if connection.vendor == "sqlite":
        numbers = "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 40000) SELECT i FROM n)"
        ago = "strftime('%%Y-%%m-%%d %%H:%%M:%%S', 'now', '-' || ({0}) || ' seconds')"
    status = (
        "CASE WHEN i <= 5000 THEN 'active' WHEN i <= 5050 THEN 'starting' WHEN i <= 12000 THEN 'paused' "
        "WHEN i %% 50 = 0 THEN 'error' ELSE 'ended' END"
    )
    with connection.cursor() as cursor:
        cursor.execute(
            "INSERT INTO sessions (id, agent_name, sandbox_id, status, runner_id, created_at, last_active_at) "
            f"SELECT 's-' || i, 'bot', 'b-' || i, {status}, 'runner-' || (i %% 40), {ago.format('i * 10')}, "
            f"{ago.format('CASE WHEN i <= 5050 THEN i %% 60 ELSE i * 5 END')} FROM {numbers}",
            [],
        )
        cursor.execute(
            "INSERT INTO sandboxes (id, agent_name, session_id, state, workspace_dir, created_at, last_used_at) "
            "SELECT 'b-' || i, 'bot', 's-' || i, CASE WHEN i <= 5050 THEN 'running' ELSE 'cold' END, '/w', "
            f"{ago.format('i * 10')}, {ago.format('CASE WHEN i <= 5050 THEN 90 ELSE i * 5 END')} FROM {numbers}",
            [],
        )
    assert said(fleet) == {}
    call_command("overview", database=fleet.alias)  # ends with 0

    hour_ago, live = ago.format("3600"), "status IN ('active', 'starting')"
    with connection.cursor() as cursor:
        for statement in (
            # The youngest paused ones, which a window of the oldest would not hold.
            "UPDATE sandboxes SET state = 'running' "
            f"WHERE id IN (SELECT 'b-' || (i + 5050) FROM {numbers} WHERE i <= 700)",
            "UPDATE sandboxes SET state = 'running', session_id = NULL WHERE id LIKE 'b-399%%'",
            f"UPDATE sessions SET last_active_at = {hour_ago} WHERE id = 's-7'",
            f"UPDATE sessions SET last_active_at = {hour_ago} WHERE runner_id = 'runner-3' AND {live}",
        ):
            cursor.execute(statement, [])

    assert said(fleet) == {"runner": 1, "silent": 1, "sandbox-alone": 811}
    assert found(fleet)["sandbox-alone"].detail.endswith(
        "700 with session paused, 111 with session none"
    )
    with pytest.raises(SystemExit) as ended:
        call_command("overview", database=fleet.alias)
    assert ended.value.code == 1
    # How many rows are counted, however many there are.
    everything = Session.objects.using(fleet.alias)
    Sandbox.objects.using(fleet.alias).update(state="running", session_id="gone")
    assert found(fleet)["sandbox-alone"].shown == "10,000+"
    assert str(figures.capped_count(everything)) == "10,000+"
    assert [each.sessions for each in figures.top_tenants(fleet.alias)] == [10_000]
    by_status = figures.by_status(everything)
    assert sum(each.rows for each in by_status.values()) == 20_000
    assert str(by_status["starting"]) == "50+"
    later = timezone.now() + timedelta(hours=1)
    among = everything.filter(pk__in=["s-20000", "s-20001"])
    among.update(last_active_at=later)
    changed = changes(fleet.alias, later, [Session], [])
    assert [each.row.pk for each in changed] == ["s-20000"]


def test_a_check_that_cannot_be_made_is_no_all_clear(
    fleet: Site, capsys: pytest.CaptureFixture[str]
):
    with connections[fleet.alias].cursor() as cursor:
        cursor.execute("DROP TABLE sandboxes")

    findings = found(fleet)

    assert {code for code, each in findings.items() if each.problem} == {
        "sandbox-alone",
        "sandbox-gone",
        "unreadable",
    }
    with pytest.raises(SystemExit) as ended:
        call_command("overview", database=fleet.alias)
    assert ended.value.code == 1
    assert "Nothing needs attention" not in capsys.readouterr().out


def test_what_cannot_be_looked_at_for_one_reason_is_one_line_in_the_terminal(
    fleet: Site, capsys: pytest.CaptureFixture[str]
):
    with connections[fleet.alias].cursor() as cursor:
        for table in ("sessions", "sandboxes", "api_keys"):
            cursor.execute(f"DROP TABLE {table}")

    with pytest.raises(SystemExit):
        call_command("overview", database=fleet.alias)

    out = capsys.readouterr().out
    reason = "are not as agentdb expects them. Run 'agentdb verifydb'."
    assert out.count(reason) == 1
    assert "\nagents     1\napi_keys   not known\nstatuses   not known\n" in out
    with pytest.raises(SystemExit):
        call_command("overview", "--json", database=fleet.alias)
    figures = json.loads(capsys.readouterr().out)
    assert figures["totals"]["agents"]["rows"] == 1
    for missing in (figures["totals"]["api_keys"], figures["activity"]):
        assert list(missing) == ["problem"]
        assert missing["problem"].endswith(reason)
    with connections[fleet.alias].cursor() as cursor:
        cursor.execute("DROP TABLE agents")
    with pytest.raises(SystemExit) as ended:
        call_command("overview", database=fleet.alias)
    lines = capsys.readouterr().out.splitlines()
    assert (ended.value.code, len(lines)) == (2, 2)
    assert lines[1].endswith("has none of agentdb's tables. Run 'agentdb verifydb'.")
