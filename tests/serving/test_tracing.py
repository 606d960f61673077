"""OpenTelemetry spans: with its SDK, with its API alone, which FastAPI brings along, and without."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import agentdb
from tests.project.test_import import run_python

ROOT = Path(agentdb.__file__).parents[1]

PROGRAM = """
import json
from opentelemetry import trace
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter

exporter = InMemorySpanExporter()
provider = TracerProvider()
provider.add_span_processor(SimpleSpanProcessor(exporter))
trace.set_tracer_provider(provider)

import agentdb
{work}
print(json.dumps([
    [span.name, span.kind.name, dict(span.attributes), span.status.status_code.name,
     span.parent and span.parent.span_id, span.context.span_id, [event.name for event in span.events]]
    for span in exporter.get_finished_spans()
]))
"""


@pytest.fixture(scope="module")
def sdk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("otel")
    install = [sys.executable, "-m", "pip", "install", "--quiet", "--target", str(folder), "opentelemetry-sdk"]
    subprocess.run(install, check=True, capture_output=True)
    return folder


def spans(work: str, sdk: Path, folder: Path) -> list[list[Any]]:
    printed = run_python(PROGRAM.format(work=work), folder, PYTHONPATH=f"{ROOT}:{sdk}")
    found: list[list[Any]] = json.loads(printed)
    return found


def test_each_call_is_a_span_without_values(sdk: Path, tmp_path: Path) -> None:
    work = """
with agentdb.connect("sqlite:///a.db", migrate=True) as db:
    db.insert_session("secret-id", "a", "sb")
    try:
        db.insert_session("secret-id", "a", "sb")
    except agentdb.DuplicateKeyError:
        pass
    db.for_tenant("acme").list_sessions()
"""
    found = spans(work, sdk, tmp_path)

    assert [(name, kind, status) for name, kind, _, status, *_ in found] == [
        ("agentdb.insert_session", "CLIENT", "UNSET"),
        ("agentdb.insert_session", "CLIENT", "ERROR"),
        ("agentdb.list_sessions", "CLIENT", "UNSET"),
    ]
    usual = {"db.system.name": "sqlite", "db.namespace": str(tmp_path / "a.db"), "db.operation.name": "insert_session"}
    assert found[0][2] == usual
    assert found[1][2] == {**usual, "error.type": "DuplicateKeyError"}
    assert "secret" not in json.dumps(found)
    assert [events for *_, events in found] == [[], [], []]


def test_the_calls_of_a_transaction_are_its_children_in_threads_too(sdk: Path, tmp_path: Path) -> None:
    work = """
import asyncio

async def main():
    async with agentdb.connect_async("sqlite:///a.db", migrate=True) as db:
        with trace.get_tracer("mine").start_as_current_span("mine"):
            await db.run_transaction(lambda inside: inside.list_agents())

asyncio.run(main())
"""
    inner, outer, mine = spans(work, sdk, tmp_path)

    assert [inner[0], outer[0], mine[0]] == ["agentdb.list_agents", "agentdb.run_transaction", "mine"]
    assert (inner[4], outer[4]) == (outer[5], mine[5])


def test_without_an_sdk_no_span_is_made(tmp_path: Path) -> None:
    code = """
from opentelemetry import trace
import agentdb, agentdb.serving.tracing
agentdb.serving.tracing.SpanKind = None  # without which none can be made
with agentdb.connect("sqlite:///a.db", migrate=True) as db:
    print(hasattr(agentdb.DjangoDb.list_agents, "__wrapped__"), db.list_agents())
"""
    assert run_python(code, tmp_path) == "True []\n"


def test_without_opentelemetry_nothing_is_on_the_path_of_a_call(tmp_path: Path) -> None:
    code = """
import importlib.util
found = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "opentelemetry" else found(name, *rest)
import agentdb
with agentdb.connect("sqlite:///a.db", migrate=True) as db:
    print(hasattr(agentdb.DjangoDb.list_agents, "__wrapped__"), db.list_agents())
"""
    assert run_python(code, tmp_path) == "False []\n"
