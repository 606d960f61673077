"""What a long command writes about how far it is."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path

import pytest
from django.core.management.base import OutputWrapper

import agentdb
from agentdb.management.output import ProgressLine
from tests.helpers.legacy_databases import manage, opened


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr("agentdb.management.output.time.monotonic", lambda: now[0])
    monkeypatch.setenv("TERM", "xterm")
    return now


def written(stream: io.StringIO) -> str:
    text = stream.getvalue()
    stream.seek(0)
    stream.truncate()
    return text


def test_a_terminal_has_one_line_with_the_rate_and_the_time_left(
    clock: list[float],
) -> None:
    stream = Terminal()
    line = ProgressLine(OutputWrapper(stream))
    line("sessions", 0, 1000)
    assert written(stream) == ""
    clock[0] += 0.5
    line("sessions", 250, 1000)
    assert written(stream) == "sessions: 250 of 1,000"
    clock[0] += 1.5
    line("sessions", 500, 1000)
    assert written(stream) == "\r\x1b[Ksessions: 500 of 1,000, 250 a second, 2 s left"
    clock[0] += 0.1
    line("sessions", 600, 1000)
    assert written(stream) == ""  # not more often than five times a second
    clock[0] += 1.0
    line("agents", 0, 0)
    assert written(stream) == "\r\x1b[Kagents: 0 of 0"
    line.say("Done.")
    assert written(stream) == "\r\x1b[KDone.\n"
    line.clear()
    assert written(stream) == ""


def test_the_rate_is_that_of_the_table_and_of_this_run(clock: list[float]) -> None:
    stream = Terminal()
    line = ProgressLine(OutputWrapper(stream))
    line("agents", 10, 10)
    clock[0] += 50
    line("sessions", 600, 1000)  # a copy that goes on where it was
    written(stream)
    clock[0] += 2
    line("sessions", 700, 1000)
    assert "700 of 1,000, 50 a second, 6 s left" in written(stream)


@pytest.mark.parametrize("term", ["dumb", None])
def test_elsewhere_there_is_a_plain_line_now_and_then(
    clock: list[float], monkeypatch: pytest.MonkeyPatch, term: str | None
) -> None:
    stream = io.StringIO() if term is None else Terminal()
    if term:
        monkeypatch.setenv("TERM", term)
    line = ProgressLine(OutputWrapper(stream))
    for _ in range(4):
        clock[0] += 6
        line("sessions", 100, 1000)
    assert written(stream) == "sessions: 100 of 1,000\nsessions: 100 of 1,000\n"


def test_a_quiet_command_writes_nothing(clock: list[float]) -> None:
    stream = Terminal()
    line = ProgressLine(OutputWrapper(stream), verbosity=0)
    clock[0] += 60
    line("sessions", 100, 1000)
    line.say("Done.")
    assert written(stream) == ""


def blocks(table: str, rows: int) -> list[tuple[str, int, int]]:
    """What is reported of a table that is read in blocks of two rows."""
    return [(table, min(done, rows), rows) for done in range(2, rows + 2, 2)]


def test_each_long_command_reports_every_step_of_each_table(
    engine: str,
    load_legacy: Callable[[str], str],
    empty_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    reported: list[tuple[str, int, int]] = []
    monkeypatch.setattr(
        ProgressLine, "__call__", lambda _, *step: reported.append(step)
    )
    monkeypatch.setattr("agentdb.moving.chunks.ROWS_A_CHUNK", 2)

    def steps(url: str, command: str, *arguments: str) -> list[tuple[str, int, int]]:
        reported.clear()
        with opened(url) as connection:
            manage(connection, command, *arguments, stderr=io.StringIO())
        return list(reported)

    old = load_legacy("era-a")
    adopted = steps(old, "baselinedb")
    agentdb.connect(old).insert_api_key("k1", "acme", "hash", "")
    numbers = (17, 64, 28) if engine == "sqlite" else (21, 70, 37)
    counts = dict(zip(("agents", "sessions", "sandboxes"), numbers, strict=True))

    assert [step for step in adopted if step[0] != "backup"] == [
        step
        for table, rows in counts.items()
        for step in ((table, 0, 1), (table, rows, rows))
    ]
    counts["api_keys"] = 1
    copied = [step for table, rows in counts.items() for step in blocks(table, rows)]
    indexes = [("indexes", number, 20) for number in range(20)]
    checked = [(f"checking {table}", *step) for table, *step in copied]
    backed_up = steps(old, "backup", f"{tmp_path}/b.db")
    if engine == "sqlite":
        [(what, pages, of_pages)] = backed_up
        assert (what, pages) == ("backup", of_pages)
    else:
        assert backed_up == [*copied, *indexes, *checked]
    assert steps(empty_url, "restore", f"{tmp_path}/b.db") == [
        *copied,
        *indexes,
        *checked,
    ]
