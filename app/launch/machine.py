"""What a run asks of the machines it starts processes on: their environment and Ray's object store."""

from __future__ import annotations

import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from pathlib import Path

from raylign.cluster.runtime_env import in_ray_job
from raylign.conf.errors import ClusterError
from raylign.conf.schema import RunConfig
from raylign.conf.secret_names import is_secret_name
from raylign.trainer.algorithms.base import Role
from raylign.trainer.memory_plan import item_bytes, model_shape

SHARED_MEMORY = Path("/dev/shm")
LEAST_GB = 2.0
"""Of an object store, whatever the model: samples, rows and log-probs of a step."""
_GIB = 2**30
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_OURS = frozenset({"CUDA_VISIBLE_DEVICES", "DS_ACCELERATOR", "LD_PRELOAD", "PYTHONPATH", "RANK", "WORLD_SIZE"})
_OURS_BEGIN = ("RAY_", "RAYLIGN_")


def env_problems(env: Mapping[str, str]) -> Iterator[str]:
    """A sentence for each variable that cannot be one, that a run sets itself, or that is a secret by its name."""
    for name in env:
        key = f"cluster.env.{name}"
        if not _NAME.fullmatch(name):
            yield f"{key}: no environment variable can have this name; use letters, digits and _."
        elif is_secret_name(name):
            yield f"{key}: its name says that it is a secret, which settings must not hold; export it on every node."
        elif name in _OURS or name.startswith(_OURS_BEGIN):
            yield f"{key}: every role's process is given this variable by the run; leave it out."


def object_store_gb(config: RunConfig, roles: Collection[Role], shared_memory: Path = SHARED_MEMORY) -> float:
    """GiB of the object store of a Ray started here: the setting, else what a published model needs.

    Raises ClusterError when shared memory is smaller: Ray would put the store on disk, and every publication with it.
    """
    given = config.cluster.object_store_gb
    starts_here = config.cluster.address == "local" and not in_ray_job()
    if given or Role.ROLLOUT not in roles or not starts_here:
        return given or LEAST_GB
    published = model_shape(config.policy.model, scalar=False).parameters * item_bytes(config.policy.precision)
    wanted = max(LEAST_GB, 1.2 * published / _GIB + 1.0)
    if wanted > LEAST_GB and shared_memory.is_dir():
        free = shutil.disk_usage(shared_memory).free / _GIB
        if free < wanted:
            raise ClusterError(
                f"cluster.object_store_gb: publishing policy.model needs {wanted:.1f} GiB in {shared_memory}, which "
                f"has {free:.1f} GiB free; enlarge it (docker --shm-size, or mount -o remount,size=), or set "
                f"cluster.object_store_gb={max(1, int(free))} and let Ray use the disk"
            )
    return wanted
