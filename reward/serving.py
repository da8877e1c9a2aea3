"""A reward model behind HTTP: OpenRLHF's `/get_reward`, vLLM's `/classify`, and `/score` of our own protocol.

Requests that wait are scored together. Bodies, batches and what waits are bounded; without the right token nothing is
read. Errors are `{"error": "one sentence"}`.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import logging
import math
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aiohttp import web
from raylign.data.types import Message
from raylign.reward.interfaces import RewardRuleError
from raylign.reward.serving_batch import Batcher, Busy, Scoring
from raylign.reward.text_scorer import Scorable

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class ServeSettings:
    """What a server allows."""

    model: str  # its name in replies
    token: str  # "": none is required
    max_batch: int = 256
    max_body_bytes: int = 16 << 20
    timeout_s: float = 300.0


def reward_app(scorer: Scoring, settings: ServeSettings) -> web.Application:
    """The server's routes."""
    routes = _Routes(scorer, settings, Batcher(scorer, settings.max_batch))
    app = web.Application(client_max_size=settings.max_body_bytes, middlewares=[_guard(settings)])
    app.add_routes(
        [
            web.get("/health", routes.health),
            web.post("/get_reward", routes.get_reward),
            web.post("/classify", routes.classify),
            web.post("/score", routes.score),
        ]
    )
    app.cleanup_ctx.append(routes.batcher.running)
    return app


class BadRequest(ValueError):
    """What the asker should read."""


Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def _guard(settings: ServeSettings) -> Any:
    """Which requests are served, and how an error is answered."""

    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        """Without the token 401, and each error of a handler as its status with a sentence."""
        refused = _refused(request, settings.token) if request.method == "POST" else None
        if refused is not None:
            return refused
        try:
            return await handler(request)
        except BadRequest as error:
            return _error(422, str(error))
        except web.HTTPRequestEntityTooLarge:
            return _error(413, f"a body may have {settings.max_body_bytes} bytes")
        except web.HTTPException:
            raise
        except Busy:
            return _error(429, "too much is waiting", {"Retry-After": "1"})
        except TimeoutError:
            return _error(503, f"no score within {settings.timeout_s:g} s", {"Retry-After": "5"})
        except Exception:
            logger.exception("a request to %s failed", request.path)
            return _error(500, "scoring failed; the server's log says why")

    return guard


def _refused(request: web.Request, token: str) -> web.Response | None:
    """The token first; then only JSON, which a web page of somebody else's cannot send unasked."""
    given = request.headers.get("Authorization", "").encode("utf-8", errors="replace")
    if token and not hmac.compare_digest(given, f"Bearer {token}".encode()):
        return _error(401, "send the server's token as Authorization: Bearer", {"WWW-Authenticate": "Bearer"})
    if request.content_type != "application/json":
        return _error(415, f"send application/json, not {request.content_type}")
    return None


def _error(status: int, sentence: str, headers: Mapping[str, str] | None = None) -> web.Response:
    return web.json_response({"error": sentence}, status=status, headers=headers)


@dataclass(frozen=True, slots=True)
class _Routes:
    scorer: Scoring
    settings: ServeSettings
    batcher: Batcher

    async def health(self, _: web.Request) -> web.Response:
        return web.json_response({"model": self.settings.model})

    async def get_reward(self, request: web.Request) -> web.Response:
        """`prompts` is optional, as OpenRLHF's own server reads only `query`; labels are not looked at."""
        body = await _object(request)
        queries = self._texts(body, "query")
        prompts = self._texts(body, "prompts") if body.get("prompts") is not None else [""] * len(queries)
        if len(prompts) != len(queries):
            raise BadRequest(f"{len(prompts)} prompts for {len(queries)} queries")
        asked = [self._ready(f"query {i}", q, p) for i, (q, p) in enumerate(zip(queries, prompts, strict=True))]
        rewards = _finite(await self._scores(asked), "query")
        return web.json_response({"rewards": rewards, "scores": rewards, "extra_logs": {}})

    async def classify(self, request: web.Request) -> web.Response:
        """vLLM's classify of a model with one label: its activation is the sigmoid, unless it is turned off."""
        body = await _object(request)
        raw = [body.get(name) for name in ("use_activation", "activation")]
        if body.get("messages") is not None:
            asked = [self._turns(body["messages"])]
        else:
            texts = self._texts({"input": [body["input"]]} if isinstance(body.get("input"), str) else body, "input")
            asked = [self._ready(f"input {i}", text, "") for i, text in enumerate(texts)]
        scores = _finite(await self._scores(asked), "input")
        probs = scores if False in raw else [_sigmoid(score) for score in scores]
        tokens = sum(len(one.token_ids) for one in asked)
        return web.json_response(
            {
                "id": f"classify-{uuid.uuid4().hex}",
                "object": "list",
                "created": int(time.time()),
                "model": self.settings.model,
                "data": [{"index": i, "label": None, "probs": [p], "num_classes": 1} for i, p in enumerate(probs)],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens, "completion_tokens": 0},
            }
        )

    async def score(self, request: web.Request) -> web.Response:
        """Our own protocol (docs/remote-rewards.md): a sample that cannot be scored has its own error."""
        samples = self._bounded((await _object(request)).get("samples"), "samples")
        asked: list[Scorable | str] = [self._conversation(i, sample) for i, sample in enumerate(samples)]
        found = iter(await self._scores([one for one in asked if isinstance(one, Scorable)]))
        scores: list[float | None] = []
        errors: list[str | None] = []
        for one in asked:
            value = next(found) if isinstance(one, Scorable) else math.nan
            good = math.isfinite(value)
            scores.append(value if good else None)
            errors.append(None if good else one if isinstance(one, str) else f"the reward model gave {value}")
        return web.json_response({"scores": scores, "errors": errors})

    def _conversation(self, number: int, sample: object) -> Scorable | str:
        if not isinstance(sample, dict) or not isinstance(sample.get("answer"), str):
            raise BadRequest(f"sample {number}: needs `messages` or `prompt`, and `answer` as text")
        turns = sample.get("messages") or [{"role": "user", "content": sample.get("prompt")}]
        if not isinstance(turns, list) or not all(_is_turn(turn) for turn in turns):
            raise BadRequest(f"sample {number}: a turn has a `role` and a `content`, both text")
        messages = [Message(turn["role"], turn["content"]) for turn in turns]
        try:
            return self.scorer.conversation(messages, sample["answer"], finished=sample.get("finished") is not False)
        except RewardRuleError as error:
            return str(error)

    def _turns(self, messages: object) -> Scorable:
        """A conversation that ends with the answer, as vLLM's classify also takes it."""
        turns = self._bounded(messages, "messages")
        if len(turns) < 2 or not all(_is_turn(turn) for turn in turns) or turns[-1]["role"] != "assistant":
            raise BadRequest("`messages` must be turns of `role` and `content`, the last of them the assistant's")
        before = [Message(turn["role"], turn["content"]) for turn in turns[:-1]]
        try:
            return self.scorer.conversation(before, turns[-1]["content"], finished=True)
        except RewardRuleError as error:
            raise BadRequest(str(error)) from error

    def _ready(self, which: str, text: str, prompt: str) -> Scorable:
        try:
            return self.scorer.rendered(text, prompt)
        except RewardRuleError as error:
            raise BadRequest(f"{which}: {error}") from error

    async def _scores(self, asked: Sequence[Scorable]) -> list[float]:
        async with asyncio.timeout(self.settings.timeout_s):
            return await self.batcher.submit(asked)

    def _texts(self, body: Mapping[str, Any], name: str) -> list[str]:
        values = self._bounded(body.get(name), name)
        if not all(isinstance(value, str) for value in values):
            raise BadRequest(f"`{name}` must be a list of texts")
        return values

    def _bounded(self, values: object, name: str) -> list[Any]:
        if not isinstance(values, list) or not values:
            raise BadRequest(f"`{name}` must be a list that is not empty")
        if len(values) > self.settings.max_batch:
            raise BadRequest(f"`{name}` has {len(values)} entries; a request may have {self.settings.max_batch}")
        return values


async def _object(request: web.Request) -> Mapping[str, Any]:
    try:
        body = json.loads(await request.read())
    except (ValueError, RecursionError) as error:
        raise BadRequest("the body is not JSON") from error
    if not isinstance(body, dict):
        raise BadRequest("the body must be an object")
    return body


def _is_turn(turn: object) -> bool:
    return isinstance(turn, dict) and isinstance(turn.get("role"), str) and isinstance(turn.get("content"), str)


def _finite(scores: Sequence[float], what: str) -> list[float]:
    """Raises BadRequest: a reply without a place for failures must not hold one."""
    for number, score in enumerate(scores):
        if not math.isfinite(score):
            raise BadRequest(f"{what} {number}: the reward model gave {score}")
    return list(scores)


def _sigmoid(score: float) -> float:
    return 1 / (1 + math.exp(-score)) if score >= 0 else math.exp(score) / (1 + math.exp(score))
