"""Fork servers of a cluster that is about to start here: their imports run beside what its driver does until then.

A role that finds the server of its environment is a fork of it (cluster/fork_client.py); one that does not starts a
server itself, so a guess that is wrong costs time alone.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import ray
from raylign.cluster.fork_client import PRELOAD, listening_at, server_command, socket_path
from raylign.cluster.fork_server import RAYLET

_SCRIPT = Path(ray.__file__).parent / "_private" / "workers" / "default_worker.py"
_FIRST_JOB = ray.JobID.from_int(1).hex()
"""Ray reads a worker's job when it is imported. A role of another job would not find the server."""

KILLED_S = 30.0
"""For the kernel to end a killed server."""

_ROOM = "-" * 1024
"""On a server's command line, for the names that Ray gives its forks there."""


@contextmanager
def preloading(folder: Path, roles: Sequence[Mapping[str, str]]) -> Iterator[None]:
    """One server for each environment among `roles`, the variables of each; all are ended with the context.

    `folder`: the cluster's private one, whose token is in this process's environment already.
    """
    servers: list[subprocess.Popen[bytes]] = []
    try:
        for variables in roles:
            environment = {**os.environ, **variables, "RAY_JOB_ID": _FIRST_JOB}
            if PRELOAD in variables and not (path := socket_path(folder, environment, os.getcwd())).exists():
                servers.append(_start(path, environment))
        yield
    finally:
        for server in servers:
            server.kill()
        for server in servers:
            server.wait(KILLED_S)


def _start(path: Path, environment: Mapping[str, str]) -> subprocess.Popen[bytes]:
    with listening_at(path) as listening:
        return subprocess.Popen(
            server_command(listening, [str(_SCRIPT), _ROOM]),
            env={**environment, RAYLET: str(os.getpid())},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=[listening.fileno()],
            start_new_session=True,
        )
