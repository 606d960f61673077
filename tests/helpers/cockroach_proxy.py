"""A proxy in front of PostgreSQL that plays CockroachDB: its version, its refusals, its 40001 and its 40003.

The rules are from its documentation, and what a real one was seen to do. What no proxy can play is CockroachDB's
planner: a statement that passes here is allowed by the rules below, and PostgreSQL ran it.
"""

from __future__ import annotations

import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field

_DOCS = "https://www.cockroachlabs.com/docs"
_ISSUES = "https://github.com/cockroachdb/cockroach/issues"

_WRITTEN = re.compile(
    r'\b(?:INSERT INTO|UPDATE|DELETE FROM) "?(agents|sessions|sandboxes|api_keys)\b'
)
_READ = re.compile(r'\b(?:FROM|JOIN) "?(agents|sessions|sandboxes|api_keys)\b')


@dataclass(frozen=True)
class Rule:
    """What CockroachDB refuses. ``since`` is the version (inclusive) from which it no longer does."""

    pattern: str
    says: str
    source: str
    only_in_transaction: bool = False
    since: tuple[int, int] = (99, 0)

    def refuses(
        self, sql: str, version: tuple[int, int], *, in_transaction: bool
    ) -> bool:
        return (
            version < self.since
            and (in_transaction or not self.only_in_transaction)
            and re.search(self.pattern, sql, re.IGNORECASE | re.DOTALL) is not None
        )


RULES = (
    Rule(
        r"^\s*LOCK\s",
        "LOCK TABLE is not supported",
        f"{_DOCS}/v25.4/postgresql-compatibility",
    ),
    Rule(
        r"\bDEFERRABLE\b|\bSET\s+CONSTRAINTS\b",
        "deferrable constraints",
        f"{_ISSUES}/31632",
    ),
    Rule(
        r"\bALTER\s+COLUMN\b.*\bTYPE\b",
        "ALTER COLUMN TYPE in a transaction",
        f"{_ISSUES}/49351",
        only_in_transaction=True,
    ),
    Rule(
        r"\bALTER\s+COLUMN\b.*\bTYPE\b",
        "ALTER COLUMN TYPE of an indexed column",
        f"{_ISSUES}/47636",
        since=(26, 4),
    ),
    Rule(r"\b\w+_pattern_ops\b", "operator classes", f"{_DOCS}/v25.4/create-index"),
    Rule(
        r"\bpg_temp\b|\bCREATE\s+TEMP",
        "temporary objects are experimental",
        f"{_DOCS}/v25.4/temporary-tables",
    ),
    Rule(
        r"\bUSING\s+(brin|gist|hash|spgist)\b",
        "index access methods",
        f"{_DOCS}/v25.4/create-index",
    ),
    Rule(r"\bEXCLUDE\b", "exclusion constraints", f"{_ISSUES}/46657"),
    Rule(r"\bWITH\s+HOLD\b", "cursors WITH HOLD", f"{_ISSUES}/77101"),
    Rule(r"^\s*(LISTEN|NOTIFY|UNLISTEN)\b", "LISTEN and NOTIFY", f"{_ISSUES}/41522"),
    Rule(r"^\s*DO\s", "DO blocks", f"{_DOCS}/v24.1/do", since=(24, 1)),
    Rule(r"\bpg_(try_)?advisory", "advisory locks lock nothing", f"{_ISSUES}/13546"),
    Rule(
        r"\benable_(sort|incremental_sort)\b|\bjit\b",
        "settings of PostgreSQL's planner",
        f"{_DOCS}/v25.4/show-vars",
    ),
    Rule(r"\bON\s+COMMIT\s+DROP\b", "ON COMMIT DROP", f"{_ISSUES}/46556"),
    Rule(
        r"\bCOLLATE\s+\"C\"",
        "a collation where STRING compares bytes already",
        f"{_DOCS}/v25.4/collate",
    ),
    Rule(
        r"\bcrdb_internal\.",
        "internals, which 26.1 closes by default; telemetry that nobody asked for",
        "https://github.com/cockroachdb/cockroach/pull/158085",
    ),
    Rule(
        r"\bAS \((DELETE|UPDATE|INSERT)\b(?:(?!\bRETURNING\b)[^()]|\((?:[^()]|\([^()]*\))*\))*\)",
        "a part of WITH that changes rows and returns no columns",
        "seen on 23.1",
    ),
    Rule(
        r"current_setting\('quote_all",
        "a setting that is not supported is no NULL",
        "seen on 23.1",
    ),
    Rule(r"\bisfinite\(", "unknown function: isfinite()", "seen on 23.1"),
    Rule(
        r"\bid\W{1,3}=\s*\((SELECT|COALESCE)\b",
        "a key that equals a subquery, for which the whole table is read",
        "seen on 23.1",
    ),
    # One schema change a transaction, and none after a write: with autocommit_before_ddl (25.1) the rest is committed.
    Rule(
        r"^\s*(CREATE|ALTER|DROP|TRUNCATE)\b",
        "a schema change in a transaction",
        f"{_DOCS}/v25.4/online-schema-changes",
        True,
    ),
)


@dataclass
class Proxy:
    """``statements`` are those that clients sent, in order; ``refused`` those that a rule refused, with the rule."""

    target: tuple[str, int] | str
    version: tuple[int, int] = (25, 4)
    statements: list[str] = field(default_factory=list)
    refused: list[tuple[Rule, str]] = field(default_factory=list)
    # Called with each statement; returns the SQLSTATE to answer with in place of running it, or None.
    fail: Callable[[str], str | None] = lambda sql: None
    # The same, but the statement runs first: its outcome is what the client does not learn.
    fail_after: Callable[[str], str | None] = lambda sql: None
    # Called with each statement; returns another one to run in its place, or None.
    instead: Callable[[str], str | None] = lambda sql: None
    # Called with a statement that waits for another connection's transaction to end, before it waits.
    waits: Callable[[str], None] = lambda sql: None
    # The tables that each connection's open transaction has written to; whoever reads one of them waits for its end.
    written: dict[object, set[str]] = field(default_factory=dict)
    ended: threading.Condition = field(default_factory=threading.Condition)
    # What a new database is a copy of.
    template: str = "template1"
    host: str = "127.0.0.1"
    port: int = 0

    def server_version(self) -> str:
        major, minor = self.version
        return f"CockroachDB CCL v{major}.{minor}.0 (x86_64-pc-linux-gnu, built 2026/01/01 00:00:00, go1.25.0)"

    def note_write(self, connection: object, sql: str) -> None:
        """Remember what a statement in a transaction writes to."""
        with self.ended:
            self.written.setdefault(connection, set()).update(_WRITTEN.findall(sql))

    def note_end(self, connection: object) -> None:
        with self.ended:
            self.written.pop(connection, None)
            self.ended.notify_all()

    def wait_for_writers(self, connection: object, sql: str) -> None:
        """Wait until no other connection's transaction is open that wrote to a table which the statement reads.

        CockroachDB waits for rows, and the proxy, which knows none, for tables.
        """
        tables = set(_READ.findall(sql))

        def free() -> bool:
            return all(
                other is connection or not tables & written
                for other, written in self.written.items()
            )

        with self.ended:
            if not free():
                self.waits(sql)
                self.ended.wait_for(free)


@contextmanager
def serving(proxy: Proxy) -> Iterator[Proxy]:
    """Serve the proxy on a free port of 127.0.0.1 for as long as the context lasts."""
    listener = socket.create_server((proxy.host, 0))
    proxy.port = listener.getsockname()[1]
    open_sockets: list[socket.socket] = [listener]

    def accept() -> None:
        while True:
            try:
                client, _ = listener.accept()
            except OSError:
                return
            open_sockets.append(client)
            threading.Thread(
                target=_Conversation(proxy, client, open_sockets).run, daemon=True
            ).start()

    threading.Thread(target=accept, daemon=True).start()
    try:
        yield proxy
    finally:
        for each in open_sockets:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()


class _Conversation:
    def __init__(
        self, proxy: Proxy, client: socket.socket, open_sockets: list[socket.socket]
    ) -> None:
        self.proxy = proxy
        self.client = client
        if isinstance(proxy.target, str):
            self.server = socket.socket(socket.AF_UNIX)
            self.server.connect(proxy.target)
        else:
            self.server = socket.create_connection(proxy.target)
        open_sockets.append(self.server)
        for each in (client, self.server):
            if each.family != socket.AF_UNIX:
                each.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.in_transaction = False
        self.prepared: dict[bytes, str] = {}
        # What replaces the next error of the server, and what replaces its next answer as a whole.
        self.error_to_show: bytes | None = None
        self.answer_to_hide: bytes | None = None

    def run(self) -> None:
        with suppress(OSError, struct.error):
            self._greet()
            threading.Thread(target=self._to_client, daemon=True).start()
            self._to_server()
        self._end()

    def _end(self) -> None:
        self.proxy.note_end(self)
        for each in (self.client, self.server):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()

    def _greet(self) -> None:
        while True:
            size = _exactly(self.client, 4)
            body = _exactly(self.client, struct.unpack("!I", size)[0] - 4)
            if struct.unpack("!I", body[:4])[0] in (
                80877103,
                80877104,
            ):  # SSLRequest, GSSENCRequest
                self.client.sendall(b"N")
                continue
            self.server.sendall(size + body)
            return

    def _to_server(self) -> None:
        while True:
            kind = _exactly(self.client, 1)
            body = _exactly(
                self.client, struct.unpack("!I", _exactly(self.client, 4))[0] - 4
            )
            if kind == b"Q":
                body = self._checked(body[:-1].decode()).encode() + b"\0"
            elif kind == b"P":
                name, sql, types = body.split(b"\0", 2)
                self.prepared[name] = sql.decode()
                body = b"\0".join(
                    (name, self._checked(sql.decode(), run=False).encode(), types)
                )
            elif kind == b"B":
                name = body.split(b"\0", 2)[1]
                # Running what was prepared earlier: by now it may be in a transaction, and the fault may be due.
                if self._checked(self.prepared.get(name, "")) == _NONSENSE:
                    kind, body = b"P", b"\0" + _NONSENSE.encode() + b"\0\0\0"
            self.server.sendall(kind + struct.pack("!I", len(body) + 4) + body)

    def _checked(self, sql: str, *, run: bool = True) -> str:
        """Return the statement to run instead of ``sql``."""
        if not sql:
            return sql
        if re.fullmatch(r"\s*select\s+version\(\)\s*", sql, re.IGNORECASE):
            return f"SELECT '{self.proxy.server_version()}'"
        if run:
            self.proxy.statements.append(sql)
            self.proxy.wait_for_writers(self, sql)
            if self.in_transaction:
                self.proxy.note_write(self, sql)
        for rule in RULES:
            if rule.refuses(
                sql, self.proxy.version, in_transaction=self.in_transaction
            ):
                if run:
                    self.proxy.refused.append((rule, sql))
                self.error_to_show = _error("0A000", f"unimplemented: {rule.says}")
                return _NONSENSE
        if run and (state := self.proxy.fail(sql)):
            self.error_to_show = _error(state, _MESSAGES[state])
            return _NONSENSE
        if run and (state := self.proxy.fail_after(sql)):
            self.answer_to_hide = _error(state, _MESSAGES[state])
        return self.proxy.instead(sql) or _in_postgresql(sql, self.proxy.template)

    def _to_client(self) -> None:
        announced = False
        with suppress(OSError, struct.error):
            while True:
                kind = _exactly(self.server, 1)
                body = _exactly(
                    self.server, struct.unpack("!I", _exactly(self.server, 4))[0] - 4
                )
                if kind == b"Z":
                    self.in_transaction = body != b"I"
                    if not self.in_transaction:
                        self.proxy.note_end(self)
                    if not announced:
                        announced = True
                        self._send(
                            b"S",
                            b"crdb_version\0"
                            + self.proxy.server_version().encode()
                            + b"\0",
                        )
                    if self.answer_to_hide is not None:
                        self._send(b"E", self.answer_to_hide)
                        self.answer_to_hide = None
                elif self.answer_to_hide is not None and kind in b"CDTIn":
                    continue
                elif kind == b"E" and self.error_to_show is not None:
                    body, self.error_to_show = self.error_to_show, None
                elif kind == b"S" and body.startswith(b"server_version\0"):
                    body = b"server_version\x0013.0.0\0"
                self._send(kind, body)
        self._end()

    def _send(self, kind: bytes, body: bytes) -> None:
        self.client.sendall(kind + struct.pack("!I", len(body) + 4) + body)


def _in_postgresql(sql: str, template: str) -> str:
    """Return what PostgreSQL calls the few statements that only CockroachDB has."""
    if found := re.fullmatch(r"DROP INDEX (\S+) CASCADE", sql):
        return _DROP_UNIQUE.format(found[1])
    # What follows is no other statement, but another answer. Rows whose transaction has just committed count as locked:
    sql = sql.replace("FOR UPDATE SKIP LOCKED", "OFFSET 1000000 FOR UPDATE SKIP LOCKED")
    # an index is ready only while it is being built,
    sql = sql.replace("i.indisready", "false")
    # and a default is shown in the server's own words.
    sql = sql.replace("pg_catalog.pg_get_expr(d.adbin, d.adrelid)", _DEFAULT)
    if found := re.fullmatch(
        r'UPDATE ("\w+") (SET .*?) WHERE (.*) LIMIT (\d+)', sql, re.DOTALL
    ):
        table, change, condition, limit = found.groups()
        return f"UPDATE {table} {change} WHERE id IN (SELECT id FROM {table} WHERE {condition} LIMIT {limit})"
    if found := re.fullmatch(
        r"(ALTER TABLE \S+) (RENAME COLUMN .*), (RENAME COLUMN .*)", sql
    ):
        return f"{found[1]} {found[2]}; {found[1]} {found[3]}"
    if sql.startswith("CREATE TABLE ") and _INLINE_INDEX.search(sql):
        table = sql.partition(" (")[0].removeprefix("CREATE TABLE IF NOT EXISTS ")
        indexes = [
            f"CREATE INDEX {name} ON {table} {keys}"
            for name, keys in _INLINE_INDEX.findall(sql)
        ]
        return "; ".join([_INLINE_INDEX.sub("", sql), *indexes])
    if found := re.fullmatch(r"SHOW CREATE TABLE (\w+)", sql):
        return (
            "SELECT string_agg(attname, ',' ORDER BY attnum) FROM pg_attribute "
            f"WHERE attrelid = '{found[1]}'::regclass"
        )
    if sql.startswith("CREATE DATABASE "):
        return f"{sql} TEMPLATE {template}"
    if found := re.fullmatch(r"DROP DATABASE (\S+) CASCADE", sql):
        return f"DROP DATABASE {found[1]} WITH (FORCE)"
    return sql


_DEFAULT = "replace(pg_catalog.pg_get_expr(d.adbin, d.adrelid), 'now())::text', 'now():::TIMESTAMPTZ)::STRING')"
_INLINE_INDEX = re.compile(r', INDEX ("\w+") (\([^()]*\)(?: WHERE [^,]*(?=, |\)$))?)')

# CockroachDB drops a unique constraint so, PostgreSQL does not.
_DROP_UNIQUE = """DO $$ DECLARE holder text; BEGIN
    SELECT conrelid::regclass INTO holder FROM pg_constraint WHERE conindid = '{0}'::regclass;
    IF FOUND THEN EXECUTE 'ALTER TABLE ' || holder || ' DROP CONSTRAINT {0}'; ELSE DROP INDEX {0}; END IF;
END $$"""

# PostgreSQL refuses this, which leaves its transaction as CockroachDB's would be; the words are replaced on the way.
_NONSENSE = "nonsense"

_MESSAGES = {
    "40001": "restart transaction: TransactionRetryWithProtoRefreshError: WriteTooOldError",
    "40003": "result is ambiguous: the node was lost before it answered",
    "42701": "column already exists",
    "XX000": "the node was lost",
}


def _error(state: str, message: str) -> bytes:
    fields = (("S", "ERROR"), ("V", "ERROR"), ("C", state), ("M", message))
    return b"".join(f"{key}{value}\0".encode() for key, value in fields) + b"\0"


def _exactly(source: socket.socket, size: int) -> bytes:
    parts = []
    while size:
        part = source.recv(size)
        if not part:
            raise OSError("the other side has hung up")
        parts.append(part)
        size -= len(part)
    return b"".join(parts)
