"""What cannot end an answer, of `rollout.stop` and `rollout.stop_token_ids`. Pure."""

from __future__ import annotations

from collections.abc import Iterator

from raylign.conf.problems import Problem
from raylign.conf.schema import RolloutConfig


def check_stops(rollout: RolloutConfig) -> Iterator[Problem]:
    """Texts and token ids that end an answer."""
    if any(not text for text in rollout.stop):
        yield Problem(("rollout.stop",), f"rollout.stop={rollout.stop}: an empty text would end every answer at once.")
    if any("\\n" in text for text in rollout.stop):
        yield Problem(
            ("rollout.stop",),
            f"rollout.stop={rollout.stop}: holds a backslash and an n, not a new line; write it in a yaml file, or as "
            "$'rollout.stop=[\"\\n\"]' in the shell.",
        )
    if any(token < 0 for token in rollout.stop_token_ids):
        yield Problem(
            ("rollout.stop_token_ids",), f"rollout.stop_token_ids={rollout.stop_token_ids}: ids are 0 or more."
        )
