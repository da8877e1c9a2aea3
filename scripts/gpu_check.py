"""`raylign doctor --gpu` from a plain checkout: nothing of Raylign is installed, and stages A and B need little else.

    python scripts/gpu_check.py [--stage A,B] [--minutes 10] [--out FILE]

Needs torch, transformers, safetensors, numpy and xxhash; for stage B also deepspeed.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def main() -> int:
    """The exit code of the checks. The folders of code become one package `raylign`, as setup.py has them."""
    with tempfile.TemporaryDirectory(prefix="raylign-path-") as scratch:
        package = Path(scratch) / "raylign"
        package.mkdir()
        for source in (ROOT / "raylign").glob("*.py"):
            (package / source.name).symlink_to(source)
        for folder in ROOT.iterdir():
            if (folder / "__init__.py").is_file() and folder.name != "raylign":
                (package / folder.name).symlink_to(folder)
        path = os.pathsep.join([scratch, *filter(None, [os.environ.get("PYTHONPATH")])])
        command = [sys.executable, "-m", "raylign.app.gpu_check.run", *sys.argv[1:]]
        # Safe: the checkout's own folder `raylign` is a part of the package only, and must not be found first.
        environment = os.environ | {"PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
        return subprocess.run(command, env=environment, check=False).returncode


if __name__ == "__main__":
    raise SystemExit(main())
