"""What the scorers of a run need besides its settings: read where the run starts, and sent along from there."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date

from raylign.reward.functions import FunctionSource
from raylign.reward.judge import Rubric


@dataclass(frozen=True, slots=True, kw_only=True)
class RewardSources:
    """Everything that lies in files of the driver's."""

    functions: tuple[FunctionSource, ...] = ()  # one for each of reward.functions
    rubrics: tuple[Rubric, ...] = ()  # one for each of reward.judges
    judged_folder: str = ""  # where judges' replies are kept; "": nowhere
    today: date | None = None  # what chat templates print; None: this day
    policy_model: str = ""  # whose tokenizer writes the text that OpenRLHF calls a query
    environment_weight: float | None = None  # of what an environment gives, in the weighted sum; None: there is none
