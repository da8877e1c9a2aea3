"""The run folder: names, the lock, what is written in it, and that nothing secret is."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from datetime import date
from pathlib import Path

import pytest
import yaml
from raylign.conf.errors import UserError
from raylign.conf.schema import AlgorithmConfig, RunConfig
from raylign.conf.secret_names import is_secret_name
from raylign.records.manifest import changed_inputs, digest, git_state, read_manifest
from raylign.records.redaction import REDACTED, Redactor
from raylign.records.run_folder import RunFolder, plain
from raylign.records.summary import RunSummary, read_summary

NO_SECRETS = Redactor()


@pytest.mark.parametrize("name", ["", "..", ".", "a/b", "../x", "/etc", "a b", "x" * 65, "näme", "a\n"])
def test_bad_names_are_refused_before_anything_is_made(tmp_path: Path, name: str) -> None:
    with pytest.raises(UserError, match="name="):
        RunFolder.open(tmp_path / "runs", name, resume=False)
    assert not (tmp_path / "runs").exists()


def test_a_used_folder_is_refused_unless_resumed(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, "demo", resume=False) as folder:
        folder.write_manifest(["raylign"], {}, NO_SECRETS)
    with pytest.raises(UserError, match=re.escape("checkpoint.resume=auto")):
        RunFolder.open(tmp_path, "demo", resume=False)
    with RunFolder.open(tmp_path, "demo", resume=True) as folder:
        assert folder.is_used


def test_a_start_that_wrote_nothing_leaves_the_name_free(tmp_path: Path) -> None:
    RunFolder.open(tmp_path, "demo", resume=False).close()
    with RunFolder.open(tmp_path, "demo", resume=False) as folder:
        assert not folder.is_used


@pytest.mark.parametrize("resume", [False, True])
def test_somebody_elses_folder_is_never_taken(tmp_path: Path, resume: bool) -> None:
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter1.tex").write_text("...")
    with pytest.raises(UserError, match="is not a run folder"):
        RunFolder.open(tmp_path, "thesis", resume=resume)
    assert os.listdir(tmp_path / "thesis") == ["chapter1.tex"]


def test_an_unwritable_root_is_a_refusal_not_a_traceback(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="run_root="):
        RunFolder.open(tmp_path / "file", "demo", resume=False)


def test_a_second_process_is_refused_and_told_who_holds_the_folder(tmp_path: Path) -> None:
    hold = (
        "import sys; from raylign.records.run_folder import RunFolder\n"
        f"f = RunFolder.open({str(tmp_path)!r}, 'demo', resume=False); print('held', flush=True); sys.stdin.read()"
    )
    holder = subprocess.Popen(
        [sys.executable, "-c", hold], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=Path.cwd()
    )
    try:
        assert holder.stdout is not None and holder.stdout.readline() == "held\n"
        with pytest.raises(UserError, match=f"in use by process {holder.pid} on "):
            RunFolder.open(tmp_path, "demo", resume=True)
    finally:
        holder.kill()  # dying lets go: no stale lock to clean by hand
        holder.wait(timeout=30)
    RunFolder.open(tmp_path, "demo", resume=True).close()


def test_a_run_keeps_the_date_of_its_first_start(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, "demo", resume=False) as folder:
        first, _ = folder.write_manifest(["raylign"], {}, NO_SECRETS)
        assert first.today.isoformat() == first.first_date and abs((date.today() - first.today).days) <= 1
        older = json.loads(folder.manifest.read_text()) | {"first_date": "2030-01-02"}
        folder.manifest.write_text(json.dumps(older))
        again, _ = folder.write_manifest(["raylign"], {}, NO_SECRETS)
        assert again.today == read_manifest(folder.manifest).today == date(2030, 1, 2)
        del older["first_date"]  # a run of an earlier version, whose templates printed this constant
        folder.manifest.write_text(json.dumps(older))
        assert read_manifest(folder.manifest).today == date(2024, 7, 26)


def test_config_is_plain_yaml_without_secrets(tmp_path: Path) -> None:
    config = RunConfig(algorithm=AlgorithmConfig(name="ppo"), name="demo")
    config.data.train = "https://me:hunter2@files.example/prompts.jsonl?X-Amz-Signature=abcdef&n=1"
    config.policy.model = "models/very-secret-value-of-env"
    redactor = Redactor.from_environ({"SOME_TOKEN": "very-secret-value-of-env", "HOME": "/root"})
    with RunFolder.open(tmp_path, "demo", resume=False) as folder:
        folder.write_config(config, ["rollout.max_new_tokens=64", "x.api_key=abc123"], redactor)
        text = folder.resolved.read_text()
        overrides = yaml.safe_load(folder.overrides.read_text())
    resolved = yaml.safe_load(text)
    assert resolved["policy"]["optim"]["betas"] == [0.9, 0.95]
    assert resolved["tracking"]["wandb"] == "auto"
    assert "hunter2" not in text and "abcdef" not in text and "very-secret-value" not in text
    assert overrides == ["rollout.max_new_tokens=64", f"x.api_key={REDACTED}"]


def test_plain_keeps_every_field() -> None:
    config = RunConfig(algorithm=AlgorithmConfig(name="ppo"))
    found = plain(config)
    assert isinstance(found, dict)
    assert list(found) == list(config.__dataclass_fields__)


def test_manifest_counts_starts_and_names_changed_inputs(tmp_path: Path) -> None:
    data = tmp_path / "rows.jsonl"
    data.write_text("one\n")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text("{}")
    inputs = {"data.train": data, "policy.model": model}
    with RunFolder.open(tmp_path, "demo", resume=False) as folder:
        first, changed = folder.write_manifest(["raylign", "--hf-token", "abc"], inputs, NO_SECRETS)
        assert changed == () and first.current.generation == 0
        data.write_text("two\n")
        second, changed = folder.write_manifest(["raylign"], inputs, NO_SECRETS)
        assert changed == ("data.train",) and second.current.generation == 1
        assert read_manifest(folder.manifest) == second
    assert second.starts[0].argv == ("raylign", "--hf-token", REDACTED)
    assert second.current.packages["torch"] and second.current.pid == os.getpid()


def test_digest_sees_content_names_and_weight_sizes_but_does_not_read_weights(tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text("a")
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(b"1234")
    first = digest(tmp_path)
    weights.write_bytes(b"4321")
    assert digest(tmp_path) == first
    weights.write_bytes(b"12345")
    assert digest(tmp_path) != first
    weights.write_bytes(b"1234")
    (tmp_path / "tokenizer.json").write_text("b")
    assert digest(tmp_path) != first


def test_git_state_of_a_checkout_and_of_none(tmp_path: Path) -> None:
    assert git_state(tmp_path) == (None, None)
    commands = ("init -q", "config user.email a@b", "config user.name a", "add f", "commit -qm x")
    (tmp_path / "f").write_text("1")
    for command in commands:
        subprocess.run(["git", "-C", str(tmp_path), *command.split()], check=True, timeout=30)
    sha, dirty = git_state(tmp_path)
    assert sha is not None and re.fullmatch("[0-9a-f]{40}", sha) and dirty is False
    (tmp_path / "f").write_text("2")
    assert git_state(tmp_path) == (sha, True)


def test_summary_round_trip_and_flat_keys(tmp_path: Path) -> None:
    summary = RunSummary(
        algorithm="ppo",
        policy_start="SmolLM2",
        steps=3,
        seconds_total=12.5,
        preference_vs_start=0.75,
        gold_score_before=0.1,
        kl_final=2.0,
        extra={"answer_tokens_after": 41.0},
    )
    with RunFolder.open(tmp_path, "demo", resume=False) as folder:
        folder.write_summary(summary)
        flat = json.loads(folder.summary.read_text())
        assert flat["preference_vs_start"] == 0.75 and flat["answer_tokens_after"] == 41.0
        assert "gold_score_after" not in flat and "extra" not in flat
        assert read_summary(folder.summary) == summary
        with pytest.raises(ValueError, match="steps"):
            folder.write_summary(replace(summary, extra={"steps": 2}))


@pytest.mark.parametrize(
    ("name", "secret"),
    [
        ("wandb.api_key", True),
        ("HF_TOKEN", True),
        ("db_password", True),
        ("auth_header", True),
        ("tokenizer", False),
        ("num_tokens", False),
        ("rollout.max_new_tokens", False),
        ("pad_token", False),
        ("eos_token_id", False),
        ("key", False),
        ("author", False),
    ],
)
def test_which_names_are_secret(name: str, secret: bool) -> None:
    assert is_secret_name(name) is secret


def test_known_shapes_and_nested_values_are_redacted() -> None:
    tree = {"a": ["hf_" + "x" * 30, {"password": "p", "n": 3, "ok": "sk-learn"}], "t": None}
    assert NO_SECRETS.tree(tree) == {"a": [REDACTED, {"password": REDACTED, "n": 3, "ok": "sk-learn"}], "t": None}


def test_changed_inputs_ignores_new_names(tmp_path: Path) -> None:
    with RunFolder.open(tmp_path, "demo", resume=False) as folder:
        first, _ = folder.write_manifest([], {}, NO_SECRETS)
        (tmp_path / "x").write_text("x")
        second, _ = folder.write_manifest([], {"x": tmp_path / "x"}, NO_SECRETS)
    assert changed_inputs(first.current, second.current) == ()
