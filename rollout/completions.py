"""An engine's finished sample as ours, and what an engine must not be asked for. No vLLM import: its output is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

from raylign.data.types import Completion, FinishReason, Prompt, SampleKey, SamplingParams, VersionSpan
from raylign.rollout.interfaces import EngineDead


class TokenLogprob(Protocol):
    """vLLM's Logprob."""

    @property
    def logprob(self) -> float: ...


class EngineSpan(Protocol):
    """vLLM's WeightVersionSpan: tokens sampled under one label."""

    @property
    def version(self) -> str: ...
    @property
    def start(self) -> int: ...
    @property
    def end(self) -> int: ...


class EngineOutput(Protocol):
    """vLLM's CompletionOutput, as far as it is used."""

    @property
    def token_ids(self) -> Sequence[int]: ...
    @property
    def logprobs(self) -> Sequence[Mapping[int, TokenLogprob]] | None: ...
    @property
    def finish_reason(self) -> str | None: ...
    @property
    def weight_versions(self) -> Sequence[EngineSpan] | None: ...
    @property
    def text(self) -> str: ...


def completion(key: SampleKey, output: EngineOutput) -> Completion:
    """Tokens as sampled, the end token or stop among them. Raises EngineDead for a sample the engine gave up."""
    if output.finish_reason not in ("stop", "length"):
        raise EngineDead(f"sample {tuple(key)} ended with finish_reason={output.finish_reason!r}")
    ids = tuple(output.token_ids)
    versions = tuple(VersionSpan(int(span.version), span.start, span.end) for span in output.weight_versions or ())
    if [span.end for span in versions] != [*(span.start for span in versions[1:]), len(ids)]:
        raise EngineDead(f"sample {tuple(key)}: the engine does not say which weights sampled which of its tokens")
    return Completion(
        key=key,
        response_ids=ids,
        rollout_logprobs=tuple(
            float(row[token].logprob) for row, token in zip(output.logprobs or (), ids, strict=True)
        ),
        finish_reason=FinishReason(output.finish_reason),
        versions=versions,
        text=output.text,
    )


def refuse_overlong(prompt: Prompt, sampling: SamplingParams, max_model_len: int) -> None:
    """Raises ValueError for a prompt that is empty or would have its response cut by the context."""
    if not prompt.token_ids or len(prompt.token_ids) + sampling.max_new_tokens > max_model_len:
        raise ValueError(
            f"prompt {prompt.prompt_id} has {len(prompt.token_ids)} tokens: with max_new_tokens="
            f"{sampling.max_new_tokens} it does not fit rollout.max_model_len={max_model_len}; "
            "raise it or shorten the prompt"
        )
