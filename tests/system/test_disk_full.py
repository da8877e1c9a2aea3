"""A disk of a few megabytes fills up under a run: at a save, and where its numbers are written."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from raylign.records.ledger_check import check_ledger
from raylign.records.run_folder import RunPaths

from tests.system.test_bit_equal import numbers, online, saved_bytes

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(1800)]

STEPS = 6


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A tmpfs of 64 MB. Needs the right to mount: skipped, aloud, where there is none."""
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64m", "tmpfs", str(place)], capture_output=True, timeout=30, check=False
    )
    if mounted.returncode:
        pytest.skip("this user may not mount a small disk")
    yield place
    subprocess.run(["umount", "-l", str(place)], timeout=30, check=False)


def train(settings: list[str], log: Path) -> int:
    program = Path(sys.executable).with_name("raylign")
    with log.open("ab") as file:
        ended = subprocess.run(
            [program, "train", *settings], stdout=file, stderr=file, timeout=600, check=False, env=dict(os.environ)
        )
    return ended.returncode


def test_full_at_saves_then_full_altogether_then_freed(
    tiny_model_dir: Path, questions: Path, tmp_path: Path, small_disk: Path
) -> None:
    given = online("grpo", tiny_model_dir, questions, tmp_path)
    settings = [s for s in given if not s.startswith("run_root=")]
    log, full = tmp_path / "log", small_disk / "full"
    assert train([*settings, f"run_root={tmp_path}", "name=whole"], log) == 0, log.read_text()[-3000:]
    whole = RunPaths(tmp_path / "whole")

    def filled(left: int) -> None:
        full.unlink(missing_ok=True)
        full.write_bytes(b"0" * (shutil.disk_usage(small_disk).free - left))

    mine = [*settings, f"run_root={small_disk}", "name=tight", "checkpoint.max_failed_saves=1"]
    filled(300_000)  # enough for numbers and batches, not for a checkpoint
    assert train(mine, log) == 75, log.read_text()[-3000:]
    told = log.read_text()
    assert "warning: step 1 could not be saved" in told and "step 2 could not be saved, 2 times in a row" in told
    run = RunPaths(small_disk / "tight")
    assert sorted(numbers(run)) in ([1, 2], [1, 2, 3]), "a save is written beside one more step at most"
    assert not list(run.checkpoints.glob("*tmp*"))

    filled(0)
    assert train(mine, log) == 75, log.read_text()[-3000:]
    assert "No space left on device" in log.read_text().splitlines()[-1]
    assert "Traceback" not in log.read_text()

    full.unlink()
    assert train(mine, log) == 0, log.read_text()[-3000:]
    assert numbers(run) == numbers(whole) and saved_bytes(run) == saved_bytes(whole)
    report = check_ledger(run.path, max_staleness=0)
    assert report is not None and report.problems == ()
