"""DPO of benchmarks/trl_parity.py's rows in plain torch, in float64 and twice in float32: whose rounding is it?

    python -m benchmarks.dpo_truth [--questions FILE] [--solutions FILE] [--json FILE_OF_TRL_PARITY]

One sequence at a time through transformers' model, AdamW, gradients clipped at 1; nothing of ours or TRL's but rows and
model folder. In float32 the answers' log-probs are added up in float64 or in float32. Printed: relative differences of
each step's loss from the float64 run's, for both, and for the DPO runs on plain rows that the JSON holds.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from benchmarks.trl_parity import BETAS, model_folders, rows_of, solved

STEPS, PAIRS, LR, BETA = 20, 4, 1e-5, 0.1


def sides(tokenizer: Any, row: dict[str, Any]) -> list[tuple[list[int], int]]:
    """Chosen and rejected: ids of prompt, answer and end token, and how many are the prompt's."""
    prompt = tokenizer(row["prompt"], add_special_tokens=False).input_ids
    found = []
    for side in ("chosen", "rejected"):
        ids = tokenizer(row["prompt"] + row[side], add_special_tokens=False).input_ids
        if ids[: len(prompt)] != prompt:
            ids = prompt + tokenizer(row[side], add_special_tokens=False).input_ids
        found.append(([*ids, tokenizer.eos_token_id], len(prompt)))
    return found


def logp(model: Any, ids: list[int], start: int, sums: torch.dtype) -> torch.Tensor:
    """Of the answer. []"""
    tokens = torch.tensor([ids])
    table = model(tokens, use_cache=False).logits[0, start - 1 : -1].log_softmax(-1)
    return table.gather(1, tokens[0, start:, None])[:, 0].to(sums).sum()


def train(folder: Path, rows: Sequence[dict[str, Any]], dtype: torch.dtype, sums: torch.dtype) -> list[float]:
    """The loss of every step."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype).train()
    pairs = [sides(tokenizer, row) for row in rows]
    with torch.no_grad():
        refs = [[logp(model, *side, sums) for side in pair] for pair in pairs]
    optimizer = torch.optim.AdamW(model.parameters(), lr=LR, betas=BETAS, weight_decay=0.0)
    losses = []
    for step in range(STEPS):
        optimizer.zero_grad()
        losses.append(0.0)
        for i in range(PAIRS * step, PAIRS * (step + 1)):
            chosen, rejected = (logp(model, *side, sums) - ref for side, ref in zip(pairs[i], refs[i], strict=True))
            loss = -torch.nn.functional.logsigmoid(BETA * (chosen - rejected)) / PAIRS
            loss.backward()  # type: ignore[no-untyped-call]
            losses[-1] += float(loss.detach())
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return losses


def main(argv: Sequence[str] | None = None) -> int:
    """Train three times and print."""
    from raylign.data.sample_model import tiny_model

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("--questions", "--solutions", "--json"):
        parser.add_argument(name, type=Path)
    given = parser.parse_args(argv)
    rows = rows_of("dpo", "plain", *solved(given.questions, given.solutions, STEPS * PAIRS))
    f64, f32 = torch.float64, torch.float32
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        model = model_folders(tiny_model(root / "tiny", tie=True), root, "plain")["causal"]
        truth = train(model, rows, f64, f64)
        found = {"float32, sums float64": train(model, rows, f32, f64), "all float32": train(model, rows, f32, f32)}
    for run in json.loads(given.json.read_text(encoding="utf-8")) if given.json else []:
        if (run["algorithm"], run["form"]) == ("dpo", "plain"):
            found |= {"ours": run["ours"], "TRL": run["trl"]}
    for name, losses in found.items():
        gaps = [abs(a - b) / abs(b) for a, b in zip(losses, truth, strict=True)]
        print(f"{name:22} largest {max(gaps):.1e}:", " ".join(f"{gap:.0e}" for gap in gaps))
    return 0


if __name__ == "__main__":
    sys.exit(main())
