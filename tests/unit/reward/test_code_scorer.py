"""Answers that solve, fail, and cheat. What cheats is seen to pass a grader that runs answer and tests together."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator

import pytest
from raylign.conf.errors import ConfigError
from raylign.conf.schema import CodeRewardConfig, Device, RewardConfig
from raylign.reward import code_scorer
from raylign.reward.code_scorer import SANDBOX_FAILED, CodeScorer
from raylign.reward.samples import NotScored, Sample
from raylign.reward.sandbox import isolation
from raylign.reward.sandbox.box import BoxFailed, Isolation
from raylign.reward.sandbox.inside import worker
from raylign.reward.sandbox.isolation import NoIsolationError, find_isolation
from raylign.reward.sandbox.limits import Limits
from raylign.reward.sandbox.run import Verdict
from raylign.reward.sandbox.toy_tasks import toy_tasks
from raylign.reward.scorer import ComposedScorer

LIMITS = Limits(timeout_s=60, cpu_s=30)
HALF = "assert abs(half(3) - 1.5) < 1e-9\nassert half(8) == 4"


def sample(code: str, tests: object) -> Sample:
    return Sample("p", f"```python\n{code}\n```", (), (), "", None, {} if tests is None else {"tests": tests})


@pytest.fixture(scope="module")
def scorer(sandbox: Isolation) -> Iterator[CodeScorer]:
    made = CodeScorer("tests", LIMITS, partial_credit=True, workers=2, batch_timeout_s=600)
    yield made
    made.stop()


def verdict(scorer: CodeScorer, code: str, tests: object) -> tuple[float, str]:
    ((score, shares),) = scorer.verdicts([sample(code, tests)])
    assert isinstance(score, float), score
    return score, next(name for name, share in shares.items() if share)


CHEATS = {
    "exits early": "import sys; sys.exit(0)",
    "exits early, at once": "import os; os._exit(0)",
    "exits when called": "def half(x):\n    import os; os._exit(0)",
    "exits well at its end": "import atexit, os; atexit.register(os._exit, 0)",
    "equals everything": (
        "class Any:\n    __eq__ = __lt__ = __sub__ = __abs__ = lambda s, o=0: s\n    __bool__ = lambda s: True\n"
        "def half(x): return Any()"
    ),
    "replaces builtins": "import builtins\nbuiltins.abs = lambda x: 0\ndef half(x): return 4",
    "names its own like a builtin": "def abs(x): return 0\ndef half(x): return 4",
    "reads the tests": (
        "import re, sys\ndef half(x):\n"
        "    return 1.5 if x == 3 else int(re.findall(r'== (\\d)', sys.orig_argv[-1])[-1])"
    ),
    "reads its caller": (
        "import sys\ndef half(x):\n    if x == 3: return 1.5\n"
        "    return int(sys.orig_argv[-1][-1] if sys._getframe(1).f_code.co_name == '<module>' else 0)"
    ),
}


@pytest.mark.parametrize("name", CHEATS)
def test_a_cheat_does_not_pass(name: str, scorer: CodeScorer) -> None:
    together = [sys.executable, "-S", "-c", f"{CHEATS[name]}\n{HALF}"]
    assert subprocess.run(together, timeout=60, check=False).returncode == 0, "a naive grader would be deceived"
    score, what = verdict(scorer, CHEATS[name], HALF)
    assert score < 1 and what in ("wrong", "error")


@pytest.mark.parametrize(
    "code",
    [
        "import os\nfor fd in range(3, 64):\n    try: os.write(fd, b'\"\"\\n' * 9)\n    except OSError: pass\n"
        "def half(x): return 0",
        "import os\nos.write(4, b'{\"value\": null}\\n{\"value\": {\"mine\": 0}}\\n' + b'{\"value\": true}\\n' * 50)\n"
        "def half(x): return 0",
        "import os\nos.write(4, b'[' * 100_000 + b'\\n')\ndef half(x): return 0",
        "print('\"\"\\n' * 9)\ndef half(x): return 0",
    ],
)  # fmt: skip
def test_a_forged_result_does_not_pass(code: str, scorer: CodeScorer) -> None:
    assert verdict(scorer, code, HALF)[0] == 0


def test_the_end_of_an_answer_is_no_exception_that_a_test_wants(scorer: CodeScorer) -> None:
    tests = "try:\n    half('x')\n    assert False\nexcept Exception:\n    pass"
    assert verdict(scorer, "def half(x):\n    import os; os._exit(0)", tests) == (0, "error")
    assert verdict(scorer, "def half(x):\n    return x / 2", tests) == (1, "passed")


def test_a_test_that_reaches_no_assert_has_not_passed(scorer: CodeScorer) -> None:
    tests = "for one, two in pairs():\n    assert one < two"
    assert verdict(scorer, "def pairs(): return []", tests) == (0, "wrong")
    assert verdict(scorer, "def pairs(): return [(1, 2)]", tests) == (1, "passed")


ANSWER = """
from collections import Counter, OrderedDict
from dataclasses import dataclass
class Stack:
    def __init__(self): self.held = []
    def push(self, one): self.held.append(one)
    def pop(self): return self.held.pop()
    def __len__(self): return len(self.held)
    def __getitem__(self, at): return self.held[at]
    def __contains__(self, one): return one in self.held
@dataclass
class Point:
    x: int
    y: int = 2
def count_to(n): yield from range(n)
def each(function, items): return [function(one) for one in items]
def sort_it(items): items.sort()
def letters(text): return Counter(text)
def refuse(x): raise ValueError("no")
def big(): return 2 ** 200
def pair(): return (1.5, {"a": {1, 2}}, None, b"x", float("inf"))
"""
TESTS = """
s = Stack()
s.push(3); s.push(4)
assert len(s) == 2 and s[0] == 3 and 4 in s and 5 not in s
assert s.pop() == 4
assert list(count_to(3)) == [0, 1, 2]
assert each(lambda one: one * 2, [1, 2]) == [2, 4]
assert each(len, ["a", "bb"]) == [1, 2]
items = [3, 1, 2]; same = items; sort_it(items)
assert same == [1, 2, 3]
assert letters("aab") == {"a": 2, "b": 1}
assert Point(1) == Point(1, 2) and Point(1) != Point(2)
assert Point(1).y == 2 and str(Point(1)) == "Point(x=1, y=2)"
assert big() == 2 ** 200 and type(big()) is int
assert pair() == (1.5, {"a": {1, 2}}, None, b"x", float("inf")) and isinstance(pair(), tuple)
try:
    refuse(1)
    assert False
except ValueError as error:
    assert str(error) == "no"
"""


def test_what_tests_do_with_an_answer_works_as_in_one_process(scorer: CodeScorer) -> None:
    assert subprocess.run([sys.executable, "-c", ANSWER + TESTS], timeout=60, check=False).returncode == 0
    assert verdict(scorer, ANSWER, TESTS) == (1, "passed")


def test_the_share_of_tests_or_all_of_them(scorer: CodeScorer) -> None:
    asserts = "assert f(1) == 1\nassert f(2) == 4\nassert f(0) == 0\nassert f(3) == 9"
    pairs = [{"input": "1", "output": "1\n"}, {"input": "2", "output": "4"}]
    assert verdict(scorer, "def f(x): return x", asserts) == (0.5, "wrong")
    assert verdict(scorer, "print(input())", pairs) == (0.5, "wrong")
    whole = CodeScorer("tests", LIMITS, partial_credit=False, workers=2, batch_timeout_s=600)
    given = [
        sample("def f(x): return x", asserts), sample("def f(x): return x * x", asserts),
        sample("print(input())", pairs), sample("print(int(input()) ** 2)", pairs), sample("print(1)", None),
    ]  # fmt: skip
    assert whole.score(given) == [0, 1, 0, 1, None]
    whole.stop()


@pytest.mark.parametrize(
    ("code", "what"),
    [
        ("def f(x): return x[0]", Verdict.error),
        ("x = (", Verdict.error),
        ("import os; os.abort()", Verdict.crash),
        ("def f(x): return bytearray(1 << 40)", Verdict.memory),
        ("print('x' * 10**6)\ndef f(x): return x\nf(1)", Verdict.output),
    ],
)
def test_what_came_of_an_answer_is_told_apart(code: str, what: Verdict, scorer: CodeScorer) -> None:
    assert verdict(scorer, code, "assert f(1) == 2") == (0, what.value)


def test_an_endless_answer_keeps_what_it_passed_before() -> None:
    limits = Limits(timeout_s=60, cpu_s=1)
    made = CodeScorer("tests", limits, partial_credit=True, workers=1, batch_timeout_s=600)
    code = (
        "import signal\nsignal.signal(signal.SIGXCPU, signal.SIG_IGN)\ndef f(x):\n    while x > 1: pass\n    return x"
    )
    assert verdict(made, code, "assert f(1) == 1\nassert f(2) == 2") == (0.5, "timeout")
    made.stop()


def test_answers_without_time_left_are_no_zeros() -> None:
    made = CodeScorer("tests", LIMITS, partial_credit=True, workers=1, batch_timeout_s=0)
    (score,) = made.score([sample("def half(x): return x / 2", HALF)])
    assert isinstance(score, NotScored) and "not run" in score.reason
    made.stop()


def test_a_sandbox_that_fails_is_no_zero(scorer: CodeScorer, monkeypatch: pytest.MonkeyPatch) -> None:
    broken = CodeScorer(
        "tests", LIMITS, partial_credit=True, workers=1, batch_timeout_s=600, isolation=Isolation("/bin/false", True)
    )
    (score,) = broken.score([sample("def half(x): return x / 2", HALF)])
    assert isinstance(score, NotScored) and score.reason.startswith(SANDBOX_FAILED)
    broken.stop()

    def fails_once(*given: object) -> list[Verdict]:
        monkeypatch.undo()
        raise BoxFailed("it is gone")

    monkeypatch.setattr(code_scorer, "run_tests", fails_once)
    assert scorer.score([sample("def half(x): return x / 2", HALF)]) == [1]


def test_without_isolation_nothing_runs_and_it_is_said_what_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    find_isolation.cache_clear()
    monkeypatch.setattr(isolation, "candidates", lambda: iter([]))
    with pytest.raises(NoIsolationError, match="bubblewrap is missing"):
        find_isolation()
    with pytest.raises(ConfigError) as told:
        ComposedScorer(RewardConfig(code=[CodeRewardConfig()]), Device.cpu)
    assert told.value.problems[0].startswith("reward.code: no sandbox can be made on this machine")
    monkeypatch.setattr(isolation, "candidates", lambda: iter([Isolation("/bin/false", True)]))
    monkeypatch.setattr(isolation, "_setting", lambda name: "0" if name == "user/max_user_namespaces" else "1")
    with pytest.raises(NoIsolationError, match="sysctl -w user"):
        find_isolation()
    find_isolation.cache_clear()


class Weaker:
    """A sandbox without its filter of system calls."""

    def __init__(self, whole: Isolation) -> None:
        self.program, self.as_root, self.user, self._whole = whole.program, whole.as_root, whole.user, whole

    def command(self, limits: Limits, control: int, filter_: int) -> list[str]:
        words = self._whole.command(limits, control, filter_)
        at = words.index("--seccomp")
        return words[:at] + words[at + 2 :]


def test_a_sandbox_that_leaks_is_refused(sandbox: Isolation) -> None:
    """The probe looks for itself: what bubblewrap was told is not what counts."""
    assert isolation.problem(sandbox) is None
    wrong = isolation.problem(Weaker(sandbox))  # type: ignore[arg-type]
    assert wrong is not None and "there is a network" in wrong


def test_the_first_process_does_nothing_outside_a_namespace_of_its_own() -> None:
    with pytest.raises(SystemExit, match=worker.NOT_FIRST):
        worker.main()


def test_the_toy_tasks_can_be_solved_and_failed(scorer: CodeScorer) -> None:
    rows = list(toy_tasks())
    assert len(rows) == 12 and len({row["prompt"] for row in rows}) == 12
    solved = [Sample("p", row["ground_truth"], (), (), "", None, row) for row in rows]
    assert scorer.score(solved) == [1.0] * 12
    missed = [Sample("p", "```python\nprint('?')\n```", (), (), "", None, row) for row in rows[-3:]]
    assert scorer.score(missed) == [0.0] * 3
