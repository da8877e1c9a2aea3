"""Composition: parts that do not apply, parts that fail, and what becomes of a sample then."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from raylign.conf.schema import Device, JudgeRewardConfig, RewardConfig, RewardFunctionConfig, RuleRewardConfig
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import (
    Completion,
    Episode,
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
from raylign.reward.functions import read_source
from raylign.reward.judge import Rubric
from raylign.reward.scorer import ComposedScorer
from raylign.reward.sources import RewardSources

from tests.unit.reward.json_server import Reply, serving

FILE = """
def word(completions): return [c[0]["content"] for c in completions]

def sums(prompts, completions, **rest): return [1.0 if w == "4" else None for w in word(completions)]

def long(prompts, completions, **rest): return [None if len(w) < 2 else float(len(w)) for w in word(completions)]

def told(queries, prompts, labels): return {"rewards": [float(len(q) - len(p)) for q, p in zip(queries, prompts)]}

def raises(prompts, completions, **rest): raise RuntimeError("gone")
"""


def group(tokenizer: object, *answers: str) -> RolloutGroup:
    def completion(k: int, text: str) -> Completion:
        ids = (*tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)  # type: ignore[operator, attr-defined]
        return Completion(
            SampleKey(0, "p", k), ids, (0.0,) * len(ids), FinishReason.STOP, (VersionSpan(1, 0, 1),), text
        )

    turns = (Message("user", "2+2?"),)
    return RolloutGroup(
        Prompt("p", turns, (1, 2)), SamplingParams(1.0, 8), tuple(completion(k, a) for k, a in enumerate(answers))
    )


def scored(folder: Path, model: Path, names: dict[str, float], *answers: str, rules: dict[str, float] | None = None):
    (folder / "mine.py").write_text(FILE)
    config = RewardConfig(
        functions=[RewardFunctionConfig(path=f"{folder}/mine.py:{n}", weight=w) for n, w in names.items()],
        rules=[RuleRewardConfig(rule=n, weight=w) for n, w in (rules or {}).items()],
    )
    sources = RewardSources(functions=tuple(read_source(f.path) for f in config.functions), policy_model=str(model))
    scorer = ComposedScorer(config, Device.cpu, sources)
    return scorer.score([group(load_tokenizer(str(model)), *answers)])


def test_a_row_uses_the_functions_that_apply_to_it(tmp_path: Path, tiny_model_dir: Path) -> None:
    first, second, third = scored(tmp_path, tiny_model_dir, {"sums": 2.0, "long": 0.5}, "4", "four", "5")
    assert isinstance(first, Reward) and first.score == 2.0 and first.components == {"sums": 1.0}
    assert isinstance(second, Reward) and second.score == 2.0 and second.components == {"long": 4.0}
    assert isinstance(third, RewardFailure)
    assert third.reason == "sums, long gave None, not applicable, and nothing else scored the answer"


def test_a_part_of_weight_0_does_not_stand_for_one_that_does_not_apply(tmp_path: Path, tiny_model_dir: Path) -> None:
    """It measures; a reward of 0 made of nothing would be a lie."""
    found = scored(tmp_path, tiny_model_dir, {"sums": 1.0}, "4", "5", rules={"concise": 0.0})
    assert isinstance(found[0], Reward) and isinstance(found[1], RewardFailure)


def test_a_failure_is_not_made_good_by_what_applies(tmp_path: Path, tiny_model_dir: Path) -> None:
    [found] = scored(tmp_path, tiny_model_dir, {"sums": 1.0, "raises": 1.0}, "4")
    assert isinstance(found, RewardFailure) and found.reason == "reward function raises: it raised RuntimeError: gone"


def test_openrlhfs_query_is_what_was_sampled_special_tokens_included(tmp_path: Path, tiny_model_dir: Path) -> None:
    [found] = scored(tmp_path, tiny_model_dir, {"told": 1.0}, "4")
    end = load_tokenizer(str(tiny_model_dir)).eos_token
    assert isinstance(found, Reward) and found.score == pytest.approx(len("4") + len(end))


def test_an_unreadable_judgement_is_counted_apart_from_a_failed_call(tiny_model_dir: Path) -> None:
    """And neither is a score of 0."""

    def answer(body: object, _: int) -> Reply:
        word = body["messages"][0]["content"]  # type: ignore[index]
        message = {"content": "Score: 5" if word == "4" else "hm"}
        return Reply({"choices": [{"message": message}]}, 400 if word == "down" else 200)

    with serving(answer) as asked:
        config = RewardConfig(judges=[JudgeRewardConfig(url=asked.url, model="wise", rubric="", weight=2.0)])
        scorer = ComposedScorer(config, Device.cpu, RewardSources(rubrics=(Rubric.of("{{answer}}"),)))
        found = scorer.score([group(load_tokenizer(str(tiny_model_dir)), "4", "5", "down")])
    assert isinstance(found[0], Reward) and found[0].score == 10.0
    assert [o.unreadable for o in found if isinstance(o, RewardFailure)] == [True, False]


def test_what_an_environment_gives_is_a_part_and_what_it_cannot_give_is_a_failure(tiny_model_dir: Path) -> None:
    """The last token's reward is what is left of the score; without any, the rules judge alone."""
    given = group(load_tokenizer(str(tiny_model_dir)), "four", "five", "six")
    last = len(given.completions[0].response_ids) - 1
    episodes = (
        Episode((), ((0, 0.25), (last, 1.0)), ()),
        Episode((), (), (), failure="the tool hangs"),
        Episode((), (), ()),
    )
    played = [replace(c, episode=e) for c, e in zip(given.completions, episodes, strict=True)]
    config = RewardConfig(rules=[RuleRewardConfig(rule="finished", weight=0.5)])
    scorer = ComposedScorer(config, Device.cpu, RewardSources(environment_weight=2.0))

    paid, failed, judged = scorer.score([replace(given, completions=tuple(played))])
    assert isinstance(paid, Reward) and paid.components == {"finished": 1.0, "environment": 1.25}
    assert paid.score == pytest.approx(2 * 1.25 + 0.5) and paid.steps == ((0, 0.5),)
    assert isinstance(failed, RewardFailure) and failed.reason == "the environment: the tool hangs"
    assert isinstance(judged, Reward) and judged.score == 0.5 and judged.steps == ()
