"""What cannot work, known from the models' folders alone: reported by `plan`, and by `train` before Ray starts."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from raylign.app.launch.callbacks import read_callbacks
from raylign.app.launch.components import components, name_problems, time_left
from raylign.app.launch.environment import environment_problems
from raylign.app.launch.functions import read_functions
from raylign.app.launch.judges import read_rubrics
from raylign.app.launch.machine import env_problems
from raylign.app.launch.model_files import broken_settings, lacking_files
from raylign.app.launch.own_metrics import metric_problems
from raylign.app.launch.remotes import remote_problems
from raylign.app.launch.suites import suite_problems
from raylign.conf.checks import Needs
from raylign.conf.derive import critic_start
from raylign.conf.errors import ConfigError, DataError, ModelLoadError
from raylign.conf.schema import RunConfig
from raylign.data.chat_template import no_template, read_chat_template, template_problems
from raylign.data.tokenize import load_tokenizer
from raylign.reward.heads import has_heads
from raylign.reward.scorer import ENVIRONMENT_COMPONENT
from raylign.reward.tokenizer_match import retokenize_problems, tokenizer_problems, vocabulary_difference
from raylign.trainer.models.loading import architecture_of, model_skeleton


def refuse_impossible(config: RunConfig, needs: Needs, *, to_run: bool = False) -> None:
    """Raises ConfigError with all of it. Models are plain folders (app/launch/chain.py).

    `to_run`: weights and tokenizer have to be there too; a configuration alone can be planned for.
    """
    if lacking := [*broken_settings(config, needs), *(lacking_files(config, needs) if to_run else ())]:
        raise ConfigError(lacking)  # the rest reads these files
    problems = [*_tensor_parallel(config, needs), *_sequence_parallel(config, needs)]
    problems += [*_reward_head(config, needs), *_reward_tokenizer(config, needs)]
    problems += [*_reward_heads(config, needs), *_reference_tokenizer(config, needs)]
    problems += [*_chat_template(config), *_gold(config, needs), *_stops(config, needs)]
    if needs.reward:
        problems += [*time_left(config.reward), *name_problems(config.reward), *remote_problems(config.reward)]
        problems += [*read_rubrics(config.reward)[1], *read_functions(config.reward)[1]]
    if needs.rollout:
        problems += environment_problems(config)
    problems += [*env_problems(config.cluster.env)]
    problems += read_callbacks(config.callbacks, config.callback_timeout_s)[1]
    problems += [*metric_problems(config, online=needs.rollout), *suite_problems(config)]
    if problems:
        raise ConfigError(problems)


def _tensor_parallel(config: RunConfig, needs: Needs) -> Iterator[str]:
    """vLLM gives every rank whole heads; key and value heads are split, or copied where ranks outnumber them."""
    size = config.rollout.tensor_parallel_size
    if not needs.rollout or size == 1:
        return
    text = model_skeleton(config.policy.model, scalar=False).config.get_text_config()
    heads, kv = text.num_attention_heads, getattr(text, "num_key_value_heads", None) or text.num_attention_heads
    if heads % size or (kv % size and size % kv):
        fitting = [n for n in range(1, heads + 1) if heads % n == 0 and (kv % n == 0 or n % kv == 0)]
        nearest = min(fitting, key=lambda n: (abs(n - size), n))
        yield (
            f"rollout.tensor_parallel_size={size}: policy.model={config.policy.model} has {heads} attention heads "
            f"and {kv} key-value heads, which {size} ranks cannot share; set rollout.tensor_parallel_size={nearest}."
        )


def _sequence_parallel(config: RunConfig, needs: Needs) -> Iterator[str]:
    """Ranks exchange whole heads: each computes all tokens of some, with the key and value heads that they meet."""
    learners = {"policy": config.policy} | ({"critic": config.critic} if needs.critic else {})
    for role, learner in learners.items():
        size, folder = learner.sequence_parallel_size, critic_start(config) if role == "critic" else learner.model
        if size == 1 or not folder:
            continue
        text = model_skeleton(folder, scalar=role == "critic").config.get_text_config()
        heads, kv = text.num_attention_heads, getattr(text, "num_key_value_heads", None) or text.num_attention_heads
        if heads % size or kv % size:
            fitting = [n for n in range(1, kv + 1) if not (heads % n or kv % n or learner.num_ranks % n)]
            nearest = min(fitting, key=lambda n: (abs(n - size), n))
            yield (
                f"{role}.sequence_parallel_size={size}: {folder} has {heads} attention heads and {kv} key-value heads, "
                f"and both must divide by it; set {role}.sequence_parallel_size={nearest}."
            )


def _reward_head(config: RunConfig, needs: Needs) -> Iterator[str]:
    folder = config.reward.model
    if not needs.reward or not folder:
        return
    read = json.loads((Path(folder).expanduser() / "config.json").read_text(encoding="utf-8"))
    architecture = architecture_of(read)
    if architecture.endswith("ForCausalLM"):
        yield (
            f"reward.model={folder}: {architecture} is a language model without a scalar head, so it scores nothing; "
            "train a reward model from it (algorithm=rm), or use it as the policy."
        )


def _reward_heads(config: RunConfig, needs: Needs) -> Iterator[str]:
    folder, penalty = config.reward.model, config.reward.uncertainty_penalty
    if not needs.reward or not penalty:
        return
    if not folder:
        yield f"reward.uncertainty_penalty={penalty:g}: it is of the reward model's ensemble; set reward.model."
    elif not has_heads(Path(folder).expanduser()):
        yield (
            f"reward.uncertainty_penalty={penalty:g}: reward.model={folder} has no ensemble; make one by "
            "`raylign ensemble`, or set reward.uncertainty_penalty=0."
        )


def _reward_tokenizer(config: RunConfig, needs: Needs) -> Iterator[str]:
    """A reward model reads the policy's token ids, or text. A folder without a tokenizer is refused elsewhere."""
    reward = config.reward
    if needs.reward and reward.retokenize and not reward.model:
        yield "reward.retokenize=true: reward.model is empty, so nothing is re-tokenised; set it, or leave this out."
    if not needs.reward or not reward.model:
        return
    try:
        template = read_chat_template(config.data.chat_template)
        differ = tokenizer_problems(config.policy.model, reward.model, template)
        if reward.retokenize and differ and needs.critic and not config.critic.model:
            yield (
                f"critic.model is empty, and reward.model={reward.model} reads other tokens than the policy writes "
                "(reward.retokenize=true), so no critic can start from it; set critic.model to the policy's folder."
            )
        found = retokenize_problems(reward.model, config.data.system_prompt) if reward.retokenize else differ
        yield from (f"{problem}." for problem in found)
    except (DataError, ModelLoadError):
        return


def _reference_tokenizer(config: RunConfig, needs: Needs) -> Iterator[str]:
    """The reference, or teacher, reads the policy's token ids. A folder without a tokenizer is taken at its word."""
    named, policy = config.reference.model, config.policy.model
    if not needs.reference or not named or named == policy:
        return
    try:
        difference = vocabulary_difference(load_tokenizer(policy), load_tokenizer(named), "reference's")
    except ModelLoadError:
        return
    if difference:
        yield (
            f"reference.model={named} and policy.model={policy} have different tokenizers: {difference}; the policy's "
            "token ids would mean other text to it; set reference.model to a model of the policy's family."
        )


def _chat_template(config: RunConfig) -> Iterator[str]:
    """A template that cannot be read or used, and what only a template could have a use for."""
    try:
        template = read_chat_template(config.data.chat_template)
        tokenizer = load_tokenizer(config.policy.model, template)
    except DataError as error:
        yield from error.problems
        return
    except ModelLoadError:
        return  # refused where the model is read
    yield from template_problems(config.data.chat_template, tokenizer, config.policy.model)
    if config.data.system_prompt and tokenizer.chat_template is None:
        yield f"data.system_prompt would be lost, for {no_template('it needs a chat template')}."


def _gold(config: RunConfig, needs: Needs) -> Iterator[str]:
    gold = config.evaluation.gold
    if not gold or not needs.rollout:
        return
    known = [*components(config.reward), *([ENVIRONMENT_COMPONENT] if config.environment.name else [])]
    if gold not in known:
        yield (
            f"evaluation.gold={gold}: no reward component has this name; there is {', '.join(known) or 'none'}. Add it "
            f"as a rule of weight 0, as in reward.rules=[{{rule: {gold}, weight: 0}}]."
        )


def _stops(config: RunConfig, needs: Needs) -> Iterator[str]:
    if not needs.rollout or not config.rollout.stop_token_ids:
        return
    size = model_skeleton(config.policy.model, scalar=False).config.get_text_config().vocab_size
    if beyond := [token for token in config.rollout.stop_token_ids if token >= size]:
        yield f"rollout.stop_token_ids: policy.model={config.policy.model} has ids below {size}, not {beyond[0]}."
