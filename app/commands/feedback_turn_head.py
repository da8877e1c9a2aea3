"""`raylign feedback corrections --train`: a head on a model's hidden states, fitted to labelled turns, in its place."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from raylign.app.commands.judge_open import Tell
from raylign.app.commands.serve import causal_export
from raylign.conf.errors import DataError
from raylign.evals.results import model_digest
from raylign.feedback.clean.personal_data import redact_text
from raylign.feedback.judged_turns import TRAINING, LabelledTurn, Turn, read_labelled
from raylign.feedback.turn_head import Head, fit_head

SHIPPED = "shipped"
"""What --train names for the turns that come with Raylign."""


@dataclass(frozen=True, slots=True)
class FittedHead:
    """A head, the model below it, and how both are known."""

    head: Head
    folder: Path
    version: str  # of model and training turns
    fitted: int  # turns

    def ask(self, turns: Sequence[Turn]) -> list[bool]:
        """Whether each turn corrects the answer before it."""
        from raylign.feedback.turn_states import turn_states  # torch and transformers

        return self.head.calls(turn_states(self.folder, [_shown(turn) for turn in turns])) if turns else []


def fitted_head(model: str, run_root: Path, train: str, measured: Sequence[LabelledTurn], tell: Tell) -> FittedHead:
    """The head of `model` (a run or a model folder) on the turns that `train` names.

    A turn that it is to be measured on would be known to it: it is left out. Raises UserError and DataError.
    """
    folder = causal_export(model, run_root)
    given = read_labelled(TRAINING if train == SHIPPED else Path(train), "--train")
    known = {one.turn.text.strip() for one in measured}
    turns = [one for one in given if one.turn.text.strip() not in known]
    if not turns:
        raise DataError("--train: every one of its turns is in the labelled sample too; give others.")
    if len(turns) < len(given):
        tell(f"{len(given) - len(turns):,} turns of --train are in the labelled sample too and are left out")
    tell(f"fitting a head to {len(turns):,} turns")
    from raylign.feedback.turn_states import turn_states

    texts = [_shown(one.turn) for one in turns]
    corrects = [one.corrects for one in turns]
    head = fit_head(turn_states(folder, texts), corrects, [text for _, text in texts])
    version = hashlib.sha256(f"{model_digest(folder)} {sorted(zip(texts, corrects, strict=True))}".encode())
    return FittedHead(head, folder, version.hexdigest()[:8], len(turns))


def _shown(turn: Turn) -> tuple[str, str]:
    return redact_text(turn.conversation()), redact_text(turn.text)
