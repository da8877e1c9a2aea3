"""The cases of fake_gpu_cases.py, in a process of their own: a process fixes its devices at its first backward pass."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_every_loss_and_role_on_a_pretended_gpu():
    cases = Path(__file__).with_name("fake_gpu_cases.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(cases)]

    done = subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)

    assert done.returncode == 0, done.stdout[-4000:]
    assert " passed" in done.stdout.splitlines()[-1]
