"""Environments that are served: the two protocols, and what becomes of an episode when a server does wrong."""

from __future__ import annotations

import asyncio
import socket
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from openai.types.responses import Response
from raylign.conf.schema import EnvironmentConfig
from raylign.data.turns import TurnWriter
from raylign.data.types import RolloutGroup
from raylign.rollout.environments.address import Address, is_class, served_address
from raylign.rollout.environments.interfaces import (
    Environment,
    EnvironmentFailure,
    EnvironmentLost,
    EnvironmentRefused,
    Environments,
    Outcome,
    ToolCall,
    told_error,
)
from raylign.rollout.environments.nemo_gym import tools_of
from raylign.rollout.environments.openenv import _read
from raylign.rollout.environments.served import environments_at, seen
from raylign.rollout.environments.spec import environment_spec
from raylign.rollout.episodes import EpisodeLimits, Episodes
from raylign.rollout.tool_calls import TaggedCalls

from tests.unit.rollout.environment_servers import NemoGymServer, OpenEnvServer, serving
from tests.unit.rollout.test_episodes import TOKENIZER, Engine, _request

ROW = {"prompt": [{"role": "user", "content": "Count."}], "ground_truth": "3", "level": 2}


def _config(name: str, **more: Any) -> EnvironmentConfig:
    return EnvironmentConfig(name=name, **{"timeout_s": 20.0, **more})


def _environments(config: EnvironmentConfig, sessions: int = 1) -> Environments:
    address = served_address(config.name)
    assert address is not None
    return environments_at(config, address, seen(config, address, sessions=sessions))


def _play(environments: Environments, play: Callable[[Environment], Any]) -> Any:
    async def played() -> Any:
        environment = environments.open()
        try:
            return await play(environment)
        finally:
            await environment.close()
            await environments.stop()

    return asyncio.run(played())


def test_an_address_names_protocol_and_server():
    assert served_address("openenv:ws://host:8000/ws") == Address("openenv", "http://host:8000")
    assert served_address("openenv:https://host/env/") == Address("openenv", "https://host/env")
    assert served_address("nemo_gym:http://host:1") == Address("nemo_gym", "http://host:1")
    assert served_address("openenv:Mine") is None and is_class("openenv:Mine") and not is_class("openenv:http://h")
    for wrong in ("ws://host:8000", "openenv:http://host?to=1"):  # a path after a query reaches nothing
        with pytest.raises(EnvironmentRefused, match="write a server as openenv:URL"):
            environment_spec(_config(wrong))


@pytest.mark.parametrize("mcp", [True, False])
def test_an_openenv_session_is_an_episode(mcp: bool):
    server = OpenEnvServer(mcp=mcp)

    async def play(environment: Environment) -> tuple[str, list[Outcome], float | None]:
        text = await environment.reset(ROW, 7)
        name = "add" if mcp else "step"
        steps = [await environment.step(ToolCall(name, {"n": n})) for n in (1, "one", 2)]
        return text, steps, await environment.final_reward("done")

    with serving(server.app()) as url:
        environments = _environments(_config(f"openenv:{url}"), sessions=4)
        [tool] = environments.tools
        text, steps, final = _play(environments, play)

    assert tool["function"]["name"] == ("add" if mcp else "step")
    assert list(tool["function"]["parameters"]["properties"]) == ["n"], "an action's metadata is no argument"
    assert server.resets == [{"seed": 7, "ground_truth": "3", "level": 2}]
    assert (text, final) == ("\n\nat 0", None)
    assert steps[0] == Outcome("at 1") and steps[2] == Outcome("at 3", 1.0, True)
    assert steps[1] == Outcome(told_error("Invalid message (n: Input should be a valid integer)"))
    assert server.open == 0, "closed sessions leave room"


def test_an_openenv_action_can_be_what_the_model_says():
    with serving(OpenEnvServer(mcp=False).app()) as url:
        config = _config(f"openenv:{url}", arguments={"text": "n", "observation": "text"})
        environments = _environments(config)
        assert environments.tools == ()

        async def play(environment: Environment) -> tuple[Outcome, float | None]:
            await environment.reset(ROW, 7)
            return await environment.step("one"), await environment.final_reward("one")

        outcome, final = _play(environments, play)
        assert outcome.observation.startswith("{'error'") and final == 0.0, "what the steps paid, which is nothing"
        for arguments, said in (
            ({"text": "word"}, "no such field; it has n"),
            ({"words": "n"}, "arguments.words is not read"),
        ):
            with pytest.raises(EnvironmentRefused, match=said):
                _environments(_config(f"openenv:{url}", arguments=arguments))


@pytest.mark.parametrize(
    ("fault", "kind", "said"),
    [
        ("hang", EnvironmentFailure, "step did not answer within 0.3 s"),
        ("close", EnvironmentLost, "was closed"),
        ("cut", EnvironmentLost, "was closed"),
        ("bytes", EnvironmentLost, "was closed"),
        ("garbage", EnvironmentFailure, "none of OpenEnv's protocol: '<html>502"),
        ("version", EnvironmentFailure, "none of OpenEnv's protocol"),
        ("nan", EnvironmentFailure, "gave nan as reward"),
        ("raised", EnvironmentFailure, "EXECUTION_ERROR: it broke"),
        ("gone", EnvironmentLost, "SESSION_ERROR"),
    ],
)
def test_what_an_openenv_server_does_wrong_fails_its_episode_by_name(fault: str, kind: type, said: str):
    server = OpenEnvServer(faults=[fault])

    async def play(environment: Environment) -> None:
        await environment.reset(ROW, 1)
        with pytest.raises(EnvironmentFailure, match=said) as failed:
            await environment.step(ToolCall("add", {"n": 1}))
        assert type(failed.value) is kind

    with serving(server.app()) as url:
        config = _config(f"openenv:{url}")
        form = seen(config, Address("openenv", url), sessions=1)
        config.timeout_s = 0.3 if fault == "hang" else 20.0
        _play(environments_at(config, Address("openenv", url), form), play)


def test_a_broken_session_is_played_again_from_its_start_and_a_wrong_answer_leaves():
    """Through the episodes: a scripted model calls add(3), which ends the episode."""
    call, server = (
        '<tool_call>{"name": "add", "arguments": {"n": 3}}</tool_call>',
        OpenEnvServer(faults=["cut", "garbage"]),
    )
    with serving(server.app()) as url:
        environments = _environments(_config(f"openenv:{url}"))
        request = _request(samples=3)
        request = replace(request, prompt=replace(request.prompt, columns='{"ground_truth": "3"}'))
        episodes = Episodes(environments, TurnWriter(TOKENIZER, environments.tools), TaggedCalls(), EpisodeLimits(4, 0))

        async def play() -> RolloutGroup:
            group = await episodes.group(request, Engine([call]))
            await episodes.stop()
            return group

        played = [answer.episode for answer in asyncio.run(play()).completions if answer.episode]
    failures = sorted(one.failure[:40] for one in played)
    assert failures == ["", "", "the answer to step is none of OpenEnv's "]
    assert [one.rewards[-1][1] for one in played if not one.failure] == [1.0, 1.0]
    assert len(server.resets) == 4 and server.open == 0, "the one whose connection broke began again"


def test_a_slow_openenv_server_is_waited_for_and_a_full_one_until_there_is_room():
    server = OpenEnvServer(faults=["slow"], room=1)

    async def both(environments: Environments) -> list[Outcome]:
        async def one() -> Outcome:
            environment = environments.open()
            await environment.reset(ROW, 1)
            outcome = await environment.step(ToolCall("add", {"n": 3}))
            await environment.close()
            return outcome

        found = await asyncio.gather(one(), one())
        await environments.stop()
        return found

    with serving(server.app()) as url:
        assert asyncio.run(both(_environments(_config(f"openenv:{url}")))) == [Outcome("at 3", 1.0, True)] * 2
    assert server.refused > 0


def test_a_server_that_cannot_be_used_is_refused_before_anything_starts(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ENV_TOKEN", "right-token")
    with socket.create_server(("127.0.0.1", 0)) as listener:
        nobody = f"127.0.0.1:{listener.getsockname()[1]}"
        silent = EnvironmentConfig(name=f"openenv:http://{nobody}", timeout_s=0.3)
        with pytest.raises(EnvironmentRefused, match="did not answer within"):
            _environments(silent)
    for protocol in ("openenv", "nemo_gym"):
        with pytest.raises(EnvironmentRefused, match=r"no connection.*start the server"):
            _environments(_config(f"{protocol}:http://{nobody}"))
    with serving(OpenEnvServer(room=2, token="right-token").app()) as url:
        with pytest.raises(EnvironmentRefused, match=r"403 to a WebSocket.*wants another token"):
            _environments(_config(f"openenv:{url}"))
        config = _config(f"openenv:{url}", token_env="ENV_TOKEN")
        assert _environments(config, sessions=2).tools
        with pytest.raises(EnvironmentRefused, match=r"no room for the 3 samples of a prompt.*max_concurrent_envs"):
            _environments(config, sessions=3)
        with pytest.raises(EnvironmentRefused, match="404"):
            _environments(_config(f"nemo_gym:{url}"))
    with (
        serving(NemoGymServer().app()) as url,
        pytest.raises(EnvironmentRefused, match="404 to a WebSocket"),
    ):
        _environments(_config(f"openenv:{url}"))


def test_a_nemo_gym_session_is_seeded_called_and_verified():
    server = NemoGymServer()

    async def play(environment: Environment) -> tuple[str, list[Outcome], float | None]:
        text = await environment.reset(ROW, 7)
        steps = [await environment.step(ToolCall(n, {"city": "Oslo"})) for n in ("weather", "whether")]
        return text, [*steps, await environment.step("It is sunny.")], await environment.final_reward("It is sunny.")

    with serving(server.app()) as url:
        environments = _environments(_config(f"nemo_gym:{url}"))
        text, steps, reward = _play(environments, play)

    [tool] = environments.tools
    assert tool["function"]["name"] == "weather" and tool["function"]["description"] == "The weather of a city."
    assert tool["function"]["parameters"] == {"type": "object", "properties": {"city": {"type": "string"}}}
    assert (text, reward) == ("", 1.0)
    told = '{"city": "Oslo", "sun": true}'
    assert steps == [Outcome(told), Outcome(told_error("Tool whether not found.")), Outcome("", None, True)]
    assert [what for what, _ in server.bodies] == ["seed", "weather", "verify"]
    assert set(server.cookies) == {"s1"}, "one session"
    verified = server.bodies[-1][1]
    assert verified["ground_truth"] == "3" and verified["responses_create_params"]["input"] == ROW["prompt"]
    response = Response.model_validate(verified["response"])
    assert [item.type for item in response.output] == ["function_call", "function_call_output"] * 2 + ["message"]


@pytest.mark.parametrize(
    ("verdict", "said"),
    [
        ({"reward": 0.0, "_ng_failure_class": "judge_failed"}, r"could not judge \(judge_failed\)"),
        ({"reward": 0.0, "mask_sample": True, "failure_kind": "oom"}, r"could not judge \(mask_sample\) oom"),
        ({"score": 1.0}, "has no reward, but score"),
        ({"reward": "good"}, "gave good as reward"),
        ({"reward": 10**400}, "gave 1000.* as reward"),
    ],
)
def test_a_nemo_gym_server_that_could_not_judge_pays_nothing(verdict: dict, said: str):
    async def play(environment: Environment) -> None:
        await environment.reset(ROW, 1)
        with pytest.raises(EnvironmentFailure, match=said):
            await environment.final_reward("sunny")

    with serving(NemoGymServer(verdict=verdict).app()) as url:
        _play(_environments(_config(f"nemo_gym:{url}")), play)


@pytest.mark.parametrize(("status", "failed"), [(422, False), (500, True), (429, True), (401, True)])
def test_what_a_nemo_gym_tool_refuses_is_told_and_what_breaks_fails(status: int, failed: bool):
    async def play(environment: Environment) -> Outcome:
        await environment.reset(ROW, 1)
        return await environment.step(ToolCall("weather", {}))

    with serving(NemoGymServer(status=status).app()) as url:
        environments = _environments(_config(f"nemo_gym:{url}"))
        if failed:
            with pytest.raises(EnvironmentFailure, match=f"the tool weather answered {status}"):
                _play(environments, play)
        else:
            assert _play(environments, play) == Outcome('{"city": null, "sun": true}')


@pytest.mark.parametrize(
    "post",
    [{"requestBody": 5}, {"requestBody": {"content": {"application/json": ""}}}, 7, None,
     {"requestBody": {"content": {"application/json": {"schema": {"$ref": "#/components/schemas/Bad"}}}}}],
)  # fmt: skip
def test_a_route_without_a_readable_body_is_a_tool_without_arguments(post: object):
    described = {"paths": {"/seed_session": {}, "/verify": {}, "/odd": "post", "/look": {"post": post}},
                 "components": {"schemas": {"Bad": 5}}}  # fmt: skip
    [tool] = tools_of(described)
    assert tool["function"] == {"name": "look", "description": "", "parameters": {"type": "object", "properties": {}}}


def test_an_error_of_another_kind_than_a_text_is_shown_to_the_model():
    told = {"tool_name": "add", "error": {"error_type": {"of": "timeout"}, "message": "no"}}
    assert _read(told, "") == told_error("no")
