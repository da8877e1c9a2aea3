"""The causal wrapper against transformers' own logits, tied and untied."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from raylign.conf.schema import Precision
from raylign.data.types import TokenBatch
from raylign.trainer.models.loading import load_causal_lm
from transformers import AutoModelForCausalLM


def _tokens() -> TokenBatch:
    generator = torch.Generator().manual_seed(1)
    rows = [torch.randint(0, 400, (n,), generator=generator).tolist() for n in (6, 2, 11)]
    masks = [[False, False, True, True, False, True], [False, True], [False] * 4 + [True] * 7]
    return TokenBatch.from_sequences(rows, masks)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
@pytest.mark.parametrize("fixture", ["tiny_model_dir", "tiny_model_untied_dir"])
def test_logprobs_and_entropy_are_those_of_the_tempered_logits(
    fixture: str, temperature: float, request: pytest.FixtureRequest
) -> None:
    folder: Path = request.getfixturevalue(fixture)
    tokens = _tokens()
    ours = load_causal_lm(folder, precision=Precision.float32)(tokens, temperature=temperature)
    theirs = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    for s, (start, stop) in enumerate(zip(tokens.cu_seqlens[:-1], tokens.cu_seqlens[1:], strict=True)):
        ids, mask = tokens.select([s]).input_ids, tokens.select([s]).response_mask
        with torch.no_grad():
            log_p = (theirs(input_ids=ids[None]).logits[0, :-1] / temperature).log_softmax(-1)
        expected = log_p.gather(1, ids[1:, None])[:, 0] * mask[1:]
        entropy = -(log_p.exp() * log_p).sum(-1) * mask[1:]
        torch.testing.assert_close(ours.logprobs[start + 1 : stop], expected, atol=1e-5, rtol=0)
        torch.testing.assert_close(ours.entropy[start + 1 : stop], entropy, atol=1e-5, rtol=0)
        assert ours.logprobs[start] == 0
    assert not ours.entropy.requires_grad


def test_entropy_carries_gradient_when_asked(tiny_model_dir: Path) -> None:
    model = load_causal_lm(tiny_model_dir, precision=Precision.float32)
    model(_tokens(), temperature=1.0, with_entropy_grad=True).entropy.sum().backward()
    assert model.hf.lm_head.weight.grad.abs().max() > 0


def test_a_batch_with_nothing_to_train_gives_every_weight_a_zero_gradient(tiny_model_untied_dir: Path) -> None:
    """What a filler relies on: ZeRO needs a gradient of every parameter on every rank."""
    model = load_causal_lm(tiny_model_untied_dir, precision=Precision.float32)
    tokens = _tokens()
    filler = replace(tokens, response_mask=torch.zeros_like(tokens.response_mask))
    model(filler, temperature=1.0).logprobs.sum().backward()
    assert {name for name, p in model.named_parameters() if p.grad is None or p.grad.any()} == set()


def test_a_response_token_that_opens_its_sequence_is_refused(tiny_model_dir: Path) -> None:
    model = load_causal_lm(tiny_model_dir, precision=Precision.float32)
    tokens = TokenBatch.from_sequences([[1, 2], [3, 4]], [[False, True], [True, True]])
    with pytest.raises(ValueError, match=r"sequence 1 .* begins with a response token"):
        model(tokens, temperature=1.0)


def test_checkpointed_activations_give_the_same_gradients(tiny_model_dir: Path) -> None:
    gradients = []
    for checkpointing in (False, True):
        model = load_causal_lm(tiny_model_dir, precision=Precision.float32, gradient_checkpointing=checkpointing)
        model(_tokens(), temperature=0.8).logprobs.sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
    for name, gradient in gradients[0].items():
        torch.testing.assert_close(gradients[1][name], gradient, atol=1e-6, rtol=1e-6)
