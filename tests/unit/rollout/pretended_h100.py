"""Prints, as JSON, the engine configuration that vLLM itself resolves for GPU experiments on a pretended H100.

A process of its own: the platform is fixed when vLLM is imported. vLLM's compiled kernels are replaced by an empty
module; no card, no driver and no CUDA build are needed, and nothing here says that a card accepts what is resolved.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import torch

GIB = 2**30
FIELDS = {
    "model": ("dtype", "max_model_len", "enforce_eager", "enable_sleep_mode", "logprobs_mode", "seed"),
    "cache": ("kv_cache_memory_bytes", "gpu_memory_utilization", "enable_prefix_caching"),
    "parallel": ("tensor_parallel_size", "distributed_executor_backend", "world_size", "worker_cls"),
    "scheduler": ("max_num_batched_tokens", "max_num_seqs", "enable_chunked_prefill", "async_scheduling"),
    "compilation": ("mode", "cudagraph_mode", "max_cudagraph_capture_size"),
    "load": ("load_format",),
}


def pretend(cards: int) -> None:
    """From now on vLLM finds this many H100s."""
    sys.modules["vllm._C_stable_libtorch"] = ModuleType("vllm._C_stable_libtorch")
    import vllm.platforms as platforms
    from vllm.platforms.cuda import CudaPlatformBase
    from vllm.platforms.interface import DeviceCapability

    class H100(CudaPlatformBase):
        device_control_env_var = "RAYLIGN_NO_SUCH_VARIABLE"

        @classmethod
        def get_device_capability(cls, device_id: int = 0) -> DeviceCapability:
            return DeviceCapability(9, 0)

        @classmethod
        def get_device_name(cls, device_id: int = 0) -> str:
            return "NVIDIA H100 80GB HBM3"

        @classmethod
        def get_device_total_memory(cls, device_id: int = 0) -> int:
            return 80 * GIB

        @classmethod
        def device_count(cls) -> int:
            return cards

        @classmethod
        def is_fully_connected(cls, physical_device_ids: list[int]) -> bool:
            return True

        @classmethod
        def log_warnings(cls) -> None: ...

    import vllm.device_allocator.cumem as cumem

    cumem.cumem_available = True  # its compiled half is in CUDA builds only
    platforms._current_platform = H100()
    torch.cuda.device_count = lambda: cards


def resolved(model: str, experiment: list[str]) -> dict[str, Any]:
    """vLLM's configuration of one engine of an experiment."""
    from raylign.app.configuration import compose
    from raylign.conf.schema import Device, PlacementStrategy
    from raylign.rollout.vllm_engine import Hosting, VLLMEngine
    from vllm.usage.usage_lib import UsageContext

    config = compose(experiment).config
    hosting = Hosting(shares_cards=config.cluster.placement is PlacementStrategy.colocated)
    engine = VLLMEngine(model, config.rollout, config.sync, device=Device.cuda, seed=config.seed, hosting=hosting)
    found = engine._engine_args().create_engine_config(UsageContext.ENGINE_CONTEXT)
    return {
        part: {name: _plain(getattr(getattr(found, f"{part}_config"), name)) for name in names}
        for part, names in FIELDS.items()
    }


def _plain(value: Any) -> Any:
    return value if isinstance(value, bool | int | float | str | None) else getattr(value, "name", str(value))


def main(folder: Path, experiments: list[str]) -> None:
    """`folder`: a model's config.json and rows.jsonl."""
    pretend(8)
    model = folder / "model"
    given = [f"{role}.model={model}" for role in ("policy", "critic", "reward")] + [f"data.train={folder}/rows.jsonl"]
    engines = {name: resolved(str(model), [f"+experiment={name}", *given]) for name in experiments}
    print("RESOLVED " + json.dumps(engines))


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
