"""yaml files and overrides -> one `RunConfig`, converted once. Below this file there is no Hydra and no OmegaConf.

`conf` knows no algorithm: `Catalog` brings them in (app/configuration.py has the one of the product).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hydra import compose as hydra_compose
from hydra import initialize_config_module
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import MissingMandatoryValue, OmegaConfBaseException
from raylign.conf import overrides as arguments
from raylign.conf import reference
from raylign.conf.checks import Needs, check
from raylign.conf.errors import ConfigError
from raylign.conf.overrides import Assignment, Value
from raylign.conf.problems import Problem
from raylign.conf.schema import AlgorithmConfig, RunConfig
from raylign.conf.store import register

_EXPERIMENTS = Path(__file__).parent / "experiment"


@dataclass(frozen=True, slots=True)
class Catalog:
    """The algorithms and reward rules there are."""

    configs: Mapping[str, type[AlgorithmConfig]]
    needs: Callable[[RunConfig], Needs]
    rule_problems: Callable[[str], list[str]]  # what is wrong with a reward rule's text


@dataclass(frozen=True, slots=True)
class Composed:
    """A whole run as asked for."""

    config: RunConfig
    overrides: tuple[str, ...]
    resolved_yaml: str


def compose(overrides: Sequence[str], catalog: Catalog) -> Composed:
    """The run that `overrides` describe.

    Raises ConfigError with every problem found: unknown keys and choices, wrong types, values that are missing or
    cannot be resolved, and combinations that cannot work.
    """
    given = arguments.read(overrides)
    problems = list(given.problems)
    register(catalog.configs)
    tree = _choose(dict(given.choices), problems)
    problems += _assign(tree, given.assignments)
    unresolved = list(_unresolved(tree))
    problems += unresolved
    config = None
    if not unresolved:
        config = _convert(tree)
        told = {key for problem in problems for key in problem.keys}
        found = check(config, catalog.needs(config))
        found += [Problem(("reward.rules",), p) for r in config.reward.rules for p in catalog.rule_problems(r.rule)]
        problems += [p for p in found if told.isdisjoint(p.keys)]
    if problems or config is None:
        raise ConfigError(list(dict.fromkeys(problem.sentence for problem in problems)))
    return Composed(config, tuple(overrides), OmegaConf.to_yaml(tree, resolve=True))


def from_resolved(resolved_yaml: str, catalog: Catalog, overrides: Sequence[str] = ()) -> Composed:
    """The run that a run folder's `resolved.yaml` describes. Raises ConfigError as `compose` does."""
    tree_given = OmegaConf.create(resolved_yaml)
    assert isinstance(tree_given, DictConfig)
    name = str(OmegaConf.select(tree_given, "algorithm.name", default=""))
    if name not in catalog.configs:
        raise ConfigError(arguments.unknown_option("algorithm", name).sentence)
    register(catalog.configs)
    tree = _choose({"algorithm": name}, [])
    problems = _assign(tree, list(_leaves(_plain(tree_given), reference.keys(name))))
    if problems:
        raise ConfigError([problem.sentence for problem in problems])
    return Composed(_convert(tree), tuple(overrides), OmegaConf.to_yaml(tree, resolve=True))


def _convert(tree: DictConfig) -> RunConfig:
    """The one conversion to dataclasses."""
    config = OmegaConf.to_object(tree)
    assert isinstance(config, RunConfig)
    return config


def _choose(choices: dict[str, str], problems: list[Problem]) -> DictConfig:
    """The tree of the chosen yaml files. A bad experiment file is told in `problems` and left out."""
    experiment = choices.pop("experiment", None)
    if experiment is not None:
        path = _EXPERIMENTS / f"{experiment}.yaml"
        bad = experiment_problems(path, choices)
        if not bad:
            try:
                return _hydra({**choices, "+experiment": experiment})
            except HydraException as error:  # a value of the wrong type, or a defaults list that does not hold together
                bad = [Problem((), f"conf/experiment/{path.name}: {_first_line(error)}.")]
        problems += bad
        choices = {**_defaults_of(path), **choices}
    return _hydra(choices)


def experiment_problems(path: Path, choices: Mapping[str, str]) -> list[Problem]:
    """Every key of an experiment file that no setting has, when used with these choices."""
    known = reference.keys({"algorithm": "ppo", **_defaults_of(path), **choices}["algorithm"])
    content = OmegaConf.load(path)
    assert isinstance(content, DictConfig)
    content.pop("defaults", None)
    unknown = [
        arguments.unknown_key(leaf.key, known) for leaf in _leaves(_plain(content), known) if leaf.key not in known
    ]
    return [Problem(p.keys, f"conf/experiment/{path.name}: {p.sentence}") for p in unknown]


def _hydra(choices: Mapping[str, str]) -> DictConfig:
    with initialize_config_module("raylign.conf", version_base="1.3"):
        return hydra_compose("config", [f"{group}={option}" for group, option in choices.items()])


def _first_line(error: Exception) -> str:
    """The innermost cause, which names the key, in one line."""
    while error.__cause__ is not None and isinstance(error.__cause__, Exception):
        error = error.__cause__
    return " ".join(line.strip() for line in str(error).splitlines()[:2])


def _defaults_of(path: Path) -> dict[str, str]:
    """The groups an experiment file chooses, from its `override /group: option` lines."""
    content = OmegaConf.load(path)
    assert isinstance(content, DictConfig)
    found: dict[str, str] = {}
    for entry in content.get("defaults", []):
        if isinstance(entry, DictConfig):
            found |= {str(key).removeprefix("override /"): str(option) for key, option in entry.items()}
    return found


def _leaves(tree: Mapping[str, Value], known: reference.Keys, prefix: str = "") -> Iterator[Assignment]:
    """Settings a plain yaml tree gives; a known setting is a leaf whatever it holds."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in known:
            yield from _leaves(value, known, f"{key}.")
        else:
            yield Assignment(key, value)


def _plain(tree: DictConfig) -> dict[str, Value]:
    """As yaml has it: interpolations and `???` are still words."""
    plain = OmegaConf.to_container(tree, resolve=False)
    assert isinstance(plain, dict)
    return {str(key): value for key, value in plain.items()}


def _assign(tree: DictConfig, assignments: Sequence[Assignment]) -> list[Problem]:
    """Set what can be set; one problem for each that cannot."""
    known = reference.keys(OmegaConf.select(tree, "algorithm.name"))
    problems: list[Problem] = []
    for assignment in assignments:
        key = known.get(assignment.key)
        if key is None:
            problems.append(arguments.unknown_key(assignment.key, known))
            continue
        try:
            OmegaConf.update(tree, assignment.key, assignment.value, merge=True)
        except OmegaConfBaseException as error:
            problems.append(_refusal(key, assignment.value, error))
    return problems


def _refusal(key: reference.Key, value: Value, error: OmegaConfBaseException) -> Problem:
    if not key.type.startswith("list"):
        return arguments.wrong_value(key, value)
    reason = str(error).split("\n", 1)[0]  # OmegaConf names the element's own key; nothing better is known here
    return Problem((key.name,), f"{key.name}={value}: {reason}; expected {key.expected}.")


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
            yield Problem((key,), f"{key} cannot be resolved: {str(error).splitlines()[0]}.")
