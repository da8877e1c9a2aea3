"""Everything the trust statistics say about one log."""

from __future__ import annotations

from dataclasses import dataclass

import polars as pl
from raylign.feedback.events import EventKind
from raylign.feedback.trust.agreement import Agreement, agreement
from raylign.feedback.trust.annotators import Annotators, annotators
from raylign.feedback.trust.coverage import Concentration, Coverage, concentration, coverage
from raylign.feedback.trust.judgements import judgements
from raylign.feedback.trust.length import LengthBias, length_bias
from raylign.feedback.trust.noise import Noise, noise
from raylign.feedback.trust.position import PositionBias, position_bias
from raylign.feedback.trust.ranking import Control, Ranking, rank_models


@dataclass(frozen=True, slots=True)
class Trust:
    """All statistics of one log; each is empty or None where the log says nothing about it."""

    events: int
    judgements: int
    ties: int
    corrections: int
    agreement: Agreement
    position: PositionBias
    length: LengthBias
    annotators: Annotators
    noise: Noise
    ranking: Ranking | None
    ranking_controlled: Ranking | None  # at equal length and position
    coverage: tuple[Coverage, ...]
    concentration: Concentration | None


def measure_trust(events: pl.DataFrame) -> Trust:
    """All statistics of `events` (EVENT_SCHEMA). Pure: the same events in any order give the same figures."""
    events = events.sort("time", "event_id")
    judged = judgements(events)
    agreed = agreement(judged)
    return Trust(
        events=events.height,
        judgements=judged.height,
        ties=int((judged["score_a"] == 0.5).sum()),
        corrections=int((events["kind"] == EventKind.CORRECTION.value).sum()),
        agreement=agreed,
        position=position_bias(judged),
        length=length_bias(judged),
        annotators=annotators(events, judged),
        noise=noise(judged, agreed),
        ranking=rank_models(judged),
        ranking_controlled=rank_models(judged, (Control.LENGTH, Control.POSITION)),
        coverage=coverage(events),
        concentration=concentration(events),
    )
