"""The page's first two sentences, and what to collect next: rules over the figures, no adjectives of our own."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

from raylign.feedback.build_result import BuildResult
from raylign.feedback.report.incoming import Incoming
from raylign.feedback.trust.ranking import Ranking
from raylign.feedback.trust.summary import Trust
from raylign.pages.numbers import percent
from raylign.records.report.verdict import Remark, Tone

_SMALL_SLICE, _SMALL_COUNT = 0.05, 100  # a slice under both says little about its people
_MOST_ADVICE = 7
_PRODUCED_WORDS = {"sft": "answers to imitate", "pairs": "preference pairs", "kto": "single judged answers",
                   "teacher": "prompts for a teacher"}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Verdict:
    """Everything above the sections."""

    headline: str  # what came in and what it became
    second: str  # how far it can be trusted
    tone: Tone
    remarks: tuple[Remark, ...]


def judge(trust: Trust, came: Incoming, result: BuildResult | None) -> Verdict:
    """The verdict on a log, and on the build made from it where there is one."""
    second, tone = _trusted(trust)
    headline = _became(came, result)
    remarks = [Remark(Tone.WARNING, text) for text in result.warnings if text != headline] if result else []
    remarks += _remarks(trust)
    if tone is Tone.GOOD and any(remark.tone is Tone.WARNING for remark in remarks):
        tone = Tone.PLAIN
    return Verdict(headline, second, tone, tuple(remarks))


def _became(came: Incoming, result: BuildResult | None) -> str:
    if result is None:
        asked = f" by {came.people:,} people" if came.people else ""
        return (
            f"{came.events:,} pieces of feedback{asked} can be read." if came.events else "This log holds no feedback."
        )
    totals = [(sum(p.rows for p in result.produced if p.kind == kind), text) for kind, text in _PRODUCED_WORDS.items()]
    made = [f"{rows:,} {text}" for rows, text in totals if rows]
    used = f"{result.events_used:,} of {result.rows_in:,} pieces of feedback"
    if not made and result.warnings:
        return result.warnings[0]
    if not made:
        return f"None of the {result.rows_in:,} pieces of feedback could be used for training."
    return f"{used} became training data: {_listed(made)}."


def _trusted(trust: Trust) -> tuple[str, Tone]:
    if not trust.judgements:
        return (
            "There is no side-by-side choice in it, so nothing can be said about agreement, bias or models.",
            Tone.PLAIN,
        )
    agree = trust.agreement.agree_decided
    if agree is None:
        return "How far it can be trusted is not known, because no pair was judged by two people.", Tone.WARNING
    share = f"two people agree on {percent(agree.value)} of the pairs, where coins would on 50\u00a0%"
    if agree.low >= 0.7:
        return f"The choices can be trusted: {share}.", Tone.GOOD
    if agree.low > 0.55:
        return f"The choices are usable but noisy: {share}.", Tone.PLAIN
    if agree.high >= 0.7:
        few = "1 pair was" if agree.count == 1 else f"{agree.count:,} pairs were"
        return f"How far it can be trusted is not known yet: only {few} judged by two people.", Tone.WARNING
    return f"The choices are close to chance: {share}.", Tone.WARNING


def _remarks(trust: Trust) -> list[Remark]:
    found = []
    flagged, position = trust.annotators.flagged, trust.position
    if flagged:
        events = sum(person.events for person in flagged)
        who = "1 person judges" if len(flagged) == 1 else f"{len(flagged):,} people judge"
        found.append(
            Remark(Tone.WARNING, f"{who} in a way that should be looked at; {events:,} pieces of feedback are theirs.")
        )
    elif trust.annotators.with_enough:
        found.append(
            Remark(
                Tone.GOOD,
                f"None of the {trust.annotators.with_enough:,} people who judged 20 times or more looks careless.",
            )
        )
    if position.left is not None and not position.biased and not any(p.lopsided for p in position.placements):
        found.append(Remark(Tone.GOOD, "The side of the screen does not decide."))
    if trust.length.longer is not None and trust.length.longer.low > 0.6:
        share = percent(trust.length.longer.value)
        found.append(
            Remark(Tone.WARNING, f"The longer answer won {share} of the choices: length may be what is learned.")
        )
    return found


def advice(trust: Trust) -> tuple[str, ...]:
    """What to collect next, the most useful first."""
    found = [*_second_judges(trust), *_logging(trust), *_undecided(trust.ranking), *_thin_slices(trust)]
    if trust.concentration and trust.concentration.top_share > 0.5 and trust.concentration.people >= 10:
        share = percent(trust.concentration.top_share)
        found.append(f"More people: a tenth of them gave {share} of the feedback, so their taste is what is learned.")
    if trust.judgements and trust.ties / trust.judgements > 0.35:
        share = percent(trust.ties / trust.judgements)
        found.append(f"Answers that differ more: {share} of the side-by-sides are ties, which train no preference.")
    if not trust.corrections:
        found.append("Corrections: an edit says what a better answer is, and makes both an example and a pair.")
    return tuple(found[:_MOST_ADVICE]) or ("More of the same: no gap stands out.",)


def _second_judges(trust: Trust) -> list[str]:
    if not trust.judgements or trust.agreement.pairs_with_several >= 100:
        return []
    wanted = max(100, trust.agreement.pairs_judged // 10) - trust.agreement.pairs_with_several
    return [f"A second opinion on {wanted:,} pairs: agreement and noise are known from fewer than 100 so far."]


def _logging(trust: Trust) -> list[str]:
    found = []
    if trust.position.unlogged and trust.position.left is None:
        found.append("Which answer stood on the left: without it a habit of the hand looks like a preference.")
    if not trust.annotators.total and trust.events:
        found.append("A hashed id of who judged: without it one careless person cannot be distinguished from a crowd.")
    return found


def _undecided(ranking: Ranking | None) -> list[str]:
    """Neighbours that cannot be distinguished, with how much more it would take at the spread seen so far."""
    found = []
    for upper, lower in pairwise(ranking.models if ranking else ()):
        gap = upper.strength.value - lower.strength.value
        half = (
            (upper.strength.high - upper.strength.low) ** 2 + (lower.strength.high - lower.strength.low) ** 2
        ) ** 0.5 / 2
        have = min(upper.judgements, lower.judgements)
        if gap >= half or gap <= 0.02:
            continue
        more = round(have * ((half / gap) ** 2 - 1), -1)
        if 0 < more <= 20_000:
            found.append(
                f"About {more:,.0f} more comparisons each of {upper.model} and {lower.model} to tell them apart."
            )
    return found[:2]


def _thin_slices(trust: Trust) -> list[str]:
    found = []
    for column in trust.coverage:
        thin = [s.name for s in column.slices if s.share < _SMALL_SLICE and s.events < _SMALL_COUNT]
        if thin and len(column.slices) > 1:
            named = _listed([f"\u201c{name}\u201d" for name in thin[:3]])
            others = f" and {len(thin) - 3:,} more" if len(thin) > 3 else ""
            found.append(f"Feedback from {column.column} {named}{others}: under {_SMALL_COUNT} pieces each.")
    return found


def _listed(words: list[str]) -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} and {words[-1]}"
