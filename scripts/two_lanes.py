"""Tests in two pytest processes side by side: a run waits for its roles longer than it computes.

    python scripts/two_lanes.py [--unit] [pytest options]

Both have the same list of files, the long ones first, and take the next that the other has not taken
(tests/lane_claims.py): so both end with the last short file, however fast the machine is. Files stay whole, and those
that share a run of the session are taken together. `--unit` leaves tests/system out. The first lane is shown live;
the second one's output follows.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

LONG = (
    "readme", "offline_modes", "end_to_end", "resume", "submit", "evaluate", "refusals", "learner_faults",
    "wandb_online", "weights", "zero_parity", "relayout", "rollout", "bit_equal", "guard", "wandb", "examples",
    "tensor_parallel",
)  # fmt: skip
"""Of tests/system, what takes more than half a minute, the longest first. Only the order of the work depends on it."""
UNIT = "--unit"
NO_TESTS = 5
"""pytest's exit code of a lane for which the other one left nothing."""

ONE_THREAD = {"OMP_NUM_THREADS": "1"}
"""For a lane and what it starts: two threads each on two cores spin while they wait for each other, and tests' products
are small. Roles of a run have the numbers that their placement gives them."""


def files(root: Path = Path(".")) -> list[str]:
    """Every test file below tests/system and tests/unit, as the lanes take them."""
    system = sorted(root.glob("tests/system/**/test_*.py"))
    places = {f"test_{name}.py": place for place, name in enumerate(LONG)}
    system.sort(key=lambda path: places.get(path.name, len(LONG)))
    return [str(path.relative_to(root)) for path in [*system, *sorted(root.glob("tests/unit/**/test_*.py"))]]


def main(options: list[str]) -> int:
    """Both lanes to their ends; the first exit code that is no success."""
    with tempfile.TemporaryDirectory() as claims, tempfile.TemporaryFile("w+", encoding="utf-8") as kept:
        chosen = [file for file in files() if UNIT not in options or file.startswith("tests/unit")]
        passed_on = [option for option in options if option != UNIT]
        pytest = [sys.executable, "-m", "pytest", "-p", "tests.lane_claims", *passed_on, *chosen]
        environment = {**ONE_THREAD, **os.environ, "RAYLIGN_LANE_CLAIMS": claims}
        beside = subprocess.Popen(pytest, stdout=kept, stderr=subprocess.STDOUT, env=environment)
        try:
            codes = [subprocess.call(pytest, env=environment), beside.wait()]
        except KeyboardInterrupt:  # both have it too and are ending
            codes = [beside.wait() or 130]
        kept.seek(0)
        sys.stdout.write(kept.read())
    return next((code for code in codes if code not in (0, NO_TESTS)), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
