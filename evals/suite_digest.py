"""When two results are of the same suite: what is asked and how it is graded, as one hash."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, Field, fields, is_dataclass, replace
from enum import Enum
from pathlib import Path

from raylign.data.types import Prompt
from raylign.evals.suites import Suite, Text
from raylign.reward.rules import rule_versions

DEFAULTS = 1
"""Raised when the default of a setting changes that an earlier version had: digests hold no defaults."""


def suite_digest(suite: Suite, asked: Sequence[Prompt] | Sequence[Text], files: Mapping[str, str]) -> str:
    """Hash of what is asked and how it is graded, without the model's own tokens.

    `files`: content digests of what the grading reads (functions, rubrics, a reward model).
    """
    rows = [
        [one.row_id, one.text]
        if isinstance(one, Text)
        else [one.prompt_id, [[m.role, m.content, m.extra] for m in one.messages], one.ground_truth, one.columns]
        for one in asked
    ]
    reward = suite.config.reward
    by_content = replace(  # a path says nothing of what lies there: `files` does
        reward,
        model="",
        functions=[replace(one, path=Path(one.path).name) for one in reward.functions],
        judges=[replace(one, rubric="") for one in reward.judges],
    )
    graded = chosen(replace(suite.config, prompts="", about="", columns={}, reward=by_content))
    identity = {"rows": rows, "config": graded, "defaults": DEFAULTS, "files": dict(files)}
    if versions := rule_versions(one.rule for one in reward.rules):
        identity["rules"] = versions
    return hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()


def chosen(settings: object) -> object:
    """Plain values of the settings that differ from their defaults.

    Without the rest, for a version that adds a setting would else take every result that is kept for one of another
    suite.
    """
    if is_dataclass(settings) and not isinstance(settings, type):
        given = {one: getattr(settings, one.name) for one in fields(settings)}
        return {one.name: chosen(value) for one, value in given.items() if value != default_of(one)}
    if isinstance(settings, list):
        return [chosen(one) for one in settings]
    if isinstance(settings, Enum):
        return settings.value
    return settings


def code_digests(folder: Path) -> dict[str, str]:
    """Hash of each Python file below a folder, by its path from there: functions of tasks call others beside them."""
    found = sorted(path for path in folder.rglob("*.py") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in found}


def default_of(setting: Field[object]) -> object:
    """MISSING for one that must be given."""
    return setting.default if setting.default_factory is MISSING else setting.default_factory()
