"""Python's collector of cycles, kept out of the way of imports."""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def collector_paused() -> Iterator[None]:
    """While large libraries are imported, nothing is looked for among their objects, and never again afterwards.

    torch, transformers and vLLM make a million objects that stay. The collector walks all of them again and again while
    they are made, which is a seventh of an import's time, and in every full collection after it.
    """
    was_on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        gc.freeze()
        if was_on:
            gc.enable()
