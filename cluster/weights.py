"""Moving published weights from the learner to the rollout workers.

Rank 0 of the learner puts each bucket, as the pieces of a safetensors file, into the Ray object store (one copy: the
store's own), which every worker of a node maps (rollout/bucket.py says how its engine comes to them). Nothing of a
broadcast (rollout/broadcast.py) goes through Ray.
"""

from __future__ import annotations

from collections.abc import Mapping

import ray
from raylign.rollout.bucket import encode_bucket
from torch import Tensor


def put_bucket(tensors: Mapping[str, Tensor]) -> ray.ObjectRef:
    """Learner side: put one bucket into the object store."""
    return ray.put(encode_bucket(tensors))
