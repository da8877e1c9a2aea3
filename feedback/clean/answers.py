"""Answers nobody should imitate: refusals, and what is too short, too long or repeats itself."""

from __future__ import annotations

import polars as pl

_REFUSAL = (
    r"(?i)^\W*(?:(?:i(?:'m| am) )?(?:very |so |really )?(?:sorry|afraid)|unfortunately|apologies|i apologi[sz]e)?"
    r"[\s,.!;:\u2014-]*(?:but |that |however,? )?(?:as an? (?:ai|artificial intelligence|"
    r"(?:large )?language model|assistant)"
    r"[^.!?\n]{0,60}?[,\s]+)?i(?:'m| am)? ?(?:can ?not|can't|won't|will not|must decline|unable to|"
    r"not able to|not comfortable|do not feel comfortable|don't feel comfortable)\s+"
    r"(?:\w+ ){0,2}?(?:help|assist|provide|answer|fulfil+|comply|create|generate|write|do|support|engage|continue|"
    r"discuss|offer|give|share|with|that|this|your|creating|helping|providing|writing)\b"
    r"|^\W*as an? (?:ai|artificial intelligence|(?:large )?language model)[^.!?\n]{0,80}"
    r"\b(?:cannot|can't|unable|not able)\b"
    r"|^\W*(?:i(?:'m| am) sorry,? (?:but )?)?(?:this|that|your) (?:request|question|content)[^.!?\n]{0,60}"
    r"(?:against|violates?)\b[^.!?\n]{0,40}(?:policy|policies|guidelines)"
)


def is_refusal(text: pl.Expr) -> pl.Expr:
    """Whether an answer opens by declining. A regret followed by an answer is none."""
    return text.str.replace_all("\u2019", "'").str.slice(0, 300).str.contains(_REFUSAL)


def quality_rules(*, min_chars: int, max_chars: int, min_distinct_words: float) -> dict[str, pl.Expr]:
    """Rules for answers to imitate, over the column `answer`. Words count without case, from 50 words on."""
    length = pl.col("answer").str.strip_chars().str.len_chars()
    words = pl.col("answer").str.to_lowercase().str.extract_all(r"\w+")
    poor = words.list.n_unique() < min_distinct_words * words.list.len()
    return {
        "too_short": length < min_chars,
        "too_long": length > max_chars,
        "repetitive": (length >= 100) & (words.list.len() >= 50) & poor,
    }
