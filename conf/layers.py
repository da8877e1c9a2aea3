"""Yaml files of choices and settings -> assignments in order, each with the file and line it was written in.

The files have Hydra's form: a `defaults:` list that names other files and choices, and settings. They are read here and
not by Hydra because Hydra keeps neither the line of a value nor more than the first mistake. The order is Hydra's too:
the chosen algorithm, model and cluster first, then experiments and files in the order of their `defaults:`, and what a
file states where its `_self_` stands, or last. Shipped files and a user's are the same to this module.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from raylign.conf import reference
from raylign.conf.nearest import nearest
from raylign.conf.overrides import Assignment, unknown_option
from raylign.conf.own_code import is_own
from raylign.conf.problems import Problem
from raylign.conf.yaml_text import check_limits, read_yaml_text

_SHIPPED = Path(__file__).parent
_CHOICES = ("algorithm", "model", "cluster")  # one option each; an experiment is a file on top of them


@dataclass(frozen=True, slots=True)
class SearchPath:
    """Where choices are looked for: the user's folders in order, then the shipped ones."""

    folders: tuple[Path, ...] = ()

    def options(self, group: str) -> list[str]:
        """Every option of a group."""
        own = {path.stem for folder in self.folders for path in (folder / group).glob("*.yaml")}
        return sorted(own | set(reference.options(group)))

    def find(self, name: str) -> Path | None:
        """The file of `group/option` or of a bare name."""
        candidates = (folder / f"{name.removesuffix('.yaml')}.yaml" for folder in (*self.folders, _SHIPPED))
        return next((path for path in candidates if path.is_file()), None)

    def with_folder(self, folder: Path) -> SearchPath:
        """With one more folder of the user's, looked into after those there are."""
        return self if folder in self.folders else SearchPath((*self.folders, folder))


@dataclass(slots=True)
class Layers:
    """What all files together say."""

    algorithm: str
    assignments: list[Assignment]
    problems: list[Problem]


@dataclass(slots=True)
class _Reading:
    """What has been read so far, in order."""

    search: SearchPath
    choices: dict[str, str] = field(default_factory=dict)
    assignments: list[Assignment] = field(default_factory=list)
    problems: list[Problem] = field(default_factory=list)
    open_files: list[Path] = field(default_factory=list)


def read_layers(choices: Mapping[str, str], files: Sequence[Path], search: SearchPath) -> Layers:
    """The files that the command line names (`choices`, then `--config` files), one after the other.

    Its choices of algorithm, model and cluster win over those of files. Nothing is raised: every mistake is a problem.
    """
    reading = _Reading(search)
    if experiment := choices.get("experiment"):
        _read_option(reading, "experiment", experiment, f"+experiment={experiment}")
    for path in files:
        _read_file(reading, path, prefix="", named_as=f"--config {path}")
    chosen = {"algorithm": "ppo"} | reading.choices | {g: c for g, c in choices.items() if g in _CHOICES}
    below = _Reading(reading.search, problems=reading.problems)  # a file may have added folders
    for group in _CHOICES[1:]:
        if option := chosen.get(group):
            _read_option(below, group, option, f"{group}={option}")
    algorithm = _read_algorithm(below, chosen["algorithm"])
    return Layers(algorithm, [*below.assignments, *reading.assignments], reading.problems)


def _read_algorithm(reading: _Reading, option: str) -> str:
    """The algorithm that `option` is, or is built on; what the user's file changes of it goes to `reading`.

    Code of the user's own is returned as it is named, not yet loaded.
    """
    if is_own(option) or option in reference.algorithm_names():
        return option
    path = reading.search.find(f"algorithm/{option}")
    if path is None:
        reading.problems.append(unknown_option("algorithm", option, reading.search.options("algorithm")))
        return "ppo"
    content = _load(reading, path)
    entries = content.defaults if content else []
    named = [str(entry).removeprefix("base_") for entry in entries if isinstance(entry, str)]
    bases = [name for name in named if is_own(name) or name in reference.algorithm_names()]
    if content is None or not bases:
        known = ", ".join(reference.algorithm_names())
        sentence = (
            f"{_shown(path)}: an algorithm's file names the one it is built on in `defaults:`, one of {known}, or "
            "FILE.py:CLASS."
        )
        reading.problems.append(Problem(("algorithm",), sentence))
        return "ppo"
    reading.assignments += content.assignments("algorithm.")
    return bases[0]


def _read_option(reading: _Reading, group: str, option: str, named_as: str) -> None:
    path = reading.search.find(f"{group}/{option}")
    if path is None:
        reading.problems.append(unknown_option(group, option, reading.search.options(group), given_as=named_as))
    else:
        _read_file(reading, path, prefix="", named_as=named_as)


def _read_file(reading: _Reading, path: Path, *, prefix: str, named_as: str) -> None:
    """Append what `path` and the files in its `defaults:` say. `named_as`: how it was named, for messages."""
    path = path.expanduser()
    if path.resolve() in reading.open_files:
        reading.problems.append(Problem((), f"{named_as}: {_shown(path)} names itself through its `defaults:`."))
        return
    content = _load(reading, path, named_as)
    if content is None:
        return
    reading.open_files.append(path.resolve())
    for folder in content.search_folders(reading.problems):
        reading.search = reading.search.with_folder(folder)
    entries = content.defaults if "_self_" in content.defaults else [*content.defaults, "_self_"]
    for entry in entries:
        if entry == "_self_":
            reading.choices |= content.choices()
            reading.assignments += content.assignments(prefix)
        else:
            _read_default(reading, content, entry)
    reading.open_files.pop()


def _read_default(reading: _Reading, content: _Content, entry: object) -> None:
    """One entry of a `defaults:` list: a file's name, or `group: option`."""
    where = content.where("defaults")
    if isinstance(entry, str):
        name = entry.strip("/")
        beside = content.path.parent / f"{name.removesuffix('.yaml')}.yaml"
        inside = f"{content.path.parent.name}/{name}"  # of the same group in another folder, as in Hydra
        path = beside if beside.is_file() else reading.search.find(inside) or reading.search.find(name)
        if path is None:
            reading.problems.append(_missing(f"{where}: `defaults:` names {entry}", beside, reading.search))
        else:
            group, _, option = name.rpartition("/")
            if group in _CHOICES:
                reading.choices[group] = option
            else:
                _read_file(reading, path, prefix=_package(path, group), named_as=f"{where}: {entry}")
        return
    if not isinstance(entry, Mapping) or len(entry) != 1:
        sentence = f"{where}: `defaults:` holds {entry!r}; an entry is a file's name, or `group: option`."
        reading.problems.append(Problem((), sentence))
        return
    ((key, given),) = entry.items()
    group = str(key).removeprefix("override").strip().strip("/")
    if "@" in group:
        sentence = f"{where}: `{key}`: a package (@) is not supported; give the settings by their full names."
        reading.problems.append(Problem((), sentence))
        return
    for option in given if isinstance(given, list) else [given]:
        if group in _CHOICES:
            if option in reading.search.options(group) or (group == "algorithm" and is_own(str(option))):
                reading.choices[group] = str(option)
            else:
                unknown = unknown_option(group, str(option), reading.search.options(group))
                reading.problems.append(Problem(unknown.keys, f"{where}: {unknown.sentence}"))
        else:
            _read_default(reading, content, f"{group}/{option}")


def _missing(what: str, beside: Path, search: SearchPath) -> Problem:
    near = sorted({path.stem for path in beside.parent.glob("*.yaml")} | set(search.options(beside.parent.name)))
    guess = nearest(beside.stem, near)
    looked = ", ".join(str(folder.absolute()) for folder in (beside.parent, *search.folders))
    hint = f"; did you mean {guess}?" if guess else "; correct the name."
    return Problem((), f"{what}: there is no such file in {looked}{hint}")


def _package(path: Path, group: str) -> str:
    """Under which section the settings of a file in a group's folder belong, as Hydra has it."""
    head = path.read_text(encoding="utf-8", errors="replace").lstrip().partition("\n")[0]
    if not group or group in reference.GROUPS or head.replace(" ", "").startswith("#@package_global_"):
        return ""
    return f"{group.replace('/', '.')}."


@dataclass(frozen=True, slots=True)
class _Content:
    """One file, parsed."""

    path: Path
    values: Mapping[str, object]
    lines: Mapping[str, int]  # full dotted name -> line
    defaults: list[object]

    def where(self, key: str) -> str:
        """File and line of a key."""
        return f"{_shown(self.path)}:{self.lines[key]}" if key in self.lines else _shown(self.path)

    def choices(self) -> dict[str, str]:
        """Choices written as settings: `algorithm: grpo`."""
        return {g: str(v) for g, v in self.values.items() if g in _CHOICES and isinstance(v, str)}

    def assignments(self, prefix: str) -> list[Assignment]:
        """Its settings."""
        known = reference.keys("ppo")  # for the settings that may hold a mapping: every algorithm has the same
        values = {k: v for k, v in self.values.items() if k not in (*self.choices(), "hydra")}
        return [
            Assignment(key, value, self.where(key.removeprefix(prefix))) for key, value in leaves(values, known, prefix)
        ]

    def search_folders(self, problems: list[Problem]) -> Iterator[Path]:
        """The folders of its `hydra: searchpath:`."""
        hydra = self.values.get("hydra")
        if hydra is None:
            return
        if not isinstance(hydra, Mapping) or set(hydra) != {"searchpath"}:
            sentence = f"{self.where('hydra')}: of `hydra:` only `searchpath: [file:///folder]` has a meaning here."
            problems.append(Problem((), sentence))
            return
        for folder in hydra["searchpath"] if isinstance(hydra["searchpath"], list) else [hydra["searchpath"]]:
            yield from search_folder(str(folder), self.where("hydra.searchpath"), problems)


def search_folder(text: str, where: str, problems: list[Problem]) -> Iterator[Path]:
    """The folder that an entry of a search path names; a problem when there is none."""
    if text.startswith("pkg://"):
        problems.append(Problem((), f"{where}: {text}: only folders (file://) can be searched, not packages."))
        return
    folder = Path(text.removeprefix("file://")).expanduser()
    if folder.is_dir():
        yield folder
    else:
        named = f"{where}={folder}" if where.startswith("--") else f"{where}: {folder}"  # an option, or a file's line
        problems.append(Problem((), f"{named}: there is no such folder; correct the path."))


def leaves(tree: Mapping[str, object], known: reference.Keys, prefix: str = "") -> Iterator[tuple[str, object]]:
    """Settings of a plain yaml tree by full dotted name; a known setting is a leaf whatever it holds."""
    for name, value in tree.items():
        key = f"{prefix}{name}"
        if isinstance(value, dict) and key not in known:
            yield from leaves(value, known, f"{key}.")
        else:
            yield key, value


def _load(reading: _Reading, path: Path, named_as: str = "") -> _Content | None:
    """The parsed file; None, and a problem, for one that is missing or no mapping in yaml."""
    if not path.is_file():
        reading.problems.append(_missing(named_as or str(path), path, reading.search))
        return None
    try:
        text = read_yaml_text(path)
        check_limits(text)
        content = OmegaConf.create(text)
        values = OmegaConf.to_container(content, resolve=False)
        root = yaml.compose(text, Loader=yaml.SafeLoader)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        reason = getattr(error, "problem", None) or str(error).splitlines()[0]
        reading.problems.append(Problem((), f"{_shown(path)}{line}: not readable as yaml ({reason})."))
        return None
    if not isinstance(values, dict):
        sentence = f"{_shown(path)}: holds a {type(values).__name__}; a file of settings is `key: value` lines."
        reading.problems.append(Problem((), sentence))
        return None
    lines = dict(_lines(root, "")) if root is not None else {}
    named = {str(key): value for key, value in values.items()}
    given = named.pop("defaults", None) or []
    return _Content(path, named, lines, given if isinstance(given, list) else [given])


def _lines(node: yaml.Node, prefix: str) -> Iterator[tuple[str, int]]:
    if isinstance(node, yaml.MappingNode):
        for key, value in node.value:
            name = f"{prefix}{key.value}"
            yield name, key.start_mark.line + 1
            yield from _lines(value, f"{name}.")


def _shown(path: Path) -> str:
    """A shipped file as `conf/...`, another as it was named."""
    return f"conf/{path.relative_to(_SHIPPED)}" if path.is_relative_to(_SHIPPED) else str(path)
