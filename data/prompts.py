"""Prompt sets for online training and evaluation: rows -> tokenised prompts with stable, unique ids."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields, replace
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING

from raylign.conf.schema import DataConfig
from raylign.data.encoder import Encoder
from raylign.data.loading import RawRow, item_text
from raylign.data.quarantine import LoadReport
from raylign.data.row_set import read_row_set
from raylign.data.rows import Side, prompt_row
from raylign.data.templates import ChatTemplate
from raylign.data.tool_prompt import OfferedTools
from raylign.data.types import Message, Prompt

if TYPE_CHECKING:  # seconds to import, and rows are unpickled where no tokenizer is
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class PromptSet:
    """Prompts in file order; the sampler shuffles."""

    prompts: tuple[Prompt, ...]
    digest: str  # a data position is only valid for the same digest
    report: LoadReport


def load_prompts(
    name: str,
    config: DataConfig,
    tokenizer: PreTrainedTokenizerBase,
    *,
    quarantine: Path | None = None,
    today: date | None = None,
    tools: Sequence[Mapping[str, object]] = (),
    teacher: bool = False,
) -> PromptSet:
    """Every usable prompt of `name` (`config.train` or `config.eval`).

    `quarantine`: the file for rows that cannot be used. `today`: the date that templates print; None: this day.
    `tools`: JSON schemas of an environment's, which every prompt offers. `teacher`: read `teacher_prompt` too.
    Raises DataError for a set that is empty, unreadable or too bad, or with prompts over `config.max_prompt_tokens`
    under `overlong=error`.
    """
    encoder = Encoder(tokenizer, system_prompt=config.system_prompt, today=today)
    offered = OfferedTools(tools, in_template=bool(tools) and ChatTemplate(tokenizer, today).prints_tools(tools))
    builder = _PromptBuilder(encoder, config, offered, teacher)
    read = read_row_set(name, config, builder, quarantine)
    return PromptSet(read.items, read.digest, read.report)


class _PromptBuilder:
    """A RowBuilder of prompts."""

    max_tokens_key = "data.max_prompt_tokens"

    def __init__(self, encoder: Encoder, config: DataConfig, offered: OfferedTools, teacher: bool) -> None:
        self._encoder = encoder
        self._offered = offered
        self._teacher = teacher
        self._used_ids: set[str] = set()
        self.max_tokens = config.max_prompt_tokens

    def build(self, row: RawRow) -> tuple[Prompt]:
        """Raises RowError."""
        parsed = prompt_row(row.columns)
        messages = self._offered.turns(self._encoder.messages(parsed.prompt))
        token_ids = self._ids(parsed.prompt, parsed.variables)
        asked = parsed.teacher_prompt if self._teacher else None
        prompt = Prompt(
            prompt_id=self._unique(parsed.given_id or f"{_content_id(messages)}-{row.number}", row.number),
            messages=messages,
            token_ids=token_ids,
            data_source=parsed.data_source,
            ground_truth=parsed.ground_truth,
            columns=_other_columns(row.columns),
            teacher_ids=() if asked is None else self._ids(asked, parsed.variables),
        )
        return (prompt,)

    def _ids(self, asked: Side, variables: str) -> tuple[int, ...]:
        turns = self._offered.turns(self._encoder.messages(asked)) if self._offered.tools else asked
        return self._encoder.encode_prompt(turns, self._offered.variables(variables))

    def num_tokens(self, item: Prompt) -> int:
        """Tokens the engine, or the teacher, is given."""
        return max(len(item.token_ids), len(item.teacher_ids))

    def truncate_left(self, item: Prompt) -> Prompt:
        """The end stays: it holds the question's end and the template's opening of the answer."""
        cut = slice(-self.max_tokens, None)
        return replace(item, token_ids=item.token_ids[cut], teacher_ids=item.teacher_ids[cut])

    def fingerprint(self, item: Prompt) -> str:
        """Everything of it but the columns that only reward functions read."""
        shown = {field.name: getattr(item, field.name) for field in fields(item)} | {"columns": ""}
        if not item.teacher_ids:  # a run that began before there were any has the same rows
            del shown["teacher_ids"]
        return item_text(shown)

    def _unique(self, wanted: str, number: int) -> str:
        """`wanted`, or with the row's number when an earlier row has it."""
        prompt_id = wanted
        while prompt_id in self._used_ids:
            prompt_id = f"{prompt_id}-{number}"
        self._used_ids.add(prompt_id)
        return prompt_id


_READ = frozenset({"id", "prompt", "messages", "completion", "teacher_prompt"})


def _other_columns(columns: Mapping[str, object]) -> str:
    kept = {name: value for name, value in columns.items() if name not in _READ and value is not None}
    return json.dumps(kept, ensure_ascii=True, sort_keys=True, default=str) if kept else ""


def _content_id(messages: tuple[Message, ...]) -> str:
    """Twelve hex digits of the turns: the same question keeps its name when ids are not given."""
    text = json.dumps([[m.role, m.content, *([m.extra] if m.extra else [])] for m in messages], ensure_ascii=True)
    return hashlib.blake2b(text.encode(), digest_size=6).hexdigest()
