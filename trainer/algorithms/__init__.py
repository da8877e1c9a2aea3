"""The table of algorithms: one file and one line each, and one yaml in conf/algorithm."""

from __future__ import annotations

from collections.abc import Callable

from conf.schema import AlgorithmConfig
from trainer.algorithms.base import OnlineAlgorithm, PairwiseAlgorithm
from trainer.algorithms.grpo import GRPO, GRPOConfig
from trainer.algorithms.ppo import PPO, PPOConfig
from trainer.algorithms.reinforce_pp import ReinforcePP, ReinforcePPConfig
from trainer.algorithms.rloo import RLOO, RLOOConfig
from trainer.algorithms.rm import RewardModelling, RMConfig

ALGORITHMS: dict[str, tuple[type[AlgorithmConfig], Callable[..., OnlineAlgorithm | PairwiseAlgorithm]]] = {
    "ppo": (PPOConfig, PPO),
    "grpo": (GRPOConfig, GRPO),
    "rloo": (RLOOConfig, RLOO),
    "reinforce_pp": (ReinforcePPConfig, ReinforcePP),
    "rm": (RMConfig, RewardModelling),
}
