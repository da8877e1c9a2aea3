"""Rollouts ahead of the training: how old they are, what is scored together, what a resume draws. No Ray."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from raylign.app.launch.prompts import WeightedPrompts
from raylign.data.draw_weights import DrawSettings
from raylign.data.types import FinishReason, Prompt, Reward, RewardOutcome, RolloutMeta, SampleKey, SamplingParams
from raylign.data.weighted_sampler import WeightedSampler
from raylign.rollout.interfaces import EngineDead, GroupHandle, Ref
from raylign.trainer.loops.interfaces import PromptDraw, TensorShards
from raylign.trainer.loops.stream import RolloutStream, StepRollouts, StreamSettings

from tests.unit.trainer.loops.memory_journal import MemoryJournal

SAMPLING = SamplingParams(temperature=0.7, max_new_tokens=8)


@dataclass
class World:
    """Prompts, engines, rewards and a reference. Rollouts of a prompt take a random number of turns of the loop."""

    position: int = 0
    version: int = 0
    turns: Callable[[], int] = lambda: 0
    drawn: list[str] = field(default_factory=list)
    scored: list[tuple[str, ...]] = field(default_factory=list)
    referred: list[tuple[str, ...]] = field(default_factory=list)
    missing_when_scored: list[int] = field(default_factory=list)
    equal: frozenset[int] = frozenset()  # prompts whose samples all get the same reward
    dead_at: int = -1
    running: int = 0
    prompts: WeightedPrompts | None = None  # None: p0, p1, p2, ...

    def next_batch(self, n: int) -> Sequence[PromptDraw]:
        first, self.position = self.position, self.position + n
        self.drawn += [f"p{i}" for i in range(first, first + n)]
        return [PromptDraw(i // 7, Prompt(f"p{i}", (), (1, 2))) for i in range(first, first + n)]

    def begin(self) -> None: ...

    def state(self) -> Mapping[str, int | str]:
        return {"position": self.position}

    def taught(self, step: int, position: Mapping[str, int | str], drawn: object) -> Mapping[str, int | str]:
        return position

    async def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        epoch: int,
        samples_per_prompt: int,
        sampling: SamplingParams,
        arrived: Callable[[int, GroupHandle], None] | None = None,
    ) -> list[GroupHandle]:
        async def one(number: int, prompt: Prompt) -> GroupHandle:
            self.running += 1
            try:
                version = self.version
                for _ in range(self.turns()):
                    await asyncio.sleep(0)
                if int(prompt.prompt_id[1:]) == self.dead_at:
                    raise EngineDead("rollout/0: gone")
                keys = [SampleKey(epoch, prompt.prompt_id, k) for k in range(samples_per_prompt)]
                metas = tuple(RolloutMeta(key, 2, 3, FinishReason.STOP, version, version, version) for key in keys)
                group = GroupHandle(Ref(prompt.prompt_id), metas)
                assert arrived is not None
                arrived(number, group)
                return group
            finally:
                self.running -= 1

        return list(await asyncio.gather(*(one(i, p) for i, p in enumerate(prompts))))

    async def score(self, groups: Sequence[GroupHandle]) -> list[RewardOutcome]:
        self.scored.append(tuple(str(group.ref) for group in groups))
        self.missing_when_scored.append(self.running)
        await asyncio.sleep(0)
        return [
            Reward(meta.key, 1.0 if int(meta.key.prompt_id[1:]) in self.equal else float(meta.key.k), {})
            for group in groups
            for meta in group.metas
        ]

    async def logprobs(self, groups: Sequence[GroupHandle], *, temperature: float) -> TensorShards:
        assert temperature == SAMPLING.temperature
        names = tuple(str(group.ref) for group in groups)
        self.referred.append(names)
        return TensorShards((Ref(names[::2]), Ref(names[1::2])), (tuple(range(len(names)))[::2],
                                                                  tuple(range(len(names)))[1::2]))  # fmt: skip


def stream(world: World, *, chunks: int = 2, journal: MemoryJournal | None = None, **settings: int) -> RolloutStream:
    given = StreamSettings(4, 2, SAMPLING, chunks=chunks, **settings)
    return RolloutStream(world, world, world, world.prompts or world, given, journal or MemoryJournal())


def names(step: StepRollouts) -> list[str]:
    return [str(group.ref) for group in step.batch.groups]


@pytest.mark.parametrize("staleness", [0, 1, 3])
async def test_no_sample_is_older_than_allowed_and_generation_is_as_far_ahead_as_it_may_be(staleness: int) -> None:
    world, last = World(), 8
    made, oldest = stream(world, max_staleness=staleness), []
    for step in range(1, last + 1):
        rollouts = await made.take(step, last=last)
        for _ in range(50):
            await asyncio.sleep(0)  # the training takes longer than all generation
        oldest.append(
            step - 1 - min(meta.min_policy_version for group in rollouts.batch.groups for meta in group.metas)
        )
        assert made.ready == min(staleness, last - step)
        world.version = step  # published
    assert max(oldest) == staleness and oldest[-1] == staleness
    assert world.drawn == [f"p{i}" for i in range(4 * last)], "nothing is drawn beyond the last step"


@pytest.mark.parametrize("staleness", [0, 2])
async def test_a_resumed_run_draws_what_was_ahead_again_and_nothing_twice(staleness: int) -> None:
    first = World()
    made, trained = stream(first, max_staleness=staleness), []
    for step in (1, 2):
        rollouts = await made.take(step, last=5)
        trained += names(rollouts)
    await made.close()
    assert first.running == 0, "what was under way is given up"
    second = World(position=int(rollouts.batch.data["position"]))
    again = stream(second, max_staleness=staleness)
    for step in (3, 4, 5):
        trained += names(await again.take(step, last=5))
    assert trained == [f"p{i}" for i in range(20)]


async def test_a_chunk_is_scored_when_its_own_last_answer_is_there_and_never_in_other_company() -> None:
    compositions = set()
    for seed in range(10):
        draw = random.Random(seed)
        world = World(turns=lambda draw=draw: draw.randrange(30))  # type: ignore[misc]
        rollouts = await stream(world, chunks=2).take(1, last=1)
        compositions |= set(world.scored)
        assert sorted(world.scored) == sorted(world.referred)
        assert names(rollouts) == ["p0", "p1", "p2", "p3"]
        assert [o.key.prompt_id for o in rollouts.batch.outcomes] == ["p0", "p0", "p1", "p1", "p2", "p2", "p3", "p3"]
        assert rollouts.ref_logprobs is not None
        by_group = {
            g: name
            for ref, numbers in zip(rollouts.ref_logprobs.refs, rollouts.ref_logprobs.groups, strict=True)
            for g, name in zip(numbers, ref, strict=True)
        }
        assert [by_group[g] for g in range(4)] == names(rollouts), "log-probs belong to other groups"
    assert compositions == {("p0", "p1"), ("p2", "p3")}
    slow = iter([0, 0, 50, 50])
    world = World(turns=lambda: next(slow))
    await stream(world, chunks=2).take(1, last=1)
    assert world.missing_when_scored == [2, 0], "the first chunk waited for answers of the second"


@pytest.mark.parametrize("refills", [0, 3])
async def test_a_step_of_the_journal_is_taken_from_there_and_the_next_one_is_drawn_after_it(refills: int) -> None:
    first = World(equal=frozenset({1}))
    made, journal = stream(first, chunks=3, max_refills=refills), MemoryJournal()
    for step in (1, 2):
        await journal.write(step, (await made.take(step, last=3)).batch)
    after = await made.take(3, last=3)

    journal.last = 2
    second = World(equal=frozenset({1}), position=int(journal.batches[2].data["position"]))
    again = stream(second, chunks=3, max_refills=refills, journal=journal)
    steps = [await again.take(step, last=3) for step in (1, 2, 3)]
    assert [step.batch for step in steps[:2]] == [journal.batches[1], journal.batches[2]]
    assert names(steps[2]) == names(after) and steps[2].batch.data == after.batch.data
    assert [step.journaled for step in steps] == [True, True, False]
    assert second.referred == first.referred, "what the reference packs together decides its last bits"
    assert len(second.scored) < len(first.scored)


async def test_groups_without_contrast_are_replaced_and_counted() -> None:
    world = World(equal=frozenset({1, 2, 5}))
    rollouts = await stream(world, max_refills=5).take(1, last=1)
    assert names(rollouts) == ["p0", "p3", "p4", "p6"]
    assert len(rollouts.batch.filtered) == 3 * 2 and rollouts.batch.data == {"position": 7}
    assert world.referred == [("p0", "p3", "p4", "p6")], "no pass over what is not trained on"


async def test_when_the_refills_are_used_up_the_step_keeps_its_size() -> None:
    world = World(equal=frozenset(range(100)) - {0})
    rollouts = await stream(world, max_refills=2).take(1, last=1)
    assert names(rollouts) == ["p0", "p1", "p2", "p3"] and world.position == 4 + 3 + 3
    assert len(rollouts.batch.filtered) == 6 * 2


async def test_refills_of_a_step_come_before_the_prompts_of_the_next() -> None:
    world = World(equal=frozenset({0, 4, 9}), turns=lambda: 3)
    made = stream(world, max_refills=4, max_staleness=2)
    steps = [await made.take(step, last=3) for step in (1, 2, 3)]
    assert [names(step) for step in steps] == [
        ["p1", "p2", "p3", "p5"], ["p6", "p7", "p8", "p10"], ["p11", "p12", "p13", "p14"]
    ]  # fmt: skip
    assert [step.batch.data["position"] for step in steps] == [6, 11, 15], "a resume would skip or repeat prompts"


async def test_a_role_that_fails_ahead_is_raised_at_its_step_and_leaves_nothing_running() -> None:
    world = World(dead_at=6, turns=lambda: 2)
    made = stream(world, max_staleness=2)
    await made.take(1, last=5)
    with pytest.raises(EngineDead, match="rollout/0: gone"):
        await made.take(2, last=5)
    await made.close()
    assert world.running == 0


def weighted(staleness: int, state: Mapping[str, int | str] | None = None) -> WeightedPrompts:
    """Nine prompts, of which p1, p4 and p7 are always solved: those are drawn less."""
    order, sources = DrawSettings({}, min_weight=0.2, lag=1 + staleness), ["a"] * 9
    prompts = [Prompt(f"p{i}", (), (1, 2)) for i in range(9)]
    made = (
        WeightedSampler.from_state(state, sources, order, data_hash="h")
        if state
        else WeightedSampler(sources, order, seed=5, shuffle=True, data_hash="h")
    )
    return WeightedPrompts(prompts, made, solved_score=1.0)


async def weighted_steps(world: World, journal: MemoryJournal, first: int, last: int, **given: int) -> list[str]:
    """What every step drew and what it left as the position, in words."""
    made, found = stream(world, journal=journal, **given), []
    for step in range(first, last + 1):
        rollouts = await made.take(step, last=12)
        if step > journal.last:
            await journal.write(step, rollouts.batch)
        keys = [meta.key for group in rollouts.batch.groups for meta in group.metas]
        found.append(f"{keys} {rollouts.batch.data['taught']}")
    await made.close()
    return found


@pytest.mark.parametrize(("staleness", "refills"), [(0, 0), (2, 0), (1, 2)])
async def test_what_prompts_taught_decides_the_order_alike_in_every_run_and_after_every_kill(
    staleness: int, refills: int
) -> None:
    given, easy = {"max_staleness": staleness, "max_refills": refills}, frozenset({1, 4, 7})

    def world(seed: int, state: Mapping[str, int | str] | None = None) -> World:
        draw = random.Random(seed)
        return World(turns=lambda: draw.randrange(9), equal=easy, prompts=weighted(staleness, state))

    journal = MemoryJournal()
    whole = await weighted_steps(world(0), journal, 1, 12, **given)
    assert await weighted_steps(world(1), MemoryJournal(), 1, 12, **given) == whole, "the order of arrival counts"
    for saved, written in ((0, 3), (4, 4), (5, 8), (11, 11)):  # the checkpoint's step and the journal's last
        kept = MemoryJournal({step: journal.batches[step] for step in range(1, written + 1)}, last=written)
        again = world(2, journal.batches[written].data)
        assert await weighted_steps(again, kept, saved + 1, 12, **given) == whole[saved:]
    if not refills:
        drawn = [meta.key.prompt_id for batch in journal.batches.values() for g in batch.groups for meta in g.metas]
        assert sum(name in ("p1", "p4", "p7") for name in drawn) < 0.25 * len(drawn), "of nine prompts three are easy"
