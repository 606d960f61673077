"""How instants and hashes are written, in the admin and in the terminal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from django.utils import timezone

_UNITS = ((86_400 * 365, "year"), (86_400 * 30, "month"), (86_400, "day"), (3_600, "hour"), (60, "minute"))


def exact(instant: datetime) -> str:
    """The instant in UTC, with as much of a second as it has."""
    utc = instant.astimezone(UTC).replace(tzinfo=None)
    return f"{utc.isoformat(sep=' ')} UTC"


def relative(instant: datetime, now: datetime | None = None) -> str:
    """How long ago it was, in its largest unit; a clock that is ahead makes instants that are still to come."""
    since = (now or timezone.now()) - instant
    text = lasting(abs(since))
    if text.endswith("seconds"):
        return "just now"
    return f"{text} ago" if since > timedelta() else f"in {text}"


def lasting(span: timedelta) -> str:
    """How long it lasted, in its largest unit."""
    seconds = span.total_seconds()
    for size, unit in _UNITS:
        if count := int(seconds // size):
            return f"{count} {unit}{'' if count == 1 else 's'}"
    return f"{seconds:.1f} seconds"


def masked(key_hash: str) -> str:
    return f"{key_hash[:8]}…"
