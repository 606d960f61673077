"""Every method uses an index at 100,000 rows, also where nobody has run ANALYZE."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit, urlunsplit

import psycopg
import pytest
from django.db import connections, transaction

import agentdb
from agentdb import DjangoDb
from agentdb.interface import SandboxRecord, SessionRecord
from tests import COCKROACH_URL_VARIABLE
from tests.helpers.factories import execute, instant

ROWS = 100_000

# The worst that a server sees: one tenant owns nearly all rows, most rows share a status or a state, and the few
# that a caller asks for are the last ones.
_NUMBERS = {
    "sqlite": "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) {sql} FROM n",
    "postgresql": "{sql} FROM generate_series(1, {rows}) AS n(i)",
    "cockroachdb": "{sql} FROM generate_series(1, {rows}) AS n(i)",
}
_AT = {
    "sqlite": "strftime('%Y-%m-%d %H:%M:%S', '2026-03-01 12:00:00', i || ' seconds')",
    "postgresql": "timestamptz '2026-03-01 12:00:00+00' + i * interval '1 second'",
    "cockroachdb": "timestamptz '2026-03-01 12:00:00+00' + i * interval '1 second'",
}
_FILL = [
    """INSERT INTO agents (id, tenant_id, name, path, created_at, updated_at)
       SELECT 'a' || i, CASE WHEN i % 10000 = 0 THEN 'small' ELSE 'large' END, 'agent ' || i, '/', {at}, {at}""",
    """INSERT INTO sessions (id, tenant_id, agent_name, sandbox_id, status, runner_id, created_at, last_active_at)
       SELECT 's' || i, CASE WHEN i % 10000 = 0 THEN 'small' ELSE 'large' END,
              CASE WHEN i % 5000 = 0 THEN 'rare' ELSE 'agent ' || (i % 10) END, 'sb' || i,
              CASE WHEN i % 10000 = 0 THEN 'active' ELSE 'ended' END,
              CASE WHEN i % 10000 = 0 THEN 'r1' WHEN i % 3 = 0 THEN 'r2' END, {at}, {at}""",
    """INSERT INTO sandboxes (id, tenant_id, session_id, agent_name, state, workspace_dir, created_at, last_used_at)
       SELECT 'sb' || i, CASE WHEN i % 10000 = 0 THEN 'small' ELSE 'large' END, 's' || i, 'agent ' || (i % 10),
              CASE WHEN i % 10000 = 0 THEN 'warm' ELSE CASE i % 2 WHEN 0 THEN 'cold' ELSE 'waiting' END END,
              '/', {at}, {at}""",
    # A pool: of 100,000 that wait for a session, few are warm.
    """INSERT INTO sandboxes (id, tenant_id, session_id, agent_name, state, workspace_dir, created_at, last_used_at)
       SELECT 'pool' || i, 'large', NULL, 'pool', CASE WHEN i % 10000 = 0 THEN 'warm' ELSE 'warming' END,
              '/', {at}, {at}""",
    """INSERT INTO api_keys (id, tenant_id, key_hash, label, created_at)
       SELECT 'k' || i, CASE WHEN i % 10000 = 0 THEN 'small' ELSE 'large' END, 'hash ' || i, '', {at}""",
]
TABLES = ("agents", "sessions", "sandboxes", "api_keys")


def _fill(url: str, engine: str, rows: int = ROWS) -> None:
    for sql in _FILL:
        execute(url, _NUMBERS[engine].format(sql=sql.format(at=_AT[engine]), rows=rows))


@pytest.fixture(scope="module")
def large_sqlite(
    _migrated_sqlite: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[DjangoDb]:
    path = tmp_path_factory.mktemp("large") / "large.sqlite3"
    path.write_bytes(_migrated_sqlite.read_bytes())
    url = f"sqlite:///{path}"
    _fill(url, "sqlite")
    assert (
        execute(url, "SELECT name FROM sqlite_schema WHERE name LIKE 'sqlite_stat%'")
        == []
    )
    with agentdb.connect(url) as db:
        yield db


@pytest.fixture(scope="module")
def large_postgres_url(postgres_url: str, _migrated_postgres: str) -> Iterator[str]:
    name = f"agentdb_large_{os.getpid()}"
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(
            f"CREATE DATABASE {name} TEMPLATE {_migrated_postgres}".encode()
        )
    url = urlunsplit(urlsplit(postgres_url)._replace(path=f"/{name}"))
    # So that ANALYZE reads all rows: a sample may miss all of a rare state, and another plan is then as good.
    execute(url, f"ALTER DATABASE {name} SET default_statistics_target = 1000")
    for table in TABLES:
        execute(url, f"ALTER TABLE {table} SET (autovacuum_enabled = off)")
    _fill(url, "postgresql")
    yield url
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@pytest.fixture(scope="module", params=["never analysed", "analysed"])
def large_postgres(
    large_postgres_url: str, request: pytest.FixtureRequest
) -> Iterator[DjangoDb]:
    if request.param == "analysed":
        execute(large_postgres_url, "ANALYZE")
    assert execute(
        large_postgres_url,
        "SELECT count(*) > 0 FROM pg_stats WHERE tablename = 'sessions'",
    ) == [(request.param == "analysed",)]
    with agentdb.connect(large_postgres_url) as db:
        yield db


_LAST = SessionRecord(
    "s50000",
    "large",
    "agent 0",
    "sb50000",
    "ended",
    None,
    instant(50_000),
    instant(50_000),
)
_LAST_SANDBOX = SandboxRecord(
    "sb50000", "large", None, "a", "cold", "/", instant(50_000), instant(50_000)
)
_SOON: datetime = instant(20.5)
_LATE: datetime = instant(10**7)


def _read_each(db: DjangoDb, method: str, prefix: str) -> None:
    """What an ``AsyncDb`` asks if calls wait together; not with its method, which leaves those that are watched."""
    from agentdb.serving import queries

    _, record, query = queries.READ_EACH[method]
    ids = json.dumps([f"{prefix}{number}" for number in range(100)])
    db._all(record, query, ids=ids)


def _touch_together(db: DjangoDb) -> None:
    """The same for touches."""
    from agentdb.serving import queries

    touch = queries.touch(queries.SESSIONS, many=True, skip_locked=True)
    ids = json.dumps([f"s{number}" for number in range(100)])
    db._all(str, touch.update, ids=ids)


POINT, FEW, SORTED = (
    "one row",
    "a few rows in the order of an index",
    "a few rows, sorted",
)
OF_SESSION = "those of a session, sorted"
OF_LIVE = (
    "those of live sessions or of one runner, sorted, for whose order there is no index"
)
_NO_TABLE = re.compile(r" CONSTANT ROW$| json_each VIRTUAL TABLE INDEX 1:$| part_\d$")
CALLS: dict[str, tuple[str, Callable[[DjangoDb], object]]] = {
    "upsert_agent": (POINT, lambda db: db.upsert_agent("agent 7", "/new", "large")),
    "get_agent": (POINT, lambda db: db.get_agent("agent 7", "large")),
    "list_agents": (SORTED, lambda db: db.list_agents("small")),
    "delete_agent": (SORTED, lambda db: db.delete_agent("rare", "large")),
    "insert_session": (
        POINT,
        lambda db: db.insert_session("new", "agent 7", "sb", "large"),
    ),
    "update_session_status": (
        POINT,
        lambda db: db.update_session_status("s7", "paused"),
    ),
    "update_session_status if": (
        POINT,
        lambda db: db.update_session_status("s7", "paused", only_if="ended"),
    ),
    "update_session_sandbox": (POINT, lambda db: db.update_session_sandbox("s7", "sb")),
    "update_session_runner": (POINT, lambda db: db.update_session_runner("s7", "r3")),
    "update_session_runner if on another": (
        POINT,
        lambda db: db.update_session_runner("s7", "r3", only_if="r1"),
    ),
    "update_session_runner if on none": (
        POINT,
        lambda db: db.update_session_runner("s7", "r3", only_if=None),
    ),
    "get_session": (POINT, lambda db: db.get_session("s7")),
    "get_session, several": (POINT, lambda db: _read_each(db, "get_session", "s")),
    "list_sessions": (SORTED, lambda db: db.list_sessions("small")),
    "list_sessions of an agent": (SORTED, lambda db: db.list_sessions("large", "rare")),
    "list_sessions, first page": (FEW, lambda db: db.list_sessions("large", limit=10)),
    "list_sessions, later page": (
        FEW,
        lambda db: db.list_sessions("large", limit=10, before=_LAST),
    ),
    "list_sessions of an agent, first page": (
        FEW,
        lambda db: db.list_sessions("large", "agent 0", limit=10),
    ),
    "list_sessions of an agent, later page": (
        FEW,
        lambda db: db.list_sessions("large", "agent 0", limit=10, before=_LAST),
    ),
    "list_sessions of a rare agent, first page": (
        FEW,
        lambda db: db.list_sessions("large", "rare", limit=10),
    ),
    "list_sessions in a status, first page": (
        FEW,
        lambda db: db.list_sessions("large", status="ended", limit=10),
    ),
    "list_sessions in a rare status, first page": (
        FEW,
        lambda db: db.list_sessions("small", status=("active", "paused"), limit=10),
    ),
    "list_sessions in a status, later page": (
        FEW,
        lambda db: db.list_sessions(
            "large", status=("active", "ended"), limit=10, before=_LAST
        ),
    ),
    "list_sessions of a runner, first page": (
        FEW,
        lambda db: db.list_sessions("small", runner_id="r1", limit=10),
    ),
    "count_sessions in a status": (
        POINT,
        lambda db: db.count_sessions("large", status=("active", "paused")),
    ),
    "claim_session": (POINT, lambda db: db.claim_session("s7", "r3")),
    "claim_session of a silent one": (
        POINT,
        lambda db: db.claim_session("s10000", "r3", silent_for=timedelta(minutes=1)),
    ),
    "get_silent_sessions, all": (OF_LIVE, lambda db: db.get_silent_sessions(_LATE)),
    "get_silent_sessions": (OF_LIVE, lambda db: db.get_silent_sessions(_LATE, limit=5)),
    "touch_session of a runner": (
        POINT,
        lambda db: db.touch_session("s10000", runner_id="r1"),
    ),
    "touch_sessions": (
        SORTED,
        lambda db: db.touch_sessions([f"s{number}" for number in range(1000)]),
    ),
    "touch_session, several": (POINT, _touch_together),
    "touch_sessions of a runner": (
        SORTED,
        lambda db: db.touch_sessions(["s7", "s10000"], runner_id="r1"),
    ),
    "delete_session": (POINT, lambda db: db.delete_session("s7")),
    "list_sessions_by_runner": (SORTED, lambda db: db.list_sessions_by_runner("r1")),
    "touch_session": (POINT, lambda db: db.touch_session("s7")),
    "insert_sandbox": (POINT, lambda db: db.insert_sandbox("new", "agent 7", "/")),
    "update_sandbox_state": (POINT, lambda db: db.update_sandbox_state("sb7", "warm")),
    "update_sandbox_state if": (
        POINT,
        lambda db: db.update_sandbox_state("sb7", "warm", only_if=["cold", "warm"]),
    ),
    "update_sandbox_session": (POINT, lambda db: db.update_sandbox_session("sb7", "s")),
    "touch_sandbox": (POINT, lambda db: db.touch_sandbox("sb7")),
    "touch_sandboxes": (
        SORTED,
        lambda db: db.touch_sandboxes([f"sb{number}" for number in range(1000)]),
    ),
    "get_sandbox": (POINT, lambda db: db.get_sandbox("sb7")),
    "get_sandbox, several": (POINT, lambda db: _read_each(db, "get_sandbox", "sb")),
    "list_sandboxes": (SORTED, lambda db: db.list_sandboxes("small")),
    "list_sandboxes, first page": (
        FEW,
        lambda db: db.list_sandboxes("large", limit=10),
    ),
    "list_sandboxes, later page": (
        FEW,
        lambda db: db.list_sandboxes("large", limit=10, before=_LAST_SANDBOX),
    ),
    "list_sandboxes in a state, first page": (
        FEW,
        lambda db: db.list_sandboxes("large", state="cold", limit=10),
    ),
    "list_sandboxes in a rare state, first page": (
        FEW,
        lambda db: db.list_sandboxes("small", state=("warm", "running"), limit=10),
    ),
    "list_sandboxes of a session": (
        OF_SESSION,
        lambda db: db.list_sandboxes("large", session_id="s7", limit=10),
    ),
    "list_sandboxes_by_runner": (OF_LIVE, lambda db: db.list_sandboxes_by_runner("r1")),
    "count_sandboxes in a state": (POINT, lambda db: db.count_sandboxes(state="warm")),
    "claim_warm_sandbox": (
        FEW,
        lambda db: db.claim_warm_sandbox("pool", "s7", "large"),
    ),
    "mark_sandboxes_cold_by_runner": (
        SORTED,
        lambda db: db.mark_sandboxes_cold_by_runner("r1"),
    ),
    "get_best_eviction_candidate": (FEW, lambda db: db.get_best_eviction_candidate()),
    "claim_eviction_candidate": (FEW, lambda db: db.claim_eviction_candidate()),
    "get_best_eviction_candidate, unused": (
        FEW,
        lambda db: db.get_best_eviction_candidate(unused_since=_SOON),
    ),
    "claim_eviction_candidate, unused": (
        FEW,
        lambda db: db.claim_eviction_candidate(unused_since=_SOON),
    ),
    "get_idle_sandboxes": (FEW, lambda db: db.get_idle_sandboxes(_SOON)),
    "get_cold_sandboxes": (FEW, lambda db: db.get_cold_sandboxes(_SOON)),
    "delete_sandbox": (POINT, lambda db: db.delete_sandbox("sb7")),
    "bulk_pause_sessions_by_runner": (
        SORTED,
        lambda db: db.bulk_pause_sessions_by_runner("r1"),
    ),
    "bulk_pause_active_sessions": (SORTED, lambda db: db.bulk_pause_active_sessions()),
    "get_api_key_by_hash": (POINT, lambda db: db.get_api_key_by_hash("hash 7")),
    "get_api_key_by_hash, several": (
        POINT,
        lambda db: _read_each(db, "get_api_key_by_hash", "hash "),
    ),
    "insert_api_key": (
        POINT,
        lambda db: db.insert_api_key("new", "large", "new hash", ""),
    ),
    "list_api_keys_by_tenant": (SORTED, lambda db: db.list_api_keys_by_tenant("small")),
    "delete_api_key": (POINT, lambda db: db.delete_api_key("k7")),
    "issue_api_key": (POINT, lambda db: db.issue_api_key("large", "")),
    "authenticate": (POINT, lambda db: db.authenticate("agentdb_x")),
}
# These work on all rows, or on all but a few: see the tests at the end.
WHOLE_TABLE = {"count_sandboxes", "mark_all_sandboxes_cold", "prune_sessions"}


def test_every_method_has_its_plan_looked_at_here() -> None:
    methods = {name for name in vars(agentdb.Db) if not name.startswith("_")}

    assert {name.split()[0].rstrip(",") for name in CALLS} | WHOLE_TABLE == methods - {
        "run_transaction",
        "close",
        "for_tenant",
        "health",
    }


def _statements(
    db: DjangoDb, call: Callable[[DjangoDb], object]
) -> list[tuple[str, list[Any]]]:
    """Return what the call sends; what it changes is undone."""
    seen: list[tuple[str, list[Any]]] = []

    def look(
        run: Callable[..., object], sql: str, params: Any, many: bool, context: object
    ) -> object:
        if sql.startswith(("SELECT", "(SELECT", "INSERT", "UPDATE", "DELETE", "WITH")):
            seen.append((sql, list(params or [])))
        return run(sql, params, many, context)

    with (
        transaction.atomic(using=db.alias),
        connections[db.alias].execute_wrapper(look),
    ):
        call(db)
        transaction.set_rollback(True, using=db.alias)
    assert seen
    return seen


# -- SQLite


def _sqlite_plan(db: DjangoDb, call: Callable[[DjangoDb], object]) -> list[str]:
    plan: list[str] = []
    with connections[db.alias].cursor() as cursor:
        for sql, params in _statements(db, call):
            cursor.execute(f"EXPLAIN QUERY PLAN {sql}", params)
            plan += [detail for *_, detail in cursor.fetchall()]
    return plan


@pytest.mark.parametrize("name", CALLS)
def test_sqlite_uses_an_index_without_analyze(
    large_sqlite: DjangoDb, name: str
) -> None:
    kind, call = CALLS[name]

    plan = _sqlite_plan(large_sqlite, call)

    assert [
        step for step in plan if step.startswith("SCAN") and not _NO_TABLE.search(step)
    ] == []
    sorts = [step for step in plan if "TEMP B-TREE" in step]
    # Names sort as the index holds them; everything else has an index in its order, too.
    assert sorts == [] or kind in (OF_SESSION, OF_LIVE), plan
    if not name.startswith(("insert", "issue", "upsert")):
        assert [step for step in plan if step.startswith("SEARCH")], (kind, plan)


def test_sqlite_finds_the_eviction_candidate_with_three_probes(
    large_sqlite: DjangoDb,
) -> None:
    plan = _sqlite_plan(large_sqlite, lambda db: db.get_best_eviction_candidate())

    searches = [step for step in plan if step.startswith("SEARCH")]
    index = "idx_sandboxes_state_last_used (state=? AND last_used_at<?)"
    probes = [step for step in searches if index in step]
    assert len(probes) == 3
    assert len(searches) == 4


def test_sqlite_reads_the_unused_in_the_order_of_their_index(
    large_sqlite: DjangoDb,
) -> None:
    for call in (CALLS["get_idle_sandboxes"][1], CALLS["get_cold_sandboxes"][1]):
        [step] = _sqlite_plan(large_sqlite, call)
        assert (
            step
            == "SEARCH sandboxes USING INDEX idx_sandboxes_state_last_used (state=? AND last_used_at<?)"
        )


def test_sqlite_pages_within_the_range_of_the_index(large_sqlite: DjangoDb) -> None:
    [step] = _sqlite_plan(large_sqlite, CALLS["list_sessions, later page"][1])
    assert (
        step
        == "SEARCH sessions USING INDEX idx_sessions_tenant_created (tenant_id=? AND created_at<?)"
    )

    [step] = _sqlite_plan(
        large_sqlite, CALLS["list_sessions of an agent, later page"][1]
    )
    assert (
        "idx_sessions_agent_created (tenant_id=? AND agent_name=? AND created_at<?)"
        in step
    )


# The tenant has thousands of others, in the order of the list.
BY_SESSION: dict[str, Callable[[DjangoDb], object]] = {
    "all": lambda db: db.list_sandboxes("large", session_id="s7"),
    "a page": lambda db: db.list_sandboxes("large", session_id="s7", limit=10),
    "a later page": lambda db: db.list_sandboxes(
        "large", session_id="s7", limit=10, before=_LAST_SANDBOX
    ),
    "in states": lambda db: db.list_sandboxes(
        "large", session_id="s7", state=("cold", "warm")
    ),
    "of an agent": lambda db: db.list_sandboxes(
        "large", session_id="s7", agent="agent 7"
    ),
    "of a tenant's view": lambda db: db.for_tenant("large").list_sandboxes(
        session_id="s7"
    ),
}


@pytest.mark.parametrize("name", BY_SESSION)
def test_sqlite_finds_the_sandboxes_of_a_session_by_its_id(
    large_sqlite: DjangoDb, name: str
) -> None:
    plan = _sqlite_plan(large_sqlite, BY_SESSION[name])

    found = [step for step in plan if step.startswith("SEARCH sandboxes ")]
    assert found
    assert all("idx_sandboxes_session " in step for step in found), plan


def test_sqlite_marks_only_those_cold_that_are_not(large_sqlite: DjangoDb) -> None:
    plan = _sqlite_plan(large_sqlite, lambda db: db.mark_all_sandboxes_cold())

    assert [step for step in plan if step.startswith("SCAN")] == []
    assert (
        len([step for step in plan if step.startswith("SEARCH") and "state" in step])
        == 2
    )


def test_sqlite_finds_the_finished_sessions_on_an_index(large_sqlite: DjangoDb) -> None:
    plan = _sqlite_plan(large_sqlite, lambda db: db.prune_sessions(_SOON, 10))

    assert [
        step for step in plan if step.startswith("SCAN") and "json_each" not in step
    ] == []
    assert [step for step in plan if "idx_sessions_status_created (status=?)" in step]
    assert [
        step for step in plan if "sandboxes USING INDEX idx_sandboxes_session" in step
    ], plan


def test_sqlite_counts_on_an_index(large_sqlite: DjangoDb) -> None:
    [step] = _sqlite_plan(large_sqlite, lambda db: db.count_sandboxes())

    assert re.match(r"SCAN sandboxes USING COVERING INDEX ", step)


# -- PostgreSQL


def _postgres_nodes(
    db: DjangoDb,
    call: Callable[[DjangoDb], object],
    *,
    times: int = 1,
    analyze: bool = False,
) -> list[dict[str, Any]]:
    """Return the nodes of the plans of a call's statements, prepared as the adapter has them prepared."""
    found: list[dict[str, Any]] = []
    statements = _statements(db, call)
    with transaction.atomic(using=db.alias), connections[db.alias].cursor() as cursor:
        for sql, params in statements:
            first, *others = sql.split("%s")
            numbered = first + "".join(
                f"${number}{part}" for number, part in enumerate(others, 1)
            )
            cursor.execute("DEALLOCATE ALL")
            cursor.execute(f"PREPARE looked_at AS {numbered}")
            options = "ANALYZE, BUFFERS, FORMAT JSON" if analyze else "FORMAT JSON"
            places = f"({', '.join(['%s'] * len(params))})" if params else ""
            for _ in range(times):
                cursor.execute(f"EXPLAIN ({options}) EXECUTE looked_at{places}", params)
            [(plan,)] = cursor.fetchall()
            found += _nodes(
                (json.loads(plan) if isinstance(plan, str) else plan)[0]["Plan"]
            )
        transaction.set_rollback(True, using=db.alias)
    return found


# The first plan fits the values; from the sixth on PostgreSQL takes one for all values, if that is no dearer.
TIMES = [1, 7]


def _nodes(plan: dict[str, Any]) -> list[dict[str, Any]]:
    return [plan, *(node for child in plan.get("Plans", []) for node in _nodes(child))]


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("name", CALLS)
def test_postgresql_uses_an_index(
    large_postgres: DjangoDb, name: str, times: int
) -> None:
    kind, call = CALLS[name]

    nodes = _postgres_nodes(large_postgres, call, times=times)

    kinds = [node["Node Type"] for node in nodes]
    assert "Seq Scan" not in kinds, kinds
    if kind not in (SORTED, OF_SESSION, OF_LIVE):
        assert "Sort" not in kinds and "Incremental Sort" not in kinds, kinds
    if not name.startswith(("insert", "issue", "upsert")):
        assert {"Index Scan", "Index Only Scan", "Bitmap Index Scan"} & set(kinds), (
            kinds
        )


@pytest.mark.parametrize("name", CALLS)
def test_postgresql_sorts_by_code_point(large_postgres: DjangoDb, name: str) -> None:
    for sql, _ in _statements(large_postgres, CALLS[name][1]):
        for part in sql.split(" ORDER BY ")[1:]:
            assert 'COLLATE "C"' in part.split(" LIMIT ")[0].split(" UNION ")[0], sql


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("name", BY_SESSION)
def test_postgresql_finds_the_sandboxes_of_a_session_by_its_id(
    large_postgres: DjangoDb, name: str, times: int
) -> None:
    nodes = _postgres_nodes(large_postgres, BY_SESSION[name], times=times)

    used = {node["Index Name"] for node in nodes if "Index Name" in node}
    assert used == {"idx_sandboxes_session"}, nodes


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize(
    "name", [name for name, (kind, _) in CALLS.items() if kind == FEW]
)
def test_postgresql_reads_few_pages_for_few_rows(
    large_postgres: DjangoDb, name: str, times: int
) -> None:
    root, *_ = _postgres_nodes(
        large_postgres, CALLS[name][1], times=times, analyze=True
    )

    # A page of 8 kB holds about 70 rows, and an index of 100,000 rows is three pages deep.
    assert root["Shared Hit Blocks"] + root["Shared Read Blocks"] < 100
    assert root["Actual Rows"] in range(1, 21)


@pytest.mark.parametrize("times", TIMES)
@pytest.mark.parametrize("name", [name for name in CALLS if name.startswith("claim_")])
@pytest.mark.parametrize("tenant", [None, "large"])
def test_postgresql_writes_what_is_claimed_by_its_key(
    large_postgres: DjangoDb, name: str, times: int, tenant: str | None
) -> None:
    db = large_postgres.for_tenant(tenant) if tenant else large_postgres

    nodes = _postgres_nodes(large_postgres, lambda _: CALLS[name][1](db), times=times)

    # Those of subqueries are called otherwise.
    scans = [
        node
        for node in nodes
        if node.get("Alias") in ("sandboxes", "sessions")
        and "Scan" in node["Node Type"]
    ]
    written = {node["Index Name"] for node in scans}
    assert written in ({"sandboxes_pkey"}, {"sessions_pkey"})


@pytest.mark.parametrize("times", TIMES)
def test_postgresql_finds_the_eviction_candidate_with_three_probes(
    large_postgres: DjangoDb, times: int
) -> None:
    nodes = _postgres_nodes(
        large_postgres,
        lambda db: db.get_best_eviction_candidate(),
        times=times,
        analyze=True,
    )

    probes = [
        node
        for node in nodes
        if node.get("Index Name") == "idx_sandboxes_state_last_used"
    ]
    assert len(probes) == 3
    assert [node["Node Type"] for node in nodes].count("Limit") == 3
    # The first state has a sandbox, so that the others are not looked for.
    assert sorted(node["Actual Loops"] for node in probes) == [0, 0, 1]


def test_postgresql_marks_only_those_cold_that_are_not(large_postgres_url: str) -> None:
    # Before the first ANALYZE PostgreSQL takes a third of the rows to be on either side of any value, and reads all.
    with agentdb.connect(large_postgres_url) as db:
        execute(
            large_postgres_url,
            "UPDATE sandboxes SET state = 'cold' WHERE state = 'waiting'",
        )
        execute(large_postgres_url, "VACUUM ANALYZE sandboxes")

        nodes = _postgres_nodes(db, lambda db: db.mark_all_sandboxes_cold())

    assert "Seq Scan" not in [node["Node Type"] for node in nodes]


# -- CockroachDB


@pytest.fixture(scope="module")
def large_cockroach() -> Iterator[DjangoDb]:
    if COCKROACH_URL_VARIABLE not in os.environ:
        pytest.skip(f"needs a CockroachDB, which {COCKROACH_URL_VARIABLE} names")
    cluster, name = os.environ[COCKROACH_URL_VARIABLE], f"agentdb_large_{os.getpid()}"
    execute(cluster, f"CREATE DATABASE {name}")
    url = urlunsplit(urlsplit(cluster)._replace(path=f"/{name}"))
    agentdb.connect(url, migrate=True).close()
    _fill(
        url, "cockroachdb", rows=ROWS // 5
    )  # each row is an entry in up to seven indexes, three times on a cluster
    for table in TABLES:
        execute(url, f"ANALYZE {table}")
    with agentdb.connect(url) as db:
        yield db
    execute(cluster, f"DROP DATABASE {name} CASCADE")


def _cockroach_plan(db: DjangoDb, call: Callable[[DjangoDb], object]) -> str:
    steps = []
    with connections[db.alias].cursor() as cursor:
        for sql, params in _statements(db, call):
            cursor.execute(f"EXPLAIN {sql}", params)
            steps += [step for (step,) in cursor.fetchall()]
    return "\n".join(steps).partition("index recommendations")[0]


@pytest.mark.parametrize("name", CALLS)
def test_cockroachdb_uses_an_index(large_cockroach: DjangoDb, name: str) -> None:
    kind, call = CALLS[name]

    plan = _cockroach_plan(large_cockroach, call)

    assert "FULL SCAN" not in plan, plan
    if (
        kind == FEW and "zigzag join" not in plan
    ):  # which finds the few rows that two indexes agree on
        assert "top-k" not in plan and "• sort" not in plan, plan
