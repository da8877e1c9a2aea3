"""The machines of a running cluster, read in a child process: `ray.init` waits for ever on a dead address."""

from __future__ import annotations

import json
import re
import socket
import subprocess
import sys
from dataclasses import asdict

from raylign.cluster.placement import NodeSupply
from raylign.conf.errors import ClusterError

_DEADLINE_S = 60.0  # importing and starting Ray's client takes some 3 s, on a busy machine many more
_CONNECT_S = 10.0
_START_ONE = "start one with `ray start --head`, or set cluster.address=local"


def cluster_supply(address: str) -> list[NodeSupply]:
    """The live nodes of the cluster at `address`. Raises ClusterError, naming it, when none answers within 60 s."""
    _refuse_closed_port(address)
    try:
        result = subprocess.run(
            [sys.executable, "-m", "raylign.cluster.probe", address],
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            f"cluster.address={address}: no Ray cluster answered within {_DEADLINE_S:g} s; {_START_ONE}"
        ) from error
    if result.returncode != 0:
        last = result.stderr.strip().rpartition("\n")[2]
        raise ClusterError(last or f"cluster.address={address}: the cluster did not answer; {_START_ONE}")
    return [NodeSupply(**node) for node in json.loads(result.stdout.splitlines()[-1])]


def _refuse_closed_port(address: str) -> None:
    """A quick answer where nothing listens; other forms than host:port are left to Ray."""
    parts = re.fullmatch(r"(?P<host>[^/:\[\]]+):(?P<port>\d{1,5})", address)
    if parts is None:
        return
    try:
        socket.create_connection((parts["host"], int(parts["port"])), timeout=_CONNECT_S).close()
    except (OSError, OverflowError) as error:
        raise ClusterError(f"cluster.address={address}: nothing listens there ({error}); {_START_ONE}") from error


def _ask(address: str) -> int:
    import ray
    from raylign.cluster.session import connect

    try:
        nodes = [asdict(node) for node in connect(address, {}).nodes()]
    except ClusterError as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return error.exit_code
    finally:
        ray.shutdown()
    sys.stdout.write(json.dumps(nodes) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_ask(sys.argv[1]))
