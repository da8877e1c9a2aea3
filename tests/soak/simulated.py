"""`raylign` with simulated engines: the command's own code, another actor behind the rollout workers' protocol.

A simulated engine draws tokens from its request's seed and key alone, takes a moment for it, and receives weights as a
real one does: bucket by bucket, digested, compared with the manifest. Learners, rewards, assembler, driver are real.

    python -m tests.soak.simulated train key=value ...
"""

from __future__ import annotations

import asyncio
import hashlib
import math
import random
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from raylign.cluster.rank import keep_log
from raylign.data.types import Completion, FinishReason, RolloutGroup, SampleKey, VersionSpan
from raylign.rollout import worker
from raylign.rollout.broadcast import TransferGroup
from raylign.rollout.bucket import Pieces
from raylign.rollout.fingerprint import tensor_digest
from raylign.rollout.interfaces import Canary, GenerationRequest, TransferLink, VerifyReport, WeightManifest, metas_of
from raylign.rollout.worker import WorkerSpec
from safetensors.torch import load

VOCABULARY = 512
TAKES_S = 0.25
"""Of one call: long enough that a fault finds an engine at work."""


class SimulatedWorker:
    """In the place of rollout.worker.RolloutWorker."""

    def __init__(self, spec: WorkerSpec) -> None:
        keep_log(Path(spec.log_dir) / f"{spec.name.replace('/', '-')}.log")
        self._version = 0
        self._manifest: WeightManifest | None = None
        self._digests: dict[str, str] = {}
        self._transfer: TransferGroup | None = None

    async def start(self) -> None:
        """There is nothing to load."""

    async def generate(self, requests: Sequence[GenerationRequest]) -> tuple[Any, ...]:
        """As the real one's."""
        await asyncio.sleep(TAKES_S)
        groups = [self._group(request) for request in requests]
        return ([metas_of(group) for group in groups], *groups)

    async def begin_update(self, manifest: WeightManifest) -> None:
        """A publication may begin anew at any time."""
        self._manifest, self._digests = manifest, {}

    async def load_bucket(self, pieces: Pieces) -> None:
        """Digest what came."""
        self._digests |= {
            name: tensor_digest(tensor) for name, tensor in load(np.concatenate(pieces).tobytes()).items()
        }

    async def join_transfer(self, link: TransferLink) -> None:
        """As an engine's rank."""
        self._transfer = TransferGroup(link, link.first_rank, torch.device("cpu"))
        await asyncio.to_thread(self._transfer.meet)

    async def receive_weights(self) -> None:
        """Digest what is broadcast."""
        await asyncio.to_thread(self._receive)

    def _receive(self) -> None:
        assert self._manifest is not None and self._transfer is not None
        for tensors in self._transfer.receive(self._manifest.tensors):
            self._digests |= {name: tensor_digest(tensor) for name, tensor in tensors}

    async def finish_update(self, canaries: Sequence[Canary]) -> VerifyReport:
        """Compared with what was announced."""
        assert self._manifest is not None
        wanted = {spec.name: spec.digest for spec in self._manifest.tensors}
        other = tuple(name for name, digest in self._digests.items() if wanted.get(name) != digest)
        missing = tuple(name for name in wanted if name not in self._digests)
        return VerifyReport(self._manifest.version, self._digests, other, missing, 0.0)

    async def resume(self, version: int) -> None:
        """What is drawn from now on is of this version."""
        self._version = version

    async def ping(self) -> None:
        """It lives."""

    async def stop(self) -> None:
        """Nothing to end."""

    def _group(self, request: GenerationRequest) -> RolloutGroup:
        answers = tuple(self._answer(key, request) for key in request.keys)
        return RolloutGroup(request.prompt, request.sampling, answers)

    def _answer(self, key: SampleKey, request: GenerationRequest) -> Completion:
        named = f"{request.sampling.seed}/{key.epoch}/{key.prompt_id}/{key.k}".encode()
        draw = random.Random(hashlib.sha256(named).digest())
        ids = tuple(draw.randrange(3, VOCABULARY) for _ in range(draw.randint(4, request.sampling.max_new_tokens)))
        cut = len(ids) == request.sampling.max_new_tokens
        return Completion(
            key=key,
            response_ids=ids,
            rollout_logprobs=tuple(-math.log(VOCABULARY) for _ in ids),
            finish_reason=FinishReason.LENGTH if cut else FinishReason.STOP,
            versions=(VersionSpan(self._version, 0, len(ids)),),
            text="",
        )


def main() -> None:
    """The `raylign` command."""
    from ray import cloudpickle
    from raylign.app import cli

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # no Ray worker can import the tests
    worker.RolloutWorker = SimulatedWorker
    sys.argv[0] = "raylign"
    cli.main()


if __name__ == "__main__":
    main()
