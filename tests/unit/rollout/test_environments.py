"""Environments: shipped ones against their own truth, TRL's form and our own, in this process and in one of theirs."""

from __future__ import annotations

import asyncio
import contextlib
import functools
import multiprocessing
import random
import re
import sys
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from raylign.reward.functions import named_code
from raylign.rollout.environments import process
from raylign.rollout.environments.catalog import shipped
from raylign.rollout.environments.host import _answer
from raylign.rollout.environments.interfaces import (
    EnvironmentFailure,
    EnvironmentLost,
    EnvironmentRefused,
    Outcome,
    ToolCall,
    told_error,
)
from raylign.rollout.environments.local import LocalEnvironments
from raylign.rollout.environments.messages import Answer, Ask, Verb
from raylign.rollout.environments.objects import as_environment, tools_of
from raylign.rollout.environments.process import OwnEnvironments, ProcessLimits
from raylign.rollout.environments.shipped.search import Search
from raylign.rollout.environments.spread import Spread


def _call(tool: str, /, **arguments: object) -> ToolCall:
    return ToolCall(tool, arguments)


def _local(name: str, **arguments: str) -> LocalEnvironments:
    return LocalEnvironments(shipped(name), arguments, timeout_s=20)


async def _played(environments: LocalEnvironments, row: dict, *actions: ToolCall | str) -> list[Outcome]:
    environment = environments.open()
    await environment.reset(row, 1)
    return [await environment.step(action) for action in actions]


def test_the_calculator_computes_what_python_does_and_says_what_it_cannot():
    rng, expressions = random.Random(3), []
    for _ in range(60):
        a, b, c = (rng.randint(1, 99) for _ in range(3))
        expressions.append(rng.choice([f"{a}+{b}*{c}", f"({a}-{b})/{c}", f"-{a} // {b}", f"{a} % {b} ** 2"]))
    calls = [_call("calculate", expression=text) for text in expressions]
    found = asyncio.run(_played(_local("calculator"), {"ground_truth": "1"}, *calls))

    assert [float(o.observation) for o in found] == pytest.approx([eval(text) for text in expressions], abs=1e-9)
    tiny = asyncio.run(_played(_local("calculator"), {"ground_truth": "1"}, _call("calculate", expression="3/10**12")))
    assert tiny[0].observation == "3e-12"
    refused = ("__import__('os')", "9**9**9", "a+1", "1/0", "2**-0.5j", "[1][0]", "(-8)**0.5", "1" * 600)
    bad = asyncio.run(
        _played(_local("calculator"), {"ground_truth": "1"}, *[_call("calculate", expression=t) for t in refused])
    )
    assert all(o.observation.startswith("{'error': ") and not o.done for o in bad)


@pytest.mark.parametrize(
    ("truth", "answer", "reward"),
    [
        ("#### 1200", "It is 1,200.", 1.0),
        ("#### 1200", "1200 or 12", 0.0),
        ("#### 1200", "none", 0.0),
        ("1/2", "It is 0.5.", 1.0),
        ("1/2", "It is 2.", 0.0),
        ("0.75", "That is 3 / 4", 1.0),
        ("\u22125", "It is -5", 1.0),
        ("-5", "It is \u22125.", 1.0),
        ("5", "5/0", 0.0),
        ("12345678", "It is 12345679.", 0.0),
        ("12345678", "It is 12345678.4.", 0.0),
        ("5", "It is .5", 0.0),
        ("1/2", "It is -.5, no: .5", 1.0),
    ],
)
def test_the_calculators_reward_is_the_last_number(truth: str, answer: str, reward: float):
    async def play() -> float | None:
        environment = _local("calculator").open()
        await environment.reset({"ground_truth": truth, "other": 1}, 1)
        assert (await environment.step(answer)).done
        return await environment.final_reward(answer)

    assert asyncio.run(play()) == reward


def test_search_finds_the_document_and_pays_for_the_words_in_it(tmp_path: Path):
    for name, text in {
        "tea": "Tea comes from Camellia.",
        "salt": "Salt is sodium chloride.",
        "sea": "Sea salt.",
    }.items():
        (tmp_path / f"{name}.md").write_text(text)

    async def play() -> tuple[list[Outcome], list[float | None]]:
        environment = _local("search", documents=str(tmp_path)).open()
        await environment.reset({"ground_truth": "sodium chloride"}, 1)
        calls = [_call("search", query="what is salt?"), _call("search", query="zebra"), _call("read", name="tea.md")]
        outcomes = [await environment.step(call) for call in [*calls, _call("read", name="../secret")]]
        return outcomes, [
            await environment.final_reward(t) for t in ("Sodium  chloride!", "sodium", "disodium chloride")
        ]

    outcomes, rewards = asyncio.run(play())
    first = outcomes[0].observation.splitlines()
    assert {line.partition(":")[0] for line in first} == {"salt.md", "sea.md"}
    assert [o.observation for o in outcomes[1:3]] == ["nothing was found", "Tea comes from Camellia."]
    assert outcomes[3].observation.startswith("{'error': ")
    assert rewards == [1.0, 0.0, 0.0]


@pytest.mark.parametrize(
    ("calls", "reward"),
    [
        ((_call("add", product="tea", number=1), _call("add", product="egg", number=2), _call("pay")), 1.0),
        ((_call("add", product="tea", number=1), _call("pay")), 0.0),
        ((_call("add", product="tea", number=1), _call("add", product="egg", number=2)), 0.0),  # not paid
        ((_call("add", product="egg", number=3), _call("remove", product="egg"), _call("pay")), 0.0),
    ],
)
def test_the_shop_remembers_and_pays_for_exactly_what_was_wanted(calls: tuple[ToolCall, ...], reward: float):
    async def play() -> tuple[Outcome, float | None]:
        environment = _local("shop").open()
        await environment.reset({"ground_truth": '{"tea": 1, "egg": 2}'}, 1)
        outcomes = [await environment.step(call) for call in calls]
        return outcomes[-1], await environment.final_reward("done")

    last, got = asyncio.run(play())
    assert got == reward
    assert last.done == last.observation.startswith("paid")


def test_search_reads_languages_without_spaces(tmp_path: Path):
    for name, text in {
        "a": "北京是中国的首都。人口很多。",
        "b": "東京は日本の首都です。",
        "c": "กรุงเทพเป็นเมืองหลวงของไทย",
    }.items():
        (tmp_path / f"{name}.txt").write_text(text)

    async def play() -> tuple[list[str], list[float | None]]:
        environment = _local("search", documents=str(tmp_path)).open()
        await environment.reset({"ground_truth": "北京"}, 1)
        found = [await environment.step(_call("search", query=q)) for q in ("中国首都", "日本", "เมืองหลวง")]
        said = ("答案是北京市。", "北方的京城", "The capital is 北京")
        return [o.observation.partition(".")[0] for o in found], [await environment.final_reward(t) for t in said]

    assert asyncio.run(play()) == (["a", "b", "c"], [1.0, 0.0, 1.0])


def test_search_has_nothing_to_compare_without_words(tmp_path: Path):
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(ValueError, match="words"):
        Search(str(tmp_path)).reset("+")


def test_a_row_that_an_environment_cannot_use_is_a_failure_by_name():
    for name, row in (("calculator", {}), ("shop", {"ground_truth": '{"car": 1}'}), ("shop", {"ground_truth": "tea"})):
        with pytest.raises(EnvironmentFailure, match=r"reset raised ValueError: .*ground_truth"):
            asyncio.run(_played(_local(name), row))


def test_unknown_tools_and_wrong_arguments_go_back_to_the_model():
    calls = [_call("calculat", expression="1"), _call("calculate", text="1"), _call("calculate")]
    found = asyncio.run(_played(_local("calculator"), {"ground_truth": "1"}, *calls))

    assert found[0].observation == told_error("Tool calculat not found.")
    assert all(o.observation.startswith("{'error': ") and not o.done for o in found)


def test_schemas_are_those_of_the_signature():
    [schema] = _local("calculator").tools
    function = schema["function"]
    assert (function["name"], function["parameters"]["required"]) == ("calculate", ["expression"])
    assert function["parameters"]["properties"]["expression"]["type"] == "string"
    assert [tool["function"]["name"] for tool in _local("shop").tools] == ["add", "cart", "pay", "products", "remove"]


class NoHint:
    def add(self, a) -> int:
        """Add.

        Args:
            a: a number
        """
        return 1


class NoTool:
    def reset(self) -> None: ...
    def get_reward(self) -> float:
        return 1.0


class NotMade(NoHint):
    def __init__(self, folder: str) -> None: ...


class Anything:
    def more(self, **options: int) -> str:
        """More.

        Args:
            options: any
        """
        return ""


@pytest.mark.parametrize(
    ("kind", "said"),
    [
        (NoHint, "its method add"),
        (NoTool, "no public method"),
        (NotMade, "made"),
        (Anything, r"its method more takes \*\*options"),
    ],
)
def test_a_class_that_cannot_be_used_is_refused_in_words(kind: type, said: str):
    with pytest.raises(EnvironmentRefused, match=said):
        LocalEnvironments(kind, {}, timeout_s=1)
    with pytest.raises(EnvironmentRefused, match="did you mean calculator"):
        shipped("calculater")


class OwnTools:
    async def reset(self, row: dict, seed: int) -> None: ...
    async def step(self, action: ToolCall | str) -> None: ...


@pytest.mark.parametrize("tools", [[{"name": "add"}], ["add"], {"type": "function"}])
def test_tools_that_are_no_schemas_are_refused_in_words(tools: object):
    made = OwnTools()
    made.tools = tools  # type: ignore[attr-defined]
    with pytest.raises(EnvironmentRefused, match="no tool's schema"):
        tools_of(made)


def _decorated(call: Callable[..., Any]) -> Callable[..., Any]:
    return functools.wraps(call)(lambda *given: call(*given))


class Odd:
    """TRL's form, with what a class may well have."""

    @property
    def board(self) -> str:
        raise RuntimeError("not begun")

    def done(self) -> str:
        """Say that all is done."""
        return "noted"

    @_decorated
    async def ask(self) -> str:
        """Ask."""
        return "asked"

    def show(self) -> Any:
        """Show."""
        return Unprintable()

    def leave(self) -> None:
        """Leave."""
        sys.exit(3)


class Undecided(Odd):
    @property
    def done(self) -> bool:  # type: ignore[override]
        raise RuntimeError("who knows")


def test_what_a_class_raises_outside_its_calls_is_answered_and_not_waited_for():
    here, there = multiprocessing.Pipe()
    ask = Ask(1, 0, Verb.STEP, action=_call("show"))
    asyncio.run(_answer(there, ask, {0: as_environment(Undecided())}, lambda: as_environment(Undecided())))
    assert here.poll(0) and here.recv().failure == "step raised RuntimeError: who knows"


class Unprintable:
    def __str__(self) -> str:
        raise RuntimeError("no text")


def test_odd_methods_are_played_told_or_named():
    environment = as_environment(Odd())
    assert [tool["function"]["name"] for tool in tools_of(Odd())] == ["ask", "done", "leave", "show"]

    async def play() -> list[Outcome]:
        with pytest.raises(EnvironmentFailure, match="called sys"):
            await environment.step(_call("leave"))
        return [await environment.step(_call(name)) for name in ("done", "ask", "show")]

    assert asyncio.run(play()) == [
        Outcome("noted"), Outcome("asked"), Outcome(told_error("no text")),
    ], "a tool named done is no flag that ends the episode"  # fmt: skip


class Guess:
    """Our own form."""

    def __init__(self) -> None:
        self.secret, self.left = 0, 3

    async def reset(self, row: dict, seed: int) -> str:
        self.secret = int(row["ground_truth"])
        return f"seed {seed}"

    async def step(self, action: ToolCall | str) -> tuple[str, float | None, bool]:
        self.left -= 1
        if action == str(self.secret):
            return "", 1.0, True
        return ("nan", float("nan"), False) if action == "nan" else ("no", -0.1, self.left == 0)


def test_our_own_form_gives_step_rewards_and_ends_by_itself():
    async def play() -> tuple[str, list[Outcome], float | None]:
        environment = as_environment(Guess())
        text = await environment.reset({"ground_truth": 7}, 5)
        outcomes = [await environment.step("3"), await environment.step("7")]
        with pytest.raises(EnvironmentFailure, match="step gave nan"):
            await environment.step("nan")
        return text, outcomes, await environment.final_reward("7")

    assert tools_of(Guess()) == ()
    text, outcomes, final = asyncio.run(play())
    assert (text, final) == ("seed 5", None)
    assert outcomes == [Outcome("no", -0.1, False), Outcome("", 1.0, True)]


OWN = '''
import os, time

class Counter:
    """TRL's form."""

    def __init__(self):
        self.n = 0

    def reset(self, start=0, **row):
        self.n = start
        print("begun")
        return f"begin at {start}"

    def add(self, amount: int) -> int:
        """Add.

        Args:
            amount: how much
        """
        self.n += amount
        if amount == 13:
            os._exit(3)
        if amount == 14:
            time.sleep(60)
        return self.n

    def get_reward(self):
        return self.n
'''


LIMITS = ProcessLimits(max_restarts=8)


def _own(tmp_path: Path, timeout_s: float = 20.0, limits: ProcessLimits = LIMITS) -> OwnEnvironments:
    (tmp_path / "counting.py").write_text(OWN)
    code = named_code(f"{tmp_path}/counting.py:Counter", "class")
    return OwnEnvironments(code, {}, timeout_s=timeout_s, start_timeout_s=60, limits=limits)


@pytest.mark.slow
def test_an_own_class_plays_many_episodes_in_a_process_of_its_own_and_comes_back(tmp_path: Path):
    environments = _own(tmp_path, timeout_s=2.0)

    async def play(start: int, *amounts: int) -> tuple[str, float | None]:
        environment = environments.open()
        text = await environment.reset({"start": start, "more": 1}, 0)
        for amount in amounts:
            await environment.step(_call("add", amount=amount))
        reward = await environment.final_reward("")
        await environment.close()
        return text, reward

    async def all_of_it() -> None:
        environments.load()
        assert environments.tools[0]["function"]["name"] == "add"
        played = await asyncio.gather(*(play(i, 1, 2) for i in range(40)))
        assert played == [(f"begin at {i}", float(i + 3)) for i in range(40)]
        waiting = environments.open()
        await waiting.reset({"start": 5}, 0)
        with pytest.raises(EnvironmentFailure, match="the tool add did not answer within 2 s"):
            await play(0, 14)
        assert (await waiting.step(_call("add", amount=1))).observation == "6", "one that hangs ends nobody else"
        with pytest.raises(EnvironmentFailure, match="its process ended"):
            await play(0, 13)
        with pytest.raises(EnvironmentLost):
            await waiting.step(_call("add", amount=1))
        assert await play(7, 1) == ("begin at 7", 8.0), "another process plays the next episode"
        assert (environments.taken_restarts(), environments.taken_restarts()) == (1, 0), "told once"
        await environments.stop()

    asyncio.run(all_of_it())


def test_calls_that_are_answered_late_are_not_counted_as_hanging(monkeypatch: pytest.MonkeyPatch):
    """Or a long life with a slow call now and then would end like one in which all hang."""
    monkeypatch.setattr(process, "MOST_HUNG", 2)
    here, there = multiprocessing.Pipe()
    kept: list[Ask] = []

    def answer_pings() -> None:
        with contextlib.suppress(EOFError, OSError):
            while ask := there.recv():
                if ask.verb is Verb.PING:
                    there.send(Answer(ask.number))
                else:
                    kept.append(ask)

    threading.Thread(target=answer_pings, daemon=True).start()

    async def all_of_it() -> None:
        life = process._Life(SimpleNamespace(pipe=here, end=there.close), timeout_s=0.01, memory_gb=0)
        for answered, over in ((True, False), (False, False), (False, True)):
            with pytest.raises(EnvironmentFailure, match="did not answer within"):
                await life.ask(0, Verb.RESET)
            assert life.over is over
            if answered:
                there.send(Answer(kept.pop().number))  # before the next ping's answer

    asyncio.run(all_of_it())


@pytest.mark.slow
def test_a_process_that_outgrows_its_memory_is_ended_and_not_started_for_ever(tmp_path: Path):
    environments = _own(tmp_path, limits=ProcessLimits(max_restarts=0, memory_gb=0.001))
    both = Spread([environments, _local("calculator")])

    async def all_of_it() -> None:
        environments.load()
        for said in (r"GB \(environment\.memory_gb=0\.001\)$", "0 times with no episode played to its end"):
            with pytest.raises(EnvironmentFailure, match=said):
                await both.open().reset({}, 0)
            assert await both.open().reset({"ground_truth": "1"}, 0) == "", "the other one plays"
        await both.stop()

    asyncio.run(all_of_it())


def test_an_own_class_that_is_not_there_is_refused_in_words(tmp_path: Path):
    (tmp_path / "counting.py").write_text(OWN)
    code = named_code(f"{tmp_path}/counting.py:Countr", "class")
    environments = OwnEnvironments(code, {}, timeout_s=1, start_timeout_s=60, limits=LIMITS)
    with pytest.raises(EnvironmentRefused, match="has no class 'Countr'; it has Counter"):
        environments.load()


PAGE = Path(__file__).resolve().parents[3] / "docs" / "own-environment.md"


def _shown(tmp_path: Path, file: str, name: str) -> OwnEnvironments:
    blocks = re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), flags=re.DOTALL)
    (tmp_path / file).write_text(next(block for block in blocks if block.startswith(f"# {file}")))
    environments = OwnEnvironments(
        named_code(f"{tmp_path}/{file}:{name}", "class"), {}, timeout_s=20, start_timeout_s=60, limits=LIMITS
    )
    environments.load()
    return environments


@pytest.mark.slow
def test_the_pages_examples_do_what_the_page_says(tmp_path: Path):
    async def counted(environments: OwnEnvironments) -> tuple[str, list[Outcome], float | None]:
        environment = environments.open()
        text = await environment.reset({"ground_truth": "8", "id": "a"}, 1)
        calls = [_call("add", amount=3), _call("add", amount=30), _call("double")]
        outcomes = [await environment.step(call) for call in calls]
        return text, outcomes, await environment.final_reward("")

    async def guessed(environments: OwnEnvironments) -> list[Outcome]:
        environment = environments.open()
        await environment.reset({}, 4)
        low, high, outcomes = 1, 100, []
        while not outcomes or not outcomes[-1].done:
            middle = (low + high) // 2
            outcomes.append(await environment.step(f"Is it {middle}?"))
            low, high = (middle + 1, high) if outcomes[-1].observation == "higher" else (low, middle - 1)
        return outcomes

    async def both() -> None:
        countdown, game = (
            _shown(tmp_path, "my_environment.py", "Countdown"),
            _shown(tmp_path, "my_game.py", "HigherLower"),
        )
        text, outcomes, reward = await counted(countdown)
        assert (text, reward) == ("\nThe number is 1.", pytest.approx(0.9))
        assert [o.observation for o in outcomes] == [
            "The number is 4.", told_error("only 1 to 9 can be added"), "The number is 8.",
        ]  # fmt: skip
        assert [o.done for o in outcomes] == [False, False, True]
        assert [tool["function"]["name"] for tool in countdown.tools] == ["add", "double"] and game.tools == ()
        last = (await guessed(game))[-1]
        assert last.done and last.reward in (1.0, -0.1)
        await countdown.stop()
        await game.stop()

    asyncio.run(both())
