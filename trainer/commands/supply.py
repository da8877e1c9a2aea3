"""The machines of a running cluster, asked for in a child process: Ray can hang on a dead address."""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import asdict

from cluster.placement import NodeSupply
from conf.errors import ClusterError
from conf.schema import ClusterConfig

_DEADLINE_S = 30.0


def cluster_supply(address: str) -> list[NodeSupply]:
    """The live nodes of the cluster at `address`. Raises ClusterError when none answers within 30 s."""
    try:
        asked = subprocess.run(
            [sys.executable, "-m", "trainer.commands.supply", address],
            capture_output=True,
            text=True,
            timeout=_DEADLINE_S,
            check=False,
        )
    except subprocess.TimeoutExpired as error:
        raise ClusterError(
            f"cluster.address={address}: no Ray cluster answered within {_DEADLINE_S:g} s; start one with "
            "`ray start --head`, or set cluster.address=local."
        ) from error
    if asked.returncode != 0:
        raise ClusterError(
            asked.stderr.strip().splitlines()[-1] if asked.stderr.strip() else "the cluster did not answer."
        )
    return [NodeSupply(**node) for node in json.loads(asked.stdout.splitlines()[-1])]


def _ask(address: str) -> int:
    from cluster.session import session

    try:
        with session(ClusterConfig(address=address), num_cpus=0) as joined:
            nodes = [asdict(node) for node in joined.nodes()]
    except ClusterError as error:
        sys.stderr.write(" ".join(str(error).split()) + "\n")
        return error.exit_code
    sys.stdout.write(json.dumps(nodes) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(_ask(sys.argv[1]))
