"""What the fork servers of the roles import (cluster/fork_client.py). Names alone: nothing is imported here.

Beside a role's own module, what its libraries import only once a model is loaded. One that is missing costs time alone.
"""

from __future__ import annotations

LEARNER = (
    "raylign.trainer.workers.learner_worker",
    "deepspeed",
    "deepspeed.module_inject",
    "deepspeed.runtime.engine",
    "accelerate.hooks",
    "transformers.models.llama.modeling_llama",
)

ENGINE = (
    "raylign.rollout.vllm_engine",
    "raylign.rollout.worker",
    "raylign.rollout.vllm_extension",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.model_loader",
    "vllm.model_executor.layers.quantization.online.base",
    "vllm.model_executor.models.llama",
)
