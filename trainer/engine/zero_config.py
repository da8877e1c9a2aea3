"""DeepSpeed's settings for one of our learners: a plain dictionary, DeepSpeed's own format.

In bfloat16, stages 2 and 3 accumulate gradients in float32; stages 0 and 1 in bfloat16, because DeepSpeed's float32
path there refuses a step whose gradient is exactly zero.
"""

from __future__ import annotations

from typing import Any

from raylign.conf.schema import Device, LearnerConfig, Offload, Precision

REDUCE_BUCKET_NUMEL = 1 << 25
"""Gradient elements reduced at once. DeepSpeed's 500 million make a bfloat16 learner copy its whole gradient to float32
on the way (0.9 GB more for SmolLM2); 128 MB at a time keeps any network busy."""


GPU_BUCKET_NUMEL = 2 * 10**8
"""The same on a GPU, where a bucket is reduced while the next layers' gradients are computed: 0.8 GB in float32."""
GPU_PERSISTENT_NUMEL = 10**6
"""ZeRO-3 on a GPU keeps smaller weights (norms, biases) whole: gathering one costs more time than it saves memory."""


def deepspeed_config(config: LearnerConfig, device: Device = Device.cpu) -> dict[str, Any]:
    """DeepSpeed's own configuration for one of our learners.

    On a GPU communication runs beside computation; on a CPU both want the same cores.
    """
    on_gpu = device is Device.cuda
    bf16 = config.precision is Precision.bfloat16
    plain = config.zero_stage == 0 and not bf16
    zero: dict[str, Any] = {
        "stage": config.zero_stage,
        "overlap_comm": on_gpu,
        "round_robin_gradients": False,
        "reduce_bucket_size": GPU_BUCKET_NUMEL if on_gpu else REDUCE_BUCKET_NUMEL,
    }
    if on_gpu and config.zero_stage == 3:
        zero["stage3_prefetch_bucket_size"] = GPU_BUCKET_NUMEL
        zero["stage3_param_persistence_threshold"] = GPU_PERSISTENT_NUMEL
    if config.zero_node_ranks:
        zero["zero_hpz_partition_size"] = config.zero_node_ranks
    if config.offload_optimizer is Offload.cpu:
        zero["offload_optimizer"] = {"device": "cpu", "pin_memory": True}
    settings: dict[str, Any] = {
        "train_micro_batch_size_per_gpu": 1,  # unused: batches are ours
        "gradient_accumulation_steps": 1,  # boundaries are ours
        "gradient_clipping": 0.0 if plain else config.optim.max_grad_norm,
        "steps_per_print": None,
        "zero_allow_untested_optimizer": True,
        "zero_optimization": zero,
        "bf16": {"enabled": bf16, "check_grad_overflow": True},
    }
    if bf16:
        settings["communication_data_type"] = "fp32"
    if bf16 and config.zero_stage >= 2:
        settings["data_types"] = {"grad_accum_dtype": "fp32"}
    return settings
