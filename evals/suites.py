"""A suite as it can be asked: its settings and its rows."""

from __future__ import annotations

from dataclasses import dataclass, replace
from datetime import date
from importlib.util import find_spec
from pathlib import Path

from raylign.conf.errors import DataError, UserError
from raylign.conf.nearest import nearest
from raylign.conf.schema import DataConfig, Overlong, RewardConfig
from raylign.conf.suites import SuiteConfig, SuiteKind, read_suite
from raylign.data.loading import RawRow, read_rows
from raylign.data.own_columns import OwnColumns
from raylign.data.prompts import load_prompts
from raylign.data.types import Prompt
from raylign.evals.slices import names_of
from raylign.evals.statistics import Range
from transformers import PreTrainedTokenizerBase

SHIPPED = Path(__file__).with_name("shipped")

NO_HARNESS = (
    "suite {suite}: its tasks need lm-evaluation-harness, which is not installed here; pip install 'raylign[harness]'."
)

TODAY = date(2026, 1, 1)
"""What templates print as the date: a suite asks the same every day."""


@dataclass(frozen=True, slots=True)
class Suite:
    """A suite's file, read."""

    name: str
    path: Path
    config: SuiteConfig

    @property
    def unit(self) -> str:
        """Of its figure."""
        if self.config.kind is SuiteKind.text_loss:
            return "bits a byte, negative"
        return "share right" if self.config.right_at is not None else "score"

    @property
    def possible(self) -> Range | None:
        """What its figure can be, where that is known."""
        if self.config.right_at is not None:
            return Range(0.0, 1.0)
        low, high = self.config.low, self.config.high
        return Range(low, high) if low is not None and high is not None else None


@dataclass(frozen=True, slots=True)
class Text:
    """One row of a suite of kind text_loss."""

    row_id: str
    text: str
    token_ids: tuple[int, ...]
    slices: tuple[str, ...] = ()


def shipped_names() -> list[str]:
    """The suites that come along."""
    return sorted(path.stem for path in SHIPPED.glob("*.yaml"))


def is_suite(named: str) -> bool:
    """Whether a name is of a suite, and not of a file of rows."""
    return named in shipped_names() or Path(named).suffix in (".yaml", ".yml")


def open_suite(named: str, beside: Path | None = None) -> Suite:
    """A shipped suite by name, or a yaml file (`beside`: the folder that relative paths start from, too).

    Raises UserError when there is neither, and where its tasks need a harness that is not installed; ConfigError with
    what is wrong in the file.
    """
    if named in shipped_names():
        path = SHIPPED / f"{named}.yaml"
    else:
        given = Path(named).expanduser()
        path = beside / given if beside is not None and not given.is_file() else given
        if not path.is_file():
            near = nearest(named, shipped_names())
            hint = f"did you mean {near}?" if near else f"shipped are {', '.join(shipped_names())}."
            raise UserError(f"suite {named}: there is no such file, nor a shipped suite of that name; {hint}")
    config = read_suite(path)
    if config.harness.tasks and find_spec("lm_eval") is None:
        raise UserError(NO_HARNESS.format(suite=path.stem))
    return Suite(path.stem, path, _with_paths(config, path.parent))


def prompts_of(suite: Suite, tokenizer: PreTrainedTokenizerBase) -> tuple[Prompt, ...]:
    """Every row as a prompt. Raises DataError for rows that cannot be used: a suite is asked whole or not at all."""
    settings = DataConfig(
        train=suite.config.prompts,
        columns=suite.config.columns,
        system_prompt=suite.config.system_prompt,
        max_prompt_tokens=2**31,
        max_bad_fraction=0.0,
        overlong=Overlong.error,
    )
    return load_prompts(suite.config.prompts, settings, tokenizer, today=TODAY).prompts


def texts_of(suite: Suite, tokenizer: PreTrainedTokenizerBase) -> tuple[Text, ...]:
    """Every row's `text` in tokens, after the model's beginning token where it has one. Raises DataError."""
    own, texts = OwnColumns(suite.config.columns), []
    for row in read_rows(suite.config.prompts):
        columns = own.apply(row).columns if isinstance(row, RawRow) else {}
        text = columns.get("text")
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"suite {suite.name}: {row.source}: it has no `text`; kind=text_loss reads nothing else.")
        ids = tokenizer.encode(text, add_special_tokens=False)
        start = [] if tokenizer.bos_token_id is None else [tokenizer.bos_token_id]
        texts.append(Text(f"{row.number}", text, (*start, *ids), names_of(columns)))
    if not texts:
        raise DataError(f"suite {suite.name}: {suite.config.prompts} has no rows.")
    return tuple(texts)


def _with_paths(config: SuiteConfig, folder: Path) -> SuiteConfig:
    """Relative paths that exist beside the suite's file mean those files."""

    def near(named: str) -> str:
        file, colon, rest = named.partition(".py:")
        path = folder / (file + ".py" if colon else file)
        return f"{path}:{rest}" if colon and path.is_file() else str(path) if named and path.exists() else named

    reward: RewardConfig = replace(
        config.reward,
        model=near(config.reward.model),
        functions=[replace(one, path=near(one.path)) for one in config.reward.functions],
        judges=[replace(one, rubric=near(one.rubric)) for one in config.reward.judges],
    )
    harness = replace(config.harness, include_path=near(config.harness.include_path))
    return replace(config, prompts=near(config.prompts), reward=reward, harness=harness)
