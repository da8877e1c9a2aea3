"""A job through a real cluster's job server: the folder arrives, workers import from it, log and exit come back."""

from __future__ import annotations

import http.client
import json
import os
import re
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil
import pytest
from raylign.conf.errors import Preempted
from raylign.evals.gate import Verdict
from raylign.records.manifest import read_manifest
from raylign.records.metrics_log import read_history
from raylign.records.nights import Nights
from raylign.records.run_folder import RunPaths
from raylign.records.samples import read_samples
from raylign.records.wandb_sink import REOPENED

from tests.free_port import free_port
from tests.system.tiny_runs import question_rows
from tests.system.wandb_files import drawn, ending

START_TIMEOUT_S = 120
JOB_TIMEOUT_S = 240
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Head:
    """A cluster of three nodes, all of this machine on loopback addresses, behind a token."""

    gcs_port: int
    dashboard_port: int
    env: dict[str, str]

    @property
    def job_server(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"


@pytest.fixture(scope="module")
def head() -> Iterator[Head]:
    folder = Path(tempfile.mkdtemp(prefix="raylign-", dir="/tmp"))
    token = folder / "token"
    token.touch(mode=0o600)
    token.write_text(secrets.token_hex(32))
    inherited = {k: v for k, v in os.environ.items() if not k.startswith("RAY_") and k != "PYTHONPATH"}
    env = inherited | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN_PATH": str(token),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PATH": f"{BIN}{os.pathsep}{inherited['PATH']}",
    }
    live = Head(free_port(), free_port(), env)
    first = ["--head", f"--port={live.gcs_port}", f"--dashboard-port={live.dashboard_port}"]
    first += ["--dashboard-host=127.0.0.1", "--include-dashboard=true"]
    later = [f"--address=127.0.0.2:{live.gcs_port}"]
    nodes = [start_node(folder / "2", first, env)]
    try:
        wait_for(live.dashboard_port, nodes[0], folder / "2.log")
        nodes += [start_node(folder / name, later, env) for name in ("3", "4")]
        yield live
    finally:
        for process in reversed(nodes):
            stop(process)
        shutil.rmtree(folder, ignore_errors=True)


def start_node(folder: Path, part: list[str], env: dict[str, str]) -> subprocess.Popen[bytes]:
    """A raylet on 127.0.0.<the folder's name>. Each has a folder of its own, as on machines of their own: an agent
    clears what its node no longer uses."""
    where = [f"--node-ip-address=127.0.0.{folder.name}", f"--temp-dir={folder}"]
    size = ["--num-cpus=1", "--object-store-memory=200000000", f"--dashboard-agent-listen-port={free_port()}"]
    command = [str(BIN / "ray"), "start", "--block", *part, *where, *size]
    with folder.with_suffix(".log").open("wb") as log:
        return subprocess.Popen(command, env=env, stdout=log, stderr=subprocess.STDOUT, start_new_session=True)


def wait_for(port: int, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline:
        assert process.poll() is None, log.read_text()
        with suppress(OSError, http.client.HTTPException):  # a port that is open is not yet a server that answers
            asked = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
            asked.request("GET", "/api/version")
            asked.getresponse()
            return
        time.sleep(0.2)
    raise TimeoutError(f"the job server did not answer at port {port}: {log.read_text()}")


def stop(process: subprocess.Popen[bytes]) -> None:
    """The head and everything below it, by process id."""
    family = [psutil.Process(process.pid), *psutil.Process(process.pid).children(recursive=True)]
    process.send_signal(signal.SIGTERM)
    _, alive = psutil.wait_procs(family, timeout=15)
    for survivor in alive:
        survivor.kill()
    process.wait(timeout=15)


PROJECT = Path(__file__).resolve().parents[2]
SUBMIT = (
    "import logging, sys; from pathlib import Path; from raylign.cluster.submit import submit;"
    "logging.basicConfig(level=logging.INFO, format='%(message)s');"
    "sys.exit(submit(sys.argv[3:], address=sys.argv[1], working_dir=Path(sys.argv[2]), wait=True,"
    " entrypoint=('python', 'job.py')))"
)
JOB = """
import sys
import raylign.data
from raylign.cluster.session import session
from raylign.conf.schema import ClusterConfig
import ray

def where():
    import raylign.data
    return raylign.data.__file__

print("arguments", sys.argv[1:])
with session(ClusterConfig(), num_cpus=1) as live:  # the default address: a job joins its own cluster
    print("nodes", 1 <= len(live.nodes()) <= 3, "local", live.local)
    there = ray.get(ray.remote(where).remote(), timeout=60)
print("same", there == raylign.data.__file__, "shipped", "py_modules_files" in there)
sys.exit(75)
"""


@pytest.fixture(scope="module")
def working_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's folder: a driver, and modules named like the parts of this project."""
    folder = tmp_path_factory.mktemp("folder")
    (folder / "job.py").write_text(JOB)
    take_our_names(folder)
    (folder / "runs").mkdir()
    (folder / "runs" / "large.bin").write_bytes(b"0" * 1024)
    return folder


def take_our_names(folder: Path) -> None:
    """Modules and packages of a user's own that are named like ours; importing one of them is an error."""
    for name in ("reward", "conf", "rollout", "cluster"):
        (folder / f"{name}.py").write_text(f"raise RuntimeError('{name}.py of the working folder was imported')\n")
    for name in ("data", "trainer", "records", "app", "feedback"):
        (folder / name).mkdir()
        (folder / name / "__init__.py").write_text(
            f"raise RuntimeError('{name}/ of the working folder was imported')\n"
        )


def run_submit(head: Head, working_dir: Path, env: dict[str, str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", SUBMIT, head.job_server, str(working_dir), "run.seed=1", "run.name=a b"],
        cwd=PROJECT, env=env, capture_output=True, text=True, timeout=JOB_TIMEOUT_S,
    )  # fmt: skip


def test_a_job_runs_from_the_folder_that_was_sent(head: Head, working_dir: Path) -> None:
    done = run_submit(head, working_dir, head.env)
    log = done.stdout + done.stderr
    assert "arguments ['run.seed=1', 'run.name=a b']" in log, log
    assert "nodes True local False" in log, log
    assert "same True shipped True" in log, log
    assert re.search(r"ray job logs --address http://127\.0\.0\.1:\d+ --follow raysubmit_\w+", log), log
    assert done.returncode == 75, log  # the run's own exit code


def test_a_job_without_the_token_is_refused(head: Head, tmp_path: Path) -> None:
    token, empty = tmp_path / "token", tmp_path / "empty"
    token.write_text(secrets.token_hex(32))
    empty.mkdir()
    there = ["policy.model=/cluster/model", "data.train=/cluster/rows.jsonl", "run_root=/cluster/runs"]
    done = subprocess.run(
        [str(BIN / "raylign"), "submit", "+experiment=sft_tiny_cpu", *there],
        cwd=empty, capture_output=True, text=True, timeout=JOB_TIMEOUT_S,
        env=head.env | {"RAY_AUTH_TOKEN_PATH": str(token), "RAY_API_SERVER_ADDRESS": head.job_server},
    )  # fmt: skip
    assert done.returncode == 2 and done.stdout == "", done
    (sentence,) = done.stderr.splitlines()
    assert sentence.startswith(f"RAY_API_SERVER_ADDRESS={head.job_server}: the job server refused this process ("), done
    assert sentence.endswith("of its file in RAY_AUTH_TOKEN_PATH") and token.read_text() not in sentence, sentence


TRACKED_JOB = """
import os, signal, sys, time
from pathlib import Path
from raylign.conf.schema import AlgorithmConfig, RunConfig
from raylign.records.run_folder import RunPaths
from raylign.records.tracking import Tracker

folder, stopped = Path(sys.argv[1]), []
signal.signal(signal.SIGTERM, lambda *_: stopped.append(1))
tracker = Tracker(RunPaths(folder), RunConfig(algorithm=AlgorithmConfig(name="ppo")), resumed_step=None, environ={})
while not tracker.where:
    time.sleep(0.05)
step = 0
while not stopped:
    step += 1
    tracker.log(step, {"reward/mean": step / 10})
    time.sleep(0.2)
time.sleep(2.0)  # a run finishes its step and saves
tracker.log(step + 1, {"reward/mean": (step + 1) / 10})
tracker.finish(exit_code=76, deadline_s=200.0)
sys.exit(76)
"""


@pytest.mark.system
def test_a_stopped_job_has_every_step_and_its_end_on_wandb(head: Head, tmp_path: Path) -> None:
    """`ray job stop` signals W&B's process together with the driver."""
    (sent := tmp_path / "sent").mkdir()
    (sent / "job.py").write_text(TRACKED_JOB)
    run = RunPaths(tmp_path / "run")
    run.path.mkdir()
    given = [sys.executable, "-c", SUBMIT, head.job_server, str(sent), str(run.path)]
    with subprocess.Popen(given, cwd=PROJECT, env=head.env, stderr=subprocess.PIPE, text=True) as submitted:
        assert submitted.stderr is not None
        job = next(found[1] for line in submitted.stderr if (found := re.match(r"job (\w+) is submitted", line)))
        deadline = time.monotonic() + JOB_TIMEOUT_S
        while not run.metrics.exists() or len(run.metrics.read_text().splitlines()) < 5:
            assert time.monotonic() < deadline and submitted.poll() is None
            time.sleep(0.2)
        stop_it = [str(BIN / "ray"), "job", "stop", "--address", head.job_server, job]
        subprocess.run(stop_it, env=head.env, check=True, capture_output=True, timeout=JOB_TIMEOUT_S)
        told = submitted.stderr.read()
    assert REOPENED.partition("%s")[0] in told and "stopped (" not in told, told
    steps = [row.step for row in read_history(run.metrics).rows]
    assert len(steps) > 5 and sorted(drawn(run.path)) == steps
    *_, life = sorted((run.path / "wandb").glob("offline-run-*"))
    assert ending(life) == (Preempted.exit_code, True)


TRAIN_TIMEOUT_S = 600


@pytest.mark.system
@pytest.mark.timeout(TRAIN_TIMEOUT_S + 60)
def test_a_first_day(head: Head, tiny_model_dir: Path, tmp_path: Path) -> None:
    """examples/first_day.sh as it stands, in an empty folder: submitted, watched, stopped, resumed, reported, asked."""
    folder, shared = tmp_path / "mine", tmp_path / "shared"
    folder.mkdir()
    shared.mkdir()
    script = PROJECT / "examples" / "first_day.sh"
    env = head.env | {"RAY_API_SERVER_ADDRESS": head.job_server}
    done = subprocess.run(
        ["bash", str(script), str(tiny_model_dir), str(shared)],
        cwd=folder, env=env, capture_output=True, text=True, timeout=TRAIN_TIMEOUT_S,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode == 0 and "Traceback" not in told, told
    run = RunPaths(shared / "runs" / "first-day")
    first, second = read_manifest(run.manifest).starts
    (stopped,) = map(int, re.findall(r"^resuming from step (\d+)$", told, re.MULTILINE))
    assert second.resumed_step == stopped >= 2 and first.resumed_step is None
    lines = [json.loads(line)["step"] for line in run.metrics.read_text().splitlines()]
    assert lines == list(range(1, stopped + 4))  # every step once, over stop and resubmission

    # What is the user's own was used: the file's function on the file's columns, the callback, all of it on record.
    for row in read_samples(run.samples_file(stopped + 3)):
        wish = 20 + int(re.findall(r"\d+", row.prompt)[-1])
        assert row.reward == pytest.approx(max(0.0, 1 - abs(len(row.response) - wish) / wish), abs=1e-6)
    assert {"reward.functions.close_to_wish/mine.py", "callbacks.mine.py", "data.train"} <= second.inputs.keys()

    # W&B has every step of both lives, and how each ended: `ray job stop` signals its process together with the driver.
    assert sorted(drawn(run.path)) == lines
    *_, stopped_life, last_life = sorted((run.path / "wandb").glob("offline-run-*"))
    assert ending(stopped_life) == (Preempted.exit_code, True) and ending(last_life) == (0, False)

    # What a person could follow: the job's id, roles on several nodes, steps, the exit code; and no secret.
    assert re.search(r"^starting policy 2, reference 1, reward 1, rollout 2 on [23] nodes$", told, re.MULTILINE), told
    assert {"policy", "reference", "reward", "rollout"} <= set(re.findall(r"^(\w+) is ready after", told, re.MULTILINE))
    assert "first-day: training" in told and re.search(r"^step 2/500  reward ", told, re.MULTILINE), told
    assert re.search(r"^job raysubmit_\w+ ended with exit code 0$", told, re.MULTILINE), told
    assert run.report.is_file() and told.splitlines()[-1].strip()  # the last word is the model's
    token = Path(head.env["RAY_AUTH_TOKEN_PATH"]).read_text()
    assert token not in told and not any(token in p.read_text() for p in (run.manifest, run.resolved, run.overrides))
    assert not (folder / "runs").exists()


OWN_ALGORITHM = """
from dataclasses import dataclass, replace
import torch
from dpop import DPOP, DPOPConfig
from raylign.trainer.algorithms.base import MetricSum

@dataclass(frozen=True)
class Marked(DPOP):
    config: DPOPConfig

    def loss(self, outputs, batch, denominators):
        done = super().loss(outputs, batch, denominators)
        mark = MetricSum(torch.tensor(2 * self.config.positive_weight), torch.tensor(2.0))
        return replace(done, metrics={**done.metrics, "mark": mark})
"""


@pytest.mark.system
@pytest.mark.timeout(TRAIN_TIMEOUT_S + 60)
def test_an_algorithm_of_ones_own_in_a_submitted_job(head: Head, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Two files that no other machine has, one importing the other: both reach the ranks and are on record."""
    folder = tmp_path / "mine"
    folder.mkdir()
    take_our_names(folder)
    shutil.copy(PROJECT / "examples" / "dpop.py", folder)
    (folder / "marked.py").write_text(OWN_ALGORITHM)
    pairs = ({"prompt": f"What is {i}?", "chosen": f"A number, {i}.", "rejected": "Who knows."} for i in range(32))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    settings = ["+experiment=dpo_tiny_cpu", "algorithm=marked.py:Marked", "algorithm.positive_weight=7", "num_steps=1"]
    settings += [f"policy.model={tiny_model_dir}", "policy.num_ranks=2", "data.train=pairs.jsonl", "name=own"]
    settings += ["tracking.wandb=disabled", f"run_root={tmp_path / 'runs'}"]
    done = subprocess.run(
        [str(BIN / "raylign"), "submit", *settings], cwd=folder, capture_output=True, text=True,
        env=head.env | {"RAY_API_SERVER_ADDRESS": head.job_server}, timeout=TRAIN_TIMEOUT_S,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode == 0 and "Traceback" not in told, told
    run = RunPaths(tmp_path / "runs" / "own")
    (step,) = read_history(run.metrics).rows
    assert step.values["train/mark"] == 7.0
    assert {"algorithm/marked.py", "algorithm/dpop.py"} <= read_manifest(run.manifest).starts[-1].inputs.keys()


@pytest.mark.system
@pytest.mark.thorough
@pytest.mark.timeout(TRAIN_TIMEOUT_S + 60)
def test_the_readme_trains_on_a_running_cluster(head: Head, tiny_model_dir: Path, tmp_path: Path) -> None:
    """Its `ray job submit` as it stands, but for the place of the cluster and of the disk the machines share."""
    folder, shared = tmp_path / "folder", tmp_path / "shared"
    folder.mkdir()
    take_our_names(folder)
    shutil.copytree(tiny_model_dir, shared / "my-model")
    (shared / "prompts.jsonl").write_text(question_rows(16))
    (block,) = re.findall(r"^```sh cluster\n(.*?)^```$", (PROJECT / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    script = block.replace("http://127.0.0.1:8265", head.job_server).replace("/shared", str(shared))
    assert "ray job submit --working-dir . -- raylign train" in script
    done = subprocess.run(
        ["bash", "-ec", script], cwd=folder, env=head.env, capture_output=True, text=True, timeout=TRAIN_TIMEOUT_S
    )
    log = done.stdout + done.stderr
    assert done.returncode == 0 and "succeeded" in log, log
    run = RunPaths(shared / "runs" / "my-job")
    assert [row.step for row in read_history(run.metrics).rows] == [1]
    assert run.report.is_file() and (run.export / "step-1" / "model.safetensors").is_file()
    assert not (folder / "runs").exists()


@pytest.mark.system
@pytest.mark.thorough
@pytest.mark.timeout(TRAIN_TIMEOUT_S + 60)
def test_a_night_of_a_loop_in_a_submitted_job(head: Head, tiny_model_dir: Path, tmp_path: Path) -> None:
    """The folder goes along; what the night leaves lies on the shared disk; the exit code is the gate's."""
    folder, shared = tmp_path / "desk", tmp_path / "shared"
    folder.mkdir()
    take_our_names(folder)
    rows = (
        {"kind": "side_by_side", "event_id": f"e{i}", "user_id": f"u{i}", "choice": "a", "response_a": f"Number {i}.",
         "response_b": "Who knows.", "prompt": [{"role": "user", "content": f"What is {word} and number {7 * i}?"}]}
        for i, word in enumerate(("rain", "steel", "a train", "tea", "the moon", "a river", "bread", "a fox"))
    )  # fmt: skip
    (folder / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (folder / "texts.jsonl").write_text('{"text": "A river runs to the sea."}\n')
    (folder / "known.yaml").write_text("kind: text_loss\nprompts: texts.jsonl\n")
    (folder / "gate.yaml").write_text("conditions: [{suite: known.yaml, must: at_least, value: 100}]\n")
    settings = ["+experiment=dpo_tiny_cpu", "policy.model={current}", "num_steps=1", "tracking.wandb=disabled"]
    loop = {"logs": ["log.jsonl"], "build": ["split.eval=0", "split.test=0"], "start": str(tiny_model_dir),
            "folder": str(shared / "loop"), "registry": str(shared / "registry"), "gate": "gate.yaml",
            "train": [{"name": "policy", "kind": "pairs", "settings": settings}]}  # fmt: skip
    (folder / "loop.yaml").write_text(json.dumps(loop))
    done = subprocess.run(
        [str(BIN / "raylign"), "submit", "--loop", "loop.yaml"], cwd=folder, capture_output=True, text=True,
        env=head.env | {"RAY_API_SERVER_ADDRESS": head.job_server}, timeout=TRAIN_TIMEOUT_S,
    )  # fmt: skip
    told = done.stdout + done.stderr
    assert done.returncode in (Verdict.FAILED.value, Verdict.NOT_ENOUGH.value) and "Traceback" not in told, told
    (night,) = Nights(shared / "loop").all()
    assert [stage.name for stage in night.stages] == ["build", "train policy", "gate"], told
    assert night.outcome and night.outcome in told
    assert not (folder / "loop").exists()
