"""Profiles of single updates of a rank (`profile.steps`), as traces for Perfetto or chrome://tracing."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch.profiler import ProfilerActivity, profile

logger = logging.getLogger(__name__)


class UpdateProfiler:
    """Records the updates that are asked for, counted from 1 since this process started: the first ones compile and
    allocate, so the third is one to look at."""

    def __init__(self, updates: Sequence[int], folder: Path, name: str) -> None:
        """A trace is `folder`/`name`-update-N.json.gz."""
        self._updates, self._folder, self._name = frozenset(updates), folder, name
        self._count = 0

    @contextmanager
    def update(self) -> Iterator[None]:
        """Around one update. A trace that cannot be written costs the update nothing: it is logged."""
        self._count += 1
        if self._count not in self._updates:
            yield
            return
        activities = [ProfilerActivity.CPU, *([ProfilerActivity.CUDA] if torch.cuda.is_available() else [])]
        with profile(activities=activities, record_shapes=True, profile_memory=True) as recorded:
            yield
        path = self._folder / f"{self._name}-update-{self._count}.json.gz"
        try:
            path.parent.mkdir(exist_ok=True)
            recorded.export_chrome_trace(str(path))
        except (OSError, RuntimeError) as error:
            logger.warning("the profile of update %d was not written to %s: %s", self._count, path, error)
        else:
            logger.info("the profile of update %d is in %s", self._count, path)
