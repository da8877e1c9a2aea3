"""`key=value` arguments into `BuildSettings`: all problems at once, unknown keys with the nearest known one."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from enum import Enum
from pathlib import Path
from typing import get_type_hints

from phonenumbers import SUPPORTED_REGIONS
from raylign.conf.errors import ConfigError
from raylign.conf.nearest import nearest_key
from raylign.feedback.clean.entity_labels import parse_labels
from raylign.feedback.scores import parse_scores
from raylign.feedback.settings import BuildSettings

Value = bool | int | float | str | tuple[str, ...] | Enum


@dataclass(frozen=True, slots=True)
class Key:
    """One setting: its dotted name, type, value and meaning."""

    name: str
    type: object
    value: Value
    doc: str

    @property
    def shown(self) -> str:
        """The value as it is written on the command line."""
        return show(self.value)


def keys(settings: BuildSettings) -> list[Key]:
    """Every setting with its value, in the order of the file."""
    found = []
    for section in fields(settings):
        part = getattr(settings, section.name)
        types = get_type_hints(type(part))
        for item in fields(part):
            name = f"{section.name}.{item.name}"
            found.append(Key(name, types[item.name], getattr(part, item.name), item.metadata["doc"]))
    return found


def show(value: Value) -> str:
    """A value as it is written on the command line."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Enum):
        return str(value.value)
    if isinstance(value, tuple):
        return f"[{','.join(value)}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def parse_settings(overrides: Sequence[str]) -> BuildSettings:
    """The defaults with `overrides` applied. Raises ConfigError with every problem."""
    settings = BuildSettings()
    known = {key.name: key for key in keys(settings)}
    problems: list[str] = []
    for text in overrides:
        name, equals, given = text.partition("=")
        name = name.strip()
        if not equals:
            problems.append(f"{text} is not of the form key=value.")
        elif name not in known:
            guess = nearest_key(name, known)
            hint = f"did you mean {guess}?" if guess else "`raylign feedback build --help` lists all settings."
            problems.append(f"{name} is not a setting; {hint}")
        else:
            key = known[name]
            try:
                value = _read(given.strip(), key.type)
            except ValueError:
                problems.append(f"{name}={given}: expected {_expected(key.type)} (default {key.shown}).")
                continue
            section, item = name.split(".")
            settings = replace(settings, **{section: replace(getattr(settings, section), **{item: value})})
    problems += _impossible(settings)
    if problems:
        raise ConfigError(problems)
    return settings


def _read(text: str, kind: object) -> Value:
    if kind is bool:
        if text.lower() not in ("true", "false"):
            raise ValueError(text)
        return text.lower() == "true"
    if kind is int:
        return int(text)
    if kind is float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError(text)
        return number
    if isinstance(kind, type) and issubclass(kind, Enum):
        return kind(text)
    if kind is str:
        return text
    inner = text[1:-1] if text.startswith("[") and text.endswith("]") else text
    return tuple(part.strip() for part in inner.split(",") if part.strip())


def _expected(kind: object) -> str:
    if isinstance(kind, type) and issubclass(kind, Enum):
        return "one of " + ", ".join(str(member.value) for member in kind)
    names: dict[object, str] = {bool: "true or false", int: "a whole number", float: "a number", str: "text"}
    return names.get(kind, "a list, as in [a,b]")


_SHARES = (
    "ratings.good",
    "ratings.bad",
    "corrections.min_precision",
    "clean.near_threshold",
    "split.near_threshold",
    "split.eval",
    "split.test",
    "sft.min_distinct_words",
    "trust.balance_power",
    "trust.ai_min_agreement",
)
_COUNTS = ("clean.rows_per_user", "clean.rows_per_prompt", "sft.min_chars", "sft.max_chars")
_WEIGHTS = ("pairs.thumb_weight_cap", "pairs.in_conversation_weight", "trust.ai_weight")


def _impossible(settings: BuildSettings) -> Iterator[str]:
    values = {key.name: key.value for key in keys(settings)}
    for name in _SHARES:
        if not 0 <= _number(values[name]) <= 1:
            yield f"{name}={show(values[name])}: expected a share from 0 to 1."
    for name in _COUNTS:
        if _number(values[name]) < 0:
            yield f"{name}={show(values[name])}: expected 0 or more."
    for name in _WEIGHTS:
        if not 0 < _number(values[name]) <= 1:
            yield f"{name}={show(values[name])}: expected a weight above 0, at most 1."
    yield from _unreadable_scores(settings)
    yield from _unknown_regions(settings)
    yield from _unreadable_labels(settings)
    yield from _contradictions(settings)
    yield from _missing_files(settings)


def _contradictions(settings: BuildSettings) -> Iterator[str]:
    if not 0 <= settings.pairs.min_agreement < 1:
        yield f"pairs.min_agreement={settings.pairs.min_agreement:g}: expected a share from 0 to below 1."
    if settings.clean.benchmark_ngram < 1:
        yield f"clean.benchmark_ngram={settings.clean.benchmark_ngram}: expected 1 or more words."
    if settings.split.eval + settings.split.test >= 1:
        yield f"split.eval={settings.split.eval:g} and split.test={settings.split.test:g} leave nothing to train on."
    if settings.ratings.bad >= settings.ratings.good:
        yield f"ratings.bad={settings.ratings.bad:g} must be below ratings.good={settings.ratings.good:g}."


def _unknown_regions(settings: BuildSettings) -> Iterator[str]:
    unknown = [region for region in settings.privacy.regions if region.upper() not in SUPPORTED_REGIONS]
    if unknown:
        yield f"privacy.regions: {', '.join(unknown)} is no country; expected two letters each, as in [KE,VN]."


def _unreadable_scores(settings: BuildSettings) -> Iterator[str]:
    try:
        parse_scores(settings.reading.scores)
    except ValueError as error:
        yield f"reading.scores: {error}."


def _unreadable_labels(settings: BuildSettings) -> Iterator[str]:
    private = settings.privacy
    try:
        parse_labels(private.names_labels)
    except ValueError as error:
        yield f"privacy.names_labels: {error}."
    if private.names_labels and not private.names_model:
        yield "privacy.names_labels needs privacy.names_model, the folder of the model that has these labels."
    if private.names_model and not private.redact:
        yield "privacy.names_model needs privacy.redact=true."


def _missing_files(settings: BuildSettings) -> Iterator[str]:
    for name in (*settings.clean.benchmarks, *filter(None, (settings.privacy.forgotten,))):
        if not Path(name).expanduser().is_file():
            key = "privacy.forgotten" if name == settings.privacy.forgotten else "clean.benchmarks"
            yield f"{key}={name}: there is no such file."
    model = settings.privacy.names_model
    if model and not Path(model).expanduser().is_dir():
        yield f"privacy.names_model={model}: there is no such folder."


def _number(value: Value) -> float:
    return float(value) if isinstance(value, int | float) else 0.0
