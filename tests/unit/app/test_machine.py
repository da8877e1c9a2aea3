"""What a run asks of its machines: variables that reach every rank, and an object store that holds a publication."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from raylign.app.launch import machine
from raylign.app.launch.machine import env_problems, object_store_gb
from raylign.conf.errors import ClusterError
from raylign.conf.schema import ClusterConfig, LearnerConfig, Precision, RunConfig
from raylign.trainer.algorithms.base import Role
from raylign.trainer.algorithms.ppo import PPOConfig

from tests.unit.app.test_plan_memory import write_config

ROLES = (Role.POLICY, Role.ROLLOUT)


def test_variables_of_communication_pass_and_others_say_what_is_wrong() -> None:
    assert list(env_problems({"NCCL_SOCKET_IFNAME": "eth0", "NCCL_DEBUG": "INFO"})) == []
    wrong = ["MY_API_KEY", "CUDA_VISIBLE_DEVICES", "RAY_ADDRESS", "NOT-A-NAME"]
    problems = list(env_problems(dict.fromkeys(wrong, "value")))
    assert [problem.split(":")[0] for problem in problems] == [f"cluster.env.{name}" for name in wrong]
    assert not any("value" in problem.split(":")[0] for problem in problems)


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    policy = LearnerConfig(model=str(write_config(tmp_path / "7b", "7b")), precision=Precision.bfloat16)
    return RunConfig(algorithm=PPOConfig(), policy=policy)


def test_the_store_holds_a_published_model_and_is_not_put_on_disk(
    config: RunConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def free(gib: float) -> None:
        usage = type("Usage", (), {"free": gib * 2**30})()
        monkeypatch.setattr(machine.shutil, "disk_usage", lambda _: usage)

    free(64)
    assert object_store_gb(config, ROLES, tmp_path) == pytest.approx(1.2 * 16.06e9 / 2**30 + 1, rel=0.01)
    assert object_store_gb(config, (Role.POLICY,), tmp_path) == 2.0
    free(8)
    with pytest.raises(ClusterError, match=r"needs 18\.9 GiB .* has 8\.0 GiB free"):
        object_store_gb(config, ROLES, tmp_path)
    joined = replace(config, cluster=ClusterConfig(address="auto"))
    assert object_store_gb(joined, ROLES, tmp_path) == 2.0, "a cluster that is there has its store"
    given = replace(config, cluster=ClusterConfig(object_store_gb=5.0))
    assert object_store_gb(given, ROLES, tmp_path) == 5.0
