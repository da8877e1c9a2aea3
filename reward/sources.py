"""What the scorers of a run need besides its settings: read where the run starts, and sent along from there."""

from __future__ import annotations

from dataclasses import dataclass

from raylign.reward.functions import FunctionSource


@dataclass(frozen=True, slots=True)
class RewardSources:
    """Everything that lies in files of the driver's."""

    functions: tuple[FunctionSource, ...] = ()  # one for each of reward.functions
    policy_model: str = ""  # whose tokenizer writes the text that OpenRLHF calls a query
