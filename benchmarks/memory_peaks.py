"""What a learner's processes take at their peak on CPU, beside what the planner of `raylign plan` says they will.

    python -m benchmarks.memory_peaks [--only NAME ...] [--json FILE]

Each configuration trains two updates of two micro-batches in processes of its own (DeepSpeed, gloo between ranks).
Measured is the second update's highest resident size (VmHWM, reset before it) of the rank with the highest, less the
resident size before the model was loaded, with libraries, process group and kernels warm from a smaller model.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.multiprocessing as mp
from raylign.conf.schema import Device, LearnerConfig, LoraConfig, OptimConfig, Precision
from raylign.data.sample_model import tiny_model
from raylign.data.types import Denominators, PolicyExperience, RankShard, TokenBatch, UpdateWindow
from raylign.trainer.algorithms.base import LossOutput
from raylign.trainer.engine.rendezvous import Rendezvous
from raylign.trainer.engine.zero import ZeroEngine
from raylign.trainer.learner import Learner
from raylign.trainer.memory_plan import CardUse, learner_use, shape_of
from raylign.trainer.models.adapters import add_adapters, start_adapters
from raylign.trainer.models.loading import load_causal_lm, load_scalar_model
from rich.console import Console
from rich.table import Table
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

LIMIT = 0.15
"""Relative error that the plan may have."""
DEADLINE_S = 600
TOKENS, ROW, WARM_TOKENS = 2048, 256, 256
SHAPES = {
    # hidden, intermediate, layers, heads, key-value heads, vocabulary
    "deep": (576, 1536, 12, 9, 3, 16384),
    "wide": (1024, 2816, 4, 16, 4, 16384),
}
PLAIN = LearnerConfig(
    precision=Precision.float32, zero_stage=0, optim=OptimConfig(lr=1e-5), micro_batch_tokens=TOKENS
)  # fmt: skip
HALF = replace(PLAIN, precision=Precision.bfloat16)
CONFIGS: dict[str, tuple[str, bool, LearnerConfig]] = {
    # shape, reward head, settings
    "deep, float32": ("deep", False, PLAIN),
    "deep, float32, recomputed": ("deep", False, replace(PLAIN, gradient_checkpointing=True)),
    "deep, bfloat16, ZeRO-1": ("deep", False, replace(HALF, zero_stage=1)),
    "wide, float32, adapters": ("wide", False, replace(PLAIN, lora=LoraConfig(rank=16))),
    "wide, float32, reward head": ("wide", True, PLAIN),
    "wide, bfloat16, ZeRO-2, two ranks": ("wide", False, replace(HALF, zero_stage=2, num_ranks=2)),
    "wide, float32, ZeRO-3, two ranks": ("wide", False, replace(PLAIN, zero_stage=3, num_ranks=2)),
}


@dataclass(frozen=True, slots=True)
class Peak:
    """Of one rank, in bytes."""

    measured: float
    planned: float
    parts: dict[str, float]

    @property
    def off(self) -> float:
        """Relative error of the plan."""
        return self.planned / self.measured - 1


def write_model(folder: Path, shape: str) -> Path:
    """A random Llama with a tokenizer."""
    hidden, intermediate, layers, heads, kv_heads, vocab = SHAPES[shape]
    tiny_model(folder, tie=True)  # its tokenizer; the weights are replaced
    config = LlamaConfig(
        vocab_size=vocab, hidden_size=hidden, intermediate_size=intermediate, num_hidden_layers=layers,
        num_attention_heads=heads, num_key_value_heads=kv_heads, tie_word_embeddings=True, max_position_embeddings=4096,
    )  # fmt: skip
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def _resident(field: str) -> int:
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(1024 * int(line.split()[1]) for line in lines if line.startswith(field))


def _rank_main(rank: int, world_size: int, port: int, warm: str, folder: str, name: str, out: str) -> None:
    torch.set_num_threads(1)
    _, scored, config = CONFIGS[name]
    rendezvous = Rendezvous(rank, world_size, "127.0.0.1", port, timeout_s=DEADLINE_S)
    _train(warm, scored, config, rendezvous, WARM_TOKENS)
    before = _resident("VmRSS")
    use = _train(folder, scored, config, rendezvous, TOKENS)
    peak = Peak(_resident("VmHWM") - before, use.total, dict(use.parts))
    Path(out, f"{rank}.json").write_text(json.dumps(asdict(peak)), encoding="utf-8")


def _train(folder: str, scored: bool, config: LearnerConfig, rendezvous: Rendezvous, tokens: int) -> CardUse:
    model: nn.Module
    if scored:
        model = load_scalar_model(folder, precision=config.precision, new_head_seed=0)
    else:
        checkpointing = config.gradient_checkpointing
        model = load_causal_lm(folder, precision=config.precision, gradient_checkpointing=checkpointing)
    hf: Any = model.get_submodule("hf")
    if config.lora.rank:
        add_adapters(hf, config.lora)
        start_adapters(hf, 1)
    use = learner_use("policy", shape_of(hf, scalar=scored), config, Device.cpu)
    learner = Learner(ZeroEngine(model, config, rendezvous, total_steps=9))
    for _ in range(2):
        Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # VmHWM begins anew
        learner.update(_shard(tokens), _score_loss if scored else _loss)
    return use


def _loss(model: nn.Module, batch: PolicyExperience, denominators: Denominators) -> LossOutput:
    outputs = model(batch.tokens, temperature=1.0)
    return LossOutput(-(outputs.logprobs * batch.advantages).sum() / denominators.tokens, {})


def _score_loss(model: nn.Module, batch: PolicyExperience, denominators: Denominators) -> LossOutput:
    return LossOutput((model(batch.tokens) * batch.advantages).sum() / denominators.tokens, {})


def _shard(tokens: int) -> RankShard[PolicyExperience]:
    draw = torch.Generator().manual_seed(0)
    rows = [torch.randint(0, 500, (ROW,), generator=draw).tolist() for _ in range(tokens // ROW)]
    batch = TokenBatch.from_sequences(rows, [[False] * 3 + [True] * (ROW - 3) for _ in rows])
    weights = torch.rand(batch.num_tokens, generator=draw) * batch.response_mask
    whole = PolicyExperience(batch, weights, weights, None, weights)
    counts = Denominators(2 * float(batch.response_mask.sum()), 2.0 * len(rows))
    return RankShard((UpdateWindow((whole, whole), counts),))


def measure(name: str, root: Path) -> Peak:
    """The rank with the highest peak."""
    shape, _, config = CONFIGS[name]
    warm, folder = (root / "warm", root / shape)
    if not warm.exists():
        tiny_model(warm, tie=True)
    if not folder.exists():
        write_model(folder, shape)
    out = Path(tempfile.mkdtemp(dir=root))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    given = (config.num_ranks, port, str(warm), str(folder), name, str(out))
    mp.start_processes(_rank_main, given, nprocs=config.num_ranks, start_method="spawn")
    peaks = [Peak(**json.loads(file.read_text(encoding="utf-8"))) for file in out.glob("*.json")]
    return max(peaks, key=lambda peak: peak.measured)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print; 1 when a figure is off by more than LIMIT."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(CONFIGS), default=list(CONFIGS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(argv)
    os.environ |= {"MALLOC_MMAP_THRESHOLD_": str(1 << 20), "MALLOC_TRIM_THRESHOLD_": "0"}  # what is freed is given back
    found: dict[str, Peak] = {}
    with tempfile.TemporaryDirectory() as folder:
        for name in given.only:
            found[name] = measure(name, Path(folder))
            print(f"{name}: {found[name]}", flush=True)
            if given.json:
                written = {key: asdict(peak) for key, peak in found.items()}
                given.json.write_text(json.dumps(written, indent=2) + "\n", encoding="utf-8")
    table = Table("configuration", "measured", "planned", "off by")
    for name, peak in found.items():
        table.add_row(name, f"{peak.measured / 1e6:,.0f} MB", f"{peak.planned / 1e6:,.0f} MB", f"{peak.off:+.1%}")
    Console(width=100).print(table)
    return int(any(abs(peak.off) > LIMIT for peak in found.values()))


if __name__ == "__main__":
    sys.exit(main())
