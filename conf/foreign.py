"""What people who come from other trainers write, and what it is called here. Standard library only."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

_SAMPLING = (
    "answers are sampled with temperature only: of a distribution cut to the likeliest tokens, or with penalties, the "
    "trainer would have to know the same cut for every token, or its log-probs and ratios would be of another "
    "distribution than the one sampled; use rollout.temperature"
)
_BATCH = (
    "one optimizer step takes algorithm.{unit}, and one forward pass policy.micro_batch_tokens (accumulation follows)"
)
_COLUMNS = "columns of your own names are given as data.columns={prompt: question, ground_truth: answer}"

_NAMES: Mapping[str, tuple[str, ...]] = {
    _SAMPLING: (
        "top_p", "top_k", "min_p", "typical_p", "top_a", "repetition_penalty", "presence_penalty", "frequency_penalty",
        "length_penalty", "logit_bias",
    ),
    _BATCH: (
        "batch_size", "train_batch_size", "global_batch_size", "per_device_train_batch_size", "micro_batch_size",
        "micro_train_batch_size", "ppo_mini_batch_size", "mini_batch_size", "gradient_accumulation_steps",
        "rollout_batch_size",
    ),
    _COLUMNS: (
        "prompt_column", "prompt_key", "input_key", "output_key", "text_column", "dataset_text_field", "label_key",
        "label_column", "chosen_key", "rejected_key", "response_key", "answer_column", "completion_column",
    ),
    "use policy.optim.lr (and critic.optim.lr)": ("lr", "learning_rate", "actor_learning_rate", "critic_learning_rate"),
    "use rollout.stop=[text, ...]": ("stop", "stop_strings", "stop_sequences", "stop_words", "stop_string"),
    "answers end at the end tokens of the model's folder and at those of rollout.stop_token_ids=[id, ...]": (
        "stop_token_ids", "stop_ids", "stop_tokens", "eos_token_ids", "eos_token_id",
    ),
    "use rollout.max_new_tokens": (
        "max_tokens", "max_completion_length", "generate_max_len", "response_length", "max_response_length",
    ),
    "use data.chat_template (a file, a model's folder, or a name such as chatml)": (
        "chat_template", "chat_template_path", "custom_chat_template", "input_template", "template", "prompt_template",
        "apply_chat_template", "conversation_template",
    ),
    "use data.system_prompt": ("system", "default_system", "system_message"),
    "use data.max_prompt_tokens": ("max_prompt_length", "prompt_max_len", "max_input_length"),
    "use data.max_length (rows) or data.max_prompt_tokens (prompts)": ("max_seq_length", "max_len", "cutoff_len"),
    "use rollout.samples_per_prompt": ("num_generations", "n", "n_samples_per_prompt", "num_return_sequences"),
    "use num_steps": ("max_steps", "total_training_steps", "total_steps"),
    "use num_epochs": ("epochs", "num_train_epochs", "max_epochs", "total_epochs"),
    "use policy.model": ("model_name_or_path", "model_path", "model_name", "pretrain", "base_model", "model_id"),
    "use reward.model": ("reward_model", "reward_pretrain", "reward_model_path", "rm_path"),
    "use reference.model": ("ref_model", "ref_model_path", "reference_model"),
    "use data.train": ("dataset", "dataset_name", "train_data", "prompt_data", "train_files", "data_path"),
    "use data.eval": ("eval_dataset", "val_files", "eval_data", "validation_file", "test_data"),
    "use run_root (the folder of all runs) and name": ("output_dir", "save_path", "ckpt_path", "experiment_name"),
    "use checkpoint.every": ("save_steps", "save_freq", "save_interval", "save_every"),
    "use evaluation.every": ("eval_steps", "test_freq", "eval_every", "eval_interval"),
    "use checkpoint.keep": ("save_total_limit", "max_ckpt_num"),
    "use checkpoint.resume": ("resume_from_checkpoint", "resume", "load_checkpoint"),
    "every step is written to metrics.jsonl and to W&B": ("logging_steps", "log_every", "log_freq"),
    "use tracking.sinks=[wandb,tensorboard,trackio]": ("report_to", "logger"),
    "use tracking.wandb=online|offline|disabled": ("use_wandb",),
    "use tracking.project": ("wandb_project", "project_name"),
    "use tracking.entity": ("wandb_entity", "wandb_org"),
    "use tracking.group": ("wandb_group",),
    "use policy.precision=bfloat16 or float32 (there is no float16)": ("bf16", "fp16", "dtype", "torch_dtype", "fp32"),
    "use policy.lora.rank": ("lora_r", "lora_rank", "use_peft", "use_lora", "peft"),
    "use policy.lora.alpha": ("lora_alpha",),
    "use policy.lora.target_modules": ("lora_target_modules", "target_modules"),
    "use policy.optim.warmup_steps": ("warmup_ratio", "lr_warmup_ratio", "lr_warmup_steps", "num_warmup_steps"),
    "use policy.optim.schedule": ("lr_scheduler_type", "lr_scheduler", "warmup_style"),
    "use policy.optim.max_grad_norm": ("grad_clip", "clip_grad", "max_norm", "gradient_clipping"),
    "use policy.zero_stage and policy.offload_optimizer": ("deepspeed", "deepspeed_config", "fsdp_config"),
    "use algorithm.clip_eps_low and algorithm.clip_eps_high": (
        "cliprange", "eps_clip", "clip_ratio", "clip_range", "epsilon",
    ),
    "use algorithm.kl_coef (online) or algorithm.beta (offline)": ("beta", "init_kl_coef", "kl_loss_coef", "kl_coeff"),
    "use rollout.tensor_parallel_size": ("vllm_tensor_parallel_size", "tensor_model_parallel_size", "tp_size", "tp"),
    "use rollout.num_workers": ("vllm_num_engines", "num_engines"),
}  # fmt: skip
_HINTS = {name: hint for hint, names in _NAMES.items() for name in names}


def foreign_hint(key: str, known: Iterable[str]) -> str | None:
    """What to use for a name of another trainer, by the last part of `key`; None when it is none of them.

    `known`: the settings of the chosen algorithm, one of which is the size of its update.
    """
    hint = _HINTS.get(key.rsplit(".", 1)[-1])
    unit = next((name for name in known if name.startswith("algorithm.") and name.endswith("_per_update")), None)
    return hint and hint.replace("algorithm.{unit}", unit or "an update's rows")
