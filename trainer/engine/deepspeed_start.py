"""What every process does before it hands a model to DeepSpeed, once the ranks have met."""

from __future__ import annotations

import logging
import sys

from raylign.trainer.engine.build_lock import free_build_locks

_MUON = "deepspeed.runtime.zero.muon.muon_optimizer"


def prepare_deepspeed() -> None:
    """DeepSpeed on the process group that there is, quiet, and without what it would compile for nothing."""
    import deepspeed
    from deepspeed.ops import __compatible_ops__
    from deepspeed.utils import logger

    free_build_locks()
    # Else `initialize` imports its Muon optimizer only to see that ours is another one, and that brings torch's whole
    # compiler along: 1.5 s. DeepSpeed takes an ImportError for "not there".
    sys.modules.setdefault(_MUON, None)  # type: ignore[arg-type]  # how Python marks a module as not to be imported
    logger.setLevel(logging.ERROR)  # skipped steps are reported by StepResult, typed inputs are not worth a warning
    # Else a shared-memory collective that only DeepSpeed's inference calls is compiled now, for up to two minutes.
    __compatible_ops__["deepspeed_shm_comm"] = False
    deepspeed.init_distributed(auto_mpi_discovery=False, dist_init_required=None, verbose=False)
