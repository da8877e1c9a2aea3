"""Kept memory is bounded, with the allocator that a role has and in a process of its own."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest
from raylign.cluster.runtime_env import RoleEnv
from raylign.conf.schema import Device

STEPS = """
import torch
from raylign.cluster.pages import KeptPages, give_back_unused, resident_bytes
pages, held, gave = KeptPages({growth}), [], 0
keep = [torch.ones(1 << 20)]
for step in range(30):  # every step needs one block, a little larger than all before it: none of those can serve it
    block = torch.ones((24 + step) << 18)
    keep.append(torch.ones(1 << 12))
    del block
    gave += pages.after_step()
    held.append(resident_bytes() >> 20)
print(max(held) - held[0], gave, give_back_unused())
"""


def _play(growth: float, env: dict[str, str]) -> tuple[int, int, bool]:
    """MB grown at the peak, how often pages went back, whether this allocator can."""
    done = subprocess.run(
        [sys.executable, "-c", STEPS.format(growth=growth)], env=os.environ | env, capture_output=True, text=True,
        check=True, timeout=60,
    )  # fmt: skip
    grown, gave, can = done.stdout.split()
    return int(grown), int(gave), can == "True"


@pytest.mark.slow
def test_what_is_kept_is_bounded() -> None:
    env = RoleEnv(Device.cpu, threads=1, keeps_pages=True).variables()
    unbounded, never, can = _play(1000.0, env)
    assert can and never == 0 and unbounded > 100, "sizes that grow leave blocks that nobody can use again"
    bounded, gave, _ = _play(1.1, env)
    assert gave > 0 and bounded < 0.5 * unbounded


@pytest.mark.slow
def test_another_allocator_is_left_alone() -> None:
    _, gave, can = _play(1.0, {"LD_PRELOAD": ""})
    assert gave == 0 and not can
