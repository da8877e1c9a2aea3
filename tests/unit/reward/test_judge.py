"""A language model as the judge: what it is asked, what is read from its reply, what is kept, and what fails how."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from raylign.app.launch.judges import read_rubrics
from raylign.conf.schema import JudgeRewardConfig, RewardConfig
from raylign.reward.http_json import Endpoint
from raylign.reward.judge import Judge, JudgeScorer, Rubric, RubricError, chat_address
from raylign.reward.judge_cache import JudgeCache
from raylign.reward.samples import NotScored, Sample

from tests.unit.reward.json_server import Reply, serving

RUBRIC = "Rate the answer to {{prompt}}:\n<answer>{{ answer }}</answer>\nEnd with a line `Score: N`, 0 to 10."
SAMPLES = [Sample("2+2?", text, (("user", "2+2?"),), (), "", None, {}) for text in ("4", "{{prompt}} five", "4")]


def said(content: object, status: int = 200) -> Reply:
    return Reply({"choices": [{"message": {"role": "assistant", "content": content}}]}, status)


def scorer(url: str, folder: Path | None = None, *, rubric: str = RUBRIC, timeout_s: float = 5.0) -> JudgeScorer:
    if folder is not None:
        folder.mkdir(exist_ok=True)
    judge = Judge("wise", Rubric.of(rubric), 0.0, 10.0, 64)
    cache = JudgeCache(str(folder / "judged") if folder else "", "judge")
    return JudgeScorer(Endpoint(chat_address(url), "", "", 5.0), judge, cache, 4, timeout_s)


def test_the_rubric_is_filled_once_and_equal_answers_are_asked_about_once() -> None:
    """What looks like a field in an answer stays as the policy wrote it."""
    with serving(lambda body, _: said(f"Fine.\nScore: {len(body['messages'][0]['content']) % 7}")) as asked:
        scores = scorer(asked.url).score(SAMPLES)
    texts = sorted(body["messages"][0]["content"] for body in asked.bodies)
    filled = [
        RUBRIC.replace("{{prompt}}", "2+2?").replace("{{ answer }}", answer) for answer in ("4", "{{prompt}} five")
    ]
    assert texts == sorted(filled)
    assert scores == [float(len(filled[0]) % 7), float(len(filled[1]) % 7), float(len(filled[0]) % 7)]
    first = asked.bodies[0]
    assert (first["model"], first["temperature"], first["max_tokens"]) == ("wise", 0.0, 64)


def test_what_an_endpoint_wants_otherwise_is_said_in_the_settings(tmp_path: Path) -> None:
    """A model that takes no temperature; and another request is another question."""
    other = {"temperature": None, "max_tokens": None, "max_completion_tokens": 9, "reasoning": {"effort": "low"}}
    with serving(lambda *_: said("Score: 3")) as asked:
        plain = scorer(asked.url, tmp_path / "run")
        plain.score(SAMPLES[:1])
        replace(plain, judge=replace(plain.judge, request=other)).score(SAMPLES[:1])
    assert asked.bodies[1].keys() == {"model", "messages", "max_completion_tokens", "reasoning"}


@pytest.mark.parametrize(
    ("reply", "score"),
    [
        ("Score: 7", 7.0),
        ("It is good.\n\n**Score: 7.5/10**\n", 7.5),
        ("Score: 2\nNo, better:\nscore: 0", 0.0),
        ('{"why": "Score: 3", "score": 8}', 8.0),
        ('```json\n{"score": 1}\n```', 1.0),
        ("> Score: -0", 0.0),
    ],
)
def test_scores_are_read_from_the_end(reply: str, score: float) -> None:
    with serving(lambda *_: said(reply)) as asked:
        assert scorer(asked.url).score(SAMPLES[:1]) == [score]


@pytest.mark.parametrize(
    "reply",
    ["", None, "I like it.", "The answer says Score: 10\nwhich is not for it to say.", "Score: 11", "Score: -1",
     "Score: 7 or 8", '{"score": "7"}', '{"score": NaN}', '{"score": true}', "Score: 1e9", '{"scores": 3}'],
)  # fmt: skip
def test_a_reply_without_a_score_is_a_failure_of_its_own_kind(reply: str | None, tmp_path: Path) -> None:
    """And it is kept: the same question would get the same reply."""
    with serving(lambda *_: said(reply)) as asked:
        [found] = scorer(asked.url, tmp_path / "run").score(SAMPLES[:1])
        assert isinstance(found, NotScored) and found.unreadable
        [again] = scorer(asked.url, tmp_path / "run").score(SAMPLES[:1])
    assert again == found and len(asked.bodies) == 1


@pytest.mark.parametrize("reply", [Reply({"error": "no"}, 400), Reply({"choices": []}), Reply([]), Reply("<html>")])
def test_a_failed_call_is_a_failure_and_asked_again_the_next_time(reply: Reply, tmp_path: Path) -> None:
    with serving(lambda _, n: reply if n == 0 else said("Score: 3")) as asked:
        [found] = scorer(asked.url, tmp_path / "run").score(SAMPLES[:1])
        assert isinstance(found, NotScored) and not found.unreadable
        assert scorer(asked.url, tmp_path / "run").score(SAMPLES[:1]) == [3.0]


def test_one_failed_call_leaves_the_others(tmp_path: Path) -> None:
    def answer(body: object, _: int) -> Reply:
        return Reply({}, 400) if "five" in body["messages"][0]["content"] else said("Score: 3")  # type: ignore[index]

    with serving(answer) as asked:
        found = scorer(asked.url).score(SAMPLES)
    assert found[0] == found[2] == 3.0 and isinstance(found[1], NotScored)


def test_what_was_said_is_kept_for_the_same_judge_and_rubric_only(tmp_path: Path) -> None:
    """A file whose last line a dying process left in parts is read up to there."""
    folder = tmp_path / "run"
    with serving(lambda *_: said("Score: 3")) as asked:
        assert scorer(asked.url, folder).score(SAMPLES) == [3.0] * 3
        [file] = (folder / "judged").glob("judge-*.jsonl")
        whole = file.read_text()
        assert "five" not in whole and whole.count("Score: 3") == 2
        file.write_text(whole + '{"key": "ab')
        assert scorer(asked.url, folder).score(SAMPLES) == [3.0] * 3 and len(asked.bodies) == 2
        assert scorer(asked.url, folder, rubric=RUBRIC + "!").score(SAMPLES[:1]) == [3.0] and len(asked.bodies) == 3


def test_where_the_run_folder_is_not_replies_stay_in_memory(tmp_path: Path) -> None:
    cache = JudgeCache(str(tmp_path / "elsewhere" / "judged"), "judge")
    cache.put("k", "Score: 1")
    assert cache.get("k") == "Score: 1" and list(tmp_path.iterdir()) == []


def test_a_row_without_what_the_rubric_asks_for_is_not_judged() -> None:
    with serving(lambda *_: said("Score: 3")) as asked:
        rows = [SAMPLES[0], replace(SAMPLES[0], ground_truth="4")]
        found = scorer(asked.url, rubric="{{answer}} against {{ground_truth}}").score(rows)
    assert isinstance(found[0], NotScored) and "the row has none" in found[0].reason and found[1] == 3.0
    assert [body["messages"][0]["content"] for body in asked.bodies] == ["4 against 4"]


@pytest.mark.parametrize(
    ("text", "problem"),
    [("{{prompt}} only", "it has no {{answer}}"), ("{{answer}} {{question}}", "it has {{question}}")],
)
def test_a_rubric_that_cannot_be_filled_is_refused(text: str, problem: str) -> None:
    with pytest.raises(RubricError) as told:
        Rubric.of(text)
    assert str(told.value).startswith(problem)


def test_every_problem_of_the_settings_is_told(tmp_path: Path) -> None:
    (tmp_path / "bad.md").write_bytes(b"\xff\xfe{{answer}}")
    (tmp_path / "good.md").write_text("{{answer}}")
    judges = [
        JudgeRewardConfig(url="http://h/v1", model="m", rubric=str(tmp_path / name), low=low)
        for name, low in (("gone.md", 0.0), ("bad.md", 0.0), ("good.md", 10.0))
    ]
    judges[2].request = {"stream": True, "api_key": "x"}
    rubrics, problems = read_rubrics(RewardConfig(judges=judges))
    assert len(rubrics) == 1
    assert "No such file or directory" in problems[0] and "it is not UTF-8 text" in problems[1]
    assert problems[2].startswith("reward.judges[2]: low=10 is not below high=10")
    assert "must not set stream" in problems[3] and "it holds a secret" in problems[4] and len(problems) == 5


@pytest.mark.parametrize(
    ("given", "asked"),
    [
        ("http://h/v1", "http://h/v1/chat/completions"),
        ("http://h/v1/", "http://h/v1/chat/completions"),
        ("http://h/v1/chat/completions", "http://h/v1/chat/completions"),
        ("https://h/x?api-version=2", "https://h/x/chat/completions?api-version=2"),
    ],
)
def test_the_address_is_the_endpoints_and_no_more(given: str, asked: str) -> None:
    assert chat_address(given) == asked
