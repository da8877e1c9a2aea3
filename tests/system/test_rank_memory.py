"""What a rank of a sharded model allocates, measured: its part and one weight more, never the whole model.

Resident memory of the process's own (RssAnon: pages of mapped files that are only read belong to all) is sampled while
the model is loaded, partitioned and exported.
"""

from __future__ import annotations

import faulthandler
import json
import re
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from raylign.conf.schema import Device, LearnerConfig, OptimConfig, Precision
from raylign.data.sample_model import tiny_model
from raylign.trainer.engine import zero
from raylign.trainer.engine.buckets import whole_weights
from raylign.trainer.engine.rendezvous import Rendezvous
from raylign.trainer.engine.sharded import ShardedEngine
from raylign.trainer.models.export import export_hf
from raylign.trainer.models.loading import load_causal_lm
from safetensors.torch import load_file
from transformers import LlamaConfig, LlamaForCausalLM

from tests.system.rank_processes import run_ranks

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(300)]

RANKS = 3
DEADLINE_S = 240
SHARD = 16 << 20
MODEL = 184_578_048
LARGEST = 4096 * 1024 * 4
LAYER = (2 * 1024 + 2 * 512 + 3 * 3072) * 1024 * 4 + 2 * 1024 * 4
NOISE = 24 << 20
"""Threads' stacks, gloo's buffers, what the allocator keeps: an eighth of the model."""


def _own_bytes() -> int:
    found = re.search(r"RssAnon:\s+(\d+) kB", Path("/proc/self/status").read_text())
    assert found
    return int(found[1]) * 1024


@contextmanager
def _peak(record: dict[str, Any], name: str) -> Iterator[None]:
    """How much more the process's own memory was, at most, than when it began."""
    first, done = _own_bytes(), threading.Event()
    most = [first]

    def sample() -> None:
        while not done.wait(0.001):
            most[0] = max(most[0], _own_bytes())

    thread = threading.Thread(target=sample)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
        record[name] = max(most[0], _own_bytes()) - first


def _sharded(
    folder: Path, rendezvous: Rendezvous, record: dict[str, Any], precision: Precision = Precision.float32
) -> ShardedEngine:
    with _peak(record, "loaded"):
        model = load_causal_lm(folder, precision=precision, as_stored=True)
    with _peak(record, "sharded"):
        return ShardedEngine(model, precision, rendezvous, device=Device.cpu)


def _rank_main(rank: int, world_size: int, port: int, out: str) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(DEADLINE_S - 20, exit=True)
    rendezvous = Rendezvous(rank, world_size, "127.0.0.1", port, timeout_s=120)
    zero.GATHER_BYTES = SHARD
    _sharded(Path(out) / "tiny", rendezvous, {})  # what libraries take the first time
    record: dict[str, Any] = {}
    _sharded(Path(out) / "model", rendezvous, record)
    rounded: dict[str, Any] = {}
    _sharded(Path(out) / "model", rendezvous, rounded, Precision.bfloat16)
    record["converted"] = rounded
    config = LearnerConfig(precision=Precision.float32, zero_stage=3, optim=OptimConfig())
    model = load_causal_lm(Path(out) / "model", precision=Precision.float32)
    with _peak(record, "started"):
        engine = zero.ZeroEngine(model, config, rendezvous, total_steps=1)
    with _peak(record, "exported"):
        weights = whole_weights(engine)
        if rank == 0:
            export_hf(engine.module, weights, Path(out) / "export", None, shard_bytes=SHARD)  # type: ignore[arg-type]
        deque(weights, maxlen=0)
    (Path(out) / f"record-{rank}.json").write_text(json.dumps(record))


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest) -> Path:
    made = tmp_path_factory.mktemp("memory")
    tiny_model(made / "tiny", tie=False)
    config = LlamaConfig(
        vocab_size=4096,
        hidden_size=1024,
        intermediate_size=3072,
        num_hidden_layers=3,
        num_attention_heads=8,
        num_key_value_heads=4,
        max_position_embeddings=64,
        tie_word_embeddings=False,
    )
    torch.manual_seed(0)
    LlamaForCausalLM(config).save_pretrained(made / "model")  # one file: the worst case for a mapping
    patch = pytest.MonkeyPatch()
    request.addfinalizer(patch.undo)
    patch.setenv("MALLOC_MMAP_THRESHOLD_", "131072")  # what is freed goes back at once, whatever was freed before
    run_ranks(_rank_main, RANKS, str(made), deadline_s=DEADLINE_S)
    return made


@pytest.mark.parametrize("rank", range(RANKS))
def test_a_rank_holds_its_part_and_a_weight(out: Path, rank: int) -> None:
    record = json.loads((out / f"record-{rank}.json").read_text())
    assert sum(tensor.nbytes for tensor in load_file(out / "model" / "model.safetensors").values()) == MODEL
    part = MODEL // RANKS
    assert record["loaded"] < NOISE
    assert part < record["sharded"] < part + 2 * LARGEST + NOISE < MODEL
    # In bfloat16, of a folder in float32: no more than half as much.
    assert record["converted"]["loaded"] < NOISE
    assert record["converted"]["sharded"] < part // 2 + 2 * LARGEST + NOISE < MODEL // 2
    # In training also a float32 master of the part and its gradient; moments come with the first step.
    assert record["started"] < 3 * part + 2 * LARGEST + NOISE < 3 * part + MODEL
    # Every rank gathers a weight; the first has a layer that comes beside one that is written, larger than a shard.
    gathered = 2 * LARGEST + NOISE
    assert record["exported"] < (2 * LAYER if rank == 0 else 0) + gathered < MODEL


def test_the_export_is_the_model(out: Path) -> None:
    before = load_file(out / "model" / "model.safetensors")
    files = sorted((out / "export").glob("*.safetensors"))
    after = {name: tensor for file in files for name, tensor in load_file(file).items()}
    assert len(files) > 5
    assert before.keys() == after.keys()
    assert all(torch.equal(before[name], after[name]) for name in before)
