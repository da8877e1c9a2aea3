"""Cards read by a reader that is none: what is summed up, what is left out, and what a broken one costs."""

from __future__ import annotations

import logging
import sys
import threading
from collections.abc import Sequence
from types import SimpleNamespace

import pytest
from raylign.cluster.cards import CardMeter, CardReading, NvmlReader


class Scripted:
    """Reads what it was given, and then ends the meter's thread, which would not wait between two readings."""

    def __init__(self, *moments: Sequence[CardReading]) -> None:
        self._moments = list(moments)
        self.all_read = threading.Event()

    def read(self) -> Sequence[CardReading]:
        if not self._moments:
            self.all_read.set()
            raise EOFError
        return self._moments.pop(0)


def test_means_and_peaks_of_each_card_since_the_last_question() -> None:
    reader = Scripted(
        [CardReading(0.2, 10.0, 50.0, 100.0), CardReading(None, 1.0)],
        [CardReading(0.6, 30.0, 70.0, 300.0), CardReading(None, 2.0)],
        [CardReading(0.1, 20.0, 60.0, 200.0), CardReading(None, 1.5)],
    )
    meter = CardMeter(lambda: reader, every_s=0.0)
    assert reader.all_read.wait(10)
    first, second = meter.taken()
    assert first == CardReading(pytest.approx(0.3), 30.0, 70.0, pytest.approx(200.0))
    assert second == CardReading(None, 2.0, None, None), "what a card does not say is left out"
    assert meter.taken() == []


def test_a_reader_that_breaks_is_said_once_and_costs_nothing_else(caplog: pytest.LogCaptureFixture) -> None:
    def without_driver() -> Scripted:
        raise OSError("no driver")

    with caplog.at_level(logging.WARNING, "raylign.cluster.cards"):
        meter = CardMeter(without_driver, every_s=0.0)
        meter._thread.join(10)
    assert meter.taken() == []
    assert [record.getMessage() for record in caplog.records] == [
        "the cards of this node are not read: OSError: no driver"
    ]


def test_nvml_is_asked_in_its_own_words_and_may_not_know(monkeypatch: pytest.MonkeyPatch) -> None:
    """The names are those of nvidia-ml-py 13.615."""

    class NVMLError(Exception):
        pass

    def unsupported(_: object) -> object:
        raise NVMLError("Not Supported")

    nvml = SimpleNamespace(
        NVMLError=NVMLError,
        NVML_TEMPERATURE_GPU=0,
        nvmlInit=lambda: None,
        nvmlDeviceGetCount=lambda: 2,
        nvmlDeviceGetHandleByIndex=lambda index: index,
        nvmlDeviceGetUtilizationRates=lambda card: SimpleNamespace(gpu=75) if card == 0 else unsupported(card),
        nvmlDeviceGetMemoryInfo=lambda card: SimpleNamespace(used=2_000_000_000, total=80_000_000_000),
        nvmlDeviceGetTemperature=lambda card, sensor: 61,
        nvmlDeviceGetPowerUsage=lambda card: 350_000 if card == 0 else unsupported(card),
    )
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    assert NvmlReader().read() == [CardReading(0.75, 2.0, 61.0, 350.0), CardReading(None, 2.0, 61.0, None)]
