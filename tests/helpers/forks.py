"""Processes that have agentdb imported already, for tests that kill many: each is a fork of one that waits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

_WAITER = """
import json, os, sys, traceback
from agentdb.serving.opening import configure
configure("sqlite:///unused.sqlite3")
import agentdb.adoption.execution, psycopg
for line in iter(sys.stdin.readline, ""):
    request = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            os.dup2(2, 1)  # standard output is ours, for the ids
            sys.argv = ["-c", *request["arguments"]]
            os.environ["DATABASE_URL"] = request["url"]
            exec(compile(request["code"], "<fork>", "exec"), {"__name__": "__main__"})
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    print(child, flush=True)
    sys.stdin.readline()  # until then its id is its own, also after its end
    print(os.waitpid(child, 0)[1], flush=True)
"""


class Forks:
    """Starts programs by forking a process that has imported what they need, which takes most of their time."""

    def __init__(self) -> None:
        environment = {
            key: value
            for key, value in os.environ.items()
            if key != "DJANGO_SETTINGS_MODULE"
        }
        self._waiter = subprocess.Popen(
            [sys.executable, "-c", _WAITER],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env=environment,
        )

    def start(self, url: str, code: str, *arguments: str) -> int:
        """Start ``code`` with ``url`` as DATABASE_URL and return the process id; ``end`` has to follow."""
        return self._ask(json.dumps({"url": url, "code": code, "arguments": arguments}))

    def end(self) -> int:
        """Wait for the program's end and return its exit code, or minus the signal that killed it."""
        return os.waitstatus_to_exitcode(self._ask("end"))

    def close(self) -> None:
        assert self._waiter.stdin is not None
        self._waiter.stdin.close()
        assert self._waiter.stdout is not None
        self._waiter.stdout.close()
        self._waiter.wait()

    def _ask(self, line: str) -> int:
        assert self._waiter.stdin is not None
        assert self._waiter.stdout is not None
        self._waiter.stdin.write(line + "\n")
        self._waiter.stdin.flush()
        return int(self._waiter.stdout.readline())


@pytest.fixture(scope="session")
def forks() -> Iterator[Forks]:
    forks = Forks()
    yield forks
    forks.close()
