"""metrics.jsonl survives what kills runs; modes of Weights & Biases (the real one: tests/system/test_wandb.py)."""

from __future__ import annotations

import json
import logging
import math
from pathlib import Path

import pytest
from raylign.conf.errors import UserError
from raylign.conf.schema import AlgorithmConfig, RunConfig, TrackingConfig, WandbMode
from raylign.records.metrics_log import NON_FINITE, MetricsLog, read_history
from raylign.records.run_folder import RunPaths
from raylign.records.tracking import Tracker
from raylign.records.wandb_login import decide

OFF = TrackingConfig(wandb=WandbMode.disabled)


def tracker(folder: Path, *, resumed_step: int | None = None) -> Tracker:
    run_config = RunConfig(algorithm=AlgorithmConfig(name="ppo"), tracking=OFF)
    return Tracker(RunPaths(folder), run_config, resumed_step=resumed_step, environ={})


def steps(folder: Path) -> list[int]:
    return [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]


def test_one_object_a_step_readable_at_once(tmp_path: Path) -> None:
    t = tracker(tmp_path)
    t.log(0, {"eval/held_out/reward": 0.5})
    t.log(1, {"reward/mean": 1.0, "train/rewards/chosen": 2})
    lines = (tmp_path / "metrics.jsonl").read_text()  # not closed: a crash now loses nothing
    assert [json.loads(line) for line in lines.splitlines()] == [
        {"step": 0, "eval/held_out/reward": 0.5},
        {"step": 1, "reward/mean": 1.0, "train/rewards/chosen": 2.0},
    ]
    t.finish(exit_code=0)


def test_a_second_call_for_a_step_joins_its_line(tmp_path: Path) -> None:
    t = tracker(tmp_path)
    t.log(0, {"reward/mean": 0.0})
    t.log(1, {"reward/mean": 1.0})
    t.log(1, {"eval/held_out/reward": 2.0})
    t.log(2, {"reward/mean": 3.0})
    t.finish(exit_code=0)
    assert steps(tmp_path) == [0, 1, 2]
    assert dict(read_history(tmp_path / "metrics.jsonl").rows[1].values) == {
        "reward/mean": 1.0,
        "eval/held_out/reward": 2.0,
    }


@pytest.mark.parametrize("name", ["loss", "Policy/loss", "policy/", "/loss", "policy//kl", "policy/a b", "step"])
def test_names_that_are_not_group_slash_name_are_refused(tmp_path: Path, name: str) -> None:
    t = tracker(tmp_path)
    with pytest.raises(ValueError, match="group/name"):
        t.log(1, {"policy/kl": 1.0, name: 1.0})
    assert steps(tmp_path) == []


def test_steps_never_go_back(tmp_path: Path) -> None:
    t = tracker(tmp_path)
    t.log(5, {"policy/kl": 1.0})
    with pytest.raises(ValueError, match="step 4"):
        t.log(4, {"policy/kl": 1.0})


def test_not_finite_is_null_and_counted_and_said_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    t = tracker(tmp_path)
    with caplog.at_level(logging.WARNING):
        t.log(1, {"policy/loss": math.nan, "policy/kl": math.inf, "reward/mean": 1.0})
        t.log(2, {"policy/loss": -math.inf})
        t.log(3, {"policy/loss": 0.5})
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert lines[0] == {"step": 1, "policy/loss": None, "policy/kl": None, "reward/mean": 1.0, NON_FINITE: 2.0}
    assert lines[1] == {"step": 2, "policy/loss": None, NON_FINITE: 1.0}
    assert lines[2] == {"step": 3, "policy/loss": 0.5}
    assert sum("policy/loss" in r.message for r in caplog.records) == 1


@pytest.mark.parametrize("torn", ['{"step": 3, "policy/k', '{"step": 3}garbage\n', "\x00\x00\x00", '"text"\n', "[]\n"])
def test_a_torn_line_is_dropped_and_the_file_stays_whole(tmp_path: Path, torn: str) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1, "policy/kl": 0.1}\n{"step": 2, "policy/kl": 0.2}\n' + torn)
    assert [r.step for r in read_history(path).rows] == [1, 2]  # a reader of a live run sees the same
    t = tracker(tmp_path, resumed_step=2)
    t.log(3, {"policy/kl": 0.3})
    t.finish(exit_code=0)
    assert steps(tmp_path) == [1, 2, 3]


def test_every_cut_of_a_file_recovers_its_whole_lines(tmp_path: Path) -> None:
    whole = "".join(f'{{"step": {n}, "policy/kl": {n / 7}}}\n' for n in range(4))
    path = tmp_path / "metrics.jsonl"
    for cut in range(len(whole) + 1):
        path.write_text(whole[:cut])
        complete = whole[:cut].count("\n") + (whole[cut - 1 : cut] == "}")
        MetricsLog(path, keep_to_step=99).close()
        assert steps(tmp_path) == list(range(complete))


def test_resuming_drops_the_steps_that_will_be_done_again(tmp_path: Path) -> None:
    t = tracker(tmp_path)
    for n in range(6):
        t.log(n, {"policy/kl": n / 10})
    t.finish(exit_code=0)
    t = tracker(tmp_path, resumed_step=3)
    assert steps(tmp_path) == [0, 1, 2, 3]
    t.log(3, {"eval/held_out/reward": 1.0})  # what a hook says at the start of a resumed run
    t.log(4, {"policy/kl": 9.0})
    t.finish(exit_code=0)
    assert steps(tmp_path) == [0, 1, 2, 3, 4]
    rows = read_history(tmp_path / "metrics.jsonl").rows
    assert rows[3].values["policy/kl"] == 0.3 and rows[3].values["eval/held_out/reward"] == 1.0
    tracker(tmp_path).finish(exit_code=0)  # no checkpoint to resume from: the run begins again
    assert steps(tmp_path) == []


@pytest.mark.parametrize(
    ("configured", "environ", "mode"),
    [
        ("auto", {}, "offline"),
        ("auto", {"WANDB_API_KEY": ""}, "offline"),
        ("auto", {"WANDB_API_KEY": "k"}, "online"),
        ("auto", {"WANDB_API_KEY": "k", "WANDB_MODE": "disabled"}, "disabled"),
        ("auto", {"WANDB_MODE": "nonsense"}, "offline"),
        ("offline", {"WANDB_API_KEY": "k"}, "offline"),
        ("disabled", {"WANDB_API_KEY": "k"}, "disabled"),
        ("online", {"WANDB_API_KEY": "k"}, "online"),
    ],
)
def test_mode(configured: str, environ: dict[str, str], mode: str) -> None:
    assert decide(TrackingConfig(wandb=WandbMode[configured]), environ).mode is WandbMode[mode]


def logged_in(home: Path, host: str, *, settings: str = "") -> dict[str, str]:
    """A home as `wandb login` leaves it; the environment that names it."""
    (home / ".netrc").write_text(f"machine {host}\n  login user\n  password {'0' * 40}\n")
    if settings:
        (home / ".config" / "wandb").mkdir(parents=True)
        (home / ".config" / "wandb" / "settings").write_text(f"[default]\n{settings}\n")
    return {"HOME": str(home)}


def test_wandb_login_counts_as_a_key_for_its_own_server_only(tmp_path: Path) -> None:
    environ = logged_in(tmp_path, "api.wandb.ai")
    decision = decide(TrackingConfig(), environ)
    assert decision.mode is WandbMode.online
    assert decision.sentence() == f"Weights & Biases: online (api.wandb.ai, with the key of {tmp_path}/.netrc)"
    other = decide(TrackingConfig(), {**environ, "WANDB_BASE_URL": "https://wandb.example:8443"})
    assert other.mode is WandbMode.offline and "wandb.example:8443" in other.why
    assert decide(TrackingConfig(wandb=WandbMode.online), environ).mode is WandbMode.online


def test_a_server_that_login_wrote_down_and_wandb_offline_are_followed(tmp_path: Path) -> None:
    environ = logged_in(tmp_path, "wandb.example", settings="base_url = https://wandb.example")
    assert decide(TrackingConfig(), environ).mode is WandbMode.online
    (tmp_path / "b").mkdir()
    asked = decide(TrackingConfig(), logged_in(tmp_path / "b", "api.wandb.ai", settings="mode = offline"))
    assert asked.mode is WandbMode.offline and asked.why == "wandb's settings: mode=offline"


@pytest.mark.parametrize("text", ["machine api.wandb.ai login", "\x00\xff", "machine api.wandb.ai login u\n"])
def test_a_broken_netrc_is_no_key(tmp_path: Path, text: str) -> None:
    (tmp_path / "netrc").write_text(text)
    assert decide(TrackingConfig(), {"NETRC": str(tmp_path / "netrc")}).mode is WandbMode.offline


def test_without_wandb_among_the_sinks_nothing_is_asked(tmp_path: Path) -> None:
    config = TrackingConfig(sinks=[], wandb=WandbMode.online)
    assert decide(config, {}).mode is WandbMode.disabled


@pytest.mark.parametrize("config", [TrackingConfig(wandb=WandbMode.online), TrackingConfig()])
def test_online_without_a_key_is_refused_instead_of_prompting(config: TrackingConfig) -> None:
    with pytest.raises(UserError, match="WANDB_API_KEY"):
        decide(config, {"WANDB_MODE": "online"})


def test_a_resumed_run_keeps_its_wandb_run(tmp_path: Path) -> None:
    first = RunPaths(tmp_path).wandb_run_id()
    assert RunPaths(tmp_path).wandb_run_id() == first and len(first) == 12


def test_a_run_of_a_sweep_takes_the_id_that_the_agent_gives_it(tmp_path: Path) -> None:
    agent = {"WANDB_SWEEP_ID": "sweep", "WANDB_RUN_ID": "of-the-agent"}
    for number, environ in enumerate([agent, {"WANDB_RUN_ID": "left-over"}]):
        folder = RunPaths(tmp_path / str(number))
        folder.path.mkdir()
        run_config = RunConfig(algorithm=AlgorithmConfig(name="ppo"), tracking=OFF)
        Tracker(folder, run_config, resumed_step=None, environ=environ).finish(exit_code=0)
        assert (folder.wandb_run_id() == environ["WANDB_RUN_ID"]) is (number == 0)
