"""Parses the timestamps that the old server and its databases wrote as text.

Only these formats are read:

- ``2026-02-19T20:53:16.123Z``, JavaScript's ``toISOString()``: written by the server itself;
- ``2026-02-19 20:53:16``, SQLite's ``datetime('now')``, which is in UTC, also with a fraction as Django writes it;
- ``2026-02-19 15:53:16.0075-05``, PostgreSQL's ``now()::text`` in the session's zone: up to six digits of a second,
  trailing zeros trimmed, offsets ``+HH``, ``+HH:MM`` and ``+HH:MM:SS``;
- PostgreSQL's other DateStyles: ``Thu 19 Feb 15:53:16 2026 EST`` and ``Thu Feb 19 …`` (Postgres),
  ``19.02.2026 21:53:16 CET`` (German), ``19/02/2026 …`` and ``02/19/2026 …`` (SQL).

A wrong guess would shift data unnoticed, so ambiguous text is refused:

- ``05/06/2026``, where day and month may be either (day and month alike, or one above 12, leave no doubt);
- a zone abbreviation that the tz database gives several offsets: IST is India, Israel and Ireland, CST and CDT the
  United States and Cuba (CST China too), PST the United States and the Philippines. PostgreSQL itself reads IST as
  Israel's and CST as Chicago's, whatever zone wrote them. The others in ``ZONES`` have had one offset since 2020, which
  is before the first release of the old server; with earlier dates they are refused;
- ``T`` without a zone, digits below a microsecond, leap seconds, hour 24, years above 9999 or BC, and ``infinity``.
"""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta, timezone

from django.db.backends.base.base import BaseDatabaseWrapper

_DATE = r"(\d{4}-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01]))"
_TIME = r"((?:[01]\d|2[0-3]):[0-5]\d:[0-5]\d(?:\.\d{1,6})?)"
_OFFSET = r"[+-](?:0\d|1[0-5])(?::?[0-5]\d|:[0-5]\d:[0-5]\d)?"
_ZONE = rf"\ ?({_OFFSET}|[A-Z][A-Za-z]{{2,4}})"

_ISO = re.compile(rf"{_DATE}([ T]){_TIME}(Z|{_OFFSET})?", re.ASCII)
_NUMBERS = re.compile(rf"(\d\d)([./])(\d\d)\2(\d{{4}})\ {_TIME}{_ZONE}", re.ASCII)

# Not calendar.month_abbr, whose names are the locale's.
_MONTHS = ("Jan", "Feb", "Mar", "Apr", "May", "Jun", "Jul", "Aug", "Sep", "Oct", "Nov", "Dec")  # fmt: skip
_WEEKDAYS = ("Mon", "Tue", "Wed", "Thu", "Fri", "Sat", "Sun")
_MONTH = f"({'|'.join(_MONTHS)})"
_POSTGRES = re.compile(
    rf"([A-Z][a-z]{{2}})\ (?:(\d\d)\ {_MONTH}|{_MONTH}\ (\d\d))\ {_TIME}\ (\d{{4}}){_ZONE}",
    re.ASCII,
)

# Abbreviations with exactly one offset in all zones of the tz database since 2020, in minutes.
ZONES = {
    "ACDT": 630, "ACST": 570, "ADT": -180, "AEDT": 660, "AEST": 600, "AKDT": -480, "AKST": -540, "AST": -240,
    "AWST": 480, "BST": 60, "CAT": 120, "CEST": 120, "CET": 60, "ChST": 600, "EAT": 180, "EDT": -240, "EEST": 180,
    "EET": 120, "EST": -300, "GMT": 0, "HDT": -540, "HKT": 480, "HST": -600, "IDT": 180, "JST": 540, "KST": 540,
    "MDT": -360, "MEST": 120, "MET": 60, "MSK": 180, "MST": -420, "NDT": -150, "NST": -210, "NZDT": 780, "NZST": 720,
    "PDT": -420, "PKT": 300, "SAST": 120, "SST": -660, "UTC": 0, "WAT": 60, "WEST": 60, "WET": 0, "WIB": 420,
    "WIT": 540, "WITA": 480,
}  # fmt: skip
_ZONES_HOLD_SINCE = 2020


class UnreadableTimestampError(ValueError):
    """The text is not a single instant; the message continues a sentence that begins with the value."""


def parse_timestamp(text: str) -> datetime:
    """Return the instant in UTC; raise ``UnreadableTimestampError`` with the reason if there is none."""
    try:
        return _parse(text).astimezone(UTC)
    except OverflowError:
        raise UnreadableTimestampError("is outside the years 1 to 9999") from None


def _utc(value: object) -> datetime | None:
    """The instant, without a zone, of what proves one."""
    if not isinstance(value, str):
        return None
    try:
        return parse_timestamp(value).replace(tzinfo=None)
    except UnreadableTimestampError:
        return None


def native_text(value: object) -> str | None:
    """Return the timestamp as Django stores it on SQLite, or None if it cannot be read.

    Equal instants are equal texts, and texts sort as instants do: six digits of a second, or none if all are zero.
    """
    instant = _utc(value)
    return None if instant is None else str(instant)


def add_native_text(connection: BaseDatabaseWrapper) -> None:
    """Register the function that ``native_sql`` calls on a SQLite connection."""
    connection.ensure_connection()
    connection.connection.create_function(
        "agentdb_native_text", 1, native_text, deterministic=True
    )


def native_sql(column: str) -> str:
    """Return SQL for ``native_text`` of a readable timestamp: SQLite's own functions if possible, else Python.

    A readable text with these characters in these places is in the server's format, or in Django's.
    """
    day, time = f"substr({column}, 1, 10)", f"substr({column}, 12, 12)"
    fraction = f"substr({column}, 20) GLOB '.{'[0-9]' * 6}' AND substr({column}, 21) <> '000000'"
    return (
        f"CASE WHEN length({column}) = 24 AND substr({column}, 11, 1) = 'T' AND substr({column}, 24) = 'Z'"
        f" THEN replace({day} || ' ' || {time} || '000', '.000000', '')"
        f" WHEN substr({column}, 5, 1) = '-' AND substr({column}, 11, 1) = ' '"
        f" AND (length({column}) = 19 OR length({column}) = 26 AND {fraction}) THEN {column}"
        f" ELSE agentdb_native_text({column}) END"
    )


def server_text(value: object) -> str | None:
    """Return the timestamp as the old server wrote it, microseconds cut off, or None if it cannot be read."""
    instant = _utc(value)
    return None if instant is None else f"{instant.isoformat(timespec='milliseconds')}Z"


def _parse(text: str) -> datetime:
    if match := _ISO.fullmatch(text):
        date, between, time, zone = match.groups()
        if zone is None and between == "T":
            raise UnreadableTimestampError("names no time zone")
        # Without a zone it is SQLite's CURRENT_TIMESTAMP, in UTC.
        return _instant(date, time, zone or "Z")
    if match := _NUMBERS.fullmatch(text):
        first, between, second, year, time, zone = match.groups()
        day, month = _day_and_month(first, between, second)
        return _instant(f"{year}-{month}-{day}", time, zone)
    if match := _POSTGRES.fullmatch(text):
        weekday, day, month, month_first, day_behind, time, year, zone = match.groups()
        number = _MONTHS.index(month or month_first) + 1
        date = f"{year}-{number:02}-{day or day_behind}"
        if _WEEKDAYS[_calendar(date, time).weekday()] != weekday:
            raise UnreadableTimestampError(
                "names a day of the week that the date is not"
            )
        return _instant(date, time, zone)
    raise UnreadableTimestampError("is in no known timestamp format")


def _day_and_month(first: str, between: str, second: str) -> tuple[str, str]:
    """Tell day and month of ``13.02``, ``13/02`` and ``02/13``; with slashes the text does not say their order."""
    if between == ".":
        return first, second
    if int(second) > 12:
        return second, first
    if int(first) <= 12 and first != second:
        raise UnreadableTimestampError("may be day/month or month/day")
    return first, second


def _instant(date: str, time: str, zone: str) -> datetime:
    """Return the instant; ``zone`` is an offset, ``Z`` or an abbreviation."""
    if zone == "Z" or zone[0] in "+-":
        return _calendar(date, f"{time}{zone}")
    local = _calendar(date, time)
    if zone not in ZONES or local.year < _ZONES_HOLD_SINCE:
        raise UnreadableTimestampError(
            f"names its zone {zone}, which does not say one offset from UTC"
        )
    return local.replace(tzinfo=timezone(timedelta(minutes=ZONES[zone])))


def _calendar(date: str, time: str) -> datetime:
    try:
        return datetime.fromisoformat(f"{date}T{time}")
    except ValueError:
        raise UnreadableTimestampError("is not a valid date") from None


# What PostgreSQL may cast itself: the ISO formats, in years that stay within 1 to 9999 in every zone, on days that
# every year has. The rare rest goes through Python. A cast of anything else could fail, or succeed with a wrong zone.
POSTGRES_CASTABLE = (
    r"^[1-8][0-9]{3}-((0[1-9]|1[0-2])-(0[1-9]|1[0-9]|2[0-8])|(0[13-9]|1[0-2])-(29|30)|(0[13578]|1[02])-31)"
    r"( ([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-](0[0-9]|1[0-5])(:[0-5][0-9](:[0-5][0-9])?)?)?"
    r"|T([01][0-9]|2[0-3]):[0-5][0-9]:[0-5][0-9](\.[0-9]{1,6})?(Z|[+-](0[0-9]|1[0-5])(:[0-5][0-9](:[0-5][0-9])?)?))$"
)
