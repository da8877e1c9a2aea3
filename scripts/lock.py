"""Rewrite requirements/cpu.lock from cpu.in: every package, every version, hashes of what a machine would install.

Usage: .venv/bin/python scripts/lock.py   (needs `uv`; the index is the one pip is configured with)
The lock names no index host and keeps only hashes of Linux wheels for the pinned Python, or of the source archive
where there is no such wheel.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from pathlib import Path
from typing import Any

from pip_settings import read_pip_settings, uv_environment

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"
PYTHON = "3.11"
GLIBC_VERSIONS = ("2_28", "2_31", "2_34", "2_35", "2_36", "2_39", "2_40")
HEADER = f"""\
# Generated from cpu.in by scripts/lock.py; install with --no-deps --require-hashes. Python {PYTHON}, Linux x86-64, CPU.
"""


def main() -> int:
    """Resolve requirements/cpu.in for every supported C library into one lock; returns the exit code."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    lock = REQUIREMENTS / "cpu.lock"
    env = os.environ | uv_environment(read_pip_settings(sys.executable))
    pins: dict[str, str] = {}
    if "--upgrade" not in sys.argv:
        pins = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", lock.read_text(), flags=re.MULTILINE))
    hashes: dict[str, set[str]] = {}
    for glibc in GLIBC_VERSIONS:
        packages = resolve(uv, glibc, pins, env)
        pins = {package["name"]: package["version"] for package in packages}
        for package in packages:
            hashes.setdefault(package["name"], set()).update(accepted_hashes(package))
    entries = [" \\\n".join([f"{name}=={pins[name]}", *hash_lines(hashes[name])]) for name in sorted(pins)]
    lock.write_text(HEADER + "\n".join(entries) + "\n")
    sys.stdout.write(f"{len(pins)} packages in {lock.name}\n")
    return 0


def resolve(uv: str, glibc: str, pins: dict[str, str], env: dict[str, str]) -> list[dict[str, Any]]:
    """What a machine with this C library would install, with the files to choose from."""
    with tempfile.TemporaryDirectory() as scratch:
        resolved, constraints = Path(scratch) / "pylock.toml", Path(scratch) / "pins.txt"
        constraints.write_text("".join(f"{name}=={version}\n" for name, version in pins.items()))
        command = [uv, "pip", "compile", "cpu.in", "--override", "overrides.txt", "-c", str(constraints)]
        command += ["--python-version", PYTHON, "--python-platform", f"x86_64-manylinux_{glibc}"]
        command += ["--format", "pylock.toml", "-q", "-o", str(resolved)]
        subprocess.run(command, cwd=REQUIREMENTS, env=env, check=True, timeout=600)
        return tomllib.loads(resolved.read_text())["packages"]


def accepted_hashes(package: dict[str, Any]) -> set[str]:
    wheels = [wheel for wheel in package.get("wheels", []) if is_wanted(wheel["url"].rsplit("/", 1)[-1])]
    return {file["hashes"]["sha256"] for file in wheels or [package["sdist"]]}


def hash_lines(hashes: set[str]) -> list[str]:
    return [f"    --hash=sha256:{digest}" for digest in sorted(hashes)]


def is_wanted(wheel: str) -> bool:
    return wheel.endswith("-any.whl") or ("linux" in wheel and "x86_64" in wheel and "musl" not in wheel)


if __name__ == "__main__":
    raise SystemExit(main())
