"""What each call answers and changes in one world of rows. That it changes nothing else is checked with every call."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, astuple
from datetime import datetime, timedelta, timezone
from itertools import product
from operator import methodcaller
from typing import Any

import pytest

from agentdb.interface import Db, SandboxState, SessionStatus
from agentdb.testing.conformance.subject import Kind, Subject, instant

AN_HOUR = timedelta(hours=1)
A_CENTURY = timedelta(days=36_500)
NO_TIME = timedelta(0)
WEST = timezone(timedelta(hours=-5, minutes=-30))

# -- the world: a session in each status on each runner, and a sandbox in each state of each of three owners

# Every kind of quote, for an implementation that writes ids of one statement into the next one. By code point this
# runner comes before "r1", and after None; in the order of a locale it does not.
ODD = "R2'\"\\ é😀\n\x1f"
RUNNERS = ("r1", ODD, None)
FINISHED = ("ended", "error", "stopped")
# A newer server's status too: during a rolling upgrade both use one database.
STATUSES = [*map(str, SessionStatus), "Hibernating"]

# The sessions that have sandboxes; None is those that no session has.
OWNERS = ("active r1", f"ended {ODD}", None)
# "COLD" and "cold " are not cold: only a comparison that folds case or pads with blanks says so. "another" is before
# "cold" in the alphabet and most are after it, for a <> that was built of < and >.
STATES = [*map(str, SandboxState), "another", "COLD", "cold "]

TENANTS = [f"tenant of {each}" for each in RUNNERS + OWNERS]

# When rows in a status or state were last active or used, in seconds; all others long before these. So what may still
# run is the oldest, and what is evicted first is the youngest.
AGES = {
    "error": 0,
    "ended": -1,
    "stopped": -2,
    "cold": -1,
    "warm": -2,
    "waiting": -3,
}
LONG_BEFORE = -100


def _create_world(kinds: list[Kind], later: timedelta = NO_TIME) -> None:
    """Make all rows; the longer ago a row was active or used, the later it was created."""
    states_and_owners = (
        (STATUSES, "runner_id", RUNNERS),
        (STATES, "session_id", OWNERS),
    )
    for kind, (states, column, owners) in zip(kinds, states_and_owners, strict=True):
        for state, owner in product(states, owners):
            age = AGES.get(state, LONG_BEFORE)
            columns = {
                column: owner,
                kind.state: state,
                kind.time: instant(age) + later,
            }
            kind.make(
                f"{state} {owner}",
                tenant_id=f"tenant of {owner}",
                created_at=instant(-age),
                **columns,
            )


def _stored(db: Db) -> dict[str, Any]:
    """Return all sessions and sandboxes by their ids, which have no id in common."""
    stored = {}
    for tenant in TENANTS:
        rows: list[Any] = [*db.list_sessions(tenant), *db.list_sandboxes(tenant)]
        for row in rows:
            stored[row.id] = row
    return stored


# -- calls that change rows: the answer, and by their ids what the rows become; None is a row that is deleted. The
# answer "before" or "after" is the record of the one row that changes.

Call = Callable[[Db], object]
Change = dict[str, object] | None
ALIVE: Change = {"last_active_at": "now"}
USED: Change = {"last_used_at": "now"}
TAKEN: Change = {"runner_id": "r3", "last_active_at": "now"}
PAUSED: Change = {"status": "paused", "last_active_at": "now"}
COLD: Change = {"state": "cold"}

NOT_COLD = [state for state in STATES if state != "cold"]
TIMES = {"last_active_at", "last_used_at"}


def _each(change: Change, first: list[str], *second: object) -> dict[str, Change]:
    """Return the change for each row whose id is one of the first words with one of the second ones."""
    words = product(first, second)
    return dict.fromkeys((" ".join(map(str, pair)) for pair in words), change)


def _of_row(
    answer: object, change: Change, method: str, id: str, *args: Any, **kwargs: Any
) -> tuple[Call, object, dict[str, Change]]:
    """Return what is expected of a call whose first argument names the row that it changes."""
    return methodcaller(method, id, *args, **kwargs), answer, {id: change}


CHANGES: dict[str, tuple[Call, object, dict[str, Change]]] = {
    # -- claims of sessions
    "a session that nobody has is claimed": _of_row(
        "after", TAKEN, "claim_session", "starting None", "r3"
    ),
    # So that a claim whose answer was lost with the connection can simply be repeated.
    "a runner claims what it has": _of_row(
        "after", ALIVE, "claim_session", "active r1", "r1"
    ),
    "a paused session is claimed and stays paused": _of_row(
        "after", TAKEN, "claim_session", "paused r1", "r3"
    ),
    # The claim is a sign of life: without it a third runner, which found the same silent session, would take it again.
    "a silent session of another runner is claimed": _of_row(
        "after", TAKEN, "claim_session", "starting r1", "r3", silent_for=AN_HOUR
    ),
    "a silent session of a newer server's status is claimed": _of_row(
        "after", TAKEN, "claim_session", "Hibernating r1", "r3", silent_for=AN_HOUR
    ),
    # -- signs of life: a runner that only sets statuses must not be taken for a silent one
    "a session is touched": _of_row(True, ALIVE, "touch_session", "ended None"),
    "a runner touches its session": _of_row(
        True, ALIVE, "touch_session", "active r1", runner_id="r1"
    ),
    # One UPDATE returns its rows in any order, and an id given twice once: the implementation has to restore both.
    "sessions are touched in the order given, each once": (
        methodcaller(
            "touch_sessions", ["paused r1", "x", "active r1", "error None", "paused r1"]
        ),
        ["paused r1", "active r1", "error None"],
        {"paused r1": ALIVE, "active r1": ALIVE, "error None": ALIVE},
    ),
    # An id that does not come back is how a runner that was cut off learns that it lost the session. The keys of a
    # dictionary are a collection that is neither a list nor a set.
    "a runner touches those of the sessions that it still has": (
        methodcaller(
            "touch_sessions",
            dict.fromkeys(
                ["paused r1", "active None", f"active {ODD}", "active r1"]
            ).keys(),
            runner_id="r1",
        ),
        ["paused r1", "active r1"],
        {"paused r1": ALIVE, "active r1": ALIVE},
    ),
    "a status is set": _of_row(
        True,
        {"status": "active", "last_active_at": "now"},
        "update_session_status",
        "ended r1",
        "active",
    ),
    "a session's sandbox is set": _of_row(
        True,
        {"sandbox_id": "sb2", "last_active_at": "now"},
        "update_session_sandbox",
        "ended r1",
        "sb2",
    ),
    "a runner is set": _of_row(True, TAKEN, "update_session_runner", "ended r1", "r3"),
    "a runner is cleared": _of_row(
        True,
        {"runner_id": None, "last_active_at": "now"},
        "update_session_runner",
        "active r1",
        None,
    ),
    # -- updates of sandboxes are not uses, by which eviction goes
    "a state is set": _of_row(
        True, {"state": "running"}, "update_sandbox_state", "warm None", "running"
    ),
    "a sandbox's session is set": _of_row(
        True, {"session_id": "s9"}, "update_sandbox_session", "warm None", "s9"
    ),
    "a sandbox's session is cleared": _of_row(
        True, {"session_id": None}, "update_sandbox_session", "warm active r1", None
    ),
    # -- conditions, compared in the statement that writes. After a read of its own, two callers could both be told True
    "a status is set if it is that one": _of_row(
        True, PAUSED, "update_session_status", "active r1", "paused", only_if="active"
    ),
    "a status is set if it is one of those": _of_row(
        True,
        PAUSED,
        "update_session_status",
        "active r1",
        SessionStatus.PAUSED,
        only_if={SessionStatus.ACTIVE, SessionStatus.ENDED},
    ),
    # None is a condition, "nobody has it", and not the absence of one. In SQL it needs IS NULL: = NULL is never true.
    "a runner is set if nobody has the session": _of_row(
        True, TAKEN, "update_session_runner", "active None", "r3", only_if=None
    ),
    "a runner is set if that one has the session": _of_row(
        True, TAKEN, "update_session_runner", "active r1", "r3", only_if="r1"
    ),
    "a state is set if it is that one": _of_row(
        True, COLD, "update_sandbox_state", "warm None", "cold", only_if="warm"
    ),
    "a state is set if it is one of those": _of_row(
        True,
        COLD,
        "update_sandbox_state",
        "warm None",
        SandboxState.COLD,
        only_if=("running", "warm"),
    ),
    # -- bulk pauses
    "a runner's active and starting sessions are paused": (
        methodcaller("bulk_pause_sessions_by_runner", "r1"),
        2,
        _each(PAUSED, ["active", "starting"], "r1"),
    ),
    "all active and starting sessions are paused": (
        methodcaller("bulk_pause_active_sessions"),
        6,
        _each(PAUSED, ["active", "starting"], *RUNNERS),
    ),
    "a tenant's active and starting sessions are paused": (
        lambda db: db.for_tenant("tenant of r1").bulk_pause_active_sessions(),
        2,
        _each(PAUSED, ["active", "starting"], "r1"),
    ),
    # -- deletions: a session's sandboxes stay. agent_name is not a foreign key: sessions may precede their agent, which
    # the answer is about, or outlive it, and no cascade removes them.
    "a session is deleted": _of_row(True, None, "delete_session", "active r1"),
    "a sandbox is deleted": _of_row(True, None, "delete_sandbox", "warm None"),
    "sessions of an agent that does not exist are deleted": (
        methodcaller("delete_agent", "support-bot", "tenant of r1"),
        False,
        _each(None, STATUSES, "r1"),
    ),
    # -- retention: an active session, however old, is not for deletion, nor what only a newer server could judge. And a
    # sandbox that is not cold may be in use, whatever its session's status says.
    "finished sessions that are old enough are pruned with their cold sandboxes": (
        methodcaller("prune_sessions", instant(), 10),
        6,
        _each(None, ["ended", "stopped"], *RUNNERS) | {f"cold ended {ODD}": None},
    ),
    "failed sessions are pruned too": (
        methodcaller("prune_sessions", instant(0.000001), 10),
        9,
        _each(None, ["ended", "stopped", "error"], *RUNNERS)
        | {f"cold ended {ODD}": None},
    ),
    # The limit cuts one order for all engines, so that each deletes the same sessions.
    "the longest inactive are pruned first and equals by id": (
        methodcaller("prune_sessions", instant(), 2),
        2,
        _each(None, ["stopped"], None, ODD),
    ),
    # -- uses of sandboxes
    "a sandbox is touched": _of_row(True, USED, "touch_sandbox", "cold None"),
    "sandboxes are touched in the order given, each once": (
        methodcaller(
            "touch_sandboxes",
            ["warm None", "x", "another None", "running None", "warm None"],
        ),
        ["warm None", "another None", "running None"],
        _each(USED, ["warm", "another", "running"], None),
    ),
    # As it is now, unlike what is claimed for eviction: the caller goes on to use what it gets. The pool of an agent
    # holds its own warm sandboxes, of its tenant, that have no session.
    "a warm sandbox is claimed with its session": (
        methodcaller("claim_warm_sandbox", "support-bot", "s9", "tenant of None"),
        "after",
        {
            "warm None": {
                "state": "waiting",
                "session_id": "s9",
                "last_used_at": "now",
            }
        },
    ),
    # -- marks: eviction goes by the last use, so a server that marks sandboxes at its start must not move it
    "all sandboxes that are not cold are marked": (
        methodcaller("mark_all_sandboxes_cold"),
        21,
        _each(COLD, NOT_COLD, *OWNERS),
    ),
    "a tenant's sandboxes that are not cold are marked": (
        lambda db: db.for_tenant("tenant of None").mark_all_sandboxes_cold(),
        7,
        _each(COLD, NOT_COLD, None),
    ),
    "the sandboxes of a runner's sessions that are not cold are marked": (
        methodcaller("mark_sandboxes_cold_by_runner", "r1"),
        7,
        _each(COLD, NOT_COLD, "active r1"),
    ),
    # -- eviction: the state decides first, and the age only within one. An evicter saves a sandbox's workspace when it
    # claims it, and removes it when it claims it as a cold one: only the record as it was before tells it which.
    "a cold sandbox is evicted first, and deleted": (
        methodcaller("claim_eviction_candidate"),
        "before",
        {"cold None": None},
    ),
    "a tenant's cold sandbox is evicted first": (
        lambda db: db.for_tenant("tenant of active r1").claim_eviction_candidate(),
        "before",
        {"cold active r1": None},
    ),
    # The condition belongs into the search. Tested on the one candidate it found, it ends the search too early.
    "a warm sandbox is evicted if all cold ones were used since, and becomes cold": (
        methodcaller("claim_eviction_candidate", unused_since=instant(-1)),
        "before",
        {"warm None": COLD},
    ),
    "a waiting sandbox is evicted if all others were used since": (
        methodcaller("claim_eviction_candidate", unused_since=instant(-2)),
        "before",
        {"waiting None": COLD},
    ),
}

# -- calls that change nothing, by their answers; records are told by their ids

ANSWERS: list[tuple[object, list[Call]]] = [
    (
        None,
        [
            methodcaller("claim_session", "active r1", "r3"),
            methodcaller("claim_session", "active r1", "r3", silent_for=A_CENTURY),
            # Nobody gets a finished session. It is silent because the work is done.
            *(methodcaller("claim_session", f"{each} None", "r3") for each in FINISHED),
            *(
                methodcaller("claim_session", f"{each} r1", "r3", silent_for=NO_TIME)
                for each in FINISHED
            ),
            methodcaller("claim_warm_sandbox", "support-bot", "s9"),
            methodcaller("claim_warm_sandbox", "another-bot", "s9", "tenant of None"),
            methodcaller(
                "claim_warm_sandbox",
                "support-bot",
                "s9",
                "tenant of active r1",
            ),
            # A running or warming sandbox does work, and nobody knows what a newer server's state means: these stay.
            methodcaller("claim_eviction_candidate", unused_since=instant(-3)),
            methodcaller("get_best_eviction_candidate", unused_since=instant(-3)),
        ],
    ),
    (
        False,
        [
            # A touch that went through all the same would hide from the fleet that the new runner is dead.
            methodcaller("touch_session", f"active {ODD}", runner_id="r1"),
            methodcaller("touch_session", "active None", runner_id="r1"),
            methodcaller("delete_agent", "another-bot", "tenant of r1"),
            # Not even last_active_at changes: an update that is refused is not a sign of life.
            *(
                methodcaller("update_session_status", id, "ended", only_if=only_if)
                for id, only_if in (
                    ("active r1", "paused"),
                    ("active r1", ("paused", "ended")),
                    ("x", "active"),
                )
            ),
            *(
                methodcaller("update_session_runner", id, "r3", only_if=only_if)
                for id, only_if in (
                    ("active r1", None),
                    ("active r1", "r3"),
                    ("active None", "r3"),
                )
            ),
            *(
                methodcaller("update_sandbox_state", id, "cold", only_if=only_if)
                for id, only_if in (
                    ("warm None", "cold"),
                    ("warm None", ("cold", "running")),
                    ("x", "warm"),
                )
            ),
        ],
    ),
    (
        0,
        [
            methodcaller("bulk_pause_sessions_by_runner", "r3"),
            methodcaller("mark_sandboxes_cold_by_runner", "r3"),
            methodcaller("prune_sessions", instant(-2), 10),
            methodcaller("count_sessions"),
            methodcaller("count_sessions", "tenant of r1", agent="another-bot"),
        ],
    ),
    # The machines are shared, so the count of sandboxes is of all tenants, or else a view's. A status or state that is
    # named twice counts once.
    (1, [methodcaller("count_sessions", "tenant of r1", status="active")]),
    (
        2,
        [
            methodcaller(
                "count_sessions",
                "tenant of r1",
                status=["active", "paused", "active"],
            )
        ],
    ),
    (3, [methodcaller("count_sandboxes", state="cold")]),
    (6, [methodcaller("count_sandboxes", state=["cold", "warming", "cold"])]),
    (7, [methodcaller("count_sessions", "tenant of r1", agent="support-bot")]),
    (8, [lambda db: db.for_tenant("tenant of None").count_sandboxes()]),
    (24, [methodcaller("count_sandboxes")]),
    (
        [],
        [
            methodcaller("touch_sessions", ["active None", "x"], runner_id="r1"),
            methodcaller("list_sessions_by_runner", "r3"),
            methodcaller("list_sandboxes_by_runner", "r3"),
            # An agent's own are the second argument.
            methodcaller("list_sessions", "tenant of r1", "another-bot"),
        ],
    ),
    # Newest first, then by id descending.
    (
        [
            "starting r1",
            "paused r1",
            "active r1",
            "Hibernating r1",
            "stopped r1",
            "ended r1",
            "error r1",
        ],
        [
            methodcaller("list_sessions_by_runner", "r1"),
            methodcaller("list_sessions", "tenant of r1", "support-bot"),
        ],
    ),
    # A sandbox is on the runner of its session, whatever the tenants of the two: here they differ.
    (
        [
            "warming active r1",
            "running active r1",
            "cold  active r1",
            "another active r1",
            "COLD active r1",
            "waiting active r1",
            "warm active r1",
            "cold active r1",
        ],
        [methodcaller("list_sandboxes_by_runner", "r1")],
    ),
    # An instant means the same in every zone. Compared as texts, or with the zone dropped, one in a zone west of UTC
    # asks about another half of the day.
    (
        ["waiting None", "waiting active r1", f"waiting ended {ODD}"],
        [methodcaller("get_idle_sandboxes", instant(-2).astimezone(WEST))],
    ),
    (
        ["cold None", "cold active r1", f"cold ended {ODD}"],
        [methodcaller("get_cold_sandboxes", instant())],
    ),
    (
        [
            "active None",
            f"active {ODD}",
            "active r1",
            "starting None",
            f"starting {ODD}",
            "starting r1",
        ],
        [methodcaller("get_silent_sessions", instant())],
    ),
    (
        ["active None", f"active {ODD}"],
        [methodcaller("get_silent_sessions", instant(), limit=2)],
    ),
    # What was last active or used at that instant is not older.
    (
        [],
        [
            methodcaller("get_idle_sandboxes", instant(-3).astimezone(WEST)),
            methodcaller("get_cold_sandboxes", instant(-1)),
            methodcaller("get_silent_sessions", instant(LONG_BEFORE)),
        ],
    ),
    ("cold None", [methodcaller("get_best_eviction_candidate")]),
    (
        "warm None",
        [methodcaller("get_best_eviction_candidate", unused_since=instant(-1))],
    ),
    (
        "waiting None",
        [methodcaller("get_best_eviction_candidate", unused_since=instant(-2))],
    ),
]


def _changed(before: dict[str, Any], after: dict[str, Any]) -> dict[str, Change]:
    """Return what the rows that changed have become; "now" is the latest of all times."""
    values = [value for row in after.values() for value in astuple(row)]
    # A time for each row, which tells a loop of statements from one, is not this one.
    now = max(value for value in values if isinstance(value, datetime))
    changed: dict[str, Change] = {}
    for id, old in before.items():
        new = after.get(id)
        if new is None:
            changed[id] = None
        elif new != old:
            # The pairs of names and values that were not there before.
            columns = asdict(new).items() - asdict(old).items()
            changed[id] = {
                column: "now" if value == now else value for column, value in columns
            }
    return changed


class ChangeContract(Subject):
    @pytest.mark.parametrize("name", CHANGES)
    def test_a_call_changes(
        self,
        db: Db,
        kinds: list[Kind],
        name: str,
    ) -> None:
        """Each call answers what it should, and these rows change so, and no others."""
        call, expected, changes = CHANGES[name]
        _create_world(kinds)
        before = _stored(db)

        answer = call(db)

        after = _stored(db)
        if isinstance(expected, str):
            (id,) = changes
            expected = {"before": before, "after": after}[expected].get(id)
        assert answer == expected
        assert _changed(before, after) == changes

    @pytest.mark.parametrize("name", CHANGES)
    def test_a_call_moves_no_time_backwards(
        self,
        db: Db,
        kinds: list[Kind],
        name: str,
    ) -> None:
        """A time of the last activity or use that lies in the future stays as it is.

        A clock that was set back would otherwise make what is alive look silent, or unused, to the whole fleet.
        """
        call, *_ = CHANGES[name]
        _create_world(kinds, later=A_CENTURY)
        before = _stored(db)

        call(db)

        for change in _changed(before, _stored(db)).values():
            assert change is None or not change.keys() & TIMES

    def test_a_call_that_changes_nothing(
        self,
        db: Db,
        kinds: list[Kind],
    ) -> None:
        """These calls answer so, and leave all rows as they are."""
        _create_world(kinds)
        stored = _stored(db)

        for expected, calls in ANSWERS:
            if isinstance(expected, str):
                expected = stored[expected]
            if isinstance(expected, list):
                expected = [stored[id] for id in expected]
            for call in calls:
                answer = call(db)

                assert answer == expected, call
                # Not 0 for False.
                assert type(answer) is type(expected), call

        assert _stored(db) == stored
