from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from agentdb.conf import (
    database_from_env,
    database_from_url,
    database_url,
    display_url,
    server_name,
)
from agentdb.errors import InvalidInputError

# What libpq is to do about a server that is gone, where the URL does not say.
_LIMITS = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("sqlite://:memory:", ":memory:"),
        ("sqlite:///:memory:", ":memory:"),
        ("sqlite://:memory:?timeout=5", ":memory:"),
        ("sqlite:///relative.db", "{cwd}/relative.db"),
        ("sqlite:///folder/../relative.db", "{cwd}/relative.db"),
        ("sqlite:////absolute/file.db", "/absolute/file.db"),
        ("sqlite:////a%20b/%23%3F%25é.db", "/a b/#?%é.db"),
        ("sqlite:////a b/c.db", "/a b/c.db"),
    ],
)
def test_sqlite_url_names_a_file_or_memory(
    url: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)

    config = database_from_url(url)

    assert (config["ENGINE"], config["NAME"]) == (
        "django.db.backends.sqlite3",
        name.format(cwd=os.getcwd()),
    )


def test_sqlite_is_durable_patient_and_writes_one_after_the_other() -> None:
    options = database_from_url("sqlite:///x.db")["OPTIONS"]

    assert options["timeout"] == 30.0
    assert options["transaction_mode"] == "IMMEDIATE"
    assert (
        options["init_command"]
        == "PRAGMA journal_mode=WAL; PRAGMA synchronous=FULL; PRAGMA foreign_keys=ON"
    )


@pytest.mark.parametrize(
    ("options", "pragmas"),
    [
        ("journal=delete", "PRAGMA journal_mode=DELETE; PRAGMA synchronous=EXTRA;"),
        (
            "journal=delete&synchronous=full",
            "PRAGMA journal_mode=DELETE; PRAGMA synchronous=FULL;",
        ),
    ],
)
def test_sqlite_without_a_write_ahead_log_syncs_the_folder_too(
    options: str, pragmas: str
) -> None:
    config = database_from_url(f"sqlite:///x.db?{options}")

    assert config["OPTIONS"]["init_command"].startswith(pragmas)


def test_sqlite_options_of_the_url() -> None:
    options = database_from_url("sqlite:///x.db?synchronous=normal&timeout=2.5")[
        "OPTIONS"
    ]

    assert "synchronous=NORMAL;" in options["init_command"]
    assert options["timeout"] == 2.5


@pytest.mark.parametrize("scheme", ["postgres", "postgresql"])
def test_postgresql_url_names_user_password_host_port_and_database(scheme: str) -> None:
    config = database_from_url(f"{scheme}://me:p%40%2F%3A%23%25@db.example:5433/agents")

    assert {
        key: config[key]
        for key in ("ENGINE", "USER", "PASSWORD", "HOST", "PORT", "NAME")
    } == {
        "ENGINE": "django.db.backends.postgresql",
        "USER": "me",
        "PASSWORD": "p@/:#%",
        "HOST": "db.example",
        "PORT": 5433,
        "NAME": "agents",
    }
    assert config["OPTIONS"] == {
        **_LIMITS,
        "application_name": "agentdb",
        "prepare_threshold": 0,
    }
    assert (config["CONN_MAX_AGE"], config["CONN_HEALTH_CHECKS"]) == (None, True)


def test_call_timeout_is_agentdbs_and_bounds_what_libpq_waits_for() -> None:
    config = database_from_url("postgresql://h/agents?call_timeout=5&keepalives_idle=7")

    assert config["AGENTDB"] == {"call_timeout": 5.0, "idle_seconds": 300.0}
    limits = {
        **_LIMITS,
        "connect_timeout": 5,
        "tcp_user_timeout": 5000,
        "keepalives_idle": 7,
    }
    assert config["OPTIONS"].items() >= limits.items()
    assert database_from_url("postgresql://h/agents")["AGENTDB"] == {
        "call_timeout": 60.0,
        "idle_seconds": 300.0,
    }


@pytest.mark.parametrize(
    ("url", "host", "port"),
    [
        (
            "postgresql://u:p%40@a:5432,b:5433/agents?target_session_attrs=read-write",
            "a,b",
            "5432,5433",
        ),
        ("postgresql://a,b/agents?target_session_attrs=read-write", "a,b", ""),
        (
            "postgresql://a,b:5433/agents?target_session_attrs=read-write",
            "a,b",
            ",5433",
        ),
    ],
)
def test_several_hosts_are_given_to_libpq_as_it_takes_them(
    url: str, host: str, port: str
) -> None:
    config = database_from_url(url)

    assert (config["HOST"], config["PORT"], config["NAME"]) == (host, port, "agents")
    assert config["OPTIONS"]["target_session_attrs"] == "read-write"


def test_several_hosts_are_named_in_messages() -> None:
    assert (
        server_name(database_from_url("postgresql://a:5432,b/agents"))
        == "'agents' at a:5432, b"
    )


def test_postgresql_options_pass_through() -> None:
    config = database_from_url(
        "postgresql:///agents?host=/run/pg&port=5433&application_name=me&options=-c%20search_path%3Dx&sslmode=require"
    )

    assert config["OPTIONS"] == {
        **_LIMITS,
        "host": "/run/pg",
        "port": 5433,
        "application_name": "me",
        "options": "-c search_path=x",
        "sslmode": "require",
        "prepare_threshold": 0,
    }


@pytest.mark.parametrize("value", ["0", "soon", "-1", "nan"])
def test_call_timeout_must_be_a_number_above_zero(value: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        database_from_url(f"postgresql://h/agents?call_timeout={value}")

    assert str(raised.value).startswith("The URL option call_timeout=")
    assert str(raised.value).endswith(" is not a number of seconds above 0.")


@pytest.mark.parametrize("value", ["off", "OFF", "false", "False", "0", "no"])
def test_prepare_off_prepares_nothing_and_keeps_no_cursor_open(value: str) -> None:
    config = database_from_url(f"postgresql://h/agents?prepare={value}")

    assert config["OPTIONS"] == {**_LIMITS, "application_name": "agentdb"}
    assert config["DISABLE_SERVER_SIDE_CURSORS"] is True


@pytest.mark.parametrize("value", ["on", "ON", "true", "1", "yes"])
def test_prepare_on_is_the_default(value: str) -> None:
    assert database_from_url(f"postgresql://h/a?prepare={value}") == database_from_url(
        "postgresql://h/a"
    )


@pytest.mark.parametrize("scheme", ["cockroach", "cockroachdb"])
def test_cockroachdb_url_has_its_own_engine(scheme: str) -> None:
    config = database_from_url(f"{scheme}://root@localhost:26257/agents")

    assert (config["ENGINE"], config["NAME"]) == ("django_cockroachdb", "agents")
    assert config["OPTIONS"]["application_name"] == "agentdb"


_KNOWN = "sqlite://, postgres://, postgresql://, cockroach://, cockroachdb://"
_NO_SCHEME = f"The database URL has no scheme; it must begin with one of {_KNOWN}."
_ENCODE = "Percent-encode '@', ':', '/', '?' and '#' in user name and password."
_FORM = f"After the host and ':' comes a port, a number from 1 to 65535. {_ENCODE}"
_DROPPED = "URL has a '#', or a '?' that begins no option=value. Percent-encode them: %23 and %3F."
_SLASHES = (
    "names a host. A relative SQLite path has three slashes (sqlite:///file.db), an absolute one four "
    "(sqlite:////dir/file.db)."
)
_DRIVER = "Write it without the driver:"
_NUL = "URL has a NUL character (%00), which no name can hold."
_BREAK = (
    "The database URL has a tab or a line break. Percent-encode them: %09, %0A and %0D."
)
_PYTHON = (
    "cannot be set by a URL: it is an argument of Django's or the driver's. "
    "In a Django project, set it in DATABASES."
)
_TWO = "one in its place, and another as an option. Leave one."
_NO_FILE = "names no file. For a database in memory, write sqlite://:memory:."


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("", f"{_NO_SCHEME}"),
        ("agents", f"{_NO_SCHEME}"),
        ("me:geheim@host/agents", f"{_NO_SCHEME}"),
        ("agents.db", f"{_NO_SCHEME} Did you mean sqlite:///agents.db?"),
        ("./agents", f"{_NO_SCHEME} Did you mean sqlite:///./agents?"),
        (
            "/var/lib/agents.db",
            f"{_NO_SCHEME} Did you mean sqlite:////var/lib/agents.db?",
        ),
        ("sqlite:agents.db", f"{_NO_SCHEME} Did you mean sqlite:///agents.db?"),
        ("sqlite:/x", f"{_NO_SCHEME} Did you mean sqlite:////x?"),
        ("postgres:/host/agents", f"{_NO_SCHEME} Did you mean postgres://host/agents?"),
        (
            "localhost:5432",
            f"{_NO_SCHEME} Did you mean postgresql://localhost:5432/DATABASE?",
        ),
        (
            "db.example:5432/agents",
            f"{_NO_SCHEME} Did you mean postgresql://db.example:5432/agents?",
        ),
        (
            "db.example/agents",
            f"{_NO_SCHEME} Did you mean postgresql://db.example/agents?",
        ),
        (
            "host=db.example dbname=agents",
            f"{_NO_SCHEME} Did you mean postgresql://HOST/DATABASE?",
        ),
        (
            "postgress://h/a",
            f"The database URL begins with 'postgress'; supported are {_KNOWN}.",
        ),
        (
            "SQLite3:///a",
            f"The database URL begins with 'SQLite3'; supported are {_KNOWN}.",
        ),
        (
            "postgresql://ash:p@ss/w:rd@host/db",
            f"The postgresql:// URL has an '@' after its first '/'. {_ENCODE}",
        ),
        (
            "postgresql://ash:1/w@host/db",
            f"The postgresql:// URL has an '@' after its first '/'. {_ENCODE}",
        ),
        (
            "postgresql:me:ge://heim@h/agents",
            _NO_SCHEME,
        ),
        (
            "postgresql:/h/agents?password=geheim",
            f"{_NO_SCHEME} Did you mean postgresql://h/agents?password=***?",
        ),
        (
            "mysql://me:geheim@h/agents",
            f"The database URL begins with 'mysql'; supported are {_KNOWN}.",
        ),
        (
            "postgresql+psycopg://h/a",
            f"The database URL begins with 'postgresql+psycopg'. {_DRIVER} postgresql://.",
        ),
        (
            "sqlite+aiosqlite:///a",
            f"The database URL begins with 'sqlite+aiosqlite'. {_DRIVER} sqlite://.",
        ),
        (
            "mysql+pymysql://h/a",
            f"The database URL begins with 'mysql+pymysql'; supported are {_KNOWN}.",
        ),
        ("sqlite:///a%00.db", f"The sqlite:// {_NUL}"),
        ("sqlite:///\udcff.db", "The database URL is not valid UTF-8."),
        ("postgresql://u:\ud800@h/a", "The database URL is not valid UTF-8."),
        ("sqlite:///%ff.db", "The database URL is not valid UTF-8."),
        ("postgresql://u:%e9@h/a", "The database URL is not valid UTF-8."),
        ("sqlite:///a\nb.db", _BREAK),
        ("postgresql://u:a\tb@h/a", _BREAK),
        ("postgresql://h,g\r\nh/a", _BREAK),
        (
            "sqlite://:memory",
            "The sqlite:// URL cannot be read. Write sqlite:///file.db, or sqlite://:memory:.",
        ),
        ("postgresql://h:0/a", f"The postgresql:// URL cannot be read. {_FORM}"),
        ("postgresql://h:1,b:0/a", f"The postgresql:// URL cannot be read. {_FORM}"),
        (
            "postgresql://h/a?=off",
            "The postgresql:// URL has a '#', or a '?' that begins no option=value. Percent-encode them: %23 and %3F.",
        ),
        (
            "postgresql://h/a?call_timeout=&prepare=off",
            "The postgresql:// URL gives the option 'call_timeout' no value.",
        ),
        (
            "sqlite:///a.db?journal=",
            "The sqlite:// URL gives the option 'journal' no value.",
        ),
        (
            "postgresql://db..example/a",
            "The postgresql:// URL names the host 'db..example', and no host can have that name.",
        ),
        (
            f"postgresql:///a?host=b,{'h' * 64}",
            f"The postgresql:// URL names the host {'h' * 64!r}, and no host can have that name.",
        ),
        ("postgresql://h%00/a", f"The postgresql:// {_NUL}"),
        ("postgresql://h/a?sslmode=%00", f"The postgresql:// {_NUL}"),
        (
            "sqlite:///C:/a/x.db",
            "'sqlite:///C:/a/x.db' names a file as Windows does, and this is not Windows.",
        ),
        (
            "sqlite:///c:%5Cx.db",
            "'sqlite:///c:%5Cx.db' names a file as Windows does, and this is not Windows.",
        ),
        (
            "sqlite:///a?slow_call_seconds=x",
            "The URL option slow_call_seconds='x' is not a number of seconds above 0.",
        ),
        ("postgresql://h/a?pool=true", f"The URL option 'pool' {_PYTHON}"),
        ("postgresql://h/a?row_factory=x&pool=1", f"The URL option 'pool' {_PYTHON}"),
        ("postgresql://h/a?row_factory=x", f"The URL option 'row_factory' {_PYTHON}"),
        (
            "postgresql://h/a?dbname=b",
            f"The postgresql:// URL has two values for dbname: {_TWO}",
        ),
        (
            "postgresql://h/a?host=i",
            f"The postgresql:// URL has two values for host: {_TWO}",
        ),
        (
            "postgresql://h:1/a?port=2",
            f"The postgresql:// URL has two values for port: {_TWO}",
        ),
        (
            "postgresql://me:geheim@h/a?password=x",
            f"The postgresql:// URL has two values for password: {_TWO}",
        ),
        (5, "The database URL must be a string, not int."),
        (Path("agents.db"), "The database URL must be a string, not PosixPath."),
        ("sqlite://agents.db", f"'sqlite://agents.db' {_SLASHES}"),
        ("sqlite://folder/agents.db", f"'sqlite://folder/agents.db' {_SLASHES}"),
        ("sqlite://", f"'sqlite://' {_NO_FILE}"),
        ("sqlite:///", f"'sqlite:///' {_NO_FILE}"),
        ("sqlite:////a#b.db", f"The sqlite:// {_DROPPED}"),
        ("sqlite:////a?b.db", f"The sqlite:// {_DROPPED}"),
        ("postgres://h/agents#1", f"The postgres:// {_DROPPED}"),
        (
            "sqlite:///a?mode=ro",
            "Unknown SQLite URL option 'mode'; known are journal, slow_call_seconds, synchronous, timeout and "
            "touch_interval.",
        ),
        (
            "sqlite:///a?synchronous=off",
            "The URL option synchronous='off' is not one of NORMAL, FULL, EXTRA.",
        ),
        (
            "sqlite:///a?timeout=soon",
            "The URL option timeout='soon' is not a number of seconds.",
        ),
        (
            "sqlite:///a?timeout=nan",
            "The URL option timeout='nan' is not a number of seconds.",
        ),
        (
            "sqlite:///a?timeout=inf",
            "The URL option timeout='inf' is not a number of seconds.",
        ),
        (
            "sqlite:///a?timeout=-1",
            "The URL option timeout='-1' is not a number of seconds.",
        ),
        (
            "postgresql://me:geheim@h",
            "The postgresql:// URL names no database: postgresql://host/DATABASE.",
        ),
        (
            "postgres://",
            "The postgres:// URL names no database: postgres://host/DATABASE.",
        ),
        (
            "postgres://me:ge/heim@h/agents",
            f"The postgres:// URL has an '@' after its first '/'. {_ENCODE}",
        ),
        (
            "postgres://me:ge#heim@h/agents",
            f"The postgres:// URL cannot be read. {_FORM}",
        ),
        (
            "sqlite:///me:1?geheim=1@h/agents",
            f"The sqlite:// {_DROPPED}",
        ),
        (
            "postgres://me:1?geheim=1@h/agents",
            f"The postgres:// {_DROPPED}",
        ),
        (
            "postgres://me:1/geheim?@h/agents?sslmode=x",
            f"The postgres:// {_DROPPED}",
        ),
        (
            "postgres://me:1/a?geheim=&1@h/agents",
            f"The postgres:// {_DROPPED}",
        ),
        (
            "postgres://me:ge?heim@h/agents",
            f"The postgres:// URL cannot be read. {_FORM}",
        ),
        ("postgres://h:port/agents", f"The postgres:// URL cannot be read. {_FORM}"),
        ("postgres://h:70000/agents", f"The postgres:// URL cannot be read. {_FORM}"),
        (
            "postgres://h/agents?prepare=maybe",
            "The URL option prepare='maybe' is not one of on, true, yes, 1, off, false, no, 0.",
        ),
    ],
)
def test_bad_urls_say_what_is_wrong(url: Any, message: str) -> None:
    with pytest.raises(InvalidInputError) as raised:
        database_from_url(url)

    assert str(raised.value) == message
    assert raised.value.__cause__ is None


def test_a_url_may_end_like_the_file_that_it_was_read_from() -> None:
    assert database_from_url("postgresql://h,g/a\n")["NAME"] == "a"
    assert database_from_url("sqlite:////a/b.db\r\n")["NAME"] == "/a/b.db"
    assert database_from_url("sqlite://:memory:\n")["NAME"] == ":memory:"
    assert database_from_url("sqlite:////a/b%0A.db")["NAME"] == "/a/b\n.db"


def test_a_name_that_begins_with_a_tilde_is_a_name() -> None:
    assert (
        os.path.basename(database_from_url("sqlite:///~nobody-of-that-name.db")["NAME"])
        == "~nobody-of-that-name.db"
    )


def test_an_at_sign_in_an_option_needs_no_encoding() -> None:
    config = database_from_url("postgresql://h:5432/a?user=me@corp&password=p@ss")

    assert config["OPTIONS"]["user"] == "me@corp"
    assert config["OPTIONS"]["password"] == "p@ss"


def test_an_option_that_repeats_the_url_is_no_contradiction() -> None:
    config = database_from_url(
        "postgresql://me@h:5432/agents?dbname=agents&host=h&port=5432&user=me"
    )

    assert (config["NAME"], config["HOST"], config["PORT"]) == ("agents", "h", 5432)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("sqlite:///a.db", "sqlite:///a.db"),
        ("postgres://h:5432/a", "postgres://h:5432/a"),
        ("postgres://me@h/a", "postgres://me@h/a"),
        ("postgres://ash:p@ss/w:rd@h/a", "postgres://ash:***@h/a"),
        ("postgres://ash:geheim/a", "postgres://***"),
        ("postgres://ash:ge/heim", "postgres://***"),
        ("postgres://me:ge@he:im/a", "postgres://***"),
        ("postgres://a:1,b:2/db", "postgres://a:1,b:2/db"),
        ("postgres://[::1]:5432/db", "postgres://[::1]:5432/db"),
        (
            "postgres://me:geheim@h:5432/a?sslmode=require",
            "postgres://me:***@h:5432/a?sslmode=require",
        ),
        ("postgres://me:ge@heim@h/a", "postgres://me:***@h/a"),
        ("postgres://me:ge:heim@h/a", "postgres://me:***@h/a"),
        ("postgres://me:ge/heim@h/a", "postgres://me:***@h/a"),
        ("postgres://me:ge#heim@h/a", "postgres://me:***@h/a"),
        ("postgres://:geheim@h/a", "postgres://:***@h/a"),
        ("postgres://h/a?password=geheim", "postgres://h/a?password=***"),
        (
            "postgres://h/a?user=me&Password=geheim&sslmode=x",
            "postgres://h/a?user=me&Password=***&sslmode=x",
        ),
        ("postgres://h/a?sslpassword=geheim", "postgres://h/a?sslpassword=***"),
        (
            "postgres://h/a?oauth_client_secret=geheim&scram_client_key=geheim",
            "postgres://h/a?oauth_client_secret=***&scram_client_key=***",
        ),
        ("postgres://h/a?sslkey=a.key", "postgres://h/a?sslkey=a.key"),
        # Nobody can tell these two apart.
        ("postgres://h:5432/a?password=ge@heim", "postgres://***"),
        ("postgres://me:1/a?password=ge@h/a", "postgres://***"),
        ("sqlite:///me:ge?password=heim@h/a", "sqlite://***"),
        ("host=h:1 password=ge@heim", "***"),
        ("me:geheim@h/a", "me:***@h/a"),
        ("postgres:me:ge://heim@h/a", "postgres:***@h/a"),
        ("postgres:/me:ge://heim@h/a", "postgres:***@h/a"),
        ("me:ge://heim@h/a", "me:***@h/a"),
        ("postgres:h/a?password=ge&heim", "postgres:h/a?password=***"),
        ("host=h password = 'geheim' dbname=a", "host=h password =***"),
    ],
)
def test_urls_are_shown_without_the_password(url: str, shown: str) -> None:
    assert display_url(url) == shown


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("postgres://u:secret@db.example:6432/agents", "'agents' at db.example:6432"),
        ("postgres:///agents", "'agents' at the local server"),
        (
            "postgres:///agents?host=/run/postgresql&port=5433",
            "'agents' at /run/postgresql:5433",
        ),
        ("postgres://?service=agents", "'service=agents'"),
    ],
)
def test_a_server_is_named_as_the_url_names_it(url: str, shown: str) -> None:
    assert server_name(database_from_url(url)) == shown


def test_the_value_of_an_option_may_end_with_an_equals_sign() -> None:
    options = database_from_url("postgresql://h/a?password=Zm9v==&sslmode=disable")

    assert options["OPTIONS"]["password"] == "Zm9v=="


def test_an_empty_url_is_a_variable_that_is_not_set() -> None:
    with pytest.raises(InvalidInputError) as raised:
        database_url("")

    assert str(raised.value) == "The database URL is empty. Is a variable not set?"


def test_database_url_is_the_argument_else_the_environments_else_a_file_here(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("DATABASE_URL", raising=False)
    assert database_url() == "sqlite:///agentdb.sqlite3"
    assert database_from_env("sqlite:////x.db")["NAME"] == "/x.db"

    monkeypatch.setenv("DATABASE_URL", "sqlite:////env.db")
    assert database_url() == "sqlite:////env.db"
    assert database_url("sqlite:////argument.db") == "sqlite:////argument.db"
    assert database_from_env("sqlite:////x.db")["NAME"] == "/env.db"


def test_the_isolation_of_single_calls_is_an_option_of_postgresql() -> None:
    own = database_from_url("postgresql://h/agents?isolation=Serializable")["AGENTDB"]
    assert own["isolation"] == "serializable"
    with pytest.raises(
        InvalidInputError,
        match="isolation='snapshot' is not one of serializable",
    ):
        database_from_url("postgresql://h/agents?isolation=snapshot")
    with pytest.raises(
        InvalidInputError, match="Unknown SQLite URL option 'isolation'"
    ):
        database_from_url("sqlite:///a.db?isolation=serializable")


SERVER, FILE = "postgresql://h/a", "sqlite:////a.db"
SECONDS = "is not a number of seconds above 0."
CONNECTIONS = "is not a whole number from 1 to 100000."
LONGEST = "2000000"


@pytest.mark.parametrize(
    ("url", "option", "allowed", "refused", "words"),
    [
        (FILE, "timeout", ["0", "0.001", LONGEST], ["-0.001", "2000000.5"], "is not a number of seconds."),
        (FILE, "slow_call_seconds", ["0.001", LONGEST], ["0", "-1", "2000000.5"], SECONDS),
        (FILE, "touch_interval", ["0.001", LONGEST], ["0", "-1", "2000000.5"], SECONDS),
        (SERVER, "slow_call_seconds", ["0.001", LONGEST], ["0", "-1", "2000000.5"], SECONDS),
        (SERVER, "touch_interval", ["0.001", LONGEST], ["0", "-1", "2000000.5"], SECONDS),
        (SERVER, "call_timeout", ["0.001", LONGEST], ["0", "-1", "2000000.5"], SECONDS),
        (SERVER, "idle_seconds", ["0.001", LONGEST], ["0", "-1", "2000000.5"], SECONDS),
        (SERVER, "max_connections", ["1", "2", "100000"], ["0", "-1", "1.5", "100001"], CONNECTIONS),
    ],
)  # fmt: skip
def test_numbers_are_allowed_up_to_their_limits_and_refused_beyond(
    url: str, option: str, allowed: list[str], refused: list[str], words: str
) -> None:
    for value in allowed:
        config = database_from_url(f"{url}?{option}={value}")
        stored = config["OPTIONS" if option == "timeout" else "AGENTDB"][option]
        assert stored == float(value)
    for value in refused:
        with pytest.raises(InvalidInputError) as raised:
            database_from_url(f"{url}?{option}={value}")
        assert str(raised.value).startswith(f"The URL option {option}=")
        assert str(raised.value).endswith(words)


@pytest.mark.parametrize(
    ("call_timeout", "connect_timeout", "tcp_user_timeout"),
    [
        ("0.0001", 2, 1),
        ("1", 2, 1_000),
        ("2", 2, 2_000),
        ("2.1", 3, 2_100),
        ("9", 9, 9_000),
        ("10", 10, 10_000),
        ("11", 10, 11_000),
        ("60", 10, 60_000),
    ],
)
def test_what_libpq_waits_for_follows_the_limit_of_a_call(
    call_timeout: str, connect_timeout: int, tcp_user_timeout: int
) -> None:
    options = database_from_url(f"{SERVER}?call_timeout={call_timeout}")["OPTIONS"]

    assert options["connect_timeout"] == connect_timeout
    assert options["tcp_user_timeout"] == tcp_user_timeout


@pytest.mark.parametrize(
    ("value", "is_on"),
    [
        ("on", True),
        ("ON", True),
        ("true", True),
        ("True", True),
        ("yes", True),
        ("1", True),
        ("off", False),
        ("false", False),
        ("no", False),
        ("No", False),
        ("0", False),
    ],
)
def test_a_switch_is_read_as_people_write_it(value: str, is_on: bool) -> None:
    config = database_from_url(f"{SERVER}?prepare={value}")

    assert config["DISABLE_SERVER_SIDE_CURSORS"] is not is_on
    assert config["OPTIONS"].get("prepare_threshold", "none") == (
        0 if is_on else "none"
    )
    assert "prepare" not in config["OPTIONS"]


def test_everything_that_each_engine_is_told() -> None:
    assert database_from_url(
        f"{FILE}?journal=delete&synchronous=normal&touch_interval=5"
    ) == {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": "/a.db",
        "CONN_MAX_AGE": None,
        "AGENTDB": {"touch_interval": 5.0},
        "OPTIONS": {
            "timeout": 30.0,
            "detect_types": 0,
            "transaction_mode": "IMMEDIATE",
            "init_command": "PRAGMA journal_mode=DELETE; PRAGMA synchronous=NORMAL; PRAGMA foreign_keys=ON",
        },
    }
    for journal, synchronous in (("wal", "FULL"), ("delete", "EXTRA")):
        options = database_from_url(f"{FILE}?journal={journal}")["OPTIONS"]
        assert f"PRAGMA synchronous={synchronous};" in options["init_command"]
    config = database_from_url("postgresql://me:x@h:1/a?isolation=SERIALIZABLE")
    options = config.pop("OPTIONS")
    assert {name: config[name] for name in sorted(config) if config[name] != ""} == {
        "AGENTDB": {
            "call_timeout": 60.0,
            "idle_seconds": 300.0,
            "isolation": "serializable",
        },
        "CONN_HEALTH_CHECKS": True,
        "CONN_MAX_AGE": None,
        "DISABLE_SERVER_SIDE_CURSORS": False,
        "ENGINE": "django.db.backends.postgresql",
        "HOST": "h",
        "NAME": "a",
        "PASSWORD": "x",
        "PORT": 1,
        "USER": "me",
    }
    assert options == {
        "application_name": "agentdb",
        "connect_timeout": 10,
        "keepalives_count": 3,
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "prepare_threshold": 0,
        "tcp_user_timeout": 60_000,
    }
