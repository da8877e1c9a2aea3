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
from raylign.trainer.models.loading import model_skeleton
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

    Raises ConfigError for adapters that the models have no place for, all problems at once, and ModelLoadError for a
    folder that is no model.
    """
    algorithm = ALGORITHMS[config.algorithm.name][1](config.algorithm)
    online = Role.ROLLOUT in algorithm.roles
    scalar = not online and cast("OfflineAlgorithm", algorithm).needs.model is ModelKind.SCALAR
    asked = [("policy", config.policy.model, config.policy, scalar)]
    if Role.CRITIC in algorithm.roles:
        asked.append(("critic", critic_start(config), config.critic, True))
    problems: list[str] = []
    models = [_count(*each, problems) for each in asked]
    if problems:
        raise ConfigError(problems)
    return models


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
