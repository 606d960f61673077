"""How instants and hashes are written, in the admin and in the terminal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

from django.utils import timezone
from django.utils.translation import gettext, ngettext_lazy

# Seconds in the unit; so much of it as a span, in the past and to come, which some languages write differently.
_UNITS = (
    (
        86_400 * 365,
        ngettext_lazy("%d year", "%d years"),
        ngettext_lazy("%d year ago", "%d years ago"),
        ngettext_lazy("in %d year", "in %d years"),
    ),
    (
        86_400 * 30,
        ngettext_lazy("%d month", "%d months"),
        ngettext_lazy("%d month ago", "%d months ago"),
        ngettext_lazy("in %d month", "in %d months"),
    ),
    (
        86_400,
        ngettext_lazy("%d day", "%d days"),
        ngettext_lazy("%d day ago", "%d days ago"),
        ngettext_lazy("in %d day", "in %d days"),
    ),
    (
        3_600,
        ngettext_lazy("%d hour", "%d hours"),
        ngettext_lazy("%d hour ago", "%d hours ago"),
        ngettext_lazy("in %d hour", "in %d hours"),
    ),
    (
        60,
        ngettext_lazy("%d minute", "%d minutes"),
        ngettext_lazy("%d minute ago", "%d minutes ago"),
        ngettext_lazy("in %d minute", "in %d minutes"),
    ),
)


def instant(value: Any) -> datetime:
    """SQLite stores text, in UTC; some connections to it parse that text."""
    at: datetime = datetime.fromisoformat(value) if isinstance(value, str) else value
    return at if at.tzinfo else at.replace(tzinfo=UTC)


def exact(instant: datetime) -> str:
    """The instant in UTC, with as much of a second as it has."""
    utc = instant.astimezone(UTC).replace(tzinfo=None)
    return f"{utc.isoformat(sep=' ')} UTC"


def relative(instant: datetime, now: datetime | None = None) -> str:
    """How long ago it was, in its largest unit; a clock that is ahead makes instants that are still to come."""
    since = (now or timezone.now()) - instant
    seconds = abs(since).total_seconds()
    for size, _, ago, to_come in _UNITS:
        if count := int(seconds // size):
            return str((ago if since > timedelta() else to_come) % count)
    return gettext("just now")


def lasting(span: timedelta) -> str:
    """How long it lasted, in its largest unit."""
    seconds = span.total_seconds()
    for size, text, _, _ in _UNITS:
        if count := int(seconds // size):
            return str(text % count)
    return gettext("%.1f seconds") % seconds


def masked(key_hash: str) -> str:
    return f"{key_hash[:8]}…"
