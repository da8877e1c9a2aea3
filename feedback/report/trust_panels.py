"""Agreement, biases and noise as cards: a question, a figure with its interval, plain words, and what to do."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup
from raylign.feedback.report.charts import SHARES, Scale, interval, share_words
from raylign.feedback.report.incoming import Row
from raylign.feedback.trust.annotators import Annotator, Annotators, Flag
from raylign.feedback.trust.intervals import Estimate
from raylign.feedback.trust.length import LengthBias
from raylign.feedback.trust.noise import FlipRate, Method
from raylign.feedback.trust.summary import Trust
from raylign.pages.numbers import percent, short
from raylign.records.report.verdict import Tone

_FLAG_WORDS = {
    Flag.POSITION: "picks one side of the screen",
    Flag.ONE_ANSWER: "gives nearly always the same answer",
    Flag.FAST: "answers too fast to have read",
    Flag.AT_ODDS: "disagrees with the others",
}
_METHOD_WORDS = {
    Method.BETWEEN: "two people on the same pair",
    Method.WITHIN: "the same person on the same pair, later",
    Method.CIRCLES: "three answers compared in a circle",
}
_GOOD_AGREEMENT, _POOR_AGREEMENT = 0.70, 0.60  # papers report 63 to 77 % among paid labelers


@dataclass(frozen=True, slots=True)
class Card:
    """One statistic. `answer` says what was found, `action` what to do; empty where nothing has to be done."""

    question: str
    value: str
    chart: Markup | None
    ends: tuple[str, str, str] | None  # words under the chart: left, middle, right
    answer: str
    action: str
    tone: Tone


def cards(trust: Trust) -> tuple[Card, ...]:
    """All cards, in a fixed order."""
    return (_agreement(trust), _noise(trust), _position(trust), _length(trust), _annotators(trust.annotators))


def to_do(trust: Trust, shown: Sequence[Card]) -> tuple[str, ...]:
    """What the cards say to do, the strongest finding first: by how far its figure is from where it would be good."""
    agree, left, longer = trust.agreement.agree_decided, trust.position.left, trust.length.longer
    noisy = trust.noise.estimates[0].rate if trust.noise.estimates else None
    flagged = sum(person.events for person in trust.annotators.flagged)
    far = (
        1 - agree.value if agree else 0.5,
        noisy.value if noisy else 0.0,
        abs(left.value - 0.5) if left else 0.25,
        abs(longer.value - 0.5) if longer else 0.0,
        flagged / max(trust.events, 1),
    )
    weights = (1.0, 1.0, 2.0, 2.0, 2.0)  # an even half is as bad as it gets for the first two, a quarter for the others
    order = sorted(zip(far, weights, shown, strict=True), key=lambda entry: -entry[0] * entry[1])
    return tuple(f"{card.action} ({card.question} {card.value}.)" for _, _, card in order if card.action)


def _of_share(found: Estimate, label: str, *, warning: bool) -> Markup:
    return interval(found.low, found.value, found.high, SHARES, label=label, warning=warning)


def words(found: Estimate) -> str:
    """A share with its interval."""
    return share_words(found.low, found.value, found.high)


def _agreement(trust: Trust) -> Card:
    question, found = "Do people agree?", trust.agreement.agree_decided
    if found is None:
        text = "No pair was judged by two people, so nobody can say how far these choices can be trusted."
        action = "Show one pair in ten to a second person."
        return Card(question, "not known", None, None, text, action, Tone.WARNING)
    alpha = trust.agreement.alpha
    measure = f" Krippendorff's alpha, ties counted: {short(alpha.value, 2)}." if alpha else ""
    text = f"Two people who saw the same pair named the same winner {percent(found.value)} of the time"
    pairs = "1 pair" if found.count == 1 else f"{found.count:,} pairs"
    text += f" ({pairs}).{measure} "
    if trust.agreement.by_person:
        text += f"The range is for people like these {trust.agreement.raters:,}."
    else:
        text += "The range holds for these people; others may agree otherwise."
    if found.low >= _GOOD_AGREEMENT:
        tone, action = Tone.GOOD, ""
    elif found.low <= 0.5 and found.high >= _GOOD_AGREEMENT:
        tone, action = Tone.WARNING, "Too few to tell. Show one pair in ten to a second person."
    elif found.value >= _POOR_AGREEMENT:
        tone, action = (
            Tone.PLAIN,
            "Usual for opinions (63 to 77 % is reported). Use label smoothing, or build with trust.weights=annotator.",
        )
    else:
        tone, action = Tone.WARNING, "Near a coin toss. Sharpen the question people are asked before collecting more."
    chart = _of_share(found, f"Agreement {words(found)}", warning=tone is Tone.WARNING)
    return Card(question, words(found), chart, ("0 %", "coin toss", "100 %"), text, action, tone)


def _noise(trust: Trust) -> Card:
    question = "How noisy are the choices?"
    if not trust.noise.estimates:
        return Card(question, "not known", None, None, "Too little was judged twice to tell.", "", Tone.PLAIN)
    best = trust.noise.estimates[0]
    rate = best.rate
    text = (
        f"About {percent(rate.value)} of the choices name the worse answer, at least: from {_METHOD_WORDS[best.method]}"
    )
    text += f" ({rate.count:,} cases)."
    if best.method is Method.BETWEEN:
        text += " Honest differences of taste count too."
    text += "".join(f" {_other(e)}" for e in trust.noise.estimates[1:])
    smoothing = trust.noise.label_smoothing
    action = f"Train with algorithm.label_smoothing={smoothing:.2f}." if smoothing else ""
    tone = Tone.WARNING if rate.value > 0.3 else Tone.PLAIN if rate.value > 0.1 else Tone.GOOD
    scale = Scale(0.0, 0.5)
    chart = interval(rate.low, rate.value, rate.high, scale, label=f"Noise {words(rate)}", warning=tone is Tone.WARNING)
    return Card(question, words(rate), chart, ("0 %", "", "50 %: coins"), text, action, tone)


def _other(estimate: FlipRate) -> str:
    return f"From {_METHOD_WORDS[estimate.method]}: {words(estimate.rate)}."


def _position(trust: Trust) -> Card:
    question, found = "Does the side of the screen decide?", trust.position.left
    if found is None:
        text = "Which answer stood on the left was not logged."
        action = "Log the side, and let chance decide it." if trust.judgements else ""
        return Card(question, "not known", None, None, text, action, Tone.WARNING if trust.judgements else Tone.PLAIN)
    text = (
        f"The left answer was chosen {percent(found.value)} of the time ({found.count:,} choices); 50 % would be fair."
    )
    action, tone = "", Tone.GOOD
    uneven = [p for p in trust.position.placements if p.uneven]
    if uneven:
        worst = max(uneven, key=lambda p: abs(p.left.value - 0.5))
        stood = f"{worst.model} stood on the left {percent(worst.left.value)} of the time"
        if worst.lopsided:
            text += f" But sides were not shuffled: {stood}."
            action, tone = "Let chance decide the sides: until then this figure mixes side and model.", Tone.WARNING
        else:
            text += f" Sides were not quite even: {stood}."
            tone = Tone.PLAIN
    elif trust.position.biased:
        side = "left" if found.value > 0.5 else "right"
        strong = abs(found.value - 0.5) > 0.05
        tone = Tone.WARNING if strong else Tone.PLAIN
        text += f" People lean to the {side}; chance alone does not explain it."
        action = "Look at the people flagged below first, then at the screen's design." if strong else ""
    chart = _of_share(found, f"Left chosen {words(found)}", warning=tone is Tone.WARNING)
    return Card(question, words(found), chart, ("right", "fair", "left"), text, action, tone)


def _length(trust: Trust) -> Card:
    question, found = "Do people just like long answers?", trust.length.longer
    if found is None:
        return Card(question, "not known", None, None, "No choice between answers of different length.", "", Tone.PLAIN)
    text = f"The longer answer won {percent(found.value)} of {found.count:,} choices. Longer may also be better:"
    text += " the second ranking below holds length equal."
    strong = found.low > 0.55 or found.high < 0.45
    tone = Tone.WARNING if found.low > 0.6 else Tone.PLAIN if strong else Tone.GOOD
    action = ""
    if tone is Tone.WARNING:
        action = (
            "A model trained on this learns to be long. Weigh pairs down where the longer answer won, or add pairs."
        )
    chart = _of_share(found, f"Longer chosen {words(found)}", warning=tone is Tone.WARNING)
    return Card(question, words(found), chart, ("shorter", "no pull", "longer"), text, action, tone)


def _annotators(found: Annotators) -> Card:
    question, flagged = "Is anybody judging carelessly?", len(found.flagged)
    if not found.with_enough:
        text = "Nobody judged often enough (20 times) to be distinguished from chance."
        return Card(question, "not known", None, None, text, "", Tone.PLAIN)
    text = f"Of {found.total:,} people, {found.with_enough:,} gave enough to judge them by"
    text += f"; {flagged:,} of those stand{'s' if flagged == 1 else ''} out." if flagged else "; none stands out."
    action = "Look at their choices (listed below), and leave them out if they are careless." if flagged else ""
    return Card(question, f"{flagged:,} flagged", None, None, text, action, Tone.WARNING if flagged else Tone.GOOD)


def length_rows(bias: LengthBias) -> tuple[Row, ...]:
    """The share that chose the longer answer, by how much longer it was."""
    rows = []
    for bucket in bias.buckets:
        if bucket.longer is None:
            continue
        name = (
            f"over {percent(bucket.low)}" if bucket.high is None else f"{_plain(bucket.low)} to {percent(bucket.high)}"
        )
        chart = _of_share(bucket.longer, f"{name} longer: {words(bucket.longer)}", warning=False)
        rows.append(Row(f"{name} longer", words(bucket.longer), chart, f"{bucket.longer.count:,} choices"))
    return tuple(rows)


def _plain(share: float) -> str:
    return f"{100 * share:.0f}"


@dataclass(frozen=True, slots=True)
class FlaggedPerson:
    """One line of the list of people to look at."""

    name: str
    events: str
    why: str
    evidence: str


def flagged_people(found: Annotators) -> tuple[FlaggedPerson, ...]:
    """Everybody with a flag and what speaks against them."""
    return tuple(
        FlaggedPerson(
            name=person.rater,
            events=f"{person.events:,}",
            why="; ".join(_FLAG_WORDS[flag] for flag in person.flags),
            evidence="; ".join(_evidence(person, flag, found) for flag in person.flags),
        )
        for person in found.flagged
    )


_MOST_PEOPLE = 50


@dataclass(frozen=True, slots=True)
class PersonRow:
    """One line of the table of annotators."""

    name: str
    events: str
    agree: str
    speed: str
    flags: str


def people_rows(found: Annotators) -> tuple[PersonRow, ...]:
    """Everybody who judged often enough, those with a flag first; at most fifty."""
    return tuple(
        PersonRow(
            name=person.rater,
            events=f"{person.events:,}",
            agree=words(person.agree) if person.agree else "not known",
            speed="not known" if person.median_seconds is None else f"{short(person.median_seconds, 2)} s",
            flags="; ".join(_FLAG_WORDS[flag] for flag in person.flags) or "\u2013",
        )
        for person in found.people[:_MOST_PEOPLE]
    )


def _evidence(person: Annotator, flag: Flag, found: Annotators) -> str:
    if flag is Flag.POSITION and person.left:
        return f"left {words(person.left)}"
    if flag is Flag.ONE_ANSWER and person.answer_share:
        return f"{person.answer} {words(person.answer_share)}"
    if flag is Flag.FAST and person.median_seconds is not None:
        usual = f", others {short(found.typical_seconds, 2)} s" if found.typical_seconds else ""
        return f"median {short(person.median_seconds, 2)} s{usual}"
    return f"agrees {words(person.agree)}" if person.agree else ""
