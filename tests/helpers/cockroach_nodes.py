"""Three nodes of a CockroachDB cluster on this machine, each in a network namespace of its own if that is allowed."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import psycopg

from tests.helpers.servers import free_port

BINARY_VARIABLE = "AGENTDB_TEST_COCKROACH_BINARY"

# Nothing is reported to anybody.
_QUIET = {
    "COCKROACH_SKIP_ENABLING_DIAGNOSTIC_REPORTING": "true",
    "COCKROACH_CRASH_REPORTS": "",
    "COCKROACH_USAGE_REPORT_URL": "",
    "COCKROACH_UPDATE_CHECK_URL": "",
}
_BRIDGE = "agentdbbr"
_NETWORK = "10.213.7"


def has_namespaces() -> bool:
    """Whether this process may make network namespaces; else a partition is a stopped process."""
    if os.geteuid() != 0 or shutil.which("ip") is None:
        return False
    made = (
        subprocess.run(
            ["ip", "netns", "add", "agentdbtry"], capture_output=True
        ).returncode
        == 0
    )
    subprocess.run(["ip", "netns", "del", "agentdbtry"], capture_output=True)
    return made


def until(condition: Callable[[], bool], what: str, seconds: float = 120) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, f"{seconds:g} s passed before {what}"
        time.sleep(0.1)


class Node:
    def __init__(self, cluster: Cluster, number: int) -> None:
        self.cluster, self.number = cluster, number
        self.namespace = f"agentdb{number}" if cluster.in_namespaces else None
        self.host = f"{_NETWORK}.{number}" if self.namespace else "127.0.0.1"
        self.port, self.http_port = (
            (26257, 8080) if self.namespace else (free_port(), free_port())
        )
        self.address = f"{self.host}:{self.port}"
        self.process: subprocess.Popen[bytes] | None = None
        if self.namespace:
            self._wire()

    @property
    def _cable(self) -> str:
        return f"agentdbv{self.number}"

    def _wire(self) -> None:
        inside = ["ip", "-n", str(self.namespace)]
        for command in (
            ["ip", "netns", "add", str(self.namespace)],
            [
                "ip",
                "link",
                "add",
                self._cable,
                "type",
                "veth",
                "peer",
                "name",
                "eth0",
                "netns",
                str(self.namespace),
            ],
            ["ip", "link", "set", self._cable, "master", _BRIDGE, "up"],
            [*inside, "addr", "add", f"{self.host}/24", "dev", "eth0"],
            [*inside, "link", "set", "eth0", "up"],
            [*inside, "link", "set", "lo", "up"],
        ):
            subprocess.run(command, check=True)

    def start(self) -> None:
        within = ["ip", "netns", "exec", self.namespace] if self.namespace else []
        command = [
            *within, str(self.cluster.binary), "start", "--insecure",
            f"--store=path={self.cluster.folder}/node{self.number},ballast-size=0",
            f"--listen-addr={self.address}", f"--advertise-addr={self.address}",
            f"--http-addr={self.host}:{self.http_port}",
            f"--join={','.join(node.address for node in self.cluster.nodes)}",
            f"--locality=region=region{self.number}", "--cache=128MiB", "--max-sql-memory=128MiB",
        ]  # fmt: skip
        with (self.cluster.folder / f"node{self.number}.log").open("ab") as log:
            self.process = subprocess.Popen(
                command,
                env={**os.environ, **_QUIET},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def kill(self) -> None:
        """End it as a crash of its machine would."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: int) -> None:
        assert self.process is not None
        if self.process.poll() is None:
            os.killpg(self.process.pid, number)
        if number != signal.SIGSTOP:
            self.process.wait()

    def cut_off(self) -> None:
        """Let nothing reach it, or come from it."""
        if self.namespace:
            subprocess.run(["ip", "link", "set", self._cable, "down"], check=True)
        else:
            self._signal(signal.SIGSTOP)

    def join_again(self) -> None:
        if self.namespace:
            subprocess.run(["ip", "link", "set", self._cable, "up"], check=True)
        else:
            assert self.process is not None
            os.killpg(self.process.pid, signal.SIGCONT)

    def is_serving(self) -> bool:
        return self.cluster.run("sql", "-e", "SELECT 1", at=self, check=False)

    def remove(self) -> None:
        if self.process is not None:
            self.kill()
        if self.namespace:
            subprocess.run(["ip", "netns", "del", self.namespace], check=False)
            subprocess.run(
                ["ip", "link", "del", self._cable], check=False, capture_output=True
            )


class Cluster:
    """Three nodes, and room for a fourth."""

    def __init__(self, binary: Path) -> None:
        self.binary = binary
        self.folder = Path(tempfile.mkdtemp(prefix="agentdb-nodes-"))
        self.in_namespaces = has_namespaces()
        self.nodes: list[Node] = []

    def __enter__(self) -> Cluster:
        try:
            self._start()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _start(self) -> None:
        if self.in_namespaces:
            subprocess.run(["ip", "link", "add", _BRIDGE, "type", "bridge"], check=True)
            subprocess.run(
                ["ip", "addr", "add", f"{_NETWORK}.254/24", "dev", _BRIDGE], check=True
            )
            subprocess.run(["ip", "link", "set", _BRIDGE, "up"], check=True)
        for number in (1, 2, 3):
            self.nodes.append(Node(self, number))
        for node in self.nodes:
            node.start()
        until(lambda: self.run("init", check=False), "the cluster was made")
        until(lambda: all(node.is_serving() for node in self.nodes), "all nodes serve")
        self.sql("SET CLUSTER SETTING diagnostics.reporting.enabled = false")
        self.wait_for_copies()

    def wait_for_copies(self) -> None:
        """Wait until each range has three copies: before that a cluster does not survive the loss of any node."""
        missing = "SELECT count(*) FROM crdb_internal.ranges_no_leases WHERE array_length(replicas, 1) < 3"
        with psycopg.connect(
            f"postgresql://root@{self.nodes[0].address}/defaultdb", autocommit=True
        ) as connection:
            until(
                lambda: connection.execute(missing).fetchall() == [(0,)],
                "each range has three copies",
                seconds=300,
            )

    def __exit__(self, *error: object) -> None:
        for node in self.nodes:
            node.remove()
        if self.in_namespaces:
            subprocess.run(["ip", "link", "del", _BRIDGE], check=False)
        shutil.rmtree(self.folder, ignore_errors=True)

    def add(self) -> Node:
        self.nodes.append(node := Node(self, len(self.nodes) + 1))
        node.start()
        until(node.is_serving, "the new node serves")
        return node

    def run(self, *arguments: str, at: Node | None = None, check: bool = True) -> bool:
        """Run one of the program's commands against a node, the first one unless told otherwise."""
        host = (at or self.nodes[0]).address
        done = subprocess.run(
            [str(self.binary), *arguments, "--insecure", f"--host={host}"],
            env={**os.environ, **_QUIET}, capture_output=True, text=True, timeout=180,
        )  # fmt: skip
        if check and done.returncode:
            raise RuntimeError(done.stdout + done.stderr)
        return done.returncode == 0

    def sql(self, statement: str) -> None:
        self.run("sql", "-e", statement)

    def url(self, *, first: Node | None = None) -> str:
        """The URL of all nodes; the first one is tried first."""
        nodes = sorted(self.nodes[:3], key=lambda node: node is not first)
        options = "sslmode=disable&call_timeout=5&connect_timeout=2"
        return f"cockroachdb://root@{','.join(node.address for node in nodes)}/defaultdb?{options}"
