"""What `raylign submit` refuses before it looks for a cluster: one sentence each, with key, value and remedy."""

from __future__ import annotations

from pathlib import Path

import pytest
from raylign.app.cli import app, run_command
from raylign.app.commands.submit import checked, checked_loop, login_notice, tokens
from raylign.conf.errors import ConfigError

REMOTE = "reward.remote=[{url: 'http://127.0.0.1:9/score', token_env: SCORE_TOKEN}]"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """What goes along: prompts, a reward function and settings."""
    (tmp_path / "prompts.csv").write_text("prompt\nhello\n")
    (tmp_path / "mine.py").write_text("def score(prompts, completions, **columns): return [0.0] * len(prompts)\n")
    (tmp_path / "my.yaml").write_text("reward:\n  functions: [{path: 'mine.py:score'}]\n")
    return tmp_path


def settings(*more: str) -> list[str]:
    """A run whose model and run folder lie on the cluster's disk, not here."""
    there = ["policy.model=/cluster/model", "run_root=/cluster/runs"]
    return ["--config=my.yaml", "+experiment=grpo_tiny_cpu", "data.train=prompts.csv", *there, *more]


def refused(folder: Path, *more: str) -> list[str]:
    with pytest.raises(ConfigError) as told:
        checked(settings(*more), folder)
    return list(told.value.problems)


def test_what_only_the_cluster_has_is_not_missed_here(folder: Path) -> None:
    config = checked(settings("data.eval=/cluster/eval.jsonl", "reward.model=/cluster/rm"), folder)
    assert config.policy.model == "/cluster/model" and Path.cwd() != folder


def test_what_goes_along_must_be_here(folder: Path) -> None:
    assert refused(folder, "data.train=prompt.csv") == ["data.train=prompt.csv: there is no such file or folder."]
    told = refused(folder, "policy.model=./models/mine")
    assert len(told) == 1 and told[0].startswith("policy.model=./models/mine: there is no such folder")


def test_a_typo_three_levels_deep_is_told_with_its_line(folder: Path) -> None:
    (folder / "my.yaml").write_text("policy:\n  optim:\n    scheduel: linear\nreward: {rules: [{rule: finished}]}\n")
    told = "my.yaml:3: policy.optim.scheduel is not a setting; did you mean policy.optim.schedule?"
    assert refused(folder) == [told]


def test_a_run_that_would_be_thrown_away_is_refused(folder: Path) -> None:
    told = refused(folder, "run_root=runs")
    assert len(told) == 1 and told[0].startswith("run_root=runs: a job's working folder is deleted")


def test_files_that_stay_behind_are_named(folder: Path) -> None:
    (folder / ".gitignore").write_text("*.csv\n")
    (folder / "runs").mkdir()
    (folder / "runs" / "mine.py").write_text((folder / "mine.py").read_text())
    told = refused(folder, "callbacks=[runs/mine.py:score]")
    assert [line.partition(":")[0] for line in told] == ["data.train", "callbacks.mine.py"]
    assert "prompts.csv is not sent with the job" in told[0] and ".gitignore" in told[0]
    (folder / "sub").mkdir()
    (folder / "sub" / "my.yaml").write_text("reward: {rules: [{rule: finished}]}\n")
    with pytest.raises(ConfigError, match=r"data\.train: \.\./prompts\.csv is not sent with the job \(it is outside"):
        checked(settings("data.train=../prompts.csv"), folder / "sub")


def test_variables_that_the_settings_name_go_along_and_must_be_set(folder: Path) -> None:
    config = checked(settings(REMOTE), folder)
    assert tokens(config, {"SCORE_TOKEN": "very-secret", "OTHER": "x"}) == ["SCORE_TOKEN"]
    with pytest.raises(ConfigError) as told:
        tokens(config, {})
    (sentence,) = told.value.problems
    assert sentence.startswith("reward.remote[0].token_env=SCORE_TOKEN: this variable is not set; export it")
    named = checked(settings(REMOTE.replace("SCORE_TOKEN", "sk-mistaken-for-a-name")), folder)
    with pytest.raises(ConfigError) as kept:
        tokens(named, {"SCORE_TOKEN": "x"})
    assert "sk-mistaken" not in str(kept.value)  # it may be the token


def test_a_login_that_stays_behind_is_said(tmp_path: Path) -> None:
    (tmp_path / ".netrc").write_text("machine api.wandb.ai login user password a-secret-key\n")
    told = login_notice({"HOME": str(tmp_path)})
    assert "stays on this machine" in told and "export WANDB_API_KEY" in told and "a-secret-key" not in told
    assert login_notice({"HOME": str(tmp_path), "WANDB_API_KEY": "k"}) == ""
    assert login_notice({}) == ""


def test_the_command_refuses_before_it_looks_for_a_cluster(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(folder)
    monkeypatch.setattr("raylign.cluster.submit.JobSubmissionClient", None)  # whoever calls it fails
    code = run_command(lambda: app(["submit", "--config", "my.yaml", "nme=x", "num_steps=-1"]))
    told = capsys.readouterr().err
    assert code == 2 and "nme is not a setting; did you mean name?" in told and "Traceback" not in told
    assert run_command(lambda: app(["submit"])) == 2 and "Usage: raylign submit" in capsys.readouterr().err


def test_a_loop_keeps_its_nights_where_the_job_does_not_end_them(folder: Path) -> None:
    (folder / "log.jsonl").write_text("")
    (folder / "runs").mkdir()
    given = (
        "logs: [log.jsonl, runs/more.jsonl]\nstart: /cluster/model\nevaluate: [facts, runs/mine.yaml]\n"
        "train: [{name: policy, settings: [--config=runs/small.yaml]}]\n"
    )
    (folder / "loop.yaml").write_text(given)
    with pytest.raises(ConfigError) as told:
        checked_loop(Path("loop.yaml"), folder)
    first, second, third, fourth, fifth = told.value.problems
    assert first.startswith("folder=loop: ") and second.startswith("registry=registry: ")
    assert third.startswith("logs: runs/more.jsonl: runs/more.jsonl is not sent with the job")
    assert fourth.startswith("evaluate: runs/mine.yaml: ") and fifth.startswith("train: policy: --config: runs/small")

    kept = given.replace("runs/", "/cluster/") + "folder: /cluster/l\nregistry: /cluster/r\n"
    (folder / "loop.yaml").write_text(kept)
    assert checked_loop(Path("loop.yaml"), folder).folder == "/cluster/l"
