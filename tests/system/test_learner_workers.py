"""Learner roles on real Ray and DeepSpeed: what they answer is what the same model answers in this process."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
import ray
import torch
from raylign.cluster.errors import RoleError
from raylign.cluster.placement import RoleRequest, plan_placement
from raylign.cluster.reserve import Reservation, reserve
from raylign.cluster.session import Session, session
from raylign.cluster.shared_folder import SharedFolder
from raylign.conf.schema import (
    ClusterConfig,
    Device,
    LearnerConfig,
    OptimConfig,
    PlacementStrategy,
    Precision,
    SyncConfig,
)
from raylign.data.experience import pack_groups
from raylign.data.sample_model import tiny_model
from raylign.data.types import (
    Completion,
    FinishReason,
    Message,
    Prompt,
    Reward,
    RolloutGroup,
    RolloutMeta,
    SampleKey,
    SamplingParams,
    VersionSpan,
)
from raylign.rollout.fingerprint import tensor_digest
from raylign.rollout.interfaces import GroupHandle, Ref
from raylign.trainer.algorithms.ppo import PPO, PPOConfig
from raylign.trainer.models.loading import load_causal_lm, load_scalar_model
from raylign.trainer.models.scalar_head import values_from_states
from raylign.trainer.workers.critic import CriticGroup
from raylign.trainer.workers.experience import Assembler, ObjectReader, ShardSettings
from raylign.trainer.workers.learner_group import GroupSettings, LearnerGroup
from raylign.trainer.workers.policy import PolicyGroup
from raylign.trainer.workers.rank_process import RankProcess
from raylign.trainer.workers.reference import ReferenceGroup
from raylign.trainer.workers.specs import FrozenSpec, LearnerSpec, PolicySpec, ScalarSpec
from safetensors.torch import load, load_file

TEMPERATURE = 0.7
LEARNER = LearnerConfig(
    precision=Precision.float32, zero_stage=3, num_ranks=2, micro_batch_tokens=64, optim=OptimConfig(lr=1e-3)
)
PPO_CONFIG = PPOConfig(sequences_per_update=8, kl_coef=0.05)
READER = ObjectReader(timeout_s=60.0)


@dataclass(frozen=True)
class Roles:
    policy: PolicyGroup
    critic: CriticGroup
    reference: ReferenceGroup
    assembler: Assembler


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny", tie=True)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Session]:
    with session(ClusterConfig(object_store_gb=0.3), num_cpus=6) as live:
        yield live


@pytest.fixture(scope="module")
def roles(cluster: Session, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Roles]:
    requests = [RoleRequest(r, n, 1.0, 0.0) for r, n in (("policy", 2), ("critic", 2), ("reference", 1))]
    reservation = reserve(plan_placement(requests, PlacementStrategy.shared, cluster.nodes()), timeout_s=60)
    logs = str(tmp_path_factory.mktemp("logs"))
    started = asyncio.run(start_roles(model, reservation, cluster, logs))
    yield started
    assert "policy rank 1 of 2" in (Path(logs) / "policy-1.log").read_text()
    for role in (started.policy, started.critic, started.reference, started.assembler):
        role.stop()
    reservation.release()


async def start_roles(model: Path, reservation: Reservation, cluster: Session, logs: str) -> Roles:
    folder, ppo = str(model), PPO(PPO_CONFIG)
    cores = {node.node_id: 2 for node in cluster.nodes()}
    shared = SharedFolder.mark(Path(logs))

    def start(role: str, spec: LearnerSpec) -> asyncio.Task[LearnerGroup]:
        settings = GroupSettings(
            role=role,
            process=RankProcess(Device.cpu, 1, loopback=True, env={}),
            micro_batch_tokens=64,
            start_timeout_s=240.0,
            step_timeout_s=120.0,
            log_dir=logs,
            run_folder=shared,
        )
        return asyncio.ensure_future(LearnerGroup.start(spec, settings, reservation=reservation, cores=cores))

    policy, critic, reference = await asyncio.gather(
        start("policy", PolicySpec(folder, LEARNER, Device.cpu, 10, 120.0)),
        start("critic", ScalarSpec(folder, LEARNER, Device.cpu, 10, 120.0, new_head_seed=3)),
        start("reference", FrozenSpec(folder, Precision.float32, Device.cpu)),
    )
    cut = ShardSettings(num_ranks=2, micro_batch_tokens=64, units_per_update=8, epochs=1)
    return Roles(
        PolicyGroup(policy, ppo, SyncConfig(bucket_mb=1), temperature=TEMPERATURE, entropy_gradient=False),
        CriticGroup(critic, ppo),
        ReferenceGroup(reference),
        Assembler.start(ppo, policy=cut, critic=cut, timeout_s=60.0),
    )


def rollouts(num_prompts: int) -> list[RolloutGroup]:
    draw = random.Random(1)
    sampling = SamplingParams(TEMPERATURE, 30)
    groups = []
    for p in range(num_prompts):
        prompt = Prompt(f"p{p}", (Message("user", "?"),), tuple(draw.randrange(3, 500) for _ in range(2 + p)))
        completions = []
        for k in range(3):
            ids = tuple(draw.randrange(3, 500) for _ in range(draw.randrange(1, 30)))
            reason = FinishReason.LENGTH if k == 2 else FinishReason.STOP
            completions.append(
                Completion(SampleKey(0, f"p{p}", k), ids, tuple(-1.0 for _ in ids), reason, (VersionSpan(1, 0, 1),), "")
            )
        groups.append(RolloutGroup(prompt, sampling, tuple(completions)))
    return groups


def handles(groups: list[RolloutGroup]) -> list[GroupHandle]:
    return [
        GroupHandle(
            Ref(ray.put(g)),
            tuple(
                RolloutMeta(c.key, len(g.prompt.token_ids), len(c.response_ids), c.finish_reason, 1, 1, 1)
                for c in g.completions
            ),
        )
        for g in groups
    ]


@pytest.mark.parametrize("num_prompts", [1, 5])  # one group for two ranks: the other rank runs fillers
def test_passes_over_ranks_equal_one_model_here(roles: Roles, model: Path, num_prompts: int) -> None:
    groups = rollouts(num_prompts)
    stored = handles(groups)

    async def passes() -> tuple[list[torch.Tensor], list[torch.Tensor], list[object]]:
        logprobs = await roles.policy.logprobs(stored, temperature=TEMPERATURE)
        reference = await roles.reference.logprobs(stored, temperature=1.0)
        values = await roles.critic.values(stored)
        return (
            await READER.per_group(logprobs, num_prompts),
            await READER.per_group(reference, num_prompts),
            await READER.per_group(values, num_prompts),
        )

    logprobs, reference, values = asyncio.run(passes())
    tokens = pack_groups(groups)
    causal = load_causal_lm(model, precision=Precision.float32)
    scalar = load_scalar_model(model, precision=Precision.float32, new_head_seed=3)
    with torch.no_grad():
        torch.testing.assert_close(
            torch.cat(logprobs), causal(tokens, temperature=TEMPERATURE).logprobs, atol=1e-4, rtol=1e-4
        )
        torch.testing.assert_close(torch.cat(reference), causal(tokens, temperature=1.0).logprobs, atol=1e-4, rtol=1e-4)
        expected = values_from_states(scalar(tokens), tokens)
    torch.testing.assert_close(torch.cat([v.values for v in values]), expected.values, atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(torch.cat([v.bootstrap for v in values]), expected.bootstrap, atol=1e-4, rtol=1e-4)


def test_a_step_trains_and_what_is_staged_is_what_is_exported(roles: Roles, tmp_path: Path) -> None:
    groups = rollouts(6)
    stored = handles(groups)
    outcomes = [
        Reward(c.key, float(i % 5), {"model": 1.0}) for i, c in enumerate(c for g in groups for c in g.completions)
    ]

    async def step() -> tuple[float, list[float]]:
        logprobs, reference, values = await asyncio.gather(
            roles.policy.logprobs(stored, temperature=TEMPERATURE),
            roles.reference.logprobs(stored, temperature=TEMPERATURE),
            roles.critic.values(stored),
        )
        made = await roles.assembler.assemble(
            stored, outcomes, logprobs=logprobs, ref_logprobs=reference, values=values, kl_coef=0.05, seed=1
        )
        assert len(await READER.advantages(made)) == 18
        policy, critic = await asyncio.gather(
            roles.policy.update(made.policy, kl_coef=0.05), roles.critic.update(made.critic)
        )
        assert (policy.steps_applied, critic.steps_applied) == (3, 3)
        return made.mean_kl, [critic.metrics["loss"], policy.metrics["clip_fraction"]]

    first_kl, first = asyncio.run(step())
    second_kl, second = asyncio.run(step())
    assert first_kl == pytest.approx(0.0, abs=1e-3)  # the policy is still the reference
    assert abs(second_kl) > 1e-3
    assert second[0] < first[0]  # the critic learns the same returns

    async def publish() -> tuple[object, object, list[object]]:
        manifest = await roles.policy.manifest(2)
        await roles.policy.export(str(tmp_path / "export"))
        return manifest, await roles.policy.canaries(), await roles.policy.buckets()

    manifest, canaries, buckets = asyncio.run(publish())
    exported = load_file(tmp_path / "export" / "model.safetensors")
    assert {t.name: t.digest for t in manifest.tensors} == {n: tensor_digest(t) for n, t in exported.items()}
    sent: dict[str, torch.Tensor] = {}
    for pieces in ray.get(buckets, timeout=60):
        sent |= load(b"".join(piece.tobytes() for piece in pieces))
    assert {n: tensor_digest(t) for n, t in sent.items()} == {t.name: t.digest for t in manifest.tensors}
    assert manifest.tied_embeddings and "lm_head.weight" not in sent
    trained = load_causal_lm(tmp_path / "export", precision=Precision.float32)
    for canary in canaries:
        prompt = RolloutGroup(
            Prompt("c", (), canary.token_ids[:1]),
            SamplingParams(1.0, 1),
            (
                Completion(
                    SampleKey(0, "c", 0),
                    canary.token_ids[1:],
                    canary.logprobs,
                    FinishReason.STOP,
                    (VersionSpan(0, 0, 1),),
                    "",
                ),
            ),
        )
        with torch.no_grad():
            logprobs = trained(pack_groups([prompt]), temperature=1.0).logprobs[1:]
        torch.testing.assert_close(torch.tensor(canary.logprobs), logprobs, atol=1e-4, rtol=1e-4)


def test_a_saved_policy_continues_where_it_was(roles: Roles, tmp_path: Path) -> None:
    stored = handles(rollouts(4))

    async def logprobs() -> torch.Tensor:
        return torch.cat(await READER.per_group(await roles.policy.logprobs(stored, temperature=1.0), 4))

    async def train() -> None:
        outcomes = [Reward(m.key, float(i), {}) for i, m in enumerate(m for h in stored for m in h.metas)]
        values = await roles.critic.values(stored)
        reference = await roles.reference.logprobs(stored, temperature=TEMPERATURE)
        made = await roles.assembler.assemble(
            stored, outcomes, logprobs=None, ref_logprobs=reference, values=values, kl_coef=0.0, seed=2
        )
        await roles.policy.update(made.policy, kl_coef=0.0)

    async def scenario() -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        await roles.policy.save(str(tmp_path))
        before = await logprobs()  # written beside it
        assert sorted(await roles.policy.saved()) == ["rank-00000.safetensors", "rank-00001.safetensors"]
        await train()
        changed = await logprobs()
        await roles.policy.restore(str(tmp_path))
        return before, changed, await logprobs()

    before, changed, restored = asyncio.run(scenario())
    assert not torch.allclose(before, changed, atol=1e-3)
    assert torch.equal(before, restored)


def test_a_missing_rollout_is_named_with_role_and_work(roles: Roles) -> None:
    """Last in the file: it leaves the reference broken."""
    stored = handles([rollouts(1)[0]])
    wrong = [GroupHandle(Ref(ray.put("not a group")), stored[0].metas)]
    with pytest.raises(RoleError, match="reference rank 0 raised during log-probs"):
        asyncio.run(roles.reference.logprobs(wrong, temperature=1.0))
