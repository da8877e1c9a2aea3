"""SIGTERM and Ctrl-C as an exception, for work that is waited for outside of a run's own steps."""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator

from raylign.conf.errors import Stopped


@contextlib.contextmanager
def stoppable() -> Iterator[None]:
    """SIGTERM and Ctrl-C raise Stopped. A run handles them itself while it trains."""

    def stop(number: int, _: object) -> None:
        raise Stopped(f"stopped by {signal.Signals(number).name}")

    before = {number: signal.signal(number, stop) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
