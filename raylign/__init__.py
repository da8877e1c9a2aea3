"""Raylign: feedback logs in, a better model out.

A configuration is made by `compose`, explained by `plan` and trained by `train`; `load_metrics`, `load_samples` and
`load_summary` read what a run wrote. docs/python-api.md describes them. Names are loaded when they are first used, so
that `import raylign` costs nothing and needs no torch.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from raylign.app.launch.callbacks import StepRecord
    from raylign.conf.compose import Composed
    from raylign.conf.errors import RaylignError
    from raylign.interface import compose, load_metrics, load_samples, load_summary, plan, train

    __version__: str

__all__ = [
    "Composed",
    "RaylignError",
    "StepRecord",
    "__version__",
    "compose",
    "load_metrics",
    "load_samples",
    "load_summary",
    "plan",
    "train",
]

_ELSEWHERE = {
    "Composed": "raylign.conf.compose",
    "RaylignError": "raylign.conf.errors",
    "StepRecord": "raylign.app.launch.callbacks",
}


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("raylign")
    if name not in __all__:
        raise AttributeError(f"module 'raylign' has no attribute {name!r}; it has {', '.join(__all__)}")
    return getattr(import_module(_ELSEWHERE.get(name, "raylign.interface")), name)


def __dir__() -> list[str]:
    return [*globals(), *__all__]
