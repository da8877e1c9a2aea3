"""The one sentence that a reader takes away from a run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from raylign.pages.numbers import aligned, percent
from raylign.pages.svg import share_bar
from raylign.records.report.facts import RunFacts
from raylign.records.report.shares import FEW_ROWS, Share
from raylign.records.report.tone import Tone
from raylign.records.summary import RunSummary


@dataclass(frozen=True, slots=True)
class Headline:
    """What came out, in one sentence, with its bar where it is a share."""

    text: str
    tone: Tone
    bar: Markup | None = None
    bar_text: str = ""


def headline_of(facts: RunFacts, summary: RunSummary | None, shares: Sequence[Share]) -> Headline:
    """The judge's preference, else held-out accuracy, else what training did to the loss."""
    if summary is None:
        return Headline(f"This run has not finished: {facts.last_step:,} steps so far.", Tone.PLAIN)
    if summary.preference_vs_start is not None:
        return _preference(facts, summary, summary.preference_vs_start)
    if shares:
        return _agreement(shares[0])
    return Headline(
        f"Trained for {summary.steps:,} {'step' if summary.steps == 1 else 'steps'}{_loss_moved(facts)}.", Tone.PLAIN
    )


def _loss_moved(facts: RunFacts) -> str:
    for name, words in (("eval/held_out/loss", "held-out loss"), ("train/loss", "training loss")):
        values = [value for _, value in facts.history.series(name) if value is not None]
        if len(values) > 1:
            before, after = aligned((values[0], values[-1]))
            return f"; the {words} went from {before} to {after}"
    return ""


def _preference(facts: RunFacts, summary: RunSummary, share: float) -> Headline:
    """Who judged is the sentence's subject: most often it is a rule, and no person."""
    who = facts.judge or "the gold score"
    subject, won = who[:1].upper() + who[1:], percent(share)
    low, high = summary.preference_low, summary.preference_high
    if low is None or high is None:
        text = f"{subject} prefers the new answers {won} of the time."
        return Headline(text, Tone.PLAIN, bar_text="The number of comparisons is unknown.")
    if low > 0.5:
        headline, tone = f"{subject} prefers the new answers {won} of the time.", Tone.GOOD
    elif high < 0.5:
        headline, tone = f"The new answers are worse: {who} prefers them only {won} of the time.", Tone.WARNING
    else:
        headline, tone = f"No clear difference yet: {who} prefers the new answers {won} of the time.", Tone.PLAIN
    count = summary.preference_comparisons
    over = f" over {count} held-out prompts" if count else ""
    few = "; too few prompts to rely on" if count and count < FEW_ROWS else ""
    text = (
        f"95\u00a0% interval {percent(low)} to {percent(high)}{over}{few}; ties count half. No person has judged here."
    )
    return Headline(headline, tone, share_bar(share, low, high, label="Preference for the new answers"), text)


def _agreement(share: Share) -> Headline:
    """A reward model, or a policy trained on pairs: how often it is right about pairs it has not seen."""
    won, rows = percent(share.value), f"{share.rows:,} held-out pairs"
    if share.low > 0.5:
        text, tone = f"{share.name} in {won} of {rows}.", Tone.GOOD
    elif share.high < 0.5:
        text, tone = (
            f"Worse than chance: {share.name[:1].lower()}{share.name[1:]} in only {won} of {rows}.",
            Tone.WARNING,
        )
    else:
        text, tone = f"Near chance: {share.name[:1].lower()}{share.name[1:]} in {won} of {rows}.", Tone.PLAIN
    worth = f"; {share.worth}" if share.worth else ""
    bar = share_bar(share.value, share.low, share.high, label=share.name, middle="chance")
    return Headline(text, tone, bar, f"95\u00a0% interval {share.interval}{worth}.")
