"""DPO or the reward model of benchmarks/trl_parity.py in plain torch, in float64 and float32: whose rounding is it?

    python -m benchmarks.pair_truth [--algorithm dpo|rm] [--form plain|chat] [--lr 1e-5] [--model FOLDER]
                                    [--questions FILE] [--solutions FILE] [--json FILE_OF_TRL_PARITY]

One sequence at a time through transformers' model, AdamW, gradients clipped at 1; nothing of ours or TRL's but rows and
folder. In float32 an answer's log-probs (DPO) are added up in float64 or in float32. Printed: relative differences
of each step's loss from the float64 run's, for these and for the runs of that algorithm and form that the JSON holds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.nn.functional import logsigmoid
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from benchmarks.trl_parity import BETAS, model_folders, rows_of, solved

STEPS, PAIRS, BETA = 20, 4, 0.1
F64, F32 = torch.float64, torch.float32

Side = tuple[list[int], int]
"""Ids of prompt, answer and end token, and how many of them are the prompt's."""
Measure = Callable[[Any, Side], torch.Tensor]
"""What the loss compares of one answer. []"""


def sides(tokenizer: Any, row: dict[str, Any]) -> list[Side]:
    """Chosen and rejected."""
    if not isinstance(row["prompt"], str):
        return [_turns(tokenizer, row["prompt"], row[side]) for side in ("chosen", "rejected")]
    prompt = tokenizer(row["prompt"], add_special_tokens=False).input_ids
    found = []
    for side in ("chosen", "rejected"):
        ids = tokenizer(row["prompt"] + row[side], add_special_tokens=False).input_ids
        if ids[: len(prompt)] != prompt:
            ids = prompt + tokenizer(row[side], add_special_tokens=False).input_ids
        found.append(([*ids, tokenizer.eos_token_id], len(prompt)))
    return found


def _turns(tokenizer: Any, prompt: list[dict[str, str]], answer: list[dict[str, str]]) -> Side:
    opened = tokenizer.apply_chat_template(prompt, add_generation_prompt=True, return_dict=False)
    return tokenizer.apply_chat_template([*prompt, *answer], return_dict=False), len(opened)


def logp(sums: torch.dtype) -> Measure:
    """Of an answer's tokens, added up in `sums`."""

    def measure(model: Any, side: Side) -> torch.Tensor:
        ids, start = side
        tokens = torch.tensor([ids])
        table = model(tokens, use_cache=False).logits[0, start - 1 : -1].log_softmax(-1)
        return table.gather(1, tokens[0, start:, None])[:, 0].to(sums).sum()

    return measure


def score(model: Any, side: Side) -> torch.Tensor:
    """The reward head's, at the last token."""
    return model(torch.tensor([side[0]]), use_cache=False).logits[0, 0]


def train(model: Any, pairs: Sequence[Sequence[Side]], measure: Measure, beta: float | None, lr: float) -> list[float]:
    """The loss of every step: -log sigmoid of what `measure` gives the chosen answer over the rejected one; with a beta
    of both against the model before the first step (DPO)."""
    refs = [[torch.zeros(()), torch.zeros(())] for _ in pairs]
    if beta is not None:
        with torch.no_grad():
            refs = [[measure(model, side) for side in pair] for pair in pairs]
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=BETAS, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        losses.append(0.0)
        for i in range(PAIRS * step, PAIRS * (step + 1)):
            chosen, rejected = (measure(model, side) - ref for side, ref in zip(pairs[i], refs[i], strict=True))
            loss = -logsigmoid((1.0 if beta is None else beta) * (chosen - rejected)) / PAIRS
            loss.backward()
            losses[-1] += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return losses


def main(argv: Sequence[str] | None = None) -> int:
    """Train in each precision and print."""
    from raylign.data.sample_model import tiny_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--algorithm", default="dpo", choices=["dpo", "rm"])
    parser.add_argument("--form", default="plain", choices=["plain", "chat"])
    parser.add_argument("--lr", type=float, default=1e-5)
    for name in ("--model", "--questions", "--solutions", "--json"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args(argv)
    rows = rows_of(given.algorithm, given.form, *solved(given.questions, given.solutions, STEPS * PAIRS))
    scored = given.algorithm == "rm"
    auto = AutoModelForSequenceClassification if scored else AutoModelForCausalLM
    with tempfile.TemporaryDirectory() as temporary:
        root = Path(temporary)
        folders = model_folders(given.model or tiny_model(root / "tiny", tie=True), root, given.form)
        folder = folders["scalar" if scored else "causal"]
        tokenizer = AutoTokenizer.from_pretrained(folder)
        pairs = [sides(tokenizer, row) for row in rows]

        def losses(dtype: torch.dtype, sums: torch.dtype) -> list[float]:
            model = auto.from_pretrained(folder, dtype=dtype).train()
            return train(model, pairs, score if scored else logp(sums), None if scored else BETA, given.lr)

        truth = losses(F64, F64)
        found = {"float32" if scored else "float32, sums float64": losses(F32, F64)}
        if not scored:
            found["all float32"] = losses(F32, F32)
    for run in json.loads(given.json.read_text(encoding="utf-8")) if given.json else []:
        if (run["algorithm"], run["form"]) == (given.algorithm, given.form):
            found |= {"ours": run["ours"], "TRL": run["trl"]}
    for name, series in found.items():
        gaps = [abs(a - b) / abs(b) for a, b in zip(series, truth, strict=True)]
        print(f"{name:22} largest {max(gaps):.1e}:", " ".join(f"{gap:.0e}" for gap in gaps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
