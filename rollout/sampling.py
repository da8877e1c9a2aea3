"""Seeds of single samples: the same sample key gives the same draw wherever it runs. Standard library only."""

from __future__ import annotations

import hashlib

from raylign.data.types import SampleKey


def sample_seed(seed: int, key: SampleKey) -> int:
    """63-bit seed of one sample, independent between keys and stable over processes and Python versions."""
    text = f"{seed}\x00{key.epoch}\x00{key.prompt_id}\x00{key.k}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
