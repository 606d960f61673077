"""Checks of arguments, before any SQL, so that every engine refuses the same input with the same error."""

from __future__ import annotations

import inspect
import re
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from functools import partial
from types import AsyncGeneratorType, GeneratorType
from typing import Any, NamedTuple, TypeVar

from agentdb.errors import AgentDbError, DatabaseClosedError, InvalidInputError
from agentdb.interface import (
    DEFAULT_TENANT_ID,
    Db,
    SandboxRecord,
    SandboxState,
    SessionRecord,
    SessionStatus,
)

# A PostgreSQL index entry holds about 2,700 bytes, and an index here has up to four identifiers.
MAX_IDENTIFIER_BYTES = 512
# By name, because this module imports no Django and so no models.
OWN_TABLES = ("agents", "api_keys", "sandboxes", "sessions")

# One statement with this many heartbeats takes a server about a second, and locks the rows for that long.
MAX_IDS = 10_000

# Every engine, and Python, can represent an instant this long ago.
MAX_SILENCE = timedelta(days=36_500)

_UNITS_OF_AGE = {
    "m": "minutes",
    "h": "hours",
    "d": "days",
    "w": "weeks",
}

R = TypeVar("R")


def text(what: str, value: object) -> str:
    """Return ``value`` if every engine can store it as text."""
    # Nearly every value is a plain str: the one test that it needs comes first, as this runs for every argument.
    if type(value) is not str:
        if not isinstance(value, str):
            raise InvalidInputError(
                f"{what} must be a string, not {type(value).__name__}."
            )
        # Of a StrEnum psycopg would send the name.
        value = str.__str__(value)
    if "\0" in value:
        raise InvalidInputError(
            f"{what} {value!r} has a NUL character, which PostgreSQL cannot store."
        )
    # ASCII has no surrogates, and Python knows of each string whether it is ASCII.
    if not value.isascii():
        try:
            value.encode()
        except UnicodeEncodeError:
            raise InvalidInputError(
                f"{what} {value!r} has a lone surrogate, which is not a character."
            ) from None
    return value


def identifier(what: str, value: object) -> str:
    """Return ``value`` if it can be a key: a string, not empty, and short enough for an index."""
    value = text(what, value)
    if not value:
        raise InvalidInputError(f"{what} must not be empty.")
    # 128 characters are 512 bytes at most.
    if len(value) > 128:
        size = len(value.encode())
        if size > MAX_IDENTIFIER_BYTES:
            raise InvalidInputError(
                f"{what} has {size} bytes in UTF-8; the limit is {MAX_IDENTIFIER_BYTES}."
            )
    return value


def optional_identifier(what: str, value: object) -> str | None:
    return None if value is None else identifier(what, value)


def named_tenant(own: str | None, value: object) -> str:
    """Return the tenant; one that is not ``own``, that of the view if there is one, is refused."""
    named = identifier("Tenant id", value)
    if own is not None and named != own:
        raise InvalidInputError(
            f"This view is of the tenant {own!r}; {named!r} is another."
        )
    return named


def tenant_of_call(own: str | None, value: object) -> str:
    """Return the tenant that an argument names, or else that of the view."""
    # Compared by identity: a caller's own "default" names a tenant, the default argument names none.
    if value is DEFAULT_TENANT_ID:
        return own or DEFAULT_TENANT_ID
    return named_tenant(own, value)


def identifiers(what: str, value: object) -> list[str]:
    """Return the distinct ids of a collection, in the order given."""
    ids = [identifier(what, each) for each in _collection("ids", value, MAX_IDS)]
    return list(dict.fromkeys(ids))


def _known(what: str, known: type[StrEnum], value: object) -> str:
    if not isinstance(value, str):
        raise InvalidInputError(f"{what} must be a string, not {type(value).__name__}.")
    try:
        return known(value).value
    except ValueError:
        raise InvalidInputError(
            f"{what} {str.__str__(value)!r} is not one of {', '.join(known)}."
        ) from None


def _one_or_several(
    check: Callable[[object], str], what: str, value: object
) -> list[str]:
    """Return the distinct values of a single one or a collection; none for None."""
    if value is None:
        return []
    if isinstance(value, str):
        return [check(value)]
    several = [check(each) for each in _collection(what, value, 100)]
    return list(dict.fromkeys(several))


session_status = partial(_known, "Session status", SessionStatus)
session_statuses = partial(_one_or_several, session_status)
sandbox_state = partial(_known, "Sandbox state", SandboxState)
sandbox_states = partial(_one_or_several, sandbox_state)


def _collection(what: str, value: object, most: int) -> Collection[object]:
    if isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection):
        raise InvalidInputError(
            f"{what} must be a collection of strings, not {type(value).__name__}."
        )
    if not value:
        raise InvalidInputError(f"{what} must not be empty.")
    if len(value) > most:
        raise InvalidInputError(f"{what} has {len(value)} items; the limit is {most}.")
    return value


def aware_instant(what: str, value: object) -> datetime:
    """Return ``value`` in UTC if it is a ``datetime`` with a time zone."""
    if type(value) is not datetime:
        if not isinstance(value, datetime):
            raise InvalidInputError(
                f"{what} must be a datetime, not {type(value).__name__}."
            )
        # A subclass may format itself differently, and SQLite compares the text.
        value = datetime.combine(datetime.date(value), datetime.timetz(value))
    if value.utcoffset() is None:
        raise InvalidInputError(
            f"{what} {value.isoformat()} has no time zone; pass an aware datetime."
        )
    try:
        return value.astimezone(UTC)
    except OverflowError:
        raise InvalidInputError(
            f"{what} {value.isoformat()} is outside the years 1 to 9999 in UTC."
        ) from None


def page_limit(value: object) -> int:
    # type(), because True is an int. The largest one is what a 64-bit LIMIT takes.
    if type(value) is not int or value < 1 or value >= 2**63:
        raise InvalidInputError(
            f"limit must be a whole number from 1 to 9223372036854775807, not {value!r}."
        )
    return value


def silence(value: object) -> timedelta:
    """Return ``silent_for`` if every engine can subtract it from the current time."""
    if not isinstance(value, timedelta):
        raise InvalidInputError(
            f"silent_for must be a timedelta, not {type(value).__name__}."
        )
    if not timedelta(0) <= value <= MAX_SILENCE:
        raise InvalidInputError(
            f"silent_for must be from 0 to {MAX_SILENCE.days} days, not {value}."
        )
    return value


def age(text: str) -> timedelta:
    """Read ``30d``: a whole number and m, h, d or w."""
    # No unit is guessed: 30 could be days or seconds. Five digits are centuries, and still lead to a year above 1.
    match = re.fullmatch(r"([1-9]\d{0,4})([mhdw])", text)
    if match is None:
        raise InvalidInputError(
            f"--older-than {text!r} is not an age. Write a whole number and a unit: 90m, 12h, 30d or 8w."
        )
    number, unit = match.groups()
    return timedelta(**{_UNITS_OF_AGE[unit]: int(number)})


def page_position(
    value: object, record: type[SessionRecord | SandboxRecord]
) -> tuple[datetime, str]:
    """Return the instant and id of ``before``, a record or its ``cursor``."""
    if isinstance(value, record):
        return _position(value.created_at, value.id)
    if not isinstance(value, str):
        raise InvalidInputError(
            f"before must be a {record.__name__} of the page before, or its cursor, not {type(value).__name__}."
        )
    instant, _, id = value.partition(",")
    try:
        created_at = datetime.fromisoformat(instant)
    except ValueError:
        raise InvalidInputError(
            f"before {value!r} is not the cursor of a {record.__name__}."
        ) from None
    return _position(created_at, id)


def _position(created_at: object, id: object) -> tuple[datetime, str]:
    return (
        aware_instant("The instant of before", created_at),
        identifier("The id of before", id),
    )


def other_tables(what: str, value: object) -> tuple[str, ...]:
    """Return the names of tables that are not agentdb's."""
    # Not any collection: a string is one too, of its letters.
    if not isinstance(value, list | tuple):
        raise InvalidInputError(
            f"{what} must be a list of names of tables, not {type(value).__name__}."
        )
    names = tuple(identifier(f"Table name in {what}", name) for name in value)
    for name in names:
        if name in OWN_TABLES:
            raise InvalidInputError(
                f"{what} names {name!r}, which is one of agentdb's own tables."
            )
    return names


class InOneThread:
    """What only the thread that made it may use, and until it is over: a transaction."""

    def __init__(self) -> None:
        self._thread = threading.get_ident()
        self.is_over = False

    def check_use(self) -> None:
        """Raise if it is over, or belongs to another thread."""
        if self.is_over:
            raise DatabaseClosedError(
                "The transaction has ended. Call the Db that ran it."
            )
        if threading.get_ident() != self._thread:
            raise AgentDbError(
                "A transaction belongs to the thread that runs it, and this call comes from another. Make the calls in "
                "the function's own thread, or use the Db around it: what that does in another thread is not part of "
                "the transaction."
            )


def plain_function(fn: Callable[..., Any]) -> None:
    """Refuse a function whose calls would run after the transaction has ended: a coroutine or a generator."""
    # What a callable object or a partial hides shows only in its result, for which plain_result() looks.
    flags = getattr(getattr(fn, "__code__", None), "co_flags", 0)
    if flags & _RUNS_LATER:
        raise InvalidInputError(_NOT_PLAIN)


def plain_result(result: R) -> R:
    """Return the result, or refuse it if the function turned out to be a coroutine or a generator after all."""
    is_awaitable = hasattr(type(result), "__await__")
    if is_awaitable or isinstance(result, GeneratorType | AsyncGeneratorType):
        # Otherwise Python warns that the coroutine was never awaited, wherever the garbage is collected.
        getattr(result, "close", bool)()
        raise InvalidInputError(_NOT_PLAIN)
    return result


_RUNS_LATER = inspect.CO_COROUTINE | inspect.CO_GENERATOR | inspect.CO_ASYNC_GENERATOR
_NOT_PLAIN = "run_transaction() takes a plain function, not a coroutine or generator, which would run after its end."


# -- the arguments of a method of Db, which its annotations tell apart

# What messages call an argument, if it is not by its own name.
_CALLED = {
    "name": "Agent name",
    "agent": "Agent name",
    "agent_name": "Agent name",
    "path": "Agent path",
    "tenant_id": "Tenant id",
    "session_id": "Session id",
    "sandbox_id": "Sandbox id",
    "runner_id": "Runner id",
    "workspace_dir": "Workspace directory",
    "key_hash": "Key hash",
    "label": "Label",
    "plain": "An API key",
}
# Those that are not what their annotation says: any string will do as a text, even an empty one, and a key comes from a
# request, so that any string is answered, with None.
_KINDS = {
    "path": "text",
    "workspace_dir": "text",
    "label": "text",
    "plain": "key",
}
_OR_NONE = " | None"


class Argument(NamedTuple):
    """An argument of a method of ``Db``."""

    name: str
    kind: str  # its annotation without None, "text" or "key"
    called: str  # in messages
    may_be_none: bool


def arguments_of(method: str) -> Iterator[Argument]:
    """Yield the arguments of the method of ``Db``."""
    _self, *parameters = inspect.signature(getattr(Db, method)).parameters.values()
    for each in parameters:
        annotation = each.annotation.removesuffix(_OR_NONE)
        yield Argument(
            each.name,
            _KINDS.get(each.name, annotation),
            _called(method, each.name),
            annotation != each.annotation,
        )


def _called(method: str, argument: str) -> str:
    """Return what messages call the argument; an id is that of the rows that the method is named for."""
    if argument not in ("id", "ids"):
        return _CALLED.get(argument, argument)
    rows = method.split("_")[1]  # as in update_sandbox_session
    if rows == "api":
        return "API key id"
    return "Session id" if rows.startswith("session") else "Sandbox id"


def checked(argument: Argument, value: Any) -> Any:
    """Return the value to use, or raise ``InvalidInputError``.

    A page's position and a plain key are returned as they are: what they may be depends on more than the method.
    """
    check = _CHECKS.get(argument.kind)
    if check is None or (value is None and argument.may_be_none):
        return value
    return check(argument.called, value)


# Each is given what messages call the argument, and the value.
_CHECKS: dict[str, Callable[[str, Any], Any]] = {
    "str": identifier,
    "text": text,
    "str | EllipsisType": lambda what, value: (
        value if value is ... else identifier(what, value)
    ),
    "Collection[str]": identifiers,
    "SessionStatusInput": lambda _, status: session_status(status),
    "SessionStatusesInput": session_statuses,
    "SandboxStateInput": lambda _, state: sandbox_state(state),
    "SandboxStatesInput": sandbox_states,
    "int": lambda _, limit: page_limit(limit),
    "datetime": aware_instant,
    "timedelta": lambda _, length: silence(length),
    "Sequence[str]": other_tables,
}
