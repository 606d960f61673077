"""Sessions: updates, order and pages, runners, bulk pauses."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from datetime import UTC
from typing import Any

import pytest

from agentdb import Db, DuplicateKeyError, SessionRecord, SessionStatus
from agentdb.testing.conformance.subject import (
    IDS,
    Rewrite,
    Subject,
    instant,
    make_sandbox,
    make_session,
)


def _update_status(db: Db, id: str) -> bool:
    return db.update_session_status(id, "active")


def _update_sandbox(db: Db, id: str) -> bool:
    return db.update_session_sandbox(id, "sb2")


def _update_runner(db: Db, id: str) -> bool:
    return db.update_session_runner(id, "r1")


def _clear_runner(db: Db, id: str) -> bool:
    return db.update_session_runner(id, None)


def _touch(db: Db, id: str) -> bool:
    return db.touch_session(id)


UPDATES = [_update_status, _update_sandbox, _update_runner, _clear_runner, _touch]


def _sessions_made_at(
    db: Db, rewrite: Rewrite, made: dict[str, float], **values: str
) -> None:
    for id, seconds in made.items():
        make_session(db, id, **values)
        rewrite("sessions", id, created_at=instant(seconds))


def _sessions_in_every_status(db: Db, rewrite: Rewrite) -> None:
    for status in SessionStatus:
        for runner in ("r1", "r2", None):
            id = f"{status} {runner}"
            make_session(db, id, tenant_id=f"tenant of {runner}")
            rewrite(
                "sessions",
                id,
                status=status.value,
                runner_id=runner,
                last_active_at=instant(),
            )


def _by_id(db: Db) -> dict[str, SessionRecord]:
    return {
        session.id: session
        for runner in ("r1", "r2", None)
        for session in db.list_sessions(f"tenant of {runner}")
    }


def _finished(
    db: Db,
    rewrite: Rewrite,
    id: str,
    seconds: float,
    status: str = "ended",
    **values: Any,
) -> None:
    make_session(db, id, **values)
    rewrite("sessions", id, status=status, last_active_at=instant(seconds))


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

    def test_insert_session_with_a_taken_id_raises_whoever_has_it(self, db: Db) -> None:
        session = make_session(db, tenant_id="acme")

        with pytest.raises(DuplicateKeyError) as raised:
            make_session(db, sandbox_id="other", tenant_id="other")

        assert str(raised.value) == "A session with the id 's1' exists already."
        assert db.get_session("s1") == session

    def test_get_session_returns_none_for_an_unknown_id(self, db: Db) -> None:
        make_session(db)

        assert db.get_session("S1") is None

    @pytest.mark.parametrize(
        "status", [*SessionStatus, *(status.value for status in SessionStatus)]
    )
    def test_update_session_status_takes_members_and_plain_strings(
        self, db: Db, rewrite: Rewrite, status: SessionStatus
    ) -> None:
        made = make_session(db)
        rewrite("sessions", "s1", last_active_at=instant())

        assert db.update_session_status("s1", status) is True

        session = db.get_session("s1")
        assert session is not None
        assert session.status == status
        assert type(session.status) is str
        assert session.last_active_at >= made.created_at
        assert session.created_at == made.created_at

    @pytest.mark.parametrize("update", UPDATES)
    def test_update_of_a_session_that_is_not_there_is_false(
        self, db: Db, update: Callable[[Db, str], bool]
    ) -> None:
        assert update(db, "s1") is False

    def test_update_session_sets_the_column_it_names(self, db: Db) -> None:
        make_session(db)

        db.update_session_sandbox("s1", "sb2")
        db.update_session_runner("s1", "r1")

        session = db.get_session("s1")
        assert session is not None
        assert (session.status, session.sandbox_id, session.runner_id) == (
            "starting",
            "sb2",
            "r1",
        )
        db.update_session_runner("s1", None)
        session = db.get_session("s1")
        assert session is not None
        assert session.runner_id is None

    def test_a_status_of_a_newer_server_is_returned_as_it_is(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        make_session(db)
        rewrite("sessions", "s1", status="Hibernating")

        session = db.get_session("s1")

        assert session is not None
        assert session.status == "Hibernating"
        assert db.bulk_pause_active_sessions() == 0

    def test_list_sessions_is_newest_first_to_the_microsecond(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        _sessions_made_at(
            db,
            rewrite,
            {"c": 0, "a": 1, "d": 0.5, "e": 0.000001, "b": 1.000001, "f": -1},
        )

        assert [session.id for session in db.list_sessions()] == [
            "b",
            "a",
            "d",
            "e",
            "c",
            "f",
        ]

    def test_list_sessions_breaks_ties_by_id_descending_in_code_point_order(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        _sessions_made_at(db, rewrite, dict.fromkeys(IDS, 0.0))

        assert [session.id for session in db.list_sessions()] == IDS[::-1]

    def test_list_sessions_is_of_one_tenant_and_of_one_agent_if_named(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        for number, (tenant, agent) in enumerate(
            [("acme", "a"), ("acme", "b"), ("other", "a"), ("acme", "a")]
        ):
            make_session(db, f"s{number}", agent, tenant_id=tenant)
            rewrite("sessions", f"s{number}", created_at=instant(number))

        assert [session.id for session in db.list_sessions("acme")] == [
            "s3",
            "s1",
            "s0",
        ]
        assert [session.id for session in db.list_sessions("acme", "a")] == ["s3", "s0"]
        assert [
            session.id for session in db.list_sessions(tenant_id="other", agent="a")
        ] == ["s2"]
        assert db.list_sessions("acme", "c") == []
        assert db.list_sessions() == []

    def test_list_sessions_returns_what_a_get_returns(self, db: Db) -> None:
        make_session(db)

        assert db.list_sessions() == [db.get_session("s1")]

    @pytest.mark.parametrize("size", [1, 2, 3, 4, 100])
    @pytest.mark.parametrize("agent", [None, "support-bot"])
    def test_list_sessions_pages_through_all_also_where_instants_are_equal(
        self, db: Db, rewrite: Rewrite, size: int, agent: str | None
    ) -> None:
        _sessions_made_at(
            db,
            rewrite,
            dict.fromkeys(IDS, 0.0) | {"new": 1, "old": -1, "new-a": 1, "new-Z": 1},
        )
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
        self, db: Db, rewrite: Rewrite
    ) -> None:
        _sessions_made_at(db, rewrite, {"a": 0, "b": 0, "c": 1, "d": -1})
        c, b, a, d = db.list_sessions()

        assert db.list_sessions(before=c) == [b, a, d]
        assert db.list_sessions(before=b) == [a, d]
        assert db.list_sessions(before=d) == []

    def test_list_sessions_before_a_record_of_another_tenant_shows_nothing_of_that_tenant(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        foreign = make_session(db, "z", tenant_id="other")
        _sessions_made_at(db, rewrite, {"a": 0})

        assert [session.id for session in db.list_sessions(before=foreign)] == ["a"]

    def test_list_sessions_takes_the_largest_limit(self, db: Db) -> None:
        make_session(db)

        assert len(db.list_sessions(limit=2**63 - 1)) == 1

    def test_list_sessions_by_runner_is_of_all_tenants_in_the_same_order(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        for id in IDS:
            make_session(db, id, tenant_id=f"tenant of {id}")
            db.update_session_runner(id, "r1")
            rewrite("sessions", id, created_at=instant())
        make_session(db, "other")
        db.update_session_runner("other", "r2")
        make_session(db, "none")
        rewrite("sessions", "a", created_at=instant(1))

        listed = db.list_sessions_by_runner("r1")

        assert [session.id for session in listed] == [
            "a",
            *(id for id in IDS[::-1] if id != "a"),
        ]
        assert listed[0] == db.get_session("a")
        assert db.list_sessions_by_runner("r3") == []

    def test_bulk_pause_by_runner_pauses_that_runners_active_and_starting_sessions(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        _sessions_in_every_status(db, rewrite)
        before = _by_id(db)

        assert db.bulk_pause_sessions_by_runner("r1") == 2

        after = _by_id(db)
        for id in ("active r1", "starting r1"):
            old, paused = before.pop(id), after.pop(id)
            assert paused.status == "paused"
            assert paused.last_active_at > old.last_active_at
            assert paused.created_at == old.created_at
        assert after == before
        assert db.bulk_pause_sessions_by_runner("r1") == 0
        assert db.bulk_pause_sessions_by_runner("r3") == 0

    @pytest.mark.parametrize("update", UPDATES)
    def test_update_of_a_session_sets_last_active_at_of_that_one(
        self, db: Db, rewrite: Rewrite, update: Callable[[Db, str], bool]
    ) -> None:
        made = make_session(db)
        make_session(db, "s2")
        for id in ("s1", "s2"):
            rewrite("sessions", id, created_at=instant(), last_active_at=instant(1))
        other = db.get_session("s2")

        assert update(db, "s1") is True

        session = db.get_session("s1")
        assert session is not None
        assert (session.created_at, session.tenant_id, session.agent_name) == (
            instant(),
            "default",
            "support-bot",
        )
        assert session.last_active_at >= made.last_active_at
        assert db.get_session("s2") == other

    def test_list_sessions_before_a_record_that_was_deleted_goes_on_where_it_stood(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        _sessions_made_at(db, rewrite, {"a": 0, "b": 0, "c": 0})
        _, b, a = db.list_sessions()
        db.delete_session("b")

        assert db.list_sessions(before=b) == [a]

    def test_bulk_pause_pauses_active_and_starting_sessions_of_all_runners(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        _sessions_in_every_status(db, rewrite)

        assert db.bulk_pause_active_sessions() == 6

        sessions = [
            s
            for tenant in ("r1", "r2", None)
            for s in db.list_sessions(f"tenant of {tenant}")
        ]
        assert Counter(s.status for s in sessions) == {
            "paused": 9,
            "ended": 3,
            "error": 3,
            "stopped": 3,
        }
        assert len([s for s in sessions if s.last_active_at > instant()]) == 6
        assert db.bulk_pause_active_sessions() == 0

    def test_prune_deletes_the_longest_inactive_finished_sessions(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        for number, status in enumerate(("ended", "stopped", "error")):
            _finished(db, rewrite, status, -3 - number, status)
        for status in ("active", "starting", "paused", "a newer one"):
            _finished(db, rewrite, status, -100, status)
        _finished(db, rewrite, "at that moment", 0)

        assert db.prune_sessions(instant(), 2) == 2
        assert db.get_session("ended") is not None
        assert db.prune_sessions(instant(), 2) == 1
        assert db.prune_sessions(instant(), 2) == 0

        left = {s.id for s in db.list_sessions()}
        assert left == {"active", "starting", "paused", "a newer one", "at that moment"}

    def test_prune_takes_their_cold_sandboxes_along_and_no_others(
        self, db: Db, rewrite: Rewrite
    ) -> None:
        id = "s'\"\\ é😀\n\x1f"
        _finished(db, rewrite, id, -1)
        make_session(db, "s2")
        for name, session, state in (
            ("gone", id, "cold"), ("warm", id, "warm"), ("another's", "s2", "cold"), ("nobody's", None, "cold")
        ):  # fmt: skip
            make_sandbox(db, name, session_id=session)
            rewrite("sandboxes", name, state=state)

        assert db.prune_sessions(instant(), 10) == 1

        assert {sandbox.id for sandbox in db.list_sandboxes()} == {
            "another's",
            "nobody's",
            "warm",
        }

    def test_prune_of_equal_age_goes_by_id(self, db: Db, rewrite: Rewrite) -> None:
        for id in ("b", "B", "a", "é"):
            _finished(db, rewrite, id, -1)

        assert db.prune_sessions(instant(), 2) == 2

        assert sorted(s.id for s in db.list_sessions()) == ["b", "é"]
