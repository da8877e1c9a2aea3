"""Each comparison of the load-time check, by a fault that only it can see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from raylign.conf.errors import ModelLoadError
from raylign.conf.schema import Precision
from raylign.trainer.models.loading import load_causal_lm
from raylign.trainer.models.packing_check import check_model
from torch import Tensor, nn
from torch.nn import functional as F

LONG = 12
"""Packed tokens of a batch with a longer sequence; no other pass of the check has so many."""


class Faulty(nn.Module):
    """In place of a model's last norm."""

    def __init__(self, norm: nn.Module, fault: Callable[[Faulty, Tensor], Tensor]) -> None:
        super().__init__()
        self.norm, self.fault, self.longest = norm, fault, 0

    def forward(self, hidden: Tensor) -> Tensor:
        return self.norm(self.fault(self, hidden))


def _drops(module: Faulty, hidden: Tensor) -> Tensor:
    return F.dropout(hidden, 0.1, module.training)


def _trains_otherwise(module: Faulty, hidden: Tensor) -> Tensor:
    return hidden + 0.5 if module.training else hidden


def _looks_at_the_longest(module: Faulty, hidden: Tensor) -> Tensor:
    return hidden + 0.5 if hidden.shape[-2] > LONG else hidden


def _remembers_the_longest(module: Faulty, hidden: Tensor) -> Tensor:
    before, module.longest = module.longest, max(module.longest, hidden.shape[-2])
    return hidden + 0.5 if before > LONG else hidden


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (_drops, "two passes in training mode differ"),
        (_trains_otherwise, "training and evaluation mode differ"),
        (_looks_at_the_longest, "a longer sequence in the batch changes another one's states"),
        (_remembers_the_longest, "a forward pass changes the next one"),
    ],
)
def test_what_makes_states_more_than_weights_and_own_sequence_is_refused_by_its_reason(
    fault: Callable[[Faulty, Tensor], Tensor], reason: str, tiny_model_dir: Path
) -> None:
    hf = load_causal_lm(tiny_model_dir, precision=Precision.float32).hf
    assert check_model(hf, tiny_model_dir, with_head=False) == 1
    hf.model.norm = Faulty(hf.model.norm, fault)
    with torch.random.fork_rng(devices=[]), pytest.raises(ModelLoadError, match=reason):
        check_model(hf, tiny_model_dir, with_head=False)
