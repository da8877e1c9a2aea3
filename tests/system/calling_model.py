"""A tiny model that calls the calculator: it has learned a few conversations nearly by heart, in seconds."""

from __future__ import annotations

import random
from pathlib import Path

import torch
from raylign.data.chat_template import read_chat_template
from raylign.data.encoder import Encoder
from raylign.data.rows import ConversationRow, completion_or_conversation
from raylign.data.tokenize import load_tokenizer
from torch import Tensor
from torch.nn.functional import cross_entropy
from transformers import AutoModelForCausalLM

from benchmarks.tool_tasks import Shares, Task, calculator, examples

UPDATES, LR = 60, 3e-3
"""Not to the end: sampled at temperature 1 some of its answers are wrong, so there is something to learn."""


def calling_task(count: int) -> Task:
    """`count` products, each of which is shown and asked."""
    return calculator(random.Random(0), (count, 0, 0))


def calling_model(start: Path, task: Task, target: Path) -> Path:
    """`start`, with the template that has tools, after `UPDATES` updates on the task's conversations."""
    tokenizer = load_tokenizer(str(start), read_chat_template("hermes"))
    ids, weights = _batch(task, Encoder(tokenizer), int(tokenizer.pad_token_id))
    model = AutoModelForCausalLM.from_pretrained(start)
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR)
    for _ in range(UPDATES):
        logits = model(ids).logits[:, :-1]
        losses = cross_entropy(logits.transpose(1, 2), ids[:, 1:], reduction="none")
        loss = (losses * weights[:, 1:]).sum() / weights[:, 1:].sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(target)
    tokenizer.save_pretrained(target)
    return target


def _batch(task: Task, encoder: Encoder, pad: int) -> tuple[Tensor, Tensor]:
    """Ids [rows, longest], padded behind, and the weight of each token's loss."""
    rows = [completion_or_conversation(row) for row in examples(task, random.Random(0), Shares(1.0, 0.0))]
    encoded = [
        encoder.encode_conversation(row.turns, row.turn_weights, row.variables)
        for row in rows
        if isinstance(row, ConversationRow)
    ]
    longest = max(len(one.token_ids) for one in encoded)
    ids = [[*one.token_ids, *[pad] * (longest - len(one.token_ids))] for one in encoded]
    weights = [[*one.weights, *[0.0] * (longest - len(one.weights))] for one in encoded]
    return torch.tensor(ids), torch.tensor(weights)
