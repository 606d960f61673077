from __future__ import annotations

import random
import sqlite3
import zoneinfo
from collections import defaultdict
from collections.abc import Callable
from contextlib import closing
from datetime import UTC, datetime, timedelta

import psycopg
import pytest

from agentdb.adoption.timestamps import (
    POSTGRES_CASTABLE,
    ZONES,
    UnreadableTimestampError,
    native_text,
    parse_timestamp,
    server_text,
)
from agentdb.adoption.values import FORMAT
from agentdb.models import Session
from tests.helpers.baseline_runs import baselinedb
from tests.helpers.legacy_databases import opened, rows

READ = {
    "2026-02-19T20:53:16.123Z": (
        "server",
        datetime(2026, 2, 19, 20, 53, 16, 123000, UTC),
    ),
    "2026-02-19T20:53:16.000Z": ("server", datetime(2026, 2, 19, 20, 53, 16, 0, UTC)),
    "2024-02-29T20:53:16.123Z": (
        "server",
        datetime(2024, 2, 29, 20, 53, 16, 123000, UTC),
    ),
    "2026-02-19T20:53:16+00:00": ("server", datetime(2026, 2, 19, 20, 53, 16, 0, UTC)),
    "2026-02-19 20:53:16": ("sqlite", datetime(2026, 2, 19, 20, 53, 16, 0, UTC)),
    "2026-02-19 20:53:16.123": (
        "sqlite",
        datetime(2026, 2, 19, 20, 53, 16, 123000, UTC),
    ),
    "2026-02-19 20:53:16.000001": ("sqlite", datetime(2026, 2, 19, 20, 53, 16, 1, UTC)),
    "2026-02-19 15:53:16.123456-05": (
        "postgresql",
        datetime(2026, 2, 19, 20, 53, 16, 123456, UTC),
    ),
    "2026-02-20 02:23:16.0075+05:30": (
        "postgresql",
        datetime(2026, 2, 19, 20, 53, 16, 7500, UTC),
    ),
    "2026-02-20 10:38:16.1+13:45": (
        "postgresql",
        datetime(2026, 2, 19, 20, 53, 16, 100000, UTC),
    ),
    "2026-02-19 17:23:16-03:30": (
        "postgresql",
        datetime(2026, 2, 19, 20, 53, 16, 0, UTC),
    ),
    "2026-02-19 21:12:44.5+00:19:32": (
        "postgresql",
        datetime(2026, 2, 19, 20, 53, 12, 500000, UTC),
    ),
    "2026-02-19 20:53:16+00": ("postgresql", datetime(2026, 2, 19, 20, 53, 16, 0, UTC)),
    "Thu 19 Feb 15:53:16.123456 2026 EST": (
        "datestyle",
        datetime(2026, 2, 19, 20, 53, 16, 123456, UTC),
    ),
    "Thu Feb 19 15:53:16 2026 EST": (
        "datestyle",
        datetime(2026, 2, 19, 20, 53, 16, 0, UTC),
    ),
    "Fri Feb 20 02:38:16 2026 +0545": (
        "datestyle",
        datetime(2026, 2, 19, 20, 53, 16, 0, UTC),
    ),
    "19.02.2026 21:53:16.5 CET": (
        "datestyle",
        datetime(2026, 2, 19, 20, 53, 16, 500000, UTC),
    ),
    "05.06.2026 22:53:16 CEST": ("datestyle", datetime(2026, 6, 5, 20, 53, 16, 0, UTC)),
    "19/02/2026 21:53:16 CET": ("datestyle", datetime(2026, 2, 19, 20, 53, 16, 0, UTC)),
    "02/19/2026 15:53:16 EST": ("datestyle", datetime(2026, 2, 19, 20, 53, 16, 0, UTC)),
    "02/02/2026 15:53:16 EST": ("datestyle", datetime(2026, 2, 2, 20, 53, 16, 0, UTC)),
    "13/12/2026 15:53:16 EST": (
        "datestyle",
        datetime(2026, 12, 13, 20, 53, 16, 0, UTC),
    ),
    "12/13/2026 15:53:16 EST": (
        "datestyle",
        datetime(2026, 12, 13, 20, 53, 16, 0, UTC),
    ),
    "01.01.2020 00:00:00 MSK": ("datestyle", datetime(2019, 12, 31, 21, tzinfo=UTC)),
    "20/02/2026 02:38:16 +0545": (
        "datestyle",
        datetime(2026, 2, 19, 20, 53, 16, 0, UTC),
    ),
    "20/02/2026 02:38:16+05:45": (
        "datestyle",
        datetime(2026, 2, 19, 20, 53, 16, 0, UTC),
    ),
    "0001-01-01 00:00:00": ("sqlite", datetime(1, 1, 1, tzinfo=UTC)),
    "9999-12-31T23:59:59.999Z": (
        "server",
        datetime(9999, 12, 31, 23, 59, 59, 999000, UTC),
    ),
}

UNKNOWN = "is in no known timestamp format"
NO_DATE = "is not a valid date"
REFUSED = {
    "": UNKNOWN,
    "not-a-date": UNKNOWN,
    "1771534396": UNKNOWN,
    "2026-02-19": UNKNOWN,
    " 2026-02-19 20:53:16": UNKNOWN,
    "2026-02-19 20:53:16\n": UNKNOWN,
    "2026-02-19 20:53": UNKNOWN,
    "2026-02-19 24:00:00": UNKNOWN,
    "2026-02-19 23:59:60": UNKNOWN,
    "2026-02-19T20:53:16.1234567Z": UNKNOWN,
    "2026-02-19 20:53:16.": UNKNOWN,
    "2026-02-19 20:53:16+16": UNKNOWN,
    "2026-02-19 20:53:16+0530:15": UNKNOWN,
    "2026-W08-4 20:53:16": UNKNOWN,
    "20260219T205316Z": UNKNOWN,
    "2026-02-19 20:53:16 CET": UNKNOWN,
    "2026-13-19 20:53:16": UNKNOWN,
    "٢٠٢٦-02-19 20:53:16": UNKNOWN,
    "12026-02-19 20:53:16+00": UNKNOWN,
    "0044-03-15 12:00:00+00 BC": UNKNOWN,
    "infinity": UNKNOWN,
    "-infinity": UNKNOWN,
    "now": UNKNOWN,
    "Thu 19 Foo 15:53:16 2026 EST": UNKNOWN,
    "2026-02-19T20:53:16": "names no time zone",
    "2026-02-19T20:53:16.123": "names no time zone",
    "2026-02-30T20:53:16.123Z": NO_DATE,
    "2025-02-29 20:53:16": NO_DATE,
    "0000-01-01 00:00:00": NO_DATE,
    "0000-01-01T00:00:00.000Z": NO_DATE,
    "13/13/2026 15:53:16 EST": NO_DATE,
    "30.02.2026 15:53:16 CET": NO_DATE,
    "0001-01-01 00:00:00+01": "is outside the years 1 to 9999",
    "9999-12-31 23:59:59-01": "is outside the years 1 to 9999",
    "05/06/2026 15:53:16 EST": "may be day/month or month/day",
    "12/11/2026 15:53:16 EST": "may be day/month or month/day",
    "11/12/2026 15:53:16 EST": "may be day/month or month/day",
    "Thu Feb Feb 15:53:16 2026 EST": UNKNOWN,
    "Thu 19 19 15:53:16 2026 EST": UNKNOWN,
    "Fri 19 Feb 15:53:16 2026 EST": "names a day of the week that the date is not",
    "Thu 19 Feb 15:53:16 2026 IST": "names its zone IST, which does not say one offset from UTC",
    "19.02.2026 15:53:16 CST": "names its zone CST, which does not say one offset from UTC",
    "19/02/2026 15:53:16 PST": "names its zone PST, which does not say one offset from UTC",
    "31.12.2019 23:59:59 MSK": "names its zone MSK, which does not say one offset from UTC",
    "19/02/2012 15:53:16 MSK": "names its zone MSK, which does not say one offset from UTC",
    "19/02/2026 15:53:16 XYZ": "names its zone XYZ, which does not say one offset from UTC",
}


@pytest.mark.parametrize("text", READ)
def test_a_format_that_occurs_is_read_as_its_instant(text: str):
    name, instant = READ[text]

    assert parse_timestamp(text) == instant
    assert parse_timestamp(text).utcoffset() == timedelta(0)
    with closing(sqlite3.connect(":memory:")) as connection:
        found = connection.execute(f"SELECT {FORMAT.format('?1')}", [text])
        assert found.fetchall() == [(name,)]


@pytest.mark.parametrize("text", READ)
def test_native_text_is_what_django_stores_and_server_text_what_the_server_wrote(
    text: str,
):
    _, instant = READ[text]

    assert native_text(text) == str(instant.replace(tzinfo=None))
    assert (
        server_text(text)
        == instant.strftime("%Y-%m-%dT%H:%M:%S.%f")[:-3].rjust(23, "0") + "Z"
    )


@pytest.mark.parametrize("text", READ)
def test_native_text_of_native_text_is_itself(text: str):
    assert native_text(native_text(text)) == native_text(text)


@pytest.mark.parametrize("text", REFUSED)
def test_what_does_not_prove_an_instant_is_refused_with_its_reason(text: str):
    with pytest.raises(UnreadableTimestampError) as refusal:
        parse_timestamp(text)

    assert str(refusal.value) == REFUSED[text]
    assert (native_text(text), server_text(text)) == (None, None)


@pytest.mark.parametrize("value", [None, 1771534396, 1.5, b"2026-02-19 20:53:16"])
def test_what_is_no_text_is_no_timestamp(value: object):
    assert (native_text(value), server_text(value)) == (None, None)


def test_server_text_cuts_microseconds_off_and_does_not_round():
    assert server_text("2026-02-19 20:53:16.999999") == "2026-02-19T20:53:16.999Z"
    assert server_text("2026-02-19 20:53:16.0009+00") == "2026-02-19T20:53:16.000Z"


def test_the_order_of_native_texts_is_the_order_of_the_instants():
    texts = sorted(READ, key=lambda text: READ[text][1])

    native = [native_text(text) or "" for text in texts]

    assert native == sorted(native)


def test_each_abbreviation_has_one_offset_in_all_zones_of_the_tz_database_and_the_others_have_several():
    offsets: dict[str, set[float]] = defaultdict(set)
    zones = zoneinfo.available_timezones() - {"localtime", "posixrules", "Factory"}
    assert len(zones) > 400
    for name in zones:
        zone = zoneinfo.ZoneInfo(name)
        at = datetime(2020, 1, 1, 12, tzinfo=UTC)
        while at.year < 2030:
            local = at.astimezone(zone)
            offset = local.utcoffset()
            assert offset is not None
            offsets[local.tzname() or ""].add(offset.total_seconds() / 60)
            at += timedelta(days=12)

    for name, minutes in ZONES.items():
        # A tz database older or newer than this table may lack one of them, but none may contradict it.
        assert offsets.get(name, {minutes}) == {minutes}
    assert {name for name, found in offsets.items() if len(found) > 1} == {
        "CDT",
        "CST",
        "IST",
        "PST",
    }
    assert not {"CDT", "CST", "IST", "PST"} & ZONES.keys()


def mutated(random_: random.Random) -> str:
    """A text near one that is read: a character or two replaced, dropped or doubled."""
    text = list(random_.choice([*READ, *REFUSED]))
    for _ in range(random_.randint(0, 2)):
        if not text:
            break
        position = random_.randrange(len(text))
        text[position : position + 1] = random_.choice(
            [[], [text[position]] * 2, [random_.choice("0123456789:.- TZ+")]]
        )
    return "".join(text)


def test_what_postgresql_may_cast_it_casts_to_the_same_instant_as_the_parser(
    postgres_url: str,
):
    random_ = random.Random(20260219)
    texts = sorted(
        {mutated(random_) for _ in range(30_000)} | READ.keys() | REFUSED.keys()
    )

    with psycopg.connect(postgres_url) as connection:
        connection.execute("SET TimeZone = 'UTC'")
        connection.execute("CREATE TEMPORARY TABLE texts (text text)")
        with connection.cursor().copy("COPY texts FROM STDIN") as copy:
            for text in texts:
                copy.write_row([text])
        castable = connection.execute(
            "SELECT text, CASE WHEN text ~ %s THEN text::timestamptz END FROM texts",
            [POSTGRES_CASTABLE],
        ).fetchall()

    cast = {text: instant for text, instant in castable if instant is not None}
    assert len(cast) > 200
    for text, instant in cast.items():
        assert instant == parse_timestamp(text), text
    # And the fast path is a path: all of the usual formats take it.
    assert cast.keys() >= {
        text
        for text, (name, at) in READ.items()
        if name != "datestyle" and 1000 < at.year < 9000
    } - {"2024-02-29T20:53:16.123Z"}


def test_formats_that_are_mixed_in_a_column_are_adopted_as_their_instants(
    load_legacy: Callable[[str], str],
):
    url = load_legacy("era-b-small")
    with opened(url) as connection:
        rows(connection, "DELETE FROM sessions")
        for text in READ:
            rows(
                connection,
                "INSERT INTO sessions (id, agent_name, sandbox_id, created_at) VALUES (%s, 'a', 'b', %s)",
                [text, text],
            )

    assert baselinedb(url, "--no-backup").code == 0

    with opened(url) as connection:
        sessions = Session.objects.using(connection.alias)
        adopted = dict(sessions.values_list("id", "created_at"))
    assert adopted == {text: instant for text, (_, instant) in READ.items()}
