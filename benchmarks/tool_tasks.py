"""Tasks of benchmarks/tool_learning.py: questions that no small model can answer by itself, and bad examples of calls.

The calculator's are products of two numbers of three digits. The search environment's are about places that do not
exist, whose capitals and rivers stand in a folder of documents. What a tool answers in an example is what the shipped
environment answered.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylign.rollout.environments.objects import tools_of
from raylign.rollout.environments.shipped.calculator import Calculator
from raylign.rollout.environments.shipped.search import Search

_SYLLABLES = [consonant + vowel for consonant in "bdfgklmnprstvz" for vowel in "aeiou"]


@dataclass(frozen=True, slots=True)
class Shares:
    """Of examples that call the tool as they should, and with another question's argument. The others guess."""

    right: float
    slipped: float


@dataclass(frozen=True, slots=True)
class Answered:
    """A question with a call, what the tool said, and the truth."""

    question: str
    tool: str
    argument: tuple[str, str]
    said: str
    truth: str


@dataclass(frozen=True, slots=True)
class Task:
    """Questions of one environment, different ones for the examples, for training and for evaluation."""

    name: str
    tools: Sequence[Mapping[str, Any]]
    shown: Sequence[Answered]
    train: Sequence[Answered]
    held_out: Sequence[Answered]


def calculator(draw: random.Random, sizes: tuple[int, int, int]) -> Task:
    """Products. `sizes`: questions for the examples, for training, held out."""
    tool, pairs = Calculator(), set[tuple[int, int]]()
    while len(pairs) < sum(sizes):
        pairs.add((draw.randint(100, 999), draw.randint(100, 999)))
    found = []
    for a, b in draw.sample(sorted(pairs), len(pairs)):
        written = f"{a} * {b}"
        said = tool.calculate(written)
        found.append(Answered(f"What is {written}?", "calculate", ("expression", written), said, said))
    return _split("calculator", tools_of(tool), found, sizes)


def search(draw: random.Random, sizes: tuple[int, int, int], folder: Path) -> Task:
    """One question about each place; every place has a document in `folder`, which is written."""
    names = _names(draw, 3 * sum(sizes))
    places = list(zip(names[::3], names[1::3], names[2::3], strict=True))
    folder.mkdir(parents=True, exist_ok=True)
    for place, capital, river in places:
        (folder / f"{place}.txt").write_text(f"Its capital is {capital}, its river the {river}.", encoding="utf-8")
    tool, found = Search(str(folder)), []
    for place, capital, river in places:
        what, truth = draw.choice((("capital", capital), ("river", river)))
        query = f"{what} of {place}"
        found.append(Answered(f"What is the {query}?", "search", ("query", query), tool.search(query), truth))
    return _split("search", tools_of(tool), found, sizes)


def examples(task: Task, draw: random.Random, shares: Shares) -> Iterator[dict[str, Any]]:
    """Conversations for supervised training."""
    for one in task.shown:
        other = draw.choice([o for o in task.shown if o.truth != one.truth])
        drawn = draw.random()
        called = one if drawn < shares.right else other if drawn < shares.right + shares.slipped else None
        turns: list[dict[str, Any]] = [{"role": "user", "content": one.question}]
        if called is not None:
            call = {"name": called.tool, "arguments": dict([called.argument])}
            turns.append({"role": "assistant", "tool_calls": [{"type": "function", "function": call}]})
            turns.append({"role": "tool", "name": called.tool, "content": called.said})
        turns.append({"role": "assistant", "content": f"It is {(called or other).truth}."})
        yield {"messages": turns, "tools": list(task.tools)}


def prompts(asked: Sequence[Answered], tools: Sequence[Mapping[str, Any]] = ()) -> Iterator[dict[str, Any]]:
    """Rows of an online run. With `tools` the prompt shows them though no environment does."""
    for number, one in enumerate(asked):
        row = {"id": f"p{number}", "prompt": [{"role": "user", "content": one.question}], "ground_truth": one.truth}
        yield row | ({"tools": list(tools)} if tools else {})


def _split(
    name: str, tools: Sequence[Mapping[str, Any]], found: Sequence[Answered], sizes: tuple[int, int, int]
) -> Task:
    shown, train, _ = sizes
    return Task(name, tools, found[:shown], found[shown : shown + train], found[shown + train :])


def _names(draw: random.Random, count: int) -> list[str]:
    """Different ones, of three syllables."""
    made = dict[str, None]()
    while len(made) < count:
        made["".join(draw.choice(_SYLLABLES) for _ in range(3)).capitalize()] = None
    return list(made)
