"""Environment variables of the roles, and how our packages reach the workers: the one place that touches os.environ.

A role's variables are set by Ray when it starts the role's process, before anything is imported there: DeepSpeed,
vLLM and the thread pools read theirs at import.
"""

from __future__ import annotations

import json
import os
import shlex
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from raylign.cluster import fork_client
from raylign.cluster.fork_client import BORROW, PRELOAD
from raylign.cluster.package import package_folder
from raylign.conf.schema import Device

LOOPBACK_IP = "127.0.0.1"
"""Node address of a Ray started here. Ray's servers bind to loopback for this address and to every interface for any
other, 127.0.0.2 included."""

_OFFLINE = {
    "HF_HUB_OFFLINE": "1",  # models are folders: a role that asks a hub is a bug, and would hang behind a firewall
    "TRANSFORMERS_OFFLINE": "1",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",  # its threads do not survive a fork and fight with torch's
    "PYTHONFAULTHANDLER": "1",  # a native crash leaves a stack in the role's log
}

_PASSIVE_WAIT = {
    # Roles take turns on the cores: a thread pool that spins while it waits burns the cores of the role whose turn it
    # is (37 ms of CPU a token against 5 ms, measured with two engine threads).
    "OMP_WAIT_POLICY": "PASSIVE",
    "GOMP_SPINCOUNT": "0",
    "KMP_BLOCKTIME": "0",
}
_SPINNING_WAIT = {
    # Threads that sleep at once have to be woken for each of a step's ten thousand small operations: with some
    # microseconds of spinning a learner alone on its cores is 1.6 times as fast, and two on the same cores half as fast
    # (docs/log.md).
    "GOMP_SPINCOUNT": "2000",
}
_GROWING = {
    # Blocks of many sizes leave gaps that no later one fits; segments that grow do not. Not for engines: vLLM's sleep
    # mode has its own allocator and refuses this one.
    "PYTORCH_CUDA_ALLOC_CONF": "expandable_segments:True",
    "TORCH_NCCL_TRACE_BUFFER_SIZE": "2000",  # what each rank's collectives were doing, when one hangs
}
_ONE_POOL = "narenas:1,oversize_threshold:0,lg_extent_max_active_fit:16"


def _allocator(*, keeps_pages: bool) -> dict[str, str]:
    """Variables that make a CPU role keep the memory it frees, through the jemalloc that comes inside ray's wheel.

    glibc gives every block over 32 MB back to the kernel and faults it in again, page by page: a learner's step wrote
    3 GB into fresh pages and took 4.5 s; with jemalloc keeping them it takes 2.1 s at the same peak (docs/log.md). What
    it keeps for nothing goes back in cluster/pages.py; roles that do not call it keep pages for a minute. One pool
    for all threads and sizes, whose large free blocks may serve small requests: with jemalloc's own settings a learner
    that uses 2.4 GB holds 4 and grows.
    Empty when this build of ray carries no jemalloc.
    """
    spec = find_spec("ray")
    library = Path(spec.origin or "").parent / "core" / "libjemalloc.so" if spec else None
    if library is None or not library.is_file():
        return {}
    decay_ms = -1 if keeps_pages else 60_000
    conf = f"dirty_decay_ms:{decay_ms},muzzy_decay_ms:{decay_ms},{_ONE_POOL}"
    return {"LD_PRELOAD": str(library), "MALLOC_CONF": conf}


@dataclass(frozen=True, slots=True)
class RoleEnv:
    """What decides the environment of one process of a role. A vLLM worker adds rollout.environment's."""

    device: Device
    threads: int  # torch and BLAS threads, at least 1
    loopback: bool = True  # every rank on this machine: process groups bind to the loopback interface
    keeps_pages: bool = False  # a role that watches what it keeps (cluster/pages.py)
    grows: bool = False  # a learner on a GPU, whose every micro-batch has another size
    own_cores: bool = False  # a core for each thread, and no other role on it
    preload: tuple[str, ...] = ()  # modules that a fork server imports for it, on CPU (cluster/fork_client.py)
    borrow: str = ""  # the first of another role's `preload`, whose server will do

    def variables(self) -> dict[str, str]:
        """Variables every role needs."""
        threads = str(max(1, self.threads))
        variables = {
            **_OFFLINE,
            **_PASSIVE_WAIT,
            **(_SPINNING_WAIT if self.own_cores else {}),
            "OMP_NUM_THREADS": threads,
            "MKL_NUM_THREADS": threads,
            "OPENBLAS_NUM_THREADS": threads,
        }
        if self.device is Device.cpu:
            variables |= {
                "DS_ACCELERATOR": "cpu",
                "CUDA_VISIBLE_DEVICES": "",
                **_allocator(keeps_pages=self.keeps_pages),
            }
            if self.preload:
                variables |= {PRELOAD: ",".join(self.preload)}
            elif self.borrow:
                variables |= {BORROW: self.borrow}
        else:
            variables |= {"DS_ACCELERATOR": self.device.value}  # not the driver's, which workers here would inherit
            if self.grows:
                variables |= _GROWING
        if self.loopback:
            variables |= {"GLOO_SOCKET_IFNAME": "lo"}
        return variables


def quiet_driver() -> None:
    """For the process a person looks at, before it imports models: transformers brings DeepSpeed along, which would
    look for an accelerator there and warn when it finds none."""
    os.environ.setdefault("DS_ACCELERATOR", "cpu")


def compute_here() -> None:
    """For a command that computes in its own process, before it imports torch: its threads wait as a role's do.

    A pool that spins is nine tenths of the processor where anything else runs on the same cores (docs/log.md).
    """
    for name, value in {**_PASSIVE_WAIT, **_SPINNING_WAIT}.items():
        os.environ.setdefault(name, value)


def ray_process_env(*, token_path: Path | None) -> None:
    """Set Ray's own switches in this process. They must be there before `ray.init` reads them.

    `token_path`: the private token file of a cluster started here; None when joining, where Ray finds the cluster's
    own token by RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token.
    """
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("RAY_DEDUP_LOGS", "1")
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # we set CUDA_VISIBLE_DEVICES per role
    if token_path is not None:
        os.environ["RAY_AUTH_MODE"] = "token"
        os.environ["RAY_AUTH_TOKEN_PATH"] = str(token_path)
        os.environ.pop("RAY_AUTH_TOKEN", None)  # it would win over the file, and belongs to another cluster


@contextmanager
def ray_on_loopback() -> Iterator[None]:
    """While a cluster starts here: let Ray have 127.0.0.1 as a node address.

    By default it replaces that by the machine's outward address, and then listens on every interface. Its own switch
    against it is for other systems by name and read when Ray is imported, here and in every process of the cluster.
    """
    from ray._private import ray_constants

    name = ray_constants.ENABLE_RAY_CLUSTERS_ENV_VAR
    before = ray_constants.ENABLE_RAY_CLUSTER, os.environ.get(name)
    ray_constants.ENABLE_RAY_CLUSTER, os.environ[name] = False, "0"
    try:
        yield
    finally:
        ray_constants.ENABLE_RAY_CLUSTER = before[0]
        os.environ.pop(name)
        if before[1] is not None:
            os.environ[name] = before[1]


def submitted_working_dir() -> str | None:
    """The working directory `ray job submit` gave this driver, which Ray ships to every node; None outside a job."""
    config = os.environ.get("RAY_JOB_CONFIG_JSON_ENV_VAR")
    if not config:
        return None
    runtime_env = json.loads(config).get("runtime_env") or {}
    return runtime_env.get("working_dir")


def in_ray_job() -> bool:
    """True for a driver started by `ray job submit`: it belongs to that cluster and must not start its own."""
    return "RAY_JOB_CONFIG_JSON_ENV_VAR" in os.environ


def job_runtime_env(*, local: bool) -> Mapping[str, object]:
    """The runtime environment of every worker of this driver, so that `raylign` there is the one of this process.

    On this machine workers run in the driver's own environment, started by the fork server's client. A submitted job
    was sent what its driver imports, and its workers inherit that. Joining a cluster otherwise uploads the package:
    another node need not share this machine's disk, or may hold another version.
    """
    if local:
        return {"py_executable": shlex.join([sys.executable, "-I", "-S", fork_client.__file__])}
    if submitted_working_dir() is not None:
        return {}
    return {"py_modules": [str(package_folder())], "excludes": ["__pycache__"]}
