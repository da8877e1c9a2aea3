"""What a misspelt key, or the name another trainer has for a setting, is answered with."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from raylign.conf import reference
from raylign.conf.foreign import _NAMES, foreign_hint
from raylign.conf.overrides import unknown_key

COMING_FROM = Path(__file__).parents[3] / "docs" / "coming-from.md"
_NAME = re.compile(r"`(?:--)?((?:[a-z_]\w*\.)*[a-z_]\w*)=?`")


def sentence(key: str, algorithm: str = "grpo") -> str:
    """What is said of `key`."""
    return unknown_key(key, reference.keys(algorithm)).sentence


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("policy.optim.lrr", "policy.optim.lr"),
        ("policy.optim.wieght_decay", "policy.optim.weight_decay"),
        ("policy.optim.warmup_step", "policy.optim.warmup_steps"),
        ("policy.optim.shedule", "policy.optim.schedule"),
        ("policy.optim.max_gradnorm", "policy.optim.max_grad_norm"),
        ("policy.optm.lr", "policy.optim.lr"),
        ("policy.modle", "policy.model"),
        ("policy.precison", "policy.precision"),
        ("policy.zero_stge", "policy.zero_stage"),
        ("policy.num_rank", "policy.num_ranks"),
        ("policy.microbatch_tokens", "policy.micro_batch_tokens"),
        ("policy.lora.rnk", "policy.lora.rank"),
        ("policy.lora.target_module", "policy.lora.target_modules"),
        ("policy.lora.alhpa", "policy.lora.alpha"),
        ("critic.modl", "critic.model"),
        ("reference.modle", "reference.model"),
        ("reward.rulez", "reward.rules"),
        ("reward.function", "reward.functions"),
        ("reward.remotes", "reward.remote"),
        ("reward.judge", "reward.judges"),
        ("reward.max_faild_fraction", "reward.max_failed_fraction"),
        ("rollout.temprature", "rollout.temperature"),
        ("rollout.num_worker", "rollout.num_workers"),
        ("rollout.max_new_token", "rollout.max_new_tokens"),
        ("rollout.max_model_length", "rollout.max_model_len"),
        ("rollout.prompt_per_step", "rollout.prompts_per_step"),
        ("rollout.sample_per_prompt", "rollout.samples_per_prompt"),
        ("rollout.max_stalness", "rollout.max_staleness"),
        ("rollout.autoscale.max_worker", "rollout.autoscale.max_workers"),
        ("rollout.kv_cache", "rollout.kv_cache_gb"),
        ("rollout.healthtimeout_s", "rollout.health_timeout_s"),
        ("sync.verify_colums", "sync.verify_columns"),
        ("sync.bucket_size_mb", "sync.bucket_mb"),
        ("data.trian", "data.train"),
        ("data.column", "data.columns"),
        ("data.max_prompt_token", "data.max_prompt_tokens"),
        ("data.systemprompt", "data.system_prompt"),
        ("data.suffle", "data.shuffle"),
        ("cluster.adress", "cluster.address"),
        ("cluster.devices", "cluster.device"),
        ("cluster.placment", "cluster.placement"),
        ("tracking.wandb_sample", "tracking.wandb_samples"),
        ("tracking.tag", "tracking.tags"),
        ("checkpoint.evry", "checkpoint.every"),
        ("checkpoint.resum", "checkpoint.resume"),
        ("evaluation.metric", "evaluation.metrics"),
        ("evaluation.prompt", "evaluation.prompts"),
        ("algorithm.kl_coeff", "algorithm.kl_coef"),
        ("algorithm.clip_eps_hi", "algorithm.clip_eps_high"),
        ("algorithm.sequence_per_update", "algorithm.sequences_per_update"),
        ("num_step", "num_steps"),
        ("runroot", "run_root"),
        ("sede", "seed"),
    ],
)
def test_a_misspelt_key_is_answered_with_the_one_that_was_meant(key: str, meant: str) -> None:
    told = sentence(key)
    assert re.search(rf"(did you mean|use) {re.escape(meant)}[?.]", told), told


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("per_device_train_batch_size", "algorithm.sequences_per_update"),
        ("gradient_accumulation_steps", "algorithm.sequences_per_update"),
        ("learning_rate", "policy.optim.lr"),
        ("learning_rte", "policy.optim.lr"),
        ("policy.optim.learning_rate", "policy.optim.lr"),
        ("critic_learning_rate", "critic.optim.lr"),
        ("critic.lr", "critic.optim.lr"),
        ("actor_rollout_ref.actor.optim.lr", "policy.optim.lr"),
        ("reward.dtype", "reward.precision"),
        ("beta", "algorithm.kl_coef"),
        ("kl_coef", "algorithm.kl_coef"),
        ("algorithm.kl_ctrl.kl_coef", "algorithm.kl_coef"),
        ("num_generations", "rollout.samples_per_prompt"),
        ("num_generation", "rollout.samples_per_prompt"),
        ("actor_rollout_ref.rollout.n", "rollout.samples_per_prompt"),
        ("max_completion_length", "rollout.max_new_tokens"),
        ("temperature", "rollout.temperature"),
        ("max_new_tokens", "rollout.max_new_tokens"),
        ("rollout.top_p", "rollout.temperature"),
        ("output_dir", "run_root"),
        ("reward_funcs", "reward.functions"),
        ("trainer.n_gpus_per_node", "policy.num_ranks"),
    ],
)
def test_another_trainers_name_is_answered_with_ours(key: str, meant: str) -> None:
    assert meant in sentence(key), sentence(key)


def test_a_hint_names_what_the_algorithm_has() -> None:
    assert sentence("beta", "dpo") == "beta is not a setting; use algorithm.beta."
    assert sentence("kl_coef", "dpo") == "kl_coef is not a setting; use algorithm.beta."
    assert sentence("algorithm.beta").endswith("not of this one; use algorithm.kl_coef.")
    assert sentence("beta", "sft").endswith("algorithm.kl_coef or algorithm.beta, which this algorithm does not have.")
    assert "algorithm.pairs_per_update" in sentence("batch_size", "dpo")
    assert "algorithm.rows_per_update" in sentence("train_batch_size", "sft")


def test_a_name_that_several_sections_have_is_answered_with_all_of_them() -> None:
    assert sentence("every").endswith("did you mean checkpoint.every or evaluation.every?")
    assert "policy.precision, " in sentence("precision") and "or rollout.precision?" in sentence("precision")


@pytest.mark.parametrize(
    "key", ["rollout.foo", "policy.optim.nesterov", "zzz", "data.tokens", "cluster.queue", "reward.scale", "x.y.z"]
)
def test_what_resembles_nothing_is_answered_with_where_to_look(key: str) -> None:
    assert "`raylign train --help" in sentence(key), sentence(key)


@pytest.mark.parametrize("algorithm", reference.algorithm_names())
def test_every_hint_names_settings_that_exist(algorithm: str) -> None:
    """And no name of another trainer is the name of a setting of ours in the place where the hint sends people."""
    known = reference.keys(algorithm)
    for name in _NAMES:
        hint = foreign_hint(f"any.{name}", known)
        assert hint is not None and set(hint.settings) <= set(known)
        dotted = set(re.findall(r"\b(?:[a-z]+\.)+[a-z_]+\b", hint.text)) - {"metrics.jsonl"}
        everywhere = {key for other in reference.algorithm_names() for key in reference.keys(other)}
        assert dotted <= everywhere, (name, hint.text)


NO_SETTINGS = {"low_var_kl", "get_soft_overlong_punishment"}
"""Of the table: a value, and a function."""


def rows() -> list[tuple[str, list[str]]]:
    """Name of another trainer and our settings, of every row of the tables of settings."""
    text = COMING_FROM.read_text(encoding="utf-8").partition("## Metric names")[0]
    found = []
    for line in text.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if not line.startswith("| `"):
            continue
        ours = re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)", cells[0])
        found += [(name, ours) for cell in cells[1:] for name in _NAME.findall(cell) if name not in NO_SETTINGS]
    return found


def test_the_table_for_people_from_other_trainers_and_the_hints_agree() -> None:
    assert len(rows()) > 80
    mine = {key for algorithm in reference.algorithm_names() for key in reference.keys(algorithm)}
    answers = {name: [sentence(name, a) for a in ("ppo", "grpo", "dpo")] for name, _ in rows() if name not in mine}
    wrong = [
        (name, settings, answers[name])
        for name, settings in rows()
        if name not in mine and not any(setting in answer for answer in answers[name] for setting in settings)
    ]
    assert not wrong, wrong
