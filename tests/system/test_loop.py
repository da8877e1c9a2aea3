"""`raylign loop` on real engines: killed while it trains, gone on with, released, told of nothing new, and of more."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from raylign.evals.registry import Registry
from raylign.feedback.build_result import read_result
from raylign.records.manifest import read_manifest
from raylign.records.nights import Nights
from raylign.records.run_folder import RunPaths
from raylign.records.suite_changes import read_changes

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.thorough, pytest.mark.timeout(900)]

PATIENCE_S = 400
COMMAND = [sys.executable, "-m", "raylign.app.cli", "loop", "--config", "loop.yaml"]


def choice(n: int) -> str:
    turn = {"role": "user", "content": f"How do I reset pump number {7 * n} in building {n}?"}
    answers = {"response_a": f"Hold the button of pump {n} for ten seconds.", "response_b": f"Buy a new pump {n}."}
    row = {"event_id": f"c{n}", "kind": "side_by_side", "prompt": [turn], **answers, "choice": "a", "user_id": f"u{n}"}
    return json.dumps(row) + "\n"


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, tiny_model_dir: Path) -> Path:
    """A folder with a log, a model, a suite, a policy and a loop."""
    folder = tmp_path_factory.mktemp("desk")
    shutil.copytree(tiny_model_dir, folder / "start")
    (folder / "log.jsonl").write_text("".join(choice(n) for n in range(24)))
    (folder / "texts.jsonl").write_text('{"text": "A river runs to the sea."}\n{"text": "The train is late again."}\n')
    (folder / "known.yaml").write_text("kind: text_loss\nprompts: texts.jsonl\n")
    (folder / "gate.yaml").write_text("conditions: [{suite: known.yaml, must: at_least, value: -100}]\n")
    settings = [
        "+experiment=dpo_tiny_cpu", "policy.model={current}", "num_steps=0", "num_epochs=2",
        "algorithm.pairs_per_update=4", "policy.optim.lr=1e-3", "checkpoint.every=1", "tracking.wandb=disabled",
        f"evaluation.suites=[{folder / 'known.yaml'}]",
    ]  # fmt: skip
    training = {"name": "policy", "kind": "pairs", "rows": "new", "settings": settings}
    loop = {"logs": ["log.jsonl"], "build": ["split.eval=0", "split.test=0"], "start": "start", "train": [training],
            "evaluate": ["known.yaml"], "gate": "gate.yaml", "promote": True}  # fmt: skip
    (folder / "loop.yaml").write_text(yaml.safe_dump(loop))
    return folder


def again(folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(COMMAND, cwd=folder, capture_output=True, text=True, timeout=PATIENCE_S, check=False)


def test_the_chain_closes_night_after_night(desk: Path):
    first = subprocess.Popen(COMMAND, cwd=desk, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    saved = desk / "loop" / "runs" / "night-0001-policy" / "checkpoints" / "LATEST"
    deadline = time.monotonic() + PATIENCE_S
    while not saved.exists() and time.monotonic() < deadline and first.poll() is None:
        time.sleep(0.1)
    first.send_signal(signal.SIGSTOP)  # it holds the folder, and cannot come to the end of its training meanwhile
    second = again(desk)
    assert second.returncode == 2 and "in use by process" in second.stderr, second.stdout + second.stderr
    first.send_signal(signal.SIGKILL)
    first.wait(timeout=60)
    assert saved.exists()

    gone_on = again(desk)
    assert gone_on.returncode == 0, gone_on.stdout + gone_on.stderr
    assert "goes on after build" in gone_on.stdout
    run = desk / "loop" / "runs" / "night-0001-policy"
    starts = read_manifest(run / "manifest.json").starts
    assert len(starts) == 2 and starts[1].resumed_step
    ledgers = {made.kind: made.ledger for made in read_result(desk / "loop" / "night-0001" / "build").produced
               if made.split == "train"}  # fmt: skip
    assert {start.data_ledgers["data.train"] for start in starts} == {ledgers["pairs"]}
    (export,) = (run / "export").glob("step-*")
    assert ledgers["pairs"] in (export / "README.md").read_text()
    release = Registry(desk / "registry").current("production")
    assert release is not None and Path(release.model) == export
    assert (desk / "loop" / "night-0001" / "eval.html").is_file()
    [change] = read_changes(RunPaths(run).suites)
    assert (change.suite, change.prompts) == ("known", 2) and change.gain != 0
    assert "no suite was asked" in gone_on.stdout  # the run's own answers, before and after it, are the night's

    nothing = again(desk)
    assert nothing.returncode == 0 and "nothing new since night 1" in nothing.stdout

    with (desk / "log.jsonl").open("a") as log:
        log.writelines(choice(n) for n in range(24, 32))
    more = again(desk)
    assert more.returncode == 0, more.stdout + more.stderr
    assert "8 new rows of pairs; 24 that the current model was trained on are left out" in more.stdout
    later = Registry(desk / "registry").current("production")
    assert later is not None and "night-0002-policy" in later.model
    assert "resolved.yaml" in {path.name for path in (desk / "loop" / "runs" / "night-0002-policy").iterdir()}
    assert str(export) in (desk / "loop" / "runs" / "night-0002-policy" / "resolved.yaml").read_text()
    assert [night.outcome != "" for night in Nights(desk / "loop").all()] == [True, True]
