"""Runs an answer's code in boxes and says what came of it. Never raises for what the code does."""

from __future__ import annotations

import io
import json
import os
import selectors
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from enum import Enum
from typing import Any

from raylign.reward.sandbox.box import Box, BoxFailed
from raylign.reward.sandbox.inside.program import OUT_OF_MEMORY
from raylign.reward.sandbox.inside.tests import ENDED, NOTHING_CHECKED, PASSED
from raylign.reward.sandbox.limits import Limits

_NEARLY = 0.5
"""Of the processor time it may use: the limit counts ticks, the report what was really used, which may be far less."""
_LAST_WORD_S = 1.0
"""How long an answer that no longer answers its tests may take to say how it ended."""
_MOST_FOUND = 1 << 20  # bytes that the tests' own box writes: a short line a test


class Verdict(Enum):
    """What came of an answer's code, from best to worst. A sandbox that failed is none of them: BoxFailed."""

    passed = "passed"
    wrong = "wrong"  # it ran, and what it gave is not what a test wants
    error = "error"  # it raised, ended before it was asked, or is no code
    output = "output"  # it wrote more than output_kb
    crash = "crash"  # a signal ended it
    memory = "memory"  # it asked for more than memory_mb
    timeout = "timeout"  # it took longer than cpu_s or timeout_s


@dataclass(frozen=True, slots=True)
class Ran:
    """One run of a program. `verdict`: passed when it ended with status 0; nobody has looked at what it wrote yet."""

    verdict: Verdict
    written: bytes


def run_program(box: Box, code: str, given: bytes, limits: Limits, until: float) -> Ran:
    """Run `code` with `given` as its standard input, until `until` (of time.monotonic). Raises BoxFailed."""
    with ExitStack() as stack:
        theirs_in, ours_in = _pipe(stack)
        ours_out, theirs_out = _pipe(stack)
        box.tell("program", {"code": code}, [theirs_in.fileno(), theirs_out.fileno()])
        theirs_in.close()
        theirs_out.close()
        pump = stack.enter_context(_Pump())
        written = pump.read(ours_out, limits.output_kb << 10)
        pump.write(ours_in, given)
        report = pump.run(box, until)
    if report is None:
        return Ran(Verdict.output if pump.overflowed else Verdict.timeout, bytes(written))
    return Ran(_ended(report, limits), bytes(written))


def run_tests(
    boxes: tuple[Box, Box], code: str, tests: Mapping[str, Any], limits: Limits, until: float
) -> list[Verdict]:
    """One verdict a test. `boxes`: the answer's, and the tests' own, which alone knows what they expect.

    Raises BoxFailed.
    """
    answer, tester = boxes
    with ExitStack() as stack:
        null = stack.enter_context(open(os.devnull, "r+b", buffering=0))
        to_answer, to_tester, found, printed = (_pipe(stack) for _ in range(4))
        _tell(answer, "answer", {"code": code}, [null, printed[1], to_answer[0], to_tester[1]])
        argument = {**tests, "most_bytes": limits.output_kb << 10}
        _tell(tester, "tests", argument, [null, found[1], to_tester[0], to_answer[1]])
        for end in (*to_answer, *to_tester, found[1], printed[1]):
            end.close()
        pump = stack.enter_context(_Pump())
        said = pump.read(found[0], _MOST_FOUND)
        pump.read(printed[0], limits.output_kb << 10, wanted=False)
        report = pump.run(tester, until)
    words = [json.loads(line) for line in bytes(said).split(b"\n") if line]
    missing = sum(1 for _, counts in tests["tests"] if counts) - len(words)
    words += [ENDED] * missing  # the tests' box did not get that far
    if ENDED not in words:
        return [_of_word(word, Verdict.error) for word in words]
    if report is None:
        why = Verdict.output if pump.overflowed else Verdict.timeout
    else:
        why = _ended(report, limits) if missing else _last_word(answer, limits)
    return [_of_word(word, why if why is not Verdict.passed else Verdict.error) for word in words]


def _tell(box: Box, role: str, argument: Mapping[str, Any], files: Sequence[io.FileIO]) -> None:
    box.tell(role, argument, [file.fileno() for file in files])


def _last_word(answer: Box, limits: Limits) -> Verdict:
    """Of an answer that no longer answered: it may have ended, or have closed its end and run on."""
    try:
        return _ended(answer.report(time.monotonic() + _LAST_WORD_S), limits)
    except BoxFailed as error:
        if answer.alive:
            return Verdict.timeout
        raise error


def _of_word(word: object, ended: Verdict) -> Verdict:
    if word == PASSED:
        return Verdict.passed
    if word in ("AssertionError", NOTHING_CHECKED):
        return Verdict.wrong
    if word == "MemoryError":
        return Verdict.memory
    return ended if word == ENDED else Verdict.error


def _ended(report: Mapping[str, Any], limits: Limits) -> Verdict:
    """By the exit status, as the first process of the box saw it."""
    status = report["status"]
    if status >= 0:
        return {0: Verdict.passed, OUT_OF_MEMORY: Verdict.memory}.get(status, Verdict.error)
    if -status == signal.SIGKILL and report["cpu_s"] >= _NEARLY * limits.cpu_s:
        return Verdict.timeout
    return Verdict.crash


def _pipe(stack: ExitStack) -> tuple[io.FileIO, io.FileIO]:
    """The end to read from, and the end to write to. Closing one twice does no harm."""
    ends = os.pipe()
    return stack.enter_context(io.FileIO(ends[0], "rb")), stack.enter_context(io.FileIO(ends[1], "wb"))


class _Pump:
    """Reads what programs write, and writes what one of them reads, until a box has reported."""

    def __init__(self) -> None:
        self.overflowed = False
        self._selector = selectors.DefaultSelector()
        self._read: dict[io.FileIO, tuple[bytearray, int, bool]] = {}
        self._left = memoryview(b"")

    def __enter__(self) -> _Pump:
        return self

    def __exit__(self, *why: object) -> None:
        self._selector.close()

    def read(self, file: io.FileIO, most: int, *, wanted: bool = True) -> bytearray:
        """What comes, up to `most` bytes: more ends the run. `wanted`: the run goes on until all of it is read."""
        found = bytearray()
        self._read[file] = (found, most, wanted)
        self._selector.register(file, selectors.EVENT_READ)
        return found

    def write(self, file: io.FileIO, data: bytes) -> None:
        """All of it, unless the other side no longer reads."""
        os.set_blocking(file.fileno(), False)
        self._left = memoryview(data)
        self._selector.register(file, selectors.EVENT_WRITE)

    def run(self, box: Box, until: float) -> Mapping[str, Any] | None:
        """The box's report; None past `until`, or when something wrote too much. Raises BoxFailed."""
        report: Mapping[str, Any] | None = None
        self._selector.register(box.control, selectors.EVENT_READ)
        while report is None or any(wanted for _, _, wanted in self._read.values()):
            patience = until - time.monotonic()
            if patience <= 0 or self.overflowed:
                return None
            for key, _ in self._selector.select(patience):
                if key.fileobj == box.control:
                    report = box.report(until)
                    self._selector.unregister(box.control)
                elif key.events & selectors.EVENT_READ:
                    self._take(key.fileobj)
                else:
                    self._give(key.fileobj)
        return report

    def _take(self, file: Any) -> None:
        found, most, _ = self._read[file]
        part = os.read(file.fileno(), 1 << 16)
        found += part[: most - len(found) + 1]
        self.overflowed |= len(found) > most
        if not part:
            del self._read[file]
            self._selector.unregister(file)

    def _give(self, file: Any) -> None:
        try:
            self._left = self._left[os.write(file.fileno(), self._left[: 1 << 16]) :]
        except BlockingIOError:
            return
        except OSError:  # it no longer reads
            self._left = memoryview(b"")
        if not self._left:
            self._selector.unregister(file)
            file.close()
