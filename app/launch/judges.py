"""The rubrics of a run's judges, read where the run is started and sent along from there."""

from __future__ import annotations

from pathlib import Path

from raylign.conf.errors import ConfigError
from raylign.conf.schema import RewardConfig
from raylign.conf.secret_names import is_secret_name
from raylign.reward.judge import Rubric, RubricError

_FIXED = {"model", "messages", "stream", "n"}


def judge_rubrics(config: RewardConfig) -> tuple[Rubric, ...]:
    """One for each of `reward.judges`. Raises ConfigError with the problems of all."""
    rubrics, problems = read_rubrics(config)
    if problems:
        raise ConfigError(problems)
    return tuple(rubrics)


def read_rubrics(config: RewardConfig) -> tuple[list[Rubric], list[str]]:
    """The rubrics that can be used, and a sentence for each that cannot, and for each scale that is none."""
    rubrics: list[Rubric] = []
    problems: list[str] = []
    for number, given in enumerate(config.judges):
        key = f"reward.judges[{number}]"
        if given.low >= given.high:
            problems.append(f"{key}: low={given.low:g} is not below high={given.high:g}; give the scale of the rubric.")
        if fixed := sorted(_FIXED & given.request.keys()):
            problems.append(f"{key}.request: it must not set {fixed[0]}, which is given elsewhere or not supported.")
        if any(is_secret_name(name) for name in given.request):
            problems.append(f"{key}.request: it holds a secret, which settings must not; use token_env.")
        try:
            rubrics.append(Rubric.of(Path(given.rubric).expanduser().read_text(encoding="utf-8")))
        except RubricError as error:
            problems.append(f"{key}.rubric={given.rubric}: {error}.")
        except (OSError, UnicodeDecodeError) as error:
            why = getattr(error, "strerror", None) or "it is not UTF-8 text"
            problems.append(f"{key}.rubric={given.rubric}: it cannot be read ({why}); give a text file.")
    return rubrics, problems


def rubric_files(config: RewardConfig) -> dict[str, Path]:
    """Every rubric by key, for the manifest."""
    return {f"reward.judges.{given.name}.rubric": Path(given.rubric).expanduser() for given in config.judges}
