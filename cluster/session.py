"""A connection to Ray: started on this machine, or joined.

A cluster started here belongs to this process: a fresh token in a private folder, the dashboard off, every server on
loopback only, everything removed at the end however this process ends.
"""

from __future__ import annotations

import logging
import math
import os
import secrets
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address, ip_address
from pathlib import Path

import ray
from ray._raylet import AuthenticationTokenLoader, Config  # type: ignore[attr-defined]  # compiled
from ray.exceptions import AuthenticationError
from raylign.cluster.lean_ray import lean_ray
from raylign.cluster.leftovers import RAY_FOLDER, TOKEN, private_folder
from raylign.cluster.placement import NodeSupply
from raylign.cluster.probe import cluster_supply
from raylign.cluster.runtime_env import LOOPBACK_IP, in_ray_job, job_runtime_env, ray_on_loopback, ray_process_env
from raylign.conf.errors import ClusterError
from raylign.conf.schema import ClusterConfig

_GIB = 2**30
_TOKEN_FIX = "start it with RAY_AUTH_MODE=token and a token (`ray get-auth-token --generate`), and set both here too"
_START_TIMEOUT = "timed out during startup"  # Ray's words; its 30 s are not a setting


@dataclass(frozen=True, slots=True)
class Session:
    """A live connection."""

    local: bool
    address: str  # of the head's GCS, host:port

    def nodes(self) -> list[NodeSupply]:
        """The live machines and what each has in all (whether or not it is in use)."""
        return [
            NodeSupply(
                node_id=node["NodeID"],
                address=node["NodeManagerAddress"],
                cpus=node["Resources"].get("CPU", 0.0),
                gpus=node["Resources"].get("GPU", 0.0),
                labels=dict(node.get("Labels") or {}),
            )
            for node in ray.nodes()
            if node["Alive"]
        ]

    def without_token(self, environ: Mapping[str, str]) -> str | None:
        """What a person should know of a cluster that lets anybody in; None where it asks for a token."""
        reached = [] if self.local else reachable_without_token([node.address for node in self.nodes()], environ)
        if not reached:
            return None
        return (
            f"the cluster asks for no token, so whoever reaches {reached[0]} can run code there as its user; keep it "
            f"on a private network, and {_TOKEN_FIX}"
        )


def starts_here(config: ClusterConfig) -> bool:
    """Whether a session starts a Ray of its own."""
    return config.address == "local" and not in_ray_job()


def cpus_here(config: ClusterConfig, num_cpus: float) -> int:
    """CPUs of a Ray started here. They only count, for roles take turns on the cores: `cluster.num_cpus`, or by default
    `num_cpus`, what the roles ask for together, when that is more than the cores."""
    return config.num_cpus or max(os.cpu_count() or 1, math.ceil(num_cpus))


@contextmanager
def prepared_folder() -> Iterator[Path]:
    """The private folder of a cluster that this process is about to start, its token in it and in the environment."""
    with private_folder() as folder, ray_on_loopback():
        descriptor = os.open(folder / TOKEN, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "w") as file:
            file.write(secrets.token_hex(32))
        ray_process_env(token_path=folder / TOKEN)
        yield folder


@contextmanager
def session(config: ClusterConfig, *, num_cpus: float, prepared: Path | None = None) -> Iterator[Session]:
    """Connect, and disconnect at the end whatever happened.

    `num_cpus`: see `cpus_here`. `prepared`: the folder for a Ray started here, by default one of its own.
    Raises ClusterError when there is nothing to join, or joining is refused.
    """
    if starts_here(config):
        with ExitStack() as stack:
            folder = prepared or stack.enter_context(prepared_folder())
            stack.callback(ray.shutdown)
            yield _start(config, folder, cpus_here(config, num_cpus))
    else:
        try:
            joined = _join("auto" if config.address == "local" else config.address)
            refuse_public(config.address, [node.address for node in joined.nodes()], os.environ)
            yield joined
        finally:
            ray.shutdown()


def reachable_without_token(addresses: Sequence[str], environ: Mapping[str, str]) -> list[str]:
    """Addresses of nodes that other machines may reach, where a process that gave no token was let in."""
    if environ.get("RAY_AUTH_MODE") == "token":  # the cluster has checked it, or does not care: doctor looks further
        return []
    return [address for address in addresses if not _ip(address).is_loopback]


def refuse_public(named: str, addresses: Sequence[str], environ: Mapping[str, str]) -> None:
    """Raises ClusterError for a cluster on a public address that asks for no token."""
    public = [address for address in reachable_without_token(addresses, environ) if _ip(address).is_global]
    if public:
        raise ClusterError(
            f"cluster.address={named}: its node {public[0]} has a public address and asks for no token, so anybody can "
            f"run code there; {_TOKEN_FIX}"
        )


def _ip(address: str) -> IPv4Address | IPv6Address:
    """A name that is no address counts as one of a private network."""
    try:
        return ip_address(address)
    except ValueError:
        return IPv4Address("10.0.0.1")


def _start(config: ClusterConfig, folder: Path, num_cpus: int) -> Session:
    # Ray read its authentication mode when it was imported and keeps the token of an earlier cluster of this process;
    # it has no public way to look again (its own default for a new cluster calls the same two).
    Config.initialize("")
    AuthenticationTokenLoader.instance().reset_cache()
    try:
        with lean_ray():
            context = ray.init(
                address="local",
                num_cpus=num_cpus,
                object_store_memory=int(config.object_store_gb * _GIB),
                include_dashboard=False,
                logging_level=logging.WARNING,
                log_to_driver=False,
                runtime_env=dict(job_runtime_env(local=True)),
                _node_ip_address=LOOPBACK_IP,
                _temp_dir=str(folder / RAY_FOLDER),
                # Every role has an environment of its own, so a worker started beforehand is never used.
                _system_config={"prestart_worker_first_driver": False, "enable_worker_prestart": False},
            )
    except Exception as error:  # the bare class is what Ray raises here
        if _START_TIMEOUT not in str(error):
            raise
        raise ClusterError(
            "cluster.address=local: Ray did not start on this machine within its 30 s; the machine is too busy: end "
            "what else runs on it and try again"
        ) from error
    return Session(local=True, address=context.address_info["gcs_address"])


def _join(address: str) -> Session:
    """Raises ClusterError also for an address where nothing answers, on which `ray.init` would wait for ever."""
    if not in_ray_job():  # its cluster is the one that started it
        cluster_supply(address)
    return connect(address, job_runtime_env(local=False))


def connect(address: str, runtime_env: Mapping[str, object]) -> Session:
    """Join, however long Ray takes: see cluster/probe.py. Raises ClusterError when there is nothing to join."""
    ray_process_env(token_path=None)
    try:
        context = ray.init(
            address=address, logging_level=logging.WARNING, log_to_driver=False, runtime_env=dict(runtime_env)
        )
    except AuthenticationError as error:
        raise ClusterError(
            f"cluster.address={address}: the cluster refused this process: {_first_line(error)}; put the cluster's "
            "token in RAY_AUTH_TOKEN, or its file in RAY_AUTH_TOKEN_PATH, and set RAY_AUTH_MODE=token"
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"cluster.address={address}: no Ray cluster answers there ({_first_line(error)}); start one with "
            "`ray start --head`, or set cluster.address=local"
        ) from error
    return Session(local=False, address=context.address_info["gcs_address"])


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0]
