"""Settings: roles follow from them, and every impossible value is told with its key and a fix."""

from __future__ import annotations

import pickle
from dataclasses import fields, replace

import pytest
from raylign.conf.schema import AlgorithmConfig, KLController, OldLogprobs
from raylign.trainer.algorithms import ALGORITHMS
from raylign.trainer.algorithms.base import Role
from raylign.trainer.algorithms.grpo import GRPOConfig
from raylign.trainer.algorithms.kto import KTOConfig
from raylign.trainer.algorithms.online import OnlineConfig
from raylign.trainer.algorithms.ppo import PPO, PPOConfig
from raylign.trainer.algorithms.reinforce_pp import ReinforcePPConfig
from raylign.trainer.algorithms.rloo import RLOO, RLOOConfig
from raylign.trainer.algorithms.rm import RMConfig

ONLINE = {Role.POLICY, Role.ROLLOUT, Role.REWARD}


@pytest.mark.parametrize("name", ALGORITHMS)
def test_table_is_consistent(name: str) -> None:
    config_class, algorithm_class = ALGORITHMS[name]
    config = config_class()
    assert config.name == name
    assert config.check() == []
    algorithm = algorithm_class(config)
    assert pickle.loads(pickle.dumps(algorithm)) == algorithm
    assert Role.POLICY in algorithm.roles


def test_roles() -> None:
    assert PPO(PPOConfig()).roles == ONLINE | {Role.CRITIC, Role.REFERENCE}
    assert PPO(PPOConfig(kl_coef=0.0)).roles == ONLINE | {Role.CRITIC}
    assert RLOO(RLOOConfig()).roles == ONLINE | {Role.REFERENCE}
    assert RLOO(RLOOConfig(kl_coef=0.0)).roles == ONLINE


@pytest.mark.parametrize(
    ("config", "sequences", "source"),
    [
        (GRPOConfig(sequences_per_update=32), 32, "update"),
        (PPOConfig(sequences_per_update=32, kl_coef=0.0), 32, "update"),
        (GRPOConfig(sequences_per_update=32), 64, "recompute"),  # the second optimizer step has moved away
        (GRPOConfig(sequences_per_update=32, ppo_epochs=2), 32, "recompute"),
        (RLOOConfig(sequences_per_update=32), 32, "recompute"),  # the KL is in the reward
        (GRPOConfig(sequences_per_update=32, kl_controller=KLController.adaptive), 32, "recompute"),
        (GRPOConfig(sequences_per_update=32, old_logprobs=OldLogprobs.engine), 32, "engine"),
    ],
)
def test_a_pass_before_the_update_is_made_only_where_it_tells_something(
    config: OnlineConfig, sequences: int, source: str
) -> None:
    assert config.old_logprobs_source(sequences).value == source
    assert [row[2] for row in config.left_open(sequences)] == ([] if source == "engine" else [source])
    forced = replace(config, old_logprobs=OldLogprobs.update)
    assert bool(forced.step_problems(sequences)) == (source == "recompute")


@pytest.mark.parametrize(
    ("config", "key"),
    [
        (PPOConfig(sequences_per_update=0), "sequences_per_update"),
        (PPOConfig(ppo_epochs=0), "ppo_epochs"),
        (PPOConfig(clip_eps_low=1.2), "clip_eps_low"),
        (PPOConfig(clip_eps_high=-0.1), "clip_eps_high"),
        (PPOConfig(clip_eps_high=float("nan")), "clip_eps_high"),
        (PPOConfig(dual_clip=1.1), "dual_clip"),
        (PPOConfig(importance_cap=0.5), "importance_cap"),
        (PPOConfig(gamma=1.1), "gamma"),
        (PPOConfig(gae_lambda=-0.1), "gae_lambda"),
        (PPOConfig(value_clip=-1.0), "value_clip"),
        (RLOOConfig(kl_controller=KLController.adaptive, kl_target=0.0), "kl_target"),
        (RLOOConfig(kl_controller=KLController.adaptive, kl_coef=0.0), "kl_coef"),
        (GRPOConfig(entropy_coef=-1.0), "entropy_coef"),
        (ReinforcePPConfig(gamma=2.0), "gamma"),
        (RMConfig(pairs_per_update=0), "pairs_per_update"),
        (RMConfig(centering_coef=-1.0), "centering_coef"),
    ],
)
def test_impossible_values_are_told(config: AlgorithmConfig, key: str) -> None:
    (problem,) = config.check()
    assert problem.startswith(f"algorithm.{key}") and "set" in problem


def test_an_unbalanced_set_of_verdicts_is_told_with_the_weight_that_mends_it() -> None:
    counts = {"desirable": 100, "undesirable": 300}
    (told,) = KTOConfig().data_warnings(counts)
    assert "0.33 to 1" in told and "between 3.00 and 4.00" in told
    assert KTOConfig(desirable_weight=3.0).data_warnings(counts) == []
    assert KTOConfig(desirable_weight=4.0).data_warnings(counts) == []
    assert KTOConfig(desirable_weight=4.1).data_warnings(counts) != []


def test_all_problems_at_once() -> None:
    config = PPOConfig(ppo_epochs=0, gamma=2.0, kl_controller=KLController.adaptive, kl_target=-1.0)
    assert len(config.check()) == 3


def test_adaptive_state_comes_from_the_settings() -> None:
    state = PPOConfig(kl_controller=KLController.adaptive, kl_coef=0.1, kl_target=3.0, kl_horizon=100.0).initial_kl()
    assert (state.coef, state.target, state.horizon) == (0.1, 3.0, 100.0)
    assert state.update(6.0, 100).coef == pytest.approx(0.12)


@pytest.mark.parametrize("name", ALGORITHMS)
def test_every_setting_has_its_doc_where_it_is_read(name: str) -> None:
    """`--help` reads the docs from the source; a redefined default without one would show none."""
    from raylign.conf import reference

    docs = {key.name: key.doc for key in reference.keys(name).values()}
    for field in fields(ALGORITHMS[name][0]):
        assert field.name == "name" or docs[f"algorithm.{field.name}"]
