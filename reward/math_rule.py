"""Symbolic comparison of mathematical answers by math-verify, under a deadline that holds.

math-verify's own deadline is a signal and works only on a main thread; SymPy can also spend minutes inside C. So the
comparison runs in a child process that is killed when it is late.
"""

from __future__ import annotations

import logging
import multiprocessing
import threading
from multiprocessing.connection import Connection
from multiprocessing.context import SpawnProcess

from raylign.data.types import Completion, Prompt
from raylign.reward.interfaces import RewardRuleError

DEFAULT_TIMEOUT_S = 5.0
_START_TIMEOUT_S = 60.0  # importing SymPy in a fresh process


class MathRule:
    """1 when answer and ground truth are equal as mathematics, else 0.

    The child starts with the first sample and lives until it is late or this process ends (it is a daemon).
    """

    def __init__(self, argument: str = "") -> None:
        """`argument`: seconds one comparison may take; empty for the default. Raises ValueError if it is no number."""
        self._timeout_s = float(argument) if argument else DEFAULT_TIMEOUT_S
        if not self._timeout_s > 0:
            raise ValueError(f"{argument} is not a number of seconds above 0")
        self._lock = threading.Lock()
        self._child: SpawnProcess | None = None
        self._pipe: Connection | None = None

    def __call__(self, prompt: Prompt, completion: Completion) -> float:
        """Raises RewardRuleError without a ground truth, when it cannot be parsed, or past the deadline."""
        if prompt.ground_truth is None:
            raise RewardRuleError(f"prompt {prompt.prompt_id} has no ground truth to compare with")
        with self._lock:
            verdict = self._ask(prompt.ground_truth, completion.text)
        if verdict is None:
            raise RewardRuleError(f"prompt {prompt.prompt_id}: ground truth {prompt.ground_truth!r} is not mathematics")
        return float(verdict)

    def _ask(self, truth: str, answer: str) -> bool | None:
        pipe = self._ready_pipe()
        try:
            pipe.send((truth, answer))
            if pipe.poll(self._timeout_s):
                return pipe.recv()
        except (EOFError, BrokenPipeError, ConnectionResetError) as error:
            self._kill()
            raise RewardRuleError(f"the comparison's process ended: {error}") from error
        self._kill()
        raise RewardRuleError(f"the comparison did not finish within {self._timeout_s:g} s")

    def _ready_pipe(self) -> Connection:
        if self._pipe is not None and self._child is not None and self._child.is_alive():
            return self._pipe
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self._child = context.Process(target=serve, args=(theirs,), daemon=True)
        self._child.start()
        theirs.close()
        if not ours.poll(_START_TIMEOUT_S) or ours.recv() != "ready":
            self._kill()
            raise RewardRuleError(f"the comparison's process did not start within {_START_TIMEOUT_S:g} s")
        self._pipe = ours
        return ours

    def _kill(self) -> None:
        if self._child is not None:
            self._child.kill()
            self._child.join(timeout=5.0)
        if self._pipe is not None:
            self._pipe.close()
        self._child = self._pipe = None


def serve(pipe: Connection) -> None:
    """The child: answer (truth, answer) with True, False, or None when the truth cannot be parsed."""
    from math_verify import parse, verify

    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns on each call that its own deadline is off
    pipe.send("ready")
    while True:
        try:
            truth, answer = pipe.recv()
        except EOFError:  # the parent is gone
            return
        gold = parse(truth, parsing_timeout=None)
        if not gold:
            pipe.send(None)
            continue
        pipe.send(bool(verify(gold, parse(answer, parsing_timeout=None), timeout_seconds=None)))
