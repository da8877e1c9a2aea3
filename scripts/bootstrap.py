"""Make .venv: checks, the pinned packages, this project. Called by `make`; does nothing when all is in place.

Packages come from wherever pip is configured to look, and each must have the hash in requirements/cpu.lock. uv does
the work (seconds); where uv cannot be had, pip does (minutes). Standard library only, and readable by any Python 3.7+
so that a wrong version gets a sentence instead of a traceback.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

from pip_settings import read_pip_settings, uv_environment

ROOT = Path(__file__).resolve().parent.parent
LOCK = ROOT / "requirements" / "cpu.lock"
INSTALLER_LOCK = ROOT / "requirements" / "installer.lock"
VENV = ROOT / ".venv"
STAMP = VENV / ".ready"
PYTHON = (3, 11)
TORCH_CPU_INDEX = "https://download.pytorch.org/whl/cpu"
STEP_DEADLINE_S = 1800


class SetupRefusedError(Exception):
    """The machine lacks something; the message says what and how to get it."""


def main() -> int:
    """Make or complete .venv; returns the exit code."""
    try:
        started = time.monotonic()
        wanted = stamp_text()
        if STAMP.is_file() and STAMP.read_text() == wanted:
            STAMP.touch()
            return 0
        if STAMP.exists():
            STAMP.unlink()
        check_compiler()
        python = make_venv(find_python())
        install = choose_installer(python)
        install_packages(install)
        install_project(python, install)
        compile_packages(python)
        STAMP.write_text(wanted)
        say(f"ready in {time.monotonic() - started:.0f} s: {VENV}")
        return 0
    except SetupRefusedError as refused:
        sys.stderr.write(f"setup: {refused}\n")
        return 2
    except subprocess.SubprocessError as failed:
        sys.stderr.write(f"setup: {failed}\n  fix the cause above and run `make setup` again; what is done is kept\n")
        return 1


def stamp_text() -> str:
    digest = hashlib.sha256()
    for path in (LOCK, INSTALLER_LOCK, ROOT / "pyproject.toml", Path(__file__)):
        digest.update(path.read_bytes())
    return f"{digest.hexdigest()} {ROOT}\n"


def check_compiler() -> None:
    if sys.platform != "linux":
        raise SetupRefusedError(f"this runs on Linux; found {sys.platform}. Fix: use a Linux machine or container")
    compiler = os.environ.get("CXX", "g++")
    if shutil.which(compiler) is None:
        raise SetupRefusedError(
            f"no C++ compiler: {compiler!r} is not on PATH, and DeepSpeed builds its CPU optimizer at first use. "
            "Fix: apt-get install g++ (Debian, Ubuntu) or dnf install gcc-c++ (Fedora, RHEL), or set CXX"
        )


def find_python() -> str:
    name = "python{}.{}".format(*PYTHON)
    for candidate in (sys.executable, shutil.which(name)):
        if candidate and version_of(candidate) == PYTHON:
            return candidate
    raise SetupRefusedError(
        f"the pinned packages are for Python {PYTHON[0]}.{PYTHON[1]}; found {sys.version.split()[0]} and no {name}. "
        f"Fix: install {name}, or `make setup PYTHON=/path/to/{name}`. "
        "On 3.12 and 3.13 install unpinned instead: see README, Installing"
    )


def version_of(python: str) -> tuple[int, ...] | None:
    code = "import sys, venv, ensurepip; sys.stdout.write('%d.%d' % sys.version_info[:2])"
    result = subprocess.run([python, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    return tuple(int(part) for part in result.stdout.split(".")) if result.returncode == 0 else None


def make_venv(base: str) -> str:
    python = VENV / "bin" / "python"
    if not python.exists():
        say(f"making {VENV.name} with {base}")
        run([base, "-m", "venv", str(VENV)])
    elif version_of(str(python)) != PYTHON:
        raise SetupRefusedError(
            f"{VENV} holds another or a broken Python. Fix: rm -r {VENV} and run `make setup` again"
        )
    return str(python)


class Installer:
    """`pip install`, by uv or by pip: same arguments, same hashes."""

    def __init__(self, command: list[str], env: dict[str, str], index_flag: str) -> None:
        self.command = command
        self.env = env
        self.index_flag = index_flag

    def __call__(self, *arguments: str) -> None:
        run([*self.command, *arguments], env=self.env)


def choose_installer(python: str) -> Installer:
    """uv, itself pinned by a lock, or pip where uv cannot be had."""
    uv = Path(python).with_name("uv")
    pip = [python, "-m", "pip", "install", "--disable-pip-version-check", "--no-input", "-q"]
    quiet_env = dict(os.environ, DS_BUILD_OPS="0")
    try:
        run([*pip, "--no-deps", "--require-hashes", "-r", str(INSTALLER_LOCK)])
    except subprocess.CalledProcessError:
        say("uv cannot be installed here; pip installs instead and takes some minutes")
        return Installer([*pip, "--no-compile"], quiet_env, "--extra-index-url")
    env = dict(quiet_env, **uv_environment(read_pip_settings(python)))
    # The build tools of the two source-only packages are pinned by the same lock.
    command = [str(uv), "pip", "install", "-q", "--python", python, "--build-constraints", str(LOCK)]
    return Installer(command, env, "--index")


def compile_packages(python: str) -> None:
    """Bytecode of every package, on all cores: a run starts a dozen processes at once, and each would compile the same.

    Some packages ship files that are no Python (templates, other versions' tests), so its exit status says nothing.
    """
    say("compiling bytecode, once")
    libraries = VENV / "lib" / "python{}.{}".format(*PYTHON) / "site-packages"
    env = {name: value for name, value in os.environ.items() if name != "PYTHONDONTWRITEBYTECODE"}
    command = [python, "-m", "compileall", "-q", "-j", "0", str(libraries)]
    subprocess.run(command, env=env, capture_output=True, timeout=STEP_DEADLINE_S, check=False)


def install_packages(install: Installer) -> None:
    torch = next(entry for entry in lock_entries() if entry.startswith("torch=="))
    torch_only = VENV / "torch.lock"
    torch_only.write_text(torch)
    pinned = ("--no-deps", "--require-hashes", "-r")
    try:
        install(*pinned, str(torch_only))
    except subprocess.CalledProcessError:
        say(f"no {torch.split()[0]} where pip is configured to look; trying PyTorch's own index for it")
        install(*pinned, str(torch_only), install.index_flag, TORCH_CPU_INDEX)
    install(*pinned, str(LOCK))


def install_project(python: str, install: Installer) -> None:
    flags = ["--no-deps", "--no-build-isolation"]
    install(*flags, "-e", str(ROOT))
    run([python, "-c", "import importlib.metadata as m; m.version('raylign')"])


def lock_entries() -> list[str]:
    """One string a package: its pin and the hash lines below it."""
    entries: list[str] = []
    for line in LOCK.read_text().splitlines(keepends=True):
        if line.startswith(" "):
            entries[-1] += line
        elif not line.startswith("#"):
            entries.append(line)
    return entries


def run(command: list[str], env: dict[str, str] | None = None) -> None:
    subprocess.run(command, cwd=ROOT, env=env, check=True, timeout=STEP_DEADLINE_S)


def say(text: str) -> None:
    sys.stdout.write(f"setup: {text}\n")
    sys.stdout.flush()


if __name__ == "__main__":
    raise SystemExit(main())
