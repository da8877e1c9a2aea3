"""What a language model makes of a turn: the mean of its hidden states over the turn's tokens, half-way up.

The upper half of the layers, which turn states into the next token, is not computed.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from raylign.conf.errors import UserError
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils.logging import disable_progress_bar

_BEFORE, _TURN = 384, 128  # tokens of the conversation's end and of the turn's beginning
_BATCH_TOKENS = 4096  # padded


def turn_states(folder: Path, turns: Sequence[tuple[str, str]]) -> NDArray[np.float64]:
    """(conversation, turn) texts -> [turns, width], by the causal model of `folder`. Raises UserError."""
    if not turns:
        return np.zeros((0, 0))
    disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        model = AutoModelForCausalLM.from_pretrained(
            folder, trust_remote_code=False, local_files_only=True, use_safetensors=True, dtype=torch.float32
        )
    except Exception as error:  # transformers raises nothing more special
        raise UserError(f"--model {folder}: it cannot be loaded ({' '.join(str(error).split())[:200]}).") from error
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    body = model.base_model.to(device).eval()
    layers = getattr(body, "layers", None)
    if not isinstance(layers, torch.nn.ModuleList):
        raise UserError(f"--model {folder}: {type(body).__name__} has no list of layers; take a decoder model.")
    body.layers = layers[: max(1, len(layers) // 2)]
    body.norm = torch.nn.Identity()  # it belongs to the last layer
    cut = [
        (tokenizer(f"{asked}\nuser: ")["input_ids"][-_BEFORE:], tokenizer(text, add_special_tokens=False)["input_ids"])
        for asked, text in turns
    ]
    sequences = [(before, said[:_TURN] or before[-1:]) for before, said in cut]
    states = np.zeros((len(turns), model.config.hidden_size))
    order = sorted(range(len(turns)), key=lambda number: -len(sequences[number][0]) - len(sequences[number][1]))
    with torch.inference_mode():
        while order:
            longest = sum(map(len, sequences[order[0]]))
            size = max(1, _BATCH_TOKENS // longest)
            batch, order = order[:size], order[size:]
            ids = torch.zeros((len(batch), longest), dtype=torch.long)
            there = torch.zeros((len(batch), longest), dtype=torch.long)
            for row, number in enumerate(batch):
                tokens = [*sequences[number][0], *sequences[number][1]]
                ids[row, : len(tokens)] = torch.tensor(tokens)
                there[row, : len(tokens)] = 1
            given = body(input_ids=ids.to(device), attention_mask=there.to(device), use_cache=False).last_hidden_state
            for row, number in enumerate(batch):
                before, said = map(len, sequences[number])
                states[number] = given[row, before : before + said].double().mean(0).cpu().numpy()
    return states
