"""What the ranks of an engine found, as one report. Standard library only."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from raylign.rollout.interfaces import Canary, VerifyReport


def canary_gap(canaries: Sequence[Canary], scored: Sequence[Sequence[float]]) -> float:
    """Mean absolute difference, nats; infinite when one side has a number that is not finite.

    Not the largest one: between two correct bfloat16 implementations of SmolLM2-135M single unlikely tokens differ by
    0.5 nats while the mean is 0.06; weights that are 1 % off move the mean to 0.11 and the largest to 0.9.
    """
    gaps = [abs(a - b) for c, row in zip(canaries, scored, strict=True) for a, b in zip(c.logprobs, row, strict=True)]
    mean = sum(gaps) / len(gaps) if gaps else 0.0
    return mean if math.isfinite(mean) else math.inf


def combine_ranks(version: int, ranks: Sequence[Sequence[Sequence]], gap: float) -> VerifyReport:
    """One report of all tensor-parallel ranks, each ([[name, digest], ...], [mismatched], [missing]).

    With several ranks a tensor's digest is the digest of its ranks' digests, in rank order.
    """
    per_name: dict[str, list[str]] = {}
    for digests, _, _ in ranks:
        for name, digest in digests:
            per_name.setdefault(name, []).append(digest)
    joined = {
        name: parts[0] if len(parts) == 1 else hashlib.blake2b("".join(parts).encode(), digest_size=16).hexdigest()
        for name, parts in per_name.items()
    }
    mismatched = sorted({name for _, names, _ in ranks for name in names})
    missing = sorted({name for _, _, names in ranks for name in names})
    return VerifyReport(version, joined, tuple(mismatched), tuple(missing), gap)
