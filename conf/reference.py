"""The reference of all settings, read from the source of the dataclasses: names, types, defaults, docs.

Reading source costs milliseconds where importing the algorithms costs an `import torch`; `--help` lives on it, and so
do the nearest-name suggestions. A test holds it equal to the real dataclasses. Standard library only.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

_CONF = Path(__file__).parent
_ALGORITHMS = _CONF.parent / "trainer" / "algorithms"
_OWN: dict[str, Section] = {}
Keys = Mapping[str, "Key"]
GROUPS = ("algorithm", "model", "cluster", "experiment")


@dataclass(frozen=True, slots=True)
class Key:
    """One setting."""

    name: str  # full dotted name
    type: str  # annotation as written: "float", "Precision", "list[RuleRewardConfig]"
    default: str  # as yaml writes it; "???" when required
    doc: str
    choices: tuple[str, ...]  # of an Enum, else empty
    expected: str  # what a value must be, in words


@dataclass(frozen=True, slots=True)
class Section:
    """A dataclass in its place in the tree."""

    name: str  # dotted; "" for the run itself
    doc: str
    keys: tuple[Key, ...]


@dataclass(slots=True)
class _Class:
    bases: list[str]
    doc: str
    fields: list[tuple[str, str, ast.expr | None, str]] = field(default_factory=list)
    members: tuple[str, ...] = ()


def options(group: str) -> list[str]:
    """The choices a group has: its yaml files."""
    return sorted(path.stem for path in (_CONF / group).glob("*.yaml"))


def first_comment(group: str, option: str) -> str:
    """The first comment line of a choice that is not a Hydra directive: what the choice is for."""
    lines = (_CONF / group / f"{option}.yaml").read_text().splitlines()
    comments = (line[1:].strip() for line in lines if line.startswith("#"))
    return next((text for text in comments if not text.startswith("@package")), "")


def algorithm_of(experiment: str) -> str | None:
    """The algorithm an experiment file chooses; None when it leaves the default."""
    text = (_CONF / "experiment" / f"{experiment}.yaml").read_text()
    match = re.search(r"override /algorithm: *(\w+)", text)
    return match.group(1) if match else None


@cache
def sections(algorithm: str) -> tuple[Section, ...]:
    """All sections of a run that uses `algorithm`, the run's own keys first."""
    if algorithm in _OWN:
        shared = [section for section in sections("ppo") if section.name != "algorithm"]
        return (*shared, _OWN[algorithm])
    classes = _classes()
    config = _algorithm_configs()[algorithm]
    return tuple(_walk(classes, "RunConfig", "", {"AlgorithmConfig": config}))


@cache
def keys(algorithm: str) -> Keys:
    """Every setting of a run that uses `algorithm`, by full dotted name."""
    return {key.name: key for section in sections(algorithm) for key in section.keys}


@cache
def element_keys(annotation: str) -> Keys:
    """The settings of one element of `list[SomeConfig]`, by their own names; empty for a list of plain values."""
    classes, element = _classes(), element_of(annotation)
    if element not in classes or classes[element].members:
        return {}
    (section,) = _walk(classes, element, "", {})
    return {key.name: key for key in section.keys}


def register_own(named: str, section: Section) -> None:
    """Make the settings of a user's own algorithm known under the path that names it (conf/own_settings.py)."""
    _OWN[named] = section
    sections.cache_clear()
    keys.cache_clear()


@cache
def algorithm_names() -> tuple[str, ...]:
    """The algorithms there are, as the table in trainer/algorithms/__init__.py lists them."""
    return tuple(_algorithm_configs())


def algorithm_doc(name: str) -> str:
    """First line of the docstring of the algorithm's settings."""
    return _classes()[_algorithm_configs()[name]].doc.split("\n", 1)[0]


@cache
def _algorithm_configs() -> dict[str, str]:
    """Algorithm name -> name of its config class, from the literal table ALGORITHMS."""
    tree = ast.parse((_ALGORITHMS / "__init__.py").read_text())
    for node in tree.body:
        target = (
            node.target
            if isinstance(node, ast.AnnAssign)
            else node.targets[0]
            if isinstance(node, ast.Assign)
            else None
        )
        if isinstance(target, ast.Name) and target.id == "ALGORITHMS" and isinstance(node, ast.AnnAssign | ast.Assign):
            return dict(_table_row(key, value) for key, value in _dict_items(node.value))
    raise LookupError("trainer/algorithms/__init__.py has no literal table ALGORITHMS")


def _dict_items(node: ast.expr | None) -> Iterator[tuple[ast.expr, ast.expr]]:
    if not isinstance(node, ast.Dict):
        raise LookupError("ALGORITHMS must be a literal dict")
    for key, value in zip(node.keys, node.values, strict=True):
        if key is not None:
            yield key, value


def _table_row(key: ast.expr, value: ast.expr) -> tuple[str, str]:
    config = value.elts[0] if isinstance(value, ast.Tuple) else value.args[0] if isinstance(value, ast.Call) else value
    return ast.literal_eval(key), ast.unparse(config)


@cache
def _classes() -> dict[str, _Class]:
    found: dict[str, _Class] = {}
    for path in [_CONF / "choices.py", _CONF / "schema.py", *sorted(_ALGORITHMS.glob("*.py"))]:
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.ClassDef):
                found[node.name] = _read_class(node)
    return found


def _read_class(node: ast.ClassDef) -> _Class:
    bases = [ast.unparse(base) for base in node.bases]
    read = _Class(bases, ast.get_docstring(node) or "")
    if "Enum" in bases:
        read.members = tuple(
            s.targets[0].id for s in node.body if isinstance(s, ast.Assign) and isinstance(s.targets[0], ast.Name)
        )
        return read
    for i, statement in enumerate(node.body):
        if not (isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)):
            continue
        annotation = ast.unparse(statement.annotation)
        if not annotation.startswith("ClassVar"):
            after = node.body[i + 1] if i + 1 < len(node.body) else None
            read.fields.append((statement.target.id, annotation, statement.value, docstring(after)))
    return read


def docstring(node: ast.stmt | None) -> str:
    """The text of a statement that is nothing but a text; else empty."""
    if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
        return " ".join(node.value.value.split())
    return ""


def _all_fields(classes: dict[str, _Class], name: str) -> dict[str, tuple[str, ast.expr | None, str]]:
    """Fields with the inherited ones first; a redefinition keeps the inherited doc unless it has its own."""
    merged: dict[str, tuple[str, ast.expr | None, str]] = {}
    for base in classes[name].bases:
        merged |= _all_fields(classes, base) if base in classes else {}
    for field_name, annotation, default, doc in classes[name].fields:
        merged[field_name] = (annotation, default, doc or (merged[field_name][2] if field_name in merged else ""))
    return merged


def _walk(classes: dict[str, _Class], class_name: str, prefix: str, replaced: Mapping[str, str]) -> Iterator[Section]:
    leaves: list[Key] = []
    below: list[Section] = []
    for name, (annotation, default, doc) in _all_fields(classes, class_name).items():
        full = f"{prefix}{name}"
        kind = classes.get(replaced.get(annotation, annotation))
        if kind is not None and not kind.members:
            below += _walk(classes, replaced.get(annotation, annotation), f"{full}.", replaced)
        else:
            choices = kind.members if kind else ()
            leaves.append(Key(full, annotation, _yaml_default(default), doc, choices, _expected(classes, annotation)))
    yield Section(prefix.rstrip("."), classes[class_name].doc, tuple(leaves))
    yield from below


_PLAIN = {"int": "a whole number", "float": "a number", "bool": "true or false", "str": "text"}


def is_plain(annotation: str) -> bool:
    """True for a number, a switch or text."""
    return annotation in _PLAIN


def element_of(annotation: str) -> str:
    """What a list holds: `str` of `list[str]`."""
    return annotation.partition("[")[2].rstrip("]")


def expected(plain: str) -> str:
    """What a value of a plain type must be, in words."""
    return _PLAIN[plain]


def _expected(classes: dict[str, _Class], annotation: str) -> str:
    if annotation in _PLAIN:
        return _PLAIN[annotation]
    if annotation == "Any":
        return "text, a list of texts or a mapping of names to texts"
    if annotation in classes:
        return f"one of {', '.join(classes[annotation].members)}"
    if annotation.startswith("dict"):
        return "a mapping such as {name: text}"
    element = element_of(annotation)
    if element in classes and classes[element].members:
        return f"a list of {', '.join(classes[element].members)}, as [{classes[element].members[0]}]"
    if element in classes:
        return f"a list such as [{{{', '.join(f'{key.name}: ...' for key in element_keys(annotation).values())}}}]"
    return "a list such as [a,b]"


def _yaml_default(node: ast.expr | None) -> str:
    if node is None:
        return "???"
    if isinstance(node, ast.Attribute):  # an Enum member
        return node.attr
    if isinstance(node, ast.Call):  # field(default_factory=...)
        made = node.keywords[0].value if node.keywords else None
        if isinstance(made, ast.Lambda) and isinstance(made.body, ast.List):  # a list of Enum members
            return f"[{', '.join(_yaml_default(item) for item in made.body.elts)}]"
        return "[]" if "list" in ast.unparse(node) else "{}"
    value = ast.literal_eval(node)
    if isinstance(value, bool) or value is None:
        return str(value).lower().replace("none", "null")
    return str(list(value)) if isinstance(value, tuple) else str(value) or "''"
