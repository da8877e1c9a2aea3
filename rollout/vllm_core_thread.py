"""vLLM's engine core on a thread of the process that asks it, in place of a process of its own.

On CPU a second process costs more than it gives: it imports all of vLLM again (nine seconds of processor time an
engine), holds those libraries a second time, and takes every token through two more wake-ups on the same cores. What is
between the two sides stays vLLM's own: requests, outputs and calls go over the same sockets into the same loop, so
pauses, aborts and utility calls are what they are with a process. As vLLM's own Ray actors do, the core is given its
addresses instead of shaking hands.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import torch
from torch import Tensor
from vllm.config import VllmConfig
from vllm.utils.network_utils import get_open_zmq_ipc_path
from vllm.v1.engine import EngineCoreRequestType
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.core import EngineCoreProc, EngineShutdownState
from vllm.v1.engine.utils import EngineZmqAddresses
from vllm.v1.executor import Executor
from vllm.v1.metrics.loggers import StatLoggerFactory
from vllm.v1.sample import sampler

logger = logging.getLogger(__name__)


class _LocalCore(EngineCoreProc):
    """A core that knows where its client is."""

    def __init__(self, config: VllmConfig, addresses: EngineZmqAddresses) -> None:
        self.addresses = addresses
        super().__init__(config, True, "", Executor.get_class(config), log_stats=True)

    @contextmanager
    def _perform_handshakes(self, *_: Any, **__: Any) -> Iterator[EngineZmqAddresses]:
        yield self.addresses


class CoreThread:
    """One core: start it, connect to it, end it."""

    def __init__(self, config: VllmConfig) -> None:
        self._config = config
        self._addresses = EngineZmqAddresses(inputs=[get_open_zmq_ipc_path()], outputs=[get_open_zmq_ipc_path()])
        self._core: _LocalCore | None = None
        self._thread: threading.Thread | None = None

    async def start(self, stat_loggers: list[StatLoggerFactory]) -> AsyncLLM:
        """Load the model; the engine in front of it, which tells `stat_loggers` its steps. Raises what vLLM raised."""
        # Else the first token waits for torch's compiler to build a kernel for the rank of each drawn token among all
        # others, which nobody here reads.
        sampler.batched_count_greater_than = _no_ranks
        loop = asyncio.get_running_loop()
        loaded: asyncio.Future[None] = loop.create_future()
        self._thread = threading.Thread(target=self._run, args=(loop, loaded), name="EngineCore", daemon=True)
        self._thread.start()
        await loaded  # the message that the core is ready waits in its socket for the client
        return AsyncLLM.from_vllm_config(
            self._config,
            stat_loggers=stat_loggers,
            disable_log_stats=True,  # of vLLM's own loggers
            client_addresses={
                "input_address": self._addresses.inputs[0],
                "output_address": self._addresses.outputs[0],
            },
        )

    def stop(self, timeout_s: float) -> None:
        """End the loop and free the model. A loop that does not turn is left to the end of the process."""
        if self._core is not None:
            self._core.shutdown_state = EngineShutdownState.REQUESTED
            self._core.input_queue.put_nowait((EngineCoreRequestType.WAKEUP, None))
        if self._thread is not None:
            self._thread.join(timeout_s)

    def _run(self, loop: asyncio.AbstractEventLoop, loaded: asyncio.Future[None]) -> None:
        try:
            # A copy: both sides write what they find into their configuration, and would add it up.
            self._core = _LocalCore(copy.deepcopy(self._config), self._addresses)
        except BaseException as error:
            _tell(loop, loaded, error)
            return
        _tell(loop, loaded, None)
        try:
            self._core.run_busy_loop()
        except SystemExit:
            pass  # how the loop says that it was asked to end
        except Exception:
            logger.exception("the engine core has died")
            self._core._send_engine_dead()
        finally:
            self._core.shutdown()


def _no_ranks(logprobs: Tensor, drawn: Tensor) -> Tensor:
    """Zeros `[B]`. `logprobs`: `[B, V]`; `drawn`: those of the drawn tokens, `[B, 1]`."""
    return torch.zeros(len(drawn), dtype=torch.int64)


def _tell(loop: asyncio.AbstractEventLoop, loaded: asyncio.Future[None], error: BaseException | None) -> None:
    def settle() -> None:
        if loaded.done():
            return
        if error is None:
            loaded.set_result(None)
        else:
            loaded.set_exception(error if isinstance(error, Exception) else RuntimeError(repr(error)))

    with suppress(RuntimeError):  # nobody waits any more: the loop is closed
        loop.call_soon_threadsafe(settle)
