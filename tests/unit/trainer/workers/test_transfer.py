"""The learner's side of a broadcast, through the methods that Ray calls: what it announces is what receivers get."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import ray
import torch
from raylign.cluster.rank import RankInfo
from raylign.conf.schema import LoraConfig, OptimConfig, Precision, SyncConfig, SyncTransport
from raylign.rollout.broadcast import TRANSFER, TransferGroup
from raylign.rollout.fingerprint import tensor_digest
from raylign.rollout.interfaces import TensorSpec, TransferLink
from raylign.trainer.algorithms.ppo import PPO, PPOConfig
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.learner import Learner
from raylign.trainer.models.adapters import add_adapters
from raylign.trainer.models.loading import load_causal_lm
from raylign.trainer.workers.learner_worker import LearnerWorker
from raylign.trainer.workers.policy import PolicyGroup
from torch import nn

CPU = torch.device("cpu")


class Learners:
    """A LearnerGroup of one rank, in this process: the same names, without Ray."""

    def __init__(self, worker: LearnerWorker) -> None:
        self.worker = worker

    async def announce_weights(self) -> object:
        return self.worker.announce_weights()

    async def open_transfer(self, **given: object) -> TransferLink:
        return self.worker.open_transfer(
            given["workers"], given["ranks_per_worker"], given["timeout_s"], given["bucket_bytes"]
        )

    async def join_transfer(self) -> str:
        return await asyncio.to_thread(self.worker.join_transfer)

    async def send_weights(self) -> str:
        return await asyncio.to_thread(self.worker.send_weights)


@pytest.fixture
def policy(tiny_model_dir: Path, monkeypatch: pytest.MonkeyPatch) -> PolicyGroup:
    """With adapters that are not zero, so that what is sent is merged."""
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    monkeypatch.setattr(ray.util, "get_node_ip_address", lambda: "127.0.0.1")
    model = load_causal_lm(tiny_model_dir, precision=Precision.float32)
    add_adapters(model.hf, LoraConfig(rank=4))
    torch.manual_seed(1)
    for parameter in model.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.02)
    worker = LearnerWorker(RankInfo("policy", 0, 1), None, 60.0)  # type: ignore[arg-type]
    worker._learner = Learner(TorchEngine(model, OptimConfig(), total_steps=1))
    sync = SyncConfig(transport=SyncTransport.broadcast, timeout_s=10.0, bucket_mb=1)
    learners = Learners(worker)
    return PolicyGroup(
        learners,  # type: ignore[arg-type]
        PPO(PPOConfig()),
        sync,
        temperature=1.0,
        entropy_gradient=False,
        ranks_per_worker=2,
    )


def _receive(link: TransferLink, rank: int, tensors: Sequence[TensorSpec], most: int = 1000) -> dict[str, str]:
    group = TransferGroup(link, rank, CPU)
    group.meet()
    found: dict[str, str] = {}
    coming = group.receive(tensors)
    for bucket in coming:
        found |= {name: tensor_digest(tensor) for name, tensor in bucket}
        if len(found) >= most:
            coming.close()
            break
    return found


def test_both_ranks_of_an_engine_get_the_merged_weights_that_were_announced(policy: PolicyGroup) -> None:
    async def publish(most: int) -> tuple[dict[str, str], list[dict[str, str]], str]:
        manifest = await policy.manifest(1)
        assert not manifest.adapters and manifest.tied_embeddings
        link = await policy.open_transfer(1)
        assert (link.address, link.world_size, link.timeout_s) == ("127.0.0.1", 3, 8.0)
        with ThreadPoolExecutor() as pool:
            ranks = [pool.submit(_receive, link.of(0), link.first_rank + i, manifest.tensors, most) for i in range(2)]
            assert await policy.join_transfer() == ""
            why = await policy.send_weights()
            got = [await asyncio.wrap_future(rank) for rank in ranks]
        return {spec.name: spec.digest for spec in manifest.tensors}, got, why

    announced, got, why = asyncio.run(publish(1000))
    assert why == "" and got == [announced, announced] and len(announced) == 20
    *_, why = asyncio.run(publish(3))  # both leave half-way
    assert why.startswith(TRANSFER)
    announced, got, why = asyncio.run(publish(1000))
    assert why == "" and got == [announced, announced]


def test_what_was_not_begun_is_said_and_the_ranks_still_gather(policy: PolicyGroup) -> None:
    async def out_of_order() -> tuple[str, str]:
        await policy.manifest(1)
        return await policy.join_transfer(), await policy.send_weights()

    assert asyncio.run(out_of_order()) == ("no transfer was begun", "no transfer was joined")
