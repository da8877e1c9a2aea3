"""What people who come from other trainers write, and what it is called here. Standard library only.

docs/coming-from.md is the same as a table; a test holds the two together.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import NamedTuple

from raylign.conf.nearest import nearest, similarity
from raylign.conf.problems import settings_in

_SAMPLING = (
    "answers are sampled with temperature only: of a distribution cut to the likeliest tokens, or with penalties, the "
    "trainer would have to know the same cut for every token, or its log-probs and ratios would be of another "
    "distribution than the one sampled; use rollout.temperature"
)
_BATCH = (
    "one optimizer step takes algorithm.{unit}, and one forward pass policy.micro_batch_tokens (accumulation follows)"
)
_SENTENCES = {
    _SAMPLING: (
        "top_p top_k min_p typical_p top_a repetition_penalty presence_penalty frequency_penalty length_penalty "
        "logit_bias"
    ),
    _BATCH: (
        "batch_size train_batch_size global_batch_size per_device_train_batch_size per_device_batch_size "
        "micro_batch_size micro_train_batch_size ppo_mini_batch_size mini_batch_size num_mini_batches "
        "gradient_accumulation_steps gradient_accumulation accumulation_steps ppo_micro_batch_size "
        "ppo_micro_batch_size_per_gpu train_max_tokens_per_gpu ppo_max_token_len_per_gpu"
    ),
    "one forward pass without gradients takes reference.micro_batch_tokens": (
        "micro_rollout_batch_size per_device_eval_batch_size eval_batch_size local_rollout_forward_batch_size "
        "log_prob_micro_batch_size log_prob_micro_batch_size_per_gpu forward_batch_size"
    ),
    "a step samples rollout.prompts_per_step prompts, with rollout.samples_per_prompt answers each": (
        "rollout_batch_size generation_batch_size data.train_batch_size"
    ),
    "columns of your own names are given as data.columns={prompt: question, ground_truth: answer}": (
        "prompt_column prompt_key input_key output_key text_column dataset_text_field label_key label_column "
        "chosen_key rejected_key response_key answer_column completion_column reward_fn_key"
    ),
    "answers end at the end tokens of the model's folder and at those of rollout.stop_token_ids=[id, ...]": (
        "stop_token_ids stop_ids stop_tokens eos_token_ids eos_token_id"
    ),
    "use data.chat_template (a file, a model's folder, or a name such as chatml)": (
        "chat_template chat_template_path custom_chat_template input_template template prompt_template "
        "apply_chat_template conversation_template"
    ),
    "there is no dropout here: log-probs must depend on the weights alone": (
        "disable_dropout lora_dropout dropout attention_dropout hidden_dropout model_adapter_dropout"
    ),
    "sequences are always packed, with nothing padded; policy.micro_batch_tokens is the size of a pass": (
        "packing packing_samples use_remove_padding padding_free sample_packing use_dynamic_bsz group_by_length"
    ),
    "every step is written to metrics.jsonl and to tracking.sinks": "logging_steps log_every log_freq logging_strategy",
    "answers are kept in the run's samples/*.parquet (tracking.samples_every); for W&B set tracking.wandb_samples": (
        "log_completions num_completions_to_print log_val_generations"
    ),
    "sampling is set by rollout.temperature, rollout.max_new_tokens and rollout.stop": "generation_kwargs",
    "choose an algorithm: algorithm=ppo, grpo, rloo or reinforce_pp": "adv_estimator advantage_estimator",
    "AdamW is the optimizer; its settings are policy.optim.lr, policy.optim.betas and policy.optim.weight_decay": (
        "optim optimizer optim_args adam"
    ),
    "the number of processes is policy.num_ranks, with policy.gpus_per_rank each; cluster.address joins a cluster": (
        "nnodes n_gpus_per_node num_processes num_gpus actor_num_nodes actor_num_gpus_per_node world_size num_nodes"
    ),
    "the attention kernel is not a setting": "attn_implementation flash_attn use_flash_attention",
    "code from a model's folder is never run": "trust_remote_code",
}
"""Sentence -> names. `algorithm.{unit}` becomes the setting of the algorithm's update size."""

_SETTINGS = {
    "policy.optim.lr": "lr learning_rate actor_learning_rate actor_lr critic_learning_rate critic_lr",
    "policy.optim.betas": "adam_betas adam_beta1 adam_beta2",
    "policy.optim.eps": "adam_epsilon adam_eps",
    "policy.optim.weight_decay": "l2 wd",
    "policy.optim.warmup_steps": (
        "warmup_ratio lr_warmup_ratio lr_warmup_steps lr_warmup_steps_ratio num_warmup_steps warmup"
    ),
    "policy.optim.schedule": "lr_scheduler_type lr_scheduler warmup_style lr_decay_style",
    "policy.optim.max_grad_norm": "grad_clip clip_grad max_norm gradient_clipping",
    "rollout.stop": "stop stop_strings stop_sequences stop_words stop_string stop_token",
    "rollout.max_new_tokens": (
        "max_tokens max_completion_length generate_max_len response_length max_response_length max_output_tokens "
        "max_completion_tokens"
    ),
    "rollout.samples_per_prompt": "num_generations n n_samples_per_prompt num_return_sequences group_size num_samples",
    "rollout.tensor_parallel_size": (
        "vllm_tensor_parallel_size tensor_model_parallel_size tp_size tp engine_tensor_parallel_size"
    ),
    "rollout.num_workers": "vllm_num_engines num_engines",
    "rollout.gpu_memory_utilization": "vllm_gpu_memory_utilization gpu_memory_fraction",
    "rollout.max_refills": "dynamic_filtering filter_groups filter_groups.enable max_num_gen_batches dynamic_sampling",
    "data.system_prompt": "system default_system system_message",
    "data.max_prompt_tokens": "max_prompt_length prompt_max_len max_input_length",
    "data.max_length|data.max_prompt_tokens": "max_seq_length max_len cutoff_len max_sequence_length seq_length",
    "data.train": "dataset dataset_name train_dataset train_data prompt_data train_files train_file data_path",
    "data.eval": "eval_dataset val_files val_data eval_data eval_file validation_file validation_data test_data",
    "num_steps": "max_steps total_training_steps total_steps training_steps steps",
    "num_epochs": "epochs num_train_epochs total_epochs",
    "num_steps|num_epochs": "num_episodes",
    "policy.model": (
        "model_name_or_path model_path model_name pretrain base_model model_id pretrained_model_name_or_path model.path"
    ),
    "critic.model": "critic.model.path critic_pretrain value_model critic_model value_model_path",
    "reward.model": (
        "reward_model reward_pretrain reward_model_path rm_path reward_model_name_or_path reward_model.model.path"
    ),
    "reward.functions|reward.model": "reward_funcs",
    "reward.functions": (
        "reward_func reward_function custom_reward_function custom_reward_function.path custom_reward_function.name "
        "reward_fn reward_weights"
    ),
    "reward.remote": "remote_rm_url remote_url reward_url",
    "reward.normalize": "normalize_reward",
    "reward.clip": "reward_clip_range",
    "reward.overlong_window+reward.overlong_penalty": "overlong_buffer_len overlong_buffer overlong_buffer.len",
    "reference.model": "ref_model ref_model_path reference_model sft_model_path",
    "run_root+name": "output_dir save_path ckpt_path experiment_name run_name default_local_dir",
    "checkpoint.every": "save_steps save_freq save_interval save_every",
    "checkpoint.keep": "save_total_limit max_ckpt_num max_actor_ckpt_to_keep",
    "checkpoint.resume": "resume_from_checkpoint resume load_checkpoint resume_mode",
    "evaluation.every": "eval_steps test_freq eval_every eval_interval eval_freq",
    "tracking.sinks": "report_to logger use_tensorboard",
    "tracking.sinks|tracking.wandb": "use_wandb",
    "tracking.project": "wandb_project project_name",
    "tracking.entity": "wandb_entity wandb_org",
    "tracking.group": "wandb_group",
    "policy.precision": "bf16 fp16 dtype torch_dtype fp32 mixed_precision param_dtype model_dtype",
    "policy.lora.rank": "lora_r lora_rank use_peft use_lora peft peft_config",
    "policy.lora.alpha": "lora_alpha",
    "policy.lora.target_modules": "lora_target_modules target_modules",
    "policy.zero_stage+policy.offload_optimizer": "deepspeed deepspeed_config fsdp_config fsdp strategy ds_config",
    "policy.offload_optimizer": "adam_offload optimizer_offload",
    "policy.gradient_checkpointing": "enable_gradient_checkpointing activation_checkpointing",
    "cluster.placement": "colocate_all_models colocate hybrid_engine",
    "rollout.num_workers|cluster.placement": "vllm_mode",
    "algorithm.clip_eps_low+algorithm.clip_eps_high": (
        "cliprange eps_clip clip_ratio clip_range epsilon clip_eps eps_clip_low_high"
    ),
    "algorithm.clip_eps_low": "clip_ratio_low",
    "algorithm.clip_eps_high": "epsilon_high clip_ratio_high",
    "algorithm.dual_clip": "delta clip_ratio_c",
    "algorithm.kl_coef|algorithm.beta": "beta kl_coef init_kl_coef kl_loss_coef kl_coeff kl_beta kl_penalty_coef",
    "algorithm.kl_in_loss": "use_kl_loss use_kl_in_reward",
    "algorithm.kl_estimator": "kl_loss_type kl_penalty kl_type",
    "algorithm.kl_target": "target_kl",
    "algorithm.kl_horizon": "horizon",
    "algorithm.ppo_epochs|num_epochs": "max_epochs",
    "algorithm.ppo_epochs": "num_iterations num_ppo_epochs ppo_num_epochs",
    "algorithm.gae_lambda": "lam lambd gae_lam",
    "algorithm.value_clip": "cliprange_value vf_clip",
    "algorithm.whiten": "whiten_rewards whiten_advantages",
    "algorithm.entropy_coef": "entropy_coeff entropy_loss_coef",
    "algorithm.importance_cap": (
        "vllm_importance_sampling_clip_max vllm_importance_sampling_cap vllm_is_truncated_threshold"
    ),
    "algorithm.loss_aggregation|algorithm.loss": "loss_type loss_agg_mode",
    "algorithm.ratio_level": "importance_sampling_level policy_loss_type loss_mode",
    "algorithm.mask_truncated": "mask_truncated_completions",
    "algorithm.scale_by_std": "scale_rewards no_advantage_std_norm norm_adv_by_std_in_grpo",
    "algorithm.sft_weight": "rpo_alpha nll_loss_coef",
}
"""Settings -> names. `a+b`: both; `a|b`: whichever the algorithm has."""

_SENTENCE_OF = {name: sentence for sentence, names in _SENTENCES.items() for name in names.split()}
_SETTINGS_OF = {name: settings for settings, names in _SETTINGS.items() for name in names.split()}
_NAMES = {**_SENTENCE_OF, **_SETTINGS_OF}


class Hint(NamedTuple):
    """What to do instead, and the settings that it names."""

    text: str
    settings: tuple[str, ...]


def foreign_hint(key: str, known: Collection[str]) -> Hint | None:
    """What to use for a name of another trainer, by the last part or parts of `key`; None when it is none of them.

    `known`: the settings of a run of the chosen algorithm.
    """
    parts = key.split(".")
    name = next((name for i in range(len(parts)) if (name := ".".join(parts[i:])) in _NAMES), None)
    if name is None:
        return None
    if sentence := _SENTENCE_OF.get(name):
        unit = next((name for name in known if name.startswith("algorithm.") and name.endswith("_per_update")), None)
        text = sentence.replace("algorithm.{unit}", unit or "an update's rows")
        return Hint(text, settings_in(text, known))
    choices = [
        tuple(_of_role(key, setting, known) for setting in choice.split("+"))
        for choice in _SETTINGS_OF[name].split("|")
    ]
    there = [choice for choice in choices if set(choice) <= set(known)]
    if not there:
        names = " or ".join(map(" and ".join, choices))
        return Hint(f"its name here is {names}, which this algorithm does not have", ())
    return Hint(
        f"use {' or '.join(map(' and '.join, there))}", tuple(setting for choice in there for setting in choice)
    )


def nearest_foreign(key: str, cutoff: float = 0.85) -> tuple[str, float] | None:
    """The name of another trainer that the last part of `key` misspells, and how similar they are."""
    leaf = key.rsplit(".", 1)[-1]
    found = nearest(leaf, [name for name in _NAMES if len(name) > 4], cutoff)
    return (found, similarity(leaf, found)) if found else None


def _of_role(key: str, setting: str, known: Collection[str]) -> str:
    """The policy's setting, or the same of another role where `key` names that: critic.lr, critic_learning_rate."""
    for role in ("critic", "reference", "reward", "rollout"):
        other = f"{role}.{setting.removeprefix('policy.')}"
        if setting.startswith("policy.") and key.startswith((f"{role}.", f"{role}_")) and other in known:
            return other
    return setting
