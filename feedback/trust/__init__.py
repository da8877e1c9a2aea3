"""How far a feedback log can be trusted: agreement, biases, noise, model ranking and coverage, each with intervals."""

from __future__ import annotations

from feedback.trust.intervals import Estimate
from feedback.trust.judgements import judgements
from feedback.trust.noise import rater_weights
from feedback.trust.summary import Trust, measure_trust

__all__ = ["Estimate", "Trust", "judgements", "measure_trust", "rater_weights"]
