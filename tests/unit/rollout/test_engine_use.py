"""What an engine's steps add up to between two versions."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
from raylign.rollout.engine_use import UseMeter
from raylign.rollout.interfaces import EngineUse


def test_the_peak_and_the_sum_since_the_last_question() -> None:
    meter = UseMeter()
    logger = meter.logger(object(), 0)
    for cache, preempted in ((0.2, 0), (0.7, 2), (0.4, 1)):
        stats, iteration = SimpleNamespace(kv_cache_usage=cache), SimpleNamespace(num_preempted_reqs=preempted)
        logger.record(stats, iteration, mm_cache_stats=None, engine_idx=0)
    logger.record(None, None, mm_cache_stats=None, engine_idx=0)  # a step without a request
    assert meter.taken() == EngineUse(0.7, 3)
    assert meter.taken() == EngineUse(0.0, 0)


def test_it_has_what_vllm_calls() -> None:
    """By vLLM's own adapter and figures, as installed."""
    loggers = pytest.importorskip("vllm.v1.metrics.loggers")
    from vllm.v1.metrics.stats import IterationStats, SchedulerStats

    adapter = loggers.PerEngineStatLoggerAdapter(None, [0], UseMeter().logger)
    iteration = IterationStats()
    iteration.num_preempted_reqs = 2
    adapter.record(SchedulerStats(kv_cache_usage=0.5), iteration)
    adapter.log()
    adapter.log_engine_initialized()
    assert adapter.per_engine_stat_loggers[0].taken() == EngineUse(0.5, 2)
