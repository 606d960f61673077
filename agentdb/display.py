"""How instants and hashes are written, in the admin and in the terminal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from django.utils import timezone
from django.utils.translation import gettext
from django.utils.translation import ngettext_lazy as _n

# Seconds in the unit; so much of it as a span, in the past and to come, which some languages write differently.
_UNITS = (
    (86_400 * 365, _n("%d year", "%d years"), _n("%d year ago", "%d years ago"), _n("in %d year", "in %d years")),
    (86_400 * 30, _n("%d month", "%d months"), _n("%d month ago", "%d months ago"), _n("in %d month", "in %d months")),
    (86_400, _n("%d day", "%d days"), _n("%d day ago", "%d days ago"), _n("in %d day", "in %d days")),
    (3_600, _n("%d hour", "%d hours"), _n("%d hour ago", "%d hours ago"), _n("in %d hour", "in %d hours")),
    (60, _n("%d minute", "%d minutes"), _n("%d minute ago", "%d minutes ago"), _n("in %d minute", "in %d minutes")),
)


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
