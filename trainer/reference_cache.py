"""The reference's log-probs of a data set on disk: computed once, and used again only where they belong.

One file a set, named by its key. The key says which model (its weights, byte by byte), at which precision, which tokens
and which tokenizer and template; the file carries its parts and a hash of its numbers, and all are verified on use.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from raylign.conf.errors import DataError
from raylign.conf.schema import Precision
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedTokenizerBase

_FORMAT = "2"
_LOGPS = "logps"
_CHUNK = 1 << 20


@dataclass(frozen=True, slots=True)
class CacheKey:
    """What the log-probs depend on; each part is a hash or a word."""

    model: str
    precision: str
    data: str
    tokenizer: str
    num_sequences: str

    @property
    def name(self) -> str:
        """The key in 16 hex digits."""
        parts = json.dumps([_FORMAT, asdict(self)], sort_keys=True)
        return hashlib.sha256(parts.encode()).hexdigest()[:16]

    def differences(self, other: CacheKey) -> list[str]:
        """Sentences' parts for what differs: `model is 12ab... there and 34cd... here`."""
        mine, theirs = asdict(self), asdict(other)
        return [
            f"{part} is {theirs[part][:12]} there and {mine[part][:12]} here"
            for part in mine
            if mine[part] != theirs[part]
        ]


def cache_key(
    model: str,
    precision: Precision,
    sequences: Sequence[tuple[Sequence[int], Sequence[bool]]],
    tokenizer: PreTrainedTokenizerBase,
) -> CacheKey:
    """The key of a data set's log-probs. Reads the model's weights whole."""
    data = hashlib.sha256()
    for ids, mask in sequences:
        data.update(len(ids).to_bytes(8, "little"))
        data.update(np.asarray(ids, dtype=np.int32).tobytes())
        data.update(np.asarray(mask, dtype=np.bool_).tobytes())
    words = [tokenizer.backend_tokenizer.to_str(), str(tokenizer.chat_template)]
    return CacheKey(
        model=model_digest(Path(model)),
        precision=precision.value,
        data=data.hexdigest(),
        tokenizer=hashlib.sha256("\0".join(words).encode("utf-8", "surrogatepass")).hexdigest(),
        num_sequences=str(len(sequences)),
    )


def model_digest(folder: Path) -> str:
    """sha256 over a model's configuration and weights, their content and names."""
    total = hashlib.sha256()
    for file in sorted([folder / "config.json", *folder.glob("*.safetensors")]):
        total.update(f"{file.name}\0{file.stat().st_size}\0".encode())
        with file.open("rb") as opened:
            while chunk := opened.read(_CHUNK):
                total.update(chunk)
    return total.hexdigest()


def cache_file(folder: Path, key: CacheKey) -> Path:
    """Where the log-probs of `key` lie."""
    return folder / f"{key.name}.safetensors"


def write_cache(folder: Path, key: CacheKey, logps: Tensor) -> None:
    """Keep `logps` [sequences] float64; the file is there whole or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    target = cache_file(folder, key)
    staging = target.with_name(f".{target.name}.{os.getpid()}")
    save_file(
        {_LOGPS: logps.contiguous()}, staging, metadata={**asdict(key), "format": _FORMAT, "sha256": _hash(logps)}
    )
    staging.replace(target)


def read_cache(folder: Path, key: CacheKey) -> Tensor | None:
    """The log-probs of `key`, verified; None when there are none yet.

    Raises DataError naming the file and what does not match: another key's content, or damaged numbers.
    """
    file = cache_file(folder, key)
    if not file.is_file():
        return None
    remedy = "remove the file to have it computed anew"
    try:
        with safe_open(file, framework="pt") as opened:
            found = dict(opened.metadata() or {})
            logps: Tensor = opened.get_tensor(_LOGPS)
    except (SafetensorError, OSError, KeyError) as error:
        raise DataError(f"reference.cache: {file} cannot be read ({error}); {remedy}.") from error
    parts = {name: found.get(name, "missing") for name in asdict(key)}
    differences = key.differences(CacheKey(**parts))
    if differences:
        raise DataError(
            f"reference.cache: {file} does not belong to key {key.name}: {'; '.join(differences)}; {remedy}."
        )
    if found.get("sha256") != _hash(logps) or logps.numel() != int(key.num_sequences) or not logps.isfinite().all():
        raise DataError(f"reference.cache: the numbers in {file} have changed since they were written; {remedy}.")
    return logps


def _hash(logps: Tensor) -> str:
    return hashlib.sha256(logps.to(torch.float64).numpy().tobytes()).hexdigest()
