"""What a built data set's rows look like: TRL's columns, plus weight, margin and where each row came from.

The kinds of output, as column schemas. `prompt` and answers are conversational (lists of turns).
"""

from __future__ import annotations

import polars as pl
from raylign.feedback.events import Column

_TURNS = pl.List(pl.Struct({"role": pl.String, "content": pl.String}))

_PROVENANCE: dict[str, Column] = {
    "id": pl.String,  # stable: a hash of kind, prompt and answers
    "weight": pl.Float64,
    "events": pl.List(pl.String),  # event ids this row was made from
    "rules": pl.List(pl.String),  # names of the rules that made it, in order
    "split": pl.String,  # train, eval or test
    "user_hash": pl.String,
    "persona": pl.String,
    "locale": pl.String,
    "topic": pl.String,
}

SFT_SCHEMA = pl.Schema({"messages": _TURNS, **_PROVENANCE})
"""An accepted answer: the conversation with it as last turn."""

_PAIR: dict[str, Column] = {
    "prompt": _TURNS,
    "chosen": _TURNS,
    "rejected": _TURNS,
    "margin": pl.Float64,
    "chosen_finished": pl.Boolean,  # false: the answer was cut at the token limit, so no end token follows it
    "rejected_finished": pl.Boolean,
}
PAIR_SCHEMA = pl.Schema({**_PAIR, **_PROVENANCE})
"""A preference, for reward models and DPO."""

_KTO: dict[str, Column] = {
    "prompt": _TURNS,
    "completion": _TURNS,
    "label": pl.Boolean,
    "completion_finished": pl.Boolean,  # as above
}
KTO_SCHEMA = pl.Schema({**_KTO, **_PROVENANCE})
"""A judged answer: desirable or not."""

TEACHER_SCHEMA = pl.Schema({"prompt": _TURNS, "teacher_prompt": _TURNS, **_PROVENANCE})
"""A question, and the same with what a person wrote about an answer to it, for algorithm=distil."""

SCHEMAS = {"sft": SFT_SCHEMA, "pairs": PAIR_SCHEMA, "kto": KTO_SCHEMA, "teacher": TEACHER_SCHEMA}
"""By kind of row."""
