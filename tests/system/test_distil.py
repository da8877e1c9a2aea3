"""Distillation with every role real: from another model, and from the same one that was told more."""

from __future__ import annotations

import json
from pathlib import Path
from statistics import fmean

import pytest
from raylign.cluster.session import Session
from raylign.data.sample_model import tiny_model
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths

from tests.system.tiny_runs import play, run_settings

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(900)]

STEPS = 12


def divergence(done: RunPaths) -> list[float]:
    return [value for _, value in read_history(done.metrics).series("distil/divergence") if value is not None]


@pytest.mark.parametrize("kind", ["another", "itself"])
def test_the_policy_moves_towards_its_teacher(
    kind: str, tiny_model_dir: Path, tmp_path: Path, ray_session: Session
) -> None:
    asked = [{"prompt": f"What is a {word}?", "id": word} for word in ("river", "train", "letter", "light")]
    hint = {"teacher_prompt": "She said that the answer is 19. The answer is:"}
    rows = tmp_path / "rows.jsonl"
    rows.write_text("".join(json.dumps(row | (hint if kind == "itself" else {})) + "\n" for row in asked))
    left_out = ("algorithm.kl_coef", "reward.")  # nothing scores the answers
    given = [s for s in run_settings("distil", tiny_model_dir, rows, tmp_path) if not s.startswith(left_out)]
    if kind == "another":
        given.append(f"reference.model={tiny_model(tmp_path / 'other', tie=True, seed=1)}")
    done = play([*given, f"name={kind}", f"num_steps={STEPS}", "rollout.prompts_per_step=4"], ray_session)
    found = divergence(done)
    assert len(found) == STEPS and fmean(found[-3:]) < 0.9 * fmean(found[:3]), found
