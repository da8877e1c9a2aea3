"""`raylign ensemble` and `reward.uncertainty_penalty`: heads over people, held against transformers' own features."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from raylign.app.commands.ensemble import EnsembleSettings, ensemble_lines, make_ensemble
from raylign.app.launch.components import components
from raylign.app.launch.refusals import refuse_impossible
from raylign.conf.checks import Needs
from raylign.conf.errors import ConfigError, DataError, ModelLoadError, UserError
from raylign.conf.schema import Device, LearnerConfig, Precision, RewardConfig, RuleRewardConfig, RunConfig
from raylign.data.types import (
    Completion,
    FinishReason,
    Message,
    Prompt,
    Reward,
    RolloutGroup,
    SampleKey,
    SamplingParams,
    VersionSpan,
)
from raylign.reward.heads import FOLDER, read_heads, write_heads
from raylign.reward.scorer import ComposedScorer
from raylign.trainer.algorithms.ppo import PPOConfig
from raylign.trainer.engine.base import WRAPPER_PREFIX
from raylign.trainer.models.export import export_hf
from raylign.trainer.models.loading import load_scalar_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForSequenceClassification, AutoTokenizer


@pytest.fixture
def model(tmp_path: Path, tiny_model_dir: Path) -> Path:
    """A reward model with a random head."""
    scalar = load_scalar_model(tiny_model_dir, precision=Precision.float32, new_head_seed=5)
    state = {name.removeprefix(WRAPPER_PREFIX): p.detach() for name, p in scalar.named_parameters()}
    export_hf(scalar, state.items(), tmp_path / "rm", AutoTokenizer.from_pretrained(tiny_model_dir))
    return tmp_path / "rm"


def pair(n: int, person: str | None = "") -> dict[str, object]:
    row: dict[str, object] = {"prompt": f"What is {n}?", "chosen": f"It is {n + 1}.", "rejected": f"Nobody knows {n}!"}
    return row | {"user_hash": f"p{n % 6}" if person == "" else person, "weight": 1.0}


def written(path: Path, *rows: dict[str, object]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def settings(pairs: Path, **changes: object) -> EnsembleSettings:
    return EnsembleSettings([str(pairs)], pairs.parent, **changes)  # type: ignore[arg-type]


def group(text: str) -> RolloutGroup:
    ids = tuple(text.encode())
    zeros, versions = (0.0,) * len(ids), (VersionSpan(0, 0, len(ids)),)
    completion = Completion(SampleKey(0, "q", 0), ids, zeros, FinishReason.LENGTH, versions, text)
    prompt = Prompt("q", (Message("user", "Hi"),), (5, 6, 7))
    return RolloutGroup(prompt, SamplingParams(1.0, 16), (completion,))


@pytest.mark.slow
def test_the_penalised_score_is_the_heads_mean_less_their_spread(model: Path, tmp_path: Path):
    made = make_ensemble(str(model), settings(written(tmp_path / "p.jsonl", *map(pair, range(30))), heads=7), print)
    assert (made.pairs, made.people, made.alone, made.left_out) == (30, 6, 0, 0) and made.agreement > 0.8
    heads = load_file(made.path)["heads"]
    assert heads.shape[0] == 7

    asked = group("abc def")
    plain = AutoModelForSequenceClassification.from_pretrained(model, dtype=torch.float32).eval()
    ids = torch.tensor([[*asked.prompt.token_ids, *asked.completions[0].response_ids]])
    with torch.no_grad():
        state = plain.base_model(input_ids=ids).last_hidden_state[0, -1]
    by_head = heads @ state
    config = RewardConfig(model=str(model), model_weight=2.0, uncertainty_penalty=1.5, precision=Precision.float32,
                          rules=[RuleRewardConfig(rule="finished", weight=0.25)])  # fmt: skip
    (outcome,) = ComposedScorer(config, Device.cpu).score([asked])
    assert isinstance(outcome, Reward)
    assert outcome.components["model"] == pytest.approx(float(by_head.mean()), abs=1e-5)
    assert outcome.components["model_spread"] == pytest.approx(float(by_head.std()), abs=1e-5)
    told = 2 * (by_head.mean() - 1.5 * by_head.std()) + 0.25 * outcome.components["finished"]
    assert outcome.score == pytest.approx(float(told), abs=1e-4)
    assert components(config) == ["finished", "model", "model_spread"]


def test_without_a_penalty_the_trained_head_alone_scores(model: Path, tmp_path: Path):
    config = RewardConfig(model=str(model), precision=Precision.float32)
    (before,) = ComposedScorer(config, Device.cpu).score([group("abc")])
    make_ensemble(str(model), settings(written(tmp_path / "p.jsonl", *map(pair, range(12)))), print)
    assert ComposedScorer(config, Device.cpu).score([group("abc")]) == [before]
    assert isinstance(before, Reward) and list(before.components) == ["model"]


@pytest.mark.slow
def test_the_same_call_gives_the_same_heads_and_another_seed_others(model: Path, tmp_path: Path):
    pairs = written(tmp_path / "p.jsonl", *map(pair, range(12)))
    first, again, other = (
        load_file(make_ensemble(str(model), settings(pairs, seed=seed), print).path)["heads"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again) and not torch.allclose(first, other)


def test_pairs_that_name_nobody_are_said(model: Path, tmp_path: Path):
    rows = [*map(pair, range(8)), pair(8, None)]
    made = make_ensemble(str(model), settings(written(tmp_path / "p.jsonl", *rows, {"prompt": "x"})), print)
    assert (made.pairs, made.alone, made.left_out) == (9, 1, 1)
    assert any("1 pairs name nobody" in line for line in ensemble_lines(made))
    one = [pair(n, "p") for n in range(8)]
    with pytest.raises(DataError, match="8 pairs of 1 people are left"):
        make_ensemble(str(model), settings(written(tmp_path / "one.jsonl", *one)), print)
    with pytest.raises(UserError, match="--heads 1"):
        make_ensemble(str(model), settings(written(tmp_path / "one.jsonl", *one), heads=1), print)


def test_heads_of_another_model_are_refused(model: Path, tmp_path: Path):
    trained = load_file(model / "model.safetensors")["score.weight"][0]
    with pytest.raises(ModelLoadError, match="has no ensemble"):
        read_heads(model, trained)
    path = write_heads(model, torch.ones(3, len(trained)), trained)
    assert torch.equal(read_heads(model, trained), torch.ones(3, len(trained)))
    with pytest.raises(ModelLoadError, match="made for another model"):
        read_heads(model, trained + 1)
    save_file({"heads": torch.ones(1)}, path)
    with pytest.raises(ModelLoadError, match="cannot be read"):
        read_heads(model, trained)
    assert path.parent.name == FOLDER  # transformers and digests of the model look at its own files alone


def test_a_penalty_without_an_ensemble_is_refused_before_ray(model: Path, tiny_model_dir: Path):
    reward = RewardConfig(model=str(model), uncertainty_penalty=1.0)
    config = RunConfig(algorithm=PPOConfig(), policy=LearnerConfig(model=str(tiny_model_dir)), reward=reward)
    needs = Needs(rollout=True, critic=True, reference=False, reward=True, shared_reference=True)
    with pytest.raises(ConfigError) as refused:
        refuse_impossible(config, needs)
    assert any("reward.uncertainty_penalty=1" in one and "has no ensemble" in one for one in refused.value.problems)
