"""A run's rows, read and tokenised before Ray starts: what is wrong with them is reported while nothing runs yet."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from raylign.app.launch.code_rows import refuse_untestable
from raylign.app.launch.environment import environment_tools
from raylign.app.launch.functions import refuse_missing_columns
from raylign.app.launch.prompts import refuse_order
from raylign.conf.errors import DataError
from raylign.conf.held_out import held_out_sets
from raylign.conf.schema import RunConfig
from raylign.data.chat_template import read_chat_template
from raylign.data.encoder import Encoder
from raylign.data.end_tokens import EndTokens
from raylign.data.mask_view import mask_warnings
from raylign.data.prompts import PromptSet, load_prompts
from raylign.data.row_kinds import TrainRows, load_rows
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import RowKind
from raylign.trainer.algorithms.base import ModelKind, OfflineNeeds
from transformers import PreTrainedTokenizerBase

TRAIN = "train"
NO_TEACHER = (
    "reference.model is empty and no row of data.train has a `teacher_prompt`, so the teacher is the policy itself; "
    "set reference.model to the teacher's folder, or give rows a `teacher_prompt`."
)


@dataclass(frozen=True, slots=True)
class OnlineRows:
    """The prompts of an online run."""

    train: PromptSet
    held_out: PromptSet | None
    tokenizer: PreTrainedTokenizerBase
    template: str  # data.chat_template's text; empty: the model's own
    notices: tuple[str, ...]  # for a person, before the first step

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Where the engine stops: at what ends an answer in training."""
        return tuple(sorted(EndTokens(self.tokenizer).ids))


@dataclass(frozen=True, slots=True)
class OfflineRows:
    """`train` and the held-out sets by name."""

    sets: Mapping[str, TrainRows]
    tokenizer: PreTrainedTokenizerBase
    template: str  # as above
    notices: tuple[str, ...]


def read_online(config: RunConfig, today: date, quarantine: Path | None = None) -> OnlineRows:
    """Raises DataError, ModelLoadError, and ConfigError for a reward function that asks for other columns."""
    template, tokenizer = _tokenizer(config)
    tools = environment_tools(config)
    with named_key("data.train", config.data.train):
        train = load_prompts(
            config.data.train,
            config.data,
            tokenizer,
            quarantine=quarantine,
            today=today,
            tools=tools,
            teacher=config.algorithm.teacher_prompts,
        )
    refuse_missing_columns(config.reward, train.prompts)
    refuse_order(train.prompts, config)
    refuse_untestable(config.reward, train.prompts)
    if config.algorithm.teacher_prompts and not (config.reference.model or any(p.teacher_ids for p in train.prompts)):
        raise DataError(NO_TEACHER)
    others = []
    for name, source in held_out_sets(config.data.eval).items():
        with named_key(_eval_key(config, name), source):
            others.append(load_prompts(source, config.data, tokenizer, today=today, tools=tools))
    held_out = others[0] if others else None
    return OnlineRows(train, held_out, tokenizer, template, _plain_text(config, tokenizer))


@contextmanager
def named_key(key: str, source: str) -> Iterator[None]:
    """What is wrong with the data of `source` is said of the setting that names it."""
    try:
        yield
    except DataError as error:
        error.problems = tuple(p.replace(f"data {source}: ", f"{key}={source}: ", 1) for p in error.problems)
        raise


def _eval_key(config: RunConfig, name: str) -> str:
    return "data.eval" if isinstance(config.data.eval, str) else f"data.eval.{name}"


def read_offline(config: RunConfig, needs: OfflineNeeds, today: date, quarantine: Path | None = None) -> OfflineRows:
    """Raises DataError or ModelLoadError."""
    template, tokenizer = _tokenizer(config)

    def read(key: str, source: str, quarantine: Path | None = None) -> TrainRows:
        with named_key(key, source):
            return load_rows(
                needs.rows,
                source,
                config.data,
                tokenizer,
                quarantine=quarantine,
                train_prompts=needs.train_prompts,
                today=today,
            )

    sets = {TRAIN: read("data.train", config.data.train, quarantine)}
    sets |= {name: read(_eval_key(config, name), source) for name, source in held_out_sets(config.data.eval).items()}
    warnings = config.algorithm.data_warnings(sets[TRAIN].counts)
    encoder = Encoder(tokenizer, system_prompt=config.data.system_prompt, today=today)
    warnings += mask_warnings(sets[TRAIN], encoder, tokenizer, generates=needs.model is ModelKind.CAUSAL)
    plain = () if needs.rows is RowKind.DOCUMENTS else _plain_text(config, tokenizer)
    return OfflineRows(sets, tokenizer, template, (*plain, *(f"warning: {warning}" for warning in warnings)))


def _tokenizer(config: RunConfig) -> tuple[str, PreTrainedTokenizerBase]:
    template = read_chat_template(config.data.chat_template)
    return template, load_tokenizer(config.policy.model, template)


def _plain_text(config: RunConfig, tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    if tokenizer.chat_template is not None:
        return ()
    return (
        f"policy.model={config.policy.model} has no chat template: prompts go in as plain text and the answer follows "
        "them directly; set data.chat_template where they are meant as turns of a conversation",
    )
