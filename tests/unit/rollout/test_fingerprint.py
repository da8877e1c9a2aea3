"""Both kinds of digest against plain definitions, and what the additive one is for: parts that add up."""

from __future__ import annotations

import pytest
import torch
import xxhash
from raylign.rollout import fingerprint
from raylign.rollout.fingerprint import DigestKind, part_digest, sum_of_parts, tensor_digest
from raylign.rollout.interfaces import TensorSpec
from raylign.rollout.reports import combine_ranks
from raylign.rollout.weight_transaction import ServedModule, ServedPart, WeightTransaction
from torch import Tensor

ALL, WORD = slice(None), 2**64
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
ADDITIVE = DigestKind.ADDITIVE


def drawn(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    tensor = torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)
    flat = tensor.view(-1)
    flat[:4] = torch.tensor([0.0, -0.0, 1e-39, -1e-39]).to(dtype)[: len(flat)]
    return tensor


def plain_canonical(tensor: Tensor) -> Tensor:
    out = tensor.detach().clone() + 0.0
    if out.dtype is torch.bfloat16:
        out[out.abs() < torch.finfo(torch.bfloat16).tiny] = 0.0
    return out


def splitmix(index: int, salt: int) -> int:
    x = ((index + 1) * 0x9E3779B97F4A7C15 + salt) % WORD
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) % WORD
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) % WORD
    return (x ^ (x >> 31)) | 1


def plain_additive(tensor: Tensor) -> str:
    bits = plain_canonical(tensor).view(torch.int16 if tensor.element_size() == 2 else torch.int32)
    rows = bits.reshape(len(bits), -1).tolist()
    total = sum(splitmix(r, 2) * splitmix(c, 1) * x for r, row in enumerate(rows) for c, x in enumerate(row))
    return f"add64:{total % WORD:016x}"


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", [(1,), (7,), (5, 3), (2, 3, 4)])
def test_the_additive_digest_is_its_definition(shape: tuple[int, ...], dtype: torch.dtype, monkeypatch) -> None:
    monkeypatch.setattr(fingerprint, "_CPU_PIECE", 6)  # rows in several pieces
    tensor = drawn(*shape, dtype=dtype)
    assert tensor_digest(tensor, ADDITIVE) == plain_additive(tensor)


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_cpu_digest_is_of_the_canonical_bytes_whatever_the_pieces(dtype: torch.dtype, monkeypatch) -> None:
    tensor = drawn(9, 11, dtype=dtype)
    raw = plain_canonical(tensor).view(-1).view(torch.uint8).numpy().tobytes()
    name = str(dtype).removeprefix("torch.")
    plain = xxhash.xxh3_128(f"{name} (9, 11) ".encode() + raw).hexdigest()
    for piece in (1, 10, 99, 1000):
        monkeypatch.setattr(fingerprint, "_CPU_PIECE", piece)
        assert tensor_digest(tensor) == plain


@pytest.mark.parametrize("dtype", DTYPES)
def test_parts_by_rows_and_by_columns_add_up_and_one_bit_shows(dtype: torch.dtype) -> None:
    whole = drawn(6, 8, dtype=dtype)
    by_rows = [part_digest(whole[r : r + 2], first_row=r) for r in (4, 0, 2)]
    by_columns = [part_digest(whole[:, c : c + 4], first_column=c) for c in (0, 4)]
    assert sum_of_parts(by_rows) == sum_of_parts(by_columns) == tensor_digest(whole, ADDITIVE)
    some = torch.tensor([1, 5, 6])
    rest = torch.tensor([0, 2, 3, 4, 7])
    picked = [part_digest(whole[:, chosen], columns=chosen) for chosen in (some, rest)]
    assert sum_of_parts(picked) == tensor_digest(whole, ADDITIVE)
    bias = drawn(6, dtype=dtype)
    assert sum_of_parts([part_digest(bias[:2]), part_digest(bias[2:], first_row=2)]) == tensor_digest(bias, ADDITIVE)
    word = torch.int16 if dtype.itemsize == 2 else torch.int32
    for bit in (0, 5, dtype.itemsize * 8 - 1):
        changed = whole.clone()
        changed.view(word)[3, 2] ^= (1 << bit) if bit < dtype.itemsize * 8 - 1 else torch.iinfo(word).min
        assert tensor_digest(changed, ADDITIVE) != tensor_digest(whole, ADDITIVE)
    swapped = whole.clone()
    swapped[[0, 1]] = whole[[1, 0]]
    assert tensor_digest(swapped, ADDITIVE) != tensor_digest(whole, ADDITIVE)


def spec(name: str, tensor: Tensor) -> TensorSpec:
    dtype = str(tensor.dtype).removeprefix("torch.")
    return TensorSpec(name, tuple(tensor.shape), dtype, tensor_digest(tensor, ADDITIVE))


def rank_report(sent: dict[str, Tensor], served: Tensor, part: ServedPart, dtype: torch.dtype) -> list:
    module = ServedModule((part,), tuple(served.shape), dtype, False, lambda _: served)
    transaction = WeightTransaction([spec(n, t) for n, t in sent.items()], [module], columns=0, seed=0)
    list(transaction.observe(sent.items()))
    report = transaction.verify()
    return [[[d.name, d.digest, d.where, d.wanted] for d in report.digests], report.mismatched, report.missing]


def test_ranks_of_an_engine_verify_a_tensor_together_without_its_whole_digest(monkeypatch) -> None:
    weight = drawn(8, 6)
    parts = [ServedPart("k", "k", slice(r, r + 4), ALL, slice(0, 4)) for r in (0, 4, 4)]  # the last one is replicated

    def report(third: Tensor) -> list:
        served = [weight[:4], weight[4:], third]
        return [rank_report({"k": weight}, s, p, torch.float32) for s, p in zip(served, parts, strict=True)]

    whole = spec("k", weight)
    # What arrives whole is not digested: a rank's work is what it serves.
    monkeypatch.setattr("raylign.rollout.weight_transaction.tensor_digest", None)
    ok = combine_ranks(1, report(weight[4:]), 0.0)
    assert (ok.mismatched, ok.missing, ok.digests["k"]) == ((), (), whole.digest)
    wrong = weight[4:].clone()
    wrong[1, 1] += 1e-6
    assert combine_ranks(1, report(wrong), 0.0).mismatched == ("k",)
    assert combine_ranks(1, report(weight[:4]), 0.0).mismatched == ("k",)


def test_columns_of_a_row_parallel_layer_and_another_precision() -> None:
    weight = drawn(4, 6)
    parts = [ServedPart("o", "o", ALL, slice(c, c + 3), slice(0, 4)) for c in (0, 3)]
    served = [rank_report({"o": weight}, weight[:, p.columns], p, torch.float32) for p in parts]
    assert combine_ranks(1, served, 0.0).mismatched == ()
    rounded = weight.bfloat16()
    served = [rank_report({"o": weight}, rounded[:, p.columns], p, torch.bfloat16) for p in parts]
    assert combine_ranks(1, served, 0.0).mismatched == ()
    served = [rank_report({"o": weight}, rounded[:, p.columns] * 1.01, p, torch.bfloat16) for p in parts]
    assert combine_ranks(1, served, 0.0).mismatched == ("o",)
