"""Shared fixtures: models small enough to build in a second, without a download."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from hypothesis import settings

# A drawn case has no deadline: on a busy machine a quick one takes long, and that is not what a test is about.
settings.register_profile("raylign", deadline=None)
settings.load_profile("raylign")

# Before anything imports these libraries: no network from a test, and no usage reports.
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")  # else importing TRL sets ERROR, for the roles too
os.environ.setdefault("DS_ACCELERATOR", "cpu")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")


@pytest.fixture(scope="session")
def tiny_model_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random two-layer Llama, input and output embeddings tied. Read-only: copy it before changing it."""
    from raylign.data.sample_model import tiny_model

    return tiny_model(tmp_path_factory.mktemp("models") / "tiny-tied", tie=True)


@pytest.fixture(scope="session")
def tiny_model_untied_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same with a separate output head."""
    from raylign.data.sample_model import tiny_model

    return tiny_model(tmp_path_factory.mktemp("models") / "tiny-untied", tie=False)
