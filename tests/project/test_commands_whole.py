"""All that the commands say of rows that never change, as text and as JSON, and what they exit with.

``commands.txt`` holds it. After a change that is meant, write it again with ``AGENTDB_WRITE_COMMANDS=1`` and read the
difference.
"""

from __future__ import annotations

import difflib
import io
import os
import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from django.core.management import CommandError, call_command
from django.db import connections
from django.utils import timezone

from agentdb.conf import database_from_url, display_url, server_name
from agentdb.models import ApiKey, Session
from agentdb.serving.opening import temporary_alias
from tests.helpers.admin_fixtures import fill
from tests.helpers.stored_output import sections

COMMANDS = Path(__file__).with_name("commands.txt")


def _run(alias: str, *words: str) -> str:
    """What the command writes to each of its streams, and its exit code."""
    out, err = io.StringIO(), io.StringIO()
    code: object = 0
    # Commands with addresses of their own take no database.
    options = {} if words[0] == "copydb" else {"database": alias}
    try:
        call_command(*words, stdout=out, stderr=err, no_color=True, **options)
    except CommandError as error:
        err.write(f"{error}\n")
        code = error.returncode
    except SystemExit as ended:
        code = ended.code
    return f"exit {code}\n{out.getvalue()}--\n{err.getvalue()}"


def _all(url: str, alias: str, folder: Path) -> Iterator[tuple[str, str]]:
    copy, file = f"sqlite:///{folder}/copy.db", f"{folder}/backup.db"

    def run(*words: str) -> tuple[str, str]:
        name = " ".join(words).replace(url, "URL").replace(str(folder), "FOLDER")
        return name, _run(alias, *words)

    yield run("migrate", "agentdb")
    yield run("migrate", "agentdb", "--plan")
    yield run("health")
    yield run("health", "--json")
    yield run("verifydb")
    yield run("verifydb", "--json")
    yield run("baselinedb", "--check")
    yield run("baselinedb", "--json")
    yield run("copydb", url, copy, "--dry-run")
    yield run("copydb", url, copy)
    yield run("copydb", url, copy)
    yield run("copydb", url, copy, "--verify")
    yield run("backup", file)
    yield run("backup", file)
    yield run("restore", file)
    yield run("restore", f"{folder}/absent.db")
    yield run("prune", "--older-than", "5d", "--dry-run")
    yield run("prune", "--older-than", "5d", "--tenant", "t1")
    yield run("prune", "--older-than", "5d")
    yield run("prune", "--older-than", "5d")
    yield run("prune", "--older-than", "soon")
    yield run("copydb", url, copy, "--verify")
    yield run("apikey", "list", "--tenant", "t1")
    yield run("apikey", "list")
    yield run("apikey", "list", "--tenant", "nobody")
    yield run("apikey", "issue", "--tenant", "t1", "--label", "laptop")
    yield run("apikey", "issue", "--tenant", "", "--label", "laptop")
    yield run("apikey", "revoke", "k0001")
    yield run("apikey", "revoke", "k0001")
    with connections[alias].cursor() as cursor:
        cursor.execute("DROP INDEX idx_sessions_tenant")
        cursor.execute("ALTER TABLE agents ADD COLUMN note text")
    yield run("verifydb")
    yield run("verifydb", "--json")
    yield run("baselinedb", "--check")
    with connections[alias].cursor() as cursor:
        cursor.execute("DROP TABLE api_keys")
    yield run("verifydb")
    yield run("health", "--json")
    yield run("apikey", "list", "--tenant", "t1")


def _plain(text: str, url: str, folder: Path) -> list[str]:
    """The lines without what differs from one database, or one moment, to the next."""
    settings = database_from_url(url)
    name = str(settings["NAME"])
    is_file = name.startswith("/")
    for pattern, word in (
        (re.escape(display_url(url)), "URL"),
        (r"  pg_dump .*", "  pg_dump"),
        # Of versions of SQLite with a fault, which one machine has and another has not.
        (r"\n.* can, very rarely, lose a commit .*", ""),
        (r'"warnings": \[[^\]]*\]', '"warnings": LIST'),
        (r"\(\d[\d.]+( \([^)]*\))?\)", "(VERSION)"),
        (re.escape(repr(name) if is_file else server_name(settings)), "PLACE"),
        (re.escape(name) if is_file else r"\bno such place\b", "PLACE"),
        (re.escape(str(folder)), "FOLDER"),
        (r"(SQLite|PostgreSQL) \d[\d.]*", "ENGINE"),
        (r'("engine": )"\w+"', r"\1ENGINE"),
        (r'("\w*version": )".*"', r"\1VERSION"),
        (r'("(round_trip_ms|connections|size_bytes|seconds)": )[\d.]+', r"\1NUMBER"),
        (r"\d+(\.\d+)? ms", "NUMBER ms"),
        (r"\d\d\d\d-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|\+00:00)?", "TIME"),
        (r"[\d.,]+ (bytes|[KM]iB)", "SIZE"),
        (r"\b[0-9a-f]{8}-[0-9a-f-]{27}\b", "ID"),
        (r"\b[0-9a-f]{64}\b", "HASH"),
        (r"agentdb_[\w-]{20,}", "KEY"),
    ):
        text = re.sub(pattern, word, text)
    return text.splitlines()


def _stored(engine: str) -> list[tuple[str, list[str]]]:
    return [
        (name, lines) for name, lines in sections(COMMANDS) if name.startswith(engine)
    ]


def test_each_command_says_what_it_has_always_said(
    url: str, engine: str, tmp_path: Path
) -> None:
    if engine == "cockroachdb":
        pytest.skip("its words are another's; the tests of each command run on it")
    with temporary_alias(url) as alias:
        fill(alias, 12, tenants=3)
        # Old, of every status and of each tenant.
        old = timezone.now() - timedelta(days=9)
        sessions = Session.objects.using(alias)
        sessions.filter(pk__gte="s0004").update(last_active_at=old)
        ApiKey.objects.using(alias).filter(pk__gte="k0006").delete()
        said = [
            (f"{engine} {name}", _plain(text, url, tmp_path))
            for name, text in _all(url, alias, tmp_path)
        ]

    if "AGENTDB_WRITE_COMMANDS" in os.environ:
        others = [
            each
            for other in ("postgresql", "sqlite")
            if other != engine and COMMANDS.exists()
            for each in _stored(other)
        ]
        COMMANDS.write_text(
            "".join(
                f"=== {name}\n" + "".join(f"{line}\n" for line in lines)
                for name, lines in [*others, *said]
            )
        )
    stored = _stored(engine)
    assert [name for name, _ in said] == [name for name, _ in stored]
    for (name, lines), (_, before) in zip(said, stored, strict=True):
        changed = list(
            difflib.unified_diff(before, lines, "stored", "said", lineterm="", n=1)
        )
        assert not changed, "\n".join([name, *changed])
