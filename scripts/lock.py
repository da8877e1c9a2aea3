"""Rewrite requirements/cpu.lock and gpu.lock: every package, every version, hashes of what a machine would install.

Usage: .venv/bin/python scripts/lock.py [cpu|gpu] [--upgrade]   (needs `uv`; the index is the one pip has)
A lock names no index host and keeps only hashes of Linux wheels, or of the source archive where there is no such wheel.
The GPU lock is resolved from metadata alone, so it needs no GPU.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import tomllib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pip_settings import read_pip_settings, uv_environment

REQUIREMENTS = Path(__file__).resolve().parent.parent / "requirements"


@dataclass(frozen=True)
class Target:
    """One kind of machine."""

    name: str  # requirements/<name>.in -> <name>.lock
    overrides: str
    pythons: tuple[str, ...]
    glibc: tuple[str, ...]
    local_versions: bool  # whether a version may end in +cpu and the like

    @property
    def header(self) -> str:
        """The first line of the lock."""
        return (
            f"# Generated from {self.name}.in by scripts/lock.py; install with --no-deps --require-hashes. "
            f"Python {', '.join(sorted(self.pythons))}, Linux x86-64, {self.name.upper()}.\n"
        )


TARGETS = (
    Target("cpu", "overrides.txt", ("3.11",), ("2_28", "2_31", "2_34", "2_35", "2_36", "2_39", "2_40"), True),
    Target("gpu", "gpu-overrides.txt", ("3.11", "3.12", "3.13"), ("2_28", "2_35", "2_39"), False),
)


def main() -> int:
    """Resolve every target for each of its Pythons and C libraries into one lock; returns the exit code."""
    uv = shutil.which("uv") or str(Path(sys.executable).with_name("uv"))
    env = os.environ | uv_environment(read_pip_settings(sys.executable))
    wanted = [target for target in TARGETS if target.name in sys.argv] or list(TARGETS)
    for target in wanted:
        sys.stdout.write(f"{write_lock(target, uv, env)} packages in {target.name}.lock\n")
    return 0


def write_lock(target: Target, uv: str, env: dict[str, str]) -> int:
    """The number of packages. Raises SystemExit when a Python needs another version, or a version is a local one."""
    lock = REQUIREMENTS / f"{target.name}.lock"
    pins: dict[str, str] = {}
    if "--upgrade" not in sys.argv and lock.exists():
        pins = dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", lock.read_text(), flags=re.MULTILINE))
    hashes: dict[str, set[str]] = {}
    needed: dict[str, set[str]] = {}
    for python in target.pythons:
        for glibc in target.glibc:
            packages = resolve(target, uv, python, glibc, pins, env)
            pins |= {package["name"]: package["version"] for package in packages}
            for package in packages:
                needed.setdefault(package["name"], set()).add(python)
                hashes.setdefault(package["name"], set()).update(accepted_hashes(package))
    local = [f"{name}=={pins[name]}" for name in hashes if "+" in pins[name]]
    if local and not target.local_versions:
        raise SystemExit(f"{target.name}.in resolved to builds for other machines: {', '.join(local)}")
    entries = [entry(name, pins[name], needed[name], hashes[name], target) for name in sorted(hashes)]
    lock.write_text(target.header + "\n".join(entries) + "\n")
    return len(hashes)


def entry(name: str, version: str, pythons: set[str], digests: set[str], target: Target) -> str:
    """One package's lines, with the Pythons that need it when not all do."""
    some = sorted(pythons) if pythons != set(target.pythons) else []
    marker = " or ".join(f"python_version == '{python}'" for python in some)
    return " \\\n".join([f"{name}=={version}{f' ; {marker}' if marker else ''}", *hash_lines(digests)])


def resolve(
    target: Target, uv: str, python: str, glibc: str, pins: dict[str, str], env: dict[str, str]
) -> list[dict[str, Any]]:
    """What a machine with this Python and C library would install, with the files to choose from."""
    with tempfile.TemporaryDirectory() as scratch:
        resolved, constraints = Path(scratch) / "pylock.toml", Path(scratch) / "pins.txt"
        equals = "==" if target.local_versions else "==="
        constraints.write_text("".join(f"{name}{equals}{version}\n" for name, version in pins.items()))
        command = [uv, "pip", "compile", f"{target.name}.in", "--override", target.overrides, "-c", str(constraints)]
        command += ["--python-version", python, "--python-platform", f"x86_64-manylinux_{glibc}"]
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
