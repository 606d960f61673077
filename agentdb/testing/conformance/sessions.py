"""Sessions: updates, order and pages, runners, bulk pauses, retention."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC

import pytest

from agentdb import Db, SessionRecord, SessionStatus
from agentdb.testing.conformance.subject import (
    IDS,
    Rows,
    Subject,
    ids,
    instant,
    make_session,
    session_of,
)

RUNNERS = ("r1", "r2", None)

UPDATES: dict[str, Callable[[Db], bool]] = {
    "status": lambda db: db.update_session_status("s1", "active"),
    "sandbox": lambda db: db.update_session_sandbox("s1", "sb2"),
    "runner": lambda db: db.update_session_runner("s1", "r1"),
    "no runner": lambda db: db.update_session_runner("s1", None),
    "touch": lambda db: db.touch_session("s1"),
}


def _created_at(rows: Rows, ages: dict[str, float]) -> None:
    for id, age in ages.items():
        rows.session(id, created_at=instant(age))


def _in_every_status(rows: Rows) -> None:
    for status in SessionStatus:
        for runner in RUNNERS:
            rows.session(
                f"{status} {runner}",
                tenant_id=f"tenant of {runner}",
                status=status.value,
                runner_id=runner,
                last_active_at=instant(),
            )


def _all_by_id(db: Db) -> dict[str, SessionRecord]:
    return {
        session.id: session
        for runner in RUNNERS
        for session in db.list_sessions(f"tenant of {runner}")
    }


class SessionContract(Subject):
    def test_insert_session_starts_and_returns_what_a_get_returns(self, db: Db) -> None:
        session = db.insert_session("s1", "support-bot", "sb1", "acme")

        assert session == SessionRecord(
            "s1",
            "acme",
            "support-bot",
            "sb1",
            "starting",
            None,
            session.created_at,
            session.created_at,
        )
        assert session.created_at.tzinfo is UTC
        assert db.get_session("s1") == session

    def test_insert_session_belongs_to_the_default_tenant_unless_told(
        self, db: Db
    ) -> None:
        assert make_session(db).tenant_id == "default"

    @pytest.mark.parametrize(
        "status", [*SessionStatus, *(status.value for status in SessionStatus)]
    )
    def test_update_session_status_takes_members_and_plain_strings(
        self, db: Db, rows: Rows, status: SessionStatus
    ) -> None:
        made = rows.session(last_active_at=instant())

        assert db.update_session_status("s1", status) is True

        session = session_of(db)
        assert session.status == status
        assert type(session.status) is str
        assert session.last_active_at >= made.created_at
        assert session.created_at == made.created_at

    def test_update_session_sets_the_column_it_names(self, db: Db) -> None:
        make_session(db)

        db.update_session_sandbox("s1", "sb2")
        db.update_session_runner("s1", "r1")

        session = session_of(db)
        assert (session.status, session.sandbox_id) == ("starting", "sb2")
        assert session.runner_id == "r1"
        db.update_session_runner("s1", None)
        assert session_of(db).runner_id is None

    @pytest.mark.parametrize("update", UPDATES.values(), ids=UPDATES)
    def test_update_of_a_session_sets_last_active_at_of_that_one(
        self, db: Db, rows: Rows, update: Callable[[Db], bool]
    ) -> None:
        # Every update is a sign of life; a runner that only sets statuses must not be taken for a silent one.
        now = make_session(db, "s0").created_at
        rows.session(created_at=instant(), last_active_at=instant(1))
        other = rows.session("s2", last_active_at=instant(1))

        assert update(db) is True

        session = session_of(db)
        assert session.created_at == instant()
        assert (session.tenant_id, session.agent_name) == ("default", "support-bot")
        assert session.last_active_at >= now
        assert db.get_session("s2") == other

    def test_a_status_of_a_newer_server_is_returned_as_it_is(
        self, db: Db, rows: Rows
    ) -> None:
        # During a rolling upgrade both servers use one database. The old one must neither fail on a status it does not
        # know nor pause such a session.
        session = rows.session(status="Hibernating")

        assert session.status == "Hibernating"
        assert db.bulk_pause_active_sessions() == 0

    def test_list_sessions_is_newest_first_to_the_microsecond(
        self, db: Db, rows: Rows
    ) -> None:
        # SQLite stores texts: "12:00:01" and "12:00:00.500000" sort as their instants only in one format for all.
        _created_at(rows, {"c": 0, "a": 1, "d": 0.5, "e": 1e-6, "b": 1.000001, "f": -1})

        assert ids(db.list_sessions()) == ["b", "a", "d", "e", "c", "f"]

    def test_list_sessions_breaks_ties_by_id_descending_in_code_point_order(
        self, db: Db, rows: Rows
    ) -> None:
        # Without an order among equals, two pages could both hold a session, or neither of them.
        _created_at(rows, dict.fromkeys(IDS, 0.0))

        assert ids(db.list_sessions()) == IDS[::-1]

    def test_list_sessions_is_of_one_tenant_and_of_one_agent_if_named(
        self, db: Db, rows: Rows
    ) -> None:
        rows.session("s0", "a", "acme", created_at=instant(0))
        rows.session("s1", "b", "acme", created_at=instant(1))
        rows.session("s2", "a", "other", created_at=instant(2))
        rows.session("s3", "a", "acme", created_at=instant(3))

        assert ids(db.list_sessions("acme")) == ["s3", "s1", "s0"]
        assert ids(db.list_sessions("acme", "a")) == ["s3", "s0"]
        assert ids(db.list_sessions(tenant_id="other", agent="a")) == ["s2"]
        assert db.list_sessions("acme", "c") == []
        assert db.list_sessions() == []

    def test_list_sessions_returns_what_a_get_returns(self, db: Db) -> None:
        make_session(db)

        assert db.list_sessions() == [db.get_session("s1")]

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
    @pytest.mark.parametrize("agent", [None, "support-bot"])
    def test_list_sessions_pages_through_all_also_where_instants_are_equal(
        self, db: Db, rows: Rows, size: int, agent: str | None
    ) -> None:
        # before= has to compare (created_at, id) as a pair: by the instant alone, the rest of a tie is skipped.
        tied = dict.fromkeys(IDS, 0.0)
        _created_at(rows, tied | {"new": 1, "old": -1, "new-a": 1, "new-Z": 1})
        make_session(db, "of another tenant", tenant_id="other")
        make_session(db, "of another agent", "another-bot")
        expected = db.list_sessions(agent=agent)

        paged: list[SessionRecord] = []
        while page := db.list_sessions(
            agent=agent, limit=size, before=paged[-1] if paged else None
        ):
            assert len(page) <= size
            paged += page
            assert len(paged) <= 16, "a page came twice"

        assert paged == expected
        assert len(paged) == 15 + (agent is None)

    def test_list_sessions_before_a_record_without_limit_returns_all_after_it(
        self, db: Db, rows: Rows
    ) -> None:
        _created_at(rows, {"a": 0, "b": 0, "c": 1, "d": -1})
        c, b, a, d = db.list_sessions()

        assert db.list_sessions(before=c) == [b, a, d]
        assert db.list_sessions(before=b) == [a, d]
        assert db.list_sessions(before=d) == []

    def test_list_sessions_before_a_record_of_another_tenant_shows_nothing_of_that_tenant(
        self, db: Db, rows: Rows
    ) -> None:
        # A cursor comes back from a client, who may send any. It names a place in the order and grants nothing.
        foreign = make_session(db, "z", tenant_id="other")
        rows.session("a", created_at=instant())

        assert ids(db.list_sessions(before=foreign)) == ["a"]

    def test_list_sessions_before_a_record_that_was_deleted_goes_on_where_it_stood(
        self, db: Db, rows: Rows
    ) -> None:
        # So the place is in the record: an implementation that looks its row up first would end the list here.
        _created_at(rows, {"a": 0, "b": 0, "c": 0})
        _, b, a = db.list_sessions()
        db.delete_session("b")

        assert db.list_sessions(before=b) == [a]

    def test_list_sessions_takes_the_largest_limit(self, db: Db) -> None:
        make_session(db)

        assert len(db.list_sessions(limit=2**63 - 1)) == 1

    def test_list_sessions_by_runner_is_of_all_tenants_in_the_same_order(
        self, db: Db, rows: Rows
    ) -> None:
        newest = "a"
        for id in IDS:
            created_at = instant(1 if id == newest else 0)
            rows.session(
                id, tenant_id=f"of {id}", runner_id="r1", created_at=created_at
            )
        rows.session("other", runner_id="r2")
        make_session(db, "none")

        listed = db.list_sessions_by_runner("r1")

        assert ids(listed) == [newest, *(id for id in IDS[::-1] if id != newest)]
        assert listed[0] == db.get_session(newest)
        assert db.list_sessions_by_runner("r3") == []

    def test_bulk_pause_by_runner_pauses_that_runners_active_and_starting_sessions(
        self, db: Db, rows: Rows
    ) -> None:
        _in_every_status(rows)
        before = _all_by_id(db)

        assert db.bulk_pause_sessions_by_runner("r1") == 2

        after = _all_by_id(db)
        for id in ("active r1", "starting r1"):
            old, paused = before.pop(id), after.pop(id)
            assert paused.status == "paused"
            assert paused.last_active_at > old.last_active_at
            assert paused.created_at == old.created_at
        assert after == before
        assert db.bulk_pause_sessions_by_runner("r1") == 0
        assert db.bulk_pause_sessions_by_runner("r3") == 0

    def test_bulk_pause_pauses_active_and_starting_sessions_of_all_runners(
        self, db: Db, rows: Rows
    ) -> None:
        _in_every_status(rows)

        assert db.bulk_pause_active_sessions() == 6

        sessions = _all_by_id(db).values()
        assert Counter(session.status for session in sessions) == {
            "paused": 9,
            "ended": 3,
            "error": 3,
            "stopped": 3,
        }
        assert len([s for s in sessions if s.last_active_at > instant()]) == 6
        assert db.bulk_pause_active_sessions() == 0

    def test_prune_deletes_the_longest_inactive_finished_sessions(
        self, db: Db, rows: Rows
    ) -> None:
        for status, age in {"ended": -3, "stopped": -4, "error": -5}.items():
            rows.session(status, status=status, last_active_at=instant(age))
        # However old: what may still run, or what only a newer server could judge, is not for deletion.
        kept = {"active", "starting", "paused", "a newer one"}
        for status in kept:
            rows.session(status, status=status, last_active_at=instant(-100))
        rows.session("at that moment", status="ended", last_active_at=instant())

        assert db.prune_sessions(instant(), 2) == 2
        assert db.get_session("ended") is not None
        assert db.prune_sessions(instant(), 2) == 1
        assert db.prune_sessions(instant(), 2) == 0

        assert {*ids(db.list_sessions())} == {*kept, "at that moment"}

    def test_prune_takes_their_cold_sandboxes_along_and_no_others(
        self, db: Db, rows: Rows
    ) -> None:
        # An id with every kind of quote, for an implementation that writes the ids of the first statement into the
        # second one. A sandbox that is not cold may be in use whatever its session's status says.
        id = "s'\"\\ é😀\n\x1f"
        rows.session(id, status="ended", last_active_at=instant(-1))
        make_session(db, "s2")
        rows.sandbox("gone", session_id=id, state="cold")
        rows.sandbox("warm", session_id=id, state="warm")
        rows.sandbox("another's", session_id="s2", state="cold")
        rows.sandbox("nobody's", session_id=None, state="cold")

        assert db.prune_sessions(instant(), 10) == 1

        assert {*ids(db.list_sandboxes())} == {"another's", "nobody's", "warm"}

    def test_prune_of_equal_age_goes_by_id(self, db: Db, rows: Rows) -> None:
        for id in ("b", "B", "a", "é"):
            rows.session(id, status="ended", last_active_at=instant(-1))

        assert db.prune_sessions(instant(), 2) == 2

        assert sorted(ids(db.list_sessions())) == ["b", "é"]
