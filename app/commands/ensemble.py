"""`raylign ensemble`: heads for a trained reward model, each fitted to another sample of the people who judged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from raylign.app.commands.judged_pairs import JudgedPair, read_pairs
from raylign.app.commands.serve_reward import scalar_export
from raylign.conf.errors import DataError, UserError
from raylign.conf.schema import Device, Precision
from raylign.reward.heads import write_heads
from raylign.reward.interfaces import RewardRuleError
from raylign.reward.text_scorer import Scorable, TextScorer
from raylign.trainer.functional.bootstrap_heads import anchors, fit_heads, head_scores, person_weights
from torch import Tensor

PERSON = "user_hash"
"""Column of a feedback build's rows that says whose conversation a row is of."""

FEWEST_PEOPLE = 2
_AT_ONCE = 64


@dataclass(frozen=True, slots=True)
class EnsembleSettings:
    """How the heads are drawn."""

    sources: Sequence[str]  # files of judged pairs
    run_root: Path
    heads: int = 10
    seed: int = 0
    scale: float | None = None  # of the anchors around the trained head; None: (hidden size + 1)^-1/2
    most: int = 20000  # pairs


@dataclass(frozen=True, slots=True)
class EnsembleMade:
    """What was fitted, and what it says of its own pairs."""

    path: Path
    pairs: int
    left_out: int
    people: int
    alone: int  # pairs that name nobody, each taken for a person of its own
    agreement: float  # share of the pairs whose chosen answer the heads' mean prefers
    margin: float  # median of |mean margin|
    spread: float  # median standard deviation of a margin over the heads


def make_ensemble(model: str, settings: EnsembleSettings, tell: Callable[[str], None]) -> EnsembleMade:
    """Fit the heads and put them beside the model's weights, in place of earlier ones.

    Raises UserError for a model that is none, and DataError for pairs of fewer than two people.
    """
    if settings.heads < 2:
        raise UserError(f"--heads {settings.heads}: a spread needs 2 or more.")
    if settings.scale is not None and not settings.scale > 0:
        raise UserError(f"--scale {settings.scale:g}: give a number above 0.")
    folder = scalar_export(model, settings.run_root)
    scorer = TextScorer(str(folder), precision=Precision.float32, device=Device.cpu, micro_batch_tokens=4096)
    pairs, left_out = read_pairs(settings.sources, settings.most)
    tell(f"reading features of {len(pairs):,} pairs")
    differences, kept = _differences(scorer, pairs)
    people = [_person(pairs[row]) for row in kept]
    named = {person for person in people if person is not None}
    alone = people.count(None)
    if len(named) + alone < FEWEST_PEOPLE:
        raise DataError(
            f"{', '.join(settings.sources)}: {len(kept):,} pairs of {len(named) + alone} people are left; an ensemble "
            f"over people needs at least {FEWEST_PEOPLE} ({PERSON} names them)."
        )
    trained = scorer.head
    scale = settings.scale or (trained.numel() + 1) ** -0.5
    weights = person_weights(people, settings.heads, seed=settings.seed) * _row_weights(pairs, kept)
    anchored = anchors(trained, settings.heads, scale=scale, seed=settings.seed + 1)
    tell(f"fitting {settings.heads} heads")
    heads = fit_heads(differences, weights, anchored, scale=scale)
    mean, spread = head_scores(differences.double(), heads)
    return EnsembleMade(
        path=write_heads(folder, heads, trained),
        pairs=len(kept),
        left_out=left_out + len(pairs) - len(kept),
        people=len(named),
        alone=alone,
        agreement=float((mean > 0).double().mean()),
        margin=float(mean.abs().median()),
        spread=float(spread.median()),
    )


def ensemble_lines(made: EnsembleMade) -> list[str]:
    """What came of it, for a terminal."""
    left = f", {made.left_out:,} that the model cannot read are left out" if made.left_out else ""
    lines = [f"{made.pairs:,} pairs of {made.people:,} people{left}"]
    if made.alone:
        lines.append(
            f"! {made.alone:,} pairs name nobody ({PERSON}); each counts as another person's, which makes the spread "
            "too small"
        )
    lines += [
        f"the heads' mean agrees with {made.agreement:.1%} of these pairs, which the model may have been trained on",
        f"a margin of theirs is {made.margin:.3g} in the middle, and spreads by {made.spread:.3g} over the heads",
        f"heads: {made.path}",
    ]
    return lines


def _differences(scorer: TextScorer, pairs: Sequence[JudgedPair]) -> tuple[Tensor, list[int]]:
    """Features of the chosen answer minus the rejected one's, of the pairs that can be read, and which those are."""
    parts, kept = [torch.zeros(0, scorer.head.numel())], []
    for first in range(0, len(pairs), _AT_ONCE):
        sequences: list[Scorable] = []
        for row, pair in enumerate(pairs[first : first + _AT_ONCE], first):
            try:
                sides = [
                    scorer.conversation(pair.prompt, answer, finished=finished, variables=pair.variables)
                    for answer, finished in zip((pair.chosen, pair.rejected), pair.finished, strict=True)
                ]
            except RewardRuleError:
                continue
            sequences += sides
            kept.append(row)
        if sequences:
            both = scorer.features(sequences).view(-1, 2, scorer.head.numel())
            parts.append(both[:, 0] - both[:, 1])
    return torch.cat(parts), kept


def _person(pair: JudgedPair) -> str | None:
    named = pair.columns.get(PERSON)
    return named if isinstance(named, str) and named else None


def _row_weights(pairs: Sequence[JudgedPair], kept: Sequence[int]) -> Tensor:
    given = [pairs[row].columns.get("weight") for row in kept]
    return torch.tensor([float(one) if isinstance(one, int | float) else 1.0 for one in given], dtype=torch.float64)
