"""What a run would train of its models: counted on their shapes alone, and refused where adapters do not fit."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import cast

from raylign.conf.derive import critic_start, lora_description, reference_model
from raylign.conf.errors import ConfigError, ModelLoadError
from raylign.conf.schema import LearnerConfig, RunConfig
from raylign.trainer.algorithms import algorithm_of
from raylign.trainer.algorithms.base import ModelKind, OfflineAlgorithm, Role
from raylign.trainer.models.adapters import add_adapters, target_problems
from raylign.trainer.models.architecture import fused_projections, has_experts
from raylign.trainer.models.loading import model_skeleton, read_head, try_architecture
from raylign.trainer.models.lora import lora_layers
from raylign.trainer.models.stored import refuse_other_weights


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

    Raises ConfigError, all problems at once, for adapters that the models have no place for and experts in an online
    run; ModelLoadError for a folder that is no model.
    """
    problems: list[str] = []
    models = [_count(*each, problems) for each in _in_training(config)]
    if _is_online(config):
        problems += _unserved(config)
    if problems:
        raise ConfigError(problems)
    return models


def _unserved(config: RunConfig) -> list[str]:
    """Why a rollout engine could not be held to the policy's weights."""
    policy, engine_ranks = model_skeleton(config.policy.model, scalar=False), config.rollout.tensor_parallel_size
    problems = []
    if has_experts(policy):
        problems.append(
            f"policy.model={config.policy.model} is a mixture of experts, whose experts are not sent in the form the "
            "rollout engine loads; train it offline (algorithm=sft, dpo, kto), or use a dense model."
        )
    if fused := fused_projections(policy, split=engine_ranks > 1):
        alone = not fused_projections(policy, split=False)
        remedy = "set rollout.tensor_parallel_size=1" if alone else "train it offline (algorithm=sft, dpo, kto)"
        problems.append(
            f"policy.model={config.policy.model} stores {', '.join(fused)} fused, whose parts cannot be separated in "
            f"the rollout engine, so its weights could not be verified; {remedy}, or use another model."
        )
    return problems


def untried_models(config: RunConfig) -> list[str]:
    """A sentence for each model whose architecture cannot be tried on a small copy, and so is tried when it is loaded.

    Raises ModelLoadError for an architecture that packed training does not support.
    """
    models = [(role, folder, scalar) for role, folder, _, scalar in _in_training(config)]
    trained = len(models)
    roles = algorithm_of(config.algorithm).roles
    if Role.REFERENCE in roles and reference_model(config) != config.policy.model:
        models.append(("reference", reference_model(config), False))
    if _is_online(config) and config.reward.model:
        models.append(("reward", config.reward.model, True))
    for _, folder, scalar in models[trained:]:
        refuse_other_weights(Path(folder), model_skeleton(folder, scalar=scalar))
    return [
        f"{role}.model={folder}: no small copy of its architecture can be built, so whether packed training supports "
        "it is tried only when it is loaded"
        for role, folder, scalar in models
        if not try_architecture(folder, scalar=scalar)
    ]


def _in_training(config: RunConfig) -> list[tuple[str, str, LearnerConfig, bool]]:
    """Role, folder, settings and head of each model in training."""
    algorithm = algorithm_of(config.algorithm)
    scalar = not _is_online(config) and cast("OfflineAlgorithm", algorithm).needs.model is ModelKind.SCALAR
    models = [("policy", config.policy.model, config.policy, scalar)]
    if Role.CRITIC in algorithm.roles:
        models.append(("critic", critic_start(config), config.critic, True))
    return models


def _is_online(config: RunConfig) -> bool:
    return Role.ROLLOUT in algorithm_of(config.algorithm).roles


def _count(role: str, folder: str, learner: LearnerConfig, scalar: bool, problems: list[str]) -> TrainedModel:
    stored = any(Path(folder).glob("*.safetensors"))  # a configuration alone can be planned for
    if stored and read_head(Path(folder)) == "scalar" and not scalar:
        raise ModelLoadError(f"{role}.model={folder} is a reward model; name a causal language model")
    hf = model_skeleton(folder, scalar=scalar)
    refuse_other_weights(Path(folder), hf)
    total, lora = hf.num_parameters(), learner.lora
    if not lora.rank:
        return TrainedModel(role, folder, total, total, "every weight")
    if found := target_problems(hf, lora):
        problems += [f"{role}.{problem}" for problem in found]
        return TrainedModel(role, folder, total, 0, "")
    add_adapters(hf, lora)
    trained = sum(p.numel() for p in hf.parameters() if p.requires_grad)
    how = f"LoRA: {lora_description(lora)} ({len(lora_layers(hf))} layers){' and the whole head' if scalar else ''}"
    return TrainedModel(role, folder, total, trained, how)
