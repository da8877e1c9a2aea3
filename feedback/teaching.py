"""What people wrote about answers, as context of a teacher: prompts for `algorithm=distil` (docs/distillation.md).

The row asks the policy the question alone and the teacher the question with the correction or comment after it.
"""

from __future__ import annotations

import polars as pl
from raylign.feedback.candidates import candidate, merge
from raylign.feedback.events import EventKind
from raylign.feedback.filtering import Filtered
from raylign.feedback.settings import RatingSettings, TeacherSettings
from raylign.feedback.turns import FIELDS, ROLE, TURN
from raylign.feedback.working import SAID, is_kind

COMMENT = "comment"
"""The rule that makes a row of what somebody said about an answer; of an edit it is `correction`."""


def make_teaching(work: pl.DataFrame, settings: TeacherSettings, ratings: RatingSettings) -> Filtered:
    """`answer`: what the person wrote; `other`: the answer that it is about. Only of questions that a user asks last:
    what is added after a tool's answer would be read as the tool's."""
    asked = work.filter(pl.col("prompt").str.contains(f"(?:^|{TURN})user{ROLE}[^{TURN}]*$"))
    frames = [candidate(asked.head(0), COMMENT, pl.col(SAID))]
    if settings.from_corrections:
        edits = asked.filter(is_kind(EventKind.CORRECTION))
        frames.append(candidate(edits, "correction", pl.col("corrected"), other=pl.col("answer_a")))
    if settings.from_comments:
        disliked = (pl.col("thumb") == -1) | (pl.col("rating") <= ratings.bad)
        single = is_kind(EventKind.THUMB) | is_kind(EventKind.RATING)
        said = asked.filter(single & disliked & (pl.col(SAID).str.strip_chars() != ""))
        frames.append(candidate(said, COMMENT, pl.col(SAID), other=pl.col("answer_a")))
    made = merge(frames)
    return Filtered(made, made.head(0).with_columns(rule=pl.lit(None, pl.String)))


def with_context(prompt: pl.Expr) -> pl.Expr:
    """The packed prompt with what the person wrote at the end of its last turn."""
    answer, other = (pl.col(name).str.replace(FIELDS, "\n", literal=True) for name in ("answer", "other"))
    edit = pl.format("\n\n(A reader rewrote an earlier answer to this as follows.\n{})", answer)
    remark = pl.format("\n\n(An earlier answer to this was:\n{}\n\nA reader said about it:\n{})", other, answer)
    return prompt + pl.when(pl.col("rules").list.contains(COMMENT)).then(remark).otherwise(edit)
