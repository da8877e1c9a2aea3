"""Who judges for `raylign feedback judge` and `raylign feedback corrections`: our own engine, or an endpoint."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from raylign.app.launch.remotes import address_problems, token_problems
from raylign.conf.errors import ConfigError, UserError
from raylign.reward.http_json import Endpoint, EndpointError
from raylign.reward.judge import Judge, JudgeScorer, Rubric, chat_address
from raylign.reward.judge_cache import JudgeCache
from raylign.reward.samples import Sample

_REQUEST_S = 120.0  # of one call to an endpoint, before it is tried again
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


def open_judge(who: Who, rubric: Rubric, kept: Path, command: str, tell: Tell) -> tuple[Judge, Asker, JudgeCache]:
    """The judge, who asks it, and what it has said before, which is kept in the folder `kept`.

    Raises ConfigError and UserError with what is wrong with the endpoint or the model.
    """
    cache = JudgeCache(str(kept), "pairs")
    if who.url:
        problems = [
            *address_problems(command, who.url),
            *token_problems(command, who.url, who.token_env, os.environ, allow_http=False),
        ]
        if problems:
            raise ConfigError(problems)
        try:
            endpoint = Endpoint.from_environ(chat_address(who.url), who.token_env, _REQUEST_S)
        except EndpointError as error:
            raise UserError(f"--token-env: {error}.") from error
        judge = Judge(who.model, rubric, 0.0, 1.0, who.max_new_tokens)
        return judge, JudgeScorer(endpoint, judge, cache, who.max_concurrent, who.deadline_s), cache
    from raylign.app.commands.evaluate import EvalSettings  # heavy, and an endpoint does without
    from raylign.app.commands.judge_engine import engine_asker

    how = EvalSettings(kept / "answers", who.run_root, deadline_s=who.deadline_s)
    judge, asker = engine_asker(who.model, rubric, cache, how, who.max_new_tokens, tell)
    return judge, asker, cache
