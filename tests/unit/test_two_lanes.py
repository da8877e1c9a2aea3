"""scripts/two_lanes.py: every test file is in exactly one lane, and no failure is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import two_lanes  # noqa: E402

PASSES, FAILS = "def test_it():\n    assert True\n", "def test_it():\n    assert False, 'seen'\n"


def test_each_file_is_in_one_lane():
    first, second = two_lanes.lanes()
    assert first[:2] == ["tests/unit", "tests/system"]
    assert {f"--ignore={file}" for file in second} == set(first[2:])
    assert all((ROOT / file).is_file() for file in second), "a lane names a file that is gone"


def test_a_failure_in_either_lane_is_the_exit_code_and_is_shown(tmp_path: Path):
    for failing in ("first", "second", ""):
        for name, folder in (("first", "tests/unit"), ("second", "tests/system")):
            (tmp_path / folder).mkdir(parents=True, exist_ok=True)
            text = FAILS if name == failing else PASSES
            (tmp_path / folder / f"test_{name}.py").write_text(text)
        code = (
            f"import sys; sys.path.insert(0, {str(ROOT / 'scripts')!r}); import two_lanes;"
            "two_lanes.SECOND_LANE = ('tests/system/test_second.py',); sys.exit(two_lanes.main(['-q']))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False
        )
        assert done.returncode == (1 if failing else 0), done.stdout + done.stderr
        assert done.stdout.count("1 passed") == (1 if failing else 2) and ("seen" in done.stdout) == bool(failing)
