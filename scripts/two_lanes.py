"""The tests of `make test` in two pytest processes side by side: a run waits for its roles longer than it computes.

    python scripts/two_lanes.py [pytest options]

The second lane has the files below, the first one all others and is shown as it goes; the second one's output follows
at the end. Files stay whole, and those that share a run of the session are in one lane, so no run is started twice.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

SYSTEM = Path("tests/system")
SECOND_LANE = tuple(
    str(SYSTEM / f"test_{name}.py")
    for name in ("end_to_end", "resume", "readme", "submit", "evaluate", "learner_faults", "bit_equal")
)
"""Half of the time; measured with --durations=0."""
NO_TESTS = 5
"""pytest's exit code of a lane in which the options select nothing."""


def lanes() -> tuple[list[str], list[str]]:
    """What pytest is given in each lane."""
    return ["tests/unit", str(SYSTEM), *(f"--ignore={file}" for file in SECOND_LANE)], list(SECOND_LANE)


def main(options: list[str]) -> int:
    """Both lanes to their ends; the first exit code that is no success."""
    first, second = lanes()
    pytest = [sys.executable, "-m", "pytest", *options]
    with tempfile.TemporaryFile("w+", encoding="utf-8") as kept:
        beside = subprocess.Popen([*pytest, *second], stdout=kept, stderr=subprocess.STDOUT)
        try:
            codes = [subprocess.call([*pytest, *first]), beside.wait()]
        except KeyboardInterrupt:  # both have it too and are ending
            codes = [beside.wait() or 130]
        kept.seek(0)
        sys.stdout.write(kept.read())
    return next((code for code in codes if code not in (0, NO_TESTS)), 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
