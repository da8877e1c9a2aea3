"""How many cards of 80 GB a model needs, by the planner that `raylign plan` uses: the table of docs/gpu.md.

    python benchmarks/sizing.py

Shapes are those of Qwen 2.5's published sizes. Everything printed is an estimate.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

from raylign.conf.schema import LearnerConfig, LoraConfig, Precision, RolloutConfig
from raylign.trainer.memory_plan import GB, CardUse, ModelShape, engine_use, learner_use, model_shape, outside

CARD = 80 * GB
# hidden, intermediate, layers, heads, key-value heads, vocabulary, tied
SIZES = {
    "0.5B": (896, 4864, 24, 14, 2, 151936, True),
    "1.5B": (1536, 8960, 28, 12, 2, 151936, True),
    "3B": (2048, 11008, 36, 16, 2, 151936, True),
    "7B": (3584, 18944, 28, 28, 4, 152064, False),
    "14B": (5120, 13824, 48, 40, 8, 152064, False),
    "32B": (5120, 27648, 64, 40, 8, 152064, False),
    "70B": (8192, 29568, 80, 64, 8, 152064, False),
}
LEARNER = LearnerConfig(
    precision=Precision.bfloat16, zero_stage=3, micro_batch_tokens=16384, gradient_checkpointing=True, gpus_per_rank=1
)
RANKS = (1, 2, 4, 8, 16, 32, 64)


def write_config(folder: Path, size: str) -> Path:
    """A config.json in Llama's form with the size's shape: all that the planner reads."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    *shape, vocab, tied = SIZES[size]
    folder.mkdir()
    config = {"model_type": "llama", "architectures": ["LlamaForCausalLM"], "vocab_size": vocab}
    config |= {**dict(zip(names, shape, strict=True)), "tie_word_embeddings": tied}
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")
    return folder


def fewest(shape: ModelShape, learner: LearnerConfig) -> CardUse:
    """The use of the smallest number of ranks that fits."""
    uses = (learner_use("policy", shape, replace(learner, num_ranks=ranks)) for ranks in RANKS)
    return next(use for use in uses if use.fits(CARD))


def rows(root: Path) -> Iterator[tuple[str, ...]]:
    """One a size: cards and GB on each, whole and with adapters; an engine; bytes on disk and on the way."""
    for size in SIZES:
        folder = write_config(root / size, size)
        whole = model_shape(str(folder), scalar=False)
        adapters = replace(LEARNER, lora=LoraConfig(rank=16))
        adapted = model_shape(str(folder), scalar=False, learner=adapters)
        uses = [fewest(whole, LEARNER), fewest(adapted, adapters)]
        for parallel in (1, 2, 4, 8):
            rollout = RolloutConfig(precision=Precision.bfloat16, tensor_parallel_size=parallel)
            engine = engine_use(whole, rollout, CARD, 1.0)
            if engine.cache_tokens >= 100_000:
                break
        beside = outside({"policy": (whole, LEARNER)}, Precision.bfloat16)
        learners = [f"{use.processes} x {use.total / GB:.0f} GB" for use in uses]
        cache = f"{parallel}, {engine.cache_tokens / 1e6:.1f} M tokens"
        yield size, *learners, cache, f"{beside.checkpoint / GB:.0f} GB", f"{beside.publication / GB:.0f} GB"


def table() -> str:
    """In markdown."""
    head = ("model", "trained whole", "adapters, rank 16", "engine: cards, KV cache", "checkpoint, whole", "published")
    with TemporaryDirectory() as made:
        lines = [head, ("---",) * len(head), *rows(Path(made))]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


if __name__ == "__main__":
    print(table())
