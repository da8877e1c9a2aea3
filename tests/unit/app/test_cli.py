"""The command line: help that is quick and complete, refusals in sentences, plans that agree with the configuration."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest
from raylign.app.cli import app, run_command
from raylign.conf import reference
from raylign.conf.errors import ConfigError, Preempted, RunFailed, Stopped, UserError

HEAVY = {"torch", "ray", "hydra", "omegaconf", "transformers", "vllm", "deepspeed", "wandb", "datasets"}


def raylign(*arguments: str, timeout: float = 120) -> subprocess.CompletedProcess[str]:
    """The command in a process of its own, as a person runs it."""
    command = [sys.executable, "-m", "raylign.app.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=timeout, check=False)


def call(capsys: pytest.CaptureFixture[str], *arguments: str) -> tuple[int, str, str]:
    """The command in this process: exit code, stdout, stderr."""
    code = run_command(lambda: app(list(arguments)))
    captured = capsys.readouterr()
    return code, captured.out, captured.err


@pytest.mark.parametrize("arguments", [["--help"], ["train", "--help"], ["plan", "--help"], ["doctor", "--help"]])
def test_help_imports_nothing_heavy(arguments: list[str]):
    code = (
        "import sys, app.cli as c\n"
        f"code = c.run_command(lambda: c.app({arguments!r}))\n"
        "sys.stderr.write(','.join(m for m in sys.modules if '.' not in m))\n"
        "sys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    assert HEAVY.isdisjoint(done.stderr.split(",")), HEAVY & set(done.stderr.split(","))


def test_train_help_shows_every_choice_and_setting(capsys: pytest.CaptureFixture[str]):
    code, text, _ = call(capsys, "train", "--help")
    assert code == 0
    for group in reference.GROUPS:
        assert all(option in text for option in reference.options(group)), group
    shared = ("critic.",)  # the same settings as policy's, shown once
    for name, key in reference.keys("ppo").items():
        assert f"  {name} " in text or name.startswith(shared), name
        assert not key.choices or ", ".join(key.choices)[:30] in " ".join(text.split()), name
    assert max(len(line) for line in text.splitlines()) <= 120


def test_train_help_shows_only_what_a_word_names(capsys: pytest.CaptureFixture[str]):
    for arguments in (("train", "--help", "rollout"), ("train", "rollout", "--help")):
        code, text, _ = call(capsys, *arguments)
        named = [line.split()[0] for line in text.splitlines() if line.startswith("  ") and line[2] != " "]
        assert code == 0 and named == [name for name in reference.keys("ppo") if "rollout" in name]
    lr = call(capsys, "train", "--help", "optim.lr")[1]
    assert "policy.optim.lr" in lr and "critic.optim.lr" in lr and "betas" not in lr
    assert "algorithm.scale_by_std" in call(capsys, "train", "algorithm=grpo", "--help", "scale")[1]
    code, _, told = call(capsys, "train", "--help", "temprature")
    assert code == 2 and "no setting of algorithm=ppo has this in its name; did you mean temperature?" in told


def test_train_help_lists_every_reward_rule_with_its_argument(capsys: pytest.CaptureFixture[str]):
    from raylign.reward.rules import RULES

    for arguments in (["--help"], ["--help", "rules"]):
        text = call(capsys, "train", *arguments)[1].partition("Reward rules")[2]
        for name, kind in RULES.items():
            written = f"{name}:<{kind.argument}>" if kind.argument else name
            assert any(line.split("  ")[1] == written and kind.meaning in line for line in text.splitlines()[1:]), name


def test_train_help_follows_the_chosen_algorithm(capsys: pytest.CaptureFixture[str]):
    assert "algorithm.pairs_per_update" in call(capsys, "train", "algorithm=rm", "--help")[1]
    assert "algorithm.scale_by_std" in call(capsys, "train", "+experiment=grpo_tiny_cpu", "--help")[1]


@pytest.mark.slow
def test_a_refused_configuration_ends_with_2_and_sentences_only():
    done = raylign("train", "algorithm=gpro", "policy.model=/nowhere", "data.trian=x.jsonl")
    assert done.returncode == 2
    assert "did you mean grpo?" in done.stderr
    assert "did you mean data.train?" in done.stderr
    assert "policy.model=/nowhere: there is no such folder" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("error", "code"),
    [
        (ConfigError(["a", "b"]), 2),
        (UserError("a"), 2),
        (RunFailed("role, step, cause"), 70),
        (Stopped("a"), 75),
        (Preempted("a"), 76),
    ],
)
def test_each_ending_has_its_exit_code(error: Exception, code: int, capsys: pytest.CaptureFixture[str]):
    def command() -> None:
        raise error

    assert run_command(command) == code
    assert capsys.readouterr().err == f"{error}\n"


def test_a_message_shows_no_secret_of_the_environment(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    monkeypatch.setenv("MY_API_KEY", "a-very-secret-value")

    def command() -> None:
        raise ConfigError(["algorithm=my.py:A: my.py cannot be imported: KeyError: a-very-secret-value"])

    assert run_command(command) == 2
    assert capsys.readouterr().err == "algorithm=my.py:A: my.py cannot be imported: KeyError: ***\n"


def test_the_version_is_printed_without_a_command(capsys: pytest.CaptureFixture[str]):
    assert call(capsys, "--version") == (0, f"raylign {metadata.version('raylign')}\n", "")


def test_train_without_arguments_prints_its_usage_alone(capsys: pytest.CaptureFixture[str]):
    code, out, told = call(capsys, "train")
    assert (code, out) == (2, "")
    assert told.startswith("Usage: raylign train") and "--config FILE" in told and "has no value" not in told


@pytest.mark.parametrize("flag", ["-m", "--multirun"])
def test_a_multirun_is_refused_with_the_loop_there_is(flag: str, capsys: pytest.CaptureFixture[str]):
    code, _, told = call(capsys, "train", flag, "algorithm=sft", "seed=1,2")
    assert code == 2 and told.startswith("-m: there is no multirun;") and "for v in a b; do raylign train" in told
    told = call(capsys, "train", "algorithm=sft", "seed=1,2")[2]
    assert "seed=1,2 is several values" in told and "raylign train ... seed=$v name=try-$v; done" in told


def test_own_files_are_read_by_the_command(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
):
    (tmp_path / "my.yaml").write_text("algorithm: sft\npolicy:\n  optim:\n    lrr: 1\n  model: /nowhere\n")
    monkeypatch.chdir(tmp_path)
    for command in ("train", "plan"):
        code, out, told = call(capsys, command, "--config", "my.yaml", "data.train=/nowhere.jsonl")
        assert (code, out) == (2, "")
        assert told.splitlines() == [
            "my.yaml:4: policy.optim.lrr is not a setting; did you mean policy.optim.lr?",
            "data.train=/nowhere.jsonl: there is no such file or folder.",
            "policy.model=/nowhere: there is no such folder; give a Hugging Face model folder, a finished run's, or "
            "owner/name on the hub.",
        ]


def test_unknown_commands_and_options_are_refused(capsys: pytest.CaptureFixture[str]):
    assert call(capsys, "trian")[0] == 2
    assert call(capsys, "train", "--nope")[0] == 2


def test_report_and_export_refuse_what_is_no_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    for command in (["report", "gone"], ["export", "gone", "--to", str(tmp_path / "x")]):
        code, _, told = call(capsys, *command, "--run-root", str(tmp_path))
        assert (code, "there is no such run" in told) == (2, True)


def test_export_copies_the_last_step_and_keeps_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    run = tmp_path / "runs" / "r"
    (run / "export").mkdir(parents=True)
    (run / "resolved.yaml").write_text("")
    root = ["--run-root", str(tmp_path / "runs")]
    assert call(capsys, "export", "r", "--to", str(tmp_path / "a"), *root)[0] == 2  # nothing exported yet
    for step in (9, 10):
        (run / "export" / f"step-{step}").mkdir()
        (run / "export" / f"step-{step}" / "config.json").write_text(str(step))
    assert call(capsys, "export", "r", "--to", str(tmp_path / "a"), *root)[0] == 0
    assert (tmp_path / "a" / "config.json").read_text() == "10"
    assert call(capsys, "export", "r", "--to", str(tmp_path / "a"), *root)[0] == 2
    code, _, told = call(capsys, "export", "r", "--to", str(tmp_path / "b"), "--step", "7", *root)
    assert (code, "9, 10" in told) == (2, True)
    assert not (tmp_path / "b").exists()


def test_plan_prints_arithmetic_placement_and_open_settings(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
):
    rows = tmp_path / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"prompt": f"question {i}"}) + "\n" for i in range(8)) + json.dumps({"x": 1}) + "\n"
    )
    arguments = [
        "plan", "+experiment=grpo_tiny_cpu", f"policy.model={tiny_model_dir}", f"data.train={rows}",
        "reward.rules=[{rule: finished}]", "data.max_bad_fraction=0.5", f"run_root={tmp_path / 'runs'}", "name=mine",
        "policy.lora.rank=2", "policy.lora.target_modules=[q_proj,v_proj]",
    ]  # fmt: skip
    code, text, told = call(capsys, *arguments)
    assert code == 0, told
    lines = [line.split() for line in text.splitlines()]
    assert ["sequences", "a", "step", "64"] in lines  # 16 prompts x 4
    assert ["updates", "a", "step", "2"] in lines  # 32 each
    assert ["epochs", "over", "data.train", "40.00"] in lines  # 20 steps x 16 / 8 rows
    assert [str(rows), "9", "8", "1", "0", "0"] in lines
    plain = [" ".join(line) for line in lines]
    trained = 2 * 2 * (128 + 128 + 128 + 64)  # two layers, rank 2, sides of q_proj and v_proj
    assert f"policy 361,088 {trained:,} LoRA: rank 2, alpha 32, on q_proj, v_proj (4 layers)" in plain
    assert ["127.0.0.1", "policy", "0,1", "1", "0"] in lines
    assert "reference.model" in text and "question 0" in text
    assert list((tmp_path).glob("runs*")) == []  # nothing was started or written


def test_plan_refuses_more_gpus_than_there_are(
    tmp_path: Path, tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]
):
    rows = tmp_path / "rows.jsonl"
    rows.write_text('{"prompt": "q"}\n')
    arguments = [
        "plan", "algorithm=grpo", "cluster=one_node", f"policy.model={tiny_model_dir}", f"data.train={rows}",
        "reward.rules=[{rule: finished}]", "policy.num_ranks=64",
    ]  # fmt: skip
    code, _, told = call(capsys, *arguments)
    assert code == 2
    assert "GPU" in told and "policy" in told


def test_doctor_says_what_is_here(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    code, text, _ = call(capsys, "doctor", "--run-root", str(tmp_path))
    marks = {line.split()[1]: line.split()[0] for line in text.splitlines()}
    assert {"python", "torch", "ray", "vllm", "compiler", "/dev/shm", "run_root", "gpus"} <= set(marks)
    assert marks["run_root"] == "ok"
    assert code == (2 if "bad" in marks.values() else 0)


def test_doctor_finds_a_folder_that_cannot_be_written(capsys: pytest.CaptureFixture[str]):
    code, text, _ = call(capsys, "doctor", "--run-root", "/proc/nowhere")
    assert code == 2
    assert "cannot be written" in text


@pytest.mark.slow
def test_plan_marks_what_is_trained_and_says_what_is_odd(
    capsys: pytest.CaptureFixture[str], tiny_model_dir: Path, tmp_path: Path
):
    def write(name: str, rows: list[dict[str, object]]) -> Path:
        (tmp_path / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
        return tmp_path / name

    turns = [{"role": "user", "content": "Why?"}, {"role": "assistant", "content": "So."}]
    sft = write("sft.jsonl", [{"messages": turns * 2}])
    model = f"policy.model={tiny_model_dir}"
    code, text, _ = call(capsys, "plan", "+experiment=sft_tiny_cpu", model, f"data.train={sft}", f"data.eval=[{sft}]")
    assert code == 0
    assert text.count("[[So.<|im_end|>]]") == 2 and "user\\nWhy?" in text and "\x1b" not in text
    assert "The masks of the first rows: nothing odd." in text
    verdicts = [{"prompt": f"q{i}", "completion": f"a{i}", "label": i == 0} for i in range(4)]
    kto = write("kto.jsonl", verdicts)
    code, text, _ = call(capsys, "plan", "+experiment=kto_tiny_cpu", model, f"data.train={kto}")
    assert code == 0 and "between 3.00 and 4.00 would balance them" in text and "reference" in text
    only = write("only.jsonl", verdicts[1:])
    code, _, told = call(capsys, "plan", "+experiment=kto_tiny_cpu", model, f"data.train={only}")
    assert code == 2 and "`label` is false in all of its 3 rows" in told


def test_trained_parts_are_coloured_on_a_terminal_and_control_characters_never_reach_it():
    from raylign.app.commands.marked import marked
    from raylign.data.mask_view import Run

    runs = [Run("read\x1b[2J", False, 2), Run("said", True, 1)]
    assert marked(runs, colour=False) == "read\\x1b[2J[[said]]  (1 of 3 tokens trained)"
    coloured = marked(runs, colour=True)
    assert "\x1b[1;30;42msaid" in coloured and "\x1b[2J" not in coloured


def test_where_a_run_goes_on_and_what_was_damaged_is_said_first() -> None:
    from raylign.app.main import start_notices

    told = list(start_notices(6, ("skipped step-000008: state.json is missing",), ("data.train",)))
    assert told == [
        "warning: skipped step-000008: state.json is missing; is the disk failing?",
        "resuming from step 6",
        "warning: changed since this run's last start: data.train",
    ]
    assert not list(start_notices(None, (), ()))


@pytest.mark.parametrize(
    "command", [["audit", "nowhere"], ["ensemble", "nowhere", "--pairs", "x"], ["trace", "e", "--run", "nowhere"]]
)
def test_a_command_that_computes_here_does_not_spin(command: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("os.environ", {k: v for k, v in os.environ.items() if not k.startswith(("OMP_", "GOMP_"))})
    assert run_command(lambda: app(command)) == 2
    assert (os.environ["OMP_WAIT_POLICY"], os.environ["GOMP_SPINCOUNT"]) == ("PASSIVE", "2000")
