"""Reward functions and servers that cannot work: one sentence with key, value and remedy, before anything starts."""

from __future__ import annotations

import json
import re
import socketserver
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import date
from pathlib import Path

import pytest
from raylign.app.cli import app, run_command
from raylign.app.configuration import compose
from raylign.app.launch.reward_trial import TOO_SLOW, try_rewards
from raylign.app.launch.rows import read_online
from raylign.reward.http_json import NO_ANSWER

from tests.unit.reward.json_server import Asked, Reply, serving

Refused = Callable[..., str]
SECRET = "very-secret-value-of-mine"
MINE = """
import os, time
def few(prompts, completions, **rest): return [1.0]
def words(prompts, completions, **rest): return ["good"] * len(prompts)
def hangs(prompts, completions, **rest): time.sleep(600)
def forgets(prompts, completions, **rest): rewards = [1.0] * len(prompts)
def one(queries, prompts, labels): return 1.0
def wrong_key(queries, prompts, labels): return {"reward": [1.0] * len(prompts)}
def dies(prompts, completions, **rest): os._exit(3)
def odd(a, b): return 1
def nothing(prompts, completions, **rest): return [None] * len(prompts)
def raises(prompts, completions, **rest):
    print("asking with", os.environ["MY_TOKEN"])
    raise ValueError("denied to " + os.environ["MY_TOKEN"])
"""


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("MY_TOKEN", SECRET)
    Path("mine.py").write_text(MINE)
    Path("missing.py").write_text("import nothing_like_this\n")
    Path("leaks.py").write_text("import os\nraise ValueError('denied to ' + os.environ['MY_TOKEN'])\n")
    Path("rows.jsonl").write_text("".join(json.dumps({"prompt": f"Why {i}?"}) + "\n" for i in range(4)))
    Path("judge.md").write_text("Judge {{answer}}.\n")
    return tmp_path


@pytest.fixture
def refused(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> Refused:
    """What `raylign train`, or another command, says with one more setting, when it refuses."""

    def call(setting: str, command: str = "train") -> str:
        given = [
            f"policy.model={tiny_model_dir}",
            "data.train=rows.jsonl",
            "tracking.wandb=disabled",
            "name=r",
            setting,
        ]
        code = run_command(lambda: app([command, "+experiment=grpo_tiny_cpu", *given]))
        told = capsys.readouterr().err
        assert code == 2 and "Traceback" not in told and SECRET not in told, told
        assert "ray" not in sys.modules or not sys.modules["ray"].is_initialized()
        return told

    return call


@pytest.mark.slow
@pytest.mark.parametrize(
    ("function", "sentence"),
    [
        (
            "missing.py:f",
            "missing cannot be imported: ModuleNotFoundError: No module named 'nothing_like_this'; correct",
        ),
        ("leaks.py:f", "leaks cannot be imported: ValueError: denied to ***; correct it, or install what it needs."),
        ("gone.py:f", "there is no file gone.py (seen from "),
        ("mine.py", "it names no function; write FILE.py:NAME or module:NAME."),
        ("mine.py:fews", "mine has no function 'fews'; it has few, "),
        (
            "mine.py:odd",
            "it takes (a, b), which is not a known signature of a reward function (openrlhf: queries, prom",
        ),
        ("mine.py:forgets", "it gave None, not a list of 2 numbers; a reward function returns one number for each"),
        ("mine.py:one", "it gave float, not a list of 2 numbers; a reward function returns one number for each answ"),
        ("mine.py:wrong_key", "it gave None, not a list of 2 numbers; a reward function returns one number for each"),
        ("mine.py:few", "it gave 1 values for 2 answers; a reward function returns one number for each answer, within"),
        (
            "mine.py:words",
            "it gave str, not a number; a reward function returns one number for each answer, within time",
        ),
        ("mine.py:hangs, timeout_s: 1", "it did not answer within 1 s; a reward function returns one number for each"),
        (
            "mine.py:dies",
            "its process ended with code 3; a reward function returns one number for each answer, within ",
        ),
    ],
)
def test_a_function_that_cannot_work_is_refused_with_its_key(function: str, sentence: str, refused: Refused) -> None:
    path = function.partition(",")[0]
    for command in ("plan", "train"):
        (line,) = refused(f"reward.functions=[{{path: {function}}}]", command).splitlines()[-1:]
        assert line.startswith(f"reward.functions[0].path={path}: {sentence}"), line


@pytest.mark.slow
@pytest.mark.parametrize(
    ("reply", "sentence"),
    [
        (
            Reply({"rewards": [1.0]}),
            "it gave 1 values for 2 answers; if the server takes one answer a request, set bat",
        ),
        (
            Reply("", 302, {"Location": "http://elsewhere.test/x"}),
            "it redirects (302) to http://elsewhere.test/x, which i",
        ),
        (
            Reply("", 401),
            "it requires a token; name it in token_env (401); see whether the address and protocol=openrlhf ",
        ),
        (Reply("<html>"), "its answer is not JSON: '<html>'; see whether the address and protocol=openrlhf are right."),
        (
            Reply({"scores": [1, 2]}),
            "its answer has no list 'rewards' (it has 'scores'); see whether the address and p",
        ),
    ],
)
def test_a_server_that_answers_wrongly_is_refused_with_its_key(reply: Reply, sentence: str, refused: Refused) -> None:
    with serving(lambda body, number: reply) as asked:
        (line,) = refused(f"reward.remote=[{{url: '{asked.url}'}}]").splitlines()[-1:]
    assert line.startswith(f"reward.remote[0].url={asked.url}: {sentence}"), line
    assert len(asked.bodies) == 1


@pytest.mark.slow
@pytest.mark.parametrize(
    ("length", "sentence"),
    [(100, "its answer broke off before its end"), (10, "its answer is not HTTP (Bad status line")],
)
def test_a_server_that_lies_about_the_length_of_its_answer_is_refused(
    length: int, sentence: str, refused: Refused
) -> None:
    with lying(length) as url:
        told = refused(f"reward.remote=[{{url: '{url}', timeout_s: 1}}]")
    assert f"reward.remote[0].url={url}: {sentence}" in told, told
    assert "see whether the address and protocol=openrlhf are right." in told


def test_plan_sends_no_prompt_to_a_server(tiny_model_dir: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with serving(lambda body, number: Reply({"rewards": [1.0]})) as asked:
        given = [f"policy.model={tiny_model_dir}", "data.train=rows.jsonl", f"reward.remote=[{{url: '{asked.url}'}}]"]
        assert run_command(lambda: app(["plan", "+experiment=grpo_tiny_cpu", *given])) == 0
    assert not asked.bodies and re.search(rf"{asked.url} +openrlhf +1 +yes", capsys.readouterr().out)


@contextmanager
def lying(length: int) -> Iterator[str]:
    """A server whose answers, of 23 bytes, are said to have `length`."""

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline().strip():
                """The request's head."""
            with suppress(OSError):  # who asked may have gone
                self.wfile.write(b'HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n{"rewards": [1.0, 2.0]}' % length)

    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Handler) as server:
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01}, daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_address[1]}/get_reward"
        server.shutdown()
        thread.join(10)


@pytest.mark.slow
def test_a_server_that_is_slow_or_not_there_is_refused_with_its_key(refused: Refused) -> None:
    with slow() as asked:
        setting = f"reward.remote=[{{url: '{asked.url}', request_timeout_s: 0.3, timeout_s: 0.5}}]"
        told = refused(setting)
    assert f"reward.remote[0].url={asked.url}: {NO_ANSWER} 0." in told and told.endswith(f"; {TOO_SLOW}.\n"), told
    told = refused(f"reward.remote=[{{url: '{asked.url}'}}]")
    assert f"reward.remote[0].url={asked.url}: it cannot be reached (Connection refused); start it" in told


def test_a_judge_that_is_no_judge_is_refused_with_its_key(refused: Refused) -> None:
    with serving(lambda body, number: Reply({"detail": "no such model"}, 404)) as asked:
        told = refused(f"reward.judges=[{{url: '{asked.url}', model: m, rubric: judge.md}}]")
    assert f"reward.judges[0].url={asked.url}" in told and "it answered 404" in told, told
    assert "see whether url, model and token_env are right." in told


def slow() -> AbstractContextManager[Asked]:
    """A server that takes a second."""

    def answer(body: object, number: int) -> Reply:
        time.sleep(1.0)
        return Reply({"rewards": [1.0, 1.0]})

    return serving(answer)


def test_what_fails_on_a_made_up_answer_only_is_a_warning(tiny_model_dir: Path) -> None:
    """A function may raise on an answer that no policy would give."""
    given = ["+experiment=grpo_tiny_cpu", f"policy.model={tiny_model_dir}", "data.train=rows.jsonl"]
    functions = "reward.functions=[{path: mine.py:raises}, {path: mine.py:nothing, weight: 0}]"
    config = compose([*given, functions]).config
    rows = read_online(config, date(2026, 1, 1))
    (warning,) = try_rewards(config, rows.train.prompts, rows.tokenizer)
    assert warning.startswith(
        "warning: reward.functions[0].path=mine.py:raises: no score for 2 made-up answers: it raised"
    )
    assert SECRET not in warning and "ValueError: denied to ***" in warning
    assert not try_rewards(compose([*given, "reward.rules=[{rule: finished}]"]).config, [], rows.tokenizer)
