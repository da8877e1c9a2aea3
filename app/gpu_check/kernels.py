"""Stage A: what one card computes, against float64 and the CPU. Needs torch, transformers, safetensors, xxhash."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from functools import partial
from itertools import pairwise
from pathlib import Path

import torch
from raylign.app.gpu_check.harness import Check, Measured, NotRun, needs_cuda, timed
from raylign.app.gpu_check.models import SEVEN_B_LAYER, random_llama
from raylign.data.types import TokenBatch
from raylign.rollout.fingerprint import DigestKind, tensor_digest
from raylign.trainer.functional.known_gradient import logprobs_of_frozen_head, logprobs_of_known_gradient
from raylign.trainer.functional.logprobs import fused_linear_logprobs, linear_logprobs
from raylign.trainer.functional.packing import Packing, pack
from raylign.trainer.models.lora import LoraLinear
from raylign.trainer.models.packed_attention import packed_attention, packed_states
from raylign.trainer.models.packing_check import check_model
from raylign.trainer.time_plan import card_named
from torch import Tensor, nn

LENGTHS = (1, 3, 130, 64, 257)  # one token, less than a tile, more than one
VOCAB, HIDDEN, TOKENS = 152_064, 1024, 768
LAYER_TOKENS = 16_384


def checks() -> Iterator[Check]:
    """All of the stage, the quick ones first."""
    for head_dim in (64, 80, 128, 256):
        yield Check(f"attention, heads of {head_dim}", partial(attention, head_dim=head_dim, heads=4, kv_heads=4))
    yield Check("attention, four query heads to one of keys", partial(attention, head_dim=128, heads=8, kv_heads=2))
    yield Check("attention, window of 48", partial(attention, head_dim=64, heads=4, kv_heads=2, window=48))
    yield Check("attention, shared prompts", partial(attention, head_dim=128, heads=8, kv_heads=2, shared=True))
    for temperature in (0.7, 1.0):
        yield Check(f"head, log-probs at temperature {temperature}", partial(head, temperature=temperature))
        yield Check(f"head, gradients at temperature {temperature}", partial(head_gradients, temperature=temperature))
    yield Check("head, peak memory", head_memory)
    yield Check("head, speed", head_speed)
    yield Check("digest equals the CPU's", digest_equal)
    yield Check("digest speed", digest_speed)
    yield Check("merge of adapters equals the CPU's", merge_equal)
    yield Check("a model packed and alone", model_packed)
    yield Check("one layer of a 7B model, 16k tokens", layer_speed)
    yield Check("host synchronisations of that layer", layer_syncs)


def attention(
    device: torch.device,
    *,
    head_dim: int,
    heads: int,
    kv_heads: int,
    window: int | None = None,
    shared: bool = False,
) -> Measured:
    """Largest relative error of output and gradients in bfloat16, against float64 sequence by sequence."""
    draw = torch.Generator().manual_seed(head_dim + heads)
    rows = [torch.randint(0, 1000, (n,), generator=draw).tolist() for n in LENGTHS]
    if shared:
        rows = [rows[2], [*rows[2][:100], *rows[3]], [*rows[2][:100], *rows[4]], rows[1]]
    tokens = TokenBatch.from_sequences(rows, [[False] * len(row) for row in rows])
    packing = pack(tokens, min_saved=0.0) if shared else pack(tokens)
    count = len(packing.tokens)
    # Rounded to bfloat16 first, so that the error is the kernel's and not of the inputs.
    q, k, v, upstream = (
        torch.randn(1, h, count, head_dim, generator=draw).bfloat16() for h in (heads, kv_heads, kv_heads, heads)
    )
    truth = _truth(q.double(), k.double(), v.double(), upstream.double(), tokens, packing, window)
    inputs = [x.to(device).requires_grad_() for x in (q, k, v)]
    output, _ = packed_attention(
        nn.Identity(),
        inputs[0],
        inputs[1],
        inputs[2],
        None,
        packing=_on(device, tokens, shared),
        sliding_window=window,
    )
    (output * upstream.to(device).transpose(1, 2)).sum().backward()
    ours = [output, *(x.grad for x in inputs if x.grad is not None)]
    errors = [float((o.detach().double().cpu() - t).norm() / t.norm()) for o, t in zip(ours, truth, strict=True)]
    return Measured(max(errors), "relative error", 2e-2, note="output, dq, dk, dv: " + _short(errors))


def _on(device: torch.device, tokens: TokenBatch, shared: bool) -> Packing:
    """The same packing of tokens on the device."""
    moved = TokenBatch(*(t.to(device) for t in (tokens.input_ids, tokens.cu_seqlens, tokens.response_mask)))
    return pack(moved, min_saved=0.0) if shared else pack(moved)


def _truth(
    q: Tensor, k: Tensor, v: Tensor, upstream: Tensor, tokens: TokenBatch, packing: Packing, window: int | None
) -> list[Tensor]:
    """Output `[1, M, H, D]` and the gradients of q, k and v by the definition."""
    for x in (q, k, v):
        x.requires_grad_()
    group, bounds = q.shape[1] // k.shape[1], tokens.cu_seqlens.tolist()
    outputs: dict[int, Tensor] = {}
    for first, last in pairwise(bounds):
        rows = packing.rows[first:last]
        keys, values = (x[0][:, rows].repeat_interleave(group, 0) for x in (k, v))
        scores = q[0][:, rows] @ keys.transpose(1, 2) * q.shape[-1] ** -0.5
        at = torch.arange(last - first)
        hidden = at[None, :] > at[:, None]
        if window is not None:
            hidden |= at[None, :] <= at[:, None] - window
        out = scores.masked_fill(hidden, float("-inf")).softmax(-1) @ values  # [H, L, D]
        for i, row in enumerate(rows.tolist()):
            outputs.setdefault(row, out[:, i])
    output = torch.stack([outputs[row] for row in range(len(outputs))])[None]
    (output * upstream.transpose(1, 2)).sum().backward()
    return [output.detach(), *(x.grad for x in (q, k, v) if x.grad is not None)]


def head(device: torch.device, *, temperature: float) -> Measured:
    """Largest difference of log-probs, nats, of the two forms without known gradients to the definition."""
    hidden, weight, targets = _head_inputs(device)
    truth = _in_double(hidden, weight, targets, temperature)
    fused = fused_linear_logprobs(hidden, weight, targets, temperature=temperature)[0]
    frozen = logprobs_of_frozen_head(hidden, weight, targets, temperature=temperature)[0]
    gap = max(float((form.double().cpu() - truth).abs().max()) for form in (fused, frozen))
    return Measured(gap, "nats", 1e-2)


def head_gradients(device: torch.device, *, temperature: float) -> Measured:
    """Smallest cosine between the gradients of the fused forms and of the definition in float32."""
    given = torch.linspace(-1, 1, TOKENS).to(device)

    def gradients(form: Callable[[Tensor, Tensor, Tensor], Tensor]) -> list[Tensor]:
        hidden, weight, targets = _head_inputs(device)
        hidden.requires_grad_(), weight.requires_grad_()
        (form(hidden, weight, targets) * given).sum().backward()
        return [x.grad.float().flatten() for x in (hidden, weight) if x.grad is not None]

    def plain(hidden: Tensor, weight: Tensor, targets: Tensor) -> Tensor:
        return linear_logprobs(hidden.float(), weight.float(), targets, temperature=temperature)[0]

    truth = gradients(plain)
    fused = gradients(lambda h, w, t: fused_linear_logprobs(h, w, t, temperature=temperature)[0])
    known = gradients(lambda h, w, t: logprobs_of_known_gradient(h, w, t, given, temperature=temperature)[0])
    found = [
        float(nn.functional.cosine_similarity(a, b, dim=0))
        for form in (fused, known)
        for a, b in zip(form, truth, strict=True)
    ]
    return Measured(min(found), "cosine", 0.9999, at_least=True, note=_short(found))


def head_memory(device: torch.device) -> Measured:
    """Peak bytes of the fused head beyond its inputs and gradients."""
    needs_cuda(device)
    hidden, weight, targets = _head_inputs(device, tokens=8192)
    hidden.requires_grad_(), weight.requires_grad_()
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    fused_linear_logprobs(hidden, weight, targets, temperature=1.0)[0].sum().backward()
    gradients = sum(x.grad.nbytes for x in (hidden, weight) if x.grad is not None)
    return Measured((torch.cuda.max_memory_allocated(device) - before - gradients) / 1e9, "GB", 2.6)


def head_speed(device: torch.device) -> Measured:
    """TFLOP/s of forward and backward (four products)."""
    needs_cuda(device)
    hidden, weight, targets = _head_inputs(device, tokens=8192)
    hidden.requires_grad_(), weight.requires_grad_()

    def work() -> None:
        fused_linear_logprobs(hidden, weight, targets, temperature=1.0)[0].sum().backward()

    return Measured(4 * 2 * 8192 * VOCAB * HIDDEN / timed(device, work) / 1e12, "TFLOP/s")


def digest_equal(device: torch.device) -> Measured:
    """Number of tensors whose additive digest differs between the device and the CPU."""
    draw = torch.Generator().manual_seed(1)
    tensors = [torch.randn(257, 129, generator=draw).to(dtype) for dtype in (torch.bfloat16, torch.float32)]
    tensors.append(torch.tensor([0.0, -0.0, 1e-39, float("inf")]).bfloat16())
    kind = DigestKind.ADDITIVE
    return Measured(sum(tensor_digest(t.to(device), kind) != tensor_digest(t, kind) for t in tensors), "differ", 0)


def digest_speed(device: torch.device) -> Measured:
    """GB/s of a bfloat16 weight as large as a 7B model's head."""
    needs_cuda(device)
    tensor = torch.randn(VOCAB, 4096, device=device, dtype=torch.bfloat16)
    return Measured(tensor.nbytes / timed(device, lambda: tensor_digest(tensor)) / 1e9, "GB/s", 100.0, at_least=True)


def merge_equal(device: torch.device) -> Measured:
    """Weights that a merged adapter rounds otherwise than on the CPU, as a share.

    The draw of the rounding is the device's own generator's, so this is recorded, not judged: engines are sent what the
    learner merged and never merge themselves.
    """
    draw = torch.Generator().manual_seed(2)
    linear = nn.Linear(256, 128, bias=False).bfloat16()
    layer = LoraLinear(linear, 8, 2.0)
    weight, a, b = (torch.randn(*s, generator=draw) * 0.02 for s in ((128, 256), (8, 256), (128, 8)))
    weight = weight.bfloat16()
    here = layer.merged(weight.clone(), a, b, "layer")
    there = layer.merged(weight.to(device), a.to(device), b.to(device), "layer").cpu()
    gap = float((here.float() - there.float()).abs().max())
    return Measured(float((here != there).float().mean()), "share", note=f"largest difference {gap:.2e}")


def model_packed(device: torch.device) -> Measured:
    """A small bfloat16 model through the card's attention: packed, sharing a prompt, and alone."""
    hf = random_llama(hidden=256, intermediate=512, layers=2, heads=8, kv_heads=2, vocab=512).bfloat16().to(device)
    check_model(hf, Path("a random model"), with_head=True)
    return Measured(0.0, "refusals", 0.0)


def layer_speed(device: torch.device) -> Measured:
    """Milliseconds of one layer forward and backward; the note has the share of the card's peak arithmetic."""
    needs_cuda(device)
    work, parameters = _layer_work(device)
    seconds = timed(device, work)
    attention_flops = 12 * LAYER_TOKENS * 2048 / 2 * SEVEN_B_LAYER["hidden"]  # causal, forward and backward
    flops = 6 * parameters * LAYER_TOKENS + attention_flops
    card = card_named(torch.cuda.get_device_name(device))
    share = f"MFU {flops / seconds / card.flops:.0%}" if card else "no peak known for this card"
    return Measured(seconds * 1e3, "ms", note=share)


def layer_syncs(device: torch.device) -> Measured:
    """How often the host waits for the card in one forward and backward pass: packing reads lengths back twice."""
    needs_cuda(device)
    from torch.profiler import ProfilerActivity, profile

    work, _ = _layer_work(device)
    work()
    with profile(activities=[ProfilerActivity.CPU, ProfilerActivity.CUDA]) as seen:
        work()
    calls = {e.key: e.count for e in seen.key_averages() if "Synchronize" in e.key}
    return Measured(sum(calls.values()), "waits", 8, note=str(calls))


def _layer_work(device: torch.device) -> tuple[Callable[[], None], int]:
    hf = random_llama(**SEVEN_B_LAYER, layers=1, vocab=1024).bfloat16().to(device)
    row = list(range(1000)) + list(range(1000)) + list(range(48))
    rows = [[(i + s) % 1024 for i in row] for s in range(LAYER_TOKENS // len(row))]
    tokens = TokenBatch.from_sequences(rows, [[False] * len(r) for r in rows])
    moved = TokenBatch(*(t.to(device) for t in (tokens.input_ids, tokens.cu_seqlens, tokens.response_mask)))

    def work() -> None:
        packed_states(hf.base_model, moved, pack(moved)).float().sum().backward()

    return work, sum(p.numel() for p in hf.base_model.layers.parameters())


def _head_inputs(device: torch.device, tokens: int = TOKENS) -> tuple[Tensor, Tensor, Tensor]:
    if device.type == "cpu":
        raise NotRun("no CUDA device (the head's forms have their own tests on CPU)")
    draw = torch.Generator(device).manual_seed(3)
    hidden = torch.randn(tokens, HIDDEN, generator=draw, device=device).bfloat16()
    weight = (torch.randn(VOCAB, HIDDEN, generator=draw, device=device) * 0.05).bfloat16()
    return hidden, weight, torch.randint(0, VOCAB, (tokens,), generator=draw, device=device)


def _in_double(hidden: Tensor, weight: Tensor, targets: Tensor, temperature: float) -> Tensor:
    """Log-probs of the definition in float64, some rows at a time."""
    parts = [
        linear_logprobs(h.double(), weight.double(), t, temperature=temperature)[0]
        for h, t in zip(hidden.split(128), targets.split(128), strict=True)
    ]
    return torch.cat(parts).cpu()


def _short(numbers: list[float]) -> str:
    return ", ".join(f"{n:.2g}" for n in numbers)


def scratch() -> tempfile.TemporaryDirectory[str]:
    """A folder for models and states, removed at the end."""
    return tempfile.TemporaryDirectory(prefix="raylign-gpu-")
