"""A run as a Ray job: the folder goes along, the driver runs on the cluster, its log and exit code come back."""

from __future__ import annotations

import asyncio
import fnmatch
import logging
import os
import shlex
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from ray.exceptions import AuthenticationError
from ray.job_submission import JobStatus, JobSubmissionClient
from raylign.cluster.package import package_folder
from raylign.cluster.runtime_env import ray_process_env
from raylign.conf.errors import ClusterError, UserError

logger = logging.getLogger(__name__)

EXCLUDES = (
    ".git", ".venv", "runs", "outputs", "multirun", "wandb", "build", "dist", "__pycache__", "*.egg-info",
    ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", ".import_linter_cache", ".env",
)  # fmt: skip
"""Names left behind wherever they lie: what a run writes, what a machine builds, and secrets."""

MAX_WORKING_DIR_BYTES = 100 << 20
"""Every node fetches the folder before the run starts; models and data belong on a disk the nodes share."""

ACCEPT_TIMEOUT_S = 60.0
_STARTING = "No available agent"  # Ray's words for a node whose agent is not up yet

_FINISHED_EXIT = {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 75, JobStatus.FAILED: 70}
_POLL_S = 1.0


def submit(
    overrides: Sequence[str],
    *,
    address: str | None,
    working_dir: Path,
    wait: bool,
    entrypoint: Sequence[str] = ("python", "-m", "raylign", "train"),
) -> int:
    """Send `working_dir` to the cluster at `address` and run `entrypoint` with `overrides` there.

    `address`: http://host:8265; None: RAY_API_SERVER_ADDRESS, else the cluster running here. `wait`: follow the log
    and return the run's own exit code; else return 0 as soon as the job is accepted.
    Raises UserError for a folder that should not be sent, ClusterError when no cluster takes the job.
    """
    check_working_dir(working_dir)
    client = _connect(address)
    command = shlex.join([*entrypoint, *overrides])
    try:
        job_id = _send(client, command, working_dir)
    except (RuntimeError, ConnectionError) as error:
        raise ClusterError(f"{_where(address)} did not take the job: {_first_line(error)}") from error
    where = f" --address {address}" if address else ""
    logger.info(
        "job %s is submitted; log: ray job logs%s --follow %s; end it: ray job stop%s %s",
        job_id,
        where,
        job_id,
        where,
        job_id,
    )
    return asyncio.run(_follow(client, job_id)) if wait else 0


def check_working_dir(folder: Path) -> None:
    """Raises UserError when `folder` is missing, or larger than a job's folder should be, saying what is large."""
    if not folder.is_dir():
        raise UserError(f"working_dir={folder}: there is no such folder; name the one that holds the code")
    sizes = {path: path.stat().st_size for path in shipped_files(folder)}
    total = sum(sizes.values())
    if total <= MAX_WORKING_DIR_BYTES:
        return
    largest: dict[str, int] = {}
    for path, size in sizes.items():
        top = path.relative_to(folder).parts[0]
        largest[top] = largest.get(top, 0) + size
    named = sorted(largest.items(), key=lambda item: -item[1])[:3]
    raise UserError(
        f"working_dir={folder} is {_mib(total)} without {', '.join(EXCLUDES[:4])} and the like; at most "
        f"{_mib(MAX_WORKING_DIR_BYTES)} is sent with a job. Largest: "
        f"{', '.join(f'{name} {_mib(size)}' for name, size in named)}. Move models and data to a disk that the nodes "
        "share and name them by absolute path"
    )


def shipped_files(folder: Path) -> Iterator[Path]:
    """The files of `folder` that no exclusion names."""
    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not _excluded(name)]
        yield from (Path(root) / name for name in files if not _excluded(name) and (Path(root) / name).is_file())


def _send(client: JobSubmissionClient, command: str, working_dir: Path) -> str:
    """The accepted job's id. A cluster that is just starting has no agent for a while; that is waited for."""
    deadline = time.monotonic() + ACCEPT_TIMEOUT_S
    runtime_env = {
        "working_dir": str(working_dir),
        "py_modules": [str(package_folder())],  # this raylign, whatever the nodes have installed
        "excludes": [f"**/{name}" for name in EXCLUDES],
    }
    while True:
        try:
            return client.submit_job(entrypoint=command, runtime_env=dict(runtime_env))
        except RuntimeError as error:
            if _STARTING not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(_POLL_S)


async def _follow(client: JobSubmissionClient, job_id: str) -> int:
    """Copy the job's log to ours until it ends. Unbounded by design: a run may take weeks, and Ctrl-C leaves it be."""
    async for text in client.tail_job_logs(job_id):
        for line in text.rstrip("\n").splitlines():
            logger.info("%s", line)
    while not (status := client.get_job_status(job_id)).is_terminal():
        await asyncio.sleep(_POLL_S)
    info = client.get_job_info(job_id)
    if status is not JobStatus.SUCCEEDED:
        logger.error("job %s %s: %s", job_id, status.value.lower(), _first_line(info.message or "no reason given"))
    return info.driver_exit_code if info.driver_exit_code is not None else _FINISHED_EXIT[status]


def _connect(address: str | None) -> JobSubmissionClient:
    ray_process_env(token_path=None)
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ClusterError(
            f"{_where(address)} refused this process ({_first_line(error)}); set RAY_AUTH_MODE=token and put the "
            "cluster's token in RAY_AUTH_TOKEN, or the path of its file in RAY_AUTH_TOKEN_PATH"
        ) from error
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ClusterError(
            f"{_where(address)} does not answer ({_first_line(error)}); start a cluster with `ray start --head` and "
            "name its job server, http://<head>:8265"
        ) from error


def _where(address: str | None) -> str:
    return f"the job server {address}" if address else "the job server of RAY_API_SERVER_ADDRESS or of this machine"


def _excluded(name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in EXCLUDES)


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0]
