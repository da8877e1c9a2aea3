"""The reward server: what it says equals local scoring, and who may ask what, and how much."""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from threading import Event, Thread
from types import SimpleNamespace
from typing import Any

import aiohttp
import pytest
from aiohttp import web
from raylign.conf.schema import Device, Precision, RemoteProtocol, RemoteRewardConfig, RewardConfig
from raylign.data.encoder import Encoder
from raylign.data.sample_model import tiny_model
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import (
    Completion,
    FinishReason,
    Message,
    Prompt,
    Reward,
    RolloutGroup,
    SampleKey,
    SamplingParams,
    VersionSpan,
)
from raylign.reward.http_json import Endpoint
from raylign.reward.remote import RemoteScorer
from raylign.reward.samples import NotScored, Sample
from raylign.reward.scorer import ComposedScorer
from raylign.reward.serving import ServeSettings, reward_app
from raylign.reward.sources import RewardSources
from raylign.reward.text_scorer import Scorable, TextScorer
from raylign.trainer.engine.base import WRAPPER_PREFIX
from raylign.trainer.models.export import export_hf
from raylign.trainer.models.loading import load_scalar_model

TOKEN = "token-of-a-test"
ANSWERS = ("4", "It is four.", "Let me think: 2 and 2", "four\n\nreally")


@pytest.fixture(scope="module")
def policy(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("policy") / "tiny", tie=True)


@pytest.fixture(scope="module")
def folder(policy: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    model = load_scalar_model(policy, precision=Precision.float32, new_head_seed=5)
    state = {name.removeprefix(WRAPPER_PREFIX): p.detach() for name, p in model.named_parameters()}
    path = tmp_path_factory.mktemp("rm") / "rm"
    export_hf(model, state.items(), path, load_tokenizer(str(policy)))
    return path


@contextmanager
def running(app: web.Application) -> Iterator[str]:
    """The app on a real port, in a thread with a loop of its own."""
    loop, started = asyncio.new_event_loop(), SimpleNamespace()
    runner = web.AppRunner(app)

    async def start() -> None:
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        started.port = site._server.sockets[0].getsockname()[1]  # type: ignore[union-attr]

    loop.run_until_complete(start())
    thread = Thread(target=loop.run_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{started.port}"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result(10)
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)


@pytest.fixture(scope="module")
def server(folder: Path) -> Iterator[str]:
    scorer = TextScorer(str(folder), precision=Precision.float32, device=Device.cpu, micro_batch_tokens=2000)
    with running(reward_app(scorer, ServeSettings("rm", TOKEN, max_batch=8, max_body_bytes=50_000))) as url:
        yield url


def rollout(policy: Path) -> RolloutGroup:
    """Answers as an engine would give them: the last one cut by length, the others with their end token."""
    turns = (Message("system", "Be brief."), Message("user", "What is 2+2?"))
    encoder = Encoder(load_tokenizer(str(policy)))
    prompt = encoder.encode_prompt(turns)
    completions = []
    for k, text in enumerate(ANSWERS):
        finished = k < len(ANSWERS) - 1
        ids = encoder.encode_answer(turns, text, finished=finished).token_ids[len(prompt) :]
        reason = FinishReason.STOP if finished else FinishReason.LENGTH
        completions.append(
            Completion(SampleKey(0, "p", k), ids, (0.0,) * len(ids), reason, (VersionSpan(1, 0, len(ids)),), text)
        )
    return RolloutGroup(Prompt("p", turns, prompt), SamplingParams(1.0, 8), tuple(completions))


@pytest.mark.slow
@pytest.mark.parametrize("protocol", [RemoteProtocol.openrlhf, RemoteProtocol.classify, RemoteProtocol.raylign])
def test_a_run_that_asks_the_server_gets_the_scores_of_the_model_itself(
    protocol: RemoteProtocol, server: str, folder: Path, policy: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Our client and our server together equal local scoring of the sampled token ids."""
    monkeypatch.setenv("RM_TOKEN", TOKEN)
    group = rollout(policy)
    local = RewardConfig(model=str(folder), precision=Precision.float32)
    path = {"openrlhf": "get_reward", "classify": "classify", "raylign": "score"}[protocol.value]
    given = RemoteRewardConfig(url=f"{server}/{path}", protocol=protocol, token_env="RM_TOKEN", batch_size=3)
    remote = RewardConfig(remote=[given])
    expected = ComposedScorer(local, Device.cpu).score([group])
    found = ComposedScorer(remote, Device.cpu, RewardSources(policy_model=str(policy))).score([group])
    numbers = [o.score for o in expected if isinstance(o, Reward)]
    assert [o.score for o in found if isinstance(o, Reward)] == pytest.approx(numbers, abs=1e-5)
    assert len(numbers) == len(ANSWERS) and max(numbers) - min(numbers) > 0.01


def asked(url: str, body: object, **headers: str) -> tuple[int, Any]:
    async def ask() -> tuple[int, Any]:
        async with (
            aiohttp.ClientSession() as session,
            session.post(url, data=json.dumps(body), headers={"Content-Type": "application/json", **headers}) as reply,
        ):
            return reply.status, await reply.json()

    return asyncio.run(ask())


AUTH = {"Authorization": f"Bearer {TOKEN}"}


def test_classify_answers_as_vllm_does(server: str, folder: Path, policy: Path) -> None:
    """A text or several; the sigmoid by default, the raw score when the activation is off."""
    group = rollout(policy)
    tokenizer = load_tokenizer(str(policy))
    [text, other] = [tokenizer.decode([*group.prompt.token_ids, *c.response_ids]) for c in group.completions[:2]]
    expected = ComposedScorer(RewardConfig(model=str(folder), precision=Precision.float32), Device.cpu).score([group])
    first, second = (o.score for o in expected[:2] if isinstance(o, Reward))
    status, reply = asked(f"{server}/classify", {"model": "rm", "input": text, "activation": False}, **AUTH)
    assert status == 200 and reply["data"][0]["probs"][-1] == pytest.approx(first, abs=1e-5)
    assert (reply["object"], reply["model"], reply["data"][0]["num_classes"]) == ("list", "rm", 1)
    assert reply["usage"]["prompt_tokens"] == len(group.prompt.token_ids) + len(group.completions[0].response_ids)
    _, both = asked(f"{server}/classify", {"input": [text, other + "\n"]}, **AUTH)
    turns = [{"role": m.role, "content": m.content} for m in group.prompt.messages]
    turns.append({"role": "assistant", "content": ANSWERS[0]})
    _, chat = asked(f"{server}/classify", {"messages": turns, "use_activation": False}, **AUTH)
    assert chat["data"][0]["probs"] == pytest.approx([first], abs=1e-5)
    probs = [one["probs"][0] for one in both["data"]]
    assert probs == pytest.approx([1 / (1 + math.exp(-first)), 1 / (1 + math.exp(-second))], abs=1e-5)


@pytest.mark.parametrize(
    ("path", "body", "headers", "status", "said"),
    [
        ("get_reward", {"query": ["x"]}, {}, 401, "send the server's token"),
        ("get_reward", {"query": ["x"]}, {"Authorization": "Bearer other"}, 401, "send the server's token"),
        ("get_reward", {"query": ["x"]}, {**AUTH, "Content-Type": "text/plain"}, 415, "send application/json"),
        ("get_reward", [1], AUTH, 422, "the body must be an object"),
        ("get_reward", {"query": "x"}, AUTH, 422, "`query` must be a list that is not empty"),
        ("get_reward", {"query": ["<|im_start|>"] * 9}, AUTH, 422, "has 9 entries; a request may have 8"),
        ("get_reward", {"query": [1]}, AUTH, 422, "must be a list of texts"),
        ("get_reward", {"query": ["<|im_start|>"], "prompts": []}, AUTH, 422, "`prompts` must be a list"),
        ("get_reward", {"query": ["2+2? 4"]}, AUTH, 422, "query 0: the reward model cannot read it: .* chat template"),
        ("get_reward", {"query": ["<|im_start|>" + "word " * 1500]}, AUTH, 422, "more than the reward model's context"),
        ("get_reward", {"query": ["x" * 60_000]}, AUTH, 413, "a body may have 50000 bytes"),
        ("classify", {"input": [[1, 2]]}, AUTH, 422, "`input` must be a list of texts"),
        (
            "classify",
            {"messages": [{"role": "user", "content": "q"}] * 2},
            AUTH,
            422,
            "the last of them the assistant's",
        ),
        ("score", {"samples": [{"answer": 4}]}, AUTH, 422, "sample 0: needs `messages` or `prompt`"),
        ("score", {"samples": [{"messages": [{"role": 1}], "answer": "4"}]}, AUTH, 422, "a turn has a `role`"),
    ],
)
def test_what_cannot_be_answered_is_said_in_a_sentence(
    path: str, body: object, headers: dict[str, str], status: int, said: str, server: str
) -> None:
    found, reply = asked(f"{server}/{path}", body, **headers)
    assert found == status and re.search(said, reply["error"]), (found, reply)


def test_one_sample_that_cannot_be_scored_leaves_the_others(server: str) -> None:
    samples = [
        Sample("q", text, (("user", "q"),), (), "", None, {}) for text in ("good", "word " * 1500, "also good", "")
    ]
    endpoint = Endpoint(f"{server}/score", "T", TOKEN)
    found = RemoteScorer(endpoint, RemoteProtocol.raylign, 8, 2, 20.0).score(samples)
    assert isinstance(found[0], float) and isinstance(found[2], float) and isinstance(found[3], float)
    assert isinstance(found[1], NotScored) and "more than the reward model's context" in found[1].reason


def test_requests_that_come_together_get_their_own_scores(server: str) -> None:
    """Many at once, each a batch of its own."""
    samples = [Sample("q", f"{i}", (("user", "q"),), (), "", None, {}) for i in range(12)]
    endpoint = Endpoint(f"{server}/score", "T", TOKEN)
    alone = RemoteScorer(endpoint, RemoteProtocol.raylign, 1, 12, 30.0).score(samples)
    together = RemoteScorer(endpoint, RemoteProtocol.raylign, 8, 1, 30.0).score(samples)
    assert alone == pytest.approx(together, abs=1e-5) and len(set(alone)) > 6


class Slow:
    """A scorer that waits to be let go, and keeps the sizes of its batches."""

    def __init__(self) -> None:
        self.let_go, self.began, self.sizes = Event(), Event(), list[int]()

    def conversation(self, messages: Sequence[Message], answer: str, *, finished: bool) -> Scorable:
        return Scorable((len(answer),), 1)

    def rendered(self, text: str, prompt: str = "") -> Scorable:
        return Scorable((len(text),), 1)

    def score(self, sequences: Sequence[Scorable]) -> list[float]:
        self.sizes.append(len(sequences))
        self.began.set()
        assert self.let_go.wait(20)
        if any(s.token_ids[0] == 13 for s in sequences):
            raise RuntimeError("out of memory")
        return [float(s.token_ids[0]) for s in sequences]


def test_requests_that_wait_get_their_own_scores_whatever_they_are_scored_with() -> None:
    scorer = Slow()
    with running(reward_app(scorer, ServeSettings("rm", ""))) as url, ThreadPoolExecutor(5) as threads:
        first = threads.submit(asked, f"{url}/get_reward", {"query": ["a"]})
        assert scorer.began.wait(20)
        others = [threads.submit(asked, f"{url}/get_reward", {"query": ["x" * n, "y"]}) for n in (2, 3, 4)]
        scorer.let_go.set()
        assert first.result()[1]["rewards"] == [1.0]
        assert [other.result()[1]["rewards"] for other in others] == [[2.0, 1.0], [3.0, 1.0], [4.0, 1.0]]
    assert scorer.sizes[0] == 1 and sum(scorer.sizes) == 7


def test_what_is_late_too_much_or_fails_is_a_status_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    """503 and 429 may be better next time; 500 says where to look. None of them is a score."""
    scorer = Slow()
    with running(reward_app(scorer, ServeSettings("rm", "", timeout_s=0.2))) as url:
        status, reply = asked(f"{url}/get_reward", {"query": ["a"]})
        assert (status, reply["error"]) == (503, "no score within 0.2 s")
        monkeypatch.setattr("raylign.reward.serving_batch.MAX_WAITING", 1)
        status, reply = asked(f"{url}/get_reward", {"query": ["a", "b"]})
        assert (status, reply["error"]) == (429, "too much is waiting")
        scorer.let_go.set()
        status, reply = asked(f"{url}/get_reward", {"query": ["x" * 13]})
        assert (status, reply["error"]) == (500, "scoring failed; the server's log says why")
        assert asked(f"{url}/get_reward", {"query": ["abc"]})[1]["rewards"] == [3.0]  # and it goes on
