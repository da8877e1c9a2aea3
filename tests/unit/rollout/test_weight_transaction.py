"""The chain manifest -> arrived -> served, on plain tensors."""

from __future__ import annotations

import pytest
import torch
from raylign.rollout.fingerprint import dtype_name, parse_dtype, tensor_digest
from raylign.rollout.interfaces import Canary, TensorSpec, WeightUpdateError
from raylign.rollout.reports import canary_gap, combine_ranks
from raylign.rollout.weight_transaction import RankReport, ServedModule, ServedPart, WeightTransaction
from torch import Tensor

ALL = slice(None)


def specs(weights: dict[str, Tensor]) -> list[TensorSpec]:
    return [TensorSpec(n, tuple(t.shape), dtype_name(t.dtype), tensor_digest(t)) for n, t in weights.items()]


def fused(served: Tensor, *, rank: int = 0, ranks: int = 1, packed: bool = True) -> ServedModule:
    """q (4 rows) and k (2 rows) fused on one rank of `ranks`."""
    q, k = 4 // ranks, 2 // ranks
    parts = (
        ServedPart("q", "q", slice(rank * q, (rank + 1) * q), ALL, slice(0, q)),
        ServedPart("k", "k", slice(rank * k, (rank + 1) * k), ALL, slice(q, q + k)),
    )
    return ServedModule(parts, tuple(served.shape), served.dtype, packed, lambda columns: served[:, columns])


def weights() -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    return {"q": torch.randn(4, 8, generator=generator), "k": torch.randn(2, 8, generator=generator)}


def transact(sent: dict[str, Tensor], module: ServedModule, columns: int = 0, seed: int = 0) -> RankReport:
    transaction = WeightTransaction(specs(weights()), [module], columns=columns, seed=seed)
    list(transaction.observe(sent.items()))
    return transaction.verify()


@pytest.mark.parametrize("columns", [0, 3])
def test_what_is_served_rightly_passes(columns: int) -> None:
    true = weights()
    report = transact(true, fused(torch.cat([true["q"], true["k"]])), columns=columns)
    assert report.mismatched == () and report.missing == ()


@pytest.mark.parametrize("rank", [0, 1])
def test_each_rank_compares_its_own_slice(rank: int) -> None:
    true = weights()
    mine = torch.cat([true["q"][2 * rank : 2 * rank + 2], true["k"][rank : rank + 1]])
    assert transact(true, fused(mine, rank=rank, ranks=2)).mismatched == ()
    assert transact(true, fused(mine, rank=1 - rank, ranks=2)).mismatched == ("k", "q")


def test_one_changed_element_is_named() -> None:
    true = weights()
    served = torch.cat([true["q"], true["k"]])
    served[5, 7] += 1e-6
    assert transact(true, fused(served)).mismatched == ("k",)


def test_sampled_columns_find_a_fault_over_the_versions() -> None:
    """Each version reads other columns, so a fault in one column is found before long."""
    true = weights()
    served = torch.cat([true["q"], true["k"]])
    served[:, 2] += 1.0
    found = [bool(transact(true, fused(served), columns=3, seed=seed).mismatched) for seed in range(12)]
    assert any(found) and not all(found)


def test_missing_corrupt_and_unread_tensors_are_named() -> None:
    true = weights()
    module = fused(torch.cat([true["q"], true["k"]]))
    assert transact({"q": true["q"]}, module).missing == ("k",)
    assert "q" in transact({"q": true["q"] + 1, "k": true["k"]}, module).mismatched
    extra = {**true, "unserved": torch.ones(2)}
    transaction = WeightTransaction(specs(extra), [module], columns=0, seed=0)
    list(transaction.observe(extra.items()))
    assert transaction.verify().mismatched == ("unserved",)


def test_a_served_tensor_nobody_published_is_missing() -> None:
    true = weights()
    transaction = WeightTransaction(
        specs({"q": true["q"]}), [fused(torch.cat([true["q"], true["k"]]))], columns=0, seed=0
    )
    list(transaction.observe([("q", true["q"])]))
    assert transaction.verify().missing == ("k",)


def test_a_tied_head_is_held_to_the_embedding() -> None:
    embedding = torch.randn(6, 8)
    stale = embedding + 1
    at_head, at_body = (ServedPart(name, "embed", ALL, ALL, ALL) for name in ("lm_head", "embed"))
    head = ServedModule((at_head,), (6, 8), torch.float32, True, lambda columns: stale[:, columns])
    body = ServedModule((at_body,), (6, 8), torch.float32, False, lambda _: embedding)
    transaction = WeightTransaction(specs({"embed": embedding}), [body, head], columns=0, seed=0)
    list(transaction.observe([("embed", embedding)]))
    report = transaction.verify()
    assert report.mismatched == ("lm_head",) and report.missing == ()


def test_an_engine_of_another_precision_is_held_to_the_rounded_weights() -> None:
    true = weights()
    served = torch.cat([true["q"], true["k"]]).bfloat16()
    assert transact(true, fused(served)).mismatched == ()
    assert transact(true, fused(served * 1.01)).mismatched == ("k", "q")


@pytest.mark.parametrize(
    ("sent", "message"),
    [
        ([("other", torch.ones(1))], "other arrived but is not in the manifest"),
        ([("k", torch.ones(3, 8))], r"k arrived as float32 \(3, 8\); announced as float32 \(2, 8\)"),
        ([("k", torch.ones(2, 8).bfloat16())], "k arrived as bfloat16"),
        ([("k", weights()["k"])] * 2, "k arrived twice"),
    ],
)
def test_what_cannot_become_right_stops_at_once(sent: list[tuple[str, Tensor]], message: str) -> None:
    true = weights()
    transaction = WeightTransaction(specs(true), [fused(torch.cat([true["q"], true["k"]]))], columns=0, seed=0)
    with pytest.raises(WeightUpdateError, match=message):
        list(transaction.observe(sent))


def test_digest_sees_dtype_shape_and_every_element_but_not_the_sign_of_zero() -> None:
    tensor = torch.randn(3, 4)
    assert tensor_digest(tensor) == tensor_digest(tensor.t().contiguous().t())
    assert tensor_digest(tensor) != tensor_digest(tensor.reshape(4, 3))
    assert tensor_digest(torch.zeros(4)) != tensor_digest(torch.zeros(8, dtype=torch.bfloat16))
    assert tensor_digest(torch.tensor([0.0, 1.0])) == tensor_digest(torch.tensor([-0.0, 1.0]))
    assert tensor_digest(torch.tensor([1e-39]).bfloat16()) == tensor_digest(torch.tensor([0.0]).bfloat16())
    assert tensor_digest(torch.tensor([1e-39])) != tensor_digest(torch.tensor([0.0]))


def test_dtypes_that_cannot_be_published_are_refused() -> None:
    assert parse_dtype("bfloat16") is torch.bfloat16
    with pytest.raises(ValueError, match="'int8' cannot be published"):
        parse_dtype("int8")


def test_ranks_become_one_report() -> None:
    ranks = [[[["q", "aa", "", ""]], [], ["k"]], [[["q", "bb", "", ""]], ["q"], []]]
    report = combine_ranks(3, ranks, 0.1)
    assert report.mismatched == ("q",) and report.missing == ("k",) and report.version == 3
    assert report.digests["q"] != combine_ranks(3, list(reversed(ranks)), 0.1).digests["q"]
    assert combine_ranks(3, ranks[:1], 0.1).digests["q"] == "aa"


def test_a_canary_that_is_not_a_number_fails() -> None:
    canary = Canary((1, 2), (-1.0,))
    assert canary_gap([canary, Canary((1, 2, 3), (-1.0, -2.0))], [[-1.5], [-1.0, -2.25]]) == 0.25
    assert not combine_ranks(1, [], canary_gap([canary], [[float("nan")]])).passed(0.05)
