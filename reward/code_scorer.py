"""A score for an answer's code: run in a sandbox with the tests of its row (docs/sandbox.md)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from raylign.reward.code_tests import CodeTests, OutputTests, TestsError, code_of, read_tests, same_output
from raylign.reward.samples import NotScored, Sample, Score
from raylign.reward.sandbox.box import Box, BoxFailed, Isolation
from raylign.reward.sandbox.isolation import NoIsolationError, find_isolation
from raylign.reward.sandbox.limits import Limits
from raylign.reward.sandbox.pool import BoxPool
from raylign.reward.sandbox.run import Verdict, run_program, run_tests

SANDBOX_FAILED = "the sandbox failed"
_TRIES = 2
_BOXES_AN_ANSWER = 2


@dataclass(frozen=True, slots=True)
class Judged:
    """What came of one answer."""

    verdict: Verdict
    passed: int
    tests: int


class CodeScorer:
    """A SampleScorer: the share of an answer's tests that pass, or 1 when all do."""

    def __init__(
        self, column: str, limits: Limits, *, partial_credit: bool, workers: int, batch_timeout_s: float,
        isolation: Isolation | None = None,
    ) -> None:  # fmt: skip
        """`column`: of the rows, with their tests. `workers`: answers at a time. Raises NoIsolationError."""
        self._column, self._limits, self._partial = column, limits, partial_credit
        self._workers, self._batch_timeout_s = workers, batch_timeout_s
        self._pool = BoxPool(isolation or find_isolation(), limits, ready=_BOXES_AN_ANSWER * workers)

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One a sample, in order; None for a row without tests."""
        return [score for score, _ in self.verdicts(samples)]

    def verdicts(self, samples: Sequence[Sample]) -> list[tuple[Score, Mapping[str, float]]]:
        """The score of each, and 1 for its verdict beside 0 for every other; nothing where there is no score."""
        until = time.monotonic() + self._batch_timeout_s
        with ThreadPoolExecutor(self._workers) as threads:
            return list(threads.map(lambda sample: self._scored(sample, until), samples))

    def stop(self) -> None:
        """End every sandbox."""
        self._pool.stop()

    def _scored(self, sample: Sample, until: float) -> tuple[Score, Mapping[str, float]]:
        value = sample.columns.get(self._column)
        if value is None:
            return None, {}
        try:
            judged = self._judged(sample.completion, read_tests(value), until)
        except TestsError as error:
            return NotScored(f"its row's {self._column} cannot be used: {error}"), {}
        except BoxFailed as error:
            return NotScored(f"{SANDBOX_FAILED}: {error}"), {}
        if judged is None:
            return NotScored("its code was not run: the answers before it took all the time there is"), {}
        all_passed = judged.passed == judged.tests
        score = judged.passed / judged.tests if self._partial else float(all_passed)
        return score, {verdict.value: float(verdict is judged.verdict) for verdict in Verdict}

    def _judged(self, answer: str, tests: CodeTests, until: float) -> Judged | None:
        """None when there is no time left. Raises BoxFailed when the sandbox failed each time."""
        count = len(tests.pairs) if isinstance(tests, OutputTests) else tests.count
        code = code_of(answer)
        if code is None:
            return Judged(Verdict.error, 0, count)
        for left in reversed(range(_TRIES)):
            if time.monotonic() + self._limits.timeout_s > until:
                return None
            try:
                found = self._ran(code, tests)
                break
            except BoxFailed:
                if not left:
                    raise
        worst = max(found, key=list(Verdict).index)
        return Judged(worst, sum(verdict is Verdict.passed for verdict in found), count)

    def _ran(self, code: str, tests: CodeTests) -> list[Verdict]:
        boxes: list[Box] = []
        try:
            for _ in range(1 if isinstance(tests, OutputTests) else 2):
                boxes.append(self._pool.take())
            end = time.monotonic() + self._limits.timeout_s
            if isinstance(tests, OutputTests):
                return self._programs(boxes[0], code, tests.pairs, end)
            told = {"tests": tests.tests, "names": tests.names}
            return run_tests((boxes[0], boxes[1]), code, told, self._limits, end)
        finally:
            for box in boxes:
                self._pool.done(box)

    def _programs(self, box: Box, code: str, pairs: Sequence[tuple[str, str]], end: float) -> list[Verdict]:
        """One run a pair. What the answer wrote is compared here, where it cannot reach."""
        found: list[Verdict] = []
        for given, wanted in pairs:
            ran = run_program(box, code, given.encode(), self._limits, end)
            if ran.verdict in (Verdict.timeout, Verdict.output):  # it may still run, and would with the others
                return found + [ran.verdict] * (len(pairs) - len(found))
            same = same_output(ran.written, wanted)
            found.append(Verdict.wrong if ran.verdict is Verdict.passed and not same else ran.verdict)
            if not self._partial and found[-1] is not Verdict.passed:
                return found + [found[-1]] * (len(pairs) - len(found))
        return found


__all__ = ["SANDBOX_FAILED", "CodeScorer", "Judged", "NoIsolationError"]
