"""Who is asked by the `raylign feedback` commands that ask a model: our engine, or an endpoint.

All that these commands have in common is here: the model, what it has said before, how many calls are new, and the
version that its events carry.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from raylign.app.launch.remotes import address_problems, token_problems
from raylign.conf.errors import ConfigError, DataError, UserError
from raylign.records.atomic import write_atomic
from raylign.reward.http_json import Endpoint, EndpointError
from raylign.reward.judge import Judge, JudgeScorer, Rubric, RubricError, chat_address
from raylign.reward.judge_cache import JudgeCache
from raylign.reward.samples import Sample

_REQUEST_S = 120.0  # of one call to an endpoint, before it is tried again
Item = TypeVar("Item")
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Who:
    """A model of ours, or its name at `url`, and how it is asked."""

    model: str
    url: str = ""  # an endpoint of OpenAI's form; "": our own engine
    token_env: str = ""
    max_new_tokens: int = 256
    max_concurrent: int = 8
    deadline_s: float = 7200.0
    run_root: Path = Path("runs")


class Asker(Protocol):
    """Fills the judge's cache."""

    def ask(self, samples: Sequence[Sample]) -> Mapping[str, str]:
        """Why there is no reply, by key."""
        ...


@dataclass(slots=True)
class Asking:
    """One question with its replies: what has been answered is not asked again."""

    judge: Judge
    cache: JudgeCache
    _asker: Asker
    asked: int = 0  # new calls
    why_failed: str = ""  # the last reason

    def reply(self, sample: Sample) -> str | None:
        """None where there is none yet."""
        return self.cache.get(self.judge.key(sample))

    def new_calls(self, samples: Sequence[Sample]) -> int:
        """How many of them would be asked."""
        return len({self.judge.key(sample) for sample in samples if self.reply(sample) is None})

    def ask(self, samples: Sequence[Sample]) -> None:
        """Those that have no reply yet."""
        new = self.new_calls(samples)
        self.asked += new
        if new and (reasons := self._asker.ask(samples)):
            self.why_failed = next(iter(reasons.values()))


class AskedModel(Protocol):
    """A model that answers questions of several kinds."""

    def asking(self, rubric: Rubric, folder: str = "") -> Asking:
        """Of one question, whose replies are kept in a folder of the model's."""
        ...


@contextmanager
def open_model(who: Who, kept: Path, command: str, tell: Tell) -> Iterator[AskedModel]:
    """The model; an engine of ours starts with the first question and serves all. `kept`: the folder for replies.

    Raises ConfigError and UserError with what is wrong with the endpoint or the model.
    """
    if who.url:
        yield _at_endpoint(who, kept, command)
        return
    from raylign.app.commands.judge_engine import engine_model  # heavy, and an endpoint does without

    with engine_model(who, kept, tell) as model:
        yield model


@dataclass(frozen=True, slots=True)
class _EndpointModel:
    who: Who
    kept: Path
    endpoint: Endpoint

    def asking(self, rubric: Rubric, folder: str = "") -> Asking:
        cache = cache_in(self.kept / folder)
        judge = Judge(self.who.model, rubric, 0.0, 1.0, self.who.max_new_tokens)
        scorer = JudgeScorer(self.endpoint, judge, cache, self.who.max_concurrent, self.who.deadline_s)
        return Asking(judge, cache, scorer)


def _at_endpoint(who: Who, kept: Path, command: str) -> _EndpointModel:
    problems = [
        *address_problems(command, who.url),
        *token_problems(command, who.url, who.token_env, os.environ, allow_http=False),
    ]
    if problems:
        raise ConfigError(problems)
    try:
        return _EndpointModel(who, kept, Endpoint.from_environ(chat_address(who.url), who.token_env, _REQUEST_S))
    except EndpointError as error:
        raise UserError(f"--token-env: {error}.") from error


def cache_in(folder: Path) -> JudgeCache:
    """What has been said before."""
    folder.mkdir(parents=True, exist_ok=True)
    return JudgeCache(str(folder), "pairs")


def version_of(who: Who, *askings: Asking, also: Sequence[str] = ()) -> str:
    """Of model, questions and length of a reply (and `also`): what events must share to be of one judge."""
    parts = [askings[0].judge.model, *(asking.judge.rubric.digest for asking in askings), who.max_new_tokens, *also]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:8]


def rubric_of(text: str, named: str) -> Rubric:
    """The question. Raises UserError, naming `named`, when the text cannot be one."""
    try:
        return Rubric.of(text)
    except RubricError as error:
        raise UserError(f"{named}: {error}.") from error


def sample_of(asked: str, shown: str, turns: Sequence[tuple[str, str]] = ()) -> Sample:
    """What is asked about, in the form that judges take."""
    return Sample(asked, shown, tuple(turns), (), "", None, {})


def affordable_parts(
    items: Sequence[Item], calls: Callable[[Item], int], asked: Callable[[], int], *, max_calls: int, at_once: int
) -> Iterator[list[Item]]:
    """`at_once` items at a time, while `max_calls` new calls (0: no bound) are enough for whole items.

    `calls`: the most that an item may take; `asked`: those made so far, parts given before included.
    """
    done = 0
    while done < len(items):
        part = items[done : done + at_once]
        affordable = _affordable(part, calls, max_calls - asked()) if max_calls else list(part)
        if not affordable:
            return
        yield affordable
        done += len(affordable)


def unanswered_lines(what: str, failed: int, why: str, left: int = 0) -> list[str]:
    """For a terminal: the items, as "pairs", that have no reply, and those that --max-calls left for another time."""
    lines = []
    if failed:
        lines.append(f"! {failed:,} {what} have no reply ({why}); the same command asks them again")
    if left:
        lines.append(f"{left:,} {what} are left (--max-calls); the same command goes on")
    return lines


def _affordable(items: Sequence[Item], calls: Callable[[Item], int], room: int) -> list[Item]:
    """From the first on, those that `room` calls are enough for."""
    chosen = []
    for item in items:
        room -= calls(item)
        if room < 0:
            break
        chosen.append(item)
    return chosen


def write_rows(out: Path, rows: Sequence[Mapping[str, object]]) -> None:
    """As JSON lines. Without any there is no file: a build of an empty log could not say why it is empty."""
    if rows:
        write_atomic(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    else:
        out.unlink(missing_ok=True)


def require_some(count: int, out: Path, what: str, remedy: str) -> None:
    """Raises DataError, as a build without a row does, when nothing came out that the next command could use."""
    if not count:
        raise DataError(f"{out}: {what}, so there is nothing to build with; {remedy}.")
