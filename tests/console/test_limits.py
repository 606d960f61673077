"""How many rows each page shows: all up to its limit, and one more is left out and said."""

from __future__ import annotations

import re
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import connections
from django.db.backends.base.base import BaseDatabaseWrapper
from django.utils import timezone

from agentdb.admin import actions, changelist, pages, sharing
from agentdb.console import checks, failures, figures, groups, questions, report
from agentdb.console.questions import Budget, question
from agentdb.models import Agent, Sandbox, Session
from agentdb.serving.opening import temporary_alias
from tests.helpers.admin_fixtures import Page, Site


def _sessions(site: Site, number: int, **values: str) -> list[str]:
    """So many sessions, and no others, each a second older than the one before."""
    now = timezone.now()
    Session.objects.using(site.alias).all().delete()
    rows = [
        Session(**{
            "id": f"row-{each:03}", "agent_name": "bot", "sandbox_id": "", "status": "active", "runner_id": "r",
            "created_at": now - timedelta(seconds=each), "last_active_at": now - timedelta(seconds=each),
            **{name: value.format(each) for name, value in values.items()},
        })
        for each in range(number)
    ]  # fmt: skip
    Session.objects.using(site.alias).bulk_create(rows)
    return [row.id for row in rows]


def _shown(page: Page) -> int:
    """The sessions to whose pages it leads."""
    return len(set(re.findall(r"/session/(row-\d+)/change/", page.html)))


@pytest.fixture
def agent(site: Site) -> str:
    agent = Agent.objects.using(site.alias).create(name="bot", path="/bot")
    return str(agent.pk)


def test_a_runner_an_agent_and_a_search_show_the_newest_few(
    site: Site, superuser: User, agent: str
) -> None:
    shown = []
    for number in (4, 5, 6, 7, 9, 10, 11):
        _sessions(site, number)
        pages = (
            site.get("agentdb/session/runner/", id="r"),
            site.get(f"agentdb/agent/{agent}/change/"),
            site.post("agentdb/session/find/", q="row-0"),
        )
        shown.append((number, *map(_shown, pages)))

    assert shown == [
        (number, min(number, 10), min(number, 5), min(number, 6))
        for number in (4, 5, 6, 7, 9, 10, 11)
    ]


def test_a_question_names_ten_rows_and_counts_the_others(
    site: Site, superuser: User
) -> None:
    for number, more in ((9, 0), (10, 0), (11, 1), (12, 2)):
        question = site.act(
            "agentdb/session/", "pause_sessions", _sessions(site, number)
        )
        assert f"Pause {number} sessions?" in question.text
        assert len(re.findall(r"bot session row-\d+", question.text)) == min(number, 10)
        assert bool(re.search(rf"\b{more} more", question.text)) is (more > 0)


def test_a_hundred_groups_and_a_hundred_changes_are_shown(
    site: Site, superuser: User
) -> None:
    for number in (99, 100, 101):
        _sessions(site, number, agent_name="bot-{:03}")
        groups = site.get("agentdb/session/groups/", by="agent_name")
        changes = site.get("agentdb/session/changes/")

        assert len(set(re.findall(r"bot-\d\d\d", groups.text))) == min(number, 100)
        assert ("The largest 100 are shown." in groups.text) is (number > 100)
        assert f"{number}{'+' if number > 100 else ''} sessions" in groups.text
        assert _shown(changes) == min(number, 100)


def test_the_first_tenants_and_idle_sandboxes_are_shown(site: Site) -> None:
    for number in (7, 8, 9):
        _sessions(site, number, tenant_id="t{}")
        Sandbox.objects.using(site.alias).all().delete()
        Sandbox.objects.using(site.alias).bulk_create(
            Sandbox(
                id=f"b{each}",
                agent_name="bot",
                state="waiting",
                workspace_dir="/w",
                last_used_at=timezone.now(),
            )
            for each in range(number)
        )
        tenants = figures.top_tenants(site.alias)
        idle = figures.oldest_idle_sandboxes(site.alias)

        assert len(tenants) == len(idle) == min(number, 8)


def test_the_list_of_a_check_has_all_rows_however_many(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("agentdb.admin.filters.CAP", 3)
    for number in (2, 3, 4, 5):
        _sessions(site, number, status="starting")
        long_ago = timezone.now() - timedelta(minutes=9)
        Session.objects.using(site.alias).update(last_active_at=long_ago)

        page = site.get("agentdb/session/", check="starting")

        assert len(page.rows) == number


def test_three_values_that_cannot_be_read_are_named_and_the_others_counted(
    site: Site, superuser: User
) -> None:
    connection = connections[site.alias]
    odd = "not-a-date" if connection.vendor == "sqlite" else "infinity"
    for number, more in ((2, 0), (3, 0), (4, 1), (5, 2)):
        _sessions(site, number)
        with connection.cursor() as cursor:
            cursor.execute("UPDATE sessions SET created_at = %s", [odd])

        text = site.get("agentdb/session/").text

        named = re.findall(r"Row 'row-\d+' of sessions has created_at", text)
        assert len(named) == min(number, 3)
        assert ("There are" in text) is (more > 0)
        if more:
            assert f"There are {more} more." in text


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(questions, "time", SimpleNamespace(monotonic=lambda: now[0]))
    return now


def test_a_page_asks_for_five_seconds_and_sets_a_servers_limit_once(
    url: str, clock: list[float]
) -> None:
    statements = []

    def noted(execute: Callable[..., Any], sql: str, *rest: Any) -> Any:
        statements.append(sql)
        return execute(sql, *rest)

    with temporary_alias(url) as alias, connections[alias].execute_wrapper(noted):
        with Budget(connections[alias]) as budget:
            for at in (100.0, 102.5, 104.9):
                clock[0] = at
                assert budget.ask(Session.objects.using(alias).count).value == 0
            clock[0] = 105.1
            late = budget.ask(lambda: 1)
        is_server = connections[alias].vendor != "sqlite"

    assert late.value is None
    assert str(late.problem) == (
        "The page's time was up before this query. Run 'agentdb health'."
    )
    # One before all questions, and one after.
    assert len([sql for sql in statements if "set_config" in sql]) == 2 * is_server


def _limits(connection: BaseDatabaseWrapper) -> list[str]:
    """The limits of a query and of its wait for a lock; SQLite tells the latter only."""
    names = ["statement_timeout", "lock_timeout"]
    with connection.cursor() as cursor:
        if connection.vendor == "sqlite":
            milliseconds = cursor.execute("PRAGMA busy_timeout").fetchone()[0]
            return [f"{milliseconds}ms"]
        found = []
        for name in names:
            cursor.execute(f"SHOW {name}")
            found.append(cursor.fetchone()[0])
        return found


@pytest.mark.parametrize(
    ("outer", "inner", "query", "lock"),
    [
        (None, None, "2s", "1s"),
        (10.0, None, "10s", "3s"),
        (0.5, None, "500ms", "250ms"),
        (0.5, 10.0, "500ms", "250ms"),
        (10.0, 0.5, "500ms", "250ms"),
    ],
)
def test_a_question_has_two_seconds_or_its_own_but_not_more_than_the_one_around_it(
    url: str,
    engine: str,
    outer: float | None,
    inner: float | None,
    query: str,
    lock: str,
) -> None:
    if engine == "cockroachdb":
        pytest.skip("it has no limit of its own for a lock, and shows milliseconds")
    with temporary_alias(url) as alias:
        connection = connections[alias]
        before = _limits(connection)
        with question(connection, outer):
            around = _limits(connection)
            with question(connection, inner):
                within = _limits(connection)
            assert _limits(connection) == around
        assert _limits(connection) == before

    if engine == "sqlite":
        # The wait is that of the outermost; the end of the query is nearer.
        seconds = min((outer or 2.0) / 2, 3.0)
        assert around == within == [f"{1000 * seconds:.0f}ms"]
    else:
        assert within == [query, lock]


def test_ctrl_c_during_a_query_of_a_file_is_not_taken_for_the_end_of_its_time(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = connections[site.alias]
    if connection.vendor != "sqlite":
        pytest.skip("psycopg's wait for a server ends with the interrupt itself")
    pressed = [True]

    def now() -> float:
        if pressed:
            pressed.pop()
            raise KeyboardInterrupt
        return 0.0

    with pytest.raises(KeyboardInterrupt), question(connection, 60):
        monkeypatch.setattr(questions, "time", SimpleNamespace(monotonic=now))
        with connection.cursor() as cursor:
            cursor.execute(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 1000000) "
                "SELECT count(*) FROM n"
            )

    assert pressed == []


_WORDS = {
    0.5: "half a",
    1: "one",
    2: "two",
    3: "three",
    4: "four",
    5: "five",
    10: "ten",
}
PROMISES = (
    f"at least {_WORDS[failures.FEWEST]} sessions failed in the last hour",
    f"or half of {_WORDS[failures.FEWEST_FOR_HALF]} or more",
    f"that of the {failures.SAMPLE:,} sessions before the hour",
    f"among the {failures.MOST_FAILED:,} failed sessions opened last",
    f"gave no sign of life for {checks.RUNNER_MINUTES} minutes",
    f"last active at least {checks.SILENT_MINUTES} minutes ago",
    f"the same for starting sessions, {checks.STARTING_MINUTES} minutes after their last write",
    f"used in the last {checks.SILENT_MINUTES} minutes",
    f"A check reports up to {checks.CAP:,} rows",
    f"If it takes longer than {_WORDS[questions.SECONDS]} seconds or fails",
    f"take {_WORDS[questions.SECONDS]} seconds each and {_WORDS[questions.PAGE_SECONDS]} together",
    f"in the newest {report.NEWEST} rows of each table",
    f"A sum that takes longer than {_WORDS[pages.SUM_SECONDS]} seconds asks you to narrow it",
    f"the latest {groups.MOST_CHANGES} writes across the tables, with sessions among the {groups.SAMPLE:,} opened last",
    f"is stopped after {_WORDS[changelist.SEARCH_SECONDS]} seconds",
    f"The overview may be {_WORDS[sharing.SECONDS]} seconds old",
    f"in transactions of {actions.BATCH} rows",
    f"counted up to {figures.WINDOW:,}, and for {_WORDS[changelist.COUNT_SECONDS]} second",
    f"a count that takes longer than {_WORDS[figures.COUNT_SECONDS]} second",
    f"those of the newest {figures.NEWEST:,} sessions",
)


def test_the_limits_are_those_that_the_documentation_promises() -> None:
    page = Path(__file__).parents[2] / "docs/admin.md"
    text = " ".join(page.read_text().split())

    assert [each for each in PROMISES if each not in text] == []
