"""The model ranking and the slices, as lists of bars."""

from __future__ import annotations

from dataclasses import dataclass

from raylign.feedback.report.charts import SHARES, Scale, bar, interval, share_words
from raylign.feedback.report.incoming import Row
from raylign.feedback.trust.coverage import Coverage
from raylign.feedback.trust.ranking import Control, Ranking
from raylign.feedback.trust.summary import Trust
from raylign.pages.numbers import percent, short

_MOST_MODELS = 20
_MOST_SLICES = 12
_COLUMN_WORDS = {"persona": "Kind of user", "topic": "Topic", "locale": "Language and region", "surface": "Place"}


@dataclass(frozen=True, slots=True)
class Table:
    """One ranking."""

    heading: str
    note: str
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Slices:
    """One column's values."""

    heading: str
    note: str
    rows: tuple[Row, ...]


def tables(trust: Trust) -> tuple[Table, ...]:
    """As people chose, and at equal length and side. None where no two models were compared."""
    if trust.ranking is None or trust.ranking_controlled is None:
        return ()
    effects = {effect.control: effect.nats for effect in trust.ranking_controlled.effects}
    length = effects[Control.LENGTH]
    pull = "longer answers win more" if length.low > 0 else "shorter answers win more" if length.high < 0 else ""
    finding = (
        f"At equal quality {pull}; this table takes that out." if pull else "Length makes no clear difference here."
    )
    return (
        Table("As people chose", f"{trust.ranking.judgements:,} judgements; a tie counts half.", _rows(trust.ranking)),
        Table("If all answers were equally long", finding, _rows(trust.ranking_controlled)),
    )


def _rows(ranking: Ranking) -> tuple[Row, ...]:
    rows = []
    for model in ranking.models[:_MOST_MODELS]:
        share = model.win_share
        text = share_words(share.low, share.value, share.high)
        place = (
            f"{model.rank_best}"
            if model.rank_best == model.rank_worst
            else f"{model.rank_best}\u2013{model.rank_worst}"
        )
        chart = interval(share.low, share.value, share.high, SHARES, label=f"{model.model}: {text}")
        rows.append(Row(model.model, text, chart, f"place {place} · {model.judgements:,} judgements"))
    return tuple(rows)


def slices(trust: Trust) -> tuple[Slices, ...]:
    """Who spoke, by persona, topic, locale and surface; the mark is the share after balancing."""
    return tuple(_slices(found) for found in trust.coverage if len(found.slices) > 1)


def _slices(found: Coverage) -> Slices:
    shown = found.slices[:_MOST_SLICES]
    top = max(max(s.share, s.balanced_share) for s in shown)
    rows = []
    for part in shown:
        chart = bar(part.share, Scale(0.0, top, part.balanced_share), label=f"{part.name}: {percent(part.share)}")
        people = f"{part.people:,} {'person' if part.people == 1 else 'people'}"
        note = f"{part.events:,} pieces of feedback · {people} · weight {short(part.balancing_weight, 2)} to balance"
        rows.append(Row(part.name, percent(part.share), chart, note))
    left = len(found.slices) - len(shown)
    note = f"As uneven as {short(found.effective_slices, 2)} equal groups would be."
    note += f" {left:,} smaller ones are not shown." if left else ""
    return Slices(_COLUMN_WORDS[found.column], note, tuple(rows))
