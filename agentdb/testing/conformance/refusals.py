"""Input that every engine refuses with the same message: the arguments of every method, and bad values."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from datetime import datetime, timedelta, timezone
from itertools import combinations
from typing import Any

import pytest

from agentdb.errors import DatabaseClosedError, InvalidInputError
from agentdb.inputs import arguments_of
from agentdb.interface import Db, SandboxRecord, SandboxState, SessionRecord
from agentdb.testing.conformance.subject import Subject, instant

RECORD = SessionRecord(
    "s1",
    "default",
    "a",
    "sb1",
    "active",
    None,
    instant(),
    instant(),
)

SANDBOX = SandboxRecord(
    "sb1",
    "default",
    None,
    "a",
    "cold",
    "/",
    instant(),
    instant(),
)

# These have no arguments to refuse, and do something else once the Db is closed.
_OTHERS = {"run_transaction", "health", "close"}
METHODS = [
    name for name in vars(Db) if not name.startswith("_") and name not in _OTHERS
]


def valid_arguments(method: str) -> dict[str, Any]:
    """Return a valid value for each argument of the method."""
    return {each.name: VALID[each.kind] for each in arguments_of(method)}


def refused_arguments(method: str) -> Iterator[tuple[dict[str, Any], str]]:
    """Yield arguments of the method of which one is invalid, and the message for it."""
    valid = valid_arguments(method)
    for each in arguments_of(method):
        for value, message in REFUSED[each.kind]:
            if value is None and each.may_be_none:
                continue
            yield valid | {each.name: value}, message.format(what=each.called)


# By kind: an argument's annotation in Db, so that a new method needs no line here, or what else it is.
VALID: dict[str, Any] = {
    "str": "x",
    "text": "x",
    "str | EllipsisType": "x",
    "SessionStatusInput": "active",
    "SandboxStateInput": "cold",
    "int": 1,
    "SessionStatusesInput": ("active", "paused"),
    "SandboxStatesInput": ("cold", "warm"),
    "timedelta": timedelta(minutes=1),
    "Collection[str]": ["x", "y"],
    "SessionRecord | str": RECORD,
    "SandboxRecord | str": SANDBOX,
    "datetime": instant(),
    "key": "agentdb_x",
    "Sequence[str]": [],
}

# NUL: PostgreSQL refuses it and SQLite's own functions end the string there. Surrogates: neither driver encodes them.
_NOT_TEXT: list[tuple[object, str]] = [
    (None, "{what} must be a string, not NoneType."),
    (5, "{what} must be a string, not int."),
    (b"x", "{what} must be a string, not bytes."),
    (["x"], "{what} must be a string, not list."),
    ("a\0b", "{what} 'a\\x00b' has a NUL character, which PostgreSQL cannot store."),
    ("a\ud800", "{what} 'a\\ud800' has a lone surrogate, which is not a character."),
]
# The limit counts bytes, as index entries do: one four-byte character too many is refused like 513 letters.
_NO_IDENTIFIER: list[tuple[object, str]] = [
    *_NOT_TEXT,
    ("", "{what} must not be empty."),
    ("x" * 513, "{what} has 513 bytes in UTF-8; the limit is 512."),
    ("é" * 257, "{what} has 514 bytes in UTF-8; the limit is 512."),
    ("😀" * 129, "{what} has 516 bytes in UTF-8; the limit is 512."),
]
# A datetime that Python holds, and that has no UTC equivalent: it overflows only when it is converted.
_MAXIMUM = datetime.max.replace(tzinfo=timezone(timedelta(hours=-5)))
_STATUSES = "starting, active, paused, ended, error, stopped"
_STATES = "cold, warming, warm, waiting, running"
# A dict and bytes are collections too, of keys and of numbers; a generator would be used up before a retry.
_NOT_SEVERAL: list[tuple[object, str]] = [
    (5, "{what} must be a collection of strings, not int."),
    (b"x", "{what} must be a collection of strings, not bytes."),
    ({"x": 1}, "{what} must be a collection of strings, not dict."),
    ((each for each in "x"), "{what} must be a collection of strings, not generator."),
    ([], "{what} must not be empty."),
    (set(), "{what} must not be empty."),
]


def _several(unknown: str, of: str) -> list[tuple[object, str]]:
    """Return what is refused for a status or state, or several of them."""
    return [
        *_NOT_SEVERAL,
        ("frozen", unknown),
        (["frozen"], unknown),
        ([None], f"{of} must be a string, not NoneType."),
        (["frozen"] * 101, "{what} has 101 items; the limit is 100."),
    ]


def _before(record: SessionRecord | SandboxRecord) -> list[tuple[object, str]]:
    """Return what is refused as the place after which a list of such records goes on."""
    what = type(record).__name__
    return [
        ("s1", f"before 's1' is not the cursor of a {what}."),
        ("", f"before '' is not the cursor of a {what}."),
        (5, f"before must be a {what} of the page before, or its cursor, not int."),
        (
            ("s1", instant()),
            f"before must be a {what} of the page before, or its cursor, not tuple.",
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
    "str": _NO_IDENTIFIER,
    "text": _NOT_TEXT,
    "str | EllipsisType": _NO_IDENTIFIER,
    "SessionStatusInput": [
        (None, "Session status must be a string, not NoneType."),
        (5, "Session status must be a string, not int."),
        # A StrEnum of another kind is a string like any other.
        *(
            (value, f"Session status {str(value)!r} is not one of {_STATUSES}.")
            for value in ("Active", "cold", "", "a\ud800", SandboxState.WARM)
        ),
    ],
    "SandboxStateInput": [
        (None, "Sandbox state must be a string, not NoneType."),
        (["cold"], "Sandbox state must be a string, not list."),
        ("active", f"Sandbox state 'active' is not one of {_STATES}."),
        ("COLD", f"Sandbox state 'COLD' is not one of {_STATES}."),
    ],
    # True is an int in Python, and 2**63 is a LIMIT that SQLite wraps around to a negative number: no limit at all.
    "int": [
        (value, f"limit must be a whole number from 1 to {2**63 - 1}, not {value!r}.")
        for value in (0, -1, 2**63, True, 1.0, "1")
    ],
    "SessionStatusesInput": _several(
        f"Session status 'frozen' is not one of {_STATUSES}.", "Session status"
    ),
    "SandboxStatesInput": _several(
        f"Sandbox state 'frozen' is not one of {_STATES}.", "Sandbox state"
    ),
    "Collection[str]": [
        *((value, message.format(what="ids")) for value, message in _NOT_SEVERAL),
        ("x", "ids must be a collection of strings, not str."),
        (
            [f"s{number}" for number in range(10_001)],
            "ids has 10001 items; the limit is 10000.",
        ),
        *(([value], message) for value, message in _NO_IDENTIFIER),
    ],
    "timedelta": [
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
    "SessionRecord | str": _before(RECORD),
    "SandboxRecord | str": _before(SANDBOX),
    "datetime": [
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
    "Sequence[str]": [
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


class RefusalContract(Subject):
    @pytest.mark.parametrize("method", METHODS)
    def test_what_no_engine_can_store_is_refused_in_the_same_words(
        self, db: Db, method: str
    ) -> None:
        """One bad value among valid ones is refused, whichever argument has it."""
        call = getattr(db, method)

        for arguments, expected in refused_arguments(method):
            with pytest.raises(InvalidInputError) as raised:
                call(**arguments)

            message = str(raised.value)
            assert message == expected, arguments

    @pytest.mark.parametrize("method", METHODS)
    def test_of_two_bad_arguments_the_first_is_named(self, db: Db, method: str) -> None:
        """So every implementation refuses the same call in the same words."""
        call = getattr(db, method)
        valid = valid_arguments(method)

        for first, second in combinations(arguments_of(method), 2):
            # The last of each kind is never None, which many arguments may be.
            value, message = REFUSED[first.kind][-1]
            other_value, _ = REFUSED[second.kind][-1]
            arguments = valid | {first.name: value, second.name: other_value}
            with pytest.raises(InvalidInputError) as raised:
                call(**arguments)

            expected = message.format(what=first.called)
            assert str(raised.value) == expected, arguments

    @pytest.mark.parametrize("method", METHODS)
    def test_every_method_of_a_closed_db_says_so(self, db: Db, method: str) -> None:
        """Arguments that are valid reach a closed ``Db``, and it refuses the call."""
        call = getattr(db, method)
        arguments = valid_arguments(method)
        db.close()

        with pytest.raises(DatabaseClosedError):
            call(**arguments)
