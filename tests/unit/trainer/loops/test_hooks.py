"""A step's own figures, and the totals over a run."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from raylign.conf.schema import KLController
from raylign.data.types import FinishReason, Reward, RewardFailure, RolloutMeta, SampleKey
from raylign.records.glossary import describe
from raylign.records.ledger import Ledger
from raylign.rollout.interfaces import EngineUse, GroupHandle, Ref
from raylign.trainer.functional.kl import KLState
from raylign.trainer.loops.hooks import OnlineProgress, StepReport
from raylign.trainer.loops.interfaces import ExperienceHandles, PublishResult, UpdateResult
from raylign.trainer.loops.ledger import LedgerHook


def report(step: int, versions: tuple[int, ...]) -> StepReport:
    """One sample a version, of 10 tokens each; the first one's reward failed."""
    keys = [SampleKey(0, f"p{i}", 0) for i in range(len(versions))]
    metas = [RolloutMeta(k, 4, 10, FinishReason.STOP, v, v, v) for k, v in zip(keys, versions, strict=True)]
    return StepReport(
        OnlineProgress(step, KLState(KLController.fixed, 0.1), {}),
        [GroupHandle(Ref(None), (meta,)) for meta in metas],
        [RewardFailure(keys[0], "late"), *(Reward(k, 1.0, {}) for k in keys[1:])],
        ExperienceHandles((), (), Ref(None), {}, 0.0, len(keys) - 1),
        UpdateResult({}, 1, 0),
        None,
        PublishResult(step, 0.1, 10, 2, 0.0, 0.02),
        {"time/generation": 2.0, "time/step": 5.0},
    )


NONE = {"ledger/filtered": 0.0, "ledger/masked": 0.0}


def test_age_and_speed_of_a_step():
    figures = report(7, versions=(6, 6, 4, 6)).metrics()
    assert figures["rollout/staleness_max"] == 2.0
    assert figures["rollout/tokens_per_s"] == 40 / 2.0
    assert figures["perf/tokens_per_s"] == 30 / 5.0, "the failed sample was not trained on"
    assert report(7, versions=(6, 6)).metrics()["rollout/staleness_max"] == 0.0


def test_engines_say_how_full_they_were_and_a_silent_one_says_nothing():
    assert not any(name.startswith("engine/") for name in report(1, versions=(0,)).metrics())
    step = report(1, versions=(0,))
    use = {"rollout/0": EngineUse(0.25, 0), "rollout/12": EngineUse(0.75, 3)}
    figures = replace(step, published=replace(step.published, use=use)).metrics()
    assert {name: value for name, value in figures.items() if name.startswith("engine/")} == {
        "engine/kv_cache_peak": 0.75,
        "engine/preemptions": 3.0,
        "engine/0/kv_cache_peak": 0.25,
        "engine/0/preemptions": 0.0,
        "engine/12/kv_cache_peak": 0.75,
        "engine/12/preemptions": 3.0,
    }
    acted = {"rollout/0": EngineUse(0.1, 0, 2), "rollout/1": EngineUse(0.1, 0, 1)}
    figures |= replace(step, published=replace(step.published, use=acted)).metrics()
    assert figures["rollout/environment_restarts"] == 3.0
    assert all(describe(name) for name in figures), "names that docs/metrics.md does not explain"


async def test_totals_go_on_after_a_resume(tmp_path: Path):
    book = Ledger(tmp_path / "ledger.jsonl")
    hook = LedgerHook(book, lambda: 2, {})
    await hook.after_step(report(1, (0, 0, 0)), last=False)
    before = await hook.after_step(report(2, (1, 1, 1)), last=False)
    assert before == {
        "ledger/trained": 4.0,
        "ledger/failed": 2.0,
        **NONE,
        "data/masks_checked": 4.0,
        "rollout/workers": 2.0,
    }
    resumed = LedgerHook(book, lambda: 1, before)
    after = await resumed.after_step(report(3, (2, 2)), last=True)
    assert after == {
        "ledger/trained": 5.0,
        "ledger/failed": 3.0,
        **NONE,
        "data/masks_checked": 5.0,
        "rollout/workers": 1.0,
    }
