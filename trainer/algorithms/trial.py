"""A user's own algorithm on made-up sequences, before anything is started.

Is it what the learner needs, and is its loss the sum over micro-batches that every loss here must be? Takes
milliseconds on the CPU. Pure.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any, cast

import torch
from raylign.conf.own_code import first_line
from raylign.conf.schema import AlgorithmConfig
from raylign.data.row_batches import JudgedBatch, TextBatch
from raylign.data.types import (
    CriticExperience,
    Denominators,
    PairBatch,
    PolicyExperience,
    RowKind,
    ScoredBatch,
    TokenBatch,
    TokenOutputs,
    ValueEstimates,
)
from raylign.trainer.algorithms.base import (
    AdvantageEstimate,
    LinearAlgorithm,
    LossOutput,
    MeasuringAlgorithm,
    MetricSum,
    ModelKind,
    OfflineNeeds,
    Role,
)
from raylign.trainer.algorithms.online import OnlineConfig
from torch import Tensor

_LENGTHS, _PROMPT = (5, 4, 6, 3), 2
_TOLERANCE = 1e-4  # relative, of float32 sums in another order
_KL_COEF = 0.1


class _Wrong(ValueError):
    """What is wrong, as the end of a sentence that begins with the algorithm's name."""


def trial(config: AlgorithmConfig, build: Callable[..., Any]) -> list[str]:
    """What is wrong with the algorithm under these settings; empty when nothing is. Stops at the first."""
    try:
        algorithm = _called("its class", lambda: build(config))
        roles = _called("roles", lambda: algorithm.roles)
        if not (isinstance(roles, frozenset) and roles and all(isinstance(role, Role) for role in roles)):
            raise _Wrong(f"roles is {roles!r}; return a frozenset of raylign.trainer.algorithms.base.Role")
        units = _called("its settings' units_per_update", lambda: config.units_per_update)
        if not isinstance(units, int):
            raise _Wrong(f"its settings' units_per_update is {units!r}; return a whole number of sequences or rows")
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            (_online if Role.ROLLOUT in roles else _offline)(config, algorithm, roles)
    except _Wrong as wrong:
        return [str(wrong)]
    return []


def _offline(_: AlgorithmConfig, algorithm: Any, roles: frozenset[Role]) -> None:
    needs = _called("needs", lambda: algorithm.needs)
    if not isinstance(needs, OfflineNeeds):
        raise _Wrong(f"needs is {needs!r}; return a raylign.trainer.algorithms.base.OfflineNeeds")
    _takes(algorithm, "loss", 3)
    batch = _rows(needs, with_reference=Role.REFERENCE in roles)
    denominators = _denominators(batch)
    scalar = needs.model is ModelKind.SCALAR
    given = -torch.rand(len(_LENGTHS) if scalar else batch.tokens.num_tokens)
    if isinstance(algorithm, MeasuringAlgorithm):
        measuring = algorithm
        figure = _called("measure", lambda: measuring.measure(
            _outputs(-torch.rand(measuring.measured_tokens(batch).num_tokens)), batch, denominators
        ))  # fmt: skip
        algorithm = _called("given", lambda: measuring.given(figure))

    def loss(values: Tensor, part: Any) -> LossOutput:
        return cast(LossOutput, algorithm.loss(values if scalar else _outputs(values), part, denominators))

    gradient = _check_loss("loss", loss, given, batch, by_sequence=scalar)
    if isinstance(algorithm, LinearAlgorithm):
        known = _called("logprob_gradient", lambda: algorithm.logprob_gradient(batch, denominators))
        mask = batch.tokens.response_mask
        if not torch.allclose(known[mask], gradient[mask], rtol=_TOLERANCE, atol=1e-6):
            raise _Wrong("logprob_gradient is not the gradient of its loss; training would follow the wrong one")


def _online(config: AlgorithmConfig, algorithm: Any, roles: frozenset[Role]) -> None:
    if not isinstance(config, OnlineConfig):
        raise _Wrong(
            f"its roles have a rollout, and its settings {type(config).__name__} are none of an online algorithm; "
            "derive them from raylign.trainer.algorithms.online.OnlineConfig"
        )
    _takes(algorithm, "estimate", 1, "kl_coef")
    _takes(algorithm, "policy_loss", 3, "kl_coef")
    tokens = _tokens()
    mask, flat = tokens.response_mask, torch.where(tokens.response_mask, -torch.rand(tokens.num_tokens), 0)
    ref = flat - 0.01 * mask if Role.REFERENCE in roles else None
    values = ValueEstimates(0.1 * mask, torch.zeros(4)) if Role.CRITIC in roles else None
    scored = ScoredBatch(
        tokens, torch.tensor([0, 0, 1, 1]), torch.tensor([1.0, 0.0, 0.5, 2.0]), torch.tensor([False] * 3 + [True]),
        flat, ref, values,
    )  # fmt: skip
    found = _called("estimate", lambda: algorithm.estimate(scored, kl_coef=_KL_COEF))
    if not isinstance(found, AdvantageEstimate):
        raise _Wrong(f"estimate returned a {type(found).__name__}; return an AdvantageEstimate")
    _check_tensor("estimate's advantages", found.advantages, mask)
    experience = PolicyExperience(tokens, flat, flat, ref, found.advantages)
    denominators = _denominators(experience)

    def policy(logprobs: Tensor, part: Any) -> LossOutput:
        loss = algorithm.policy_loss(_outputs(logprobs), part, denominators, kl_coef=_KL_COEF)
        return cast(LossOutput, loss)

    _check_loss("policy_loss", policy, flat + 0.05 * torch.rand(tokens.num_tokens) * mask, experience)
    if Role.CRITIC in roles:
        _takes(algorithm, "value_loss", 3)
        if found.returns is None:
            raise _Wrong("its roles have a critic, and estimate gives no returns to train it on")
        _check_tensor("estimate's returns", found.returns, mask)
        critic = CriticExperience(tokens, 0.1 * mask, found.returns)
        _check_loss("value_loss", lambda v, part: algorithm.value_loss(v, part, denominators), 0.2 * mask, critic)


def _check_loss(
    name: str, loss: Callable[[Tensor, Any], LossOutput], given: Tensor, batch: Any, *, by_sequence: bool = False
) -> Tensor:
    """The gradient of the loss. Raises _Wrong unless it is a number, follows the model and adds up over batches."""
    leaf = given.clone().requires_grad_()
    whole = _output(name, _called(name, lambda: loss(leaf, batch)))
    if not whole.loss.requires_grad:
        raise _Wrong(f"{name} does not depend on the model's output, so nothing would be trained; do not detach it")
    (gradient,) = torch.autograd.grad(whole.loss, leaf)
    if not gradient.isfinite().all():
        raise _Wrong(f"{name} has a gradient that is not finite")
    total = 0.0
    for unit in range(len(batch.units())):
        part = batch.select([unit])
        rows = _rows_of(unit, len(_LENGTHS) // len(batch.units()))
        own = given[rows] if by_sequence else given[batch.tokens.token_index(rows)]
        total += _output(name, _called(name, partial(loss, own.requires_grad_(), part))).loss.item()
    at_once = whole.loss.item()
    if abs(total - at_once) > _TOLERANCE * max(1.0, abs(at_once)):
        raise _Wrong(
            f"{name} is {at_once:.4g} for a step at once and {total:.4g} in micro-batches of one; divide sums "
            "by the denominators that are passed in, never by what the batch holds"
        )
    filler = batch.filler()
    nothing = torch.zeros(filler.tokens.num_tokens if not by_sequence else 2)
    empty = _output(name, _called(name, lambda: loss(nothing.requires_grad_(), filler)))
    if empty.loss.item() != 0:
        raise _Wrong(f"{name} is {empty.loss.item():.4g} for a batch of weight 0; use the batch's mask and weight")
    return gradient


def _output(name: str, found: object) -> LossOutput:
    if not isinstance(found, LossOutput):
        raise _Wrong(f"{name} returned a {type(found).__name__}; return a raylign.trainer.algorithms.base.LossOutput")
    if not isinstance(found.loss, Tensor) or found.loss.dim():
        shape = list(found.loss.shape) if isinstance(found.loss, Tensor) else type(found.loss).__name__
        raise _Wrong(f"{name} returned a loss of shape {shape}; it is a tensor of no dimension")
    if not found.loss.isfinite():
        raise _Wrong(f"{name} returned {found.loss.item()} for log-probs and rewards of ordinary size")
    for metric, value in found.metrics.items():
        if not isinstance(value, MetricSum):
            raise _Wrong(f"{name}'s metric {metric} is a {type(value).__name__}; give MetricSum(total, count)")
    return found


def _check_tensor(name: str, value: object, mask: Tensor) -> None:
    if not isinstance(value, Tensor) or value.shape != mask.shape:
        raise _Wrong(f"{name} are not a tensor of one number a token")
    if not value.isfinite().all():
        raise _Wrong(f"{name} are not all finite")
    if value[~mask].any():
        raise _Wrong(f"{name} are not 0 outside response_mask")


def _takes(algorithm: object, name: str, positional: int, *keywords: str) -> None:
    method = getattr(algorithm, name, None)
    if not callable(method):
        raise _Wrong(f"has no method {name}")
    wanted = {1: "batch", 3: "outputs, batch, denominators"}[positional] + "".join(f", *, {k}" for k in keywords)
    try:
        inspect.signature(method).bind(*[None] * positional, **dict.fromkeys(keywords))
    except TypeError as error:
        raise _Wrong(f"{name} cannot be called as {name}({wanted}): {error}") from error


def _called(name: str, call: Callable[[], Any]) -> Any:
    try:
        return call()
    except _Wrong:
        raise
    except Exception as error:  # a user's code may raise anything
        raise _Wrong(f"{name} raised {first_line(error)}") from error


def _rows_of(unit: int, sequences: int) -> list[int]:
    return list(range(unit * sequences, (unit + 1) * sequences))


def _tokens() -> TokenBatch:
    ids = [list(range(1, n + 1)) for n in _LENGTHS]
    return TokenBatch.from_sequences(ids, [[i >= _PROMPT for i in range(n)] for n in _LENGTHS])


def _outputs(logprobs: Tensor) -> TokenOutputs:
    return TokenOutputs(logprobs, torch.full_like(logprobs, 0.7).detach(), logprobs.detach() > -0.5)


def _rows(needs: OfflineNeeds, *, with_reference: bool) -> Any:
    tokens, one = _tokens(), torch.ones(4)
    ref = -torch.rand(4) if with_reference else None
    match needs.rows:
        case RowKind.PAIRS:
            pairs = PairBatch(tokens, torch.zeros(2), torch.ones(2), ref_logps=ref)
            return replace(pairs, answers=tokens.response_mask) if needs.train_prompts else pairs
        case RowKind.JUDGED:
            return JudgedBatch(tokens, tokens, torch.tensor([True, False, True, False]), one, ref, ref)
        case _:
            return TextBatch(tokens, tokens.response_mask.float())


def _denominators(batch: Any) -> Denominators:
    mask, chosen = batch.tokens.response_mask, 0.0
    if isinstance(batch, PairBatch):
        chosen = float(sum(_LENGTHS[0::2]) - 2 * _PROMPT)
    return Denominators(float(mask.sum()), float(len(_LENGTHS)), chosen)
