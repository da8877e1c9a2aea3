"""What an update made of a GPU: its share of the peak arithmetic, tokens a second, and the most memory it held."""

from __future__ import annotations

import torch
from raylign.trainer.engine.base import Engine
from raylign.trainer.memory_plan import shape_of
from raylign.trainer.time_plan import card_named, training_flops


def hardware_figures(engine: Engine, *, tokens: float, seconds: float) -> dict[str, float]:
    """Figures of one update over `tokens` of all ranks; nothing on a CPU.

    `mfu` counts 6 operations a parameter and token (4 with adapters) whatever was computed again, and is left out for a
    card whose peak is not known. The peak of memory is this rank's since the last update.
    """
    if engine.device.type != "cuda" or seconds <= 0:
        return {}
    figures = {
        "tokens_per_s_per_gpu": tokens / seconds / engine.world_size,
        "memory_peak_gb": torch.cuda.max_memory_allocated(engine.device) / 1e9,
    }
    torch.cuda.reset_peak_memory_stats(engine.device)
    card = card_named(torch.cuda.get_device_name(engine.device))
    if card is not None:
        shape = shape_of(engine.module.get_submodule("hf"), scalar=False)
        work = training_flops(shape, tokens, recompute=False)
        figures["mfu"] = work / (seconds * engine.world_size * card.flops)
    return figures
