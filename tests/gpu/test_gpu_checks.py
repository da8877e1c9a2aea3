"""The checks of `raylign doctor --gpu` as tests, on a machine with a card. None has run on one yet."""

from __future__ import annotations

import importlib

import pytest
import torch
from raylign.app.gpu_check.harness import FAIL, NOT_RUN, Check, run_checks
from raylign.app.gpu_check.run import STAGES

pytestmark = [pytest.mark.gpu, pytest.mark.timeout(600)]
CHECKS = [
    pytest.param(stage, check, id=f"{stage}-{check.name}")
    for stage, (module, _) in STAGES.items()
    for check in importlib.import_module(f"raylign.app.gpu_check.{module}").checks()
]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize(("stage", "check"), CHECKS)
def test_check(stage: str, check: Check) -> None:
    (outcome,) = run_checks(stage, [check], torch.device("cuda"))
    if outcome.outcome == NOT_RUN:
        pytest.skip(outcome.why)
    assert outcome.outcome != FAIL, outcome.line()
