"""scripts/two_lanes.py: every test file is run in exactly one lane, and no failure is lost."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.lane_claims import TOGETHER, Claims

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

import two_lanes  # noqa: E402

PASSES, FAILS = "def test_it():\n    assert True\n", "def test_it():\n    assert False, 'seen'\n"


def test_every_file_is_listed_once_and_what_is_named_is_there():
    listed = two_lanes.files(ROOT)
    on_disk = {
        str(path.relative_to(ROOT))
        for kind in ("unit", "system")
        for path in (ROOT / "tests" / kind).rglob("test_*.py")
    }
    assert len(listed) == len(set(listed)) and set(listed) == on_disk
    assert [Path(file).stem.removeprefix("test_") for file in listed][: len(two_lanes.LONG)] == list(two_lanes.LONG)
    assert {*TOGETHER, *TOGETHER.values()} <= {Path(file).name for file in listed}


def test_a_file_is_taken_once_and_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    mine = Claims(tmp_path)
    monkeypatch.setattr("os.getpid", lambda: 4711)
    other = Claims(tmp_path)
    monkeypatch.undo()
    assert mine.take(Path("tests/a.py")) and mine.take(Path("tests/a.py"))
    for later, first in TOGETHER.items():
        assert mine.take(Path("tests") / first) and mine.take(Path("tests") / later)
    monkeypatch.setattr("os.getpid", lambda: 4711)
    assert other.take(Path("tests/b.py"))
    assert not any(other.take(Path("tests") / name) for name in ("a.py", *TOGETHER, *TOGETHER.values()))


@pytest.mark.slow
@pytest.mark.parametrize("failing", [3, 7, None])
def test_a_failure_in_either_lane_is_the_exit_code_and_is_shown(failing: int | None, tmp_path: Path):
    (tmp_path / "tests" / "unit").mkdir(parents=True)
    (tmp_path / "tests" / "lane_claims.py").write_text((ROOT / "tests" / "lane_claims.py").read_text())
    for number in range(8):
        text = f"from pathlib import Path\nPath('{tmp_path}/ran').open('a')\n" + (
            FAILS if number == failing else PASSES
        )
        text = text.replace("assert", f"Path('{tmp_path}/ran').open('a').write('{number}'); assert")
        (tmp_path / "tests" / "unit" / f"test_{number}.py").write_text(text)
    done = subprocess.run(
        [sys.executable, str(ROOT / "scripts" / "two_lanes.py"), "-q"],
        cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == (0 if failing is None else 1), done.stdout + done.stderr
    assert ("seen" in done.stdout) == (failing is not None)
    assert sorted((tmp_path / "ran").read_text()) == list("01234567")
