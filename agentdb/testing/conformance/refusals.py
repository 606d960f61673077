"""Input that every engine refuses with the same message: the arguments of every method, and bad values."""

from __future__ import annotations

import dataclasses
import inspect
from datetime import datetime, timedelta, timezone
from typing import Any

import pytest

from agentdb.errors import DatabaseClosedError, InvalidInputError
from agentdb.interface import Db, SandboxRecord, SandboxState, SessionRecord
from agentdb.testing.conformance.subject import Subject, instant

RECORD = SessionRecord(
    "s1", "default", "a", "sb1", "active", None, instant(), instant()
)

SANDBOX = SandboxRecord("sb1", "default", None, "a", "cold", "/", instant(), instant())

# A valid value for each argument of each method; its kind says which bad values are tried.
IDENTIFIER, OPTIONAL, TEXT = "identifier", "optional identifier", "text"
ARGUMENTS: dict[str, dict[str, tuple[str, str]]] = {
    "upsert_agent": {
        "name": (IDENTIFIER, "Agent name"),
        "path": (TEXT, "Agent path"),
        "tenant_id": (IDENTIFIER, "Tenant id"),
    },
    "get_agent": {
        "name": (IDENTIFIER, "Agent name"),
        "tenant_id": (IDENTIFIER, "Tenant id"),
    },
    "list_agents": {"tenant_id": (IDENTIFIER, "Tenant id")},
    "delete_agent": {
        "name": (IDENTIFIER, "Agent name"),
        "tenant_id": (IDENTIFIER, "Tenant id"),
    },
    "insert_session": {
        "id": (IDENTIFIER, "Session id"),
        "agent_name": (IDENTIFIER, "Agent name"),
        "sandbox_id": (IDENTIFIER, "Sandbox id"),
        "tenant_id": (IDENTIFIER, "Tenant id"),
    },
    "update_session_status": {
        "id": (IDENTIFIER, "Session id"),
        "status": ("status", "Session status"),
        "only_if": ("statuses", "only_if"),
    },
    "update_session_sandbox": {
        "id": (IDENTIFIER, "Session id"),
        "sandbox_id": (IDENTIFIER, "Sandbox id"),
    },
    "update_session_runner": {
        "id": (IDENTIFIER, "Session id"),
        "runner_id": (OPTIONAL, "Runner id"),
        "only_if": (OPTIONAL, "only_if"),
    },
    "get_session": {"id": (IDENTIFIER, "Session id")},
    "list_sessions": {
        "tenant_id": (IDENTIFIER, "Tenant id"),
        "agent": (OPTIONAL, "Agent name"),
        "status": ("statuses", "status"),
        "runner_id": (OPTIONAL, "Runner id"),
        "limit": ("limit", "limit"),
        "before": ("record", "SessionRecord"),
    },
    "count_sessions": {
        "tenant_id": (IDENTIFIER, "Tenant id"),
        "agent": (OPTIONAL, "Agent name"),
        "status": ("statuses", "status"),
    },
    "claim_session": {
        "id": (IDENTIFIER, "Session id"),
        "runner_id": (IDENTIFIER, "Runner id"),
        "silent_for": ("length", "silent_for"),
    },
    "get_silent_sessions": {
        "older_than": ("instant", "older_than"),
        "limit": ("limit", "limit"),
    },
    "list_sessions_by_runner": {"runner_id": (IDENTIFIER, "Runner id")},
    "touch_session": {
        "id": (IDENTIFIER, "Session id"),
        "runner_id": (OPTIONAL, "Runner id"),
    },
    "touch_sessions": {
        "ids": ("ids", "Session id"),
        "runner_id": (OPTIONAL, "Runner id"),
    },
    "delete_session": {"id": (IDENTIFIER, "Session id")},
    "insert_sandbox": {
        "id": (IDENTIFIER, "Sandbox id"),
        "agent_name": (IDENTIFIER, "Agent name"),
        "workspace_dir": (TEXT, "Workspace directory"),
        "session_id": (OPTIONAL, "Session id"),
        "tenant_id": (IDENTIFIER, "Tenant id"),
    },
    "update_sandbox_state": {
        "id": (IDENTIFIER, "Sandbox id"),
        "state": ("state", "Sandbox state"),
        "only_if": ("states", "only_if"),
    },
    "update_sandbox_session": {
        "id": (IDENTIFIER, "Sandbox id"),
        "session_id": (OPTIONAL, "Session id"),
    },
    "touch_sandbox": {"id": (IDENTIFIER, "Sandbox id")},
    "get_sandbox": {"id": (IDENTIFIER, "Sandbox id")},
    "touch_sandboxes": {"ids": ("ids", "Sandbox id")},
    "list_sandboxes": {
        "tenant_id": (IDENTIFIER, "Tenant id"),
        "state": ("states", "state"),
        "agent": (OPTIONAL, "Agent name"),
        "session_id": (OPTIONAL, "Session id"),
        "limit": ("limit", "limit"),
        "before": ("sandbox record", "SandboxRecord"),
    },
    "list_sandboxes_by_runner": {"runner_id": (IDENTIFIER, "Runner id")},
    "count_sandboxes": {"state": ("states", "state")},
    "claim_warm_sandbox": {
        "agent_name": (IDENTIFIER, "Agent name"),
        "session_id": (IDENTIFIER, "Session id"),
        "tenant_id": (IDENTIFIER, "Tenant id"),
    },
    "get_best_eviction_candidate": {
        "unused_since": ("optional instant", "unused_since")
    },
    "claim_eviction_candidate": {"unused_since": ("optional instant", "unused_since")},
    "get_idle_sandboxes": {"older_than": ("instant", "older_than")},
    "get_cold_sandboxes": {"older_than": ("instant", "older_than")},
    "delete_sandbox": {"id": (IDENTIFIER, "Sandbox id")},
    "mark_all_sandboxes_cold": {},
    "mark_sandboxes_cold_by_runner": {"runner_id": (IDENTIFIER, "Runner id")},
    "bulk_pause_sessions_by_runner": {"runner_id": (IDENTIFIER, "Runner id")},
    "bulk_pause_active_sessions": {},
    "get_api_key_by_hash": {"key_hash": (IDENTIFIER, "Key hash")},
    "insert_api_key": {
        "id": (IDENTIFIER, "API key id"),
        "tenant_id": (IDENTIFIER, "Tenant id"),
        "key_hash": (IDENTIFIER, "Key hash"),
        "label": (TEXT, "Label"),
    },
    "list_api_keys_by_tenant": {"tenant_id": (IDENTIFIER, "Tenant id")},
    "delete_api_key": {"id": (IDENTIFIER, "API key id")},
    "issue_api_key": {"tenant_id": (IDENTIFIER, "Tenant id"), "label": (TEXT, "Label")},
    "for_tenant": {"tenant_id": (IDENTIFIER, "Tenant id")},
    "prune_sessions": {
        "ended_before": ("instant", "ended_before"),
        "limit": ("limit", "limit"),
        "also": ("tables", "also"),
    },
    "authenticate": {"plain": ("key", "An API key")},
}
VALID: dict[str, Any] = {
    IDENTIFIER: "x",
    OPTIONAL: "x",
    TEXT: "x",
    "status": "active",
    "state": "cold",
    "limit": 1,
    "statuses": ("active", "paused"),
    "states": ("cold", "warm"),
    "length": timedelta(minutes=1),
    "ids": ["x", "y"],
    "record": RECORD,
    "sandbox record": SANDBOX,
    "optional instant": instant(),
    "instant": instant(),
    "key": "agentdb_x",
    "tables": [],
}

_NOT_TEXT: list[tuple[object, str]] = [
    (5, "{what} must be a string, not int."),
    (b"x", "{what} must be a string, not bytes."),
    (["x"], "{what} must be a string, not list."),
    ("a\0b", "{what} 'a\\x00b' has a NUL character, which PostgreSQL cannot store."),
    ("a\ud800", "{what} 'a\\ud800' has a lone surrogate, which is not a character."),
]
_NO_IDENTIFIER: list[tuple[object, str]] = [
    *_NOT_TEXT,
    ("", "{what} must not be empty."),
    ("x" * 513, "{what} has 513 bytes in UTF-8; the limit is 512."),
    ("é" * 257, "{what} has 514 bytes in UTF-8; the limit is 512."),
    ("😀" * 129, "{what} has 516 bytes in UTF-8; the limit is 512."),
]
_NONE: tuple[object, str] = (None, "{what} must be a string, not NoneType.")
_MAXIMUM = datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))
_STATUSES = "starting, active, paused, ended, error, stopped"
_STATES = "cold, warming, warm, waiting, running"
_NOT_SEVERAL: list[tuple[object, str]] = [
    (5, "{name} must be a collection of strings, not int."),
    (b"x", "{name} must be a collection of strings, not bytes."),
    ({"x": 1}, "{name} must be a collection of strings, not dict."),
    ((each for each in "x"), "{name} must be a collection of strings, not generator."),
    ([], "{name} must not be empty."),
    (set(), "{name} must not be empty."),
]


def _several(unknown: str, of: str) -> list[tuple[object, str]]:
    return [
        *((value, message.format(name="{what}")) for value, message in _NOT_SEVERAL),
        ("frozen", unknown),
        (["frozen"], unknown),
        ([None], f"{of} must be a string, not NoneType."),
        (["frozen"] * 101, "{what} has 101 items; the limit is 100."),
    ]


def _before(record: SessionRecord | SandboxRecord) -> list[tuple[object, str]]:
    return [
        ("s1", "before 's1' is not the cursor of a {what}."),
        ("", "before '' is not the cursor of a {what}."),
        (5, "before must be a {what} of the page before, or its cursor, not int."),
        (
            ("s1", instant()),
            "before must be a {what} of the page before, or its cursor, not tuple.",
        ),
        (
            "2026-03-01T12:00:00,s1",
            "The instant of before 2026-03-01T12:00:00 has no time zone; pass an aware datetime.",
        ),
        ("2026-03-01T12:00:00Z", "The id of before must not be empty."),
        ("2026-03-01T12:00:00Z,", "The id of before must not be empty."),
        (
            "2026-03-01T12:00:00Z,a\0b",
            "The id of before 'a\\x00b' has a NUL character, which PostgreSQL cannot store.",
        ),
        (
            dataclasses.replace(record, created_at=datetime(2026, 1, 1)),
            "The instant of before 2026-01-01T00:00:00 has no time zone; pass an aware datetime.",
        ),
        (
            dataclasses.replace(record, created_at=_MAXIMUM),
            "The instant of before 9999-12-31T23:59:59.999999-05:00 is outside the years 1 to 9999 in UTC.",
        ),
        (dataclasses.replace(record, id=""), "The id of before must not be empty."),
    ]


REFUSED: dict[str, list[tuple[object, str]]] = {
    IDENTIFIER: [_NONE, *_NO_IDENTIFIER],
    OPTIONAL: _NO_IDENTIFIER,
    TEXT: [_NONE, *_NOT_TEXT],
    "status": [
        _NONE,
        (5, "{what} must be a string, not int."),
        ("Active", f"{{what}} 'Active' is not one of {_STATUSES}."),
        ("cold", f"{{what}} 'cold' is not one of {_STATUSES}."),
        ("", f"{{what}} '' is not one of {_STATUSES}."),
        ("a\ud800", f"{{what}} 'a\\ud800' is not one of {_STATUSES}."),
        (SandboxState.WARM, f"{{what}} 'warm' is not one of {_STATUSES}."),
    ],
    "state": [
        _NONE,
        (["cold"], "{what} must be a string, not list."),
        ("active", f"{{what}} 'active' is not one of {_STATES}."),
        ("COLD", f"{{what}} 'COLD' is not one of {_STATES}."),
    ],
    "limit": [
        (0, "limit must be a whole number from 1 to 9223372036854775807, not 0."),
        (-1, "limit must be a whole number from 1 to 9223372036854775807, not -1."),
        (
            2**63,
            "limit must be a whole number from 1 to 9223372036854775807, not 9223372036854775808.",
        ),
        (True, "limit must be a whole number from 1 to 9223372036854775807, not True."),
        (1.0, "limit must be a whole number from 1 to 9223372036854775807, not 1.0."),
        ("1", "limit must be a whole number from 1 to 9223372036854775807, not '1'."),
    ],
    "statuses": _several(
        f"Session status 'frozen' is not one of {_STATUSES}.", "Session status"
    ),
    "states": _several(
        f"Sandbox state 'frozen' is not one of {_STATES}.", "Sandbox state"
    ),
    "ids": [
        *((value, message.format(name="ids")) for value, message in _NOT_SEVERAL),
        ("x", "ids must be a collection of strings, not str."),
        (
            [f"s{number}" for number in range(10_001)],
            "ids has 10001 items; the limit is 10000.",
        ),
        *(([value], message) for value, message in [_NONE, *_NO_IDENTIFIER]),
    ],
    "length": [
        (60, "{what} must be a timedelta, not int."),
        (instant(), "{what} must be a timedelta, not datetime."),
        (
            timedelta(microseconds=-1),
            "{what} must be from 0 to 36500 days, not -1 day, 23:59:59.999999.",
        ),
        (
            timedelta.max,
            "{what} must be from 0 to 36500 days, not 999999999 days, 23:59:59.999999.",
        ),
    ],
    "record": _before(RECORD),
    "sandbox record": _before(SANDBOX),
    "instant": [
        (None, "{what} must be a datetime, not NoneType."),
        ("2026-01-01", "{what} must be a datetime, not str."),
        (datetime(2026, 1, 1).date(), "{what} must be a datetime, not date."),
        (
            datetime(2026, 1, 1),
            "{what} 2026-01-01T00:00:00 has no time zone; pass an aware datetime.",
        ),
        (
            _MAXIMUM,
            "{what} 9999-12-31T23:59:59.999999-05:00 is outside the years 1 to 9999 in UTC.",
        ),
        (
            datetime.min.replace(tzinfo=timezone(timedelta(hours=5))),
            "{what} 0001-01-01T00:00:00+05:00 is outside the years 1 to 9999 in UTC.",
        ),
    ],
    "tables": [
        ("messages", "also must be a list of names of tables, not str."),
        ({"messages"}, "also must be a list of names of tables, not set."),
        ([""], "Table name in also must not be empty."),
        ([5], "Table name in also must be a string, not int."),
        (
            ["messages", "sessions"],
            "also names 'sessions', which is one of agentdb's own tables.",
        ),
    ],
    "key": [
        (None, "{what} must be a string, not NoneType."),
        (b"x", "{what} must be a string, not bytes."),
    ],
}
REFUSED["optional instant"] = REFUSED["instant"][1:]


class RefusalContract(Subject):
    def test_every_argument_of_every_method_is_covered_here(self) -> None:
        methods = {name for name in vars(Db) if not name.startswith("_")} - {
            "run_transaction",
            "close",
            "health",
        }

        assert set(ARGUMENTS) == methods
        for name in methods:
            assert (
                list(ARGUMENTS[name])
                == list(inspect.signature(getattr(Db, name)).parameters)[1:]
            )

    @pytest.mark.parametrize(
        "name", [name for name, arguments in ARGUMENTS.items() if arguments]
    )
    def test_what_no_engine_can_store_is_refused_in_the_same_words(
        self, db: Db, name: str
    ) -> None:
        for argument, (kind, what) in ARGUMENTS[name].items():
            for value, message in REFUSED[kind]:
                with pytest.raises(InvalidInputError) as raised:
                    getattr(db, name)(**valid_arguments(name) | {argument: value})
                assert str(raised.value) == message.format(what=what), (argument, value)

    def test_every_method_of_a_closed_db_says_so(self, db: Db) -> None:
        db.close()

        for name in ARGUMENTS:
            with pytest.raises(DatabaseClosedError):
                getattr(db, name)(**valid_arguments(name))


def valid_arguments(name: str) -> dict[str, Any]:
    """Return a valid value for each argument of the method."""
    return {argument: VALID[kind] for argument, (kind, _) in ARGUMENTS[name].items()}
