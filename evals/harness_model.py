"""Our engine as lm-evaluation-harness wants a model: generation, and log-probs of continuations and texts.

The harness's own vLLM backend asks the installed distribution `vllm` for its version, and vLLM's build for CPU has
another name (lm_eval 0.4.13). Encoding and cutting are as its backends for Hugging Face and vLLM do them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, has_bos_prefix, normalize_gen_kwargs, postprocess_generated_text
from lm_eval.utils import get_rolling_token_windows, make_disjoint_window
from raylign.conf.errors import DataError
from raylign.data.templates import ChatTemplate
from raylign.data.types import Message, Prompt, SampleKey, SamplingParams
from raylign.evals.asking import SEED
from raylign.evals.harness import Asks
from raylign.evals.suites import TODAY
from raylign.rollout.interfaces import GenerationRequest
from transformers import PreTrainedTokenizerBase


class EngineModel(TemplateLM):
    """Our engine as the harness wants a model; it subclasses because the harness refuses anything else."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase, context: int, max_new_tokens: int, asks: Asks) -> None:
        """`context`: tokens that the model reads; `max_new_tokens`: of tasks that do not say."""
        super().__init__()
        self.tokenizer, self._context, self._max_new_tokens, self._asks = tokenizer, context, max_new_tokens, asks
        self._template = ChatTemplate(tokenizer, TODAY)

    @property
    def eot_token_id(self) -> int:
        """What ends a text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """What the first token of a text is predicted from."""
        bos = self.tokenizer.bos_token_id
        return self.eot_token_id if bos is None else int(bos)

    @property
    def tokenizer_name(self) -> str:
        """For the harness's cache of requests, which is not used."""
        return str(self.tokenizer.name_or_path)

    def apply_chat_template(self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True) -> str:
        """The conversation as text."""
        turns = [Message(turn["role"], turn["content"]) for turn in chat_history]
        opened = "" if add_generation_prompt else turns.pop().content
        return self._template.render(turns, "", open_answer=True) + opened

    def tok_encode(self, string: str, add_special_tokens: bool | None = None, **kwargs: object) -> list[int]:
        """With what the tokenizer adds by itself, unless the text begins with it."""
        if add_special_tokens is None:
            add_special_tokens = not has_bos_prefix(string, self.tokenizer.decode(self.prefix_token_id))
        return list(self.tokenizer.encode(string, add_special_tokens=add_special_tokens)) if string else []

    def loglikelihood_rolling(self, requests: list[Instance], disable_tqdm: bool = False) -> list[float]:
        """Log-prob of each text, in windows of the model's length, nats."""
        totals = []
        for (text,) in (request.args for request in requests):
            windows = get_rolling_token_windows(
                token_list=self.tok_encode(text),
                prefix_token=self.prefix_token_id,
                max_seq_len=self._context - 2,
                context_len=1,
            )
            found = self._loglikelihood_tokens([((text, ""), *make_disjoint_window(window)) for window in windows])
            totals.append(sum(logprob for logprob, _ in found))
        return totals

    def generate_until(self, requests: list[Instance], disable_tqdm: bool = False) -> list[str]:
        """The answers, up to the first stop. Raises DataError for sampling that the engine does not do."""
        given = [(self._request(number, *request.args), request.args[1]) for number, request in enumerate(requests)]
        groups = self._asks.generate([request for request, _ in given])
        return [
            postprocess_generated_text(group.completions[0].text, list(request.sampling.stop), None)
            for group, (request, _) in zip(groups, given, strict=True)
        ]

    def _request(self, number: int, context: str, wanted: dict[str, Any]) -> GenerationRequest:
        rest: dict[str, Any] = dict(normalize_gen_kwargs(wanted, self._max_new_tokens))
        until = handle_stop_sequences(rest.pop("until"), eos=self.tokenizer.decode(self.eot_token_id))
        most, temperature = rest.pop("max_gen_toks"), float(rest.pop("temperature", 0.0))
        top_p, sampled = float(rest.pop("top_p", 1.0)), rest.pop("do_sample")
        if rest:
            raise DataError(f"generation_kwargs: the engine does not know {', '.join(rest)}; leave it out.")
        room = self._context - most
        if room < 1:
            raise DataError(f"generation_kwargs: max_gen_toks={most}, and the model reads {self._context} tokens.")
        prompt = Prompt(str(number), (), tuple(self.tok_encode(context)[-room:]))
        sampling = SamplingParams(
            temperature if sampled else 0.0, most, top_p=top_p, seed=SEED, stop=tuple(filter(None, until))
        )
        return GenerationRequest(prompt, (SampleKey(0, prompt.prompt_id, 0),), sampling)

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[tuple[str, str], list[int], list[int]]], **kwargs: object
    ) -> list[tuple[float, bool]]:
        """Log-prob of each continuation after its context, cut on the left, and whether each token is the likeliest."""
        most = self._context - 1  # the engine writes one token, also where only the prompt is scored
        rows = [(context + continuation)[-most:] for _, context, continuation in requests]
        found = []
        for ranked, (_, _, continuation) in zip(self._asks.ranked(rows), requests, strict=True):
            tail = ranked[max(0, len(ranked) - len(continuation)) :]
            found.append((sum(logprob for logprob, _ in tail), all(rank == 1 for _, rank in tail)))
        return found
