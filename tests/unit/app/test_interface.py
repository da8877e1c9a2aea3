"""`import raylign`: a few names, nothing heavy until they are used, and readers that say what is missing."""

from __future__ import annotations

import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path

import pytest
from raylign.data.types import (
    Completion,
    FinishReason,
    Prompt,
    Reward,
    RolloutGroup,
    SampleKey,
    SamplingParams,
    VersionSpan,
)
from raylign.records.samples import sample_rows, write_samples
from raylign.records.summary import RunSummary, write_summary

import raylign

PAGE = Path(__file__).parents[3] / "docs" / "python-api.md"


def test_the_import_loads_nothing_heavy() -> None:
    heavy = "torch, ray, vllm, deepspeed, transformers, hydra, omegaconf, numpy, pyarrow, typer, rich"
    code = f"import sys, raylign; dir(raylign); print([n for n in {heavy.split(', ')} if n in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_the_version_is_that_of_the_distribution() -> None:
    assert raylign.__version__ == version("raylign") and "__version__" in dir(raylign)
    with pytest.raises(AttributeError, match="has no attribute 'versoin'"):
        raylign.versoin  # noqa: B018


def test_every_name_exists_is_documented_and_says_what_it_does() -> None:
    documented = set(re.findall(r"`raylign\.(\w+)", PAGE.read_text()))
    assert documented == set(raylign.__all__)
    for name in raylign.__all__:
        assert getattr(raylign, name).__doc__, name
    with pytest.raises(AttributeError, match=r"has no attribute 'trian'; it has .*train"):
        raylign.trian  # noqa: B018


def test_settings_are_composed_and_mistakes_raised() -> None:
    with pytest.raises(raylign.RaylignError) as told:
        raylign.compose(["algorithm=grpo", "nonsense=1"])
    assert any("nonsense is not a setting" in problem for problem in told.value.problems)


def test_samples_metrics_and_summary_of_a_run_folder(tmp_path: Path) -> None:
    for missing in (lambda: raylign.load_metrics(tmp_path / "gone"), lambda: raylign.load_summary(tmp_path)):
        with pytest.raises(raylign.RaylignError, match="there is no"):
            missing()
    assert raylign.load_metrics(tmp_path).rows == ()
    with pytest.raises(raylign.RaylignError, match="no samples in"):
        raylign.load_samples(tmp_path)
    (tmp_path / "samples").mkdir()
    for step in (2, 10):
        key = SampleKey(0, f"p{step}", 0)
        answer = Completion(key, (5, 6), (-1.0, -2.0), FinishReason.STOP, (VersionSpan(step, 0, 2),), f"a{step}")
        group = RolloutGroup(Prompt(f"p{step}", (), (1,)), SamplingParams(1.0, 8), (answer,))
        rows = sample_rows([group], [Reward(key, 0.5, {})], {key: 0.0})
        write_samples(tmp_path / "samples" / f"step-{step:06d}.parquet", rows)
    assert [row.response for row in raylign.load_samples(tmp_path)] == ["a10"]
    assert [row.response for row in raylign.load_samples(str(tmp_path), step=2)] == ["a2"]
    with pytest.raises(raylign.RaylignError, match="no samples of step 3"):
        raylign.load_samples(tmp_path, 3)
    (tmp_path / "metrics.jsonl").write_text('{"step": 1, "reward/mean": 0.25}\n')
    assert raylign.load_metrics(tmp_path).series("reward/mean") == ((1, 0.25),)
    write_summary(tmp_path / "summary.json", RunSummary(algorithm="grpo", policy_start="m", steps=1, seconds_total=2.0))
    assert raylign.load_summary(tmp_path).steps == 1
