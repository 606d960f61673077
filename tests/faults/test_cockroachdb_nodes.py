"""Three nodes of CockroachDB under load from four processes: one is killed, cut off, drained, replaced.

AGENTDB_TEST_COCKROACH_BINARY names the program. Prints the table of docs/cockroachdb.md.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import pytest

import agentdb
from tests.helpers.cockroach_nodes import BINARY_VARIABLE, Cluster, Node, until
from tests.helpers.servers import ROOT

pytestmark = pytest.mark.skipif(
    BINARY_VARIABLE not in os.environ,
    reason=f"needs a CockroachDB program, which {BINARY_VARIABLE} names",
)

PROCESSES = 4
ENOUGH = 15  # answers of each process, before and after what happens
SANDBOXES = 4_000


@pytest.fixture(scope="module")
def cluster() -> Iterator[Cluster]:
    import tests.helpers.cockroach_floor  # noqa: F401 (lowers it)

    with Cluster(Path(os.environ[BINARY_VARIABLE])) as cluster:
        agentdb.connect(cluster.url(), migrate=True).close()
        cluster.wait_for_copies()
        yield cluster


def load(url: str, worker: str, log: Path) -> None:
    """What one process does until it is killed: each answer is a line of its log, written before the next call."""
    import tests.helpers.cockroach_floor  # noqa: F401 (lowers it)

    with _connected(url) as db, log.open("a") as answers:
        for number in itertools.count(1):
            calls = _calls(db, worker, number)
            for name, call in calls.items():
                try:
                    answer = call()
                except agentdb.AgentDbError as error:
                    name, answer = "error", f"{type(error).__name__}"
                    time.sleep(0.02)
                answers.write(json.dumps([name, answer, time.monotonic()]) + "\n")
                answers.flush()


def _connected(url: str) -> agentdb.DjangoDb:
    while True:
        with suppress(
            agentdb.DatabaseUnavailableError
        ):  # nodes that have just started are slow
            return agentdb.connect(url)


def _calls(db: agentdb.Db, worker: str, number: int) -> dict[str, Callable[[], object]]:
    def claim() -> object:
        # As "warm" it may be claimed once, and once more as "cold", which it is then.
        claimed = db.claim_eviction_candidate()
        return claimed and f"{claimed.state} {claimed.id}"

    def claim_session() -> object:
        claimed = db.claim_session(f"open-{number}", worker)
        return claimed and claimed.id

    return {
        "insert": lambda: db.insert_session(f"{worker}-{number}", "a", "sb").id,
        "upsert": lambda: db.upsert_agent("contended", "/").version,
        "claim": claim,
        "claim_session": claim_session,
    }


@dataclass
class Answer:
    worker: str
    name: str
    value: object
    at: float


class Load:
    """Four processes that call, each with a log."""

    def __init__(self, url: str, folder: Path, prefix: str) -> None:
        self.logs = {
            f"{prefix}{number}": folder / f"{prefix}{number}.log"
            for number in range(PROCESSES)
        }
        code = "import sys, pathlib; from tests.faults.test_cockroachdb_nodes import load; "
        code += "load(sys.argv[1], sys.argv[2], pathlib.Path(sys.argv[3]))"
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-c", code, url, worker, str(log)], cwd=ROOT
            )
            for worker, log in self.logs.items()
        ]

    def __enter__(self) -> Load:
        return self

    def __exit__(self, *error: object) -> None:
        for process in self.processes:
            process.kill()
            process.wait()

    def answers(self) -> list[Answer]:
        found = []
        for worker, log in self.logs.items():
            for line in log.read_text().splitlines() if log.exists() else []:
                name, value, at = json.loads(line)
                found.append(Answer(worker, name, value, at))
        return found

    def wait(self, since: float = 0.0) -> None:
        def each_was_answered() -> bool:
            assert all(process.poll() is None for process in self.processes), (
                "a caller ended"
            )
            told = Counter(
                a.worker for a in self.answers() if a.name != "error" and a.at > since
            )
            return all(told[worker] >= ENOUGH for worker in self.logs)

        until(each_was_answered, "each process was answered", seconds=180)

    def outage(self) -> float:
        """The longest time that one process was without an answer, in seconds."""
        longest = 0.0
        for worker in self.logs:
            times = sorted(
                a.at for a in self.answers() if a.worker == worker and a.name != "error"
            )
            longest = max(
                [
                    longest,
                    *(
                        after - before
                        for before, after in zip(times, times[1:], strict=False)
                    ),
                ]
            )
        return longest


def killed(cluster: Cluster, node: Node) -> Callable[[], None]:
    node.kill()

    def back() -> None:
        node.start()
        until(node.is_serving, "the node is back")

    return back


def cut_off(cluster: Cluster, node: Node) -> Callable[[], None]:
    node.cut_off()

    def back() -> None:
        node.join_again()
        until(node.is_serving, "the node is back")

    return back


def drained(cluster: Cluster, node: Node) -> Callable[[], None]:
    cluster.run("node", "drain", "--self", at=node)
    return killed(cluster, node)


def replaced(cluster: Cluster, node: Node) -> Callable[[], None]:
    cluster.add()
    cluster.run("node", "decommission", "--self", "--wait=all", at=node)
    node.kill()
    return lambda: None


WHAT_HAPPENS = {
    "kill -9 of the node that all are connected to": (killed, 0),
    "kill -9 of another node": (killed, 2),
    "partition: the node that all are connected to is cut off": (cut_off, 0),
    "drain and stop of the node that all are connected to": (drained, 0),
    "a fourth node joins, the node that all are connected to is decommissioned": (
        replaced,
        1,
    ),
}


@pytest.mark.parametrize("what", WHAT_HAPPENS)
def test_no_acknowledged_write_is_lost_and_nothing_is_handed_out_twice(
    cluster: Cluster, tmp_path: Path, what: str, capsys: pytest.CaptureFixture[str]
) -> None:
    happen, number = WHAT_HAPPENS[what]
    node = cluster.nodes[number]
    first = node if "all are connected" in what else cluster.nodes[0]
    prefix = f"w{list(WHAT_HAPPENS).index(what)}-"
    with _connected(cluster.url(first=first)) as db:
        db.run_transaction(
            lambda tx: [tx.delete_agent(agent.name) for agent in tx.list_agents()]
        )
    _fill(cluster, prefix)

    with Load(cluster.url(first=first), tmp_path, prefix) as callers:
        callers.wait()
        back = happen(cluster, node)
        callers.wait(since=time.monotonic())
    back()
    cluster.wait_for_copies()

    answers = callers.answers()
    told = {
        name: [a.value for a in answers if a.name == name and a.value is not None]
        for name in _NAMES
    }
    errors = Counter(str(a.value) for a in answers if a.name == "error")
    with _connected(cluster.url(first=cluster.nodes[0])) as db:
        lost = [id for id in told["insert"] if db.get_session(str(id)) is None]
        [agent] = db.list_agents()
        held = [db.get_session(str(id)) for id in told["claim_session"]]
    with capsys.disabled():
        writes = sum(map(len, told.values()))
        seen = (
            ", ".join(f"{count} {name}" for name, count in sorted(errors.items()))
            or "no error"
        )
        row = f"| {what} | {len(lost)} of {writes:,} | {callers.outage():.1f} s | {seen} |"
        print(f"\n{row}")  # noqa: T201
    assert lost == []
    for name in ("claim", "claim_session", "upsert"):
        twice = [value for value, count in Counter(told[name]).items() if count > 1]
        assert twice == [], (name, twice)
    assert all(
        session is not None and str(session.runner_id).startswith(prefix)
        for session in held
    )
    # A version more than was told is a write whose outcome the caller does not know.
    assert len(told["upsert"]) <= agent.version <= len(told["upsert"]) + errors.total()
    assert set(errors) <= {
        "DatabaseUnavailableError",
        "OutcomeUnknownError",
        "ConflictError",
    }


_NAMES = ("insert", "upsert", "claim", "claim_session")


def _fill(cluster: Cluster, prefix: str) -> None:
    """Sandboxes to evict, and sessions to claim."""
    numbers = f"generate_series(1, {SANDBOXES}) AS n(i)"
    cluster.sql("DELETE FROM sandboxes WHERE true")
    cluster.sql("DELETE FROM sessions WHERE true")
    cluster.sql(
        "INSERT INTO sandboxes (id, agent_name, workspace_dir, state) "
        f"SELECT '{prefix}' || i, 'a', '/', 'warm' FROM {numbers}"
    )
    cluster.sql(
        f"INSERT INTO sessions (id, agent_name, sandbox_id) SELECT 'open-' || i, 'a', 'sb' FROM {numbers}"
    )
