"""What a learner's start must not bring along."""

from __future__ import annotations

import subprocess
import sys

import pytest

ASKED = """
import sys
from deepspeed.runtime import compiler
before = compiler.compile
from raylign.trainer.engine.deepspeed_start import _import_muon_uncompiled
_import_muon_uncompiled()
from deepspeed.runtime.zero.muon.muon_optimizer import MuonWithAuxAdam
assert compiler.compile is before
sys.exit("torch._inductor.lowering" in sys.modules)
"""


@pytest.mark.slow
def test_deepspeeds_other_optimizer_does_not_bring_torchs_compiler():
    """It is asked for in `initialize`: compiled at import, it makes every learner's start more than a second longer."""
    done = subprocess.run([sys.executable, "-c", ASKED], capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
