"""What every process does before it hands a model to DeepSpeed, once the ranks have met."""

from __future__ import annotations

import importlib
import logging
from collections.abc import Callable
from typing import Any

from raylign.trainer.engine.build_lock import free_build_locks


def prepare_deepspeed() -> None:
    """DeepSpeed on the process group that there is, quiet, and without what it would compile for nothing."""
    import deepspeed
    from deepspeed.ops import __compatible_ops__
    from deepspeed.utils import logger

    free_build_locks()
    _import_muon_uncompiled()
    logger.setLevel(logging.ERROR)  # skipped steps are reported by StepResult, typed inputs are not worth a warning
    # Else a shared-memory collective that only DeepSpeed's inference calls is compiled now, for up to two minutes.
    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, dist_init_required=None, verbose=False)


def _import_muon_uncompiled() -> None:
    """DeepSpeed's Muon, which it asks in `initialize` and in each step whether our AdamW is one.

    Its functions are marked for compilation when they are imported, which imports torch's whole compiler: more than a
    second of every learner's start. We never call them.
    """
    from deepspeed.runtime import compiler

    def as_it_is(*_: Any, **__: Any) -> Callable[[Any], Any]:
        return lambda function: function

    compile_, compiler.compile = compiler.compile, as_it_is
    try:
        importlib.import_module("deepspeed.runtime.zero.muon.muon_optimizer")
    finally:
        compiler.compile = compile_
