"""What the cards of one node do, read now and then on a thread of an actor that is there for other work."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

_log = logging.getLogger(__name__)

READ_EVERY_S = 2.0
"""A card's own figure of its use is over the second before; a reading takes milliseconds of the host."""


@dataclass(frozen=True, slots=True)
class CardReading:
    """One card at one moment; None: the card does not say."""

    utilization: float | None = None  # share of the second before in which a kernel ran
    memory_gb: float | None = None  # of all processes together
    temperature_c: float | None = None
    power_w: float | None = None


class CardReader(Protocol):
    """Reads all cards of this node."""

    def read(self) -> Sequence[CardReading]: ...


class NvmlReader:
    """By NVIDIA's management library: all cards that the container has, whatever CUDA_VISIBLE_DEVICES says.

    Raises ImportError without nvidia-ml-py, and pynvml.NVMLError without a driver.
    """

    def __init__(self) -> None:
        import pynvml  # of requirements/gpu.lock alone

        self._nvml: Any = pynvml
        pynvml.nvmlInit()
        self._cards = [pynvml.nvmlDeviceGetHandleByIndex(index) for index in range(pynvml.nvmlDeviceGetCount())]

    def read(self) -> Sequence[CardReading]:
        """By index, as nvidia-smi counts."""
        return [self._of(card) for card in self._cards]

    def _of(self, card: object) -> CardReading:
        nvml = self._nvml
        return CardReading(
            self._said(lambda: nvml.nvmlDeviceGetUtilizationRates(card).gpu / 100),
            self._said(lambda: nvml.nvmlDeviceGetMemoryInfo(card).used / 1e9),
            self._said(lambda: float(nvml.nvmlDeviceGetTemperature(card, nvml.NVML_TEMPERATURE_GPU))),
            self._said(lambda: nvml.nvmlDeviceGetPowerUsage(card) / 1e3),
        )

    def _said(self, question: Callable[[], float]) -> float | None:
        try:
            return question()
        except self._nvml.NVMLError:  # a card in parts (MIG) has no utilization, a passive one no sensor
            return None


class CardMeter:
    """Sums up what a reader says, on a thread of its own: a driver that hangs holds nobody up."""

    def __init__(self, reader: Callable[[], CardReader], every_s: float = READ_EVERY_S) -> None:
        self._reader, self._every_s = reader, every_s
        self._lock = threading.Lock()
        self._noted: list[list[CardReading]] = []  # by card
        self._thread = threading.Thread(target=self._run, name="cards", daemon=True)
        self._thread.start()

    def taken(self) -> list[CardReading]:
        """Since it was asked last, by card: mean utilization and power, greatest memory and temperature."""
        with self._lock:
            noted, self._noted = self._noted, []
        return [
            CardReading(
                _mean([one.utilization for one in card]),
                _most([one.memory_gb for one in card]),
                _most([one.temperature_c for one in card]),
                _mean([one.power_w for one in card]),
            )
            for card in noted
        ]

    def note(self, readings: Sequence[CardReading]) -> None:
        """One moment."""
        with self._lock:
            self._noted += [[] for _ in range(len(readings) - len(self._noted))]
            for card, reading in zip(self._noted, readings, strict=False):
                card.append(reading)

    def _run(self) -> None:
        pause = threading.Event()
        try:
            reader = self._reader()
            while True:
                self.note(reader.read())
                pause.wait(self._every_s)
        # Figures are expendable, and a driver's errors are of its own class: said once, and no step is lost.
        except Exception as error:
            _log.warning("the cards of this node are not read: %s: %s", type(error).__name__, error)


def _mean(values: Sequence[float | None]) -> float | None:
    said = [value for value in values if value is not None]
    return sum(said) / len(said) if said else None


def _most(values: Sequence[float | None]) -> float | None:
    return max((value for value in values if value is not None), default=None)
