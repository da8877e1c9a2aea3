"""The text of `raylign train --help`, from the source of the settings. Imports nothing heavy."""

from __future__ import annotations

import ast
import re
import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from raylign.conf import reference
from raylign.conf.errors import UserError
from raylign.conf.nearest import nearest
from raylign.conf.own_code import OwnCodeError, is_own
from raylign.conf.own_settings import own_section
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
  raylign train --help rollout               only what has `rollout` in its name; so with any word

Exit codes: 0 done; 2 settings or data refused; 70 an invariant broke; 75 stopped, resumable; 76 preempted after a save.
"""


def train_help(overrides: Sequence[str]) -> str:
    """Usage, choices and every setting, for the algorithm that `overrides` name (ppo when they name none).

    Words among them that are no settings are looked for in names, and only what has one is shown. Raises UserError when
    nothing has.
    """
    algorithm = _chosen_algorithm(overrides)
    words = [text.lower() for text in overrides if "=" not in text and not text.startswith("-")]
    title = f"Settings with algorithm={algorithm} (name, default, meaning):\n"
    sections = reference.sections(algorithm)
    shown: dict[str, str] = {}  # what a section looks like -> the first section that does
    if not words:
        return "\n".join([USAGE, *_choices(), title, *(_section(section, shown) for section in sections), _rules()])
    found = [found for section in sections if (found := _with(section, words)).keys]
    rules = [_rules()] if any(word in "reward.rules" for word in words) else []
    if not found:
        names = {part for name in reference.keys(algorithm) for part in name.split(".")}
        guess = nearest(words[0], names)
        hint = f"did you mean {guess}?" if guess else "`raylign train --help` lists all."
        raise UserError(f"--help {' '.join(words)}: no setting of algorithm={algorithm} has this in its name; {hint}")
    return "\n".join([title, *(_section(section, {}) for section in found), *rules])


def _with(section: Section, words: Sequence[str]) -> Section:
    """The section with those settings whose full name holds one of `words`."""
    return replace(section, keys=tuple(key for key in section.keys if any(word in key.name for word in words)))


def _chosen_algorithm(overrides: Sequence[str]) -> str:
    chosen = "ppo"
    for text in overrides:
        key, _, value = text.lstrip("+").partition("=")
        if key == "algorithm" and value in reference.algorithm_names():
            chosen = value
        elif key == "algorithm" and is_own(value):
            chosen = _own(value)
        elif key == "experiment" and value in reference.options("experiment"):
            chosen = reference.algorithm_of(value) or chosen
    return chosen


def _own(named: str) -> str:
    from raylign.trainer.algorithms.own import own_algorithm  # of torch, which help otherwise does without

    try:
        reference.register_own(named, own_section(own_algorithm(named)[0]))
    except OwnCodeError as error:
        raise UserError(f"algorithm={named}: {error}.") from error
    return named


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


def _rules() -> str:
    """The reward rules with their arguments, from the table's source: importing it would import torch."""
    source = Path(reference.__file__).parents[1] / "reward" / "rules.py"
    lines = ["Reward rules, as in reward.rules=[{rule: contains:please, weight: 0.5}]:"]
    for node in ast.parse(source.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.AnnAssign) and ast.unparse(node.target) == "RULES" and isinstance(node.value, ast.Dict):
            for key, kind in zip(node.value.keys, node.value.values, strict=True):
                assert key is not None and isinstance(kind, ast.Call)
                name, argument, meaning = (ast.literal_eval(part) for part in (key, *kind.args[1:3]))
                lines.append(_entry(f"{name}:<{argument}>" if argument else name, meaning, indent=2, column=34))
    return "\n".join(lines) + "\n"
