"""Rewards from a server over HTTP: batches of answers out, one number each back.

openrlhf  POST {"query": [prompt and answer], "prompts": [...], "labels": [...]} -> {"rewards": [...]}
classify  POST {"input": [prompt and answer], "activation": false}              -> {"data": [{"probs": [score]}]}
slime     POST {"prompt": messages or text, "response": text, "label": ...}     -> a number, one answer a request
raylign   POST {"protocol": "raylign/1", "samples": [{...}]} -> {"scores": [...], "errors": [...]}  (ours)
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import aiohttp
from raylign.conf.schema import RemoteProtocol
from raylign.reward.http_json import Endpoint, EndpointError, open_session, post_json
from raylign.reward.samples import NotScored, Sample, Score, as_score

PROTOCOL = "raylign/1"


@dataclass(frozen=True, slots=True)
class Wire:
    """One protocol: the body of a request, and the scores of its reply (EndpointError: it has none)."""

    body: Callable[[Sequence[Sample]], object]
    scores: Callable[[object, int], list[Score]]
    most: int | None = None  # samples a request; None: as many as the settings say


@dataclass(frozen=True, slots=True)
class RemoteScorer:
    """A SampleScorer that asks a server."""

    endpoint: Endpoint
    protocol: RemoteProtocol
    batch_size: int
    max_concurrent: int
    timeout_s: float  # of one call of `score`, tries and pauses included

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One a sample, in order. A request that fails fails its own samples by name."""
        return asyncio.run(self._score(samples))

    async def _score(self, samples: Sequence[Sample]) -> list[Score]:
        wire = WIRES[self.protocol]
        size = min(self.batch_size, wire.most or self.batch_size)
        until = asyncio.get_running_loop().time() + self.timeout_s
        places = asyncio.Semaphore(self.max_concurrent)
        async with open_session(self.max_concurrent) as session:

            async def ask(batch: Sequence[Sample]) -> list[Score]:
                async with places:
                    return await self._ask(session, wire, batch, until)

            parts = await asyncio.gather(*(ask(samples[i : i + size]) for i in range(0, len(samples), size)))
        return [score for part in parts for score in part]

    async def _ask(
        self, session: aiohttp.ClientSession, wire: Wire, batch: Sequence[Sample], until: float
    ) -> list[Score]:
        try:
            reply = await post_json(session, self.endpoint, wire.body(batch), until=until)
            return wire.scores(reply, len(batch))
        except EndpointError as error:
            return [NotScored(str(error), always=True)] * len(batch)


def _openrlhf_body(samples: Sequence[Sample]) -> object:
    return {
        "query": [s.templated_query for s in samples],
        "prompts": [s.templated_prompt for s in samples],
        "labels": [s.ground_truth for s in samples],
    }


def _openrlhf_scores(reply: object, count: int) -> list[Score]:
    hint = "; if the server takes one answer a request, set batch_size: 1"
    return [_number(value) for value in _list_of(reply, "rewards", count, hint)]


def _classify_body(samples: Sequence[Sample]) -> object:
    """Both names of the switch, vLLM's of today and verl's: a sigmoid would squeeze the scores into 0 to 1."""
    return {"input": [s.templated_query for s in samples], "activation": False, "use_activation": False}


def _classify_scores(reply: object, count: int) -> list[Score]:
    """The last probability of each, as verl takes it. Raises EndpointError for a classifier of several labels."""
    rows = sorted(_list_of(reply, "data", count, ""), key=_place)
    found = []
    for row in rows:
        probs = row.get("probs") if isinstance(row, Mapping) else None
        if not isinstance(probs, list) or not probs:
            raise EndpointError("an entry of its list 'data' has no 'probs'")
        if len(probs) > 1:
            raise EndpointError(f"it gives {len(probs)} probabilities an answer; a reward model has one label")
        found.append(_number(probs[0]))
    return found


def _place(row: object) -> int:
    """Where an answer belongs, as the server numbers them; equal where it does not."""
    place = row.get("index") if isinstance(row, Mapping) else None
    return place if isinstance(place, int) else 0


def _slime_body(samples: Sequence[Sample]) -> object:
    [sample] = samples
    turns = [{"role": role, "content": content} for role, content in sample.messages]
    return {"prompt": turns or sample.prompt, "response": sample.completion, "label": sample.ground_truth}


def _slime_scores(reply: object, count: int) -> list[Score]:
    return [_number(reply)]


def _raylign_body(samples: Sequence[Sample]) -> object:
    return {
        "protocol": PROTOCOL,
        "samples": [
            {
                "messages": [{"role": role, "content": content} for role, content in s.messages],
                "prompt": s.prompt,
                "answer": s.completion,
                "finished": s.finished,
                "ground_truth": s.ground_truth,
                "data_source": s.data_source,
                "columns": dict(s.columns),
            }
            for s in samples
        ],
    }


def _raylign_scores(reply: object, count: int) -> list[Score]:
    values = _list_of(reply, "scores", count, "")
    listed = reply.get("errors") if isinstance(reply, Mapping) else None
    errors = listed if isinstance(listed, list) and len(listed) == count else [None] * count
    return [
        NotScored(f"the server says: {str(error)[:300]}") if value is None and error else _number(value)
        for value, error in zip(values, errors, strict=True)
    ]


WIRES: Mapping[RemoteProtocol, Wire] = {
    RemoteProtocol.openrlhf: Wire(_openrlhf_body, _openrlhf_scores),
    RemoteProtocol.classify: Wire(_classify_body, _classify_scores),
    RemoteProtocol.slime: Wire(_slime_body, _slime_scores, most=1),
    RemoteProtocol.raylign: Wire(_raylign_body, _raylign_scores),
}


def _list_of(reply: object, name: str, count: int, hint: str) -> list[object]:
    """Raises EndpointError unless there are `count` values: nobody could tell whose a shorter list's are."""
    values = reply.get(name) if isinstance(reply, Mapping) else None
    if not isinstance(values, list):
        has = ", ".join(map(repr, list(reply)[:5])) if isinstance(reply, Mapping) else type(reply).__name__
        raise EndpointError(f"its answer has no list {name!r} (it has {has})")
    if len(values) != count:
        raise EndpointError(f"it gave {len(values)} values for {count} answers{hint}")
    return values


def _number(value: object) -> Score:
    """None is no score here: a server that cannot judge says so."""
    if value is None or isinstance(value, bool):
        return NotScored(f"it gave {value}")
    return as_score(value)
