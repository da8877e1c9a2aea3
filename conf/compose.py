"""yaml files and overrides -> one `RunConfig`, converted once. Below this file there is no Hydra and no OmegaConf.

`conf` knows no algorithm: `Catalog` brings them in (app/configuration.py has the one of the product).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from raylign.conf import overrides as arguments
from raylign.conf import reference, schema
from raylign.conf.checks import Needs, check
from raylign.conf.errors import ConfigError
from raylign.conf.layers import SearchPath, leaves, read_layers, search_folder
from raylign.conf.overrides import Assignment, Value
from raylign.conf.own_code import OwnCodeError, is_own
from raylign.conf.own_settings import own_section
from raylign.conf.problems import Problem, root_problems
from raylign.conf.schema import AlgorithmConfig, RunConfig
from raylign.conf.store import register, register_own

_merged: dict[tuple[str, type[AlgorithmConfig]], DictConfig] = {}
"""Trees of defaults, to be copied: a process that composes often (a loop, a sweep) has Hydra merge each once."""


@dataclass(frozen=True, slots=True)
class Catalog:
    """The algorithms and reward rules there are."""

    configs: Mapping[str, type[AlgorithmConfig]]
    needs: Callable[[RunConfig], Needs]
    rule_problems: Callable[[str], list[str]]  # what is wrong with a reward rule's text
    own: Callable[[str], type[AlgorithmConfig]]  # settings of FILE.py:CLASS; raises OwnCodeError
    own_problems: Callable[[AlgorithmConfig], list[str]]  # what is wrong with a user's own algorithm when tried


@dataclass(frozen=True, slots=True)
class Composed:
    """A whole run as asked for."""

    config: RunConfig
    overrides: tuple[str, ...]
    resolved_yaml: str


def compose(overrides: Sequence[str], catalog: Catalog, *, elsewhere: bool = False) -> Composed:
    """The run that `overrides` describe: settings, choices, and the files of `--config=` and `--config-dir=`.

    Raises ConfigError with every problem found: unknown keys and choices, wrong types, values that are missing or
    cannot be resolved, and combinations that cannot work. Where a file or an experiment could not be read, what may
    only follow from its absence is left out. `elsewhere`: the run starts on another machine, where files and folders
    named by an absolute path may be that are not here.
    """
    given = arguments.read(overrides)
    problems = list(given.problems)
    register(catalog.configs)
    folders = [f for text in given.folders for f in search_folder(text, "--config-dir", problems)]
    no_folder = len(problems) > len(given.problems)
    layers = read_layers(given.choices, [Path(file) for file in given.files], SearchPath(tuple(folders)))
    problems += [p for p in layers.problems if not (no_folder and p.keys == ("experiment",))]  # it may be in there
    partial = bool(layers.problems) or given.misread_file or no_folder
    algorithm = layers.algorithm
    if is_own(algorithm) and (refused := _load_own(algorithm, catalog)):
        problems.append(refused)
        algorithm, partial = "ppo", True
    tree = _hydra(algorithm, catalog)
    bad = _assign(tree, [*layers.assignments, *given.assignments])
    problems += [p for p in bad if not (partial and _of_another_algorithm(p, algorithm))]
    found = list(_unresolved(tree))
    if found:
        found = [] if partial else found
    else:
        config = _convert(tree)
        if not problems and is_own(algorithm) and (own := catalog.own_problems(config.algorithm)):
            raise ConfigError([f"algorithm={algorithm}: {sentence}." for sentence in own])
        found = check(config, catalog.needs(config))
        found += [Problem(("reward.rules",), p) for r in config.reward.rules for p in catalog.rule_problems(r.rule)]
        stated = {assignment.key for assignment in given.assignments}
        if partial:  # of what was given itself, not of what the missing part would have set
            found = [p for p in found if len(p.keys) == 1 and stated.issuperset(p.keys)]
        found = [p for p in found if not (elsewhere and os.path.isabs(os.path.expanduser(p.missing)))]
    if roots := root_problems(problems, found):
        raise ConfigError(list(dict.fromkeys(problem.sentence for problem in roots)))
    return Composed(_convert(tree), tuple(overrides), OmegaConf.to_yaml(tree, resolve=True))


def from_resolved(resolved_yaml: str, catalog: Catalog, overrides: Sequence[str] = ()) -> Composed:
    """The run that a run folder's `resolved.yaml` describes. Raises ConfigError as `compose` does."""
    tree_given = OmegaConf.create(resolved_yaml)
    assert isinstance(tree_given, DictConfig)
    name = str(OmegaConf.select(tree_given, "algorithm.name", default=""))
    if is_own(name):
        if refused := _load_own(name, catalog):
            raise ConfigError(refused.sentence)
    elif name not in catalog.configs:
        raise ConfigError(arguments.unknown_option("algorithm", name, sorted(catalog.configs)).sentence)
    register(catalog.configs)
    tree = _hydra(name, catalog)
    given = OmegaConf.to_container(tree_given, resolve=False)
    assert isinstance(given, dict)
    plain = {str(key): value for key, value in given.items()}
    problems = _assign(tree, [Assignment(key, value) for key, value in leaves(plain, reference.keys(name))])
    if problems:
        raise ConfigError([problem.sentence for problem in problems])
    return Composed(_convert(tree), tuple(overrides), OmegaConf.to_yaml(tree, resolve=True))


def _convert(tree: DictConfig) -> RunConfig:
    """The one conversion to dataclasses."""
    config = OmegaConf.to_object(tree)
    assert isinstance(config, RunConfig)
    return config


def _hydra(algorithm: str, catalog: Catalog) -> DictConfig:
    """The tree of defaults with the settings of an algorithm, whose own code is loaded already."""
    settings = catalog.own(algorithm) if is_own(algorithm) else catalog.configs[algorithm]
    if (algorithm, settings) not in _merged:
        choice = register_own(settings) if is_own(algorithm) else algorithm
        with initialize_config_module("raylign.conf", version_base="1.3"):
            _merged[algorithm, settings] = hydra_compose("config", [f"algorithm={choice}"])
    tree = deepcopy(_merged[algorithm, settings])
    if is_own(algorithm):
        OmegaConf.update(tree, "algorithm.name", algorithm)
    return tree


def _load_own(algorithm: str, catalog: Catalog) -> Problem | None:
    """Make the settings of a user's own algorithm known; a problem when it cannot be loaded."""
    try:
        reference.register_own(algorithm, own_section(catalog.own(algorithm)))
    except OwnCodeError as error:
        return Problem(("algorithm",), f"algorithm={algorithm}: {error}.")
    return None


def _of_another_algorithm(problem: Problem, algorithm: str) -> bool:
    """True for a setting that only the algorithm of a file that could not be read may have."""
    return all(key not in reference.keys(algorithm) for key in problem.keys) and any(
        key in reference.keys(name) for key in problem.keys for name in reference.algorithm_names()
    )


def _assign(tree: DictConfig, assignments: Sequence[Assignment]) -> list[Problem]:
    """Set what can be set; one problem for each that cannot."""
    known = reference.keys(OmegaConf.select(tree, "algorithm.name"))
    problems: list[Problem] = []
    for assignment in assignments:
        parent, _, child = assignment.key.rpartition(".")
        if parent in known and known[parent].type.startswith("dict"):  # one entry of a mapping
            assignment = Assignment(parent, {child: assignment.value}, assignment.origin)
        key = known.get(assignment.key)
        if key is None:
            problems.append(_at(assignment, arguments.unknown_key(assignment.key, known)))
            continue
        wrong = _wrong_elements(key, assignment.value) if reference.element_keys(key.type) else []
        try:
            if not wrong:
                OmegaConf.update(
                    tree, assignment.key, assignment.value, merge=True, force_add=key.type.startswith("dict")
                )
        except OmegaConfBaseException as error:
            wrong = [_refusal(key, assignment.value, error)]
        problems += [_at(assignment, problem) for problem in wrong]
    return problems


def _wrong_elements(key: reference.Key, value: Value) -> list[Problem]:
    """What a list of sections, as reward.rules, cannot hold: all of it, which OmegaConf would not say."""
    if wrong := arguments.wrong_elements(key, value):
        return wrong
    inside = reference.element_keys(key.type)
    kind = getattr(schema, reference.element_of(key.type))
    assert isinstance(value, list)
    for number, element in enumerate(value):
        for name, given in element.items():
            try:
                OmegaConf.update(OmegaConf.structured(kind), name, given)
            except OmegaConfBaseException:
                wrong.append(arguments.wrong_value(replace(inside[name], name=f"{key.name}[{number}].{name}"), given))
    return wrong


def _at(assignment: Assignment, problem: Problem) -> Problem:
    """With the file and line that the setting was written in."""
    return problem._replace(sentence=f"{assignment.origin}: {problem.sentence}") if assignment.origin else problem


def _refusal(key: reference.Key, value: Value, error: OmegaConfBaseException) -> Problem:
    where = str(error.full_key or key.name)
    if where == key.name or not key.type.startswith("list"):
        return arguments.wrong_value(key, value)
    element = reference.element_of(key.type)  # an element of a list of plain values
    wanted = f"expected {reference.expected(element)}" if reference.is_plain(element) else f"give {key.expected}"
    return Problem((key.name,), f"{where}={error.value}: {wanted}.")


def _unresolved(tree: DictConfig) -> Iterator[Problem]:
    """Settings still `???`, and interpolations that lead nowhere."""
    for key in reference.keys(OmegaConf.select(tree, "algorithm.name")):
        try:
            value = OmegaConf.select(tree, key, throw_on_missing=True)
            if OmegaConf.is_config(value):
                OmegaConf.to_container(value, resolve=True, throw_on_missing=True)
        except MissingMandatoryValue:
            yield Problem((key,), f"{key} has no value yet; give one with {key}=...")
        except OmegaConfBaseException as error:
            reason = str(error).splitlines()[0].removeprefix("ValueError raised while resolving interpolation: ")
            yield Problem((key,), f"{key} cannot be resolved: {reason}.")
