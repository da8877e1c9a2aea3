"""Reward functions, servers, judges and sandboxes tried once before anything is started.

They score answers that are made up, so their numbers mean nothing. But one that fails whatever the answer (too few
values, no answer in time, a redirect) would fail in the first step as well, after minutes of loading models.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import replace

from raylign.app.launch.components import function_name
from raylign.app.launch.functions import reward_functions
from raylign.app.launch.judges import judge_rubrics
from raylign.conf.errors import ConfigError
from raylign.conf.schema import Device, RewardConfig, RunConfig
from raylign.data.types import (
    Completion,
    FinishReason,
    Prompt,
    RolloutGroup,
    SampleKey,
    SamplingParams,
    VersionSpan,
)
from raylign.reward.http_json import NO_ANSWER, shown
from raylign.reward.samples import NotScored, Score
from raylign.reward.scorer import ComposedScorer
from raylign.reward.sources import RewardSources
from transformers import PreTrainedTokenizerBase

MADE_UP = "I do not know."
TOO_SLOW = "raise request_timeout_s and timeout_s, or see why it is slow"
_PROMPTS = 2  # one alone would hide a function that gives a single value


def try_rewards(
    config: RunConfig, prompts: Sequence[Prompt], tokenizer: PreTrainedTokenizerBase, *, only_here: bool = False
) -> list[str]:
    """A warning for each that failed on these answers. Raises ConfigError for those that fail whatever the answer.

    `only_here`: functions and sandboxes alone; no server and no judge gets a prompt. Code is not run where no sandbox
    can be made: that is refused.
    """
    reward = replace(config.reward, remote=[], judges=[]) if only_here else config.reward
    if not (reward.functions or reward.remote or reward.judges or reward.code):
        return []
    sources = RewardSources(
        functions=reward_functions(reward), rubrics=judge_rubrics(reward), policy_model=config.policy.model
    )
    scorer = ComposedScorer(replace(reward, model="", rules=[]), Device.cpu, sources)
    try:
        found = scorer.trial([_group(config, prompt, tokenizer) for prompt in prompts[:_PROMPTS]])
    finally:
        scorer.stop()
    failed = [(*one, found[one[0]]) for one in _named(reward)]
    problems = [
        f"{key}: {(why := _reason(scores, url))}; {TOO_SLOW if why.startswith(NO_ANSWER) else fix}."
        for _, key, url, fix, scores in failed
        if _always(scores)
    ]
    if problems:
        raise ConfigError(problems)
    return [
        f"warning: {key}: no score for {len(scores)} made-up answers: {_reason(scores, url)}; if the policy's answers "
        f"fare alike, the run ends (reward.max_failed_fraction={reward.max_failed_fraction:g})"
        for _, key, url, _, scores in failed
        if all(isinstance(score, NotScored) for score in scores)
    ]


def _named(reward: RewardConfig) -> Iterator[tuple[str, str, str, str]]:
    """Name, key and value, address, and what to do."""
    for number, function in enumerate(reward.functions):
        fix = f"a reward function returns one number for each answer, within timeout_s={function.timeout_s:g}"
        yield function_name(function), f"reward.functions[{number}].path={function.path}", "", fix
    for number, remote in enumerate(reward.remote):
        fix = f"see whether the address and protocol={remote.protocol.value} are right"
        yield remote.name, f"reward.remote[{number}].url={shown(remote.url)}", remote.url, fix
    for number, judge in enumerate(reward.judges):
        fix = "see whether url, model and token_env are right"
        yield judge.name, f"reward.judges[{number}].url={shown(judge.url)}", judge.url, fix
    for number, code in enumerate(reward.code):
        yield code.name, f"reward.code[{number}].tests={code.tests}", "", "see docs/sandbox.md"


def _always(scores: Sequence[Score]) -> bool:
    return all(isinstance(score, NotScored) and score.always for score in scores)


def _reason(scores: Sequence[Score], url: str) -> str:
    """Of the first failure, without the address that it may begin with."""
    first = next(score for score in scores if isinstance(score, NotScored))
    if not url or not first.reason.startswith(shown(url)):
        return first.reason
    rest = first.reason.removeprefix(shown(url))
    return rest.removeprefix(":").strip() if rest.startswith((":", "/")) else f"it{rest}"


def _group(config: RunConfig, prompt: Prompt, tokenizer: PreTrainedTokenizerBase) -> RolloutGroup:
    """The row's own answer where it has one, which a function that compares with it can read."""
    text = prompt.ground_truth or MADE_UP
    ids = tuple(tokenizer(text, add_special_tokens=False)["input_ids"])
    key, spans = SampleKey(0, prompt.prompt_id, 0), (VersionSpan(0, 0, len(ids)),)
    made_up = Completion(key, ids, (0.0,) * len(ids), FinishReason.STOP, spans, text)
    sampling = SamplingParams(config.rollout.temperature, config.rollout.max_new_tokens)
    return RolloutGroup(prompt, sampling, (made_up,))
