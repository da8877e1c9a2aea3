"""Learners and engines on the same cards: every order of events, and a failure in each state.

The machine is real from end to end: TimeSharing, WeightPublisher, RolloutPool and VLLMEngine. Only vLLM's AsyncLLM and
the learners are recorders, which hold vLLM's own rules and say aloud when both sides have state on one card.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from types import SimpleNamespace

import pytest
from raylign.cluster.errors import FailureKind, RoleError
from raylign.conf.schema import RolloutConfig, SyncConfig
from raylign.data.types import Prompt, SamplingParams
from raylign.rollout.interfaces import (
    Canary,
    EngineDead,
    GenerationRequest,
    GroupHandle,
    Ref,
    TensorSpec,
    VerifyReport,
    WeightManifest,
    metas_of,
)
from raylign.rollout.pool import RolloutPool
from raylign.trainer.loops.canary_limit import CanaryLimit
from raylign.trainer.loops.publish import PublishError, WeightPublisher
from raylign.trainer.loops.time_sharing import TimeSharing, Turn

vllm_engine = pytest.importorskip("raylign.rollout.vllm_engine")

SAMPLING = SamplingParams(temperature=1.0, max_new_tokens=4)
CANARY = Canary((1, 2), (-0.5,))


class Broken(AssertionError):
    """A rule of the machine; never caught by the code under test, which catches no AssertionError."""


@dataclass
class Card:
    """One card and who has state on it."""

    state: bool = False  # of learners
    weights: bool = True  # of the engine
    cache: bool = True
    content: int = -1  # version of the weights; -1: memory without content
    verified: bool = False
    gone: bool = False  # the engine's process has ended

    def check(self) -> None:
        if self.state and not self.gone and (self.weights or self.cache):
            raise Broken("both sides have state on the card")


@dataclass
class FakeLLM:
    """vLLM's AsyncLLM on one card."""

    card: Card
    fail: tuple[str, int] = ("", 0)  # the n-th call of a verb
    calls: list[str] = field(default_factory=list)
    loading: int = -1
    paused: bool = False

    def _do(self, verb: str) -> None:
        self.calls.append(verb)
        if self.fail == (verb, self.calls.count(verb)):
            raise Exception(f"{verb} failed in a worker")

    async def sleep(self, level: int, mode: str) -> None:
        self._do("sleep")
        if (level, mode) != (2, "wait"):
            raise Broken("weights would be kept on the host, or answers thrown away")
        self.card.weights = self.card.cache = self.card.verified = False
        self.card.content, self.paused = -1, True

    async def wake_up(self, tags: list[str]) -> None:
        self._do(f"wake {tags[0]}")
        if tags == ["weights"]:
            self.card.weights = True
        if tags == ["kv_cache"]:
            if not self.card.verified:
                raise Broken("the cache came back before the weights were verified")
            self.card.cache, self.paused = True, False
        self.card.check()

    async def pause_generation(self, *, mode: str, clear_cache: bool) -> None:
        self._do("pause")
        self.paused = True

    async def resume_generation(self) -> None:
        self._do("resume")
        self.paused = False

    async def reset_prefix_cache(self) -> None: ...
    async def update_weight_version(self, version: str) -> None: ...
    async def check_health(self) -> None: ...
    async def is_sleeping(self) -> bool:
        return not self.card.cache

    async def collective_rpc(self, method: str, args: Sequence = ()) -> list:
        self._do(method)
        if not self.card.weights:
            raise Broken(f"{method} on weights that are not there")
        if method == "raylign_begin":
            self.loading = args[3]
        if method == "raylign_load":
            self.card.content = self.loading
        if method == "raylign_finish":
            wrong = self.fail == ("mismatch", self.calls.count("raylign_finish"))
            self.card.verified = not wrong and self.card.content == self.loading
            return [[[["a", "x", "", ""]], [] if self.card.verified else ["a"], []]]
        return []

    async def generate(self, prompt: object, params: object, *, request_id: str) -> AsyncIterator:
        self._do("generate")
        if not (self.card.weights and self.card.cache and self.card.verified) or self.paused:
            raise Broken("a token was sampled from weights or a cache that were not there")
        token = SimpleNamespace(logprob=-0.5, rank=1)
        span = SimpleNamespace(version=str(self.card.content), start=0, end=1)
        answer = SimpleNamespace(
            token_ids=[4], logprobs=[{4: token}], finish_reason="stop", weight_versions=[span], text="x"
        )
        yield SimpleNamespace(outputs=[answer], prompt_logprobs=[None, {2: token}])


class Handle:
    """A worker as the pool knows it, in this process; whatever is unknown is a dead engine, as through Ray."""

    def __init__(self, name: str, card: Card, fail: tuple[str, int]) -> None:
        self.name, self.card, self.llm = name, card, FakeLLM(card, fail)
        sync = SyncConfig(timeout_s=0.5, max_canary_gap=0.05)
        self.engine = vllm_engine.VLLMEngine("folder", RolloutConfig(timeout_s=0.5), sync, name=name)
        self.engine._llm = self.llm

    async def _call(self, verb: str, *args: object):
        if self.card.gone:
            raise EngineDead(f"{self.name} is gone")
        try:
            return await getattr(self.engine, verb)(*args)
        except Exception as error:
            if type(error) is Exception:
                raise EngineDead(f"{self.name}: {verb}: {error}") from error
            raise

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[GroupHandle]:
        return [GroupHandle(Ref(group), metas_of(group)) for group in await self._call("generate", requests)]

    async def begin_update(self, manifest: WeightManifest) -> None:
        await self._call("begin_update", manifest)

    async def load_bucket(self, bucket: Ref) -> None:
        await self._call("load_bucket", bucket)

    async def finish_update(self, canaries: Sequence[Canary]) -> VerifyReport:
        return await self._call("finish_update", canaries)

    async def resume(self, version: int) -> None:
        await self._call("resume", version)

    async def sleep(self) -> None:
        await self._call("sleep")

    async def ping(self) -> None:
        await self._call("ping")

    async def stop(self) -> None:
        self.card.gone = True


class Learner:
    """Has state on every card while it is its turn."""

    def __init__(self, cards: Sequence[Card], fail: tuple[str, int]) -> None:
        self.cards, self.fail, self.calls = cards, fail, []
        self._set(True)

    def _set(self, state: bool) -> None:
        for card in self.cards:
            card.state = state
            card.check()

    def _do(self, verb: str) -> None:
        self.calls.append(verb)
        if self.fail == (verb, self.calls.count(verb)):
            raise RoleError(role="policy", ranks=(0,), verb=verb, kind=FailureKind.DIED, cause="killed")

    async def offload_state(self) -> None:
        self._do("offload")
        self._set(False)

    async def reload_state(self) -> None:
        self._do("reload")
        self._set(True)

    async def update(self) -> None:
        self._do("update")
        if not all(card.state for card in self.cards):
            raise Broken("an update without the optimizer's state")

    async def manifest(self, version: int, *, adapters_only: bool = False) -> WeightManifest:
        return WeightManifest(version, (TensorSpec("a", (1,), "float32", "x"),), False)

    async def canaries(self) -> list[Canary]:
        return [CANARY]

    async def buckets(self) -> list[Ref]:
        self._do("buckets")
        return [Ref("bucket")]


class World:
    """A run of two cards, as the launcher builds it."""

    def __init__(self, engine_fails: tuple[str, int] = ("", 0), learner_fails: tuple[str, int] = ("", 0)) -> None:
        self.cards = [Card(), Card()]
        fails = [engine_fails, ("", 0)]
        self.handles = [Handle(f"r{i}", card, fails[i]) for i, card in enumerate(self.cards)]
        self.pool = RolloutPool(self.handles, max_concurrent=8, timeout_s=1.0)
        self.sharing = TimeSharing(self.pool, timeout_s=0.5)
        self.fails, self.version, self.drawn = learner_fails, 0, 0

    async def start(self) -> None:
        await self.sharing.clear()
        self.learner = Learner(self.cards, self.fails)
        self.sharing.admit(self.learner)
        self.fails = ("", 0)  # a learner that is started again is well
        self.publisher = WeightPublisher(
            self.learner, self.pool.members, timeout_s=0.5, canary_limit=CanaryLimit(0.05), cards=self.sharing
        )

    async def lose_learner(self) -> None:
        self.learner._set(False)  # its process is gone, and its memory with it
        await self.start()

    async def generate(self) -> None:
        self.drawn += 1
        prompts = [Prompt(f"p{self.drawn}-{i}", (), (1, 2)) for i in range(4)]
        groups = await self.pool.generate(prompts, epoch=0, samples_per_prompt=2, sampling=SAMPLING)
        assert {meta.max_policy_version for group in groups for meta in group.metas} == {self.version}

    async def publish(self) -> None:
        self.version += 1
        await self.publisher.publish(self.version)

    async def step(self) -> None:
        await self.generate()
        await self.sharing.learners()
        await self.learner.update()
        await self.publish()


def event(world: World, name: str):
    calls = {
        "generate": world.generate,
        "publish": world.publish,
        "learners": world.sharing.learners,
        "engines": world.sharing.engines,
        "restart": world.lose_learner,
    }
    return calls.get(name, world.learner.update)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["generate", "publish", "learners", "engines", "restart", "update"])
async def test_no_order_of_events_puts_both_sides_on_a_card_or_samples_from_what_is_not_there(first: str) -> None:
    events = ["generate", "publish", "learners", "engines", "restart", "update"]
    refused = 0
    for rest in product(events, repeat=3):
        world = World()
        await world.start()
        await world.publish()
        for name in (first, *rest):
            serving = [m for m in world.pool.members() if m.state.value == "serving"]
            turn = world.sharing.turn
            try:
                await event(world, name)()
            except (EngineDead, Broken) as error:
                # These two alone are refused: rollouts while nobody serves, and updates out of turn.
                if name == "generate":
                    assert not serving and isinstance(error, EngineDead), (first, rest, name, error)
                else:
                    assert name == "update" and turn is not Turn.LEARNERS, (first, rest, name, error)
                refused += 1
        await world.publish()  # and from wherever that led, a publication serves again
        await world.generate()
    assert refused


ENGINE_VERBS = (
    "sleep", "wake weights", "wake kv_cache", "pause", "raylign_begin", "raylign_load", "raylign_finish", "mismatch",
    "resume", "generate",
)  # fmt: skip


@pytest.mark.parametrize(("verb", "number"), list(product(ENGINE_VERBS, (1, 2, 3))))
async def test_an_engine_that_fails_in_any_state_costs_no_step(verb: str, number: int) -> None:
    world = World(engine_fails=(verb, number))
    await world.start()
    await world.publish()
    for _ in range(4):
        await world.step()
    await world.generate()
    bad, good = world.handles
    assert verb == "mismatch" or verb in bad.llm.calls, "the failure was never reached"
    assert good.card.content == world.version
    serves = {member.name: member.state.value for member in world.pool.members()}
    assert serves.pop("r1") == "serving"
    assert bad.card.gone or serves in ({"r0": "serving"}, {}), serves
    if verb == "sleep":
        assert bad.card.gone, "an engine that keeps its memory must not stay on the learners' card"


@pytest.mark.parametrize(("verb", "number"), list(product(("reload", "offload", "update", "buckets"), (1, 2))))
async def test_a_learner_that_fails_in_any_state_is_started_on_empty_cards(verb: str, number: int) -> None:
    world, failed = World(learner_fails=(verb, number)), 0
    await world.start()
    for action in (world.publish, *[world.step] * 4):
        try:
            await action()
        except RoleError:
            failed += 1
            assert world.sharing.turn is not Turn.LEARNERS or verb == "update"
            await world.lose_learner()
            await world.publish()
    assert failed == 1
    assert all(card.content == world.version and card.cache for card in world.cards)


async def test_with_every_engine_wrong_the_publication_says_so_and_no_cache_comes_back() -> None:
    world = World(engine_fails=("mismatch", 1))
    world.handles[1].llm.fail = ("mismatch", 1)
    for handle in world.handles:
        handle.llm.collective_rpc = _always_wrong(handle.llm)
    await world.start()
    with pytest.raises(PublishError, match="served weights differ from the learner's: a") as told:
        await world.publish()
    assert "canary" not in str(told.value)  # nothing was asked of an engine without a cache
    assert not any(card.cache for card in world.cards)


def _always_wrong(llm: FakeLLM):
    right = llm.collective_rpc

    async def wrong(method: str, args: Sequence = ()) -> list:
        found = await right(method, args)
        llm.card.verified = False
        return [[[["a", "y", "", ""]], ["a"], []]] if method == "raylign_finish" else found

    return wrong


async def test_learners_that_start_before_the_cards_are_empty_are_refused() -> None:
    sharing = TimeSharing(RolloutPool([], max_concurrent=1, timeout_s=1), timeout_s=1)
    with pytest.raises(RuntimeError, match=r"cards that are the engines'; call clear\(\)"):
        sharing.admit()


async def test_an_engine_that_never_falls_asleep_is_ended_within_the_deadline() -> None:
    world = World()
    await world.start()
    await world.publish()

    async def hang(level: int, mode: str) -> None:
        await asyncio.sleep(3600)

    world.handles[0].llm.sleep = hang
    await world.generate()
    async with asyncio.timeout(3):
        await world.sharing.learners()
    assert world.cards[0].gone and not world.cards[1].gone
    await world.learner.update()
    await world.publish()
