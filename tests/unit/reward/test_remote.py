"""Reward servers: what each protocol sends, and servers that are down, slow, wrong, elsewhere or closed to us."""

from __future__ import annotations

import socket
import threading
from dataclasses import replace

import pytest
from raylign.app.launch.remotes import remote_problems, unreachable
from raylign.conf.schema import RemoteProtocol, RemoteRewardConfig, RewardConfig
from raylign.reward.http_json import MAX_REPLY_BYTES, Endpoint, EndpointError
from raylign.reward.remote import RemoteScorer
from raylign.reward.samples import NotScored, Sample

from tests.unit.reward.json_server import Reply, serving

SAMPLES = [
    Sample(
        f"{i}+1?", str(i + 1), (("user", f"{i}+1?"),), (5,), "sums", str(i + 1), {"level": i},
        templated_prompt=f"<u>{i}+1?<a>", templated_query=f"<u>{i}+1?<a>{i + 1}<end>",
    )
    for i in range(5)
]  # fmt: skip


def scorer(url: str, protocol: RemoteProtocol = RemoteProtocol.openrlhf, **more: object) -> RemoteScorer:
    endpoint = Endpoint(url, "MY_TOKEN", str(more.pop("token", "")), float(str(more.pop("request_timeout_s", 5.0))))
    given = RemoteScorer(endpoint, protocol, batch_size=2, max_concurrent=3, timeout_s=5.0)
    return replace(given, **more)  # type: ignore[arg-type]


def reasons(found: list[object]) -> set[str]:
    assert all(isinstance(one, NotScored) for one in found), found
    return {one.reason for one in found if isinstance(one, NotScored)}


def test_openrlhfs_protocol_sends_what_openrlhf_sends_and_keeps_the_order() -> None:
    with serving(lambda body, _: Reply({"rewards": [float(q[3]) for q in body["query"]], "extra_logs": {}})) as asked:
        assert scorer(asked.url, token="t0ken").score(SAMPLES) == [0.0, 1.0, 2.0, 3.0, 4.0]
    assert sorted(asked.bodies, key=str) == [
        {
            "query": [s.templated_query for s in part],
            "prompts": [s.templated_prompt for s in part],
            "labels": [s.ground_truth for s in part],
        }
        for part in (SAMPLES[:2], SAMPLES[2:4], SAMPLES[4:])
    ]
    assert set(asked.tokens) == {"Bearer t0ken"}


def test_classify_asks_for_the_raw_score_and_reads_it_by_its_index() -> None:
    def answer(body: object, _: int) -> Reply:
        rows = [{"index": i, "probs": [float(q[3]) - 2]} for i, q in enumerate(body["input"])]  # type: ignore[index]
        return Reply({"data": rows[::-1]})

    with serving(answer) as asked:
        assert scorer(asked.url, RemoteProtocol.classify).score(SAMPLES) == [-2.0, -1.0, 0.0, 1.0, 2.0]
    assert {body["activation"] for body in asked.bodies} == {body["use_activation"] for body in asked.bodies} == {False}


@pytest.mark.parametrize(
    ("reply", "told"),
    [
        ({"data": [{"index": 0, "probs": [0.1, 0.9]}]}, "2 probabilities an answer; a reward model has one label"),
        ({"data": [{"index": 0}]}, "has no 'probs'"),
        ({"data": []}, "0 values for 1 answers"),
        ({"data": [{"probs": ["high"]}]}, "it gave str, not a number"),
    ],
)
def test_a_classifier_that_is_no_reward_model_fails_by_name(reply: object, told: str) -> None:
    with serving(lambda *_: Reply(reply)) as asked:
        assert told in reasons(scorer(asked.url, RemoteProtocol.classify).score(SAMPLES[:1])).pop()


def test_slimes_protocol_is_one_answer_a_request_and_the_body_is_the_reward() -> None:
    with serving(lambda body, _: Reply(float(body["response"]))) as asked:
        assert scorer(asked.url, RemoteProtocol.slime).score(SAMPLES) == [1.0, 2.0, 3.0, 4.0, 5.0]
    assert len(asked.bodies) == 5 and asked.tokens[0] is None
    assert {"prompt": [{"role": "user", "content": "0+1?"}], "response": "1", "label": "1"} in asked.bodies


def test_our_protocol_names_the_reason_of_each_failure() -> None:
    def answer(body: object, _: int) -> Reply:
        levels = [sample["columns"]["level"] for sample in body["samples"]]  # type: ignore[index]
        return Reply(
            {"scores": [None if n == 1 else n for n in levels], "errors": ["no" if n == 1 else None for n in levels]}
        )

    with serving(answer) as asked:
        found = scorer(asked.url, RemoteProtocol.raylign).score(SAMPLES)
    assert found == [0.0, NotScored("the server says: no"), 2.0, 3.0, 4.0]


@pytest.mark.parametrize(
    ("values", "said"),
    [("[NaN, 1.0]", "it gave nan"), ("[null, 1.0]", "it gave None"), ("[true, 1.0]", "it gave True"),
     ('["0.5", 1.0]', "it gave str, not a number"), ("[[0.5], 1.0]", "it gave list, not a number")],
)  # fmt: skip
def test_what_is_no_number_is_a_named_failure_of_its_row(values: str, said: str) -> None:
    with serving(lambda *_: Reply(f'{{"rewards": {values}}}')) as asked:
        assert scorer(asked.url).score(SAMPLES[:2]) == [NotScored(said), 1.0]


@pytest.mark.parametrize(
    ("reply", "said"),
    [
        (Reply({"rewards": [1.0]}), "gave 1 values for 2 answers; if the server takes one answer a request, set"),
        (Reply({"rewards": [1.0] * 3}), "it gave 3 values for 2 answers"),
        (Reply({"reward": 1.0}), "its answer has no list 'rewards' (it has 'reward')"),
        (Reply("<html>"), "its answer is not JSON: '<html>'"),
        (Reply("[" * 100_000), "its answer is not JSON"),
        (Reply("x" * (MAX_REPLY_BYTES + 1)), "its answer is longer than 8 MiB"),
        (Reply({}, 401), "refuses the token of MY_TOKEN (401)"),
        (Reply({}, 404), "it answered 404"),
        (Reply("no tokens-of-mine here", 400), "it answered 400: 'no *** here'"),
        (Reply("", 302, {"Location": "http://elsewhere.example/x?token=abcdefgh"}),
         "redirects (302) to http://elsewhere.example/x, which is not followed"),
    ],
)  # fmt: skip
def test_a_wrong_answer_fails_its_batch_at_once(reply: Reply, said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_TOKEN", "tokens-of-mine")
    with serving(lambda *_: reply) as asked:
        [told] = reasons(scorer(asked.url, token="tokens-of-mine").score(SAMPLES[:2]))
    assert said in told and len(asked.bodies) == 1


def test_without_a_token_a_server_that_wants_one_says_where_to_name_it() -> None:
    with serving(lambda *_: Reply({}, 401)) as asked:
        assert "requires a token; name it in token_env (401)" in reasons(scorer(asked.url).score(SAMPLES[:1])).pop()


@pytest.mark.parametrize("status", [429, 503])
def test_what_passes_is_asked_again(status: int) -> None:
    with serving(lambda _, n: Reply({"rewards": [7.0]}) if n == 2 else Reply("busy", status)) as asked:
        assert scorer(asked.url).score(SAMPLES[:1]) == [7.0]
    assert len(asked.bodies) == 3


def test_a_batch_that_fails_leaves_the_others_alone() -> None:
    with serving(
        lambda body, _: Reply({"rewards": [1.0] * (1 if body["labels"][0] == "3" else len(body["labels"]))})
    ) as a:
        found = scorer(a.url).score(SAMPLES)
    assert [isinstance(one, NotScored) for one in found] == [False, False, True, True, False]


def test_a_server_that_is_down_fails_by_name_within_the_deadline() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}/get_reward"  # bound, and nobody listens
        [told] = reasons(scorer(url, timeout_s=0.7).score(SAMPLES[:3]))
        assert unreachable([url]) == ["Connection refused"]
    assert told.startswith(f"{url}: no connection (") and "tries)" in told


def test_a_server_that_does_not_answer_fails_by_name_within_the_deadline() -> None:
    done = threading.Event()

    def late(*_: object) -> Reply:
        done.wait(20)
        return Reply({"rewards": [1.0]})

    with serving(late) as asked:
        assert unreachable([asked.url]) == [""]
        [told] = reasons(scorer(asked.url, timeout_s=1.0, request_timeout_s=0.2).score(SAMPLES[:1]))
        done.set()
    assert "no answer within 0.2 s" in told and len(asked.bodies) > 1


def test_a_token_that_is_not_there_is_said_where_the_server_would_be_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MY_TOKEN", raising=False)
    with pytest.raises(EndpointError, match="the environment variable MY_TOKEN is not set on this machine"):
        Endpoint.from_environ("http://127.0.0.1:1/x", "MY_TOKEN", 1.0)
    monkeypatch.setenv("MY_TOKEN", "s3cret-of-mine")
    assert "s3cret" not in repr(Endpoint.from_environ("http://127.0.0.1:1/x", "MY_TOKEN", 1.0))


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"url": "127.0.0.1:5000/get_reward"}, "it is not an address; write it as http://HOST:PORT/PATH"),
        ({"url": "http://host:none/"}, "it is not an address"),
        ({"url": "https://me:pass@host/x"}, "url=https://host/x: it holds a user or password"),
        ({"url": "https://host/x?api_key=abc"}, "its query holds a secret"),
        ({"url": "https://host/x", "token_env": "sk-abcdef"}, "give the name of an environment variable in capitals"),
        ({"url": "https://host/x", "token_env": "NOT_SET_HERE"}, "this variable is not set; export it"),
        ({"url": "http://host/x", "token_env": "PATH"}, "the token would travel unencrypted; use https"),
        ({"url": "http://127.evil.example/x", "token_env": "PATH"}, "the token would travel unencrypted; use https"),
    ],
)
def test_an_address_that_cannot_be_asked_safely_is_refused(given: dict[str, str], said: str) -> None:
    [told] = remote_problems(RewardConfig(remote=[RemoteRewardConfig(**given)]))
    assert said in told and "pass" not in told.replace("password", "") and "sk-abcdef" not in told


@pytest.mark.parametrize("given", [{"url": "http://[::1]:8/x"}, {"url": "http://h/x", "allow_http_token": True}])
def test_an_address_that_can_be_asked_safely_is_not(given: dict[str, object]) -> None:
    assert remote_problems(RewardConfig(remote=[RemoteRewardConfig(**given, token_env="PATH")])) == []  # type: ignore[arg-type]
