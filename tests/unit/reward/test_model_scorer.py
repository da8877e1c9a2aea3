"""The reward model against a plain transformers forward, and what must not change a score."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch
from raylign.conf.schema import Device, Precision
from raylign.data.sample_model import tiny_model
from raylign.data.types import Completion, FinishReason, Message, Prompt, SampleKey, VersionSpan
from raylign.reward.interfaces import RewardRuleError
from raylign.reward.model_scorer import ModelScorer
from raylign.reward.tokenizer_match import tokenizer_problems
from raylign.trainer.engine.base import WRAPPER_PREFIX
from raylign.trainer.models.export import export_hf
from raylign.trainer.models.loading import load_scalar_model
from transformers import AutoModelForSequenceClassification, AutoTokenizer


def save_reward_model(folder: Path, base: Path, *, seed: int = 5) -> Path:
    """A reward-model folder with a random head."""
    model = load_scalar_model(base, precision=Precision.float32, new_head_seed=seed)
    state = {name.removeprefix(WRAPPER_PREFIX): p.detach() for name, p in model.named_parameters()}
    export_hf(model, state.items(), folder, AutoTokenizer.from_pretrained(base))
    return folder


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("base") / "tiny", tie=True)


@pytest.fixture(scope="module")
def folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_reward_model(tmp_path_factory.mktemp("rm") / "rm", base)


def scorer(folder: Path, *, micro_batch_tokens: int = 200) -> ModelScorer:
    return ModelScorer(
        str(folder), precision=Precision.float32, device=Device.cpu, micro_batch_tokens=micro_batch_tokens
    )


def sequences(count: int) -> list[tuple[int, ...]]:
    draw = random.Random(3)
    return [tuple(draw.randrange(3, 500) for _ in range(draw.randrange(2, 60))) for _ in range(count)]


def test_score_is_the_state_after_the_last_token_even_when_that_is_the_pad_token(folder: Path) -> None:
    """transformers' own pooling scans for pad tokens; given no pad token and one row it must agree with ours."""
    pad = AutoTokenizer.from_pretrained(folder).pad_token_id
    rows = [*sequences(4), (7, 8, 9, pad), (pad, 5, pad, pad)]
    plain = AutoModelForSequenceClassification.from_pretrained(folder, dtype=torch.float32).eval()
    plain.config.pad_token_id = None
    with torch.no_grad():
        expected = [plain(input_ids=torch.tensor([row])).logits.item() for row in rows]
    assert scorer(folder).score(rows, [1] * 6) == pytest.approx(expected, abs=1e-4)


def test_a_score_does_not_depend_on_its_company(folder: Path) -> None:
    rows = [prompt + answer for prompt in sequences(3) for answer in sequences(6)]
    prompts = [len(prompt) for prompt in sequences(3) for _ in range(6)]
    model = scorer(folder)
    together = scorer(folder, micro_batch_tokens=100_000).score(rows, prompts)
    alone = [score for row in rows for score in model.score([row], [1])]
    reverse = scorer(folder, micro_batch_tokens=64).score(rows[::-1], prompts[::-1])[::-1]
    assert together == pytest.approx(alone, abs=1e-5)
    assert together == pytest.approx(reverse, abs=1e-5)
    assert max(together) - min(together) > 0.1


def completion(ids: tuple[int, ...], reason: FinishReason) -> Completion:
    return Completion(SampleKey(0, "p", 0), ids, tuple(0.0 for _ in ids), reason, (VersionSpan(1, 0, 1),), "")


def test_a_finished_answer_ends_with_one_end_token_and_a_cut_one_with_none(folder: Path) -> None:
    end = AutoTokenizer.from_pretrained(folder).eos_token_id
    prompt, model = Prompt("p", (Message("user", "?"),), (9, 10)), scorer(folder)
    assert model.sequence(prompt, completion((5, end), FinishReason.STOP)) == (9, 10, 5, end)
    assert model.sequence(prompt, completion((5,), FinishReason.STOP)) == (9, 10, 5, end)
    assert model.sequence(prompt, completion((5, 6), FinishReason.LENGTH)) == (9, 10, 5, 6)
    known = AutoTokenizer.from_pretrained(folder).added_tokens_decoder
    foreign = next(i for i, token in known.items() if token.special and i not in model._ends.ids)
    assert model.sequence(prompt, completion((5, foreign), FinishReason.STOP)) == (9, 10, 5, end)
    with pytest.raises(RewardRuleError, match="1031 tokens are more than the reward model's context of 1024"):
        model.sequence(prompt, completion((5,) * 1029, FinishReason.LENGTH))


def test_a_reward_model_of_another_tokenizer_is_refused_naming_both(base: Path, folder: Path, tmp_path: Path) -> None:
    assert tokenizer_problems(str(base), str(folder)) == []
    other = tiny_model(tmp_path / "other", tie=True, vocab_size=400)
    [problem] = tokenizer_problems(str(base), str(other))
    assert "different tokenizers" in problem and str(base) in problem and str(other) in problem
    assert f"{len(AutoTokenizer.from_pretrained(other))} tokens against" in problem
    changed = tmp_path / "changed"
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.chat_template = tokenizer.chat_template.replace("<|im_end|>", "")
    tokenizer.save_pretrained(changed)
    assert "different chat templates" in tokenizer_problems(str(base), str(changed))[0]
    assert tokenizer_problems(str(base), str(changed), str(tokenizer.chat_template)) == []
    another = "{% for m in messages %}{{ m.content }}{% endfor %}"
    assert "data.chat_template is not the chat" in tokenizer_problems(str(base), str(folder), another)[0]
    tokenizer = AutoTokenizer.from_pretrained(base)
    tokenizer.eos_token = "<|im_start|>"
    tokenizer.save_pretrained(changed)
    assert "end an answer with different tokens" in tokenizer_problems(str(base), str(changed))[0]
