"""ZeRO-3's parts of a loaded model, taken weight by weight: no rank has memory of its own for the whole model."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn


def partition(module: nn.Module, settings: dict[str, Any]) -> None:
    """Leave this rank its part of every weight, before `deepspeed.initialize` moves anything. Collective.

    `settings`: DeepSpeed's own. Beside the parts one whole weight is held at a time.
    """
    import deepspeed

    deepspeed.zero.Init(module=_OneByOne(module), config_dict_or_path=settings)


class _OneByOne(nn.Module):
    """The module, whose weights leave their file's mapping one at a time.

    `zero.Init` broadcasts rank 0's weight into that of the others. Where that is a page of a mapped file (it is on a
    CPU), the page becomes the process's own and stays so until nothing of the file is used any more: a whole copy.
    """

    def __init__(self, whole: nn.Module) -> None:
        super().__init__()
        self.whole = whole

    def parameters(self, recurse: bool = True) -> Iterator[nn.Parameter]:
        """Each in memory of its own from the moment that it is asked for."""
        for parameter in self.whole.parameters(recurse):
            parameter.data = parameter.data.clone()
            yield parameter
