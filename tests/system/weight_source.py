"""A transformers model as trainer.loops.interfaces.WeightSource: what an engine that serves its weights is held to."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch
from raylign.cluster.weights import put_bucket
from raylign.rollout.fingerprint import dtype_name, tensor_digest
from raylign.rollout.interfaces import Canary, Ref, TensorSpec, WeightManifest
from transformers import AutoModelForCausalLM

TOKENS = (5, 9, 100, 33, 250, 7, 61, 300, 12, 45)


class ChangingModel:
    """In float32 with eager attention, which honours whatever a configuration says."""

    def __init__(self, folder: Path) -> None:
        self.model = AutoModelForCausalLM.from_pretrained(
            folder, dtype=torch.float32, attn_implementation="eager"
        ).eval()
        self._generator = torch.Generator().manual_seed(5)

    def train(self) -> None:
        """Every weight changes by about a twentieth, each in its own way."""
        with torch.no_grad():
            for parameter in self.model.parameters():
                noise = torch.randn(parameter.shape, generator=self._generator)
                parameter.add_(0.05 * parameter.abs().mean() * noise)

    def logprobs(self, tokens: Sequence[int], temperature: float = 1.0) -> list[float]:
        """Of every token after the first."""
        with torch.no_grad():
            logits = self.model(torch.tensor([list(tokens)]), use_cache=False).logits[0, :-1].float() / temperature
        found: list[float] = logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()
        return found

    async def manifest(self, version: int, *, adapters_only: bool = False) -> WeightManifest:
        """Each tensor as it is now."""
        named = list(self.model.named_parameters())
        specs = tuple(TensorSpec(n, tuple(p.shape), dtype_name(p.dtype), tensor_digest(p)) for n, p in named)
        return WeightManifest(version, specs, self.model.config.tie_word_embeddings)

    async def canaries(self) -> list[Canary]:
        """One."""
        return [Canary(TOKENS, tuple(self.logprobs(TOKENS)))]

    async def buckets(self) -> list[Ref]:
        """Every third tensor, so that the parts of a fused layer come apart."""
        items = [(name, parameter.detach()) for name, parameter in self.model.named_parameters()]
        return [Ref(put_bucket(dict(items[i::3]))) for i in range(3)]
