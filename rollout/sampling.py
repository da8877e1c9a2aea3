"""Seeds of single samples: the same sample key gives the same draw wherever it runs. Standard library only."""

from __future__ import annotations

import hashlib

from raylign.data.types import SampleKey


def sample_seed(seed: int, key: SampleKey, turn: int = 0) -> int:
    """63-bit seed of a sample's turn, independent between keys and turns, stable over processes and Python versions."""
    later = f"\x00{turn}" if turn else ""
    text = f"{seed}\x00{key.epoch}\x00{key.prompt_id}\x00{key.k}{later}".encode()
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big") >> 1
