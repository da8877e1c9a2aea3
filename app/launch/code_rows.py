"""Rows whose code cannot be tested, told before anything starts."""

from __future__ import annotations

import json
from collections.abc import Sequence

from raylign.conf.errors import ConfigError
from raylign.conf.schema import RewardConfig
from raylign.data.types import Prompt
from raylign.reward.code_tests import TestsError, read_tests


def refuse_untestable(config: RewardConfig, prompts: Sequence[Prompt]) -> None:
    """Raises ConfigError for a column of tests that no row has, or whose tests cannot be used in some row."""
    problems = [
        problem
        for number, given in enumerate(config.code)
        if (problem := _problem(f"reward.code[{number}].tests={given.tests}", given.tests, prompts))
    ]
    if problems:
        raise ConfigError(problems)


def _problem(key: str, column: str, prompts: Sequence[Prompt]) -> str:
    rows = [(prompt.prompt_id, json.loads(prompt.columns) if prompt.columns else {}) for prompt in prompts]
    there = [(name, columns[column]) for name, columns in rows if columns.get(column) is not None]
    if not there:
        names = ", ".join(sorted({name for _, columns in rows for name in columns})) or "none"
        return (
            f"{key}: data.train has no such column (it has {names} beside prompt and answer); name that of the tests."
        )
    bad = [(name, why) for name, value in there if (why := _why(value))]
    if not bad:
        return ""
    first, why = bad[0]
    return f"{key}: the tests of {len(bad)} of {len(there)} rows cannot be used, first {first}: {why}; correct them."


def _why(value: object) -> str:
    try:
        read_tests(value)
    except TestsError as error:
        return str(error)
    return ""
