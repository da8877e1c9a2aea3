"""What a mistake or a death looks like to the person who started the run: a sentence, an exit code, a way on."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shlex
import signal
import threading
import time
from io import StringIO
from pathlib import Path

import psutil
import pytest
from raylign.app.cli import app, run_command
from raylign.app.configuration import compose
from raylign.app.main import run
from raylign.cluster.leftovers import marked_processes
from raylign.cluster.session import Session
from raylign.data.sample_model import tiny_model
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunFolder, RunPaths
from rich.console import Console

from tests.system.tiny_runs import run_settings

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

DEADLINE_S = 500.0


@pytest.fixture
def settings(tiny_model_dir: Path, questions: Path, tmp_path: Path) -> list[str]:
    """A run that would work."""
    return [*run_settings("rloo", tiny_model_dir, questions, tmp_path / "runs"), "num_steps=2", "name=mine"]


def refused(capsys: pytest.CaptureFixture[str], settings: list[str]) -> str:
    """What `raylign train` says when it refuses. Ray is not started: none of these gets that far.

    Fork servers may have been started by then, and are gone.
    """
    others = set(psutil.Process().children(recursive=True))
    code = run_command(lambda: app(["train", *settings]))
    told = capsys.readouterr()
    assert set(psutil.Process().children(recursive=True)) <= others, told.err
    assert code == 2, told.err
    assert "Traceback" not in told.err and told.out == ""
    return told.err


def ended(capsys: pytest.CaptureFixture[str], settings: list[str], ray_session: Session, *, code: int) -> str:
    """The same within a Ray that is already up."""
    console = Console(file=StringIO())
    found = run_command(lambda: run(compose(settings), console=console, ray_session=ray_session))
    told = capsys.readouterr().err
    assert found == code, told
    assert "Traceback" not in told
    return told


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ("rollout.num_worker=2", ("rollout.num_worker", "did you mean rollout.num_workers?")),
        ("algorithm=gpro", ("algorithm=gpro", "did you mean grpo?")),
        ("policy.model=/nowhere/model", ("policy.model=/nowhere/model", "no such folder", "give a Hugging Face")),
        ("policy.model={empty}", ("policy.model={empty}", "no config.json")),
        ("data.train=/nowhere/rows.jsonl", ("data.train=/nowhere/rows.jsonl", "no such file or folder")),
        ("rollout.max_model_len=100", ("rollout.max_model_len=100", "data.max_prompt_tokens=96", "set it to 112")),
        ("policy.gpus_per_rank=1", ("policy.gpus_per_rank=1", "cluster.device=cpu", "cluster.device=cuda")),
        ("name=a/b", ("name='a/b'", "A-Z a-z 0-9")),
    ],
)
def test_settings_are_refused_with_key_value_and_fix(
    given: str, words: tuple[str, ...], settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty := tmp_path / "empty").mkdir()
    told = refused(capsys, [*settings, given.format(empty=empty)])
    assert all(word.format(empty=empty) in told for word in words), told
    assert not (tmp_path / "runs").exists()


def test_a_run_folder_in_use_is_refused(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder.open(tmp_path / "runs", "mine", resume=False):
        told = refused(capsys, settings)
    assert "name=mine" in told and f"process {os.getpid()}" in told and "choose another name=" in told, told


def test_a_used_folder_is_refused_where_resuming_is_not_wanted(
    settings: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with RunFolder.open(tmp_path / "runs", "mine", resume=False) as folder:
        folder.metrics.write_text('{"step": 1}\n')
    told = refused(capsys, [*settings, "checkpoint.resume=none"])
    assert "name=mine" in told and "checkpoint.resume=auto" in told, told


def test_data_that_cannot_be_trained_on_are_refused(
    settings: list[str], ray_session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    rows = tmp_path / "rows.jsonl"
    given = [*settings, f"data.train={rows}"]

    rows.write_text("")
    told = ended(capsys, given, ray_session, code=2)
    assert str(rows) in told and "there are no rows" in told, told

    rows.write_text(json.dumps({"prompt": "short"}) + "\n" + json.dumps({"prompt": "long " * 200}) + "\n")
    told = ended(capsys, [*given, "data.overlong=error"], ray_session, code=2)
    assert "1 of 2 rows are longer than data.max_prompt_tokens" in told, told
    assert "rows.jsonl:2" in told and "data.max_prompt_tokens=96" in told and "data.overlong" in told, told

    rows.write_text(json.dumps({"prompt": "good"}) + "\n{torn\n")
    told = ended(capsys, given, ray_session, code=2)
    assert "1 of 2 rows cannot be used" in told and "data.max_bad_fraction=0.01" in told and "rows.jsonl:2" in told


def test_more_gpus_than_the_cluster_has_are_refused(
    settings: list[str], ray_session: Session, capsys: pytest.CaptureFixture[str]
) -> None:
    half = ["policy.precision=bfloat16", "reference.precision=bfloat16"]  # float32 is refused there
    given = ["cluster=one_node", "policy.num_ranks=64", "algorithm.sequences_per_update=64", *half]
    told = ended(capsys, [*settings, *given], ray_session, code=2)
    assert "policy 64 x 1" in told and "requested, the cluster has 0" in told and "lower the number of ranks" in told, (
        told
    )


def test_a_reward_model_that_reads_other_tokens_is_refused(
    settings: list[str], ray_session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    other = tiny_model(tmp_path / "other", tie=True, vocab_size=400)
    told = ended(capsys, [*settings, f"reward.model={other}"], ray_session, code=2)
    assert f"reward.model={other}" in told and "different tokenizers: 400 tokens against 512" in told, told
    assert "algorithm=rm" in told, told


def test_a_bad_row_is_put_aside_and_a_dead_engine_is_named(
    settings: list[str], ray_session: Session, questions: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One run for both: the bad row costs nothing, the death of the only engine, not to be replaced, ends the run."""
    rows = tmp_path / "rows.jsonl"
    rows.write_text(questions.read_text() + "{torn\n")
    given = [
        *settings, f"data.train={rows}", "data.max_bad_fraction=0.1", "num_steps=50", "checkpoint.every=1",
        "rollout.num_workers=1", "policy.num_ranks=1", "algorithm.kl_coef=0", "cluster.max_worker_restarts=0",
    ]  # fmt: skip
    folder = RunPaths(tmp_path / "runs" / "mine")
    killer = threading.Thread(target=kill_engines_after_a_step, args=(folder,), daemon=True)
    killer.start()
    told = ended(capsys, given, ray_session, code=75)
    killer.join(DEADLINE_S)

    (put_aside,) = [json.loads(line) for line in (folder.path / "quarantine.jsonl").read_text().splitlines()]
    assert put_aside["source"] == "rows.jsonl:21" and "not a JSON object" in put_aside["reason"]
    check_last_line(told, folder, words=("rollout/0", "step"))


def kill_engines_after_a_step(folder: RunPaths) -> None:
    """SIGKILL for every process of a rollout worker of this one's cluster, once a checkpoint is there."""
    deadline = time.monotonic() + DEADLINE_S
    while not (folder.checkpoints / "LATEST").exists():
        if time.monotonic() > deadline:
            return  # the run goes on to its end and the test says what is missing
        time.sleep(0.02)
    for pid in marked_processes(Path(os.environ["RAY_AUTH_TOKEN_PATH"]).parent):
        with contextlib.suppress(psutil.NoSuchProcess):
            process = psutil.Process(pid)
            if "RolloutWorker" in " ".join(process.cmdline()):
                process.send_signal(signal.SIGKILL)


def test_a_loss_that_is_no_number_is_named(
    settings: list[str], tiny_model_dir: Path, ray_session: Session, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A critic thrown off by an absurd learning rate in step 1 gives values that are no numbers in step 2."""
    given = run_settings("ppo", tiny_model_dir, tmp_path / "unused", tmp_path / "runs")
    train = next(s for s in settings if s.startswith("data.train="))
    given = [
        *(s for s in given if not s.startswith("data.train=")), train, "num_steps=5", "name=mine", "checkpoint.every=1",
        "critic.optim.lr=1e30", "algorithm.sequences_per_update=64", "algorithm.ppo_epochs=1", "critic.num_ranks=1",
        "policy.num_ranks=1", "rollout.num_workers=1",
    ]  # fmt: skip
    told = ended(capsys, given, ray_session, code=70)
    folder = RunPaths(tmp_path / "runs" / "mine")
    check_last_line(told, folder, words=("critic", "step 2"))
    for row in read_history(folder.metrics).rows:
        assert all(value is None or math.isfinite(value) for value in row.values.values())


def check_last_line(told: str, folder: RunPaths, *, words: tuple[str, ...]) -> None:
    """Cause, last good step, and a command that continues this very run."""
    last_line = told.splitlines()[-1]
    assert all(word in last_line for word in words), told
    good = (folder.checkpoints / "LATEST").read_text().strip().removeprefix("step-").lstrip("0")
    assert f"last good step {good}; resume with: raylign train " in last_line, told
    command = shlex.split(last_line.partition("resume with: ")[2])
    again = compose(command[2:]).config
    assert (again.name, Path(again.run_root)) == (folder.path.name, folder.path.parent)
