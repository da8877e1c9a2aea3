"""The learner on the plain engine: it learns, its numbers do not depend on how the batch is cut, it reports truly."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
import torch
from raylign.conf.schema import OptimConfig, Precision, Schedule
from raylign.data.types import CriticExperience, Denominators, PolicyExperience, RankShard, TokenBatch, UpdateWindow
from raylign.trainer.algorithms.base import LossOutput, MetricSum
from raylign.trainer.engine.base import EngineStateError, lr_at
from raylign.trainer.engine.buckets import weights_to_buckets
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.learner import Learner, RanksDisagreeError
from raylign.trainer.models.loading import load_causal_lm, load_scalar_model
from raylign.trainer.models.sequence_split import SequenceSplit
from torch import Tensor, nn

LENGTHS = (5, 9, 3, 12, 7, 4, 10, 6)


def _batch() -> PolicyExperience:
    generator = torch.Generator().manual_seed(5)
    rows = [torch.randint(0, 400, (n,), generator=generator).tolist() for n in LENGTHS]
    tokens = TokenBatch.from_sequences(rows, [[False] * 2 + [True] * (n - 2) for n in LENGTHS])
    ones = tokens.response_mask.float()
    return PolicyExperience(tokens, ones, ones, None, ones)


def _groups() -> PolicyExperience:
    """The same with a longer prompt that every two have in common."""
    plain, generator = _batch().tokens, torch.Generator().manual_seed(6)
    prompts = torch.randint(0, 400, (4, 7), generator=generator).tolist()
    rows = [(prompts[s // 2] + ids, [False] * 7 + mask) for s, (ids, mask) in enumerate(plain.sequences())]
    tokens = TokenBatch.from_sequences(*zip(*rows, strict=True))
    ones = tokens.response_mask.float()
    return PolicyExperience(tokens, ones, ones, None, ones)


def _denominators(batch: PolicyExperience) -> Denominators:
    return Denominators(float(batch.tokens.response_mask.sum()), float(len(LENGTHS)))


def _window(batch: PolicyExperience, parts: list[list[int]]) -> UpdateWindow[PolicyExperience]:
    return UpdateWindow(tuple(batch.select(part) for part in parts), _denominators(batch))


def _nll(model: nn.Module, batch: PolicyExperience, denominators: Denominators) -> LossOutput:
    outputs = model(batch.tokens, temperature=1.0)
    nll, count = -outputs.logprobs.sum(), batch.tokens.response_mask.sum()
    maxima = {"worst": (-outputs.logprobs).max()}
    return LossOutput(nll / denominators.tokens, {"nll": MetricSum(nll.detach(), count)}, maxima)


def _learner(folder: Path, **optim: float) -> Learner:
    config = OptimConfig(**{"lr": 3e-3, **optim})
    return Learner(TorchEngine(load_causal_lm(folder, precision=Precision.float32), config, total_steps=100))


ALL_AT_ONCE = [list(range(8))]
CUTS = [[[0, 1, 2, 3], [4, 5, 6, 7]], [[7, 0], [3], [1, 2, 6, 5], [4]]]


@pytest.mark.slow
def test_eight_sequences_are_learnt_by_heart(tiny_model_untied_dir: Path) -> None:
    learner, batch = _learner(tiny_model_untied_dir), _batch()
    losses = []
    for _ in range(60):
        result = learner.update(RankShard((_window(batch, CUTS[0]),)), _nll)
        losses.append(result.metrics["loss"])
    assert losses[0] > 4
    assert losses[-1] < 0.05
    assert learner.logprobs([batch.tokens], temperature=1.0)[0].min() > -0.5


@pytest.mark.slow
@pytest.mark.parametrize("batch", [_batch(), _groups()], ids=["alone", "groups"])
@pytest.mark.parametrize("parts", CUTS)
def test_weights_and_metrics_do_not_depend_on_the_cut(
    tiny_model_dir: Path, parts: list[list[int]], batch: PolicyExperience
) -> None:
    # eps far above rounding: AdamW's first step is the gradient's sign, which noise around zero would flip
    whole, cut = (_learner(tiny_model_dir, eps=1e-3) for _ in range(2))
    expected = whole.update(RankShard((_window(batch, ALL_AT_ONCE),) * 3), _nll)
    result = cut.update(RankShard((_window(batch, parts),) * 3), _nll)
    for name in ("loss", "nll", "worst", "grad_norm", "lr", "tokens"):
        assert result.metrics[name] == pytest.approx(expected.metrics[name], rel=1e-5), name
    assert result.steps_applied == expected.steps_applied == 3
    assert result.metrics["tokens"] == 3 * batch.tokens.num_tokens
    for (name, ours), (_, theirs) in zip(
        cut.engine.gathered_parameters(), whole.engine.gathered_parameters(), strict=True
    ):
        torch.testing.assert_close(ours, theirs, atol=1e-6, rtol=1e-5, msg=lambda m, n=name: f"{n}: {m}")


def test_a_step_whose_gradient_is_not_a_number_changes_nothing(tiny_model_dir: Path) -> None:
    learner, batch = _learner(tiny_model_dir), _batch()
    before = {name: t.clone() for name, t in learner.engine.gathered_parameters()}

    def poisoned(model: nn.Module, part: PolicyExperience, denominators: Denominators) -> LossOutput:
        output = _nll(model, part, denominators)
        return LossOutput(output.loss * math.nan, output.metrics)

    result = learner.update(RankShard((_window(batch, CUTS[0]),)), poisoned)
    assert (result.steps_applied, result.steps_skipped) == (0, 1)
    assert all(torch.equal(t, before[name]) for name, t in learner.engine.gathered_parameters())
    assert learner.update(RankShard((_window(batch, CUTS[0]),)), _nll).steps_applied == 1


def test_logprobs_come_back_in_order_and_without_a_trace_of_packing(tiny_model_dir: Path) -> None:
    learner, tokens = _learner(tiny_model_dir), _batch().tokens
    together = learner.logprobs([tokens], temperature=0.7)[0]
    apart = learner.logprobs([tokens.select([s]) for s in range(8)], temperature=0.7)
    torch.testing.assert_close(torch.cat(apart), together, atol=2e-6, rtol=1e-5)
    assert not together.requires_grad


def test_critic_values_and_scores_agree_on_the_last_state(tiny_model_dir: Path) -> None:
    model = load_scalar_model(tiny_model_dir, precision=Precision.float32, new_head_seed=0)
    learner = Learner(TorchEngine(model, OptimConfig(lr=1e-3), total_steps=10))
    tokens = _batch().tokens
    (estimates,), (scores,) = learner.values([tokens]), learner.scores([tokens])
    assert torch.equal(estimates.bootstrap, scores)
    assert not estimates.values[~tokens.response_mask].any()


@pytest.mark.slow
def test_a_critic_fits_its_returns(tiny_model_dir: Path) -> None:
    model = load_scalar_model(tiny_model_dir, precision=Precision.float32, new_head_seed=0)
    learner = Learner(TorchEngine(model, OptimConfig(lr=1e-3), total_steps=60))
    tokens = _batch().tokens
    returns = torch.randn(tokens.num_tokens, generator=torch.Generator().manual_seed(0)) * tokens.response_mask
    batch = CriticExperience(tokens, torch.zeros_like(returns), returns)

    def squared(model: nn.Module, part: CriticExperience, denominators: Denominators) -> LossOutput:
        from raylign.trainer.models.scalar_head import values_from_states

        error = values_from_states(model(part.tokens), part.tokens).values - part.returns
        return LossOutput(error.square().sum() / denominators.tokens, {})

    window = UpdateWindow((batch.select([0, 1, 2]), batch.select([3, 4, 5, 6, 7])), Denominators(40.0, 8.0))
    losses = [learner.update(RankShard((window,)), squared).metrics["loss"] for _ in range(60)]
    assert losses[-1] < 0.02 * losses[0]


def test_saved_and_continued_is_uninterrupted(tiny_model_dir: Path, tmp_path: Path) -> None:
    shard = RankShard((_window(_batch(), CUTS[1]),) * 2)
    straight, resumed = (_learner(tiny_model_dir, warmup_steps=5) for _ in range(2))
    straight.update(shard, _nll)
    straight.engine.save_state(tmp_path)
    resumed.engine.load_state(tmp_path)
    first, second = straight.update(shard, _nll), resumed.update(shard, _nll)
    assert [second.metrics[n] for n in ("loss", "grad_norm", "lr")] == [
        first.metrics[n] for n in ("loss", "grad_norm", "lr")
    ]
    for (_, ours), (_, theirs) in zip(
        resumed.engine.gathered_parameters(), straight.engine.gathered_parameters(), strict=True
    ):
        assert torch.equal(ours, theirs)


def test_the_state_of_another_model_is_refused(
    tiny_model_dir: Path, tiny_model_untied_dir: Path, tmp_path: Path
) -> None:
    _learner(tiny_model_untied_dir).engine.save_state(tmp_path)
    with pytest.raises(EngineStateError, match="another model"):
        _learner(tiny_model_dir).engine.load_state(tmp_path)
    with pytest.raises(EngineStateError, match="does not exist"):
        _learner(tiny_model_dir).engine.load_state(tmp_path / "nowhere")


@pytest.mark.parametrize(("fixture", "names"), [("tiny_model_dir", 20), ("tiny_model_untied_dir", 21)])
def test_buckets_hold_every_weight_once_and_respect_their_size(
    fixture: str, names: int, request: pytest.FixtureRequest
) -> None:
    engine = _learner(request.getfixturevalue(fixture)).engine
    limit = 200_000
    buckets = list(weights_to_buckets(engine, limit))
    expected = dict(engine.gathered_parameters())
    assert len(expected) == names
    assert [name for bucket in buckets for name in bucket.names] == list(expected)
    assert len(buckets) > 3
    for bucket in buckets:
        assert bucket.num_bytes <= limit or len(bucket.names) == 1
        for name, tensor in zip(bucket.names, bucket.tensors, strict=True):
            assert torch.equal(tensor, expected[name])
            assert tensor.data_ptr() == expected[name].data_ptr(), "copied for nothing"


class _SecondRankAway(TorchEngine):
    """Rank 0 of two whose other rank reports a different plan in the first collective."""

    @property
    def world_size(self) -> int:
        return 2

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        return tensor + torch.tensor([7.0, 49.0], dtype=tensor.dtype)


def test_ranks_with_different_plans_are_told_before_they_hang(tiny_model_dir: Path) -> None:
    model = load_causal_lm(tiny_model_dir, precision=Precision.float32)
    learner = Learner(_SecondRankAway(model, OptimConfig(), total_steps=1))
    with pytest.raises(RanksDisagreeError, match=r"1 steps of \[2\] micro-batches"):
        learner.update(RankShard((_window(_batch(), CUTS[0]),)), _nll)


def test_learning_rate_by_hand() -> None:
    optim = OptimConfig(lr=1.0, warmup_steps=4, schedule=Schedule.linear)
    assert [lr_at(step, optim, 8) for step in (0, 3, 4, 6, 8, 99)] == [0.25, 1.0, 1.0, 0.5, 0.0, 0.0]
    optim.schedule = Schedule.cosine
    assert lr_at(6, optim, 8) == pytest.approx(0.5)
    optim.schedule = Schedule.constant
    assert lr_at(99, optim, 8) == 1.0


@dataclass(frozen=True)
class _Counted:
    """Measures how many sequences it saw."""

    figure: float | None = None

    def measure(self, model: nn.Module, batch: PolicyExperience, denominators: Denominators) -> Tensor:
        return torch.tensor(float(batch.tokens.num_sequences))

    def given(self, figure: Tensor) -> _Counted:
        return replace(self, figure=float(figure))

    def __call__(self, model: nn.Module, batch: PolicyExperience, denominators: Denominators) -> LossOutput:
        raise NotImplementedError


@pytest.mark.parametrize(("rank", "counted"), [(0, len(LENGTHS)), (1, 0)])
def test_of_ranks_that_see_the_same_batch_the_first_one_counts(rank: int, counted: int, tiny_model_dir: Path) -> None:
    engine = _learner(tiny_model_dir).engine
    learner = Learner(engine, cast(SequenceSplit, SimpleNamespace(rank=rank)))
    window = _window(_batch(), [[0, 1, 2], [3, 4, 5, 6, 7]])
    assert cast(_Counted, learner._measured(window, _Counted())).figure == counted
