"""A transfer by broadcast among the threads of one process; processes that stop or die are in tests/system."""

from __future__ import annotations

import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from raylign.rollout.broadcast import RENDEZVOUS, TRANSFER, TransferGroup, open_link
from raylign.rollout.deadline import DisposableThread, Phase
from raylign.rollout.fingerprint import dtype_name
from raylign.rollout.flat_bucket import buckets
from raylign.rollout.interfaces import TensorSpec, WeightUpdateError
from torch import Tensor

CPU = torch.device("cpu")
SHAPES = ((64, 48), (7,), (), (128, 3), (1, 1), (513,))
FORMATS = (torch.float32, torch.bfloat16, torch.float16)


def _weights() -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(3)
    return {
        f"w{i}-{dtype_name(dtype)}": torch.randn(shape, generator=draw).to(dtype)
        for i, shape in enumerate(SHAPES)
        for dtype in FORMATS
    }


def _specs(weights: dict[str, Tensor]) -> list[TensorSpec]:
    return [TensorSpec(name, tuple(t.shape), dtype_name(t.dtype), "") for name, t in weights.items()]


@pytest.fixture(autouse=True)
def on_loopback(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")


@settings(deadline=None)  # a busy machine is no failure
@given(
    sizes=st.lists(st.tuples(st.integers(0, 90), st.sampled_from(["float32", "bfloat16"])), max_size=12),
    most=st.integers(1, 500),
)
def test_buckets_hold_every_tensor_once_in_order_and_no_two_share_a_byte(
    sizes: list[tuple[int, str]], most: int
) -> None:
    specs = [TensorSpec(f"w{i}", (n,), dtype, "") for i, (n, dtype) in enumerate(sizes)]
    made = list(buckets(specs, most))
    assert [spec for bucket in made for spec in bucket.tensors] == specs
    for bucket in made:
        assert bucket.num_bytes <= most or len(bucket.tensors) == 1
        buffer = torch.zeros(bucket.num_bytes, dtype=torch.uint8)
        for _, tensor in bucket.unpacked(buffer):
            assert not tensor.any()  # nobody has written here yet
            tensor.fill_(1)
        assert bucket.num_bytes < sum(tensor.nbytes + 16 for _, tensor in bucket.unpacked(buffer))


def _transfer(
    num_workers: int, timeout_s: float, bucket_bytes: int = 4096
) -> tuple[TransferGroup, list[TransferGroup]]:
    link, store = open_link(
        "127.0.0.1", workers=num_workers, ranks_per_worker=1, timeout_s=timeout_s, bucket_bytes=bucket_bytes
    )
    sender = TransferGroup(link, 0, CPU, store)
    return sender, [TransferGroup(link, link.of(i).first_rank, CPU) for i in range(num_workers)]


def _received(group: TransferGroup, specs: Sequence[TensorSpec]) -> dict[str, Tensor]:
    group.meet()
    return {name: tensor for bucket in group.receive(specs) for name, tensor in bucket}


@pytest.mark.parametrize("num_workers", [1, 3])
def test_what_arrives_is_what_was_sent_bit_for_bit(num_workers: int) -> None:
    weights = _weights()
    weights["w0-float32"][0, :3] = torch.tensor([float("nan"), -0.0, 1e-45])
    sender, workers = _transfer(num_workers, 60)
    with ThreadPoolExecutor() as pool:
        coming = [pool.submit(_received, worker, _specs(weights)) for worker in workers]
        sender.meet()
        sender.send(_specs(weights), iter(weights.items()))
        for future in coming:
            got = future.result(60)
            assert list(got) == list(weights)
            for name, tensor in weights.items():
                assert got[name].dtype == tensor.dtype and got[name].shape == tensor.shape
                assert torch.equal(got[name].reshape(-1).view(torch.uint8), tensor.reshape(-1).view(torch.uint8))


def test_a_member_that_never_comes_ends_the_rendezvous_of_the_others() -> None:
    sender, workers = _transfer(2, 0.5)
    with ThreadPoolExecutor() as pool:
        coming = pool.submit(workers[0].meet)
        with pytest.raises(WeightUpdateError, match=RENDEZVOUS):
            sender.meet()
        with pytest.raises(WeightUpdateError, match=RENDEZVOUS):
            coming.result(60)


def test_a_sender_that_has_other_weights_than_announced_ends_the_transfer() -> None:
    weights = _weights()
    sender, workers = _transfer(1, 2)
    with ThreadPoolExecutor() as pool:
        coming = pool.submit(_received, workers[0], _specs(weights))
        sender.meet()
        shuffled = dict(reversed(weights.items()))
        with pytest.raises(WeightUpdateError, match="is to be sent where w0-float32 was announced"):
            sender.send(_specs(weights), iter(shuffled.items()))
        with pytest.raises(WeightUpdateError, match=TRANSFER):
            coming.result(60)


def test_a_receiver_that_refuses_a_tensor_ends_the_transfer_of_all() -> None:
    weights = {f"w{i}": torch.randn(64, 64) for i in range(40)}
    sender, workers = _transfer(1, 2, bucket_bytes=1 << 14)

    def refuses() -> None:
        workers[0].meet()
        with closing(workers[0].receive(_specs(weights))) as coming:
            next(coming)
            raise WeightUpdateError("of another shape")

    with ThreadPoolExecutor() as pool:
        coming = pool.submit(refuses)
        sender.meet()
        with pytest.raises(WeightUpdateError, match=TRANSFER):
            sender.send(_specs(weights), iter(weights.items()))
        with pytest.raises(WeightUpdateError, match="of another shape"):
            coming.result(60)


def test_a_call_that_never_returns_is_left_behind_and_nothing_after_it_begins() -> None:
    thread, never = DisposableThread("stuck"), threading.Event()
    began: list[int] = []
    stuck, after = thread.submit(never.wait), thread.submit(lambda: began.append(1))
    with pytest.raises(WeightUpdateError, match=r"the transfer did not finish within 0\.05 s"):
        Phase(TRANSFER, 0.05).result(stuck)
    thread.abandon()
    never.set()
    assert stuck.result(60) is True
    while not after.cancelled():
        time.sleep(0.01)
    assert not began


def test_what_a_call_raises_is_told_with_its_phase() -> None:
    def refuse() -> None:
        raise RuntimeError("Connection reset by peer\nand a stack")

    with pytest.raises(WeightUpdateError) as raised:
        Phase(RENDEZVOUS, 5).result(DisposableThread("refused").submit(refuse))
    assert str(raised.value) == "the rendezvous broke off: RuntimeError: Connection reset by peer"
