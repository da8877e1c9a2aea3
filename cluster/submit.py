"""A run as a Ray job: the folder goes along, the driver runs on the cluster, its log and exit code come back."""

from __future__ import annotations

import asyncio
import contextlib
import fnmatch
import logging
import os
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from ray._private.runtime_env.packaging import get_excludes_from_ignore_files
from ray.exceptions import AuthenticationError, RayError
from ray.job_submission import JobStatus, JobSubmissionClient
from raylign.cluster.job_log import JobLog
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

FORWARDED = ("WANDB_API_KEY", "WANDB_BASE_URL", "WANDB_MODE")
"""Environment variables that go along when they are set here; the values are never printed."""

STOP_GRACE_S = 600
"""Seconds between `ray job stop`'s SIGTERM and its SIGKILL. Ray's own 3 s are too short to finish a step and save;
a job that has ended is not waited for any longer."""

ACCEPT_TIMEOUT_S = 60.0
_STARTING = "No available agent"  # Ray's words for a node whose agent is not up yet

ADDRESS = "RAY_API_SERVER_ADDRESS"
_TALKATIVE = (
    "ray.dashboard.modules.dashboard_sdk",
    "ray.dashboard.modules.job.sdk",
    "ray._private.runtime_env.packaging",
    "ray._private.runtime_env.working_dir",
)
"""Ray's loggers of what is uploaded and left out, and of a socket that closes."""

INTERRUPTED = 130  # as shells have it: Ctrl-C

LOST_TIMEOUT_S = 300.0
"""How long a job server that no longer answers is asked again before the following ends."""

_FINISHED_EXIT = {JobStatus.SUCCEEDED: 0, JobStatus.STOPPED: 75, JobStatus.FAILED: 70}
_POLL_S = 1.0


def submit(
    overrides: Sequence[str],
    *,
    address: str | None,
    working_dir: Path,
    wait: bool,
    env_vars: Mapping[str, str] | None = None,
    tell: Callable[[str], object] = logger.info,
    entrypoint: Sequence[str] = ("python", "-m", "raylign", "train"),
    resumed_by: str = ", with the same name= and run_root=",
) -> int:
    """Send `working_dir` to the cluster at `address` and run `entrypoint` with `overrides` there.

    `address`: http://host:8265; None: RAY_API_SERVER_ADDRESS, else the cluster running here. `wait`: follow the log
    and return the run's own exit code; else return 0 as soon as the job is accepted. `env_vars`: environment of the
    job, as `forwarded` picks it. `tell` gets every line: the job's id as soon as it has one, then its log.
    `resumed_by`: what is said of the command that resumes the job, beside that it is the same.
    Raises UserError for a folder that should not be sent, ClusterError when no cluster takes the job.
    """
    check_working_dir(working_dir)
    elsewhere = f"{ADDRESS}={address} " if address and os.environ.get(ADDRESS, address) != address else ""
    client = _connect(address)
    command = shlex.join([*entrypoint, *overrides])
    sizes = [path.stat().st_size for path in shipped_files(working_dir)]
    tell(f"sending {working_dir.resolve()}: {len(sizes)} files, {sum(sizes) / (1 << 20):.1f} MiB")
    try:
        job_id = _send(client, command, working_dir, env_vars or {})
    except (RuntimeError, ConnectionError, RayError) as error:
        raise ClusterError(f"{_where(address)} did not take the job: {_first_line(error)}") from error
    where = f" --address {address}" if address else ""
    tell(f"job {job_id} is submitted")
    if env_vars:
        tell(f"environment sent along: {', '.join(sorted(env_vars))}")
    tell(f"follow it: {elsewhere}ray job logs{where} --follow {job_id}")
    stop = f"{elsewhere}ray job stop{where} {job_id}"
    tell(f"stop it: {stop}  (it finishes its step and saves; killed after {STOP_GRACE_S} s)")
    tell(f"resume it: the same `raylign submit` command again{resumed_by}")
    if not wait:
        return 0
    try:
        return asyncio.run(_follow(client, job_id, tell))
    except KeyboardInterrupt:
        tell(f"job {job_id} keeps running; only following its log has ended")
        return INTERRUPTED


def forwarded(names: Sequence[str], environ: Mapping[str, str]) -> dict[str, str]:
    """The variables of `environ` that go with a job: FORWARDED where they are set, and every one of `names`.

    Raises UserError for all of `names` that are not set, and for a name given with its value: a value on the command
    line is seen by everybody on the machine.
    """
    problems = [
        f"--env {name.partition('=')[0]}=...: name the variable only, as in --env {name.partition('=')[0]}; its value "
        "is taken from this process's environment, because a command line is visible to everybody on the machine"
        if "=" in name
        else f"--env {name}: the variable is not set here; export it first, or leave the option out"
        for name in names
        if "=" in name or name not in environ
    ]
    if problems:
        raise UserError(problems)
    return {name: environ[name] for name in (*FORWARDED, *names) if environ.get(name)}


def check_working_dir(folder: Path) -> None:
    """Raises UserError when `folder` is missing, or larger than a job's folder should be, saying what is large."""
    if not folder.is_dir():
        raise UserError(f"--working-dir {folder}: there is no such folder; name the one that holds the code")
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
        f"--working-dir {folder} is {_mib(total)} without {', '.join(EXCLUDES[:4])} and the like; at most "
        f"{_mib(MAX_WORKING_DIR_BYTES)} is sent with a job. Largest: "
        f"{', '.join(f'{name} {_mib(size)}' for name, size in named)}. Move models and data to a disk that the nodes "
        "share and name them by absolute path, or name what is not needed in .rayignore, as in a .gitignore"
    )


def shipped_files(folder: Path) -> Iterator[Path]:
    """The files of `folder` that no exclusion, and no line of its .gitignore or .rayignore, names: what Ray sends."""
    ignored = (
        get_excludes_from_ignore_files(folder, include_gitignore=True, logger=logger) if _has_ignore(folder) else ()
    )

    def left_behind(path: Path) -> bool:
        return _excluded(path.name) or any(ignores(path) for ignores in ignored)

    for root, folders, files in os.walk(folder):
        folders[:] = [name for name in folders if not left_behind(Path(root) / name)]
        paths = (Path(root) / name for name in files)
        yield from (path for path in paths if not left_behind(path) and path.is_file())


def _send(client: JobSubmissionClient, command: str, working_dir: Path, env_vars: Mapping[str, str]) -> str:
    """The accepted job's id. A cluster that is just starting has no agent for a while; that is waited for."""
    deadline = time.monotonic() + ACCEPT_TIMEOUT_S
    runtime_env = {
        "working_dir": str(working_dir),
        "py_modules": [str(package_folder())],  # this raylign, whatever the nodes have installed
        "excludes": [f"**/{name}" for name in EXCLUDES],
        "env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_GRACE_S), **env_vars},  # read by the job's supervisor
    }
    while True:
        try:
            return client.submit_job(entrypoint=command, runtime_env=dict(runtime_env))
        except RuntimeError as error:
            if _STARTING not in str(error) or time.monotonic() > deadline:
                raise
        time.sleep(_POLL_S)


async def _follow(client: JobSubmissionClient, job_id: str, tell: Callable[[str], object]) -> int:
    """Give `tell` the job's log until it ends. Unbounded by design: a run may take weeks; Ctrl-C leaves it running.

    A connection that breaks is made again, and the log goes on where it was. Raises ClusterError when the job server
    has not answered for LOST_TIMEOUT_S.
    """
    log, lost_at = JobLog(tell), None
    while True:
        try:
            log.begin()
            async for text in client.tail_job_logs(job_id):
                log.add(text)
            if (status := client.get_job_status(job_id)).is_terminal():
                break
            lost_at = None
        except (ConnectionError, RuntimeError, OSError) as error:
            lost_at = lost_at or time.monotonic()
            if time.monotonic() - lost_at > LOST_TIMEOUT_S:
                raise ClusterError(
                    f"job {job_id}: the job server has not answered for {LOST_TIMEOUT_S:g} s ({_first_line(error)}); "
                    "the job may still be running: see `raylign watch`"
                ) from error
        await asyncio.sleep(_POLL_S)
    with contextlib.suppress(ConnectionError, RuntimeError, OSError):
        log.begin()
        log.add(client.get_job_logs(job_id))  # the connection may have ended before the job's last lines
    log.end()
    info = client.get_job_info(job_id)
    if status is not JobStatus.SUCCEEDED:
        tell(f"job {job_id} {status.value.lower()}: {_reason(info.message)}")
    code = info.driver_exit_code if info.driver_exit_code is not None else _FINISHED_EXIT[status]
    tell(f"job {job_id} ended with exit code {code}")
    return code


def _refuse_other_address(given: str) -> None:
    """Raises UserError for what is not the address of a job server: Ray would take it for one of another port."""
    named = f"--address {given}" if given != os.environ.get(ADDRESS) else f"{ADDRESS}={given}"
    if not given.startswith(("http://", "https://")):
        host = given.rpartition("://")[2].partition(":")[0] or "HOST"
        raise UserError(f"{named}: a job server's address begins with http://; write it as http://{host}:8265")


def _connect(address: str | None) -> JobSubmissionClient:
    if given := address or os.environ.get(ADDRESS):
        _refuse_other_address(given)
    ray_process_env(token_path=None)
    for name in _TALKATIVE:
        logging.getLogger(name).setLevel(logging.ERROR)
    if address:
        os.environ[ADDRESS] = address  # Ray takes the variable before its argument
    try:
        return JobSubmissionClient(address)
    except AuthenticationError as error:
        raise ClusterError(
            f"{_where(address)} refused this process ({_first_line(error)}); set RAY_AUTH_MODE=token and put the "
            "cluster's token in RAY_AUTH_TOKEN, or the path of its file in RAY_AUTH_TOKEN_PATH"
        ) from error
    except (ConnectionError, RuntimeError, ValueError, RayError) as error:
        raise ClusterError(
            f"{_where(address)} does not answer ({_first_line(error).rstrip('.')}); start a cluster with "
            "`ray start --head`, and name its job server, http://HEAD:8265"
        ) from error


def _where(address: str | None) -> str:
    if address:
        return f"--address {address}: the job server"
    if given := os.environ.get(ADDRESS):
        return f"{ADDRESS}={given}: the job server"
    return f"the job server of this machine ({ADDRESS} is not set)"


def _excluded(name: str) -> bool:
    return any(fnmatch.fnmatch(name, pattern) for pattern in EXCLUDES)


def _has_ignore(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (".gitignore", ".rayignore"))


def _mib(size: int) -> str:
    return f"{size / (1 << 20):.0f} MiB"


def _reason(message: str | None) -> str:
    """Of a job that did not end well; its log has been printed."""
    return _first_line(message or "no reason given").partition(", last available logs")[0]


def _first_line(error: object) -> str:
    return str(error).strip().partition("\n")[0]
