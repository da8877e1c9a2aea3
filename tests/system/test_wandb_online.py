"""W&B online against a server of its protocol on this machine (openwandb): live run, resume, sync, alert, group."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from raylign.records.metrics_log import read_history

from tests.system.test_wandb import STOPPED_RUN
from tests.system.wandb_board import KEY, Board, local_board
from tests.system.wandb_files import ending

pytestmark = pytest.mark.system

RUN = """
import os, sys
from pathlib import Path
from raylign.conf.schema import *
from raylign.records.run_folder import RunPaths
from raylign.records.sinks import Artifact
from raylign.records.tracking import Tracker
folder, first, last = Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3])
config = RunConfig(algorithm=AlgorithmConfig(name="ppo"))
config.tracking = TrackingConfig(project="toy", tags=["nightly"], group="chain", artifacts=True)
said = []
tracker = Tracker(RunPaths(folder), config, resumed_step=first - 1 if first > 1 else None, environ=os.environ,
                  say=said.append)
given = [Artifact(n, "dataset", folder / n, "", output=False) for n in ("train.jsonl", "eval.jsonl")]
tracker.log_artifacts(given)  # this server has none: said once, and no step waits for the second
for step in range(first, last + 1):
    tracker.log(step, {"reward/mean": step / 10, "policy/kl": float("nan") if step == 3 else 0.5})
tracker.finish(exit_code=0, deadline_s=60.0)
print("\\n".join(said))
"""


@pytest.fixture(scope="module")
def board(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Board]:
    with local_board(tmp_path_factory.mktemp("board")) as opened:
        yield opened


def environment(home: Path, **more: str) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("WANDB_") and k != "NETRC"}
    return {**kept, "HOME": str(home), **more}


def logged_in(home: Path, url: str) -> dict[str, str]:
    """Exactly what `wandb login --host` leaves, and no variable."""
    (home / ".config" / "wandb").mkdir(parents=True, exist_ok=True)
    (home / ".config" / "wandb" / "settings").write_text(f"[default]\nbase_url = {url}\n")
    (home / ".netrc").write_text(f"machine {url.removeprefix('http://')}\n  login user\n  password {KEY}\n")
    (home / ".netrc").chmod(0o600)
    return environment(home)


def track(folder: Path, first: int, last: int, env: dict[str, str]) -> str:
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-c", RUN, str(folder), str(first), str(last)],
        capture_output=True,
        text=True,
        timeout=200,
        env=env,
        cwd=folder,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0 and "stopped" not in done.stderr, done.stderr
    return done.stdout


def test_a_live_run_its_resume_and_what_is_shown(board: Board, tmp_path: Path) -> None:
    env, folder = logged_in(tmp_path, board.url), tmp_path / "run"
    said = track(folder, 1, 4, env)
    run = (folder / "wandb_run_id").read_text()
    address = (folder / "wandb_address").read_text().strip()
    assert f"online ({board.url.removeprefix('http://')}, with the key of {tmp_path}/.netrc)" in said
    assert f"Weights & Biases: {address}" in said and address == f"{board.url}/default/toy/runs/{run}"
    assert said.count("policy/kl is NaN or infinite") == 1
    track(folder, 4, 6, env)  # step 4 is done again after a checkpoint at 3
    assert board.steps(run, "train/global_step") == [1, 2, 3, 4, 4, 5, 6]
    assert board.steps(run, "reward/mean")[-1] == 0.6
    ((name, state, tags, notes, config),) = board.rows(
        "select display_name, state, tags_json, notes, config_json from runs where run_id = ?", run
    )
    assert (name, state, json.loads(str(tags)), notes or "") == ("run", "finished", ["nightly"], "")
    explained = json.loads(str(config))["metrics_explained"]["value"]
    assert explained == f"{address}/files/metrics.md"
    assert board.rows("select 1 from files where name = 'metrics.md'")
    assert KEY not in str(config)


def test_a_run_whose_wandb_process_dies_arrives_whole_and_ends(board: Board, tmp_path: Path) -> None:
    (folder := tmp_path / "stopped").mkdir()
    given = [sys.executable, "-c", STOPPED_RUN, str(folder), "2"]
    env = logged_in(tmp_path, board.url)
    subprocess.run(given, check=True, timeout=250, env=env, cwd=folder, stdin=subprocess.DEVNULL, capture_output=True)
    run = (folder / "wandb_run_id").read_text()
    assert {step: values["reward/mean"] for step, values in board.curves(run).items()} == {
        step: step / 3 for step in range(1, 7)
    }
    assert board.rows("select state from runs where run_id = ?", run) != [("running",)]


def test_an_offline_run_is_uploaded_by_wandb_sync(board: Board, tmp_path: Path) -> None:
    env, folder = environment(tmp_path), tmp_path / "apart"
    said = track(folder, 1, 2, env)
    assert "offline (no WANDB_API_KEY and no `wandb login` for api.wandb.ai)" in said
    place = next(line for line in said.splitlines() if "offline-run" in line).removeprefix("Weights & Biases: ")
    upload(board, tmp_path, Path(place))
    run = (folder / "wandb_run_id").read_text()
    assert board.steps(run, "reward/mean") == [0.1, 0.2]


def test_a_server_without_saved_views_is_said_to_have_none(board: Board, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "raylign", "wandb", "workspace", "--project", "toy"],
        capture_output=True,
        text=True,
        timeout=200,
        env={**environment(tmp_path), "WANDB_BASE_URL": board.url, "WANDB_API_KEY": KEY},
        cwd=tmp_path,
    )
    assert done.returncode == 2 and "Traceback" not in done.stderr and KEY not in done.stderr
    assert done.stderr.startswith(f"{board.url} did not take the workspace for project toy (")
    assert done.stderr.endswith("; a server other than W&B's may have no saved views at all\n")


@pytest.mark.timeout(600)
@pytest.mark.parametrize("mode", ["online", pytest.param("offline", marks=pytest.mark.thorough)])
def test_a_whole_run_is_on_the_board_as_in_its_metrics_file(
    board: Board, tiny_model_dir: Path, tmp_path: Path, mode: str
) -> None:
    """W&B's process carries the mark by which Ray's processes are ended: it must be done by then, all numbers sent."""
    env = logged_in(tmp_path, board.url) | {"WANDB_MODE": mode}
    name = f"whole-{mode}"
    rows = tmp_path / "rows.jsonl"
    answer = {"role": "assistant", "content": "a river"}
    texts = [{"messages": [{"role": "user", "content": f"What is {i}?"}, answer]} for i in range(40)]
    rows.write_text("".join(json.dumps(row) + "\n" for row in texts))
    settings = ["+experiment=sft_tiny_cpu", f"policy.model={tiny_model_dir}", f"data.train={rows}", f"name={name}"]
    settings += [f"run_root={tmp_path}", "num_steps=2", "policy.num_ranks=1", "tracking.project=toy"]
    done = subprocess.run(
        [sys.executable, "-m", "raylign.app.cli", "train", *settings],
        capture_output=True,
        text=True,
        timeout=400,
        env=env,
        cwd=tmp_path,
        stdin=subprocess.DEVNULL,
    )
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr and "ConnectionResetError" not in done.stderr
    folder = tmp_path / name
    (life,) = (folder / "wandb").glob("*run-*")
    if mode == "online":
        assert done.stderr.count((folder / "wandb_address").read_text().strip()) == 2, "when it is open and at the end"
    else:
        upload(board, tmp_path, life)
    assert ending(life) == (0, False)
    run = (folder / "wandb_run_id").read_text()
    assert board.rows("select display_name, state from runs where run_id = ?", run) == [(name, "finished")]
    written = read_history(folder / "metrics.jsonl").rows
    assert [row.step for row in written] == [1, 2]
    assert board.curves(run) == {
        row.step: {k: v for k, v in row.values.items() if v is not None} for row in written
    }  # every number under its own name
    assert board.rows("select 1 from system_metrics where run_id = ? limit 1", run), "CPU and memory are measured"


def upload(board: Board, home: Path, life: Path) -> None:
    subprocess.run(
        [sys.executable, "-m", "wandb", "sync", str(life)],
        env={**environment(home), "WANDB_BASE_URL": board.url, "WANDB_API_KEY": KEY},
        check=True,
        capture_output=True,
        timeout=200,
    )
