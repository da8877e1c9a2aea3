"""Plays episodes: a model's turns and what an environment answers, as one stream of tokens a sample. Pure asyncio.

What was sampled stays as it was sampled; an environment's tokens are put between (data/turns.py) and marked as holes.
An episode whose environment fails is a completion with a named failure, which leaves its group; it is never scored 0.
"""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

from raylign.data.row_fields import RowError
from raylign.data.turns import TurnWriter
from raylign.data.types import (
    Completion,
    Episode,
    FinishReason,
    Prompt,
    RolloutGroup,
    SampleKey,
    SamplingParams,
    Turn,
    VersionSpan,
)
from raylign.rollout.environments.interfaces import (
    Environment,
    EnvironmentFailure,
    EnvironmentLost,
    EnvironmentRefused,
    Environments,
    Outcome,
    told_error,
)
from raylign.rollout.gate import gather_or_cancel
from raylign.rollout.interfaces import GenerationRequest
from raylign.rollout.sampling import sample_seed
from raylign.rollout.tool_calls import CallReader, Malformed

MOST_LOST = 2
"""How often an episode is played again whose environment ended through no fault of its own."""


_OTHER_TEXT = "reset gave another text than for the prompt's other samples; it has to follow row and seed"


class Sampler(Protocol):
    """An engine's side of a turn."""

    async def __call__(
        self, key: SampleKey, token_ids: Sequence[int], sampling: SamplingParams, turn: int
    ) -> Completion:
        """What the model says after `token_ids`. `turn`: its number, for the seed."""
        ...


@dataclass(frozen=True, slots=True)
class EpisodeLimits:
    """When an episode is cut."""

    max_turns: int
    max_turn_tokens: int  # 0: what is left of the episode's


@dataclass(slots=True)
class _Stream:
    """One episode's tokens so far."""

    prompt: tuple[int, ...]
    ids: list[int] = field(default_factory=list)
    logprobs: list[float] = field(default_factory=list)
    holes: list[tuple[int, int]] = field(default_factory=list)
    versions: list[VersionSpan] = field(default_factory=list)
    rewards: dict[int, float] = field(default_factory=dict)
    turns: list[Turn] = field(default_factory=list)

    def whole(self) -> list[int]:
        """Everything that the model reads next."""
        return [*self.prompt, *self.ids]

    def sampled(self, said: Completion, words: str) -> None:
        """A turn of the model's."""
        start = len(self.ids)
        self.ids += said.response_ids
        self.logprobs += said.rollout_logprobs
        self.versions += [VersionSpan(v.version, start + v.start, start + v.end) for v in said.versions]
        self.turns.append(Turn("assistant", words))

    def answered(self, ids: Sequence[int]) -> None:
        """Tokens of the environment's."""
        self.holes.append((len(self.ids), len(self.ids) + len(ids)))
        self.ids += ids
        self.logprobs += [0.0] * len(ids)

    def paid(self, reward: float | None) -> None:
        """For what was sampled last."""
        if reward is not None:
            last = len(self.ids) - 1
            self.rewards[last] = self.rewards.get(last, 0.0) + reward
            if not math.isfinite(sum(self.rewards.values())):
                raise EnvironmentFailure(f"its rewards add up to {sum(self.rewards.values())}")


class Episodes:
    """Every episode of a worker's process: the environments, and how their answers become tokens."""

    def __init__(
        self, environments: Environments, writer: TurnWriter, reader: CallReader, limits: EpisodeLimits
    ) -> None:
        """`writer` and `reader`: of the policy's tokenizer and the environments' tools."""
        self._environments, self._writer, self._reader, self._limits = environments, writer, reader, limits

    async def group(self, request: GenerationRequest, sample: Sampler) -> RolloutGroup:
        """All samples of one prompt, side by side. Raises what `sample` raises; an environment's failure is named in
        its completion."""
        opened = await self._all_opened(request)
        prompt = self._shared_prompt(request, opened)
        grown = len(prompt.token_ids) - len(request.prompt.token_ids)
        begun = next((one.text for one in opened if one.environment is not None), "")
        task = _Task(replace(request, prompt=prompt), request.sampling.max_new_tokens - grown, sample, begun)
        playing = [self._played(task, key, one) for key, one in zip(request.keys, opened, strict=True)]
        return RolloutGroup(prompt, request.sampling, tuple(await gather_or_cancel(playing)))

    def taken_restarts(self) -> int:
        """How often what serves the environments was started again, since it was asked last."""
        return self._environments.taken_restarts()

    async def stop(self) -> None:
        """End what serves the environments."""
        await self._environments.stop()

    async def _all_opened(self, request: GenerationRequest) -> list[_Opened]:
        """One for each key. Where the call is cancelled, what has begun is closed: a server counts its sessions."""
        opening = [asyncio.ensure_future(self._opened(request, key)) for key in request.keys]
        try:
            return await gather_or_cancel(opening)
        except BaseException:
            done = [one.result() for one in opening if one.done() and not one.cancelled() and one.exception() is None]
            await asyncio.gather(*(one.environment.close() for one in done if one.environment is not None))
            raise

    async def _opened(self, request: GenerationRequest, key: SampleKey) -> _Opened:
        """An environment with the text that it begins with."""
        row = _row(request.prompt)
        seed = sample_seed(request.sampling.seed or 0, key._replace(k=0)) & 0x7FFFFFFF  # the group's: it begins alike
        failure = ""
        for _ in range(1 + MOST_LOST):
            environment = None
            try:
                environment = self._environments.open()
                return _Opened(environment, _whole_characters(await environment.reset(row, seed)), "")
            except EnvironmentLost as error:
                failure = str(error)
            except (EnvironmentFailure, EnvironmentRefused) as error:
                if environment is not None:
                    await environment.close()
                return _Opened(None, "", str(error))
            except asyncio.CancelledError:
                if environment is not None:
                    await environment.close()
                raise
        return _Opened(None, "", failure)

    def _shared_prompt(self, request: GenerationRequest, opened: Sequence[_Opened]) -> Prompt:
        """With the environments' opening text, which all of a group share; one that differs from the first fails."""
        prompt = request.prompt
        texts = [one.text for one in opened if one.environment is not None]
        if not texts or not any(texts):
            return prompt
        for one in opened:
            if one.environment is not None and one.text != texts[0]:
                one.failure = _OTHER_TEXT
        if not texts[0]:
            return prompt
        try:
            longer = self._writer.reopened(prompt, texts[0])
            if len(longer.token_ids) - len(prompt.token_ids) < request.sampling.max_new_tokens:
                return longer
            reason = "its opening text is longer than rollout.max_new_tokens, and leaves nothing to answer with"
        except RowError as error:
            reason = f"its opening text cannot be put into the prompt: {error}"
        for one in opened:
            one.failure = one.failure or reason
        return prompt

    async def _played(self, task: _Task, key: SampleKey, opened: _Opened) -> Completion:
        """One episode, again from its start where its environment was lost."""
        for attempt in range(1 + MOST_LOST):
            stream = _Stream(task.request.prompt.token_ids)
            try:
                if opened.failure or opened.environment is None:
                    raise EnvironmentFailure(opened.failure)
                finish = await self._play(stream, opened.environment, task, key)
                return _completion(key, stream, finish, "")
            except EnvironmentLost as error:
                if attempt == MOST_LOST:
                    return await self._failed(stream, task, key, str(error))
            except EnvironmentFailure as error:
                return await self._failed(stream, task, key, str(error))
            finally:
                if opened.environment is not None:
                    await opened.environment.close()
            opened = await self._opened(task.request, key)
            if opened.environment is not None and opened.text != task.begun:
                opened.failure = _OTHER_TEXT
        raise AssertionError("the last attempt returns")

    async def _play(self, stream: _Stream, environment: Environment, task: _Task, key: SampleKey) -> FinishReason:
        sampling, budget = task.request.sampling, task.budget
        finish = FinishReason.LENGTH
        words = ""
        for turn in range(self._limits.max_turns):
            room = budget - len(stream.ids)
            most = min(room, self._limits.max_turn_tokens or room)
            said = await task.sample(key, stream.whole(), replace(sampling, max_new_tokens=most), turn)
            words = self._writer.words(said.response_ids)
            stream.sampled(said, words)
            if said.finish_reason is FinishReason.LENGTH and most == room:
                break
            outcomes, names = await self._stepped(environment, words)
            names = [_whole_characters(name) for name in names]
            stream.paid(_total(outcomes))
            if outcomes[-1].done:
                finish = FinishReason.STOP
                break
            answers = [_whole_characters(outcome.observation) for outcome in outcomes]
            try:
                between = self._writer.continued(stream.whole(), answers, names)
            except RowError as error:
                raise EnvironmentFailure(f"what it said cannot be put into the conversation: {error}") from error
            stream.turns += [Turn("tool" if name else "user", text) for name, text in zip(names, answers, strict=True)]
            if turn == self._limits.max_turns - 1 or len(between) >= budget - len(stream.ids):
                break
            stream.answered(between)
        stream.paid(await environment.final_reward(words))
        return finish

    async def _stepped(self, environment: Environment, words: str) -> tuple[list[Outcome], list[str]]:
        """What came of a turn, and the tools' names: "" where the model called none."""
        reply = self._reader.read(words) if self._environments.tools else None
        if reply is None or not reply.calls:
            return [await environment.step(words.strip())], [""]
        outcomes, names = [], []
        for call in reply.calls:
            malformed = isinstance(call, Malformed)
            names.append("error" if malformed else call.name)  # type: ignore[union-attr]
            outcomes.append(
                Outcome(told_error(call.reason)) if isinstance(call, Malformed) else await environment.step(call)
            )
            if outcomes[-1].done:
                break
        return outcomes, names

    async def _failed(self, stream: _Stream, task: _Task, key: SampleKey, reason: str) -> Completion:
        """What there is of it, with the reason. One that said nothing samples a token: each tells its weights."""
        if not stream.versions:
            one = await task.sample(key, stream.whole(), replace(task.request.sampling, max_new_tokens=1), 0)
            stream.sampled(one, self._writer.words(one.response_ids))
        return _completion(key, stream, FinishReason.LENGTH, reason)


@dataclass(frozen=True, slots=True)
class _Task:
    """What a group's episodes have in common."""

    request: GenerationRequest
    budget: int  # tokens of a response, the environment's included
    sample: Sampler
    begun: str  # the opening text that they share


@dataclass(slots=True)
class _Opened:
    """An environment that has begun; None and the reason when it has not."""

    environment: Environment | None
    text: str
    failure: str


def _completion(key: SampleKey, stream: _Stream, finish: FinishReason, failure: str) -> Completion:
    """A response ends with what was sampled: an answer that nobody reads any more is no part of it."""
    size = stream.versions[-1].end
    return Completion(
        key=key,
        response_ids=tuple(stream.ids[:size]),
        rollout_logprobs=tuple(stream.logprobs[:size]),
        finish_reason=finish,
        versions=tuple(stream.versions),
        text=next((turn.content for turn in reversed(stream.turns) if turn.role == "assistant"), ""),
        episode=Episode(
            holes=tuple(hole for hole in stream.holes if hole[1] <= size),
            rewards=() if failure else tuple(stream.rewards.items()),
            turns=tuple(stream.turns),
            failure=_whole_characters(failure),
        ),
    )


def _whole_characters(text: str) -> str:
    """Half a surrogate pair as U+FFFD: a call's JSON can hold one, and no tokenizer or file takes it."""
    return text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")


def _total(outcomes: Sequence[Outcome]) -> float | None:
    given = [outcome.reward for outcome in outcomes if outcome.reward is not None]
    return sum(given) if given else None


def _row(prompt: Prompt) -> Mapping[str, Any]:
    """A row as TRL gives it: its columns by name, and the prompt as turns."""
    columns: dict[str, Any] = json.loads(prompt.columns) if prompt.columns else {}
    truth = {} if prompt.ground_truth is None else {"ground_truth": prompt.ground_truth}
    return {**columns, **truth, "prompt": [{"role": m.role, "content": m.content} for m in prompt.messages]}
