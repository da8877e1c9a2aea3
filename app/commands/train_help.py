"""The text of `raylign train --help`, from the source of the settings. Imports nothing heavy."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterator, Sequence

from raylign.conf import reference
from raylign.conf.reference import Section

_WIDTH = 118
_NAME_COLUMN = 34
_DEFAULT_COLUMN = 14

USAGE = """\
Usage: raylign train [key=value ...] [+experiment=NAME] [--config FILE] [--config-dir DIR]

Trains a model. Every setting is key=value; a named experiment, a choice below or a yaml file of your own sets many at
once, and settings on the command line win over all of them. `raylign plan` with the same arguments says what would
happen without starting anything.

Examples:
  raylign train +experiment=ppo_tiny_cpu policy.model=models/tiny data.train=prompts.jsonl reward.model=models/rm
  raylign train algorithm=rm policy.model=models/base data.train=pairs.parquet name=my-reward-model
  raylign train algorithm=grpo cluster=one_node policy.model=models/base data.train=prompts.jsonl \\
      'reward.rules=[{rule: exact_match, weight: 1.0}]' rollout.samples_per_prompt=8
  raylign train algorithm=grpo --help        the settings of another algorithm

Exit codes: 0 done; 2 settings or data refused; 70 an invariant broke; 75 stopped, resumable; 76 preempted after a save.
"""


def train_help(overrides: Sequence[str]) -> str:
    """Usage, choices and every setting, for the algorithm that `overrides` name (ppo when they name none)."""
    algorithm = _chosen_algorithm(overrides)
    parts = [USAGE, *_choices(), f"Settings with algorithm={algorithm} (name, default, meaning):\n"]
    shown: dict[str, str] = {}  # what a section looks like -> the first section that does
    for section in reference.sections(algorithm):
        parts.append(_section(section, shown))
    return "\n".join(parts)


def _chosen_algorithm(overrides: Sequence[str]) -> str:
    chosen = "ppo"
    for text in overrides:
        key, _, value = text.lstrip("+").partition("=")
        if key == "algorithm" and value in reference.algorithm_names():
            chosen = value
        elif key == "experiment" and value in reference.options("experiment"):
            chosen = reference.algorithm_of(value) or chosen
    return chosen


def _choices() -> Iterator[str]:
    for group in reference.GROUPS:
        lines = [f"{'+' if group == 'experiment' else ''}{group}="]
        for option in reference.options(group):
            doc = reference.algorithm_doc(option) if group == "algorithm" else reference.first_comment(group, option)
            lines.append(_entry(option, doc, indent=2, column=26))
        yield "\n".join(lines) + "\n"


def _section(section: Section, shown: dict[str, str]) -> str:
    title = section.name or "run"
    look = repr([(key.name.removeprefix(section.name), key.default, key.doc) for key in section.keys])
    heading = f"{title}: {_first_sentence(section.doc)}"
    if look in shown:
        return f"{heading} The settings of {shown[look]}.\n"
    shown[look] = title
    lines = [heading]
    for key in section.keys:
        meaning = f"{key.doc} ({', '.join(key.choices)})" if key.choices else key.doc
        name = f"{key.name:<{_NAME_COLUMN}} {key.default:<{_DEFAULT_COLUMN}}"
        lines.append(_entry(name, meaning, indent=2, column=_NAME_COLUMN + _DEFAULT_COLUMN + 4))
    return "\n".join(lines) + "\n"


def _entry(name: str, text: str, *, indent: int, column: int) -> str:
    """`name`, and `text` beside it from `column` on, wrapped."""
    first = f"{' ' * indent}{name}".ljust(column)
    wrapped = textwrap.wrap(text, _WIDTH - column) or [""]
    return "\n".join([f"{first}{wrapped[0]}".rstrip(), *(f"{' ' * column}{line}" for line in wrapped[1:])])


def _first_sentence(doc: str) -> str:
    text = " ".join(doc.split())
    match = re.match(r".*?\.(?= |$)", text)
    return match.group(0) if match else text
