"""The table of algorithms: one file and one line each, and one yaml in conf/algorithm; a user's own by their path."""

from __future__ import annotations

from collections.abc import Callable

from raylign.conf.own_code import is_own
from raylign.conf.schema import AlgorithmConfig
from raylign.trainer.algorithms.base import OfflineAlgorithm, OnlineAlgorithm
from raylign.trainer.algorithms.distil import Distil, DistilConfig
from raylign.trainer.algorithms.dpo import DPO, DPOConfig
from raylign.trainer.algorithms.grpo import GRPO, GRPOConfig
from raylign.trainer.algorithms.kto import KTO, KTOConfig
from raylign.trainer.algorithms.orpo import ORPO, ORPOConfig
from raylign.trainer.algorithms.own import loaded
from raylign.trainer.algorithms.ppo import PPO, PPOConfig
from raylign.trainer.algorithms.pretrain import PretrainConfig, Pretraining
from raylign.trainer.algorithms.reinforce_pp import ReinforcePP, ReinforcePPConfig
from raylign.trainer.algorithms.rloo import RLOO, RLOOConfig
from raylign.trainer.algorithms.rm import RewardModelling, RMConfig
from raylign.trainer.algorithms.sft import SFT, SFTConfig
from raylign.trainer.algorithms.simpo import SimPO, SimPOConfig

ALGORITHMS: dict[str, tuple[type[AlgorithmConfig], Callable[..., OnlineAlgorithm | OfflineAlgorithm]]] = {
    "ppo": (PPOConfig, PPO),
    "grpo": (GRPOConfig, GRPO),
    "rloo": (RLOOConfig, RLOO),
    "reinforce_pp": (ReinforcePPConfig, ReinforcePP),
    "distil": (DistilConfig, Distil),
    "rm": (RMConfig, RewardModelling),
    "pretrain": (PretrainConfig, Pretraining),
    "sft": (SFTConfig, SFT),
    "dpo": (DPOConfig, DPO),
    "kto": (KTOConfig, KTO),
    "orpo": (ORPOConfig, ORPO),
    "simpo": (SimPOConfig, SimPO),
}


def algorithm_of(config: AlgorithmConfig) -> OnlineAlgorithm | OfflineAlgorithm:
    """The algorithm of these settings."""
    build = loaded(config.name, type(config)) if is_own(config.name) else ALGORITHMS[config.name][1]
    return build(config)
