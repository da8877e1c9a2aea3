"""What one row did: against exact gradients, against the plain learner, and on data with planted mistakes."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from raylign.conf.errors import DataError
from raylign.conf.schema import OptimConfig
from raylign.data.batching import shard
from raylign.evals.influence import Effect, effects, movement_along, neighbours, strongest
from raylign.evals.sketch import GradientSketch
from raylign.evals.trace_index import TraceIndex, load_index, save_index
from raylign.trainer.algorithms.dpo import DPO, DPOConfig
from raylign.trainer.algorithms.rm import RewardModelling, RMConfig
from raylign.trainer.algorithms.simpo import SimPO, SimPOConfig
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.learner import Learner
from raylign.trainer.models.loading import load_causal_lm, load_scalar_model
from raylign.trainer.workers.offline_model import objective_of

from tests.unit.evals.planted import PER_STEP, PRECISION, Planted, planted, traced, with_reference

STEPS = 6
DPO_ALGORITHM = DPO(DPOConfig(pairs_per_update=PER_STEP))


def area(scores: Sequence[float], positive: Sequence[bool]) -> float:
    """Share of (positive, negative) pairs in which the positive one scores lower; ties count half."""
    low = [s for s, p in zip(scores, positive, strict=True) if p]
    high = [s for s, p in zip(scores, positive, strict=True) if not p]
    return sum((a < b) + 0.5 * (a == b) for a in low for b in high) / (len(low) * len(high))


@pytest.fixture(scope="module")
def data() -> Planted:
    return planted(seed=0)


@pytest.fixture(scope="module")
def dpo(data: Planted, tiny_model_dir: Path) -> tuple[TraceIndex, torch.Tensor]:
    def model():
        return load_causal_lm(tiny_model_dir, precision=PRECISION)

    rows, held_out = with_reference(data.rows, model()), with_reference(data.held_out, model())
    return traced(model(), DPO_ALGORITHM, rows, held_out, steps=STEPS)


@pytest.fixture(scope="module")
def reward_model(data: Planted, tiny_model_dir: Path) -> tuple[TraceIndex, torch.Tensor]:
    model = load_scalar_model(tiny_model_dir, precision=PRECISION, new_head_seed=1)
    return traced(model, RewardModelling(RMConfig(pairs_per_update=PER_STEP)), data.rows, data.held_out, steps=STEPS)


def test_sketches_keep_inner_products():
    sizes = {"a": 30_000, "b": 700, "c": 50_001}
    draw = torch.Generator().manual_seed(1)
    first, second = ({n: torch.randn(c, generator=draw) for n, c in sizes.items()} for _ in range(2))
    whole = [torch.cat(list(v.values())) for v in (first, second)]
    mixed = {name: 0.5 * first[name] + second[name] for name in sizes}
    found = []
    for seed in range(20):
        sketch = GradientSketch(sizes, size=4096, seed=seed)
        of = [sketch.of(v.items()) for v in (first, mixed)]
        found.append(float(of[0] @ of[1]))
    exact = float(whole[0] @ (0.5 * whole[0] + whole[1]))
    spread = float(whole[0].norm() * (0.5 * whole[0] + whole[1]).norm()) / 64  # of one sketch, at size 4096

    assert abs(sum(found) / 20 - exact) < 3 * spread / math.sqrt(20)
    assert (sum((f - exact) ** 2 for f in found) / 20) ** 0.5 < 1.5 * spread


def test_a_small_model_is_kept_whole():
    sizes = {"a": 300, "b": 77}
    first, second = ({n: torch.randn(c) for n, c in sizes.items()} for _ in range(2))
    sketch = GradientSketch(sizes, size=4096)
    exact = sum(float(first[n] @ second[n]) for n in sizes)

    assert float(sketch.of(first.items()) @ sketch.of(second.items())) == pytest.approx(exact, rel=1e-5)


@pytest.mark.slow
def test_the_replay_is_the_run(data: Planted, tiny_model_dir: Path, dpo: tuple[TraceIndex, torch.Tensor]):
    """Rows one by one train what packed micro-batches train: the same values before every step."""
    from raylign.data.sampler import EpochSampler

    model = load_causal_lm(tiny_model_dir, precision=PRECISION)
    rows = with_reference(data.rows, load_causal_lm(tiny_model_dir, precision=PRECISION))
    learner = Learner(TorchEngine(model, OptimConfig(lr=1e-4), total_steps=STEPS))
    sampler = EpochSampler(len(rows), seed=3, shuffle=True, data_hash=rows.digest)
    index = dpo[0]
    for step in range(1, STEPS + 1):
        drawn = [row for _, row in sampler.next_batch(PER_STEP)]
        batch = rows.batch(drawn)
        before = learner.sequence_logprobs([batch.tokens])[0].view(-1, 2)
        (part,) = shard(batch, num_ranks=1, units_per_update=PER_STEP, micro_batch_tokens=256, seed=3)
        metrics = learner.update(part, objective_of(DPO_ALGORITHM)).metrics
        after = learner.sequence_logprobs([batch.tokens])[0].view(-1, 2)
        draws = (index.step == step).nonzero()[:, 0].tolist()

        assert index.row[draws].tolist() == drawn
        torch.testing.assert_close(
            torch.tensor([index.value(d) for d in draws]), (before[:, 0] - before[:, 1]).float(), rtol=1e-4, atol=2e-4
        )
        torch.testing.assert_close(
            torch.tensor([index.value(d, after=True) for d in draws]), (after[:, 0] - after[:, 1]).float(),
            rtol=1e-4, atol=2e-4,
        )  # fmt: skip
        assert float(index.loss[draws].mean()) == pytest.approx(metrics["loss"], rel=1e-5)


def test_no_row_is_listed_twice_where_there_are_few():
    ranked = [Effect(row, effect, 0.1) for row, effect in ((4, 2.0), (1, 0.5), (3, 0.0), (2, -1.0))]
    helpful, harmful = strongest(ranked, 10)

    assert [one.row for one in helpful] == [4, 1] and [one.row for one in harmful] == [2]
    assert [one.row for one in strongest(ranked, 1)[0]] == [4]


@pytest.mark.slow
@pytest.mark.parametrize("which", ["dpo", "reward_model"])
def test_first_order_predicts_what_a_step_changes(which: str, request: pytest.FixtureRequest):
    index: TraceIndex = request.getfixturevalue(which)[0]
    draws = range(len(index.step))
    predicted = torch.tensor([index.predicted_change(d) for d in draws])
    measured = torch.tensor([index.measured_change(d) for d in draws])

    assert torch.corrcoef(torch.stack([predicted, measured]))[0, 1] > 0.9
    assert float((predicted @ measured) / (predicted @ predicted)) == pytest.approx(1, abs=0.1)  # no factor is lost


@pytest.mark.parametrize("which", ["dpo", "reward_model"])
@pytest.mark.slow
def test_flipped_labels_are_found_harmful(which: str, data: Planted, request: pytest.FixtureRequest):
    index, target = request.getfixturevalue(which)
    ranked = {one.row: one.effect for one in effects(index, target)}
    rows = sorted(ranked)
    flipped = [data.flipped[row] for row in rows]
    found = area([ranked[row] for row in rows], flipped)

    assert len(rows) == len(data.rows)
    assert found > 0.8
    # a control: the same figures with rows and labels unrelated
    shuffled = torch.randperm(len(rows), generator=torch.Generator().manual_seed(5)).tolist()
    assert 0.3 < area([ranked[rows[i]] for i in shuffled], flipped) < 0.7


def test_loss_alone_does_not_find_them(data: Planted, reward_model: tuple[TraceIndex, torch.Tensor]):
    index, target = reward_model
    ranked = {one.row: one.effect for one in effects(index, target)}
    first = {row: index.draws_of(row)[0] for row in ranked}
    flipped = [data.flipped[row] for row in first]
    by_loss = area([-float(index.loss[d]) for d in first.values()], flipped)

    assert area([ranked[row] for row in first], flipped) > by_loss + 0.2


def test_a_copy_is_the_nearest_neighbour(data: Planted, dpo: tuple[TraceIndex, torch.Tensor]):
    first, second = data.twin
    same, opposite = neighbours(dpo[0], first, 3)

    assert same[0].row == second and same[0].cosine > 0.9
    assert all(one.cosine < 0 for one in opposite)
    assert neighbours(dpo[0], second, 3)[0][0].row == first


def test_the_run_moved_down_its_rows_gradients(data: Planted, dpo: tuple[TraceIndex, torch.Tensor]):
    index = dpo[0]
    kept = [movement_along(index, d) for d in range(len(index.step)) if not data.flipped[int(index.row[d])]]

    assert sum(kept) / len(kept) > 0.02


@pytest.mark.slow
def test_a_loss_of_more_than_the_gap_has_no_prediction_of_it(data: Planted, tiny_model_dir: Path):
    model = load_causal_lm(tiny_model_dir, precision=PRECISION)
    algorithm = SimPO(SimPOConfig(pairs_per_update=PER_STEP))
    uneven = replace(data.rows, pairs=tuple(_shorter(p) if i % 2 else p for i, p in enumerate(data.rows.pairs)))
    index, _ = traced(model, algorithm, uneven, data.held_out, steps=1)
    draws = range(len(index.step))

    assert any(index.predicted_change(d) is None for d in draws)
    change = [float(index.push[index.units(d)] @ (index.after - index.before)[index.units(d)]) for d in draws]
    correlation = torch.corrcoef(torch.stack([index.along.float(), torch.tensor(change)]))[0, 1]
    assert correlation > 0.9


def test_an_index_is_read_back_or_refused(tmp_path: Path, dpo: tuple[TraceIndex, torch.Tensor]):
    save_index(tmp_path, dpo[0])
    found = load_index(tmp_path, "test")

    assert found is not None and found.header == dpo[0].header
    torch.testing.assert_close(found.sketch, dpo[0].sketch, rtol=0, atol=0)
    assert load_index(tmp_path, "another") is None
    data = (tmp_path / "index.safetensors").read_bytes()
    (tmp_path / "index.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(DataError, match="cannot be read"):
        load_index(tmp_path, "test")


def _shorter(pair):
    return replace(pair, rejected=replace(pair.rejected, token_ids=pair.rejected.token_ids[:-6]))
