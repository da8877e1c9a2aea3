"""A reward model reads the policy's token ids as they are, unless it scores text: refused before anything is loaded.

Refused is a reward model that means other text by the ids, and one whose template cannot be used.
"""

from __future__ import annotations

from raylign.data.encoder import Encoder
from raylign.data.row_fields import RowError
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import Message
from raylign.reward.text_scorer import read_by
from transformers import PreTrainedTokenizerBase


def tokenizer_problems(policy_folder: str, reward_folder: str, chat_template: str = "") -> list[str]:
    """Why the reward model cannot score this policy's tokens, as sentences naming both folders; empty when it can.

    `chat_template`: takes the place of the policy's own. A reward model brings the one it was trained with.
    Raises ModelLoadError for a folder without a tokenizer.
    """
    policy, reward = load_tokenizer(policy_folder, chat_template), load_tokenizer(reward_folder)
    both = f"reward.model={reward_folder} and policy.model={policy_folder}"
    fix = (
        "set reward.retokenize=true to let it score text, with its own template and tokens, or train a reward model "
        "from this policy's own start (algorithm=rm)"
    )
    difference = vocabulary_difference(policy, reward, "reward model's")
    if difference:
        return [f"{both} have different tokenizers: {difference}; {fix}"]
    problems = []
    if policy.eos_token_id != reward.eos_token_id:
        problems.append(
            f"{both} end an answer with different tokens ({policy.eos_token!r} and {reward.eos_token!r}), so the "
            f"reward model would score the wrong state; {fix}"
        )
    if policy.chat_template != reward.chat_template and chat_template:
        problems.append(
            f"{both}: data.chat_template is not the chat template that the reward model was trained with, so it would "
            "see another form; set reward.retokenize=true, or train it with the same data.chat_template (algorithm=rm)"
        )
    elif policy.chat_template != reward.chat_template:
        problems.append(
            f"{both} have different chat templates, so the reward model would see a form it was not trained on; {fix}"
        )
    return problems


def retokenize_problems(reward_folder: str, system_prompt: str) -> list[str]:
    """Why the reward model cannot score text, tried on a question and an answer. Raises ModelLoadError."""
    turns = (*([Message("system", system_prompt)] if system_prompt else []), Message("user", "Which is it?"))
    try:
        read_by(Encoder(load_tokenizer(reward_folder)), turns, "The first one.")
    except RowError as error:
        return [f"reward.retokenize=true: reward.model={reward_folder} cannot read a question and its answer: {error}"]
    return []


def vocabulary_difference(policy: PreTrainedTokenizerBase, other: PreTrainedTokenizerBase, whose: str) -> str:
    """What the same ids mean otherwise to another model, in words; "" for nothing. `whose`: "reward model's"."""
    ours, theirs = policy.get_vocab(), other.get_vocab()
    if ours == theirs:
        return ""
    if len(ours) != len(theirs):
        return f"{len(theirs)} tokens against {len(ours)}"
    token = min((t for t in ours if theirs.get(t) != ours[t]), key=lambda t: ours[t])
    return f"token {token!r} is id {ours[token]} in the policy's and {theirs.get(token, 'absent')} in the {whose}"
