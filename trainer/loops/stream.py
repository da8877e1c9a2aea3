"""What a step trains on, made up to `max_staleness` steps ahead of the training.

    draw prompts ──► rollouts ──┬─► reward ───────────────┐
                                └─► reference log-probs ──┴──► take(step)

A step's answers are scored in fixed chunks of prompts, each as soon as its last answer is in: no call waits for an
answer that it does not need, and what is packed together does not depend on which answer came first, so the numbers
are the same in every run. Step s is started when version s - 1 - max_staleness is published: no sample is ever older
than that, and none is thrown away for its age. Steps that the journal holds are taken from there.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby

from raylign.data.types import Prompt, Reward, RewardOutcome, SamplingParams
from raylign.rollout.interfaces import GroupHandle, Ref
from raylign.trainer.loops.clock import PhaseClock
from raylign.trainer.loops.interfaces import (
    BatchJournal,
    PromptDraw,
    PromptSource,
    ReferenceGroup,
    RewardPool,
    RolloutPool,
    StepBatch,
    TensorShards,
)


@dataclass(frozen=True, slots=True)
class StreamSettings:
    """How a step's rollouts are made."""

    prompts_per_step: int
    samples_per_prompt: int
    sampling: SamplingParams
    max_staleness: int = 0  # steps that generation may be ahead of training
    chunks: int = 1  # scoring calls of one step
    max_refills: int = 0  # draws that may replace groups whose rewards are all equal; 0: such groups stay


@dataclass(frozen=True, slots=True)
class StepRollouts:
    """One step's samples with everything that does not depend on the weights in training."""

    batch: StepBatch
    ref_logprobs: TensorShards | None
    seconds: Mapping[str, float]  # time/generation, time/reward, time/reference
    journaled: bool = False  # it comes from the journal: an earlier life of the run made it
    drawn: tuple[Sequence[RewardOutcome], ...] = ()  # of every draw, those left out included; of a new step only


@dataclass(frozen=True, slots=True)
class _Chunk:
    """Scored groups that lie side by side in the step."""

    groups: list[GroupHandle]
    outcomes: list[RewardOutcome]
    ref_logprobs: TensorShards | None


class RolloutStream:
    """Starts steps in order and hands them out in order. Raises at `take` what a role raised."""

    def __init__(
        self,
        rollouts: RolloutPool,
        reward: RewardPool,
        reference: ReferenceGroup | None,
        prompts: PromptSource,
        settings: StreamSettings,
        journal: BatchJournal,
    ) -> None:
        """`prompts`: at the position after `journal.last`."""
        self._rollouts, self._reward, self._reference = rollouts, reward, reference
        self._prompts, self._settings, self._journal = prompts, settings, journal
        self._steps: dict[int, asyncio.Task[StepRollouts]] = {}
        self._drawn: asyncio.Future[None] | None = None  # with refills: the step before has all its prompts
        self._scoring, self._referring = asyncio.Lock(), asyncio.Lock()

    async def take(self, step: int, *, last: int) -> StepRollouts:
        """The rollouts of `step`; version `step - 1` is published. Steps up to `last` may be started meanwhile."""
        for ahead in range(step, min(step + self._settings.max_staleness, last) + 1):
            if ahead not in self._steps:
                self._steps[ahead] = self._start(ahead)
        made = await self._steps.pop(step)
        if made.journaled:
            return made
        position = self._prompts.taught(step, made.batch.data, made.drawn)
        return replace(made, batch=replace(made.batch, data=position))

    @property
    def ready(self) -> int:
        """Steps that are finished and wait for the training."""
        return sum(task.done() for task in self._steps.values())

    async def close(self) -> None:
        """Give up what is under way; a resumed run draws the same prompts again."""
        tasks = list(self._steps.values())
        self._steps.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _start(self, step: int) -> asyncio.Task[StepRollouts]:
        if step <= self._journal.last:
            return asyncio.create_task(self._again(step))
        if self._settings.max_refills:
            before, self._drawn = self._drawn, asyncio.get_running_loop().create_future()
            return asyncio.create_task(self._with_contrast(before, self._drawn))
        self._prompts.begin()
        draws = self._prompts.next_batch(self._settings.prompts_per_step)
        return asyncio.create_task(self._plain(draws, self._prompts.state()))

    async def _plain(self, draws: Sequence[PromptDraw], position: Mapping[str, int | str]) -> StepRollouts:
        clock = PhaseClock()
        chunks = await self._sampled(draws, clock, reference=True)
        groups = [group for chunk in chunks for group in chunk.groups]
        outcomes = [outcome for chunk in chunks for outcome in chunk.outcomes]
        batch = StepBatch(tuple(groups), tuple(outcomes), position, ())
        drawn = tuple(made for chunk in chunks for _, made in _by_group(chunk))
        return StepRollouts(batch, _joined(chunks), clock.phases(), drawn=drawn)

    async def _again(self, step: int) -> StepRollouts:
        """From the journal; the reference sees the same chunks as the first time, so it says the same."""
        clock = PhaseClock()
        batch = await self._journal.read(step)
        chunks = 1 if self._settings.max_refills else self._settings.chunks
        parts = [
            _Chunk(list(groups), [], await self._refer(groups, clock))
            for groups in (batch.groups[part.start : part.stop] for part in _ranges(len(batch.groups), chunks))
        ]
        return StepRollouts(batch, _joined(parts), clock.phases(), journaled=True)

    async def _with_contrast(self, before: asyncio.Future[None] | None, drawn: asyncio.Future[None]) -> StepRollouts:
        """Groups whose rewards differ (dynamic sampling, DAPO, arXiv:2503.14476 section 3.2).

        Missing ones are drawn anew at most `max_refills` times; then groups without contrast fill the step, so that its
        size never changes. Prompts are drawn in the order of steps: a checkpoint's position is one number.
        """
        clock, wanted = PhaseClock(), self._settings.prompts_per_step
        kept: list[tuple[GroupHandle, list[RewardOutcome]]] = []
        equal: list[tuple[GroupHandle, list[RewardOutcome]]] = []
        drawn_outcomes: list[list[RewardOutcome]] = []
        try:
            if before is not None:
                await before
            self._prompts.begin()
            for _ in range(1 + self._settings.max_refills):
                draws = self._prompts.next_batch(wanted - len(kept))
                for chunk in await self._sampled(draws, clock, reference=False):
                    for group, outcomes in _by_group(chunk):
                        drawn_outcomes.append(outcomes)
                        (kept if _has_contrast(outcomes) else equal).append((group, outcomes))
                if len(kept) == wanted:
                    break
            position = self._prompts.state()
        finally:
            if not drawn.done():
                drawn.set_result(None)
        missing = wanted - len(kept)
        step, left_out = kept + equal[:missing], equal[missing:]
        groups = [group for group, _ in step]
        ref_logprobs = await self._refer(groups, clock)
        batch = StepBatch(
            groups=tuple(groups),
            outcomes=tuple(outcome for _, outcomes in step for outcome in outcomes),
            data=position,
            filtered=tuple(outcome.key for _, outcomes in left_out for outcome in outcomes),
        )
        return StepRollouts(batch, ref_logprobs, clock.phases(), drawn=tuple(drawn_outcomes))

    async def _sampled(self, draws: Sequence[PromptDraw], clock: PhaseClock, *, reference: bool) -> list[_Chunk]:
        """Every draw answered and scored, in chunks in the order of `draws`."""
        arrivals = _Arrivals(len(draws), self._settings.chunks)

        async def scored(number: int) -> _Chunk:
            groups = await arrivals.chunk(number)
            outcomes, ref_logprobs = await asyncio.gather(
                self._score(groups, clock), self._refer(groups, clock) if reference else _nothing()
            )
            return _Chunk(groups, outcomes, ref_logprobs)

        scoring = [asyncio.create_task(scored(number)) for number in range(arrivals.num_chunks)]
        try:
            with clock.phase("generation"):
                await self._generate(draws, arrivals.put)
            return await asyncio.gather(*scoring)
        finally:
            for task in scoring:
                task.cancel()

    async def _generate(self, draws: Sequence[PromptDraw], put: Callable[[int, GroupHandle], None]) -> None:
        calls, first = [], 0
        for epoch, part in groupby(draws, key=lambda draw: draw.epoch):
            prompts: list[Prompt] = [draw.prompt for draw in part]
            calls.append(
                self._rollouts.generate(
                    prompts,
                    epoch=epoch,
                    samples_per_prompt=self._settings.samples_per_prompt,
                    sampling=self._settings.sampling,
                    arrived=lambda index, group, first=first: put(first + index, group),  # type: ignore[misc]
                )
            )
            first += len(prompts)
        await asyncio.gather(*calls)

    async def _score(self, groups: Sequence[GroupHandle], clock: PhaseClock) -> list[RewardOutcome]:
        async with self._scoring:  # one chunk at a time: what a reward model packs together is then a chunk
            return await clock.timed("reward", self._reward.score(groups))

    async def _refer(self, groups: Sequence[GroupHandle], clock: PhaseClock) -> TensorShards | None:
        if self._reference is None:
            return None
        async with self._referring:
            temperature = self._settings.sampling.temperature
            return await clock.timed("reference", self._reference.logprobs(groups, temperature=temperature))


class _Arrivals:
    """Groups as they come, and who waits for which of them."""

    def __init__(self, size: int, chunks: int) -> None:
        self._ranges = _ranges(size, chunks)
        self._groups: dict[int, GroupHandle] = {}
        self._complete = [asyncio.Event() for _ in self._ranges]
        self._missing = [len(numbers) for numbers in self._ranges]
        self._width = len(self._ranges[0]) if self._ranges else 1

    @property
    def num_chunks(self) -> int:
        return len(self._ranges)

    def put(self, number: int, group: GroupHandle) -> None:
        chunk = number // self._width
        self._groups[number] = group
        self._missing[chunk] -= 1
        if not self._missing[chunk]:
            self._complete[chunk].set()

    async def chunk(self, number: int) -> list[GroupHandle]:
        await self._complete[number].wait()
        return [self._groups[index] for index in self._ranges[number]]


def _ranges(size: int, chunks: int) -> list[range]:
    """`size` numbers in at most `chunks` parts of one width, the last one perhaps shorter."""
    width = -(-size // max(1, min(chunks, size))) if size else 1
    return [range(start, min(start + width, size)) for start in range(0, size, width)]


async def _nothing() -> None:
    return None


def _by_group(chunk: _Chunk) -> list[tuple[GroupHandle, list[RewardOutcome]]]:
    rest, parts = list(chunk.outcomes), []
    for group in chunk.groups:
        size = len(group.metas)
        parts.append((group, rest[:size]))
        rest = rest[size:]
    return parts


def _has_contrast(outcomes: Sequence[RewardOutcome]) -> bool:
    """True when two answers to one prompt have different rewards: else every advantage of the group is zero."""
    return len({outcome.score for outcome in outcomes if isinstance(outcome, Reward)}) > 1


def _joined(chunks: Sequence[_Chunk]) -> TensorShards | None:
    """The chunks' shards as those of the whole step. None when there is no reference."""
    refs: list[Ref] = []
    numbers: list[tuple[int, ...]] = []
    first = 0
    for chunk in chunks:
        if chunk.ref_logprobs is None:
            return None
        refs += chunk.ref_logprobs.refs
        numbers += [tuple(first + g for g in groups) for groups in chunk.ref_logprobs.groups]
        first += len(chunk.groups)
    return TensorShards(tuple(refs), tuple(numbers))
