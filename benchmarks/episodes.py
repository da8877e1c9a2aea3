"""Episodes with faults: 64 environments beside two simulated engines, and what our own code costs a turn.

    python -m benchmarks.episodes --model FOLDER --episodes 2000

Engines answer from a script after a random pause. Environments raise, hang, give no number or are lost. Every episode
has to come back once, with a reward or a named failure. The overhead is the processor time of a second pass without
pauses and faults, in which nothing but our code and the calculator run.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from raylign.data.tokenize import load_tokenizer
from raylign.data.turns import TurnWriter
from raylign.data.types import Completion, FinishReason, Message, Prompt, SampleKey, SamplingParams, VersionSpan
from raylign.rollout.environments.catalog import shipped
from raylign.rollout.environments.interfaces import Environment, EnvironmentFailure, EnvironmentLost, Outcome, ToolCall
from raylign.rollout.environments.local import LocalEnvironments
from raylign.rollout.episodes import EpisodeLimits, Episodes
from raylign.rollout.interfaces import GenerationRequest
from raylign.rollout.tool_calls import TaggedCalls

SAMPLES, AT_ONCE, ENGINES = 4, 64, 2
TURNS = 4
HANG_S, DEADLINE_S = 5.0, 0.25
FAULTS: Mapping[str, float] = {"raise": 0.01, "hang": 0.01, "no number": 0.01, "lost": 0.02}  # of each call


@dataclass
class Engine:
    """Calls the calculator three times, then answers; a pause each time when `pauses`."""

    texts: Sequence[Sequence[int]]
    pauses: bool
    turns: int = 0

    async def __call__(
        self, key: SampleKey, token_ids: Sequence[int], sampling: SamplingParams, turn: int
    ) -> Completion:
        self.turns += 1
        if self.pauses:
            await asyncio.sleep(random.uniform(0.001, 0.02))
        ids = tuple(self.texts[min(turn, len(self.texts) - 1)])[: sampling.max_new_tokens]
        return Completion(key, ids, (-1.0,) * len(ids), FinishReason.STOP, (VersionSpan(1, 0, len(ids)),), "")


@dataclass
class Faulty:
    """The shipped calculator, with faults drawn for each call."""

    inner: LocalEnvironments
    draw: random.Random
    rate: float
    injected: Counter[str] = field(default_factory=Counter)

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        return self.inner.tools

    def open(self) -> Environment:
        return _Faulty(self.inner.open(), self)

    def taken_restarts(self) -> int:
        return 0

    async def stop(self) -> None:
        return None

    async def maybe(self) -> None:
        drawn = self.draw.random() / self.rate if self.rate else 1e9
        for name, share in FAULTS.items():
            if drawn < share:
                self.injected[name] += 1
                return await self._happens(name)
            drawn -= share
        return None

    @staticmethod
    async def _happens(name: str) -> None:
        if name == "lost":
            raise EnvironmentLost("its process ended")
        if name == "hang":
            try:
                async with asyncio.timeout(DEADLINE_S):
                    await asyncio.sleep(HANG_S)
            except TimeoutError as error:
                raise EnvironmentFailure(f"the tool did not answer within {DEADLINE_S:g} s") from error
        raise EnvironmentFailure("step gave nan as reward" if name == "no number" else "it raised ValueError")


@dataclass
class _Faulty:
    inner: Environment
    faults: Faulty

    async def reset(self, row: Mapping[str, Any], seed: int) -> str:
        await self.faults.maybe()
        return await self.inner.reset(row, seed)

    async def step(self, action: ToolCall | str) -> Outcome:
        await self.faults.maybe()
        return await self.inner.step(action)

    async def final_reward(self, answer: str) -> float | None:
        await self.faults.maybe()
        return await self.inner.final_reward(answer)

    async def close(self) -> None:
        await self.inner.close()


async def play(model: str, episodes: int, *, faults: bool) -> dict[str, Any]:
    """Play `episodes`, `AT_ONCE` at a time, and account for all of them. Raises AssertionError for a lost one."""
    tokenizer = load_tokenizer(model)
    made = Faulty(LocalEnvironments(shipped("calculator"), {}, timeout_s=30), random.Random(1), 1.0 if faults else 0.0)
    writer = TurnWriter(tokenizer, made.tools)
    player = Episodes(made, writer, TaggedCalls(), EpisodeLimits(TURNS + 1, 0))
    call = 'Let me compute. <tool_call>{"name": "calculate", "arguments": {"expression": "(12 + 5) * 3"}}</tool_call>'
    end = int(tokenizer.eos_token_id)
    said = [[*tokenizer(text, add_special_tokens=False)["input_ids"], end] for text in [call] * (TURNS - 1) + ["51."]]
    prompt_ids = tuple(tokenizer("What is (12 + 5) * 3?" * 20, add_special_tokens=False)["input_ids"])
    engines = [Engine(said, faults) for _ in range(ENGINES)]
    room = asyncio.Semaphore(AT_ONCE // SAMPLES)

    async def group(number: int) -> list[Completion]:
        name = f"p{number}"
        prompt = Prompt(name, (Message("user", "?"),), prompt_ids, columns=json.dumps({"ground_truth": "51"}))
        keys = tuple(SampleKey(0, name, k) for k in range(SAMPLES))
        async with room:
            request = GenerationRequest(prompt, keys, SamplingParams(1.0, 600, seed=1))
            return list((await player.group(request, engines[number % ENGINES])).completions)

    started, used = time.perf_counter(), time.process_time()
    groups = await asyncio.gather(*(group(number) for number in range(episodes // SAMPLES)))
    seconds, cpu = time.perf_counter() - started, time.process_time() - used
    answers = [answer for one in groups for answer in one]
    turns = sum(engine.turns for engine in engines)
    assert len({answer.key for answer in answers}) == len(answers) == episodes, "an episode is missing or doubled"
    for answer in answers:
        assert answer.episode is not None
        assert bool(answer.episode.failure) != bool(answer.episode.rewards), answer.key
        assert answer.response_ids and answer.sampled[-1], answer.key
    failed = Counter(a.episode.failure for a in answers if a.episode is not None and a.episode.failure)
    paid = [a.episode.rewards[-1][1] for a in answers if a.episode is not None and a.episode.rewards]
    assert set(paid) == {1.0}, "an episode that was played to its end has its reward"
    return {
        "episodes": len(answers), "turns": turns, "seconds": round(seconds, 2), "failed": dict(failed),
        "injected": dict(made.injected), "cpu_ms_a_turn": round(1000 * cpu / turns, 3),
    }  # fmt: skip


def main() -> None:
    """Both passes, one line of JSON each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="a folder with a tokenizer")
    parser.add_argument("--episodes", type=int, default=2000)
    given = parser.parse_args()
    for faults in (True, False):
        sys.stdout.write(
            json.dumps({"faults": faults, **asyncio.run(play(given.model, given.episodes, faults=faults))}) + "\n"
        )


if __name__ == "__main__":
    main()
