"""Where float32 has no fast way. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from raylign.conf.problems import Problem
from raylign.conf.schema import Device, Precision, RunConfig


def check_precision(config: RunConfig, *, critic: bool, reference: bool, reward: bool) -> Iterator[Problem]:
    """Roles that would attend in float32 on a GPU: no fused kernel does that over packed sequences, and the loop over
    tiles is a CPU's. Engines have vLLM's own kernels and may be in float32.
    """
    if config.cluster.device is not Device.cuda:
        return
    given = {"policy.precision": config.policy.precision}
    if critic:
        given["critic.precision"] = config.critic.precision
    if reference:
        given["reference.precision"] = config.reference.precision
    if reward and config.reward.model:
        given["reward.precision"] = config.reward.precision
    for key, precision in given.items():
        if precision is Precision.float32:
            yield Problem(
                (key, "cluster.device"),
                f"{key}=float32 with cluster.device=cuda: attention in float32 runs tile by tile there, many times "
                f"slower; set {key}=bfloat16 (the optimizer's copy is float32 all the same).",
            )
