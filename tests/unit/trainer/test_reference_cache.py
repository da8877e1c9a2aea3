"""Cached reference log-probs: computed right, used only where they belong, refused by name where they do not."""

from __future__ import annotations

import asyncio
import json
import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from raylign.app.launch.reference import hold_keys
from raylign.conf.errors import DataError
from raylign.conf.schema import OptimConfig, Precision
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import TokenBatch
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.learner import Learner
from raylign.trainer.models.loading import load_causal_lm
from raylign.trainer.reference_cache import CacheKey, cache_file, cache_key, read_cache, write_cache
from raylign.trainer.workers.sequence_scores import score_sequences
from safetensors.torch import load_file, save_file
from torch import Tensor

SEQUENCES = [((5 + i, 9, 20 + 3 * i, 7, 30 + i)[: 3 + i % 3], [False, *[True] * (2 + i % 3)]) for i in range(9)]
KEY = CacheKey("m" * 64, "float32", "d" * 64, "t" * 64, "3")


class Replicas:
    """A scorer of several ranks that are all this process."""

    def __init__(self, folder: Path) -> None:
        model = load_causal_lm(folder, precision=Precision.float32)
        self._learner = Learner(TorchEngine(model, OptimConfig(), total_steps=0))
        self.rounds = 0

    async def sequence_logprobs(self, batches: Sequence[Sequence[TokenBatch]]) -> list[list[Tensor]]:
        self.rounds += 1
        return [self._learner.sequence_logprobs(rank) for rank in batches]


def test_scores_are_each_sequences_own_whoever_computes_them(tiny_model_dir: Path) -> None:
    model = load_causal_lm(tiny_model_dir, precision=Precision.float32)
    alone = []
    for ids, mask in SEQUENCES:
        tokens = TokenBatch.from_sequences([ids], [mask])
        alone.append(float(model(tokens, temperature=1.0).logprobs.sum()))
    assert len({round(score, 3) for score in alone}) == len(alone), "scores that are alike would hide a mix-up"
    for ranks, budget in ((1, 1000), (2, 6), (3, 1)):
        done: list[int] = []
        scorer = Replicas(tiny_model_dir)
        scores = asyncio.run(
            score_sequences(SEQUENCES, scorer, num_ranks=ranks, micro_batch_tokens=budget, on_round=done.append)
        )
        assert scores.tolist() == pytest.approx(alone, rel=1e-5) and done[-1] == len(SEQUENCES)
        assert scorer.rounds == len(done)


def test_the_key_follows_weights_tokens_masks_tokenizer_and_precision(tiny_model_dir: Path, tmp_path: Path) -> None:
    tokenizer = load_tokenizer(str(tiny_model_dir))

    def key(
        model: Path = tiny_model_dir, sequences: object = SEQUENCES, precision: Precision = Precision.float32
    ) -> str:
        return cache_key(str(model), precision, sequences, tokenizer).name  # type: ignore[arg-type]

    copied = tmp_path / "copied"
    shutil.copytree(tiny_model_dir, copied)
    first = key()
    assert key(copied) == first, "a copy is the same model"
    weights = load_file(copied / "model.safetensors")
    weights["model.norm.weight"][0] += 1
    save_file(weights, copied / "model.safetensors", metadata={"format": "pt"})
    remasked = [*SEQUENCES[:-1], (SEQUENCES[-1][0], [False] * len(SEQUENCES[-1][1]))]
    others = [key(copied), key(sequences=SEQUENCES[1:]), key(sequences=remasked), key(precision=Precision.bfloat16)]
    tokenizer.chat_template = "other"
    assert len({first, *others, key()}) == 6


def test_what_was_written_is_read_and_nothing_else(tmp_path: Path) -> None:
    logps = torch.tensor([-1.5, -2.5, -3.5])
    assert read_cache(tmp_path, KEY) is None
    write_cache(tmp_path, KEY, logps)
    found = read_cache(tmp_path, KEY)
    assert found is not None and torch.equal(found, logps)
    other = replace(KEY, model="n" * 64)
    shutil.copy(cache_file(tmp_path, KEY), cache_file(tmp_path, other))
    with pytest.raises(
        DataError, match=rf"does not belong to key {other.name}: model is m{{12}} there and n{{12}} here"
    ):
        read_cache(tmp_path, other)


def test_damaged_numbers_are_refused(tmp_path: Path) -> None:
    write_cache(tmp_path, KEY, torch.tensor([-1.5, -2.5, -3.5]))
    file = cache_file(tmp_path, KEY)
    content = bytearray(file.read_bytes())
    content[-1] ^= 1
    file.write_bytes(bytes(content))
    with pytest.raises(DataError, match="have changed since they were written; remove the file"):
        read_cache(tmp_path, KEY)
    file.write_bytes(b"no such format")
    with pytest.raises(DataError, match="cannot be read"):
        read_cache(tmp_path, KEY)


def test_a_resumed_run_holds_to_the_key_it_began_with(tmp_path: Path) -> None:
    record = tmp_path / "reference.json"
    hold_keys(record, {"train": KEY})
    hold_keys(record, {"train": KEY, "math": KEY})
    changed = replace(KEY, tokenizer="u" * 64)
    with pytest.raises(
        DataError, match=rf"began with key {KEY.name} and would continue with {changed.name}: tokenizer is"
    ):
        hold_keys(record, {"train": changed, "math": KEY})
    assert set(json.loads(record.read_text())) == {"train", "math"}
