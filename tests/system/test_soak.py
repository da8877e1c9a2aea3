"""Two minutes of the soak; `make soak` plays twenty."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.soak.faults import KINDS
from tests.soak.soak import Plan, Soak, check

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(1800)]


def test_every_kind_of_fault_once(tmp_path: Path) -> None:
    said: list[str] = []
    soak = Soak(Plan(tmp_path, seed=3, num_faults=len(KINDS), num_steps=3 * len(KINDS)), said.append)
    soak.play()
    assert len(soak.struck) == len(KINDS)
    problems = check(soak)
    assert not problems, "\n".join([*said, *problems])
