"""What a run would train of its models: counted on their shapes alone, and refused where adapters do not fit."""

from __future__ import annotations

from dataclasses import dataclass
from typing import cast

from raylign.conf.derive import adapters_said, critic_start
from raylign.conf.errors import ConfigError
from raylign.conf.schema import LearnerConfig, RunConfig
from raylign.trainer.algorithms import ALGORITHMS
from raylign.trainer.algorithms.base import ModelKind, OfflineAlgorithm, Role
from raylign.trainer.models.adapters import add_adapters, target_problems
from raylign.trainer.models.architecture import has_experts, length_limit
from raylign.trainer.models.loading import model_skeleton, try_architecture
from raylign.trainer.models.lora import lora_layers


@dataclass(frozen=True, slots=True)
class TrainedModel:
    """One model in training."""

    role: str
    folder: str
    parameters: int  # of the model as it is exported, tied ones once
    trained: int
    how: str


def trained_models(config: RunConfig) -> list[TrainedModel]:
    """Policy, and critic where there is one; models are plain folders (app/launch/chain.py).

    Raises ConfigError, all problems at once, for adapters that the models have no place for, sequences longer than a
    model's numbers are its own and experts in an online run; ModelLoadError for a folder that is no model and for an
    architecture that packed training does not support.
    """
    algorithm = ALGORITHMS[config.algorithm.name][1](config.algorithm)
    online = Role.ROLLOUT in algorithm.roles
    scalar = not online and cast("OfflineAlgorithm", algorithm).needs.model is ModelKind.SCALAR
    asked = [("policy", config.policy.model, config.policy, scalar)]
    if Role.CRITIC in algorithm.roles:
        asked.append(("critic", critic_start(config), config.critic, True))
    problems: list[str] = []
    models = [_count(*each, problems) for each in asked]
    frozen = [("reward", config.reward.model, True)] if online and config.reward.model else []
    for role, folder, with_score in [*((role, folder, with_score) for role, folder, _, with_score in asked), *frozen]:
        try_architecture(folder, scalar=with_score)
        problems += _length_problems(role, folder, config, online=online, scalar=with_score)
    if online and has_experts(model_skeleton(config.policy.model, scalar=False)):
        problems.append(
            f"policy.model={config.policy.model} is a mixture of experts, whose experts are not sent in the form the "
            "rollout engine loads; train it offline (algorithm=sft, dpo, kto), or use a dense model."
        )
    if problems:
        raise ConfigError(problems)
    return models


def _length_problems(role: str, folder: str, config: RunConfig, *, online: bool, scalar: bool) -> list[str]:
    """Where sequences may be so long that their numbers depend on what they are packed with."""
    limit = length_limit(model_skeleton(folder, scalar=scalar).config)
    key, most = (
        ("rollout.max_model_len", config.rollout.max_model_len)
        if online
        else ("data.max_length", config.data.max_length)
    )
    if limit is None or most <= limit[0]:
        return []
    return [
        f"{key}={most}: {role}.model={folder} has {limit[1]}, so past {limit[0]} tokens a sequence's log-probs depend "
        f"on the others of its batch; set {key}={limit[0]} or less."
    ]


def _count(role: str, folder: str, learner: LearnerConfig, scalar: bool, problems: list[str]) -> TrainedModel:
    hf = model_skeleton(folder, scalar=scalar)
    total, lora = hf.num_parameters(), learner.lora
    if not lora.rank:
        return TrainedModel(role, folder, total, total, "every weight")
    if found := target_problems(hf, lora):
        problems += [f"{role}.{problem}" for problem in found]
        return TrainedModel(role, folder, total, 0, "")
    add_adapters(hf, lora)
    trained = sum(p.numel() for p in hf.parameters() if p.requires_grad)
    how = f"LoRA: {adapters_said(lora)} ({len(lora_layers(hf))} layers){' and the whole head' if scalar else ''}"
    return TrainedModel(role, folder, total, trained, how)
