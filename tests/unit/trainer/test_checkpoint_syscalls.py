"""R01, R02: a kill before, and an error of, every system call of a save: this step or the one before, never torn."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from raylign.trainer.checkpoint import CheckpointStore

from tests.unit.trainer.crashing_writer import save

pytestmark = [pytest.mark.thorough, pytest.mark.timeout(900)]


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
@pytest.mark.parametrize("fault", ["signal=KILL", "error=ENOSPC", "error=EIO", "error=EINTR"])
def test_a_fault_in_every_system_call(fault: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.trainer.injected_writer", str(tmp_path), fault],
        capture_output=True, text=True, timeout=800, check=False, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    ends: dict[str, str] = json.loads(done.stdout)
    calls = Counter(name.split()[0] for name in ends)
    assert calls["openat"] >= 10 and calls["fsync"] >= 5 and calls["rename"] >= 3 and calls["write"] >= 3, calls
    assert set(ends.values()) <= ({"killed"} if "KILL" in fault else {"saved", "refused"}), ends
    for name, ended in ends.items():
        root = tmp_path / name.replace(" ", "-")
        store = CheckpointStore(root, keep=1)
        found = store.latest()
        assert found is not None and found.state.step in (1, 2) and found.skipped == (), (name, ended)
        if ended == "saved":
            assert found.state.step == 2, (name, "an error passed for success")
        save(store, 3)  # and the next save clears up
        after = store.latest()
        assert after is not None and after.state.step == 3 and not list(root.glob(".tmp-*")), name
    print(fault, dict(calls), Counter(ends.values()))
