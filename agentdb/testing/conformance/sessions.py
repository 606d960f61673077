"""Sessions: updates, bulk pauses, retention."""

from __future__ import annotations

from collections import Counter
from datetime import UTC

from agentdb import Db, SessionRecord, SessionStatus
from agentdb.testing.conformance.subject import (
    Rows,
    Subject,
    ids,
    instant,
    make_session,
)

RUNNERS = ("r1", "r2", None)


def _create_in_every_status(rows: Rows) -> None:
    """Make a session in each status for each runner, and for nobody, whose id says which."""
    # A newer server's status too: during a rolling upgrade both use one database.
    for status in [*map(str, SessionStatus), "Hibernating"]:
        for runner in RUNNERS:
            rows.session(
                f"{status} {runner}",
                tenant_id=f"tenant of {runner}",
                status=status,
                runner_id=runner,
                last_active_at=instant(),
            )


def _all_by_id(db: Db) -> dict[str, SessionRecord]:
    sessions = {}
    for runner in RUNNERS:
        for session in db.list_sessions(f"tenant of {runner}"):
            sessions[session.id] = session
    return sessions


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

    # -- bulk pauses

    def test_bulk_pause_by_runner_pauses_that_runners_active_and_starting_sessions(
        self, db: Db, rows: Rows
    ) -> None:
        """Those that change are counted, and their pause is a sign of life; all others stay as they are."""
        _create_in_every_status(rows)
        before = _all_by_id(db)

        count = db.bulk_pause_sessions_by_runner("r1")

        assert count == 2
        after = _all_by_id(db)
        for id in ("active r1", "starting r1"):
            running = before.pop(id)
            paused = after.pop(id)
            assert paused.status == "paused"
            assert paused.last_active_at > running.last_active_at
        assert after == before
        assert db.bulk_pause_sessions_by_runner("r1") == 0
        assert db.bulk_pause_sessions_by_runner("r3") == 0

    def test_bulk_pause_pauses_active_and_starting_sessions_of_all_runners(
        self, db: Db, rows: Rows
    ) -> None:
        """Those that change are counted, and have one new time; sessions of nobody are among them."""
        _create_in_every_status(rows)

        count = db.bulk_pause_active_sessions()

        assert count == 6
        sessions = _all_by_id(db).values()
        statuses = Counter(session.status for session in sessions)
        assert statuses == {
            "paused": 9,
            "ended": 3,
            "error": 3,
            "stopped": 3,
            "Hibernating": 3,
        }
        times = Counter(session.last_active_at for session in sessions)
        # All that were paused have the same new time.
        assert sorted(times.values()) == [6, 15]
        assert db.bulk_pause_active_sessions() == 0

    # -- retention

    def test_prune_deletes_the_finished_sessions_that_are_old_enough(
        self, db: Db, rows: Rows
    ) -> None:
        """Sessions that ended, stopped or failed before the instant are deleted, and counted."""
        for status in ("ended", "stopped", "error"):
            rows.session(
                status,
                status=status,
                last_active_at=instant(-1),
            )
        # However old: what may still run, or what only a newer server could judge, is not for deletion.
        kept = ["active", "starting", "paused", "a newer one"]
        for status in kept:
            rows.session(
                status,
                status=status,
                last_active_at=instant(-100),
            )
        rows.session(
            "at that moment",
            status="ended",
            last_active_at=instant(),
        )

        pruned = db.prune_sessions(instant(), 10)

        assert pruned == 3
        left = ids(db.list_sessions())
        assert {*left} == {*kept, "at that moment"}
        assert db.prune_sessions(instant(), 10) == 0

    def test_prune_deletes_the_longest_inactive_first_and_equals_by_id(
        self, db: Db, rows: Rows
    ) -> None:
        """The limit cuts one order for all engines, so that each deletes the same sessions."""
        for id in ("b", "B", "a", "é"):
            rows.session(
                id,
                status="ended",
                last_active_at=instant(-1),
            )
        rows.session(
            "z longest",
            status="stopped",
            last_active_at=instant(-2),
        )

        pruned = db.prune_sessions(instant(), 3)

        assert pruned == 3
        left = ids(db.list_sessions())
        assert {*left} == {"b", "é"}

    def test_prune_takes_their_cold_sandboxes_along_and_no_others(
        self, db: Db, rows: Rows
    ) -> None:
        """The cold sandboxes of the sessions that are deleted are deleted with them.

        A sandbox that is not cold may be in use, whatever its session's status says.
        """
        # Every kind of quote, for an implementation that writes the ids of the first statement into the second one.
        id = "s'\"\\ é😀\n\x1f"
        rows.session(
            id,
            status="ended",
            last_active_at=instant(-1),
        )
        make_session(db, "s2")
        rows.sandbox("gone", session_id=id, state="cold")
        rows.sandbox("warm", session_id=id, state="warm")
        rows.sandbox("another's", session_id="s2", state="cold")
        rows.sandbox("nobody's", session_id=None, state="cold")

        pruned = db.prune_sessions(instant(), 10)

        assert pruned == 1
        left = ids(db.list_sandboxes())
        assert {*left} == {"another's", "nobody's", "warm"}
