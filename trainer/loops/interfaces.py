"""The handles the loops hold: typed facades over actor groups. No Ray here.

A `Ref` is opaque to the loop: the object store's handle in the product, the value itself in a fault test.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol

from raylign.data.types import Prompt, RewardOutcome, RolloutGroup, SampleKey, SamplingParams
from raylign.rollout.interfaces import Canary, EngineUse, GroupHandle, Ref, WeightManifest
from torch import Tensor


@dataclass(frozen=True, slots=True)
class TensorShards:
    """Per-token results of a forward pass, spread over ranks.

    `refs[i]` -> list with one flat tensor (or ValueEstimates) a group, for the groups numbered `groups[i]`.
    """

    refs: tuple[Ref, ...]
    groups: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class ExperienceHandles:
    """The assembled step: one RankShard reference a rank, and the figures the loop logs and steers by."""

    policy: tuple[Ref, ...]  # rank r -> data.types.RankShard[PolicyExperience]
    critic: tuple[Ref, ...]  # empty without a critic
    advantages: Ref  # -> dict[SampleKey, float], mean advantage over a sample's response: for the samples file
    metrics: Mapping[str, float]
    mean_kl: float  # nats a sequence, policy to reference, for the KL controller; nan when the reference is off
    num_sequences: int


@dataclass(frozen=True, slots=True)
class UpdateResult:
    """What one `update` call did, reduced over ranks and windows."""

    metrics: Mapping[str, float]  # names without group: "loss", "grad_norm", "clip_fraction", ...
    steps_applied: int
    steps_skipped: int  # non-finite gradient: counted, and an error when all are


@dataclass(frozen=True, slots=True)
class PublishResult:
    """A finished weight transaction."""

    version: int
    seconds: float
    num_bytes: int
    verified_workers: int
    canary_gap: float  # of the worst engine that serves
    canary_limit: float
    use: Mapping[str, EngineUse] = field(default_factory=dict)  # by worker: its work since the version before


@dataclass(frozen=True, slots=True)
class PromptDraw:
    """One prompt as drawn: the same prompt in another epoch is another sample."""

    epoch: int
    prompt: Prompt


class PromptSource(Protocol):
    """A resumable order over a prompt set."""

    def begin(self) -> None:
        """The next step's draws follow; called in the order of steps."""
        ...

    def next_batch(self, n: int) -> Sequence[PromptDraw]: ...
    def state(self) -> Mapping[str, int | str]:
        """Position after the draws so far, for the checkpoint."""
        ...

    def taught(
        self, step: int, position: Mapping[str, int | str], drawn: Sequence[Sequence[RewardOutcome]]
    ) -> Mapping[str, int | str]:
        """The position after `step`, by what every draw of it earned; called in the order of steps.

        `position`: after the step's draws. `drawn`: the raw outcomes of each draw, in the order of draws.
        """
        ...


class Publisher(Protocol):
    """Runs the whole weight transaction: afterwards every serving engine answers with this version."""

    async def publish(self, version: int) -> PublishResult: ...


class RolloutPool(Protocol):
    """Elastic rollout workers behind one call."""

    async def generate(
        self,
        prompts: Sequence[Prompt],
        *,
        epoch: int,
        samples_per_prompt: int,
        sampling: SamplingParams,
        arrived: Callable[[int, GroupHandle], None] | None = None,
    ) -> list[GroupHandle]:
        """One handle a prompt, in order. `arrived` gets each with its number as soon as it is there."""
        ...


class PolicyGroup(Protocol):
    """All ranks of the policy learner."""

    async def logprobs(self, groups: Sequence[GroupHandle], *, temperature: float) -> TensorShards: ...
    async def update(self, shards: Sequence[Ref], *, kl_coef: float) -> UpdateResult: ...
    async def save(self, folder: str) -> None: ...
    async def export(self, folder: str) -> None: ...


class CriticGroup(Protocol):
    """All ranks of the critic learner."""

    async def values(self, groups: Sequence[GroupHandle]) -> TensorShards: ...
    async def update(self, shards: Sequence[Ref]) -> UpdateResult: ...
    async def save(self, folder: str) -> None: ...


class ReferenceGroup(Protocol):
    """The frozen reference."""

    async def logprobs(self, groups: Sequence[GroupHandle], *, temperature: float) -> TensorShards: ...


class RewardScorer(Protocol):
    """Reward-model replicas and rules: one raw outcome a completion, group by group."""

    async def score(self, groups: Sequence[GroupHandle]) -> list[RewardOutcome]: ...


class RewardPool(RewardScorer, Protocol):
    """A scorer, and what makes a step's raw outcomes into those that are trained on."""

    def shape(self, groups: Sequence[GroupHandle], outcomes: Sequence[RewardOutcome]) -> list[RewardOutcome]:
        """Of one whole step, in the order of steps: the running statistics move."""
        ...


class WeightSource(Protocol):
    """The learner's side of a weight transaction."""

    async def manifest(self, version: int, *, adapters_only: bool = False) -> WeightManifest:
        """`adapters_only`: for engines that serve an earlier version; asked of a source with adapters alone."""
        ...

    async def canaries(self) -> Sequence[Canary]: ...
    async def buckets(self) -> Sequence[Ref]: ...


@dataclass(frozen=True, slots=True)
class StepBatch:
    """What a step trains on before any model has seen it: enough to do the step again."""

    groups: tuple[GroupHandle, ...]
    outcomes: tuple[RewardOutcome, ...]  # raw, one a completion, in the order of `groups`
    data: Mapping[str, int | str]  # the prompts' position after this step
    filtered: tuple[SampleKey, ...]  # samples that left because their group's rewards were all equal


class BatchJournal(Protocol):
    """Keeps the batch of a step on disk before it is trained."""

    @property
    def last(self) -> int:
        """The last step that can be done again from the journal; 0 or the resumed step when none can."""
        ...

    async def write(self, step: int, batch: StepBatch) -> None:
        """On disk when this returns."""
        ...

    async def read(self, step: int) -> StepBatch:
        """As it was written; steps up to `last` only."""
        ...


class TensorReader(Protocol):
    """Small reads back to the controller, for evaluation and samples only; never on the training path."""

    async def rollout_group(self, handle: GroupHandle) -> RolloutGroup: ...
    async def per_group(self, shards: TensorShards, num_groups: int) -> list[Tensor]:
        """One flat tensor a group, in group order."""
        ...


class ExperienceAssembler(Protocol):
    """Turns the stages' results into one shard a rank, away from the controller."""

    async def assemble(
        self,
        groups: Sequence[GroupHandle],
        outcomes: Sequence[RewardOutcome],
        *,
        logprobs: TensorShards | None,  # None: the engine's own log-probs are trusted
        ref_logprobs: TensorShards | None,
        values: TensorShards | None,
        kl_coef: float,
        seed: int,
    ) -> ExperienceHandles: ...
