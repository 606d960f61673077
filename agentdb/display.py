"""How instants and hashes are written, in the admin and in the terminal."""

from __future__ import annotations

from datetime import UTC, datetime

from django.utils import timezone

_UNITS = ((86_400 * 365, "year"), (86_400 * 30, "month"), (86_400, "day"), (3_600, "hour"), (60, "minute"))


def exact(instant: datetime) -> str:
    """The instant in UTC, with as much of a second as it has."""
    utc = instant.astimezone(UTC).replace(tzinfo=None)
    return f"{utc.isoformat(sep=' ')} UTC"


def relative(instant: datetime, now: datetime | None = None) -> str:
    """How long ago it was, in its largest unit; a clock that is ahead makes instants that are still to come."""
    seconds = ((now or timezone.now()) - instant).total_seconds()
    for size, unit in _UNITS:
        count = int(abs(seconds) // size)
        if count:
            text = f"{count} {unit}{'' if count == 1 else 's'}"
            return f"{text} ago" if seconds > 0 else f"in {text}"
    return "just now"


def masked(key_hash: str) -> str:
    return f"{key_hash[:8]}…"
