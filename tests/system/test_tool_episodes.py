"""Episodes of a real engine: the model calls a tool, the tool is run, and its answer is in the stream."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path

import pytest
from raylign.data.tokenize import load_tokenizer
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths
from raylign.records.samples import SampleRow, read_samples
from raylign.rollout.environments.shipped.calculator import Calculator
from raylign.rollout.tool_calls import Malformed, TaggedCalls
from transformers import PreTrainedTokenizerBase

from benchmarks.online_curves import write
from benchmarks.tool_tasks import prompts
from tests.system.calling_model import calling_model, calling_task
from tests.system.test_bit_equal import numbers, play_through_kills, saved_bytes
from tests.system.tiny_runs import play, run_settings

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(1800)]

STEPS = 6


@pytest.fixture(scope="module")
def settings(tiny_model_dir: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """GRPO with the shipped calculator, without a name."""
    root, task = tmp_path_factory.mktemp("calling"), calling_task(4)
    model = calling_model(tiny_model_dir, task, root / "model")
    rows = write(prompts(task.shown), root / "rows.jsonl")
    given = [
        s for s in run_settings("grpo", model, rows, root) if not s.startswith(("reward.rules", "rollout.max_new"))
    ]
    return [
        *given, "environment=calculator", "environment.max_turns=3", "rollout.max_new_tokens=200",
        "rollout.max_model_len=768", "data.max_prompt_tokens=512", "rollout.prompts_per_step=4", "policy.optim.lr=1e-4",
        f"num_steps={STEPS}", "checkpoint.every=1",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def whole(settings: list[str]) -> RunPaths:
    """Never killed."""
    return play([*settings, "name=whole"])


def test_the_tool_is_run_and_its_answer_is_in_the_stream(whole: RunPaths, settings: list[str]) -> None:
    model = next(s for s in settings if s.startswith("policy.model=")).partition("=")[2]
    tokenizer = load_tokenizer(model)
    steps = [read_samples(whole.samples_file(step)) for step in range(1, STEPS + 1)]
    called = [sum(check_stream(row, tokenizer) for row in rows) for rows in steps]
    assert called[0] > len(steps[0]) / 2, "the model calls too little for the test to show anything"
    assert {row.reward_components["environment"] for rows in steps for row in rows} == {0.0, 1.0}
    history = read_history(whole.metrics)
    for step, gap in history.series("rollout/logprob_gap_max"):
        assert gap is not None and gap < 1e-3, f"engine and trainer read another stream in step {step}"


def check_stream(row: SampleRow, tokenizer: PreTrainedTokenizerBase) -> int:
    """Every answer of the tool is what it gives for the call before it, in the ids that the environment wrote. How many
    calls could be run."""
    pairs = [(a, b) for a, b in pairwise(row.turns) if (a.role, b.role) == ("assistant", "tool")]
    written = [tokenizer.decode(list(row.response_ids[a:b])) for a, b in row.holes]
    run = 0
    for text, (said, answer) in zip(written, pairs, strict=False):  # the last answer has no ids where nobody read it
        call = TaggedCalls().read(said.content).calls[0]
        if isinstance(call, Malformed) or set(call.arguments) != {"expression"}:
            assert "error" in answer.content
            continue
        try:
            value = Calculator().calculate(**call.arguments)
        except Exception:  # whatever it is, the model was told
            assert "error" in answer.content
            continue
        assert answer.content == value
        assert f"<tool_response>\n{value}\n</tool_response>" in text and text.endswith("assistant\n")
        run += 1
    assert all(row.rollout_logprobs[t] == 0.0 for a, b in row.holes for t in range(a, b))
    return run


def test_killed_and_resumed_is_the_run_that_was_never_killed(
    whole: RunPaths, settings: list[str], tmp_path: Path
) -> None:
    killed = RunPaths(whole.path.parent / "killed")
    play_through_kills([*settings, "name=killed"], killed, tmp_path / "log", seed=17)
    assert numbers(killed) == numbers(whole)
    assert saved_bytes(killed) == saved_bytes(whole)
    first, last = (numbers(whole)[step]["rollout/environment_tokens"] for step in (1, STEPS))
    assert first and last, "no tool has answered"
