"""The table of algorithms: one file and one line each, and one yaml in conf/algorithm."""

from __future__ import annotations

from collections.abc import Callable

from conf.schema import AlgorithmConfig
from trainer.algorithms.base import OfflineAlgorithm, OnlineAlgorithm
from trainer.algorithms.dpo import DPO, DPOConfig
from trainer.algorithms.grpo import GRPO, GRPOConfig
from trainer.algorithms.kto import KTO, KTOConfig
from trainer.algorithms.orpo import ORPO, ORPOConfig
from trainer.algorithms.ppo import PPO, PPOConfig
from trainer.algorithms.pretrain import PretrainConfig, Pretraining
from trainer.algorithms.reinforce_pp import ReinforcePP, ReinforcePPConfig
from trainer.algorithms.rloo import RLOO, RLOOConfig
from trainer.algorithms.rm import RewardModelling, RMConfig
from trainer.algorithms.sft import SFT, SFTConfig
from trainer.algorithms.simpo import SimPO, SimPOConfig

ALGORITHMS: dict[str, tuple[type[AlgorithmConfig], Callable[..., OnlineAlgorithm | OfflineAlgorithm]]] = {
    "ppo": (PPOConfig, PPO),
    "grpo": (GRPOConfig, GRPO),
    "rloo": (RLOOConfig, RLOO),
    "reinforce_pp": (ReinforcePPConfig, ReinforcePP),
    "rm": (RMConfig, RewardModelling),
    "pretrain": (PretrainConfig, Pretraining),
    "sft": (SFTConfig, SFT),
    "dpo": (DPOConfig, DPO),
    "kto": (KTOConfig, KTO),
    "orpo": (ORPOConfig, ORPO),
    "simpo": (SimPOConfig, SimPO),
}
