"""How a run ends other than well: each class is one exit code. Standard library only.

The message is written for the person who started the run: key, value, fix. No traceback is shown for these.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class RaylignError(Exception):
    """Base of everything that ends a run with sentences instead of a traceback."""

    exit_code: ClassVar[int] = 70

    def __init__(self, problems: Sequence[str] | str = ()) -> None:
        self.problems: tuple[str, ...] = (problems,) if isinstance(problems, str) else tuple(problems)
        super().__init__("\n".join(self.problems))


class UserError(RaylignError):
    """Configuration, data or surroundings refused."""

    exit_code = 2


class ConfigError(UserError):
    """All problems of a configuration at once."""


class DataError(UserError):
    """Data that cannot be trained on: what, where, how many, the first examples."""


class ModelLoadError(UserError):
    """A folder that is not the model it should be."""


class ClusterError(UserError):
    """The cluster cannot hold the run: demand against supply."""


class RunFailed(RaylignError):
    """An invariant broke: role, step and cause."""


class Stopped(RaylignError):
    """Ended by request or by loss of the cluster; resumable."""

    exit_code = 75


class Preempted(RaylignError):
    """Ended on a signal after everything was saved."""

    exit_code = 76
