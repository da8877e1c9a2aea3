"""What `doctor` says of a driver and a torch that do not go together, from what each of them reports."""

from __future__ import annotations

import pytest
from raylign.app.commands.doctor_gpu import TorchBuild, judged

CARDS = ["NVIDIA H100 80GB HBM3, 81559 MiB, {driver}"] * 2
H100 = ("NVIDIA H100 80GB HBM3", 9.0)


@pytest.mark.parametrize(
    ("driver", "torch", "mark", "words"),
    [
        ("580.65", TorchBuild("2.13.0", "13.0", True, "2.29.7", [H100] * 2), "ok", "CUDA 13.0, NCCL 2.29.7"),
        ("535.104", TorchBuild("2.13.0", "13.0", False, None, []), "bad", "needs 580 or newer"),
        ("580.65", TorchBuild("2.13.0+cpu", None, False, None, []), "bad", "built without CUDA though there are 2"),
        ("580.65", TorchBuild("2.13.0", "13.0", False, None, []), "bad", "sees no card though the driver lists 2"),
        ("580.65", "torch did not answer within 60 s; the driver hangs", "bad", "hangs"),
    ],
)
def test_driver_and_torch_together(driver: str, torch: TorchBuild | str, mark: str, words: str) -> None:
    found = list(judged([card.format(driver=driver) for card in CARDS], torch))
    assert [f.mark for f in found] == [mark]
    assert words in found[0].text


def test_a_card_without_bfloat16_is_named() -> None:
    build = TorchBuild("2.13.0", "13.0", True, "2.29.7", [("Tesla V100-SXM2-32GB", 7.0)])
    assert [f.text for f in judged(["V100, 32510 MiB, 580.65"], build) if f.fatal] == [
        "Tesla V100-SXM2-32GB has compute capability 7.0; needed is 8.0"
    ]
