"""One environment file, played by TRL's own loop and by ours from the same sampled turns: tokens, masks and rewards.

TRL's trainer is built with a tiny model; what it would sample is replaced by a script, and so is ours.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from raylign.data.encoder import Encoder
from raylign.data.turns import TurnWriter
from raylign.data.types import (
    Completion,
    FinishReason,
    Message,
    Prompt,
    SampleKey,
    SamplingParams,
    VersionSpan,
)
from raylign.rollout.environments.local import LocalEnvironments
from raylign.rollout.episodes import EpisodeLimits, Episodes
from raylign.rollout.interfaces import GenerationRequest
from raylign.rollout.tool_calls import TaggedCalls
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tests.unit.data.chat_families import tokenizer
from tests.unit.one_process import alone  # noqa: F401

ROW = {"prompt": [{"role": "user", "content": "Reach it."}], "ground_truth": "8", "level": 2}


class Countdown:
    """TRL's form, with each kind of tool that may be met."""

    def __init__(self) -> None:
        self.value, self.calls, self.wanted = 1, 0, 0

    def reset(self, ground_truth: str, level: int, **row: Any) -> str:
        self.value, self.calls, self.wanted = 1, 0, int(ground_truth)
        return f"\n\nYou are at 1 on level {level}."

    def double(self) -> str:
        """Double the number."""
        return self._moved(2 * self.value)

    def add(self, amount: int) -> str:
        """Add to the number.

        Args:
            amount: from 1 to 9
        """
        if not 1 <= amount <= 9:
            raise ValueError("only 1 to 9\ncan be added")
        return self._moved(self.value + amount)

    async def look(self) -> dict[str, int]:
        """Look at the number."""
        return {"value": self.value}

    def _moved(self, value: int) -> str:
        self.value, self.calls = value, self.calls + 1
        return f"The number is {value}."

    def get_reward(self) -> float:
        return 1.0 - 0.125 * self.calls if self.value == self.wanted else 0.0


def call(name: str, **arguments: object) -> str:
    """In the form of Qwen's template."""
    return f"<tool_call>\n{json.dumps({'name': name, 'arguments': arguments})}\n</tool_call>"


SCRIPTS = (
    ("It is 8.",),  # calls nothing
    (f"So.\n{call('add', amount=3)}", call("double"), "Done."),
    (call("add", amount=30), f"{call('add', amount=7)}\n{call('double')}", call("look"), "16, too far."),  # raises
    (call("halve"), call("add"), call("add", amount=2, by=1), call("add", amount=7), "There."),  # no tool, no argument
)


def _tokenizer() -> PreTrainedTokenizerFast:
    template = resources.files("trl").joinpath("chat_templates", "qwen2_5.jinja").read_text(encoding="utf-8")
    made = tokenizer("gpt2", template, "<|im_end|>")
    made.pad_token = "<|endoftext|>"
    return made


def _turn(made: PreTrainedTokenizerFast, sample: int, turn: int) -> list[int]:
    return [*made(SCRIPTS[sample][turn], add_special_tokens=False)["input_ids"], made.eos_token_id]


@dataclass(frozen=True)
class Played:
    prompt: list[int]
    ids: list[int]
    sampled: list[bool]
    reward: float


def _theirs(made: PreTrainedTokenizerFast, folder: Path) -> list[Played]:
    """By TRL, one a sample."""
    from trl import GRPOConfig, GRPOTrainer  # seconds to import, in whichever process of the tests runs this one

    size = len(SCRIPTS)
    shape = LlamaConfig(
        vocab_size=len(made), hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1,
        max_position_embeddings=4096,
    )  # fmt: skip
    settings = GRPOConfig(
        str(folder), per_device_train_batch_size=size, num_generations=size, max_completion_length=1000,
        report_to=[], use_cpu=True, bf16=False, gradient_checkpointing=False,
    )  # fmt: skip
    trainer = GRPOTrainer(
        LlamaForCausalLM(shape), [], args=settings, train_dataset=Dataset.from_list([ROW]), processing_class=made,
        environment_factory=Countdown,
    )  # fmt: skip
    streams: list[list[int]] = []
    played = [0] * size
    rewards: list[float] = []

    def generate(prompts: list[list[int]], *_: object, **__: object) -> tuple[list[list[int]], list[list[float]]]:
        if not streams:
            streams.extend(list(ids) for ids in prompts)
            which = list(range(size))
        else:  # those that called a tool, each with what it said before
            which = [next(i for i, s in enumerate(streams) if ids[: len(s)] == s) for ids in prompts]
        said = [_turn(made, i, played[i]) for i in which]
        for i, ids, new in zip(which, prompts, said, strict=True):
            streams[i], played[i] = [*ids, *new], played[i] + 1
        return said, [[0.0] * len(ids) for ids in said]

    def score(*given: Any) -> torch.Tensor:
        found = calculate(*given)
        rewards.extend(found[:, 0].tolist())
        return found

    calculate = trainer._calculate_rewards
    trainer._generate_single_turn, trainer._calculate_rewards = generate, score
    out = trainer._generate_and_score_completions([dict(ROW) for _ in range(size)])
    sides = [
        (
            prompt[mask.bool()].tolist(),
            ids[inside.bool()].tolist(),
            tools[inside.bool()].bool().tolist(),
        )
        for prompt, mask, ids, inside, tools in zip(
            out["prompt_ids"], out["prompt_mask"], out["completion_ids"], out["completion_mask"], out["tool_mask"],
            strict=True,
        )
    ]  # fmt: skip
    return [Played(*side, reward) for side, reward in zip(sides, rewards, strict=True)]


def _ours(made: PreTrainedTokenizerFast) -> list[Played]:
    environments = LocalEnvironments(Countdown, {}, timeout_s=20)
    writer = TurnWriter(made, environments.tools)
    turns = (Message("user", "Reach it."),)
    prompt = Prompt(
        "p", turns, Encoder(made).encode_prompt(turns, writer.variables), ground_truth="8", columns='{"level": 2}'
    )
    keys = tuple(SampleKey(1, "p", k) for k in range(len(SCRIPTS)))

    async def sample(key: SampleKey, ids: Sequence[int], sampling: SamplingParams, turn: int) -> Completion:
        said = tuple(_turn(made, key.k, turn))
        return Completion(key, said, (0.0,) * len(said), FinishReason.STOP, (VersionSpan(1, 0, len(said)),), "")

    episodes = Episodes(environments, writer, TaggedCalls(), EpisodeLimits(max_turns=8, max_turn_tokens=0))
    group = asyncio.run(episodes.group(GenerationRequest(prompt, keys, SamplingParams(1.0, 1100, seed=1)), sample))
    return [
        Played(
            list(group.prompt.token_ids),
            list(answer.response_ids),
            answer.sampled,
            sum(value for _, value in answer.episode.rewards) if answer.episode else 0.0,
        )
        for answer in group.completions
    ]


def test_one_environment_file_gives_both_the_same_tokens_masks_and_rewards(tmp_path: Path):
    made = _tokenizer()
    ours, theirs = _ours(made), _theirs(made, tmp_path)
    for mine, other in zip(ours, theirs, strict=True):
        assert made.decode(mine.prompt) == made.decode(other.prompt)
        assert made.decode(mine.ids) == made.decode(other.ids)
        assert mine == other
    assert [one.reward for one in ours] == [0.0, 0.75, 0.0, 0.875]
