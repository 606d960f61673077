"""Database URLs as Django settings; imports no Django."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any
from urllib.parse import quote, unquote_to_bytes

from agentdb.errors import InvalidInputError
from agentdb.sqlite_files import is_in_wal_mode, shared_file_system

INSTALLED_APPS = ["agentdb"]

URL_VARIABLE = "DATABASE_URL"
DEFAULT_URL = "sqlite:///agentdb.sqlite3"

_SCHEMES = (
    "sqlite",
    "postgres",
    "postgresql",
    "cockroach",
    "cockroachdb",
)

_SQLITE_BUSY_SECONDS = 30.0
_LONGEST_BUSY_SECONDS = 2_000_000.0  # SQLite counts milliseconds in 31 bits

_CALL_SECONDS = 60.0  # how long a call may wait for a server that went silent
# A thread that has stopped calling gives its connection back, of which a server has few.
_IDLE_SECONDS = 300.0
_MOST_CONNECTIONS = 100_000

# Arguments of psycopg's connect() and of Django that are not parameters of libpq. They take objects, so the text of a
# URL would fail far from its cause, or, as "autocommit=false", mean the opposite.
_OF_PYTHON = {
    "autocommit",
    "conninfo",
    "context",
    "cursor_factory",
    "isolation_level",
    "pool",
    "prepare_threshold",
    "row_factory",
    "server_side_binding",
}
# Options of libpq that have their own place in a URL, and their settings. Which of two different
# values Django uses differs from one to the next.
_TWICE = {
    "dbname": "NAME",
    "host": "HOST",
    "port": "PORT",
    "user": "USER",
    "password": "PASSWORD",
}

_ENCODE = "Percent-encode '@', ':', '/', '?' and '#' in user name and password."
_FORM = f"After the host and ':' comes a port, a number from 1 to 65535. {_ENCODE}"

_ON = ("on", "true", "yes", "1")
_OFF = ("off", "false", "no", "0")


def database_url(url: str | None = None) -> str:
    """Return ``url``, else the ``DATABASE_URL`` of the environment, else the default SQLite file.

    An empty ``url`` is an error: probably an unset variable, not a wish for the default.
    """
    if url is not None and not url:
        raise InvalidInputError("The database URL is empty. Is a variable not set?")
    return url or os.environ.get(URL_VARIABLE) or DEFAULT_URL


def database_from_env(default: str = DEFAULT_URL) -> dict[str, Any]:
    """Return the ``DATABASES`` entry for ``DATABASE_URL``, else for ``default``."""
    return database_from_url(os.environ.get(URL_VARIABLE) or default)


def database_from_url(url: str) -> dict[str, Any]:
    """Return the ``DATABASES`` entry for a database URL.

    Raises ``InvalidInputError`` for a URL that names no database of a known engine. The message has no password.
    """
    if not isinstance(url, str):
        raise InvalidInputError(
            f"The database URL must be a string, not {type(url).__name__}."
        )
    # Both without the URL, which may have a password.
    try:
        # Also what is percent-encoded, which urllib would replace. An environment variable may hold other bytes.
        unquote_to_bytes(url).decode()
    except UnicodeError:
        raise InvalidInputError("The database URL is not valid UTF-8.") from None
    url = url.rstrip("\t\r\n")  # a file that it was read from may end so
    if re.search(r"[\t\r\n]", url):  # urllib would leave them out
        raise InvalidInputError(
            "The database URL has a tab or a line break. Percent-encode them: %09, %0A and %0D."
        )
    scheme, rest = _scheme_and_rest(url)
    # dj_database_url drops what it cannot place, and guesses. What it would misread is refused before and after.
    config = _parsed(scheme, rest)
    _refuse_what_would_be_dropped(scheme, rest)
    options = dict(config.get("OPTIONS", {}))
    for value in (*config.values(), *options.values()):
        # The file system and libpq end a name at a NUL: a prefix of it would be opened instead.
        if "\0" in str(value):
            raise InvalidInputError(
                f"The {scheme}:// URL has a NUL character (%00), which no name can hold."
            )
    if scheme == "sqlite":
        return _sqlite(url, config, options)
    return _server(scheme, config, options)


def file_url(path: str | os.PathLike[str]) -> str:
    """Return the URL of the SQLite file, or raise ``InvalidInputError`` if its name or folder is not UTF-8."""
    try:
        return f"sqlite:///{quote(os.fspath(path))}"
    except UnicodeEncodeError:
        raise InvalidInputError(
            f"The path {os.fspath(path)!r} is not valid UTF-8. Use another file or folder."
        ) from None


def _at_scheme(url: str) -> tuple[str, str, str]:
    """Part the URL at the ``://`` after its scheme; without a scheme, all of it is the rest."""
    scheme, separator, rest = url.partition("://")
    # A password may have "://" too, in "postgresql:ash:pa://ss@host" for one.
    if separator and re.fullmatch(r"\s*[\w+.-]*", scheme):
        return scheme, separator, rest
    return "", "", url


def _scheme_and_rest(url: str) -> tuple[str, str]:
    scheme, separator, rest = _at_scheme(url)
    if scheme in _SCHEMES:
        return scheme, rest
    known = ", ".join(f"{each}://" for each in _SCHEMES)
    if not separator:
        meant = _probably_meant(url)
        question = f" Did you mean {meant}?" if meant else ""
        raise InvalidInputError(
            f"The database URL has no scheme; it must begin with one of {known}.{question}"
        )
    if (plain := scheme.partition("+")[0]) in _SCHEMES:
        raise InvalidInputError(
            f"The database URL begins with {scheme!r}. Write it without the driver: {plain}://."
        )
    raise InvalidInputError(
        f"The database URL begins with {scheme!r}; supported are {known}."
    )


def _probably_meant(text: str) -> str:
    """The URL that somebody who wrote ``text`` without ``://`` had in mind, to be shown; "" if nobody can tell.

    Text with an '@' may contain a password anywhere.
    """
    if "@" in text:
        return ""
    for pattern, meant in _MEANT:
        if match := re.fullmatch(pattern, text):
            return display_url(match.expand(meant))
    return ""


# What people write for a URL, and the URL for it: the first pattern that matches all of the text decides.
_MEANT = (
    (r"sqlite:(.*)", r"sqlite:///\1"),
    (rf"({'|'.join(_SCHEMES)}):/*(.*)", r"\1://\2"),
    (r".*\b(dbname|host) *=.*", "postgresql://HOST/DATABASE"),
    (r"[/.].*|.*\.(db|sqlite|sqlite3)", r"sqlite:///\g<0>"),
    (r"[\w.-]+:\d+", r"postgresql://\g<0>/DATABASE"),
    (r"[\w.-]+(:\d+)?/[\w-]+", r"postgresql://\g<0>"),
)


def _parsed(scheme: str, rest: str) -> dict[str, Any]:
    import dj_database_url

    place, _, _ = rest.partition("?")
    one = rest
    hosts = ports = ""
    form = "Write sqlite:///file.db, or sqlite://:memory:."
    if scheme != "sqlite":
        form = _FORM
        _, _, path = place.partition("/")
        if "@" in path:
            # Otherwise part of a password would be read as the host or database, and printed.
            raise InvalidInputError(
                f"The {scheme}:// URL has an '@' after its first '/'. {_ENCODE}"
            )
        # urllib, below dj_database_url, knows URLs of one host only.
        one, hosts, ports = _several_hosts(rest)
    elif place == ":memory:":
        # Otherwise urllib reads a host and its port before the options.
        one = f"/{rest}"
    # It knows CockroachDB by the shorter name.
    known = scheme.removesuffix("db")
    try:
        config: dict[str, Any] = {**dj_database_url.parse(f"{known}://{one}")}
    except ValueError:
        # Without its cause, whose message may quote a part of the password.
        raise InvalidInputError(f"The {scheme}:// URL cannot be read. {form}") from None
    if hosts:
        config.update(HOST=hosts, PORT=ports)
    return config


def _refuse_what_would_be_dropped(scheme: str, rest: str) -> None:
    location, _, query = rest.partition("?")
    # To libpq an '@' before the first '/' ends a password, so that the '?' is in it. No option of SQLite takes an '@'.
    in_password = "@" in query and (scheme == "sqlite" or "/" not in location)
    if in_password or "#" in rest:  # in a path, another file would be opened
        raise _misread(scheme)
    _check_options(scheme, query)
    if re.search(r":0+(,|$)", location.partition("/")[0]):
        raise InvalidInputError(f"The {scheme}:// URL cannot be read. {_FORM}")
    if scheme == "sqlite" and not location.strip("/"):
        raise InvalidInputError(
            f"'{scheme}://{location}' names no file. For a database in memory, write sqlite://:memory:."
        )


def _check_options(scheme: str, query: str) -> None:
    for option in filter(None, query.split("&")):
        name, equals, value = option.partition("=")  # base64 may end with "=" too
        # No name has an '@'. With one further on, the name may be part of a password.
        may_be_password = "@" in name or (not value and "@" in query)
        if not name or not equals or may_be_password:
            raise _misread(scheme)
        if not value:  # probably an unset variable, like an empty URL
            raise InvalidInputError(
                f"The {scheme}:// URL gives the option {name!r} no value."
            )


def _misread(scheme: str) -> InvalidInputError:
    return InvalidInputError(
        f"The {scheme}:// URL has a '#', or a '?' that begins no option=value. Percent-encode them: %23 and %3F."
    )


def _several_hosts(rest: str) -> tuple[str, str, str]:
    """Part ``user@a:1,b:2/db`` into a URL of one host, and the hosts and ports as libpq takes them; '' for one host."""
    location, slash, tail = rest.partition("/")
    credentials, at, places = location.rpartition("@")
    if "," not in places:
        return rest, "", ""
    hosts = []
    ports = []
    for place in places.split(","):
        # A ':' followed by anything but digits belongs to an address in brackets.
        [(host, port)] = re.findall(r"^(.*?)(?::(\d*))?$", place)
        hosts.append(host.strip("[]"))
        ports.append(port)
    one = f"{credentials}{at}host{slash}{tail}"
    return one, ",".join(hosts), ",".join(ports) if any(ports) else ""


def display_url(url: str) -> str:
    """Return the URL without the password, also of a URL that cannot be parsed."""
    scheme, separator, rest = _at_scheme(url)
    # Without a scheme it may be libpq's "host=h password=x y".
    end = "[^&]*" if separator else ".*"
    shown = re.sub(
        _SECRET_OPTION + end, r"\1***", rest, flags=re.IGNORECASE | re.DOTALL
    )
    credentials, _, host = shown.rpartition("@")
    user, colon, _ = credentials.partition(":")
    # An address in brackets has colons of its own.
    place = re.sub(r"\[[^]]*]", "", host if colon else shown)
    in_port = scheme not in ("", "sqlite") and re.match(
        r"[^/?@]*:[^/?@,]*[^/?@,\d]", place
    )
    # Such an option may be part of a password that the '@' ends.
    in_option = rest.count("@") != shown.count("@")
    if in_port or in_option:
        return f"{scheme}{separator}***"  # nobody can tell where the password begins
    return scheme + separator + (f"{user}:***@{host}" if colon else shown)


# As in "password", "sslpassword", "oauth_client_secret" and "scram_client_key".
_SECRET_OPTION = r"((?:^|[?&\s])\w*(?:password|secret|_key)\s*=)"


def server_name(settings: Mapping[str, Any]) -> str:
    """Return database, host and port of a ``DATABASES`` entry of a server, for a message."""
    options = settings.get("OPTIONS", {})
    # pg_service.conf, which libpq reads by itself, then says the rest.
    if not settings["NAME"] and "service" in options:
        return f"'service={options['service']}'"
    host = settings["HOST"] or options.get("host") or "the local server"
    port = settings["PORT"] or options.get("port") or ""
    hosts = str(host).split(",")
    ports = str(port).split(",")
    if len(ports) == 1:
        ports *= len(hosts)  # libpq takes one port for all of them
    places = []
    for each, number in zip(hosts, ports, strict=False):
        places.append(f"{each}:{number}" if number else each)
    return f"{settings['NAME']!r} at {', '.join(places)}"


def _sqlite(
    url: str, config: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    _check_file_name(url, config)
    own = _taken(options, _OF_EVERY_ENGINE)
    asked = _taken(options, _OF_SQLITE)
    # An option that is not known is refused, and not passed on: "tiemout=60" would be ignored in silence.
    if options:
        raise InvalidInputError(
            f"Unknown SQLite URL option {sorted(options)[0]!r}; known are journal, slow_call_seconds, "
            "synchronous, timeout and touch_interval."
        )
    name = config["NAME"]
    if name != ":memory:":
        name = os.path.abspath(name)  # because the working directory may change
    journal = asked.get("journal") or _journal(name)
    # With a log, an acknowledged write survives a power cut only at FULL; the old server ran at NORMAL.
    # A rollback journal that was removed may be there again after a power cut, and undoes what was committed, unless
    # its folder is synced as well, which FULL leaves out: https://sqlite.org/pragma.html#pragma_synchronous
    synchronous = asked.get("synchronous") or ("FULL" if journal == "WAL" else "EXTRA")
    pragmas = [f"PRAGMA synchronous={synchronous}", "PRAGMA foreign_keys=ON"]
    if journal:
        pragmas.insert(0, f"PRAGMA journal_mode={journal}")
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": name,
        # A connection lives as long as its thread: opening one costs more than most calls.
        "CONN_MAX_AGE": None,
        "AGENTDB": own,
        "OPTIONS": {
            "timeout": asked.get("timeout", _SQLITE_BUSY_SECONDS),
            # Django's fields already convert; parsing columns by their declared type would do it twice.
            "detect_types": 0,
            # A read-then-write transaction that begins DEFERRED fails at once if another writer was first;
            # one that begins IMMEDIATE waits.
            "transaction_mode": "IMMEDIATE",
            "init_command": "; ".join(pragmas),
        },
    }


def _check_file_name(url: str, config: dict[str, Any]) -> None:
    shown = display_url(url)
    if os.name != "nt" and re.match(r"[A-Za-z]:[\\/]", config["NAME"]):
        raise InvalidInputError(
            f"{shown!r} names a file as Windows does, and this is not Windows."
        )
    if config.get("HOST"):
        raise InvalidInputError(
            f"{shown!r} names a host. A relative SQLite path has three slashes (sqlite:///file.db), "
            "an absolute one four (sqlite:////dir/file.db)."
        )


Reader = Callable[[str, Any], Any]  # of an option's name and its value in the URL


def _one_of(*known: str) -> Reader:
    """Return a reader of an option that takes one of these, in upper or lower case."""

    def read(name: str, value: Any) -> str:
        # dj_database_url makes bools and numbers of some values: 1 of "1", True of "true".
        for each in known:
            if str(value).lower() == each.lower():
                return each
        raise InvalidInputError(
            f"The URL option {name}={value!r} is not one of {', '.join(known)}."
        )

    return read


def _seconds(name: str, value: Any, *, or_zero: bool = False) -> float:
    try:
        seconds = float(value)
    except (TypeError, ValueError):
        seconds = math.nan  # which is outside every range
    is_zero = or_zero and seconds == 0
    if not is_zero and not 0 < seconds <= _LONGEST_BUSY_SECONDS:
        above = "" if or_zero else " above 0"
        raise InvalidInputError(
            f"The URL option {name}={value!r} is not a number of seconds{above}."
        )
    return seconds


def _journal(path: str) -> str:
    """Return the journal mode for a file whose URL names none; '' keeps the file's own."""
    kind = "" if path == ":memory:" else shared_file_system(path)
    if not kind:
        return "WAL"
    # The mode of a file that others have open cannot be changed.
    kept = is_in_wal_mode(path)
    done = "It is used without one."
    if kept:
        done = "It has one, and keeps it until it is opened with ?journal=delete."
    warnings.warn(
        f"The SQLite file {path!r} is on a file system of type {kind}, where a write-ahead log can lose commits. "
        f"{done} Put the file on a local disk, or write ?journal=wal or ?journal=delete to decide.",
        RuntimeWarning,
        stacklevel=4,
    )
    return "" if kept else "DELETE"


def _number(name: str, value: Any) -> int:
    if not str(value).isdecimal() or not 0 < int(value) <= _MOST_CONNECTIONS:
        raise InvalidInputError(
            f"The URL option {name}={value!r} is not a whole number from 1 to {_MOST_CONNECTIONS}."
        )
    return int(value)


def _taken(options: dict[str, Any], readers: Mapping[str, Reader]) -> dict[str, Any]:
    """Take the options out that there are readers for, and return what those make of them."""
    taken = {}
    for name, read in readers.items():
        if name in options:
            taken[name] = read(name, options.pop(name))
    return taken


def _default_limits(call_timeout: float) -> dict[str, int]:
    """What libpq should do about a server or network that is gone, unless the URL says so."""
    # Without these a network that drops packets, as a firewall does, keeps a call waiting for as long as the kernel
    # likes: two hours until the first keepalive, a quarter of an hour for what was sent.
    return {
        # For each host of several. Below 2 libpq takes 2, and one host must not use up the time for all.
        "connect_timeout": max(2, min(10, math.ceil(call_timeout))),
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": math.ceil(call_timeout * 1000),
    }


def _server(
    scheme: str, config: dict[str, Any], options: dict[str, Any]
) -> dict[str, Any]:
    _check_server_options(scheme, config, options)
    own: dict[str, Any] = {
        "call_timeout": _CALL_SECONDS,
        "idle_seconds": _IDLE_SECONDS,
        "prepare": "on",
        **_taken(options, _OF_EVERY_ENGINE | _OF_SERVERS),
    }
    # What is left in the options is libpq's, which says itself what it does not know.
    options = {**_default_limits(own["call_timeout"]), **options}
    if "touch_durability" in own and scheme.startswith("cockroach"):
        raise InvalidInputError(
            "The URL option touch_durability is for PostgreSQL; CockroachDB commits fully."
        )
    prepares = own.pop("prepare") in _ON
    options.setdefault("application_name", "agentdb")
    if prepares:
        # Django's own queries bind on the client and are never prepared; this is for agentdb's.
        options["prepare_threshold"] = 0
    return {
        **config,
        "CONN_MAX_AGE": None,
        "CONN_HEALTH_CHECKS": True,
        # A pooler that hands out server connections by transaction is the reason to switch prepare off, and it
        # breaks cursors that outlive a transaction just the same.
        "DISABLE_SERVER_SIDE_CURSORS": not prepares,
        "AGENTDB": own,
        "OPTIONS": options,
    }


def _check_server_options(
    scheme: str, config: dict[str, Any], options: dict[str, Any]
) -> None:
    if not config["NAME"] and "service" not in options:
        raise InvalidInputError(
            f"The {scheme}:// URL names no database: {scheme}://host/DATABASE."
        )
    if taken := _OF_PYTHON & options.keys():
        raise InvalidInputError(
            f"The URL option {min(taken)!r} cannot be set by a URL: it is an argument of Django's or the "
            "driver's. In a Django project, set it in DATABASES."
        )
    hosts = config["HOST"] or options.get("host", "")
    for host in str(hosts).split(","):
        if not host.startswith(("/", "@")):
            _check_host_name(scheme, host)
    for option, setting in _TWICE.items():
        value = config[setting]
        if value and str(options.get(option, value)) != str(value):
            raise InvalidInputError(
                f"The {scheme}:// URL has two values for {option}: one in its place, and another as an "
                "option. Leave one."
            )


def _check_host_name(scheme: str, host: str) -> None:
    try:
        host.encode("idna")  # as the driver does, whose error would be a UnicodeError
    except UnicodeError:
        raise InvalidInputError(
            f"The {scheme}:// URL names the host {host!r}, and no host can have that name."
        ) from None


# agentdb's own options, which neither SQLite's driver nor libpq would know.
_OF_EVERY_ENGINE: dict[str, Reader] = {
    "slow_call_seconds": _seconds,
    "touch_interval": _seconds,
}
_OF_SQLITE: dict[str, Reader] = {
    "synchronous": _one_of("NORMAL", "FULL", "EXTRA"),
    "journal": _one_of("WAL", "DELETE"),
    "timeout": partial(_seconds, or_zero=True),  # 0: fail at once
}
_OF_SERVERS: dict[str, Reader] = {
    "call_timeout": _seconds,
    "idle_seconds": _seconds,
    "max_connections": _number,
    "touch_durability": _one_of("full", "relaxed"),
    "isolation": _one_of("serializable"),
    "prepare": _one_of(*_ON, *_OFF),
}
