"""The part of `raylign plan` about rewards of one's own: functions, servers, judges, and a foreign reward model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from raylign.app.launch.functions import reward_functions
from raylign.app.launch.remotes import unreachable
from raylign.conf.schema import RewardConfig, RunConfig
from raylign.data.chat_template import read_chat_template
from raylign.data.encoder import Encoder
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import Message
from raylign.reward.http_json import shown
from raylign.reward.text_scorer import read_by
from raylign.reward.tokenizer_match import tokenizer_problems

Table = tuple[str, tuple[str, ...], Sequence[tuple[str, ...]]]


def reward_tables(config: RewardConfig) -> Iterator[Table]:
    """Title, columns and rows of each kind there is. Functions are imported, and servers looked for."""
    if config.functions:
        sources = reward_functions(config)
        rows = [
            (s.name, g.path, s.style.value, f"{g.weight:g}") for s, g in zip(sources, config.functions, strict=True)
        ]
        yield "Reward functions", ("component", "path", "signature", "weight"), rows
    if config.remote:
        there = _there([given.url for given in config.remote])
        servers = [
            (given.name, shown(given.url), given.protocol.value, f"{given.weight:g}", found)
            for given, found in zip(config.remote, there, strict=True)
        ]
        yield "Reward servers", ("component", "address", "protocol", "weight", "there now"), servers
    if config.judges:
        there = _there([given.url for given in config.judges])
        judges = [
            (j.name, j.model, shown(j.url), j.rubric, f"{j.low:g} to {j.high:g}", f"{j.weight:g}", found)
            for j, found in zip(config.judges, there, strict=True)
        ]
        yield "Judges", ("component", "model", "address", "rubric", "scale", "weight", "there now"), judges
    yield from _code_table(config)


def _code_table(config: RewardConfig) -> Iterator[Table]:
    """Where code would be run; that it can be is tried with the rows (app/launch/reward_trial.py)."""
    if config.code:
        rows = [
            (
                c.name,
                c.tests,
                "share of tests" if c.partial_credit else "all tests",
                f"{c.timeout_s:g} s",
                f"{c.weight:g}",
            )
            for c in config.code
        ]
        yield "Code in a sandbox", ("component", "column of tests", "score", "limit", "weight"), rows


def reward_model_lines(config: RunConfig) -> Iterator[str]:
    """What a reward model that scores text reads of a question and an answer."""
    if not config.reward.retokenize:
        return
    tokenizer, template = load_tokenizer(config.reward.model), read_chat_template(config.data.chat_template)
    system = [Message("system", config.data.system_prompt)] if config.data.system_prompt else []
    read = read_by(Encoder(tokenizer), (*system, Message("user", "QUESTION")), "ANSWER")
    own = (
        "other tokens than"
        if tokenizer_problems(config.policy.model, config.reward.model, template)
        else "the same tokens as"
    )
    yield (
        f"Reward model: scores text (reward.retokenize), and reads {own} the policy writes. A question and its "
        f"answer, as {config.reward.model} sees them:\n{tokenizer.decode(read.token_ids)!r}\n"
    )


def _there(urls: list[str]) -> list[str]:
    return [f"no: {why}" if why else "yes" for why in unreachable(urls)]
