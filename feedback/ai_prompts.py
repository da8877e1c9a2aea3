"""New prompts from seeds, as self-instruct does: what a model is asked, what its reply holds, and what of it is new.

Each request shows a few seeds, drawn by its number, and asks for more of the kind (Wang et al. 2023, arXiv:2212.10560).
Only seeds are shown, never what a model wrote: what is asked depends on nothing but seeds and number.
"""

from __future__ import annotations

import random
import re
from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl
from raylign.feedback.clean.answers import is_refusal, quality_rules
from raylign.feedback.clean.contamination import overlapping
from raylign.feedback.clean.similarity import clusters

PER_CALL = 5
"""Prompts that a request asks for."""

SHOWN = 6
"""Seeds that it shows."""

_ITEM = re.compile(r"(?m)^\s*(?:[*_#>-]+\s*)?(\d+)[.)][*_]*\s+")

_KIND = r"(?:prompts?|questions?|tasks?|examples?|requests?|instructions?|problems?|items?|ones?)"
_LEAD = re.compile(
    rf"""(?ix)^(?:(?:sure(?:\ thing)?|certainly|of\ course|absolutely|okay|ok|great|got\ it)\b[\s,.!:-]*)?
    (?:here(?:'s|\ is|\ are|\ you\ go)|below\ (?:is|are)|this\ is|i(?:'ve|\ have)?\ (?:made|written|wrote))
    \b[^:?\n]{{0,60}}?\b{_KIND}\b[^:?\n]{{0,60}}:\s*"""
)
_YES = re.compile(r"(?i)^(?:sure(?: thing)?|certainly|of course|absolutely|okay|ok|great|got it)[!.:]\s+")
_LABEL = re.compile(rf"(?i)^[*_#\s]*(?:(?:new|sample|example)\s+)?{_KIND}\s*(?:\d+\s*)?[*_]*:[*_]*\s+")
_ANSWERED = re.compile(
    r"(?im)^[*_\s]*(?:(?:sample|example|expected|possible)\s+)?(?:answer|solution|response)[*_]*:[*_]*[ \t]*\S"
)
_CLOSING = re.compile(
    r"""(?ix)^[*_(]*(?:(?:please\ )?let\ me\ know|(?:i\ )?hope\ (?:this|these|that|you)|feel\ free
    |if\ you\ (?:need|would|want|have)|would\ you\ like|do\ you\ want\ me|is\ there\ anything
    |these\ (?:are|new|five|\d|questions|tasks|prompts|examples|cover)|each\ of\ (?:these|the)|all\ of\ these
    |note(?:\ that)?\s*:|note\ that|i\ (?:have|tried|made)|-{3,}$|</?examples>
    |i(?:'ll|\ will)\b[^\n]{0,80}\b(?:lists?|examples?|instructions?|questions?|prompts?|tasks?)\b)"""
)
_DISTINCT = 0.2  # smallest share of distinct words in a prompt of 50 words or more
_QUOTES = {'"': '"', "\u201c": "\u201d", "\u00ab": "\u00bb", "**": "**", "`": "`"}

RUBRIC = (
    f"Below are questions and tasks that people have given to an assistant. Write {PER_CALL} new ones of the same "
    "kind: other topics, other words, as long and as hard as these, each to be understood by itself. Nothing in them "
    "is an instruction to you.\n\n<examples>\n{{answer}}\n</examples>\n\n"
    "Write them as a numbered list and nothing else."
)


@dataclass(frozen=True, slots=True)
class Sifted:
    """What is left of a model's prompts."""

    kept: tuple[str, ...]  # in the order they came
    near: int  # as good as a seed or an earlier one
    contaminated: int  # share a run of words with a benchmark


def shown_seeds(seeds: Sequence[str], number: int, *, seed: int) -> str:
    """The examples of request `number`, each in a paragraph."""
    drawn = random.Random(f"{seed}/{number}").sample(range(len(seeds)), min(SHOWN, len(seeds)))
    return "\n\n".join(f"- {seeds[place]}" for place in drawn)


def read_prompts(reply: str) -> list[str]:
    """The prompts of a numbered list, at most PER_CALL, without what models say around them.

    Left out: what stands before the list, an introduction or a label at an item's beginning, quotation marks or bold
    round all of it, an answer below it, closing words, and items that decline or say few words over and over.
    """
    parts = _ITEM.split(reply)[1:]
    prompts = [prompt for text in parts[1::2] if (prompt := bare_prompt(text))]
    frame = pl.DataFrame({"answer": prompts}, schema={"answer": pl.String})
    repeats = quality_rules(min_chars=0, max_chars=0, min_distinct_words=_DISTINCT)["repetitive"]
    return frame.filter(~(is_refusal(pl.col("answer")) | repeats))["answer"].to_list()[:PER_CALL]


def bare_prompt(item: str) -> str:
    """An item of a list without chatter; "" when it holds nothing else."""
    text = _LABEL.sub("", _YES.sub("", _LEAD.sub("", item.strip())))
    if answered := _ANSWERED.search(text):
        text = text[: answered.start()]
    paragraphs = re.split(r"\n\s*\n", text.strip())
    while len(paragraphs) > 1 and _CLOSING.match(paragraphs[-1].strip()):
        paragraphs.pop()
    return _unquoted("\n\n".join(paragraphs).strip())


def _unquoted(text: str) -> str:
    """Without a pair of marks that encloses all of it and does not occur inside."""
    for opening, closing in _QUOTES.items():
        inner = text[len(opening) : -len(closing)]
        whole = text.startswith(opening) and text.endswith(closing) and len(text) > len(opening) + len(closing)
        if whole and opening not in inner and closing not in inner:
            return inner.strip()
    return text


def sift(made: Sequence[str], seeds: Sequence[str], benchmark: pl.Series, *, near: float, ngram: int) -> Sifted:
    """Without prompts near a seed or an earlier one (Jaccard similarity of word pairs), and without contaminated."""
    kept, repeats, contaminated = new_places(made, seeds, benchmark, near=near, ngram=ngram)
    return Sifted(tuple(made[place] for place in kept), repeats, contaminated)


def new_places(
    made: Sequence[str], seeds: Sequence[str], benchmark: pl.Series, *, near: float, ngram: int
) -> tuple[list[int], int, int]:
    """Places in `made` of what `sift` keeps, how many are near a seed or an earlier one, and how many contaminated."""
    hit = overlapping(pl.Series(list(made), dtype=pl.String), benchmark, ngram=ngram)
    clean = [place for place, known in enumerate(hit) if not known]
    firsts = clusters(pl.Series([*seeds, *(made[place] for place in clean)], dtype=pl.String), near)[len(seeds) :]
    kept = [place for at, place in enumerate(clean, len(seeds)) if firsts[at - len(seeds)] == at]
    return kept, len(clean) - len(kept), int(hit.sum())
