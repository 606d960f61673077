"""Formats of times and hashes, in the admin and the terminal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from django.utils import timezone
from django.utils.dateparse import parse_datetime
from django.utils.translation import gettext


def readable(text: str | None) -> datetime | None:
    """Parse a time that the database returned as text, as an aware one; None if Python cannot represent it."""
    try:
        at = parse_datetime(text or "")
    except ValueError:
        return None
    # SQLite stores no zone, and all its times are in UTC.
    if at is not None and at.tzinfo is None:
        return at.replace(tzinfo=UTC)
    return at


def exact(instant: datetime) -> str:
    """Format the instant in UTC, with its fraction of a second if there is one."""
    utc = instant.astimezone(UTC).replace(tzinfo=None)
    return f"{utc.isoformat(sep=' ')} UTC"


def relative(instant: datetime, now: datetime | None = None) -> str:
    """Format how long ago it was, or how far ahead if the writer's clock is ahead."""
    if now is None:
        now = timezone.now()
    since = now - instant
    if abs(since) < timedelta(seconds=1):
        return gettext("just now")
    if since < timedelta():
        return gettext("in %s") % lasting(-since)
    return gettext("%s ago") % lasting(since)


# The units of a duration, their seconds, and up to how many of them are said.
_UNITS = (
    ("s", 1, 120),
    ("min", 60, 120),
    ("h", 3_600, 48),
    ("d", 86_400, 1_000),
)


def lasting(span: timedelta) -> str:
    """Format a duration in the largest unit that is precise enough: 90 s, 90 min and 47 h, not 1 day."""
    seconds = int(span.total_seconds())
    for unit, size, most in _UNITS:
        if seconds < most * size:
            return f"{seconds // size} {unit}"
    return f"{seconds // (365 * 86_400)} y"


def percent(part: int, whole: int) -> str:
    """Return '12.5 %', or nothing of nothing."""
    return f"{100 * part / whole:.1f} %" if whole else ""


def masked(key_hash: str) -> str:
    """Return so much of a key's hash as tells it from others, and opens nothing."""
    return f"{key_hash[:8]}…"
