"""What cannot work of the order in which an online run draws its prompts. Pure functions over the configuration."""

from __future__ import annotations

import math
from collections.abc import Iterator

from raylign.conf.problems import Problem
from raylign.conf.ranges import leaves
from raylign.conf.schema import CurriculumConfig, RunConfig


def check_data_order(config: RunConfig, *, rollout: bool) -> Iterator[Problem]:
    """`rollout`: whether the run draws prompts at all."""
    data, curriculum = config.data, config.data.curriculum
    if not rollout:
        changed = [name for name, default in leaves(CurriculumConfig()) if getattr(curriculum, name) != default]
        for key in [*(f"data.curriculum.{name}" for name in changed), *(["data.mix"] if data.mix else [])]:
            yield Problem((key,), f"{key} is set: only online runs draw prompts by weight; leave it out.")
        return
    if any(not math.isfinite(share) or share < 0 for share in data.mix.values()) or (
        data.mix and not any(data.mix.values())
    ):
        yield Problem(
            ("data.mix",), f"data.mix={dict(data.mix)}: shares are numbers of 0 or more, and at least one is above 0."
        )
    if curriculum.min_weight < 1 and config.rollout.samples_per_prompt < 2:
        yield Problem(
            ("data.curriculum.min_weight", "rollout.samples_per_prompt"),
            f"data.curriculum.min_weight={curriculum.min_weight:g}: one answer a prompt is always solved or never, so "
            "every prompt would have that weight; set rollout.samples_per_prompt=2 or more, or min_weight=1.",
        )
