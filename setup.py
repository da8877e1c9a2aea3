"""Which folders are packages: each top-level folder of code is one of `raylign`, wherever it is installed.

Everything else about the distribution is in pyproject.toml. The folders lie beside each other at the top level, and
their import names are `raylign.trainer`, `raylign.reward` and so on, so that a user's own `reward.py` or `data/` cannot
be mistaken for ours.
"""

from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).resolve().parent
FOLDERS = ("app", "cluster", "conf", "data", "evals", "feedback", "pages", "records", "reward", "rollout", "trainer")

packages = ["raylign"]
for folder in FOLDERS:
    packages += [f"raylign.{folder}", *(f"raylign.{folder}.{below}" for below in find_packages(str(ROOT / folder)))]

setup(packages=packages, package_dir={"raylign": "raylign", **{f"raylign.{folder}": folder for folder in FOLDERS}})
