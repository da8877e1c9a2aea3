"""R30, R31: a cluster whose nodes are network namespaces: links are cut and healed, nodes are lost, the run goes on.

Engines are simulated (tests/soak/simulated.py); learner, rewards, assembler, driver and every raylet are real.
"""

from __future__ import annotations

import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from raylign.records.ledger_check import check_ledger
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths

from tests.system.role_processes import newest, role_process
from tests.system.tiny_runs import run_settings

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(1800)]

BIN = Path(sys.executable).parent
PORT = 6379
DEADLINE_S = 300
SHORT_CUT_S = 5
QUICK_DEATH = {
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "8",
}
"""A node that is silent for some 10 to 25 seconds is dead to Ray; its defaults wait longer."""


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, timeout=30, capture_output=True)


def eventually(what: Callable[[], bool], about: Callable[[], str]) -> None:
    deadline = time.monotonic() + DEADLINE_S
    while not what():
        assert time.monotonic() < deadline, about()
        time.sleep(0.3)


@dataclass
class Network:
    """Namespaces on one bridge, each with a raylet: as machines on a switch, with one file system between them."""

    name: str
    folder: Path
    env: dict[str, str]
    nodes: dict[str, int] = field(default_factory=dict)  # name -> last part of its address
    raylets: list[subprocess.Popen[bytes]] = field(default_factory=list)

    def space(self, node: str) -> str:
        return f"{self.name}{node}"

    def open(self) -> None:
        ip("netns", "add", self.space("sw"))
        ip("-n", self.space("sw"), "link", "add", "br0", "type", "bridge")
        ip("-n", self.space("sw"), "link", "set", "br0", "up")

    def plug(self, node: str) -> None:
        """A machine without a raylet."""
        self.nodes[node] = number = len(self.nodes) + 1
        here, switch = self.space(node), self.space("sw")
        ip("netns", "add", here)
        ip("-n", here, "link", "set", "lo", "up")
        ip("link", "add", "eth0", "netns", here, "type", "veth", "peer", "name", f"port{number}", "netns", switch)
        ip("-n", switch, "link", "set", f"port{number}", "master", "br0", "up")
        ip("-n", here, "addr", "add", f"10.87.0.{number}/24", "dev", "eth0")
        ip("-n", here, "link", "set", "eth0", "up")

    def link(self, node: str, state: str) -> None:
        """`state`: up or down, at the switch."""
        ip("-n", self.space("sw"), "link", "set", f"port{self.nodes[node]}", state)

    def ray(self, node: str, *, cpus: int, kind: str = "none") -> None:
        """Start a raylet, the head's services beside it on the node `head`."""
        if node not in self.nodes:
            self.plug(node)
        life = f"{node}{len(self.raylets)}"
        part = ["--head", f"--port={PORT}", "--include-dashboard=false"]
        if node != "head":
            part = [f"--address=10.87.0.{self.nodes['head']}:{PORT}"]
        command = [
            BIN / "ray", "start", "--block", *part, f"--node-ip-address=10.87.0.{self.nodes[node]}",
            f"--temp-dir={self.folder / life}", f"--num-cpus={cpus}", f"--labels=kind={kind}",
            "--object-store-memory=150000000",
        ]  # fmt: skip
        with (self.folder / f"{life}.log").open("wb") as log:
            self.raylets.append(self.run(node, command, log))

    def run(self, node: str, command: Sequence[str | Path], log: object) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            ["ip", "netns", "exec", self.space(node), *command],
            env=self.env, stdout=log, stderr=subprocess.STDOUT, cwd=Path(__file__).parents[2],
        )  # type: ignore[call-overload]  # fmt: skip

    def pids(self, node: str) -> set[int]:
        listed = subprocess.run(
            ["ip", "netns", "pids", self.space(node)], check=True, timeout=30, capture_output=True, text=True
        )
        return set(map(int, listed.stdout.split()))

    def kill(self, node: str) -> None:
        """As a machine that loses its power."""
        self.link(node, "down")
        for pid in self.pids(node):
            os.kill(pid, signal.SIGKILL)

    def close(self) -> None:
        for node in self.nodes:
            for pid in self.pids(node):
                os.kill(pid, signal.SIGKILL)
            ip("netns", "del", self.space(node))
        ip("netns", "del", self.space("sw"))
        for raylet in self.raylets:
            raylet.wait(30)


@pytest.fixture
def network() -> Iterator[Network]:
    """Needs the right to make namespaces: skipped, aloud, where there is none."""
    if subprocess.run(["unshare", "-n", "true"], capture_output=True, timeout=30, check=False).returncode:
        pytest.skip("this user may not make network namespaces")
    folder = Path(tempfile.mkdtemp(prefix="rl", dir="/tmp"))
    inherited = {k: v for k, v in os.environ.items() if not k.startswith(("RAY_", "PYTHONDONTWRITE"))}
    token = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": secrets.token_hex(32)}
    made = Network(
        f"rl{os.getpid() % 100000}", folder, inherited | token | QUICK_DEATH | {"RAY_USAGE_STATS_ENABLED": "0"}
    )
    made.open()
    try:
        yield made
    finally:
        made.close()
        shutil.rmtree(folder, ignore_errors=True)


@dataclass
class Driver:
    """The run, on the head's machine."""

    network: Network
    settings: list[str]
    run: RunPaths
    log: Path
    process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        with self.log.open("ab") as file:
            command = [sys.executable, "-m", "tests.soak.simulated", "train", *self.settings]
            self.process = self.network.run("head", command, file)

    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def steps(self, more: int) -> None:
        """So many further steps are told."""
        assert self.process is not None
        wanted = newest(self.run) + more
        eventually(lambda: newest(self.run) >= wanted or self.process.poll() is not None, self.said)  # type: ignore[union-attr]
        assert self.process.poll() is None, self.said()[-6000:]

    def workers(self, count: int) -> None:
        eventually(lambda: read_history(self.run.metrics).latest().get("rollout/workers") == count, self.said)

    def ended(self) -> int:
        assert self.process is not None
        return self.process.wait(DEADLINE_S)


def place_of(network: Network, pid: int | None) -> str:
    """On which node a process runs."""
    return next((node for node in network.nodes if pid in network.pids(node)), "nowhere")


def _a_short_cut_is_no_loss(driver: Driver, node: str) -> None:
    driver.network.link(node, "down")
    time.sleep(SHORT_CUT_S)
    driver.network.link(node, "up")
    driver.steps(5)
    assert "out of the pool" not in driver.said()
    driver.workers(2)


def _a_long_cut_costs_the_node_and_no_step(driver: Driver, node: str) -> None:
    """The other node has room for the worker's successor; the node that comes back finds itself dead, and is."""
    before = driver.network.pids(node)
    driver.network.link(node, "down")
    eventually(lambda: "rollout/1 is out of the pool" in driver.said(), driver.said)
    driver.steps(5)
    driver.workers(2)
    driver.steps(3)
    driver.network.link(node, "up")
    eventually(lambda: not before & driver.network.pids(node), lambda: f"{before} live on: {driver.network.pids(node)}")
    driver.steps(3)


def _a_node_that_joins_is_used_and_one_that_is_lost_is_replaced(driver: Driver, joins: str, lost: str) -> None:
    """Two workers and the reward replica are on the lost one; the third is on the one that has joined."""
    driver.network.ray(joins, cpus=5, kind="serve")
    subprocess.run([BIN / "raylign", "scale", str(driver.run.path), "rollout=3"], check=True, timeout=60)
    driver.workers(3)
    driver.steps(3)
    driver.network.kill(lost)
    driver.steps(5)
    driver.workers(3)
    driver.steps(3)


def _the_learners_node_is_lost(driver: Driver) -> None:
    """Ends resumable; the same command resumes once there is a node again."""
    done = newest(driver.run)
    driver.network.kill("learn")
    assert driver.ended() == 75, driver.said()[-6000:]
    assert "the learners could not be started again" in driver.said().splitlines()[-1], driver.said()[-3000:]
    driver.network.link("learn", "up")
    driver.network.ray("learn", cpus=2, kind="learn")
    time.sleep(5)
    driver.start()
    driver.steps(max(3, done + 3 - newest(driver.run)))
    assert driver.process is not None
    driver.process.send_signal(signal.SIGTERM)
    assert driver.ended() == 76, driver.said()[-6000:]


def test_links_are_cut_and_nodes_are_lost(
    network: Network, tiny_model_dir: Path, questions: Path, tmp_path: Path
) -> None:
    network.ray("head", cpus=0)
    network.ray("learn", cpus=2, kind="learn")
    network.ray("one", cpus=3, kind="serve")
    network.ray("two", cpus=3, kind="serve")
    settings = [
        *run_settings("grpo", tiny_model_dir, questions, tmp_path), "name=spread", "num_steps=100000",
        f"cluster.address=10.87.0.{network.nodes['head']}:{PORT}", "cluster.learner_labels={kind: learn}",
        "cluster.serving_labels={kind: serve}", "rollout.num_workers=2", "rollout.cpus_per_worker=1",
        "rollout.health_timeout_s=15", "sync.timeout_s=60", "rollout.timeout_s=120", "cluster.step_timeout_s=60",
        "cluster.start_timeout_s=60", "checkpoint.every=5", "checkpoint.journal=all", "policy.optim.lr=1e-5",
    ]  # fmt: skip
    run = RunPaths(tmp_path / "spread")
    driver = Driver(network, settings, run, tmp_path / "log")
    driver.start()
    try:
        driver.steps(4)
        places = {log: place_of(network, role_process(run, log)) for log in ("rollout-0", "rollout-1", "policy-0")}
        assert places["policy-0"] == "learn" and {places["rollout-0"], places["rollout-1"]} == {"one", "two"}, places
        first, second = places["rollout-0"], places["rollout-1"]
        _a_short_cut_is_no_loss(driver, second)
        _a_long_cut_costs_the_node_and_no_step(driver, second)
        _a_node_that_joins_is_used_and_one_that_is_lost_is_replaced(driver, joins=second, lost=first)
        _the_learners_node_is_lost(driver)
    finally:
        if driver.process is not None:
            driver.process.kill()
    said = driver.said()
    assert "Traceback" not in said
    report = check_ledger(run.path, max_staleness=0)
    assert report is not None and report.problems == (), report
    assert report.other_samples == 0 and "trained again on the samples that the run had drawn" in said
    steps = [row.step for row in read_history(run.metrics).rows]
    assert steps == list(range(1, len(steps) + 1))
