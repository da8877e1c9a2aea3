"""What `doctor` says of GPUs: driver, CUDA build of torch and cards together. Reads only; computes nothing."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from raylign.app.commands.finding import Finding

LEAST_DRIVER = {"12": 525, "13": 580}
"""The oldest driver for a CUDA major version (NVIDIA's minor-version compatibility table)."""
LEAST_CAPABILITY = 8.0
"""Ampere: bfloat16 and FlashAttention."""
_TIMEOUT_S = 60.0
_ASK_TORCH = """
import json, torch
cards = range(torch.cuda.device_count()) if torch.cuda.is_available() else ()
print(json.dumps({
    "version": torch.__version__, "cuda": torch.version.cuda, "available": torch.cuda.is_available(),
    "nccl": ".".join(map(str, torch.cuda.nccl.version())) if torch.version.cuda else None,
    "cards": [[torch.cuda.get_device_name(i), float("%d.%d" % torch.cuda.get_device_capability(i))] for i in cards],
}))
"""


@dataclass(frozen=True, slots=True)
class TorchBuild:
    """What torch says of itself and of the cards it sees."""

    version: str
    cuda: str | None  # the CUDA version it was built for; None for a CPU build
    available: bool
    nccl: str | None
    cards: Sequence[tuple[str, float]]  # name, compute capability


def gpu_findings() -> Iterator[Finding]:
    """Of this machine."""
    tool = shutil.which("nvidia-smi")
    if tool is None:
        yield Finding("note", "gpus", f"no NVIDIA driver; {os.cpu_count()} CPU cores, so use cluster=local")
        return
    query = [tool, "--query-gpu=name,memory.total,driver_version", "--format=csv,noheader"]
    try:
        listed = subprocess.run(query, capture_output=True, text=True, timeout=_TIMEOUT_S, check=False)
    except subprocess.TimeoutExpired:
        yield Finding("bad", "gpus", f"nvidia-smi did not answer within {_TIMEOUT_S:g} s; the driver hangs")
        return
    if listed.returncode != 0:
        yield Finding("bad", "gpus", f"nvidia-smi failed: {listed.stdout.strip() or listed.stderr.strip()}")
        return
    cards = listed.stdout.strip().splitlines()
    yield Finding("ok", "gpus", "; ".join(cards))
    yield from judged(cards, _ask_torch())


def judged(cards: Sequence[str], torch: TorchBuild | str) -> Iterator[Finding]:
    """What driver and torch are together. `cards`: nvidia-smi's lines; `torch`: its build, or why there is none."""
    if isinstance(torch, str):
        yield Finding("bad", "torch and CUDA", torch)
        return
    if torch.cuda is None:
        yield Finding(
            "bad",
            "torch and CUDA",
            f"torch {torch.version} is built without CUDA though there are {len(cards)} cards; install "
            "requirements/gpu.lock in a fresh environment (an index with +cpu builds is preferred by `==`)",
        )
        return
    driver = cards[0].rsplit(",", 1)[-1].strip() if cards else ""
    least = LEAST_DRIVER.get(torch.cuda.partition(".")[0])
    major = driver.partition(".")[0]
    if least is not None and major.isdigit() and int(major) < least:
        yield Finding(
            "bad",
            "driver",
            f"{driver}; the CUDA {torch.cuda} of torch {torch.version} needs {least} or newer",
        )
    elif not torch.available:
        yield Finding(
            "bad", "torch and CUDA", f"torch {torch.version} (CUDA {torch.cuda}) sees no card though the driver lists "
            f"{len(cards)}; is CUDA_VISIBLE_DEVICES empty, or the container started without --gpus?"
        )  # fmt: skip
    else:
        yield Finding("ok", "driver", f"{driver} with torch {torch.version}, CUDA {torch.cuda}, NCCL {torch.nccl}")
    for name, capability in torch.cards:
        if capability < LEAST_CAPABILITY:
            yield Finding("bad", "card", f"{name} has compute capability {capability}; needed is {LEAST_CAPABILITY}")


def _ask_torch() -> TorchBuild | str:
    """In a child: importing torch here would open a CUDA context, or hang with the driver."""
    try:
        result = subprocess.run(
            [sys.executable, "-c", _ASK_TORCH], capture_output=True, text=True, timeout=_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        return f"torch did not answer within {_TIMEOUT_S:g} s; the driver hangs"
    if result.returncode != 0:
        lines = result.stderr.strip().splitlines()
        return f"torch cannot be imported: {lines[-1] if lines else 'no message'}"
    found = json.loads(result.stdout)
    return TorchBuild(**{**found, "cards": [(name, capability) for name, capability in found["cards"]]})
