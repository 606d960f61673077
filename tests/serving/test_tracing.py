"""The drivers' own OpenTelemetry instrumentations, which know nothing of agentdb, see each of its statements."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from tests.project.test_import import run_python

LEGACY = Path(__file__).parents[1] / "legacy/sqlite"

PROGRAM = """
import asyncio, json
from opentelemetry import trace
from opentelemetry.instrumentation.psycopg import PsycopgInstrumentor
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)
SQLite3Instrumentor().instrument()
PsycopgInstrumentor().instrument()

import agentdb

async def main():
    async with agentdb.connect_async({url!r}) as db:
        exporter.clear()
        with trace.get_tracer("mine").start_as_current_span("mine"):
            await db.insert_session("secret-id", "a", "sb")
            try:
                await db.insert_session("secret-id", "a", "sb")
            except agentdb.DuplicateKeyError:
                pass
            await db.run_transaction(lambda tx: tx.list_sessions())

asyncio.run(main())
print(json.dumps([
    [span.name, str(span.attributes.get("db.statement")), span.status.status_code.name, span.parent is not None]
    for span in exporter.get_finished_spans()
]))
"""


def test_each_statement_is_a_span_with_placeholders_below_the_callers(
    url: str, tmp_path
) -> None:
    found = json.loads(run_python(PROGRAM.format(url=url), tmp_path))

    ours = ("INSERT", "SELECT", "mine")
    assert [
        (name, status, has_parent)
        for name, _, status, has_parent in found
        if name in ours
    ] == [
        ("INSERT", "UNSET", True),
        (
            "INSERT",
            "UNSET",
            True,
        ),  # a taken key is an answer, and no error of the driver
        ("SELECT", "UNSET", True),  # whether a row has the key, or a trigger skipped it
        ("SELECT", "UNSET", True),
        ("mine", "UNSET", False),
    ]
    assert [
        statement.split()[2] for name, statement, *_ in found if name == "INSERT"
    ] == ['"sessions"', '"sessions"']
    assert "secret" not in json.dumps(found)


def test_adopting_and_backing_up_work_on_a_traced_driver(tmp_path: Path) -> None:
    shutil.copyfile(LEGACY / "era-b-small.db", tmp_path / "old.db")
    code = """
import contextlib, io
from opentelemetry.instrumentation.sqlite3 import SQLite3Instrumentor
SQLite3Instrumentor().instrument()
from agentdb.__main__ import main

with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
    adopted = main(["--url", "sqlite:///old.db", "baselinedb"])
    backed_up = main(["--url", "sqlite:///old.db", "backup", "new.sqlite3"])
print(adopted, backed_up)
"""
    assert run_python(code, tmp_path) == "0 0\n"


@pytest.mark.parametrize("module", ["opentelemetry", "wrapt"])
def test_agentdb_itself_imports_none_of_it(module: str, tmp_path) -> None:
    connect = "agentdb.connect('sqlite:///a.db', migrate=True).close()"
    code = f"import sys, agentdb; {connect}; print({module!r} in sys.modules)"

    assert run_python(code, tmp_path) == "False\n"
