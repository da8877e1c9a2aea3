"""What `raylign plan` says of rewards of one's own."""

from __future__ import annotations

import socket
from pathlib import Path

from raylign.app.commands.plan_rewards import reward_model_lines, reward_tables
from raylign.conf.schema import (
    JudgeRewardConfig,
    LearnerConfig,
    RemoteRewardConfig,
    RewardConfig,
    RewardFunctionConfig,
    RunConfig,
)
from raylign.trainer.algorithms.grpo import GRPOConfig


def test_every_part_is_told_with_its_signature_and_whether_somebody_is_there(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def good(queries, prompts, labels): ...\n")
    with socket.create_server(("127.0.0.1", 0)) as there, socket.socket() as silent:
        silent.bind(("127.0.0.1", 0))  # and does not listen
        up, down = (f"http://127.0.0.1:{s.getsockname()[1]}/x" for s in (there, silent))
        config = RewardConfig(
            functions=[RewardFunctionConfig(path=f"{tmp_path}/mine.py:good", weight=0.5)],
            remote=[RemoteRewardConfig(url=up), RemoteRewardConfig(url=down, name="other")],
            judges=[JudgeRewardConfig(url=down, model="wise", rubric="r.md", low=1, high=5)],
        )
        functions, servers, judges = reward_tables(config)
    assert functions[2] == [("good", f"{tmp_path}/mine.py:good", "openrlhf", "0.5")]
    assert servers[2] == [
        ("remote", up, "openrlhf", "1", "yes"), ("other", down, "openrlhf", "1", "no: Connection refused")
    ]  # fmt: skip
    assert judges[2] == [("judge", "wise", down, "r.md", "1 to 5", "1", "no: Connection refused")]


def test_what_a_reward_model_reads_is_shown_when_it_is_asked_in_text(tiny_model_dir: Path) -> None:
    config = RunConfig(
        algorithm=GRPOConfig(name="grpo"),
        policy=LearnerConfig(model=str(tiny_model_dir)),
        reward=RewardConfig(model=str(tiny_model_dir), retokenize=True),
    )
    [told] = reward_model_lines(config)
    assert "reads the same tokens as the policy writes" in told and "ANSWER<|im_end|>'" in told
    config.reward.retokenize = False
    assert list(reward_model_lines(config)) == []
