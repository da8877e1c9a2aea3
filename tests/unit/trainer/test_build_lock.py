"""A killed build's lock is removed, a living one's is not."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from pathlib import Path

import pytest
from raylign.trainer.engine.build_lock import free_build_locks
from torch.utils.file_baton import FileBaton

BUILDER = """
import sys, time
from torch.utils.file_baton import FileBaton
assert FileBaton(sys.argv[1]).try_acquire()
print("building", flush=True)
time.sleep(120)
"""


@pytest.mark.slow
def test_only_the_lock_of_a_dead_builder_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    monkeypatch.setenv("TORCH_EXTENSIONS_DIR", str(tmp_path))
    (tmp_path / "cpu_adam").mkdir()
    lock = tmp_path / "cpu_adam" / "lock"
    builder = subprocess.Popen([sys.executable, "-c", BUILDER, str(lock)], stdout=subprocess.PIPE, text=True)
    try:
        assert builder.stdout is not None and builder.stdout.readline() == "building\n"
        with caplog.at_level(logging.WARNING):
            free_build_locks()
        assert lock.exists(), "a living build's lock was taken away"
        assert f"waiting for process {builder.pid}" in caplog.text
    finally:
        builder.kill()
        builder.wait(timeout=10)

    assert lock.exists()
    free_build_locks()
    assert not lock.exists()
    assert FileBaton(os.fspath(lock)).try_acquire()
