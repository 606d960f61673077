"""All that baselinedb says of each old database, before and after its adoption.

``reports.txt`` holds it. After a change that is meant, write it again with ``AGENTDB_WRITE_REPORTS=1`` and read the
difference.
"""

from __future__ import annotations

import difflib
import os
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from agentdb.conf import database_from_url, server_name
from tests.helpers.baseline_runs import Run, baselinedb
from tests.helpers.legacy_databases import stems
from tests.helpers.stored_output import sections

REPORTS = Path(__file__).with_name("reports.txt")
STEMS = {
    "sqlite": stems("sqlite"),
    # A copy of a server's database takes longer than one of a file: one of each kind.
    "postgresql": [
        "crash-a-to-b-k18",
        "crash-fresh-b-k03",
        "dirty-datestyle",
        "dirty-duplicate-agents",
        "dirty-extra-notnull-column",
        "dirty-timestamp-garbage",
        "era-a",
        "era-b",
        "era-b-stuck",
        "era-d",
    ],
}


def _lines(run: Run, place: str, folder: Path) -> list[str]:
    """The lines without what differs from one database, or one moment, to the next."""
    text = f"exit {run.code}\n{run.out}{run.err}".replace(str(folder), "FOLDER")
    for pattern, name in (
        (r"  pg_dump .*", "  pg_dump"),
        (re.escape(place), "PLACE"),
        (r"backup-\d{8}T\d{6}\.\d{6}Z", "backup-TIME"),
        (r'"checksum": "[0-9a-f]{32}"', '"checksum": HEX'),
        (r"(SQLite|PostgreSQL) \d[\d.]*", r"\1 VERSION"),
        (r'"version": ".*"', '"version": VERSION'),
    ):
        text = re.sub(pattern, name, text)
    return text.splitlines()


def _stored() -> dict[str, list[str]]:
    return dict(sections(REPORTS))


def test_each_old_database_is_reported_as_it_has_always_been(
    engine: str, load_legacy: Callable[[str], str], tmp_path: Path
) -> None:
    if engine == "cockroachdb":
        pytest.skip("no old server ran on CockroachDB")
    reports: dict[str, list[str]] = {}
    for stem in STEMS[engine]:
        url = load_legacy(stem)
        settings = database_from_url(url)
        place = f"{stem}.db" if engine == "sqlite" else server_name(settings)
        for arguments in (["--check"], ["--check", "--json"], [], ["--json"]):
            run = baselinedb(url, *arguments)
            name = " ".join([engine, stem, *arguments])
            reports[name] = _lines(run, place, tmp_path)

    if "AGENTDB_WRITE_REPORTS" in os.environ:
        kept = {
            name: lines
            for name, lines in (_stored() if REPORTS.exists() else {}).items()
            if not name.startswith(engine)
        }
        REPORTS.write_text(
            "".join(
                f"=== {name}\n" + "".join(f"{line}\n" for line in lines)
                for name, lines in sorted({**kept, **reports}.items())
            )
        )
    stored = {
        name: lines for name, lines in _stored().items() if name.startswith(engine)
    }
    for name, lines in stored.items():
        changed = list(
            difflib.unified_diff(
                lines, reports[name], "stored", "said", lineterm="", n=1
            )
        )
        assert not changed, "\n".join([name, *changed])
    assert reports.keys() == stored.keys()
