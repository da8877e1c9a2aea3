"""Tool calls read by vLLM's own parsers, so that a call trained here is a call where the model is served."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from raylign.rollout.environments.interfaces import EnvironmentRefused
from raylign.rollout.tool_calls import Malformed, Reply, checked_call
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest, ChatCompletionToolsParam
from vllm.tool_parsers import ToolParserManager

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


class VLLMCalls:
    """A CallReader over one of vLLM's parsers."""

    def __init__(self, name: str, tokenizer: PreTrainedTokenizerBase, tools: Sequence[Mapping[str, Any]]) -> None:
        """Raises EnvironmentRefused for a name that vLLM does not have, or a tokenizer that its parser refuses."""
        # A parser logs a traceback for each call that it cannot read, and a model in training writes many of those.
        logging.getLogger("vllm.tool_parsers").setLevel(logging.CRITICAL)
        self._tools = [
            ChatCompletionToolsParam.model_validate({k: tool[k] for k in ("type", "function")}) for tool in tools
        ]
        try:
            self._parser = ToolParserManager.get_tool_parser(name)(tokenizer, list(self._tools))
        except KeyError as error:
            known = sorted({*ToolParserManager.tool_parsers, *ToolParserManager.lazy_parsers})
            raise EnvironmentRefused(f"vLLM has no such parser; it has {', '.join(known)}") from error
        except (RuntimeError, ValueError) as error:
            raise EnvironmentRefused(f"vLLM's parser refuses this model's tokenizer: {error}") from error
        self._request = ChatCompletionRequest(model="policy", messages=[], tools=list(self._tools))

    def read(self, text: str) -> Reply:
        """What vLLM's server would have made of it."""
        try:
            found = self._parser.extract_tool_calls(text, self._request)
        except Exception as error:  # a parser may raise anything for what a model in training writes
            return Reply(text, (Malformed(f"the call cannot be read ({type(error).__name__})"),))
        if not found.tools_called:
            return Reply(text, ())
        calls = tuple(checked_call(call.function.name or "", call.function.arguments) for call in found.tool_calls)
        return Reply(found.content or "", calls)
