"""How far a feedback log can be trusted: agreement, biases, noise, model ranking and coverage, each with intervals."""

from __future__ import annotations

from raylign.feedback.trust.intervals import Estimate
from raylign.feedback.trust.judgements import judgements
from raylign.feedback.trust.noise import rater_weights
from raylign.feedback.trust.summary import Trust, measure_trust

__all__ = ["Estimate", "Trust", "judgements", "measure_trust", "rater_weights"]
