"""What a rollout engine is, so that nothing above it knows vLLM. Pure: standard library and data.types only."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NewType, Protocol

from raylign.data.types import Prompt, RolloutGroup, RolloutMeta, SampleKey, SamplingParams

Ref = NewType("Ref", object)
"""Opaque to whoever passes it on: the object store's handle in the product, the value itself in a fault test."""


DTYPE_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


class EngineDead(RuntimeError):
    """The engine cannot serve any more; the message names the worker and the cause."""


class NoWorkerLeft(EngineDead):
    """Every rollout worker is gone: the machines are, rather than anything the run computes."""


class WeightUpdateError(RuntimeError):
    """A weight update that cannot become right, or an engine without one; the message names engine and tensor."""


@dataclass(frozen=True, slots=True)
class GroupHandle:
    """One RolloutGroup in the object store, and what the controller knows of its samples."""

    ref: Ref  # -> data.types.RolloutGroup
    metas: tuple[RolloutMeta, ...]


def metas_of(group: RolloutGroup) -> tuple[RolloutMeta, ...]:
    """What the controller keeps of each completion of a group."""
    return tuple(
        RolloutMeta(
            key=answer.key,
            prompt_tokens=len(group.prompt.token_ids),
            response_tokens=len(answer.response_ids),
            finish_reason=answer.finish_reason,
            min_policy_version=answer.min_policy_version,
            max_policy_version=answer.max_policy_version,
            mean_policy_version=answer.mean_policy_version,
        )
        for answer in group.completions
    )


@dataclass(frozen=True, slots=True)
class GenerationRequest:
    """One prompt to be sampled `len(keys)` times."""

    prompt: Prompt
    keys: tuple[SampleKey, ...]
    sampling: SamplingParams


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One tensor of a published model, by its Hugging Face name."""

    name: str
    shape: tuple[int, ...]
    dtype: str  # torch's name without the prefix: "float32", "bfloat16"
    digest: str  # hex digest of its bytes, see rollout.fingerprint


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """A low-rank adapter of one published weight."""

    weight: str  # Hugging Face name of the weight
    rank: int
    scale: float


@dataclass(frozen=True, slots=True)
class WeightManifest:
    """Everything the receiver must end up with, in sending order. A name that never arrives is an error.

    With `adapters` only these travel (rollout/adapters.py): the digests are still of whole tensors, and what has no
    adapter is as the engine has it.
    """

    version: int
    tensors: tuple[TensorSpec, ...]
    tied_embeddings: bool
    max_canary_gap: float = math.inf  # an engine that differs by more does not serve
    adapters: tuple[AdapterSpec, ...] = ()

    @property
    def num_bytes(self) -> int:
        """What travels to each engine."""
        if not self.adapters:
            return sum(math.prod(spec.shape) * DTYPE_BYTES[spec.dtype] for spec in self.tensors)
        specs = {spec.name: spec for spec in self.tensors}
        adapted = ((specs[adapter.weight], adapter.rank) for adapter in self.adapters)
        return sum(sum(spec.shape) * rank * DTYPE_BYTES[spec.dtype] for spec, rank in adapted)


@dataclass(frozen=True, slots=True)
class TransferLink:
    """Where the members of one transfer by broadcast meet, and what they must agree on (rollout/broadcast.py).

    The learner is rank 0; worker i has the ranks from 1 + i * ranks_per_worker.
    """

    address: str
    port: int
    workers: int
    ranks_per_worker: int  # its tensor-parallel size
    timeout_s: float  # of each phase, for a member
    bucket_bytes: int
    worker: int = 0  # whose link it is

    @property
    def world_size(self) -> int:
        """Members."""
        return 1 + self.workers * self.ranks_per_worker

    @property
    def first_rank(self) -> int:
        """Of the worker."""
        return 1 + self.worker * self.ranks_per_worker

    def of(self, worker: int) -> TransferLink:
        """The same meeting, for the worker numbered `worker` from 0."""
        return replace(self, worker=worker)


@dataclass(frozen=True, slots=True)
class Canary:
    """A fixed token sequence and the trainer's log-prob of each token after the first, at temperature 1."""

    token_ids: tuple[int, ...]
    logprobs: tuple[float, ...]  # len(token_ids) - 1


@dataclass(frozen=True, slots=True)
class EngineUse:
    """What an engine did since its version before."""

    cache_peak: float  # the largest share of its cache's blocks that requests held, after a step of the engine
    preemptions: int  # requests that had to give their blocks back and were computed again
    environment_restarts: int | None = None  # of the processes beside it; None: its samples act in no environment


@dataclass(frozen=True, slots=True)
class VerifyReport:
    """What an engine found when it compared what it serves with what it was sent."""

    version: int
    digests: Mapping[str, str]  # of the *served* weights, by Hugging Face name
    mismatched: tuple[str, ...]  # names whose served weights differ from the manifest
    missing: tuple[str, ...]  # names of the manifest that never arrived
    canary_gap: float  # mean absolute difference over the canary tokens, nats; infinite when one is not finite
    use: EngineUse | None = None  # None: the engine does not say

    def passed(self, max_canary_gap: float) -> bool:
        """True when the engine may serve."""
        return not self.mismatched and not self.missing and self.canary_gap <= max_canary_gap


class RolloutEngine(Protocol):
    """One serving engine. No token is sampled during a weight transaction: `begin_update` pauses or waits."""

    async def start(self) -> None: ...
    async def generate(self, requests: Sequence[GenerationRequest]) -> list[RolloutGroup]: ...
    async def score_tokens(self, token_ids: Sequence[Sequence[int]], temperature: float) -> list[list[float]]:
        """Log-prob of each token after the first, by the engine. For the canary and the equality tests."""
        ...

    async def begin_update(self, manifest: WeightManifest) -> None: ...
    async def load_bucket(self, where: str) -> None:
        """Load one bucket holding some of the manifest's tensors; `where` as rollout.bucket.reach names it."""
        ...

    async def join_transfer(self, link: TransferLink) -> None: ...
    async def receive_weights(self) -> None:
        """Instead of buckets: load what the learner broadcasts to all that joined."""
        ...

    async def finish_update(self, canaries: Sequence[Canary]) -> VerifyReport:
        """Reset caches, verify, and only report; the engine serves again after `resume(version)`."""
        ...

    async def resume(self, version: int) -> None: ...
    async def sleep(self) -> None:
        """Give the cards' memory back until the next update; calls wait meanwhile. Idempotent."""
        ...

    async def stop(self) -> None: ...
