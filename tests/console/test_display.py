"""How times, shares and hashes are written, in the admin and in the terminal."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta, timezone

import pytest

from agentdb.console.display import (
    exact,
    lasting,
    masked,
    percent,
    readable,
    relative,
)

NOON = datetime(2026, 3, 14, 12, tzinfo=UTC)
MINUTE, HOUR, DAY = 60, 3_600, 86_400


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0, "0 s"),
        (119.9, "119 s"),
        (120, "2 min"),
        (120 * MINUTE - 1, "119 min"),
        (120 * MINUTE, "2 h"),
        (48 * HOUR - 1, "47 h"),
        (48 * HOUR, "2 d"),
        (1_000 * DAY - 1, "999 d"),
        (1_000 * DAY, "2 y"),
        (3 * 365 * DAY - 1, "2 y"),
        (3 * 365 * DAY, "3 y"),
    ],
)
def test_a_duration_is_said_in_the_largest_unit_that_is_precise_enough(
    seconds: float, expected: str
) -> None:
    assert lasting(timedelta(seconds=seconds)) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.9, "just now"),
        (1, "1 s ago"),
        (90 * MINUTE, "90 min ago"),
        (-0.9, "just now"),
        (-1, "in 1 s"),
        (-3 * DAY, "in 3 d"),
    ],
)
def test_a_time_is_said_from_now_on_in_both_directions(
    seconds: float, expected: str
) -> None:
    assert relative(NOON - timedelta(seconds=seconds), NOON) == expected


def test_an_exact_time_is_in_utc_with_its_fraction() -> None:
    east = timezone(timedelta(hours=2))

    assert exact(NOON.astimezone(east)) == "2026-03-14 12:00:00 UTC"
    assert exact(NOON.replace(microsecond=5)) == "2026-03-14 12:00:00.000005 UTC"


def test_a_stored_time_is_an_aware_one_in_utc_unless_it_has_a_zone() -> None:
    for text in ("2026-03-14 12:00:00", "2026-03-14 14:00:00+02:00"):
        assert readable(text) == NOON
    for none in (None, "", "infinity", "2026-02-30 12:00:00"):
        assert readable(none) is None


def test_a_share_has_one_digit_and_nothing_has_no_share() -> None:
    assert percent(1, 3) == "33.3 %"
    assert percent(3, 3) == "100.0 %"
    assert percent(0, 1) == "0.0 %"
    assert percent(0, 0) == ""


def test_a_hash_is_told_from_others_by_its_first_characters() -> None:
    assert masked("0123456789abcdef") == "01234567…"
