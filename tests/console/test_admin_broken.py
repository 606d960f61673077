"""The console on databases that are broken: what can be read is shown, and what cannot is named."""

from __future__ import annotations

import csv
import io
import json
import socket
import threading
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from django.contrib.auth.models import User
from django.db import DatabaseError, connections
from django.db.utils import ConnectionHandler
from django.urls import reverse

from agentdb.admin import export
from agentdb.admin.model_admins import SessionAdmin
from agentdb.conf import database_from_url
from agentdb.console import questions, reading
from agentdb.console.checks import checks
from agentdb.console.figures import total
from agentdb.console.questions import Budget, Problem
from agentdb.console.report import examine
from agentdb.models import Agent, ApiKey, Sandbox, Session
from agentdb.schema.inspection import sqlite_path
from tests.helpers.admin_fixtures import Page, Site, audited, fill
from tests.helpers.moments import wait_until

# Values that Python cannot hold: the column, what is stored in it, and how the pages name it.
BAD_VALUES = {
    "sqlite": [
        ("created_at", "'garbage'", "garbage"),
        ("last_active_at", "'20000-01-01 00:00:00'", "20000-01-01 00:00:00"),
        ("agent_name", "CAST(x'ff41' AS TEXT)", "\\xffA"),
        ("runner_id", "CAST(x'fe' AS TEXT)", "\\xfe"),
    ],
    "postgresql": [
        ("created_at", "'infinity'", "infinity"),
        ("created_at", "'-infinity'", "-infinity"),
        ("last_active_at", "'20000-01-01 00:00:00Z'", "20000-01-01 00:00:00+00"),
    ],
    # Infinity is its last instant there.
    "cockroachdb": [
        ("created_at", "'infinity'", "294276-12-31 23:59:59.999999+00"),
        ("created_at", "'-infinity'", "4714-11-24 00:00:00+00 BC"),
        ("last_active_at", "'20000-01-01 00:00:00Z'", "20000-01-01 00:00:00+00"),
    ],
}


def execute(site: Site, *statements: str) -> None:
    with connections[site.alias].cursor() as cursor:
        for statement in statements:
            cursor.execute(statement)


@pytest.fixture(params=[False, True], ids=["no transaction", "ATOMIC_REQUESTS"])
def atomic_or_not(
    site: Site, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setitem(
        connections.settings[site.alias], "ATOMIC_REQUESTS", request.param
    )


def ids(page: Page) -> list[str]:
    return [row[1].split()[0] for row in page.rows]


def test_a_value_that_cannot_be_read_is_shown_as_it_is_stored_beside_all_other_rows(
    site: Site, superuser: User
):
    for column, stored, shown in BAD_VALUES[connections[site.alias].vendor]:
        for model in (Session, Sandbox, Agent, ApiKey):
            model._default_manager.using(site.alias).all().delete()
        fill(site.alias, 7)
        execute(site, f"UPDATE sessions SET {column} = {stored} WHERE id = 's0001'")
        sentence = f"Row 's0001' of sessions has {column} = {shown!r}."

        for query in ({}, {"q": "t1"}, {"tenant_id": "t1"}, {"o": "8"}):
            page = site.get("agentdb/session/", **query)
            assert page.status == 200
            assert "s0001" in ids(page)
            assert sentence in page.text
            assert shown in page.text
        assert len(ids(site.get("agentdb/session/"))) == 7
        row = site.get("agentdb/session/s0001/change/")
        assert (row.status, sentence in row.text, f"{column} {shown}" in row.text) == (
            200,
            True,
            True,
        )
        for path, query in (
            ("agentdb/session/runner/", {"id": "runner-1"}),
            ("agentdb/agent/a0001/change/", {}),
            ("agentdb/sandbox/b0001/change/", {}),
            ("agentdb/sandbox/", {}),
            ("agentdb/agent/tenant/", {"id": "t1"}),
            *(
                (f"agentdb/{check.model._meta.model_name}/", {"check": check.code})
                for check in checks()
            ),
        ):
            page = site.get(path, **query)
            assert page.status == 200 or sentence in page.text, (path, query, column)
        assert "The figures as a table" in site.get("").text
        lines = {
            line["id"]: line
            for line in csv.DictReader(
                io.StringIO(
                    site.exported("agentdb/session/export/csv/").removeprefix("\ufeff")
                )
            )
        }
        found = {
            row["id"]: row
            for row in json.loads(site.exported("agentdb/session/export/json/"))
        }
        assert len(lines) == len(found) == 7
        assert lines["s0001"][column] == (
            f"'{shown}" if shown.startswith("-") else shown
        )
        assert found["s0001"][column] == shown


def test_a_null_where_none_may_be_is_shown_as_one(site: Site, superuser: User):
    if connections[site.alias].vendor != "postgresql":
        pytest.skip(
            "SQLite drops no NOT NULL; a table made without it is read in the same way"
        )
    fill(site.alias, 3)
    for column in ("created_at", "last_active_at", "agent_name", "tenant_id", "status"):
        execute(
            site,
            f"ALTER TABLE sessions ALTER {column} DROP NOT NULL",
            f"UPDATE sessions SET {column} = NULL",
        )

    page, row = site.get("agentdb/session/"), site.get("agentdb/session/s0001/change/")

    assert sorted(ids(page)) == ["s0000", "s0001", "s0002"]
    assert page.text.count("NULL") >= 3 * 5
    assert "Row 's0002' of sessions has tenant_id = 'NULL'." in page.text
    assert (row.status, "created_at NULL" in row.text) == (200, True)
    assert site.get("").status == 200


def test_pages_pass_a_row_whose_place_cannot_be_read(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setattr(SessionAdmin, "list_per_page", 2)
    fill(site.alias, 7)
    stored = BAD_VALUES[connections[site.alias].vendor][0][1]
    execute(site, f"UPDATE sessions SET created_at = {stored} WHERE id = 's0003'")

    seen, page = [], site.get("agentdb/session/")
    while True:
        seen.append(ids(page))
        links = [url for url, text in page.links if text.startswith("Older")]
        if not links:
            break
        page = Page(site.client.get(f"/admin/agentdb/session/{links[0]}"))

    assert seen == [
        ["s0003", "s0000"],
        ["s0001", "s0002"],
        ["s0004", "s0005"],
        ["s0006"],
    ]


def test_what_changed_is_told_beside_a_row_that_cannot_be_read(
    site: Site, superuser: User
):
    fill(site.alias, 3)
    stored = BAD_VALUES[connections[site.alias].vendor][0][1]
    execute(
        site,
        f"UPDATE sessions SET created_at = {stored} WHERE id = 's0001'",
        f"UPDATE sessions SET last_active_at = {stored} WHERE id = 's0002'",
    )

    page = site.get("agentdb/session/changes/")

    assert page.status == 200
    assert "Row 's0001' of sessions has created_at = " in page.text
    assert "Row 's0002' of sessions has last_active_at = " in page.text
    found = {text for _, text in page.links}
    # The time of the other one's last write is not known.
    assert {"s0000", "s0001", "b0000", "a0000", "k0000"} <= found
    assert "s0002" not in found
    # Not to a user who may not see the table.
    site.log_in(site.make_user("narrow", "view_agent", "view_session"))
    execute(site, f"UPDATE agents SET updated_at = {stored} WHERE id = 'a0001'")
    execute(site, f"UPDATE sandboxes SET last_used_at = {stored} WHERE id = 'b0001'")
    narrow = site.get("agentdb/session/changes/")
    assert "Row 'a0001' of agents has updated_at = " in narrow.text
    assert "of sandboxes" not in narrow.text
    assert "b0000" not in {text for _, text in narrow.links}


@pytest.mark.usefixtures("atomic_or_not")
def test_an_action_changes_a_row_with_a_value_that_cannot_be_read_like_any_other(
    site: Site, superuser: User, caplog: pytest.LogCaptureFixture
):
    fill(site.alias, 6)
    stored = BAD_VALUES[connections[site.alias].vendor][0][1]
    execute(
        site,
        f"UPDATE sessions SET created_at = {stored} WHERE id = 's0000'",
        f"UPDATE sessions SET last_active_at = {stored} WHERE id = 's0001'",
        f"UPDATE sandboxes SET last_used_at = {stored} WHERE id IN ('b0001', 'b0002')",
        f"UPDATE api_keys SET created_at = {stored} WHERE id = 'k0001'",
    )
    if connections[site.alias].vendor == "sqlite":
        text = "CAST(x'ff41' AS TEXT)"
        execute(
            site,
            f"UPDATE sandboxes SET workspace_dir = {text} WHERE id = 'b0002'",
            f"UPDATE sessions SET agent_name = {text} WHERE id = 's0005'",
            f"UPDATE api_keys SET label = {text} WHERE id = 'k0001'",
        )
    sessions = Session.objects.using(site.alias)
    active = dict(sessions.exclude(pk="s0001").values_list("pk", "last_active_at"))
    caplog.set_level("INFO", logger="agentdb.audit")
    paths = ("session", "sandbox", "sandbox", "apikey")
    names = ("pause_sessions", "mark_cold", "delete_sandboxes", "revoke_keys")
    chosen = (["s0000", "s0001", "s0005"], ["b0001"], ["b0002"], ["k0001"])

    said = [
        site.confirm(f"agentdb/{path}/", name, ids).text
        for path, name, ids in zip(paths, names, chosen, strict=True)
    ]

    assert "Paused 3 sessions" in said[0]
    assert "Marked 1 sandbox cold" in said[1]
    assert "Deleted 1 sandbox" in said[2]
    assert "Revoked 1 API key" in said[3]
    lines = audited(caplog)
    assert [line["ids"] for line in lines] == list(chosen)
    assert lines[0]["after"] == dict.fromkeys(chosen[0], "paused")
    resumed = site.post("agentdb/session/undo/", lines=json.dumps(lines[0]))
    assert "Resumed 3 sessions" in resumed.text
    # A time that can be read stays.
    last = sessions.values_list("pk", "last_active_at")
    assert dict(last.exclude(pk="s0001")) == active
    assert ApiKey.objects.using(site.alias).filter(pk="k0001").count() == 0


@pytest.mark.parametrize("by", ["hour", "day"])
@pytest.mark.parametrize("is_readable", [False, True])
def test_sums_by_time_show_a_group_whose_time_has_no_list(
    site: Site, superuser: User, by: str, is_readable: bool
):
    fill(site.alias, 2)
    stored = BAD_VALUES[connections[site.alias].vendor][0][1]
    if is_readable:
        stored = "'9999-12-31 23:30:00'"  # its hour and day end in the year 10000
    execute(site, f"UPDATE sessions SET created_at = {stored} WHERE id = 's0001'")

    page = site.get("agentdb/session/groups/", by=by)

    assert page.status == 200
    assert "2 sessions" in page.text
    # The other group has one.
    assert len([url for url, _ in page.links if "session/?from=" in url]) == 1


@pytest.mark.usefixtures("atomic_or_not")
def test_a_list_shows_what_a_table_that_lacks_a_column_has(
    site: Site, superuser: User, caplog: pytest.LogCaptureFixture
):
    fill(site.alias, 4)
    execute(site, "ALTER TABLE sessions RENAME COLUMN last_active_at TO last_seen_at")
    sentence = "The table lacks a column: sessions.last_active_at."

    page = site.get("agentdb/session/")
    row = site.get("agentdb/session/s0001/change/")
    runner = site.get("agentdb/session/runner/", id="runner-1")

    assert ids(page) == ["s0000", "s0001", "s0002", "s0003"]
    for each in (page, row, runner):
        assert (
            each.status,
            sentence in each.text or "not as agentdb expects" in each.text,
        ) == (200, True)
    assert "agentdb verifydb" in page.text
    assert sentence in row.text
    problems: list[Problem] = []
    caplog.clear()
    reading.read(Session.objects.using(site.alias), problems)
    [problem] = problems
    assert str(problem) == f"{sentence} Run 'agentdb verifydb'."
    assert "last_active_at" in problem.said and "\n" not in problem.said
    assert caplog.messages == [f"{sentence} {problem.said}"]
    assert [
        line["last_active_at"]
        for line in csv.DictReader(
            io.StringIO(
                site.exported("agentdb/session/export/csv/").removeprefix("\ufeff")
            )
        )
    ] == [""] * 4
    # What depends on the column cannot be asked, and says so.
    refused = site.get("agentdb/session/", check="silent")
    assert refused.status == 503
    overview = refused.link("The overview says what else is known.")
    assert overview == reverse("admin:index")


@pytest.mark.usefixtures("atomic_or_not")
def test_a_list_that_names_rows_of_a_missing_table_is_shown_and_calls_none_of_them_missing(
    site: Site, superuser: User
):
    fill(site.alias, 3)
    execute(site, "DROP TABLE sandboxes")

    page = site.get("agentdb/session/")
    row = site.get("agentdb/session/s0001/change/")

    assert ids(page) == ["s0000", "s0001", "s0002"]
    assert "b0001" in page.rows[1][5]
    assert "missing" not in page.text.replace("is missing", "")
    assert not [url for url, _ in page.links if "/sandbox/b0" in url]
    assert "are not as agentdb expects them." in page.text
    assert row.status == 200
    assert "sandbox is gone" not in row.text
    # Of the table itself nothing can be shown.
    for path in (
        "agentdb/sandbox/",
        "agentdb/sandbox/b0001/change/",
        "agentdb/sandbox/b0001/history/",
        "agentdb/sandbox/b0001/delete/",
        "agentdb/sandbox/export/csv/",
    ):
        broken = site.get(path)
        assert (broken.status, "are not as agentdb expects them." in broken.text) == (
            503,
            True,
        ), path


def test_an_export_that_breaks_off_says_so_in_its_last_line(
    site: Site,
    superuser: User,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
):
    fill(site.alias, 9)
    monkeypatch.setattr(export, "_CHUNK", 2)

    def lost(*arguments: Any, **options: Any) -> Iterator[Any]:
        yield from islice(reading.read_stored(*arguments, **options), 5)
        if options:  # not the first row alone
            raise DatabaseError("server closed the connection unexpectedly")

    monkeypatch.setattr(export, "read_stored", lost)

    lines = site.exported("agentdb/session/export/csv/").splitlines()
    text = site.exported("agentdb/session/export/json/")

    assert len(lines) == 1 + 5 + 2
    assert lines[-1].startswith("THE EXPORT ENDED HERE, ROWS ARE MISSING: ")
    assert "server closed the connection unexpectedly" in lines[-1]
    assert text.rstrip().splitlines()[-1].startswith("THE EXPORT ENDED HERE")
    with pytest.raises(json.JSONDecodeError):
        json.loads(text)
    said = lines[-1].removeprefix("THE EXPORT ENDED HERE, ROWS ARE MISSING: ")
    logged = [each.message for each in caplog.records if "export" in each.message]
    sentence = logged[0].removeprefix("export of sessions: ").strip()
    assert sentence.count("server closed the connection unexpectedly") == 1
    assert said.startswith(sentence)


def test_a_query_that_fails_while_a_page_is_drawn_is_answered_for_too(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    def lost(*arguments: Any) -> Iterator[Any]:
        yield "a row"
        raise DatabaseError("server closed the connection unexpectedly")

    monkeypatch.setattr("agentdb.admin.pages.unreadable_rows", lost)

    page = site.get("agentdb/session/attention/", check="unreadable")

    assert page.status == 503
    assert "server closed the connection unexpectedly" in page.text


def test_no_page_makes_a_file_where_the_database_file_was_removed(
    site: Site, superuser: User, caplog: pytest.LogCaptureFixture
):
    path = sqlite_path(connections[site.alias])
    if path is None:
        pytest.skip("a server has no file")
    fill(site.alias, 3)
    connections[site.alias].close()
    for each in (path, *(Path(f"{path}{suffix}") for suffix in ("-wal", "-shm"))):
        each.unlink(missing_ok=True)

    for where in (
        "", "agentdb/session/", "agentdb/session/s0001/change/", "agentdb/session/export/csv/", "agentdb/apikey/add/",
        "agentdb/agent/tenant/?id=t1", "agentdb/session/runner/?id=r", "agentdb/session/attention/?check=silent",
    ):  # fmt: skip
        page = site.get(where)
        assert (
            page.status,
            f"The database file '{path}' does not exist." in page.text,
        ) == (
            200 if where == "" else 503,
            True,
        )
        assert not path.exists(), where
    answer = site.act("agentdb/session/", "pause_sessions", ["s0001"])
    assert (answer.status, path.exists()) == (503, False)
    said = [each.message for each in caplog.records if each.name == "agentdb.console"]
    sentence = f"The database file '{path}' does not exist."
    assert said[-1].startswith(f"POST /admin/agentdb/session/: {sentence} ")
    assert said[-2].startswith(f"GET /admin/agentdb/session/attention/: {sentence} ")


def test_a_locked_table_is_not_waited_for_by_each_question_of_the_overview(
    site: Site, superuser: User, monkeypatch: pytest.MonkeyPatch
):
    if connections[site.alias].vendor != "postgresql":
        pytest.skip("SQLite locks whole files, which the overview asks about once")
    fill(site.alias, 3)
    waited: list[questions.Problem] = []
    ask = questions.ask

    def noted(*args: Any, **options: Any) -> questions.Answer[Any]:
        answer = ask(*args, **options)
        if answer.problem is not None:
            waited.append(answer.problem)
        return answer

    locking = connections[site.alias].copy()
    try:
        locking.set_autocommit(False)
        with locking.cursor() as cursor:
            cursor.execute("LOCK TABLE sessions")
        with monkeypatch.context() as limits:
            limits.setattr(questions, "LOCK_SECONDS", 0.5)
            limits.setattr(questions, "PAGE_SECONDS", 1.2)
            limits.setattr(questions, "ask", noted)
            # As if nothing took time but to wait for the lock.
            clock = SimpleNamespace(monotonic=lambda: 0.5 * len(waited))
            limits.setattr(questions, "time", clock)
            page = site.get("")
    finally:
        locking.rollback()
        locking.close()

    assert page.status == 200
    assert "in use by a transaction that does not end" in page.text
    assert "The page's time was up before this query." in page.text
    assert len(waited) == 3  # of a dozen questions, and then the time is up
    assert "The page's time was up" not in site.get("").text


def test_a_server_that_says_nothing_is_tried_once_for_all_questions_of_a_page():
    with socket.create_server(("127.0.0.1", 0)) as silent:
        accepted: list[socket.socket] = []

        def accept() -> None:
            while True:
                accepted.append(silent.accept()[0])

        threading.Thread(target=accept, daemon=True).start()
        url = f"postgresql://postgres@127.0.0.1:{silent.getsockname()[1]}/agents?connect_timeout=2"
        connections.settings["silent"] = ConnectionHandler(
            {"default": database_from_url(url)}
        ).settings["default"]
        try:
            with Budget(connections["silent"]) as budget:
                report = examine(budget)
                rows = budget.ask(lambda: total(Session.objects.using("silent")))
            wait_until(lambda: accepted)
        finally:
            del connections["silent"]
            del connections.settings["silent"]
        for each in accepted:
            each.close()

    assert report.problem is not None
    assert rows.problem == report.problem
    assert "cannot be reached: connection timeout expired." in report.problem.sentence
    assert len(accepted) == 1


def test_a_mistake_of_ours_is_not_called_a_value_and_leaves_its_traceback_in_the_log(
    site: Site, caplog: pytest.LogCaptureFixture
):
    def mistaken() -> None:
        raise TypeError("'>' not supported between instances of 'str' and 'int'")

    problem = questions.ask(connections[site.alias], mistaken).problem

    assert problem is not None
    assert str(problem).endswith(
        "cannot be read, or agentdb has a fault: no row was found that explains it. Run 'agentdb verifydb'."
    )
    assert "in mistaken" in caplog.text
