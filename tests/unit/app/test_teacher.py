"""A teacher: its prompt of a row reaches the batch, and what could teach nothing, or wrongly, is refused before Ray."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest
from raylign.app.launch.rows import NO_TEACHER
from raylign.conf.schema import DataConfig
from raylign.data.prompts import load_prompts
from raylign.data.sample_model import tiny_model
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import Completion, FinishReason, Reward, RolloutGroup, SampleKey, SamplingParams, VersionSpan
from raylign.records.journal import Batch, read_batch, write_batch

from tests.unit.app.test_rows_before_ray import call

ROWS = [
    {"prompt": "Open on Sunday?", "teacher_prompt": "Open on Sunday? (No, said a reader.)"},
    {"prompt": [{"role": "user", "content": "A ticket?"}], "id": "plain"},
]


def write(folder: Path, rows: list[dict[str, object]]) -> str:
    (folder / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(folder / "rows.jsonl")


def test_the_teachers_prompt_is_read_where_it_is_wanted_and_kept_in_the_journal(tiny_model_dir: Path, tmp_path: Path):
    tokenizer, rows = load_tokenizer(str(tiny_model_dir)), write(tmp_path, ROWS)
    told, plain = (load_prompts(rows, DataConfig(), tokenizer, teacher=teacher) for teacher in (True, False))
    first, second = told.prompts
    assert "said a reader" in tokenizer.decode(list(first.teacher_ids)) and second.teacher_ids == ()
    assert replace(first, teacher_ids=()) == plain.prompts[0] and told.digest != plain.digest
    assert "teacher" not in first.columns
    only = write(tmp_path, ROWS[1:])
    assert len({load_prompts(only, DataConfig(), tokenizer, teacher=t).digest for t in (True, False)}) == 1
    key = SampleKey(0, first.prompt_id, 0)
    made = Completion(key, (5,), (-1.0,), FinishReason.STOP, (VersionSpan(0, 0, 1),), "x")
    group = RolloutGroup(first, SamplingParams(temperature=1.0, max_new_tokens=4), (made,))
    write_batch(tmp_path, Batch(1, "s", {"position": 1}, (), (group,), (Reward(key, 1.0, {}),)))
    assert read_batch(tmp_path, 1).groups == (group,)


@pytest.mark.slow
def test_a_teacher_with_another_tokenizer_or_nothing_to_say_is_refused(
    tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    other = tiny_model(tmp_path / "other", tie=True, vocab_size=500)
    given = [
        f"policy.model={tiny_model_dir}", f"data.train={write(tmp_path, ROWS[1:])}", f"run_root={tmp_path}", "name=r",
    ]  # fmt: skip
    code, _, told = call(capsys, "plan", "distil", *given, f"reference.model={other}")
    assert code == 2 and "have different tokenizers: 5" in told and f"reference.model={other}" in told
    code, _, told = call(capsys, "train", "distil", *given, "tracking.wandb=disabled")
    assert code == 2 and NO_TEACHER in " ".join(told.split())
    same = shutil.copytree(tiny_model_dir, tmp_path / "same")
    assert call(capsys, "plan", "distil", *given, f"reference.model={same}")[0] == 0
    write(tmp_path, ROWS)
    assert call(capsys, "plan", "distil", *given)[0] == 0


@pytest.mark.parametrize(("algorithm", "settings"), [("distil", ["algorithm.reward_coef=1"]), ("grpo", [])])
def test_only_a_run_that_learns_from_no_reward_does_without(
    algorithm: str, settings: list[str], tiny_model_dir: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = [f"policy.model={tiny_model_dir}", f"data.train={write(tmp_path, ROWS)}", f"run_root={tmp_path}", "name=r"]
    code, _, told = call(capsys, "plan", algorithm, *given, *settings, "rollout.samples_per_prompt=2")
    assert code == 2 and "are all empty, so nothing scores the answers" in " ".join(told.split())
