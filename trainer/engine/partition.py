"""ZeRO-3's parts of a loaded model, taken weight by weight: no rank has memory of its own for the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import nn


def partition(module: nn.Module, settings: dict[str, Any], dtype: torch.dtype) -> None:
    """Leave this rank its part of every weight, before `deepspeed.initialize` moves anything. Collective.

    `settings`: DeepSpeed's own; `dtype`: of the parts, whatever the weights are stored in. Beside the parts one whole
    weight is held at a time.
    """
    import deepspeed

    deepspeed.zero.Init(module=_OneByOne(module, dtype), config_dict_or_path=settings)


class _OneByOne(nn.Module):
    """The module, whose weights leave their file's mapping, and its format, one at a time.

    `zero.Init` broadcasts rank 0's weight into that of the others. Where that is a page of a mapped file (it is on a
    CPU), the page becomes the process's own and stays so until nothing of the file is used any more: a whole copy.
    """

    def __init__(self, whole: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self.whole, self._dtype = whole, dtype

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Each in memory of its own from the moment that it is asked for."""
        for parameter in self.whole.parameters(recurse):
            parameter.data = parameter.data.to(self._dtype, copy=True)
            yield parameter
