"""Database URLs as Django settings; imports no Django."""

from __future__ import annotations

import math
import os
import re
import warnings
from collections.abc import Mapping
from typing import Any

from agentdb.errors import InvalidInputError
from agentdb.sqlite_files import is_in_wal_mode, shared_file_system

INSTALLED_APPS = ["agentdb"]

URL_VARIABLE = "DATABASE_URL"
DEFAULT_URL = "sqlite:///agentdb.sqlite3"

_SCHEMES = {
    "sqlite": "sqlite",
    "postgres": "postgres",
    "postgresql": "postgres",
    "cockroach": "cockroach",
    "cockroachdb": "cockroach",
}

# An acknowledged write survives a power cut only at FULL; the old server ran at NORMAL.
_SQLITE_SYNCHRONOUS = ("NORMAL", "FULL", "EXTRA")
_SQLITE_JOURNALS = ("WAL", "DELETE")
_SQLITE_BUSY_SECONDS = 30.0
_LONGEST_BUSY_SECONDS = 2_000_000.0  # SQLite counts milliseconds in 31 bits

_CALL_SECONDS = 60.0  # how long a call may wait for a server that went silent
_IDLE_SECONDS = 300.0
_TOUCH_DURABILITIES = ("full", "relaxed")
_MOST_CONNECTIONS = 100_000

# Arguments of psycopg's connect() and of Django that are no parameters of libpq.
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
# Options of libpq that have a place in a URL, and the setting that is there.
_TWICE = {"dbname": "NAME", "host": "HOST", "port": "PORT", "user": "USER", "password": "PASSWORD"}

_ON = (True, 1, "on", "true", "yes")
_OFF = (False, 0, "off", "false", "no")


def database_url(url: str | None = None) -> str:
    """Return ``url``, else the ``DATABASE_URL`` of the environment, else the default SQLite file."""
    return url or os.environ.get(URL_VARIABLE) or DEFAULT_URL


def database_from_env(default: str = DEFAULT_URL) -> dict[str, Any]:
    """Return the ``DATABASES`` entry for ``DATABASE_URL``, else for ``default``."""
    return database_from_url(os.environ.get(URL_VARIABLE) or default)


def database_from_url(url: str) -> dict[str, Any]:
    """Return the ``DATABASES`` entry for a database URL.

    Raises ``InvalidInputError`` for a URL that names no database of a known engine. The message holds no password.
    """
    import dj_database_url

    if not isinstance(url, str):
        raise InvalidInputError(f"The database URL must be a string, not {type(url).__name__}.")
    scheme, separator, rest = url.partition("://")
    if separator and scheme not in _SCHEMES and (plain := scheme.partition("+")[0]) in _SCHEMES:
        raise InvalidInputError(f"The database URL begins with {scheme!r}. Write it without the driver: {plain}://.")
    if not separator or scheme not in _SCHEMES:
        raise InvalidInputError(
            f"The database URL begins with {scheme!r}; supported are {', '.join(f'{s}://' for s in _SCHEMES)}."
            if separator
            else f"The database URL has no scheme; it must begin with one of {', '.join(f'{s}://' for s in _SCHEMES)}."
        )
    one, hosts, ports = rest, "", ""
    if _SCHEMES[scheme] != "sqlite":
        one, hosts, ports = _several_hosts(rest)
    try:
        config: dict[str, Any] = {**dj_database_url.parse(f"{_SCHEMES[scheme]}://{one}")}
    except ValueError:
        raise InvalidInputError(
            f"The {scheme}:// URL cannot be read. Percent-encode '@', ':', '/', '?' and '#' in user name and password."
        ) from None
    if hosts:
        config.update(HOST=hosts, PORT=ports)
    location, _, query = rest.partition("?")
    if "#" in rest or any("=" not in option for option in query.split("&") if option):
        # Both would be dropped without a word, and with '#' in a path another file opened.
        raise InvalidInputError(
            f"The {scheme}:// URL has a '#', or a '?' that begins no option=value. Percent-encode them: %23 and %3F."
        )
    options = dict(config.get("OPTIONS", {}))
    if any("\0" in str(value) for value in (*config.values(), *options.values())):
        raise InvalidInputError(f"The {scheme}:// URL has a NUL character (%00), which no name can hold.")
    if _SCHEMES[scheme] == "sqlite":
        if not location.strip("/"):
            raise InvalidInputError(
                f"{display_url(url)!r} names no file. For a database in memory, write sqlite://:memory:."
            )
        return _sqlite(url, config, options)
    return _server(scheme, config, options)


def _several_hosts(rest: str) -> tuple[str, str, str]:
    """Part ``user@a:1,b:2/db`` into a URL of one host, and the hosts and ports as libpq takes them; '' for one host."""
    location, slash, tail = rest.partition("/")
    credentials, at, places = location.rpartition("@")
    if "," not in places:
        return rest, "", ""
    pairs = [place.rpartition(":") if re.search(r":\d*$", place) else (place, "", "") for place in places.split(",")]
    hosts = ",".join(host.strip("[]") for host, _, _ in pairs)
    ports = ",".join(port for _, _, port in pairs)
    return f"{credentials}{at}host{slash}{tail}", hosts, ports if ports.strip(",") else ""


def display_url(url: str) -> str:
    """Return the URL as it may be printed: without the password, also where that makes the URL unreadable."""
    scheme, separator, rest = url.partition("://")
    if not separator:
        scheme, rest = "", url
    credentials, _, host = rest.rpartition("@")
    user, colon, _ = credentials.partition(":")
    shown = f"{user}:***@{host}" if colon else rest
    return scheme + separator + re.sub(r"([?&](?:ssl)?password=)[^&]*", r"\1***", shown, flags=re.IGNORECASE)


def server_name(settings: Mapping[str, Any]) -> str:
    """Return database, host and port of a ``DATABASES`` entry of a server, for a message."""
    options = settings.get("OPTIONS", {})
    if not settings["NAME"] and "service" in options:
        return f"'service={options['service']}'"
    host = settings["HOST"] or options.get("host") or "the local server"
    port = settings["PORT"] or options.get("port")
    if "," in str(host):
        places = zip(str(host).split(","), str(port or "").split(","), strict=False)
        return f"{settings['NAME']!r} at {', '.join(f'{each}:{number}' if number else each for each, number in places)}"
    return f"{settings['NAME']!r} at {host}{f':{port}' if port else ''}"


def _sqlite(url: str, config: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    if (expanded := os.path.expanduser(config["NAME"])) != config["NAME"]:
        raise InvalidInputError(
            f"{display_url(url)!r} has a '~', which means the home folder only in a shell. Write the path in full: "
            f"sqlite:///{expanded}."
        )
    if os.name != "nt" and re.match(r"[A-Za-z]:[\\/]", config["NAME"]):
        raise InvalidInputError(f"{display_url(url)!r} names a file as Windows does, and this is not Windows.")
    if config.get("HOST"):
        raise InvalidInputError(
            f"{display_url(url)!r} names a host. A relative SQLite path has three slashes (sqlite:///file.db), "
            "an absolute one four (sqlite:////dir/file.db)."
        )
    synchronous = str(options.pop("synchronous", "")).upper()
    if synchronous and synchronous not in _SQLITE_SYNCHRONOUS:
        raise InvalidInputError(
            f"The SQLite option synchronous={synchronous!r} is not one of {', '.join(_SQLITE_SYNCHRONOUS)}."
        )
    journal = str(options.pop("journal", "")).upper()
    if journal and journal not in _SQLITE_JOURNALS:
        raise InvalidInputError(f"The SQLite option journal={journal!r} is not one of {', '.join(_SQLITE_JOURNALS)}.")
    own = _for_all(options)
    if "touch_durability" in options:
        raise InvalidInputError(
            "The URL option touch_durability is for PostgreSQL. On SQLite synchronous=NORMAL relaxes all writes."
        )
    timeout = options.pop("timeout", _SQLITE_BUSY_SECONDS)
    try:
        timeout_seconds = float(timeout)
        if not 0 <= timeout_seconds <= _LONGEST_BUSY_SECONDS:
            raise ValueError
    except (TypeError, ValueError):
        raise InvalidInputError(f"The SQLite option timeout={timeout!r} is no number of seconds.") from None
    if options:
        raise InvalidInputError(
            f"Unknown SQLite URL option {sorted(options)[0]!r}; known are journal, slow_call_seconds, "
            "synchronous, timeout and touch_interval."
        )
    # The working directory may change after this; the database may not.
    name = config["NAME"] if config["NAME"] == ":memory:" else os.path.abspath(config["NAME"])
    journal = journal or _journal(name)
    # A rollback journal that is removed may be there again after a power cut, and undoes what was committed, unless
    # its folder is synced as well, which FULL leaves out: https://sqlite.org/pragma.html#pragma_synchronous
    synchronous = synchronous or ("FULL" if journal == "WAL" else "EXTRA")
    pragmas = [f"PRAGMA synchronous={synchronous}", "PRAGMA foreign_keys=ON"]
    if journal:
        pragmas.insert(0, f"PRAGMA journal_mode={journal}")
    return {
        "ENGINE": "django.db.backends.sqlite3",
        "NAME": name,
        "CONN_MAX_AGE": None,
        "AGENTDB": own,
        "OPTIONS": {
            "timeout": timeout_seconds,
            # Django's fields convert what they read; parsing every column by its declared type first is done twice.
            "detect_types": 0,
            # A read-then-write transaction that begins DEFERRED fails at once where another writer was first;
            # one that begins IMMEDIATE waits.
            "transaction_mode": "IMMEDIATE",
            "init_command": "; ".join(pragmas),
        },
    }


def _journal(path: str) -> str:
    """The journal mode for a file whose URL names none; '' leaves the file's own."""
    kind = "" if path == ":memory:" else shared_file_system(path)
    if not kind:
        return "WAL"
    # The mode of a file that others have open cannot be changed, and they would go on with theirs.
    kept = is_in_wal_mode(path)
    warnings.warn(
        f"The SQLite file {path!r} is on a file system of type {kind}, where a write-ahead log can lose commits. "
        + ("It has one, and keeps it until it is opened with ?journal=delete. " if kept else "It is used without one. ")
        + "Put the file on a local disk, or write ?journal=wal or ?journal=delete to decide.",
        RuntimeWarning,
        stacklevel=4,
    )
    return "" if kept else "DELETE"


def _seconds(name: str, value: Any) -> float:
    try:
        seconds = float(value)
        if not 0 < seconds <= _LONGEST_BUSY_SECONDS:
            raise ValueError
    except (TypeError, ValueError):
        raise InvalidInputError(f"The URL option {name}={value!r} is no number of seconds above 0.") from None
    return seconds


def _number(name: str, value: Any) -> int:
    if not str(value).isdecimal() or not 0 < int(value) <= _MOST_CONNECTIONS:
        raise InvalidInputError(f"The URL option {name}={value!r} is no whole number from 1 to {_MOST_CONNECTIONS}.")
    return int(value)


def _for_all(options: dict[str, Any]) -> dict[str, Any]:
    """Take out the options of agentdb's own that every engine has, in seconds."""
    return {
        name: _seconds(name, options.pop(name)) for name in ("slow_call_seconds", "touch_interval") if name in options
    }


def _default_limits(call_timeout: float) -> dict[str, int]:
    """What libpq should do about a server or network that is gone, where the URL does not say."""
    return {
        "connect_timeout": max(2, min(10, math.ceil(call_timeout))),  # for each host; libpq knows no shorter one
        "keepalives_idle": 30,
        "keepalives_interval": 10,
        "keepalives_count": 3,
        "tcp_user_timeout": math.ceil(call_timeout * 1000),
    }


def _server(scheme: str, config: dict[str, Any], options: dict[str, Any]) -> dict[str, Any]:
    if not config["NAME"] and "service" not in options:
        raise InvalidInputError(f"The {scheme}:// URL names no database: {scheme}://host/DATABASE.")
    if taken := _OF_PYTHON & options.keys():
        raise InvalidInputError(
            f"The URL option {min(taken)!r} cannot be set by a URL: it is an argument of Django's or the "
            "driver's. In a Django project, set it in DATABASES."
        )
    for option, setting in _TWICE.items():
        if config[setting] and str(options.get(option, config[setting])) != str(config[setting]):
            raise InvalidInputError(
                f"The {scheme}:// URL has two values for {option}: one in its place, and another as an "
                "option. Leave one."
            )
    everywhere = _for_all(options)
    call_timeout = _seconds("call_timeout", options.pop("call_timeout", _CALL_SECONDS))
    for name, value in _default_limits(call_timeout).items():
        options.setdefault(name, value)
    own: dict[str, Any] = {"call_timeout": call_timeout, **everywhere}
    own["idle_seconds"] = _seconds("idle_seconds", options.pop("idle_seconds", _IDLE_SECONDS))
    if "max_connections" in options:
        own["max_connections"] = _number("max_connections", options.pop("max_connections"))
    if "touch_durability" in options:
        own["touch_durability"] = durability = str(options.pop("touch_durability")).lower()
        if durability not in _TOUCH_DURABILITIES:
            raise InvalidInputError(f"The URL option touch_durability={durability!r} is neither full nor relaxed.")
        if scheme.startswith("cockroach"):
            raise InvalidInputError("The URL option touch_durability is for PostgreSQL; CockroachDB commits fully.")
    prepare = options.pop("prepare", True)
    prepare = prepare.lower() if isinstance(prepare, str) else prepare
    if prepare not in _ON + _OFF:
        raise InvalidInputError(f"The URL option prepare={prepare!r} is neither on nor off.")
    options.setdefault("application_name", "agentdb")
    if prepare in _ON:
        # Django's own queries bind on the client and are never prepared; this is for agentdb's.
        options["prepare_threshold"] = 0
    return {
        **config,
        "CONN_MAX_AGE": None,
        "CONN_HEALTH_CHECKS": True,
        # A pooler that hands out server connections by transaction is the reason to switch prepare off, and it
        # breaks cursors that outlive a transaction just the same.
        "DISABLE_SERVER_SIDE_CURSORS": prepare in _OFF,
        "AGENTDB": own,
        "OPTIONS": options,
    }
