"""Held-out metrics of one's own: docs/own-metric.md.

raylign train ... data.eval=prompts.jsonl 'evaluation.metrics=[{path: my_metric.py:variety}]'
"""

from __future__ import annotations

from typing import Any


def variety(prompts: list[Any], completions: list[Any], **columns: list[Any]) -> dict[str, float]:
    """How much the answers repeat themselves and each other: shares of distinct words, and of distinct answers."""
    answers = [one if isinstance(one, str) else one[0]["content"] for one in completions]
    words = [word for answer in answers for word in answer.lower().split()]
    return {
        "words": len(set(words)) / max(1, len(words)),
        "answers": len(set(answers)) / len(answers),
    }
