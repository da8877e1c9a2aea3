"""A language model as the judge, behind any endpoint of OpenAI's `/chat/completions` form, with a rubric of one's own.

A call that fails is a failed reward. A reply from which no score can be read is one too, of its own kind: asking again
would give the same, and many of them mean that the rubric must be mended.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from urllib.parse import urlsplit, urlunsplit

import aiohttp
from raylign.reward.http_json import Endpoint, EndpointError, open_session, post_json
from raylign.reward.judge_cache import JudgeCache
from raylign.reward.samples import NotScored, Sample, Score

_FIELD = re.compile(r"{{\s*(\w+)\s*}}")
_FIELDS = ("prompt", "answer", "ground_truth")
_NUMBER = r"[-+]?\d+(?:\.\d+)?"
_LAST_LINE = re.compile(rf"[\s*_#>`]*score[\s*_`]*:[\s*_`]*({_NUMBER})(?:\s*/\s*{_NUMBER})?[\s*_`.]*", re.IGNORECASE)
_FENCE = re.compile(r"```(?:json)?\s*(.*?)\s*```", re.DOTALL)
_SHOWN = 120
_CHAT = "/chat/completions"


class RubricError(ValueError):
    """A rubric that cannot be used; the message says why."""


@dataclass(frozen=True, slots=True)
class Rubric:
    """The judge's prompt: text with `{{prompt}}`, `{{answer}}` and `{{ground_truth}}` in it."""

    text: str

    @classmethod
    def of(cls, text: str) -> Rubric:
        """Raises RubricError for an unknown field, and for text without the answer."""
        named = _FIELD.findall(text)
        if unknown := [name for name in named if name not in _FIELDS]:
            known = ", ".join(f"{{{{{name}}}}}" for name in _FIELDS)
            raise RubricError(f"it has {{{{{unknown[0]}}}}}, and known are {known}")
        if "answer" not in named:
            raise RubricError("it has no {{answer}}, so every answer would be judged alike")
        return cls(text)

    @property
    def digest(self) -> str:
        """Of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def wants_truth(self) -> bool:
        """True when a row without a ground truth cannot be judged."""
        return "ground_truth" in _FIELD.findall(self.text)

    def filled(self, sample: Sample) -> str:
        """In one pass: what looks like a field in an answer stays as it is."""
        values = {"prompt": sample.prompt, "answer": sample.completion, "ground_truth": sample.ground_truth or ""}
        return _FIELD.sub(lambda found: values[found[1]], self.text)


@dataclass(frozen=True, slots=True)
class Judge:
    """Which model judges, how, and on what scale."""

    model: str
    rubric: Rubric
    low: float
    high: float
    max_new_tokens: int
    request: Mapping[str, object] = field(default_factory=dict)  # more of the body; None takes a field out

    def key(self, sample: Sample) -> str:
        """Equal for answers that the same judge would get the same request."""
        truth = sample.ground_truth if self.rubric.wants_truth else None
        parts = [self.rubric.digest, self._fields(), sample.prompt, sample.completion, truth]
        return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()

    def body(self, sample: Sample) -> object:
        """The request."""
        return {**self._fields(), "messages": [{"role": "user", "content": self.rubric.filled(sample)}]}

    def _fields(self) -> dict[str, object]:
        """All of a request but the messages."""
        given = {"temperature": 0.0, "max_tokens": self.max_new_tokens, **self.request, "model": self.model}
        return {name: value for name, value in given.items() if value is not None}

    def score(self, reply: str) -> Score:
        """What a reply says: `Score: N` in its last line, or an object with `score`."""
        found = _read(reply)
        if found is None:
            return NotScored(f"no score can be read from the end of its reply: {_end(reply)!r}", unreadable=True)
        if not self.low <= found <= self.high:
            return NotScored(f"it gave {found:g}, which is not within {self.low:g} and {self.high:g}", unreadable=True)
        return found


@dataclass(frozen=True, slots=True)
class JudgeScorer:
    """A SampleScorer: every new answer is judged once."""

    endpoint: Endpoint
    judge: Judge
    cache: JudgeCache
    max_concurrent: int
    timeout_s: float  # of one call of `score`, tries and pauses included

    def score(self, samples: Sequence[Sample]) -> list[Score]:
        """One a sample, in order. A call that fails fails the samples that it was for."""
        failed = self.ask(samples)
        return [self._score_of(self.judge.key(sample), sample, failed) for sample in samples]

    def ask(self, samples: Sequence[Sample]) -> dict[str, str]:
        """Fill the cache with the replies that it lacks; why there is none, by key."""
        wanted: dict[str, Sample] = {}
        for sample in samples:
            key = self.judge.key(sample)
            if self.cache.get(key) is None and not self._lacks_truth(sample):
                wanted.setdefault(key, sample)
        return asyncio.run(self._ask(wanted)) if wanted else {}

    def _score_of(self, key: str, sample: Sample, failed: Mapping[str, str]) -> Score:
        if self._lacks_truth(sample):
            return NotScored("the rubric has {{ground_truth}}, and the row has none")
        reply = self.cache.get(key)
        return NotScored(failed[key], always=True) if reply is None else self.judge.score(reply)

    def _lacks_truth(self, sample: Sample) -> bool:
        return self.judge.rubric.wants_truth and sample.ground_truth is None

    async def _ask(self, wanted: Mapping[str, Sample]) -> dict[str, str]:
        """Fills the cache; returns why, for each key without a reply."""
        until = asyncio.get_running_loop().time() + self.timeout_s
        places = asyncio.Semaphore(self.max_concurrent)
        failed: dict[str, str] = {}
        async with open_session(self.max_concurrent) as session:

            async def one(key: str, sample: Sample) -> None:
                async with places:
                    try:
                        self.cache.put(key, await self._reply(session, sample, until))
                    except EndpointError as error:
                        failed[key] = str(error)

            await asyncio.gather(*(one(key, sample) for key, sample in wanted.items()))
        return failed

    async def _reply(self, session: aiohttp.ClientSession, sample: Sample, until: float) -> str:
        given = await post_json(session, self.endpoint, self.judge.body(sample), until=until)
        try:
            content = given["choices"][0]["message"]["content"]  # type: ignore[index]
        except (KeyError, IndexError, TypeError) as error:
            raise EndpointError("its answer is not of the form of /chat/completions") from error
        return content if isinstance(content, str) else ""


def chat_address(url: str) -> str:
    """Where an endpoint of OpenAI's form takes conversations."""
    parts = urlsplit(url)
    path = parts.path.rstrip("/")
    return urlunsplit(parts._replace(path=path if path.endswith(_CHAT) else path + _CHAT))


def _read(reply: str) -> float | None:
    """A number, or None when the reply ends with none."""
    text = reply.strip()
    fenced = _FENCE.fullmatch(text)
    try:
        parsed = json.loads(fenced[1] if fenced else text)
        value = parsed.get("score") if isinstance(parsed, dict) else None
        if isinstance(value, int | float) and not isinstance(value, bool):
            return float(value)
    except (ValueError, RecursionError, OverflowError):
        pass
    found = _LAST_LINE.fullmatch(text.rpartition("\n")[2])
    return float(found[1]) if found else None


def _end(reply: str) -> str:
    return " ".join(reply.split())[-_SHOWN:]
