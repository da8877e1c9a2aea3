"""A user's own environments in a process of their own, from the side that plays the episodes.

A call that is late fails its episode. When the process itself does not answer any more, or has died, it is ended and
another is started; its other episodes are lost and may be played again.
"""

from __future__ import annotations

import asyncio
import itertools
import logging
import os
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from raylign.reward.function_messages import FunctionCode
from raylign.reward.own_process import OwnProcess
from raylign.rollout.environments.interfaces import (
    Environment,
    EnvironmentFailure,
    EnvironmentLost,
    EnvironmentRefused,
    Outcome,
    ToolCall,
)
from raylign.rollout.environments.messages import Answer, Ask, Hello, Ready, Verb

HOST = "raylign.rollout.environments.host"
PING_S = 2.0
"""How long a process that was late once may take to say that it lives."""

MOST_HUNG = 16
"""Calls that hang in threads of one process before it is given up."""

WATCH_S = 1.0
"""Between two looks at a process's memory."""

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ProcessLimits:
    """When a process is ended, and when it is not started again."""

    max_restarts: int
    memory_gb: float = 0.0  # resident; 0: no limit


class OwnEnvironments:
    """An Environments over a class of the user's; its process starts with the first call that needs it."""

    def __init__(
        self,
        code: FunctionCode,
        arguments: Mapping[str, str],
        *,
        timeout_s: float,
        start_timeout_s: float,
        limits: ProcessLimits,
    ) -> None:
        """`timeout_s`: of one call."""
        self._code, self._arguments = code, dict(arguments)
        self._timeout_s, self._start_timeout_s = timeout_s, start_timeout_s
        self._tools: tuple[Mapping[str, Any], ...] = ()
        self._started: OwnProcess | None = None  # and nobody has asked it anything
        self._life: _Life | None = None
        self._starting = asyncio.Lock()
        self._numbers = itertools.count()
        self._limits = limits
        self._restarts = 0  # since they were asked for
        self._in_a_row = 0  # since an episode was played to its end

    @property
    def tools(self) -> tuple[Mapping[str, Any], ...]:
        """Known once `load` has returned."""
        return self._tools

    def load(self) -> None:
        """Start the process and look at the class. Raises EnvironmentRefused when it cannot be used."""
        own = OwnProcess.start(HOST, self._code.function, logger)
        ready = self._handshake(own)
        if ready.problem:
            own.end()
            raise EnvironmentRefused(ready.problem)
        self._tools, self._started = ready.tools, own

    def open(self) -> Environment:
        """An episode's; it is made with its first call."""
        return _Remote(self, next(self._numbers))

    def taken_restarts(self) -> int:
        """Since it was asked last."""
        taken, self._restarts = self._restarts, 0
        return taken

    def played(self) -> None:
        """An episode came to its end: the process is worth starting again."""
        self._in_a_row = 0

    async def stop(self) -> None:
        """End the process."""
        self.end()

    def end(self) -> None:
        """End the process, whatever it does."""
        life, self._life = self._life, None
        if life is not None:
            life.lose("the environments are stopped")
        own, self._started = self._started, None
        if own is not None:
            own.end()

    async def life(self) -> _Life:
        """The process, started when there is none. Raises EnvironmentFailure when it does not start, or was started
        too often."""
        async with self._starting:
            if self._life is not None and self._life.over:
                self._count_restart(self._life.reason)
            if self._life is None or self._life.over:
                if self._started is None or not self._started.running:
                    try:
                        await asyncio.to_thread(self.load)
                    except EnvironmentRefused as error:
                        raise EnvironmentFailure(str(error)) from error
                assert self._started is not None
                self._life, self._started = _Life(self._started, self._timeout_s, self._limits.memory_gb), None
            return self._life

    def _count_restart(self, reason: str) -> None:
        if self._in_a_row >= self._limits.max_restarts:
            raise EnvironmentFailure(
                f"its process was started again {self._in_a_row} times with no episode played to its end between "
                f"(environment.max_restarts={self._limits.max_restarts}); at last {reason}"
            )
        self._in_a_row, self._restarts = self._in_a_row + 1, self._restarts + 1

    def _handshake(self, own: OwnProcess) -> Ready:
        try:
            own.pipe.send(Hello(self._code, self._arguments))
            if own.pipe.poll(self._start_timeout_s):
                answer: Ready = own.pipe.recv()
                return answer
        except (EOFError, OSError):
            return Ready(f"{self._code.module} ended the process that imported it, with code {own.exit_code()}")
        return Ready(
            f"it was not imported within {self._start_timeout_s:g} s; do less at import, or raise "
            "environment.start_timeout_s"
        )


class _Life:
    """One process from its start to its end, and who waits for its answers."""

    def __init__(self, own: OwnProcess, timeout_s: float, memory_gb: float) -> None:
        """`memory_gb`: 0 for no limit."""
        self._own, self._timeout_s = own, timeout_s
        self._loop = asyncio.get_running_loop()
        self._numbers = itertools.count()
        self._waiting: dict[int, asyncio.Future[Answer]] = {}
        self._sender = ThreadPoolExecutor(1, "environments")  # a pipe that nobody empties blocks who writes to it
        self._late: set[int] = set()  # calls given up and not answered since
        self.over, self.reason = False, ""
        self._watching = self._loop.create_task(self._watch_memory(memory_gb)) if memory_gb else None
        threading.Thread(target=self._read, name="environment-answers", daemon=True).start()

    async def ask(self, episode: int, verb: Verb, **given: Any) -> Outcome | float | str | None:
        """Raises EnvironmentFailure for a call that fails or is late, EnvironmentLost when the process is gone."""
        number = next(self._numbers)
        try:
            answer = await self._within(self._timeout_s, Ask(number, episode, verb, **given))
        except TimeoutError as error:
            self._late.add(number)
            await self._look()
            raise EnvironmentFailure(f"{_named(verb, given)} did not answer within {self._timeout_s:g} s") from error
        if answer.failure:
            raise EnvironmentFailure(answer.failure)
        return answer.value

    def lose(self, reason: str) -> None:
        """End the process. The only call under way is at fault; of several nobody knows which."""
        if self.over:
            return
        self.over, self.reason = True, reason
        self._own.end()
        self._sender.shutdown(wait=False, cancel_futures=True)
        if self._watching is not None:
            self._watching.cancel()
        waiting = [future for future in self._waiting.values() if not future.done()]
        for future in waiting:
            kind = EnvironmentFailure if len(waiting) == 1 else EnvironmentLost
            future.set_exception(kind(reason))

    async def _within(self, timeout_s: float, ask: Ask) -> Answer:
        if self.over:
            raise EnvironmentLost(self.reason)
        future: asyncio.Future[Answer] = self._loop.create_future()
        self._waiting[ask.number] = future
        try:
            self._sender.submit(self._send, ask)
            async with asyncio.timeout(timeout_s):
                return await future
        finally:
            del self._waiting[ask.number]

    async def _look(self) -> None:
        """After a late call: does the process answer anything, and how many calls hang in it?"""
        try:
            await self._within(PING_S, Ask(next(self._numbers), 0, Verb.PING))
        except TimeoutError:
            logger.warning("the environments' process does not answer; another is started")
            self.lose("its process did not answer any more")
        except EnvironmentFailure:
            return
        if len(self._late) >= MOST_HUNG:
            logger.warning("%d calls hang in the environments' process; another is started", len(self._late))
            self.lose("its process was ended, for too many calls hung in it")

    async def _watch_memory(self, most_gb: float) -> None:
        while True:
            if (used := resident_bytes(self._own.process.pid) / 1e9) > most_gb:
                logger.warning("the environments' process has %.1f GB; another is started", used)
                self.lose(f"its process had {used:.1f} GB (environment.memory_gb={most_gb:g})")
            await asyncio.sleep(WATCH_S)

    def _send(self, ask: Ask) -> None:
        try:
            self._own.pipe.send(ask)
        except (OSError, ValueError):
            self._tell_lost()

    def _read(self) -> None:
        try:
            while True:
                answer: Answer = self._own.pipe.recv()
                self._loop.call_soon_threadsafe(self._arrived, answer)
        except (EOFError, OSError, RuntimeError):  # RuntimeError: the loop has ended
            self._tell_lost()

    def _tell_lost(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self.lose, "its process ended")
        except RuntimeError:
            return  # nobody is left to tell

    def _arrived(self, answer: Answer) -> None:
        self._late.discard(answer.number)
        future = self._waiting.get(answer.number)
        if future is not None and not future.done():
            future.set_result(answer)


class _Remote:
    """An Environment that lives in the process."""

    def __init__(self, environments: OwnEnvironments, episode: int) -> None:
        self._environments, self._episode = environments, episode
        self._life: _Life | None = None

    async def reset(self, row: Mapping[str, Any], seed: int) -> str:
        self._life = await self._environments.life()
        return str(await self._ask(Verb.RESET, row=dict(row), seed=seed) or "")

    async def step(self, action: ToolCall | str) -> Outcome:
        outcome = await self._ask(Verb.STEP, action=action)
        assert isinstance(outcome, Outcome)
        return outcome

    async def final_reward(self, answer: str) -> float | None:
        reward = await self._ask(Verb.FINAL_REWARD, action=answer)
        self._environments.played()
        assert reward is None or isinstance(reward, float)
        return reward

    async def close(self) -> None:
        if self._life is not None and not self._life.over:
            try:
                await self._ask(Verb.CLOSE)
            except EnvironmentFailure:
                return  # the episode is over all the same

    async def _ask(self, verb: Verb, **given: Any) -> Outcome | float | str | None:
        assert self._life is not None, "reset comes first"
        return await self._life.ask(self._episode, verb, **given)


def _named(verb: Verb, given: Mapping[str, Any]) -> str:
    action = given.get("action")
    return f"the tool {action.name}" if isinstance(action, ToolCall) else verb.value


def resident_bytes(pid: int) -> int:
    """Of a process that is there; 0 for one that is not."""
    try:
        return int(Path(f"/proc/{pid}/statm").read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")
    except (OSError, IndexError):
        return 0
