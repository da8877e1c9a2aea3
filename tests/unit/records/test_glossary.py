"""The glossary covers every contracted name, answers precisely, and its page is up to date."""

from __future__ import annotations

from pathlib import Path

import pytest
from raylign.records.glossary import ENTRIES, describe, groups, is_healthy, markdown, title

CONTRACT = [
    *(f"train/{n}" for n in ("loss", "entropy", "mean_token_accuracy", "grad_norm", "learning_rate", "num_tokens")),
    *(f"train/rewards/{n}" for n in ("chosen", "rejected", "margins", "accuracies")),
    *(f"train/logps/{n}" for n in ("chosen", "rejected")),
    *("train/accuracy", "train/margin", "reward/mean", "reward/std", "reward/brevity", "reward/failed"),
    *(f"policy/{n}" for n in ("loss", "kl", "approx_kl", "entropy", "clip_fraction", "grad_norm", "lr", "kl_coef")),
    *(f"critic/{n}" for n in ("loss", "explained_variance", "clip_fraction", "grad_norm")),
    *(f"rollout/{n}" for n in ("response_length", "truncated_ratio", "logprob_gap", "tokens_per_s", "staleness_max")),
    *("rollout/workers", "sync/seconds", "sync/bytes", "sync/verified", "sync/canary_gap", "time/generation"),
    *("perf/tokens_per_s", "perf/mfu", "eval/held_out/fluency", "eval/math/accuracy", "ledger/trained"),
]


@pytest.mark.parametrize("name", CONTRACT)
def test_every_contracted_name_is_explained(name: str) -> None:
    entry = describe(name)
    assert entry is not None and entry.title and entry.meaning


def test_exact_names_beat_patterns_and_unknown_names_are_unknown() -> None:
    exact, pattern = describe("reward/mean"), describe("reward/brevity")
    assert exact is not None and exact.pattern == "reward/mean"
    assert pattern is not None and pattern.pattern == "reward/<component>"
    fluency = describe("eval/held_out/fluency")
    assert fluency is not None and fluency.pattern == "eval/<set>/fluency"
    assert describe("policy/los") is None and describe("reward/a/b") is None and describe("xreward/mean") is None


def test_titles_carry_the_variable_part() -> None:
    assert title("reward/mean") == "Reward"
    assert title("time/policy_update") == "Time: policy update"
    assert title("nowhere/else") == "nowhere/else"


def test_table_is_consistent() -> None:
    patterns = [entry.pattern for entry in ENTRIES]
    assert len(set(patterns)) == len(patterns)
    for entry in ENTRIES:
        assert "|" not in entry.meaning + entry.action + entry.unit, f"{entry.pattern}: breaks the markdown table"
        if entry.low is not None and entry.high is not None:
            assert entry.low < entry.high
        if entry.low is not None or entry.high is not None:
            outside = entry.high + 1 if entry.high is not None else (entry.low or 0) - 1
            assert not is_healthy(entry, outside)
    assert groups()[0] == "reward" and "time" in groups()


def test_page_is_up_to_date() -> None:
    page = Path(__file__).parents[3] / "docs" / "metrics.md"
    assert page.read_text(encoding="utf-8") == markdown(), "run: python -m raylign.records.glossary docs/metrics.md"
