"""Process environment of a vLLM engine: in place before `vllm` is imported, so this file imports nothing of it."""

from __future__ import annotations

import os
from pathlib import Path

from raylign.conf.schema import Device, RolloutConfig


def engine_environment(config: RolloutConfig, device: Device) -> dict[str, str]:
    """Variables of the process that hosts an engine (and of the engine core it spawns)."""
    variables = {
        "VLLM_NO_USAGE_STATS": "1",
        "VLLM_DO_NOT_TRACK": "1",
        "HF_HUB_DISABLE_TELEMETRY": "1",
        "VLLM_HOST_IP": "127.0.0.1",  # one engine is one machine: nothing listens beyond it
        "VLLM_LOGGING_LEVEL": "WARNING",
    }
    if device is Device.cpu:
        variables["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"  # one process less: the worker lives in the engine core
        variables["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"  # Ray and the learners share these cores
        # Roles outnumber cores: a thread that spins at a barrier burns the core its peer needs. Measured on a busy
        # machine, two threads, SmolLM2-135M fp32: 37 ms of CPU a token spinning, 5 ms not.
        variables["OMP_WAIT_POLICY"] = "PASSIVE"
        if config.threads_per_worker:
            variables["OMP_NUM_THREADS"] = str(config.threads_per_worker)
    return variables


def core_in_this_process(config: RolloutConfig, device: Device) -> bool:
    """Whether the engine core runs beside its client: on CPU, unless several processes share the model anyway."""
    return device is Device.cpu and config.tensor_parallel_size == 1


def release_semaphore_names() -> None:
    """Unlink the names of this process's semaphores, once the engine core has opened them.

    Python's spawned processes find a shared semaphore by its name in /dev/shm and remove the name when they end in
    order; an engine that is killed never does, and the file would stay for good.
    """
    for line in Path("/proc/self/maps").read_text(encoding="utf-8").splitlines():
        path = line.rpartition(" ")[2]
        if path.startswith("/dev/shm/sem.mp-"):
            Path(path).unlink(missing_ok=True)


def launch_environment(config: RolloutConfig, device: Device) -> dict[str, str]:
    """As engine_environment, for a process on this machine that is started with it: what is set here stays."""
    return {name: value for name, value in engine_environment(config, device).items() if name not in os.environ}


def prepare(config: RolloutConfig, device: Device) -> None:
    """Complete this process's environment; what its launcher has set stays.

    Call before the first import of `rollout.vllm_engine`.
    """
    for name, value in engine_environment(config, device).items():
        os.environ.setdefault(name, value)
