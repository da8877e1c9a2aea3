"""Puts together what plays a worker's episodes: environments, the tokens between turns, and who reads calls."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raylign.data.tokenize import load_tokenizer
from raylign.data.turns import TurnWriter
from raylign.rollout.environments.spec import EnvironmentSpec, started
from raylign.rollout.episodes import EpisodeLimits, Episodes
from raylign.rollout.tool_calls import TAGGED, CallReader, TaggedCalls

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


def episodes_of(spec: EnvironmentSpec, model: str) -> Episodes:
    """For the policy in the folder `model`. Raises EnvironmentRefused, RowError for a chat template that cannot go on
    after a turn, and ModelLoadError; all of them are seen before a run starts (app/launch/environment.py)."""
    tokenizer = load_tokenizer(model, spec.chat_template)
    environments = started(spec)
    return Episodes(
        environments,
        TurnWriter(tokenizer, environments.tools, spec.today),
        call_reader(spec.config.tool_parser, tokenizer, environments.tools),
        EpisodeLimits(spec.config.max_turns, spec.config.max_turn_tokens),
    )


def call_reader(name: str, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]]) -> CallReader:
    """By the name of `environment.tool_parser`. Raises EnvironmentRefused for one that vLLM does not have either."""
    if name == TAGGED:
        return TaggedCalls()
    from raylign.rollout.vllm_tool_parser import VLLMCalls  # seconds to import, and only some runs need it

    return VLLMCalls(name, tokenizer, tools)
