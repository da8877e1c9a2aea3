"""What a report holds the first step to: rounding passes, a leak and other weights do not."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from raylign.conf.schema import GuardAction, GuardConfig
from raylign.records.alerts import DEFAULTS, Alert, AlertKind
from raylign.records.metrics_log import MetricsLog, read_history
from raylign.records.report.evidence import checks, guard_checks
from raylign.records.report.tone import Tone

KL, GAP = "KL before the first update", "Engine against trainer, largest"


def tone(folder: Path, check: str, *rows: dict[str, float]) -> Tone:
    path = folder / "metrics.jsonl"
    log = MetricsLog(path, keep_to_step=-1)
    for step, row in enumerate(rows, 1):
        log.append(step, {"reward/mean": 1.0, "ledger/trained": 256.0, "rollout/response_length": 400.0, **row})
    log.close()
    [found] = [found.tone for found in checks(read_history(path)) if found.name == check]
    return found


@pytest.mark.parametrize(
    ("noise", "bias", "expected"),
    [
        (0.0, 0.0, Tone.GOOD),
        (0.03, 0.0, Tone.GOOD),  # what bfloat16 rounds
        (0.2, 0.0, Tone.WARNING),  # a leak between sequences
        (0.03, 0.01, Tone.WARNING),  # other weights: every token a little less likely
    ],
)
def test_kl_before_the_first_update_may_be_rounding_and_nothing_else(
    tmp_path: Path, noise: float, bias: float, expected: Tone
) -> None:
    kl = (bias + noise * np.random.default_rng(3).standard_normal((256, 400))).sum(1)
    row = {"policy/kl": float(kl.mean()), "policy/kl_square": float((kl**2).mean())}
    assert noise == 0 or abs(row["policy/kl"]) > 1e-3, "nothing is tried"
    assert tone(tmp_path, KL, row) is expected


@pytest.mark.parametrize(
    ("first", "later", "expected"),
    [
        ((0.03, 2.0), (0.03, 5.0), Tone.GOOD),
        ((0.03, 2.0), (0.2, 7.0), Tone.WARNING),
        ((1e-5, 1e-4), (1e-5, 0.4), Tone.GOOD),  # within the usual range
        ((3.0, 9.0), (3.0, 9.0), Tone.WARNING),  # not the same model from the start
    ],
)
def test_the_gap_is_held_to_what_the_first_step_measured(
    tmp_path: Path, first: tuple[float, float], later: tuple[float, float], expected: Tone
) -> None:
    rows = [dict(zip(("rollout/logprob_gap", "rollout/logprob_gap_max"), gaps, strict=True)) for gaps in (first, later)]
    assert tone(tmp_path, GAP, *rows) is expected


@pytest.mark.parametrize(
    ("guard", "steps", "seen", "told", "expected"),
    [
        (GuardConfig(kl_limit=8.0), 8, (), ("none of 1 seen", "KL runs away (above 8 nats a sequence)."), Tone.GOOD),
        (DEFAULTS, 8, (), ("none of 1 seen", "KL runs away."), Tone.GOOD),
        (DEFAULTS, 7, (), ("none of 0 seen", "The run had too few steps for any."), Tone.PLAIN),
        (GuardConfig(kl=GuardAction.off), 30, (), ("none of 4 seen", "the reward collapses."), Tone.GOOD),
        (DEFAULTS, 30, (AlertKind.ENTROPY, AlertKind.DISK), ("1 of 5 seen", "KL runs away, the entropy"), Tone.PLAIN),
    ],
)
def test_only_signs_that_could_have_been_seen_are_said_to_be_watched(
    tmp_path: Path, guard: GuardConfig, steps: int, seen: tuple[AlertKind, ...], told: tuple[str, str], expected: Tone
) -> None:
    path = tmp_path / "metrics.jsonl"
    log = MetricsLog(path, keep_to_step=-1)
    for step in range(steps + 1):
        log.append(step, {"reward/mean": 1.0})
    log.close()
    alerts = [Alert(kind, 1, "") for kind in seen]

    [found] = guard_checks(read_history(path), guard, alerts)

    assert (found.result, found.tone) == (told[0], expected) and told[1] in found.meaning
