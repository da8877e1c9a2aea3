"""Whether a run's rows fit its models: lengths up to which a model's numbers are its own, and token ids that it has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from raylign.app.launch.rows import OfflineRows, OnlineRows
from raylign.conf.derive import critic_start, reference_model
from raylign.conf.errors import ConfigError
from raylign.conf.schema import RunConfig
from raylign.trainer.algorithms import algorithm_of
from raylign.trainer.algorithms.base import Role
from raylign.trainer.models.architecture import length_limit, position_limit
from raylign.trainer.models.loading import model_skeleton


@dataclass(frozen=True, slots=True)
class Sequences:
    """What the models of a run will read."""

    longest: int  # tokens, the longest answer that may be sampled included
    largest_id: int  # -1: not known
    remedy: str  # how the longest gets shorter; `{limit}` is the length wanted


def refuse_unfit(config: RunConfig, found: Sequences) -> None:
    """Raises ConfigError, all problems at once."""
    if problems := list(_problems(config, found)):
        raise ConfigError(problems)


def of_rows(config: RunConfig, rows: OnlineRows | OfflineRows) -> Sequences:
    """Of the rows as they were read."""
    if isinstance(rows, OfflineRows):
        sizes = [(len(ids), max(ids)) for one in rows.sets.values() for ids in one.token_ids()]
        return Sequences(max(n for n, _ in sizes), max(top for _, top in sizes), "set data.max_length={limit}")
    sets = [(rows.train, config.rollout.max_new_tokens)]
    sets += [(rows.held_out, config.evaluation.max_new_tokens)] if rows.held_out else []
    return Sequences(
        max(len(prompt.token_ids) + new for prompts, new in sets for prompt in prompts.prompts),
        max(max(rows.stop_token_ids), *(max(p.token_ids) for prompts, _ in sets for p in prompts.prompts)),
        "lower data.max_prompt_tokens, rollout.max_new_tokens or evaluation.max_new_tokens to {limit} together",
    )


def of_settings(config: RunConfig, *, online: bool) -> Sequences:
    """The most that the settings allow, where no rows were read."""
    if online:
        return Sequences(config.rollout.max_model_len, -1, "set rollout.max_model_len={limit}")
    return Sequences(config.data.max_length, -1, "set data.max_length={limit}")


def _problems(config: RunConfig, found: Sequences) -> Iterator[str]:
    for role, folder, scalar in _models(config):
        hf = model_skeleton(folder, scalar=scalar)
        model = f"{role}.model={folder}"
        long = f"the longest sequence may have {found.longest} tokens"
        positions, own = position_limit(hf), length_limit(hf.config)
        if positions is not None and found.longest > positions:
            yield f"{model} has learned positions for {positions} tokens and {long}; {_remedy(found, positions)}."
        if own is not None and found.longest > own[0]:
            yield (
                f"{model} has {own[1]}, so past {own[0]} tokens a sequence's log-probs depend on the others of its "
                f"batch, and {long}; {_remedy(found, own[0])}."
            )
        vocabulary = int(hf.config.get_text_config().vocab_size)
        if found.largest_id >= vocabulary:
            yield (
                f"{model} has {vocabulary} token ids and the rows have id {found.largest_id}: the tokenizer of "
                f"policy.model={config.policy.model} is not this model's, or tokens were added without an embedding."
            )


def _remedy(found: Sequences, limit: int) -> str:
    return f"{found.remedy.format(limit=limit)}, or use another model"


def _models(config: RunConfig) -> Iterator[tuple[str, str, bool]]:
    """Role, folder and whether it has a scalar head. Only the shape is read, so a policy counts as causal."""
    roles = algorithm_of(config.algorithm).roles
    yield "policy", config.policy.model, False
    if Role.REFERENCE in roles and reference_model(config) != config.policy.model:
        yield "reference", reference_model(config), False
    if Role.CRITIC in roles:
        yield "critic", critic_start(config), True
    if Role.REWARD in roles and config.reward.model and not config.reward.retokenize:  # else it reads its own tokens
        yield "reward", config.reward.model, True
