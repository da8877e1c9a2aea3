"""The page of a comparison, and its lines for a terminal. What models and prompts say is escaped by the template."""

from __future__ import annotations

from pathlib import Path

from raylign.evals.compare import Comparison
from raylign.evals.statistics import Figure
from raylign.pages.frame import render_page
from raylign.pages.numbers import percent, short
from raylign.records.atomic import write_atomic

_HERE = Path(__file__).parent
UNDECIDED = "These prompts do not decide which is better"
MOST_SHOWN = 200
"""Prompts whose answers are on the page; the record holds all."""


def write_page(path: Path, found: Comparison) -> None:
    """Write the page, whole or not at all."""
    values = {
        "found": found,
        "headline": headline(found),
        "remarks": remarks(found),
        "asked": found.asked[:MOST_SHOWN],
        "short": short,
        "interval": interval,
        "tone": tone,
        "rest": f"{100 * (1 - found.confidence):.3g}\u00a0%",
        "confidence": f"{100 * found.confidence:g}\u00a0%",
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, render_page(_HERE / "compare.html", values, styles=(_HERE / "compare.css",)))


def headline(found: Comparison) -> str:
    """Who is preferred to whom, where the prompts decide it."""
    wins: dict[int, list[int]] = {}
    for pair in found.pairs:
        if pair.decided:
            better, worse = (pair.first, pair.second) if pair.share.value > 0.5 else (pair.second, pair.first)
            wins.setdefault(better, []).append(worse)
    if not wins:
        return UNDECIDED
    best = max(wins, key=lambda model: (len(wins[model]), -model))
    names = [found.models[worse].name for worse in wins[best]]
    said = f"{found.models[best].name} is preferred to {_listed(names)}"
    shares = [percent(found.share(best, worse).value) for worse in wins[best]]
    return f"{said}: on {_listed(shares)} of {found.share(best, wins[best][0]).count:,} prompts"


def remarks(found: Comparison) -> list[str]:
    """What a reader must know before believing the shares."""
    said = []
    for pair in found.pairs:
        first, second = found.models[pair.first].name, found.models[pair.second].name
        level = pair.equal_length
        if level is not None and pair.decided and (level.value > 0.5) != (pair.share.value > 0.5):
            said.append(f"Between {first} and {second} length decides: at equal length the other one is ahead.")
        if pair.extrapolated:
            said.append(
                f"{first} and {second} hardly ever wrote answers of the same length, so the share at equal length is "
                "extrapolated."
            )
    for model in found.models:
        if model.failed:
            said.append(f"{model.failed:,} of {len(found.asked):,} prompts have no grade for {model.name}.")
    return said


def lines(found: Comparison) -> list[str]:
    """The comparison for a terminal."""
    told = [headline(found) + ".", f"{found.suite}, {len(found.asked):,} prompts, by {found.unit}"]
    for model in found.models:
        score = "-" if model.score is None else f"{model.score.value:.3f}"
        told.append(f"  {model.name:<28} {score:>8}  {model.words:.0f} words an answer")
    for pair in found.pairs:
        first, second = found.models[pair.first].name, found.models[pair.second].name
        level = "" if pair.equal_length is None else f"; at equal length {_plain(pair.equal_length)}"
        told.append(f"  {first} over {second}: {_plain(pair.share)}{level}; p {pair.p:.2g}")
    return [*told, *(f"! {remark}" for remark in remarks(found))]


def interval(share: Figure | None) -> str:
    """`[41 %, 63 %]`; nothing where it is not known."""
    if share is None or share.low is None or share.high is None:
        return ""
    return f"[{percent(share.low)}, {percent(share.high)}]"


def tone(found: Comparison, row: int, column: int) -> str:
    """The class of a cell of the matrix: for the row's model, against it, or undecided."""
    if not found.pair(row, column).decided:
        return "even"
    return "ahead" if found.share(row, column).value > 0.5 else "behind"


def _plain(share: Figure) -> str:
    return f"{percent(share.value)} {interval(share)}".replace("\u00a0", " ").rstrip()


def _listed(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
