"""Episodes with a scripted engine: which tokens are whose, what is paid where, how one ends, and what may fail."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest
from raylign.data.turns import TurnWriter
from raylign.data.types import (
    Completion,
    FinishReason,
    Message,
    Prompt,
    RolloutGroup,
    SampleKey,
    SamplingParams,
    Turn,
    VersionSpan,
)
from raylign.rollout.environments.interfaces import EnvironmentFailure, EnvironmentLost, Outcome, ToolCall, told_error
from raylign.rollout.episodes import MOST_LOST, EpisodeLimits, Episodes
from raylign.rollout.interfaces import GenerationRequest
from raylign.rollout.tool_calls import Malformed, Reply, TaggedCalls

from tests.unit.data.chat_families import FAMILIES, tokenizer

TOKENIZER = tokenizer("gpt2", *FAMILIES["chatml"])
END = TOKENIZER.convert_tokens_to_ids("<|im_end|>")
TOOLS = ({"type": "function", "function": {"name": "add", "description": "d", "parameters": {}}},)
CALL = '<tool_call>{"name": "add", "arguments": {"n": 2}}</tool_call>'


def _ids(text: str) -> list[int]:
    return TOKENIZER(text, add_special_tokens=False)["input_ids"]


@dataclass
class Engine:
    """Says what is next in its script, to whatever it is asked."""

    script: Sequence[str]
    asked: list[tuple[SampleKey, tuple[int, ...], int, int]] = field(default_factory=list)

    async def __call__(
        self, key: SampleKey, token_ids: Sequence[int], sampling: SamplingParams, turn: int
    ) -> Completion:
        self.asked.append((key, tuple(token_ids), sampling.max_new_tokens, turn))
        await asyncio.sleep(0)
        whole = [*_ids(self.script[turn]), END]
        ids = tuple(whole[: sampling.max_new_tokens])
        finish = FinishReason.STOP if len(ids) == len(whole) else FinishReason.LENGTH
        logprobs = tuple(-0.5 - turn for _ in ids)
        return Completion(key, ids, logprobs, finish, (VersionSpan(7 + turn, 0, len(ids)),), "")


class Scripted:
    """Answers what it is told to; counts what became of it."""

    def __init__(
        self, log: list[str], steps: Sequence[Outcome | Exception], opening: str = "", final: Any = None
    ) -> None:
        self._log, self._steps, self._opening, self._final = log, list(steps), opening, final

    async def reset(self, row: Mapping[str, Any], seed: int) -> str:
        self._log.append(f"reset {row['ground_truth']} {seed}")
        return self._opening

    async def step(self, action: ToolCall | str) -> Outcome:
        self._log.append(action if isinstance(action, str) else f"{action.name}{dict(action.arguments)}")
        step = self._steps.pop(0)
        if isinstance(step, Exception):
            raise step
        return step

    async def final_reward(self, answer: str) -> float | None:
        self._log.append(f"final {answer}")
        if isinstance(self._final, Exception):
            raise self._final
        return self._final

    async def close(self) -> None:
        self._log.append("close")


@dataclass
class Made:
    make: Callable[[], Any]
    tools: tuple[Mapping[str, Any], ...] = TOOLS

    def open(self) -> Any:
        return self.make()

    def taken_restarts(self) -> int:
        return 0

    async def stop(self) -> None:
        return None


def _request(samples: int = 1, room: int = 200) -> GenerationRequest:
    ids = tuple(_ids("<|im_start|>user\nAdd.<|im_end|>\n<|im_start|>assistant\n"))
    prompt = Prompt("p", (Message("user", "Add."),), ids, columns='{"ground_truth": "4"}')
    keys = tuple(SampleKey(1, "p", k) for k in range(samples))
    return GenerationRequest(prompt, keys, SamplingParams(1.0, room, seed=3))


def _play(
    engine: Engine, made: Made, *, turns: int = 5, turn_tokens: int = 0, samples: int = 1, room: int = 200
) -> RolloutGroup:
    episodes = Episodes(made, TurnWriter(TOKENIZER, made.tools), TaggedCalls(), EpisodeLimits(turns, turn_tokens))
    return asyncio.run(episodes.group(_request(samples, room), engine))


def _one(engine: Engine, steps: Sequence[Outcome | Exception], **given: Any) -> tuple[Completion, list[str]]:
    log: list[str] = []
    final, opening = given.pop("final", None), given.pop("opening", "")
    group = _play(engine, Made(lambda: Scripted(log, steps, opening, final), given.pop("tools", TOOLS)), **given)
    [answer] = group.completions
    assert answer.episode is not None
    return answer, log


def test_a_call_its_answer_and_the_last_words_are_one_stream():
    engine = Engine([f"I ask. {CALL}", "It is 4."])
    answer, log = _one(engine, [Outcome("4", 0.25), Outcome("", None, True)], final=1.0)

    first, last = [*_ids(f"I ask. {CALL}"), END], [*_ids("It is 4."), END]
    between = _ids("\n<|im_start|>tool\n4<|im_end|>\n<|im_start|>assistant\n")
    assert list(answer.response_ids) == [*first, *between, *last]
    assert answer.sampled == [True] * len(first) + [False] * len(between) + [True] * len(last)
    assert answer.rollout_logprobs == (-0.5,) * len(first) + (0.0,) * len(between) + (-1.5,) * len(last)
    size = len(first) + len(between)
    assert answer.versions == (VersionSpan(7, 0, len(first)), VersionSpan(8, size, size + len(last)))
    assert answer.episode is not None
    assert answer.episode.rewards == ((len(first) - 1, 0.25), (len(answer.response_ids) - 1, 1.0))
    assert answer.episode.turns == (
        Turn("assistant", f"I ask. {CALL}"),
        Turn("tool", "4"),
        Turn("assistant", "It is 4."),
    )
    assert (answer.text, answer.finish_reason, answer.episode.failure) == ("It is 4.", FinishReason.STOP, "")
    assert log[1:] == ["add{'n': 2}", "It is 4.", "final It is 4.", "close"]
    assert engine.asked[1][1] == (*_request().prompt.token_ids, *first, *between), "what was sampled is read as it was"
    assert [turn for *_, turn in engine.asked] == [0, 1]
    assert engine.asked[1][2] == 200 - len(first) - len(between)


def test_several_calls_are_answered_in_order_and_a_malformed_one_is_told_so():
    engine = Engine([f'{CALL}<tool_call>{{"name": 3}}</tool_call>{CALL}', "Done."])
    answer, log = _one(engine, [Outcome("1"), Outcome("2"), Outcome("", None, True)], room=600)

    assert answer.episode is not None
    assert [t.content for t in answer.episode.turns if t.role == "tool"] == [
        "1",
        told_error('the call has no "name"'),
        "2",
    ]
    assert log[1:4] == ["add{'n': 2}", "add{'n': 2}", "Done."]


@pytest.mark.parametrize(
    ("given", "steps", "turns_played", "finish"),
    [
        ({"turns": 2}, [Outcome("1"), Outcome("2")], 2, FinishReason.LENGTH),  # the turns are used up
        ({"turns": 5}, [Outcome("1"), Outcome("paid", 1.0, True)], 2, FinishReason.STOP),  # the environment ends it
        ({"room": 60}, [Outcome("1 " * 80)], 1, FinishReason.LENGTH),  # its answer leaves no room
        ({"room": 20}, [], 1, FinishReason.LENGTH),  # the turn itself is cut
    ],
)
def test_how_an_episode_ends(given: dict, steps: list, turns_played: int, finish: FinishReason):
    answer, log = _one(Engine([CALL] * 5), steps, final=0.5, **given)

    assert answer.episode is not None
    assert answer.finish_reason is finish
    assert answer.sampled[-1], "a response ends with what was sampled"
    assert len(answer.versions) == turns_played
    assert answer.episode.rewards[-1][0] == len(answer.response_ids) - 1
    assert len(answer.response_ids) <= given.get("room", 200)
    assert log[-2:] == [log[-2], "close"] and log[-2].startswith("final")


def test_a_turn_that_uses_up_its_own_tokens_is_closed_and_answered():
    engine, steps = Engine(["one two three four five six seven", "Yes."]), [Outcome("go on"), Outcome("", 1.0, True)]
    answer, log = _one(engine, steps, tools=(), turn_tokens=4)

    cut = _ids("one two three four five six seven")[:4]
    between = [END, *_ids("\n<|im_start|>user\ngo on<|im_end|>\n<|im_start|>assistant\n")]
    assert list(answer.response_ids) == [*cut, *between, *_ids("Yes."), END][: len(answer.response_ids)]
    assert answer.episode is not None and answer.episode.holes == ((4, 4 + len(between)),)
    assert log[1] == TOKENIZER.decode(cut).strip()


@pytest.mark.parametrize(
    ("steps", "final", "reason"),
    [
        ([EnvironmentFailure("add hangs")], None, "add hangs"),
        ([Outcome("4"), EnvironmentFailure("it broke")], None, "it broke"),
        ([Outcome("", 0.5, True)], EnvironmentFailure("no judge"), "no judge"),
        ([Outcome("a", 1e308), Outcome("b", 1e308), Outcome("", None, True)], None, "its rewards add up to inf"),
        ([EnvironmentFailure("no \ud800")], None, "no \ufffd"),
    ],
)
def test_a_failure_is_named_and_has_no_reward(steps: list, final: Any, reason: str):
    answer, log = _one(Engine([CALL] * 5), steps, final=final)

    assert answer.episode is not None
    assert (answer.episode.failure, answer.episode.rewards) == (reason, ())
    assert answer.response_ids and answer.sampled[-1] and log[-1] == "close"


class Broken(Scripted):
    async def reset(self, row: Mapping[str, Any], seed: int) -> str:
        raise EnvironmentFailure("no such row")


def test_an_environment_that_does_not_begin_still_leaves_a_sample_that_tells_its_weights():
    group = _play(Engine(["Hello."]), Made(lambda: Broken([], [])), samples=2)
    for answer in group.completions:
        assert answer.episode is not None and answer.episode.failure == "no such row"
        assert len(answer.response_ids) == 1 and answer.min_policy_version == 7


@pytest.mark.parametrize("lost", [1, MOST_LOST, MOST_LOST + 1])
def test_a_lost_environment_is_played_again_from_the_start(lost: int):
    log: list[str] = []
    lives = iter([EnvironmentLost("gone")] * lost + [Outcome("4")] * 9)
    group = _play(Engine([CALL, "4."]), Made(lambda: Scripted(log, [next(lives), Outcome("", 1.0, True)])))
    [answer] = group.completions

    assert answer.episode is not None
    if lost > MOST_LOST:
        assert answer.episode.failure == "gone"
    else:
        assert answer.episode.failure == "" and answer.episode.rewards[-1][1] == 1.0
        assert len(answer.episode.turns) == 3, "nothing of the lost one is left"
    assert log.count("close") == sum(line.startswith("reset") for line in log)


def test_an_episode_that_is_played_again_has_to_begin_as_its_prompt_does():
    texts = iter(["Board A.", "Board B."])
    steps = iter([EnvironmentLost("gone"), Outcome("", 1.0, True)])
    group = _play(Engine(["Yes."]), Made(lambda: Scripted([], [next(steps)], next(texts))))

    [answer] = group.completions
    assert group.prompt.messages[-1].content == "Add.Board A."
    assert answer.episode is not None
    assert "another text" in answer.episode.failure and answer.episode.rewards == ()


def test_half_a_character_of_a_call_that_a_tool_repeats_does_not_end_the_run():
    answer, _ = _one(Engine([CALL, "x"]), [Outcome("no \ud83d here"), Outcome("", None, True)], opening="a\ud800")
    assert answer.episode is not None
    assert answer.episode.failure == "" and answer.episode.turns[1] == Turn("tool", "no \ufffd here")


@pytest.mark.parametrize(
    "text",
    [
        '{"name": "add", "arguments": {"n": ' + "1" * 5000 + "}}",
        '{"name": "add", "arguments": ' + "[" * 100_000,
        json.dumps({"name": "add", "arguments": "[" * 100_000}),
    ],
)
def test_no_call_that_a_model_can_write_raises(text: str):
    [call] = TaggedCalls().read(f"<tool_call>{text}</tool_call>").calls
    assert isinstance(call, Malformed) and "not valid JSON" in call.reason


def test_samples_of_a_prompt_share_its_opening_and_one_that_differs_fails():
    openings = iter(["Board A.", "Board A.", "Board B."])
    log: list[str] = []
    engine = Engine(["Yes."])
    group = _play(engine, Made(lambda: Scripted(log, [Outcome("", 1.0, True)], next(openings))), samples=3, room=50)

    assert group.prompt.messages[-1].content == "Add.Board A."
    assert TOKENIZER.decode(group.prompt.token_ids).endswith("Add.Board A.<|im_end|>\n<|im_start|>assistant\n")
    failures = [c.episode.failure for c in group.completions if c.episode]
    assert failures[:2] == ["", ""] and "another text" in failures[2]
    grown = len(group.prompt.token_ids) - len(_request().prompt.token_ids)
    assert engine.asked[0][2] == 50 - grown, "prompt and response together stay as long as they were planned"
    seeds = {line.split()[-1] for line in log if line.startswith("reset")}
    assert len(seeds) == 1


def test_calls_are_read_one_by_one():
    reader = TaggedCalls()
    assert reader.read("Just words.") == Reply("Just words.", ())
    read = reader.read(f"A {CALL} b <tool_call>{{oops</tool_call>")
    assert read.words == "A  b" and read.calls[0] == ToolCall("add", {"n": 2}) and isinstance(read.calls[1], Malformed)
    text = json.dumps({"name": "add", "arguments": '{"n": 1}'})
    assert reader.read(f"<tool_call>{text}").calls == (ToolCall("add", {"n": 1}),)
    assert isinstance(reader.read('<tool_call>{"name": "add", "arguments": [1]}</tool_call>').calls[0], Malformed)


def test_a_group_that_is_cancelled_while_it_begins_closes_what_has_begun():
    """A server counts its sessions, and groups that nobody waits for any more are cancelled."""
    log: list[str] = []
    hung = asyncio.Event()

    class Hanging(Scripted):
        async def reset(self, row: Mapping[str, Any], seed: int) -> str:
            await super().reset(row, seed)
            return await hung.wait() and ""

    made = iter([Scripted(log, []), Hanging(log, [])])

    async def cancelled() -> None:
        episodes = Episodes(Made(lambda: next(made)), TurnWriter(TOKENIZER, TOOLS), TaggedCalls(), EpisodeLimits(4, 0))
        group = asyncio.ensure_future(episodes.group(_request(2), Engine([])))
        for _ in range(20):  # turns of the loop, in which both begin
            await asyncio.sleep(0)
        assert len(log) == 2
        group.cancel()
        with pytest.raises(asyncio.CancelledError):
            await group
        await asyncio.sleep(0)

    asyncio.run(cancelled())
    assert log[2:] == ["close", "close"]
