"""The online loop against in-memory roles: order of stages, failure, stopping and resuming. No Ray."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import pytest
from raylign.conf.errors import Preempted, RunFailed, Stopped
from raylign.conf.schema import KLController
from raylign.data.types import (
    FinishReason,
    Prompt,
    Reward,
    RewardFailure,
    RewardOutcome,
    RolloutMeta,
    SampleKey,
    SamplingParams,
)
from raylign.rollout.interfaces import NoWorkerLeft
from raylign.trainer.functional.kl import KLState
from raylign.trainer.loops.hooks import OnlineProgress, StepReport
from raylign.trainer.loops.interfaces import (
    ExperienceHandles,
    GroupHandle,
    PromptDraw,
    PublishResult,
    Ref,
    TensorShards,
    UpdateResult,
)
from raylign.trainer.loops.online import LostWorkers, OnlineLoop, OnlineRoles, OnlineSettings
from raylign.trainer.loops.stream import StreamSettings

from tests.unit.trainer.loops.memory_journal import MemoryJournal

SAMPLES = 2


@dataclass
class World:
    """Every role at once: it writes down what was asked of it, in order, and fails where it is told to."""

    events: list[str] = field(default_factory=list)
    lines: dict[int, Mapping[str, float]] = field(default_factory=dict)
    saved: list[OnlineProgress] = field(default_factory=list)
    drawn: list[str] = field(default_factory=list)
    position: int = 0
    failed_rewards: int = 0
    bad_step: int = -1
    skipped_step: int = -1
    mean_kl: float = 3.0
    served: int = -1
    updates: int = 0

    # prompts: twelve of them, so three a step cross an epoch's end inside step 5
    def next_batch(self, n: int) -> Sequence[PromptDraw]:
        draws = []
        for _ in range(n):
            epoch, index = divmod(self.position, 13)
            draws.append(PromptDraw(epoch, Prompt(f"p{index}", (), (1, 2))))
            self.position += 1
        return draws

    def begin(self) -> None: ...

    def state(self) -> Mapping[str, int | str]:
        return {"position": self.position}

    def taught(self, step: int, position: Mapping[str, int | str], drawn: object) -> Mapping[str, int | str]:
        return position

    # rollouts
    async def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        epoch: int,
        samples_per_prompt: int,
        sampling: SamplingParams,
        arrived: Callable[[int, GroupHandle], None] | None = None,
    ) -> list[GroupHandle]:
        assert self.served == self.updates, "rollouts must come from the newest published weights"
        self.events.append("generate")
        self.drawn += [f"{epoch}/{p.prompt_id}" for p in prompts]
        keys = [[SampleKey(epoch, p.prompt_id, k) for k in range(samples_per_prompt)] for p in prompts]
        metas = [tuple(RolloutMeta(key, 2, 3, FinishReason.STOP, 0, 0, 0) for key in group) for group in keys]
        groups = [GroupHandle(Ref(prompt), meta) for prompt, meta in zip(prompts, metas, strict=True)]
        for number, group in enumerate(groups):
            if arrived:
                arrived(number, group)
        return groups

    # rewards
    async def score(self, groups: Sequence[GroupHandle]) -> list[RewardOutcome]:
        self.events.append("score")
        keys = [meta.key for group in groups for meta in group.metas]
        bad = self.failed_rewards
        good: list[RewardOutcome] = [Reward(key, 1.0, {}) for key in keys[bad:]]
        return [*[RewardFailure(key, "server answered 503") for key in keys[:bad]], *good]

    def shape(self, groups: Sequence[GroupHandle], outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        return list(outcomes)

    # publication
    async def publish(self, version: int) -> PublishResult:
        self.events.append(f"publish {version}")
        self.served = self.updates
        return PublishResult(version, 0.1, 10, 1, 0.0, 0.02)

    # assembling
    async def assemble(
        self,
        groups: Sequence[GroupHandle],
        outcomes: Sequence[RewardOutcome],
        *,
        logprobs: TensorShards | None,
        ref_logprobs: TensorShards | None,
        values: TensorShards | None,
        kl_coef: float,
        seed: int,
    ) -> ExperienceHandles:
        seen = [name for name, x in (("old", logprobs), ("ref", ref_logprobs), ("values", values)) if x is not None]
        self.events.append(f"assemble {'+'.join(seen)}")
        kept = sum(isinstance(o, Reward) for o in outcomes)
        return ExperienceHandles((Ref(seed),), (Ref(seed),), Ref(None), {"policy/kl": 0.5}, self.mean_kl, kept)

    # recording
    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self.events.append(f"log {step}")
        self.lines[step] = metrics

    refuses_saves: bool = False

    async def save(self, progress: OnlineProgress, *, wait: bool) -> str | None:
        assert progress.step in self.lines, "a checkpoint may not be ahead of metrics.jsonl"
        self.events.append(f"save {progress.step}")
        self.saved.append(progress)
        self.waited_for = [*self.waited_for, progress.step] if wait else self.waited_for
        return "the disk is full" if self.refuses_saves else None

    waited_for: list[int] = field(default_factory=list)
    closed: int = 0

    async def check(self) -> None: ...
    async def close(self) -> None:
        self.closed += 1

    async def on_start(self, progress: OnlineProgress) -> Mapping[str, float]:
        return {"eval/held_out/reward": 0.0} if progress.step == 0 else {}

    async def after_step(self, report: StepReport, *, last: bool) -> Mapping[str, float]:
        return {"eval/held_out/reward": 1.0} if last else {}


@dataclass
class Learner:
    """A policy, critic or reference group that lives in the World."""

    world: World
    role: str

    async def _forward(self) -> TensorShards:
        self.world.events.append(f"{self.role} forward")
        return TensorShards((), ())

    async def logprobs(self, groups: Sequence[GroupHandle], *, temperature: float) -> TensorShards:
        assert temperature == 0.7
        return await self._forward()

    async def values(self, groups: Sequence[GroupHandle]) -> TensorShards:
        return await self._forward()

    async def update(self, shards: Sequence[Ref], *, kl_coef: float = 0.0) -> UpdateResult:
        self.world.events.append(f"{self.role} update")
        step = self.world.updates + 1 if self.role == "policy" else self.world.updates
        if self.role == "policy":
            self.world.updates += 1
        loss = float("nan") if step == self.world.bad_step else 0.1
        applied = 0 if step == self.world.skipped_step else 2
        return UpdateResult({"loss": loss, "grad_norm": 1.0}, applied, 2 - applied)

    async def save(self, folder: str) -> None: ...
    async def export(self, folder: str) -> None: ...


def make_loop(
    world: World,
    *,
    num_steps: int = 3,
    start: OnlineProgress | None = None,
    stop_at: int = 10**9,
    full: bool = True,
    journal: MemoryJournal | None = None,
    fleet: LostWorkers | None = None,
) -> OnlineLoop:
    kl = KLState(KLController.adaptive, coef=0.1, target=1.0, horizon=100.0)
    roles = OnlineRoles(
        rollouts=world,
        policy=Learner(world, "policy"),
        reward=world,
        assembler=world,
        publisher=world,
        journal=journal or MemoryJournal(events=world.events),
        critic=Learner(world, "critic") if full else None,
        reference=Learner(world, "reference") if full else None,
        fleet=fleet,
    )
    settings = OnlineSettings(
        num_steps=num_steps,
        stream=StreamSettings(3, SAMPLES, SamplingParams(temperature=0.7, max_new_tokens=8)),
        recompute_logprobs=full,
        max_failed_fraction=0.5,
        save_every=2,
        seed=0,
        replace_timeout_s=10.0,
    )
    return OnlineLoop(
        roles,
        settings,
        prompts=world,
        progress=start or OnlineProgress(0, kl, world.state()),
        hooks=[world],
        sink=world,
        saver=world,
        should_stop=lambda: world.updates >= stop_at,
    )


def test_a_step_scores_before_it_updates_and_publishes_before_the_next_rollouts() -> None:
    world = World()
    asyncio.run(make_loop(world, num_steps=2).run())
    step = [
        "generate",
        "score",
        "reference forward",
        "policy forward",
        "critic forward",
        "assemble old+ref+values",
        "policy update",
        "critic update",
    ]
    journaled = [event for event in world.events if not event.startswith("journal")]
    assert journaled == ["publish 0", "log 0", *step, "publish 1", "log 1", *step, "publish 2", "log 2", "save 2"]
    for number in (1, 2):  # on disk before a weight moves
        assert world.events.index(f"journal {number}") < world.events.index(f"publish {number}") - 2


def test_roles_an_algorithm_does_not_ask_for_are_never_called() -> None:
    world = World()
    asyncio.run(make_loop(world, num_steps=1, full=False).run())
    assert "assemble " in world.events
    assert not [e for e in world.events if "critic" in e or "reference" in e or e == "policy forward"]


def test_an_epoch_that_ends_inside_a_step_draws_every_prompt_once() -> None:
    world = World()
    asyncio.run(make_loop(world, num_steps=5).run())
    assert world.drawn == [f"0/p{i}" for i in range(13)] + ["1/p0", "1/p1"]


def test_too_many_failed_rewards_end_the_run_and_name_the_first() -> None:
    world = World(failed_rewards=4)
    with pytest.raises(RunFailed, match=r"reward, step 1: 4 of 6 rewards failed.*503"):
        asyncio.run(make_loop(world).run())
    assert "policy update" not in world.events


def test_a_run_without_rollout_workers_left_can_be_resumed_where_there_are_others() -> None:
    class Lost(World):
        async def generate(self, *args: object, **kwargs: object) -> list[GroupHandle]:
            if self.updates == 2:
                raise NoWorkerLeft("no rollout worker serves: rollout/0 dead (its node is gone)")
            return await super().generate(*args, **kwargs)  # type: ignore[arg-type]

    with pytest.raises(Stopped, match=r"step 3: no rollout worker serves: rollout/0 dead"):
        asyncio.run(make_loop(Lost(), num_steps=5).run())


class Replaced(World):
    """The only worker is lost in step 3's rollouts, and again before step 4's publication; others come."""

    def __init__(self, comes: bool = True) -> None:
        super().__init__()
        self.comes, self.alive, self.again = comes, asyncio.Event(), False
        self.alive.set()

    def lost(self) -> bool:
        return self.comes and not self.alive.is_set()

    def replace(self) -> bool:
        self.again = True
        return self.lost()

    async def generate(self, *args: object, **kwargs: object) -> list[GroupHandle]:
        if self.updates == 2 and not self.again:
            self.alive.clear()
        await self.alive.wait()
        return await super().generate(*args, **kwargs)  # type: ignore[arg-type]

    async def publish(self, version: int) -> PublishResult:
        if version == 4 and self.alive.is_set():
            self.alive.clear()
            raise NoWorkerLeft("version 4 cannot be published: no rollout worker is alive")
        self.alive.set()
        return await super().publish(version)


def test_a_lost_worker_is_replaced_within_the_step_and_given_the_present_weights() -> None:
    world = Replaced()
    loop = make_loop(world, num_steps=5, fleet=world)
    asyncio.run(asyncio.wait_for(loop.run(), 30))
    published = [event for event in world.events if event.startswith("publish")]
    assert published == ["publish 0", "publish 1", "publish 2", "publish 2", "publish 3", "publish 4", "publish 5"]
    assert world.drawn == [f"0/p{i}" for i in range(13)] + ["1/p0", "1/p1"], "no prompt is drawn twice"


def test_a_publication_without_a_worker_to_come_ends_the_run_resumable() -> None:
    world = Replaced(comes=False)
    world.again = True  # nothing is lost in step 3
    with pytest.raises(Stopped, match="step 4: version 4 cannot be published"):
        asyncio.run(asyncio.wait_for(make_loop(world, num_steps=5, fleet=world).run(), 30))


def test_a_few_failed_rewards_are_counted_and_training_goes_on() -> None:
    world = World(failed_rewards=3)
    asyncio.run(make_loop(world, num_steps=1).run())
    assert world.lines[1]["reward/failed"] == 3.0


@pytest.mark.parametrize(
    ("world", "words"),
    [
        (World(bad_step=2), "critic, step 2: loss is nan"),
        (World(skipped_step=2), "critic, step 2: no optimizer step was applied"),
    ],
)
def test_an_update_that_is_not_a_number_is_never_published(world: World, words: str) -> None:
    """Both roles fail here; the critic is named, because its values are what spoils the policy's advantages."""
    with pytest.raises(RunFailed, match=words):
        asyncio.run(make_loop(world).run())
    assert "publish 1" in world.events and "publish 2" not in world.events


def test_the_kl_coefficient_follows_the_measured_kl() -> None:
    world = World(mean_kl=3.0)
    end = asyncio.run(make_loop(world, num_steps=2).run())
    assert end.kl.coef == pytest.approx(0.1 * (1 + 0.2 * 6 / 100) ** 2)


def test_a_save_that_may_fail_costs_nothing_and_the_last_one_may_not() -> None:
    world = World(refuses_saves=True)
    with pytest.raises(Stopped, match="step 3 is trained and could not be saved: the disk is full"):
        asyncio.run(make_loop(world).run())
    assert [progress.step for progress in world.saved] == [2, 3]
    assert world.waited_for == [3] and world.closed == 1, "the steps go on beside a save, the end does not"


def test_steps_of_the_journal_are_trained_again_and_not_sampled_again() -> None:
    whole, journal = World(), MemoryJournal()
    asyncio.run(make_loop(whole, num_steps=4, journal=journal).run())
    journal.last = 3
    again = World(position=int(journal.batches[3].data["position"]))
    start = OnlineProgress(1, whole.saved[0].kl, {"position": 3})
    end = asyncio.run(make_loop(again, num_steps=4, start=start, journal=journal).run())
    assert again.events.count("generate") == 1 and again.drawn == whole.drawn[9:]
    assert list(again.lines) == [2, 3, 4] and end.data == {"position": 12}
    assert "rollout/tokens_per_s" not in again.lines[2] and "rollout/tokens_per_s" in again.lines[4]


def test_a_stop_request_saves_and_a_resumed_run_draws_the_next_prompts() -> None:
    whole = World()
    asyncio.run(make_loop(whole, num_steps=4).run())

    first = World()
    with pytest.raises(Preempted, match="after step 1"):
        asyncio.run(make_loop(first, num_steps=4, stop_at=1).run())
    saved = first.saved[-1]
    second = World(position=int(saved.data["position"]))
    end = asyncio.run(make_loop(second, num_steps=4, start=saved).run())
    assert first.drawn + second.drawn == whole.drawn
    assert second.events[0] == "publish 1", "engines must serve the restored weights, under the restored version"
    assert 0 not in second.lines and end.step == 4
    assert end.kl.coef == pytest.approx(0.1 * (1 + 0.2 * 6 / 100) ** 4), "the KL coefficient survives the restart"
