"""What a command ends with, whatever happens to it and to its output."""

from __future__ import annotations

import errno
import io
import json
import sys
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from django.core.management import load_command_class
from django.core.management.base import OutputWrapper

import agentdb
from agentdb.errors import AgentDbError
from agentdb.management.database_command import AgentDbCommand
from agentdb.management.output import Output, write_any_character
from agentdb.serving.opening import temporary_alias

LOST = "The output could not be written: "


class Told(AgentDbCommand):
    """A command that does what a test says."""

    requires_system_checks = []
    report: object | None = None
    do: Callable[[Told], None]

    def add_arguments(self, parser: Any) -> None:
        parser.add_argument("--json", action="store_true")

    def handle(self, **options: Any) -> None:
        self.do(self)

    def error_report(self, error: AgentDbError) -> object | None:
        return self.report


class Full(io.StringIO):
    """A file on a full disk, which refuses a write at once or only when it is flushed."""

    def __init__(self, refuses: str) -> None:
        super().__init__()
        self.refuses = refuses

    def write(self, text: str) -> int:
        if self.refuses == "write":
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(text)

    def flush(self) -> None:
        if self.refuses == "flush":
            raise OSError("odd")


def answer(command: Told) -> None:
    command.stdout.write("yes")


def say_no(command: Told) -> None:
    command.stdout.write("no")
    sys.exit(1)


def refuse(command: Told) -> None:
    raise AgentDbError("No database.")


def stop(command: Told) -> None:
    raise KeyboardInterrupt


def closed() -> io.StringIO:
    stream = io.StringIO()
    stream.close()
    return stream


def run(
    do: Callable[[Told], None], stdout: Any, *arguments: str, **attributes: Any
) -> tuple[int, str]:
    """What it exits with, and what it writes to standard error."""
    stderr = io.StringIO()
    command = Told(stdout, stderr, no_color=True)
    for name, value in {"do": do, **attributes}.items():
        setattr(command, name, value)
    code: Any = 0
    try:
        command.run_from_argv(["agentdb", "told", *arguments])
    except SystemExit as ended:
        code = ended.code
    return code, stderr.getvalue()


@pytest.mark.parametrize(
    ("do", "code", "answered", "said"),
    [
        (answer, 0, "yes\n", ""),
        (say_no, 1, "no\n", ""),
        (refuse, 2, "", "CommandError: No database.\n"),
        (stop, 130, "", "Interrupted. Nothing was changed.\n"),
    ],
)
def test_a_command_exits_with_what_is_stored_and_a_lost_answer_is_said(
    do: Callable[[Told], None], code: int, answered: str, said: str
) -> None:
    reasons = {
        "No space left on device": Full("write"),
        "odd": Full("flush"),
        "I/O operation on closed file": closed(),
    }
    stdout = io.StringIO()
    assert run(do, stdout) == (code, said)
    assert stdout.getvalue() == answered
    for reason, lost in reasons.items():
        # Without an answer nothing is written, but all is flushed.
        is_lost = bool(answered) or reason == "odd"
        warning = f"{LOST}{reason}.\n" if is_lost else ""
        assert run(do, lost) == (code, said + warning)
        failed = 2 if is_lost and do is answer else code
        # Of a command whose output is its result, such as verifydb.
        assert run(do, lost, output_is_the_result=True) == (failed, said + warning)


@pytest.mark.parametrize(
    ("words", "code"),
    [
        # A report that nobody can read was not made, but work that is done stays done.
        (["apikey", "list"], 2),
        (["health"], 2),
        (["overview"], 2),
        (["verifydb"], 2),
        (["baselinedb"], 0),
        (["migrate"], 0),
        (["prune", "--older-than", "1d"], 0),
    ],
    ids=str,
)
@pytest.mark.parametrize("engine", ["sqlite"])
def test_only_a_lost_report_is_a_failure(
    engine: str, url: str, monkeypatch: pytest.MonkeyPatch, words: list[str], code: int
) -> None:
    stderr = io.StringIO()
    with agentdb.connect(url) as db:
        db.issue_api_key("acme", "laptop")
    monkeypatch.setattr(sys, "stdout", Full("write"))
    monkeypatch.setattr(sys, "stderr", stderr)
    ended: Any = 0
    with temporary_alias(url) as alias:
        command = load_command_class("agentdb", words[0])
        try:
            command.run_from_argv(["agentdb", *words, f"--database={alias}"])
        except SystemExit as end:
            ended = end.code

    assert ended == code
    assert stderr.getvalue().endswith(f"{LOST}No space left on device.\n")


def test_a_command_without_standard_output_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys, "stdout", None)

    assert run(answer, None) == (0, f"{LOST}it is closed.\n")
    closed: Any = Output(None)
    assert not OutputWrapper(closed).isatty()


def test_a_program_that_asked_for_json_gets_one_object_also_of_a_refusal() -> None:
    report = {
        "name": "é",
        "at": datetime(2026, 3, 14, tzinfo=UTC),
        "path": Path("/a"),
    }
    stdout = io.StringIO()

    assert run(refuse, stdout, "--json", report=report) == (2, "")

    assert stdout.getvalue() == (
        '{\n  "name": "é",\n  "at": "2026-03-14 00:00:00+00:00",\n  "path": "/a"\n}\n'
    )
    assert json.loads(stdout.getvalue()).keys() == report.keys()
    for arguments, told in (((), report), (("--json",), None)):
        assert run(refuse, io.StringIO(), *arguments, report=told) == (
            2,
            "CommandError: No database.\n",
        )
    assert run(refuse, io.StringIO(), refused=1)[0] == 1


def test_after_a_lost_write_nothing_more_is_written_so_that_no_text_has_a_hole() -> (
    None
):
    stream = Full("write")
    output = Output(stream)

    output.write("first")
    stream.refuses = ""
    output.write("second")
    output.flush()

    assert (stream.getvalue(), output.failure) == ("", "No space left on device")


def test_the_output_of_the_process_is_given_up_only_after_a_failure(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Python writes what is left in it as it ends, and would fail again."""
    given_up: list[int] = []
    monkeypatch.setattr("os.dup2", lambda source, target: given_up.append(target))
    stream = Full("")
    monkeypatch.setattr(stream, "fileno", lambda: 77)
    monkeypatch.setattr(sys, "__stdout__", stream)
    output = Output(stream)

    output.write("first")
    assert (stream.getvalue(), given_up) == ("first", [])
    stream.refuses = "write"
    output.write("second")

    assert given_up == [77]


def test_what_a_terminal_cannot_show_is_escaped(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding="ascii"))
    monkeypatch.setattr(sys, "stderr", io.StringIO())  # which has nothing to set

    write_any_character()

    sys.stdout.write("≈ 5")
    sys.stdout.flush()
    assert written.getvalue() == rb"\u2248 5"
