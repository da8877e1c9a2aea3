"""Reads `key=value` arguments, `--config` and `--config-dir`, and reports everything that is wrong with all of them.

Hydra stops at the first bad override and advises `+key`, which would add a setting nobody reads. Here every key is
looked up in the reference first; Hydra's grammar is used for the values.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from raylign.conf import reference
from raylign.conf.foreign import foreign_hint, nearest_foreign
from raylign.conf.nearest import nearest, nearest_keys, similarity
from raylign.conf.problems import Problem

Value = object  # what yaml can hold: str, int, float, bool, None, list, dict

SWEEP = "a run for each value is a loop of the shell, `for v in a b; do raylign train ... {key}=$v name=try-$v; done`"
"""What there is in place of Hydra's multirun."""

CONFIG, CONFIG_DIR = "--config=", "--config-dir="
_FORM = re.compile(r"(?P<sign>\+\+|\+|~)?(?P<key>[^=~+]+?)=(?P<value>.*)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class Assignment:
    """A setting and the value it is to have, not yet checked for its type."""

    key: str
    value: Value
    origin: str = ""  # file and line; empty for the command line


@dataclass(frozen=True, slots=True)
class Arguments:
    """What the command line says."""

    choices: Mapping[str, str]  # group -> option, not yet looked up
    assignments: tuple[Assignment, ...]  # in order, every key well-formed but perhaps unknown
    problems: tuple[Problem, ...]
    files: tuple[str, ...] = ()  # of --config
    folders: tuple[str, ...] = ()  # of --config-dir and hydra.searchpath
    misread_file: bool = False  # a file was given as if it were a setting: what it says is missing


def read(overrides: Sequence[str]) -> Arguments:
    """Split arguments into group choices and assignments. Nothing is raised.

    `--config=FILE` and `--config-dir=DIR` are arguments like any other, so that a run's arguments are one list.
    """
    choices: dict[str, str] = {}
    assignments: list[Assignment] = []
    problems: list[Problem] = []
    files: list[str] = []
    folders: list[str] = []
    misread_file = False
    for text in overrides:
        if text.startswith(CONFIG):
            files.append(text.removeprefix(CONFIG))
            continue
        if text.startswith(CONFIG_DIR):
            folders.append(text.removeprefix(CONFIG_DIR))
            continue
        if misread := _file_as_setting(text):
            problems.append(misread)
            misread_file = True
            continue
        outcome = _read_one(text)
        if isinstance(outcome, Problem):
            problems.append(outcome)
        elif isinstance(outcome, Assignment) and outcome.key == "hydra.searchpath":
            given = outcome.value if isinstance(outcome.value, list) else [outcome.value]
            folders += [str(folder) for folder in given]
        elif isinstance(outcome, Assignment):
            assignments.append(outcome)
        else:
            choices[outcome[0]] = outcome[1]
    return Arguments(choices, tuple(assignments), tuple(problems), tuple(files), tuple(folders), misread_file)


def _file_as_setting(text: str) -> Problem | None:
    """A yaml file given alone, or as an experiment: the person means --config."""
    named = re.sub(r"^\+{0,2}experiment=", "", text)
    if not named.endswith((".yaml", ".yml")) or "=" in named:
        return None
    return Problem((), f"{text}: a file of settings is given as --config {named}.")


def unknown_key(key: str, known: Mapping[str, reference.Key]) -> Problem:
    """The sentence for a key that no setting has, with the name it was probably meant to be."""
    if any(name.startswith(f"{key}.") for name in known):
        return Problem((key,), f"{key} is a section, not a setting; {_where_to_look(key, known)}.")
    above = key
    while "." in above:
        above = above.rsplit(".", 1)[0]
        if above in known and known[above].type.startswith("list"):
            return Problem((above,), f"{key}: a list is set as a whole, as in {above}=[...].")
    others = [name for name in reference.algorithm_names() if key in reference.keys(name)]
    if others:
        hint = foreign_hint(key, known)
        instead = f"; {hint.text}" if hint and hint.settings else ""
        return Problem((key,), f"{key} is a setting of algorithm={' or '.join(others)}, not of this one{instead}.")
    hint = foreign_hint(key, known)
    if hint is not None:
        return Problem((key,), f"{key} is not a setting; {hint.text}.", meant=hint.settings)
    own = nearest_keys(key, known)
    foreign = nearest_foreign(key)
    if foreign and foreign[1] > max((similarity(_leaf(key), _leaf(name)) for name in own), default=0.0):
        hint = foreign_hint(foreign[0] if "." not in key else f"{key.rpartition('.')[0]}.{foreign[0]}", known)
        assert hint is not None
        return Problem((key,), f"{key} is not a setting; for {foreign[0]}: {hint.text}.", meant=hint.settings)
    if own:
        names = own[0] if len(own) == 1 else f"{', '.join(own[:-1])} or {own[-1]}"
        return Problem((key,), f"{key} is not a setting; did you mean {names}?", meant=own)
    section = key.rpartition(".")[0]
    return Problem(
        (key,), f"{key} is not a setting; {_where_to_look(section, known)}.", meant=(f"{section}.*",) if section else ()
    )


def _where_to_look(section: str, known: Mapping[str, reference.Key]) -> str:
    """The command that lists what there is, of the section where there is one."""
    if section and any(name.startswith(f"{section}.") for name in known):
        return f"`raylign train --help {section}` lists its settings"
    return "`raylign train --help` lists all settings"


def _leaf(key: str) -> str:
    return key.rsplit(".", 1)[-1]


def unknown_option(group: str, option: str, known: Sequence[str], given_as: str = "") -> Problem:
    """The sentence for a choice a group does not have. `given_as`: how it was given, when not as `group=option`."""
    guess = nearest(option, known)
    hint = f"did you mean {guess}? " if guess else ""
    if group == "model" and guess is None:
        hint = "a model is named with policy.model=. "
    return Problem(
        (group,),
        f"{given_as or f'{group}={option}'} is not known; {hint}{'C' if hint else 'c'}hoices: {', '.join(known)}.",
    )


def wrong_elements(key: reference.Key, value: Value) -> list[Problem]:
    """The sentences for what a list of sections cannot hold, as in `reward.rules=[{rul: finished}]`; [] when it can.

    Values are compared with their types by whoever sets them.
    """
    inside = reference.element_keys(key.type)
    example = f"[{{{', '.join(f'{k.name}: ...' for k in inside.values() if k.default == '???')}}}]"
    if not isinstance(value, list):
        return [Problem((key.name,), f"{key.name}={_shown(value)}: expected a list, as {key.name}={example}.")]
    problems = []
    for number, element in enumerate(value):
        name = f"{key.name}[{number}]"
        if not isinstance(element, dict):
            problems.append(Problem((name,), f"{name}={_shown(element)}: expected a mapping, as {example[1:-1]}."))
            continue
        for given in element:
            if given not in inside:
                guess = nearest(str(given), inside)
                hint = f"did you mean {guess}?" if guess else f"there is {', '.join(inside)}."
                problems.append(Problem((name,), f"{name}.{given} is not a setting; {hint}"))
        unknown = not set(element) <= set(inside)
        missing = [k.name for k in inside.values() if k.default == "???" and k.name not in element]
        if missing and not unknown:
            problems.append(Problem((name,), f"{name} has no {missing[0]}; give one, as {key.name}={example}."))
    return problems


def wrong_value(key: reference.Key, value: Value) -> Problem:
    """The sentence for a value of the wrong type."""
    guess = nearest(str(value), key.choices)
    hint = f" Did you mean {guess}?" if guess else ""
    return Problem((key.name,), f"{key.name}={_shown(value)}: expected {key.expected} (default {key.default}).{hint}")


def _read_one(text: str) -> Problem | Assignment | tuple[str, str]:
    form = _FORM.fullmatch(text.strip())
    if text.startswith("-"):
        return Problem((), f"{text} is not an option; settings are key=value, files --config FILE.")
    if form is None:
        if text.startswith("~"):
            return Problem((), f"{text}: settings cannot be removed; give a value instead.")
        return Problem((), f"{text} is not of the form key=value.")
    key, value = form["key"].strip(), form["value"]
    if form["sign"] == "~":
        return Problem((key,), f"{text}: settings cannot be removed; give a value instead.")
    if "@" in key or "/" in key:
        return Problem((key,), f"{text}: a choice cannot be put elsewhere; use one of {', '.join(reference.GROUPS)}.")
    if key in reference.GROUPS:
        return key, value
    if key == "environment":  # as an algorithm is named, though it is a setting
        key = "environment.name"
    if key.startswith("hydra.") and key != "hydra.searchpath":
        return Problem((key,), f"{text}: of Hydra's own settings only hydra.searchpath=[file:///folder] has a meaning.")
    return _read_value(key, value)


def _read_value(key: str, text: str) -> Problem | Assignment:
    if _is_text(key, text) and not text.startswith(("'", '"')) and "${" not in text and text != "null":
        return Assignment(key, text)  # paths and names as typed: Hydra's grammar has no place for ~, #, = or an umlaut
    try:
        parsed = OverridesParser.create().parse_override(f"x={text}")
    except HydraException:
        return Problem((key,), f"{key}={text}: the value cannot be read; put quotes around it, as in '{key}=\"...\"'.")
    if parsed.is_sweep_override():
        return Problem(
            (key,),
            f"{key}={text} is several values; a list is written {key}=[a,b], and {SWEEP.format(key=key)}.",
        )
    return Assignment(key, parsed.value())


def _is_text(key: str, text: str) -> bool:
    """True when `text` is to be taken as typed: where text belongs, and where it may but a list or mapping as well."""
    types = {reference.keys(a)[key].type for a in reference.algorithm_names() if key in reference.keys(a)}
    return "str" in types or ("Any" in types and not text.startswith(("[", "{")))


def _shown(value: Value) -> str:
    return "null" if value is None else str(value)
