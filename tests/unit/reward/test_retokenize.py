"""A reward model of another family: asked in text, it sees what its own tokenizer and template make of it."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from raylign.app.launch.fitting import Sequences, refuse_unfit
from raylign.app.launch.refusals import refuse_impossible
from raylign.conf.checks import Needs
from raylign.conf.errors import ConfigError
from raylign.conf.schema import Device, LearnerConfig, Precision, RewardConfig, RunConfig
from raylign.data.encoder import Encoder
from raylign.data.sample_model import tiny_model
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import (
    Completion,
    FinishReason,
    Message,
    Prompt,
    Reward,
    RewardFailure,
    RolloutGroup,
    SampleKey,
    SamplingParams,
    VersionSpan,
)
from raylign.reward.scorer import ComposedScorer
from raylign.reward.tokenizer_match import retokenize_problems, tokenizer_problems
from raylign.trainer.algorithms.ppo import PPOConfig
from raylign.trainer.engine.base import WRAPPER_PREFIX
from raylign.trainer.models.export import export_hf
from raylign.trainer.models.loading import load_scalar_model
from transformers import AutoModelForSequenceClassification

TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>[' + m.role + ']: ' + m.content }}"
    "{% if m.role == 'assistant' %}{{ '<|im_end|>' }}{% endif %}{{ '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>[assistant]: ' }}{% endif %}"
)


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("policy") / "tiny", tie=True)


@pytest.fixture(scope="module")
def foreign(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A reward model with other tokens and another template."""
    base = tiny_model(tmp_path_factory.mktemp("base") / "tiny", tie=True, vocab_size=400)
    tokenizer = load_tokenizer(str(base))
    tokenizer.chat_template = TEMPLATE
    model = load_scalar_model(base, precision=Precision.float32, new_head_seed=3)
    state = {name.removeprefix(WRAPPER_PREFIX): p.detach() for name, p in model.named_parameters()}
    folder = tmp_path_factory.mktemp("foreign") / "rm"
    export_hf(model, state.items(), folder, tokenizer)
    return folder


TURNS = (Message("system", "Be brief."), Message("user", "What is 2+2?"))
ANSWERS = [("4", True), ("It is four, I think", False), ("", True)]


def rollout(policy: Path) -> RolloutGroup:
    encoder = Encoder(load_tokenizer(str(policy)))
    prompt = encoder.encode_prompt(TURNS)
    completions = []
    for k, (text, finished) in enumerate(ANSWERS):
        ids = encoder.encode_reply(TURNS, text, finished=finished).token_ids[len(prompt) :]
        reason = FinishReason.STOP if finished else FinishReason.LENGTH
        span = VersionSpan(1, 0, len(ids))
        completions.append(Completion(SampleKey(0, "p", k), ids, (0.0,) * len(ids), reason, (span,), text))
    return RolloutGroup(Prompt("p", TURNS, prompt), SamplingParams(1.0, 8), tuple(completions))


def test_scores_are_those_of_transformers_on_the_models_own_template(policy: Path, foreign: Path) -> None:
    """The template's text as the model's own tokenizer reads it; a cut answer has no end token."""
    tokenizer = load_tokenizer(str(foreign))
    plain = AutoModelForSequenceClassification.from_pretrained(foreign, dtype=torch.float32).eval()
    plain.config.pad_token_id = None
    before = "<|im_start|>[system]: Be brief.\n<|im_start|>[user]: What is 2+2?\n<|im_start|>[assistant]: "
    expected = []
    for text, finished in ANSWERS:
        ids = tokenizer(before, add_special_tokens=False)["input_ids"]
        ids += tokenizer(text, add_special_tokens=False)["input_ids"]
        ids += tokenizer("<|im_end|>", add_special_tokens=False)["input_ids"] if finished else []
        with torch.no_grad():
            expected.append(plain(input_ids=torch.tensor([ids])).logits.item())
    config = RewardConfig(model=str(foreign), retokenize=True, precision=Precision.float32)
    outcomes = ComposedScorer(config, Device.cpu).score([rollout(policy)])
    assert [o.score for o in outcomes if isinstance(o, Reward)] == pytest.approx(expected, abs=1e-5)
    assert max(expected) - min(expected) > 0.01


COLUMNS = '{"tools": [{"type": "function", "function": {"name": "add", "parameters": {}}}], "level": 3}'


def test_turns_that_the_reward_models_template_refuses_are_failures_by_name(policy: Path, foreign: Path) -> None:
    """Tools that its template would drop: the answer would be judged without them."""
    group = rollout(policy)
    prompt = Prompt("p", TURNS, group.prompt.token_ids, columns=COLUMNS)
    config = RewardConfig(model=str(foreign), retokenize=True, precision=Precision.float32)
    [found, *_] = ComposedScorer(config, Device.cpu).score([RolloutGroup(prompt, group.sampling, group.completions)])
    assert isinstance(found, RewardFailure) and "does not use `tools`" in found.reason


def run(policy: Path, **reward: object) -> RunConfig:
    return RunConfig(
        algorithm=PPOConfig(name="ppo"), policy=LearnerConfig(model=str(policy)), reward=RewardConfig(**reward)
    )  # type: ignore[arg-type]


NEEDS = Needs(rollout=True, reward=True, critic=True, reference=True)


def test_another_family_is_refused_with_the_setting_that_allows_it(policy: Path, foreign: Path) -> None:
    with pytest.raises(ConfigError, match=r"set reward\.retokenize=true to let it score text"):
        refuse_impossible(run(policy, model=str(foreign)), NEEDS)
    assert tokenizer_problems(str(policy), str(foreign))


def test_the_rows_token_ids_are_held_against_a_reward_model_only_when_it_reads_them(
    policy: Path, foreign: Path
) -> None:
    rows = Sequences(longest=20, largest_id=430, remedy="shorter")
    asked = run(policy, model=str(foreign), retokenize=True)
    asked.critic.model = str(policy)
    refuse_unfit(asked, rows)
    asked.reward.retokenize = False
    with pytest.raises(ConfigError, match="has 400 token ids and the rows have id 430"):
        refuse_unfit(asked, rows)


def test_a_critic_does_not_start_from_a_model_that_reads_other_tokens(policy: Path, foreign: Path) -> None:
    config = run(policy, model=str(foreign), retokenize=True)
    with pytest.raises(ConfigError, match="no critic can start from it"):
        refuse_impossible(config, NEEDS)
    config.critic.model = str(policy)
    refuse_impossible(config, NEEDS)


def test_a_template_that_cannot_be_asked_is_refused_before_anything_is_loaded(foreign: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(foreign))
    tokenizer.chat_template = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('no system turn') }}{% endif %}" + TEMPLATE
    )
    tokenizer.save_pretrained(tmp_path)
    assert retokenize_problems(str(tmp_path), "") == []
    [problem] = retokenize_problems(str(tmp_path), "Be brief.")
    assert "cannot read a question and its answer" in problem and "no system turn" in problem
