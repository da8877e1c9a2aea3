"""What the ranks of an engine found, as one report."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Sequence

from raylign.rollout.fingerprint import sum_of_parts
from raylign.rollout.interfaces import Canary, VerifyReport
from raylign.rollout.weight_transaction import ServedDigest


def canary_gap(canaries: Sequence[Canary], scored: Sequence[Sequence[float]]) -> float:
    """Mean absolute difference, nats; infinite when one side has a number that is not finite.

    Not the largest one: between two correct bfloat16 implementations of SmolLM2-135M single unlikely tokens differ by
    0.5 nats while the mean is 0.06; weights that are 1 % off move the mean to 0.11 and the largest to 0.9.
    """
    gaps = [abs(a - b) for c, row in zip(canaries, scored, strict=True) for a, b in zip(c.logprobs, row, strict=True)]
    mean = sum(gaps) / len(gaps) if gaps else 0.0
    return mean if math.isfinite(mean) else math.inf


def combine_ranks(version: int, ranks: Sequence[Sequence[Sequence]], gap: float) -> VerifyReport:
    """One report of all tensor-parallel ranks, each ([[name, digest, where, wanted], ...], [mismatched], [missing]).

    Additive digests that no rank could compare are added up over the parts (several ranks may serve the same one) and
    compared here. Of other digests of several ranks, the tensor's is the digest of theirs, in rank order.
    """
    per_name: dict[str, list[ServedDigest]] = {}
    for digests, _, _ in ranks:
        for row in digests:
            per_name.setdefault(row[0], []).append(ServedDigest(*row))
    joined = {name: _joined(parts) for name, parts in per_name.items()}
    wrong = {name for name, parts in per_name.items() if parts[0].wanted and joined[name] != parts[0].wanted}
    mismatched = sorted({name for _, names, _ in ranks for name in names} | wrong)
    missing = sorted({name for _, _, names in ranks for name in names})
    return VerifyReport(version, joined, tuple(mismatched), tuple(missing), gap)


def _joined(parts: Sequence[ServedDigest]) -> str:
    """One digest of a tensor's parts; "" when ranks serve the same part differently."""
    if parts[0].wanted:
        by_place = {part.where: part.digest for part in parts}
        return sum_of_parts(list(by_place.values())) if all(p.digest == by_place[p.where] for p in parts) else ""
    if len(parts) == 1:
        return parts[0].digest
    return hashlib.blake2b("".join(part.digest for part in parts).encode(), digest_size=16).hexdigest()
