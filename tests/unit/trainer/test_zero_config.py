"""DeepSpeed's settings by device: nothing waits for the network on a GPU, nothing competes for the cores on a CPU."""

from __future__ import annotations

import pytest
from raylign.cluster.runtime_env import RoleEnv
from raylign.conf.schema import Device, LearnerConfig
from raylign.trainer.engine.zero_config import deepspeed_config


@pytest.mark.parametrize("stage", [1, 2, 3])
def test_communication_overlaps_on_a_gpu_only(stage: int) -> None:
    config = LearnerConfig(zero_stage=stage)
    cpu = deepspeed_config(config)["zero_optimization"]
    gpu = deepspeed_config(config, Device.cuda)["zero_optimization"]
    assert (cpu["overlap_comm"], gpu["overlap_comm"]) == (False, True)
    assert gpu["reduce_bucket_size"] > cpu["reduce_bucket_size"]
    assert ("stage3_prefetch_bucket_size" in gpu) == (stage == 3)
    assert "stage3_prefetch_bucket_size" not in cpu


def test_learners_grow_their_segments_and_engines_do_not() -> None:
    variable = "PYTORCH_CUDA_ALLOC_CONF"
    assert RoleEnv(Device.cuda, 1, grows=True).variables()[variable] == "expandable_segments:True"
    assert variable not in RoleEnv(Device.cuda, 1).variables()
    assert variable not in RoleEnv(Device.cpu, 1, grows=True).variables()
