"""Memory of tensors that waits on the host while something else needs the device. Pure torch.

The storage is emptied and filled again in place, so every view of it stays a view: DeepSpeed keeps many into its flat
buffers, and its own `offload_states` (0.19.8) takes no other optimizer than its fused Adam under ZeRO-3.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor, UntypedStorage


class OnHost:
    """Storages that are away, each with its bytes in host memory."""

    def __init__(self) -> None:
        self._away: dict[int, tuple[UntypedStorage, Tensor]] = {}

    def __bool__(self) -> bool:
        return bool(self._away)

    def take(self, tensors: Iterable[Tensor], device: torch.device) -> int:
        """Move the storages that lie on `device` to the host; returns the bytes freed there."""
        for tensor in tensors:
            storage = tensor.untyped_storage()
            if storage._cdata in self._away or storage.device != device or not storage.nbytes():
                continue
            host = torch.empty(storage.nbytes(), dtype=torch.uint8, pin_memory=device.type == "cuda")
            host.copy_(_bytes_of(storage))
            storage.resize_(0)
            self._away[storage._cdata] = (storage, host)
        if device.type == "cuda":
            torch.cuda.empty_cache()  # torch keeps freed blocks, and the engine is another process
        return sum(host.numel() for _, host in self._away.values())

    def give_back(self) -> None:
        """Everything where it was, bit for bit."""
        for storage, host in self._away.values():
            storage.resize_(host.numel())
            _bytes_of(storage).copy_(host)
        self._away.clear()

    def read(self, tensor: Tensor) -> Tensor:
        """The tensor, from the host where it is away."""
        away = self._away.get(tensor.untyped_storage()._cdata)
        if away is None:
            return tensor.detach()
        view = torch.empty(0, dtype=tensor.dtype)
        return view.set_(away[1].untyped_storage(), tensor.storage_offset(), tensor.size(), tensor.stride())


def _bytes_of(storage: UntypedStorage) -> Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)
