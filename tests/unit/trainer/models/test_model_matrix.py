"""Every architecture of the matrix: trained right, or refused by its name and reason. Never a raw error."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from raylign.conf.errors import ModelLoadError
from raylign.conf.schema import Precision
from raylign.data.types import TokenBatch
from raylign.trainer.models.causal_lm import CausalLM
from raylign.trainer.models.export import export_hf
from raylign.trainer.models.loading import load_causal_lm
from torch import Tensor
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

sys.path.insert(0, str(Path(__file__).parent))
from model_matrix import MATRIX, PAGE, Tried, page

LENGTHS = (30, 9, 17)


def build(tried: Tried) -> PreTrainedModel:
    torch.manual_seed(0)
    config = AutoConfig.for_model(tried.kind, **tried.settings)
    return AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()


def sequences() -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    shared = torch.randint(3, 97, (5,), generator=generator).tolist()
    return [[*shared, *torch.randint(3, 97, (n,), generator=generator).tolist()] for n in LENGTHS]


@torch.no_grad()
def alone(model: PreTrainedModel) -> Tensor:
    """Log-probs of every token after the first, each sequence by itself, in transformers' eager forward."""
    found = []
    for row in sequences():
        logits = model(torch.tensor([row]), use_cache=False).logits[0].float().log_softmax(-1)[:-1]
        found.append(logits.gather(1, torch.tensor(row[1:])[:, None])[:, 0])
    return torch.cat(found)


@torch.no_grad()
def packed(model: CausalLM) -> Tensor:
    rows = sequences()
    batch = TokenBatch.from_sequences(rows, [[False] + [True] * (len(row) - 1) for row in rows])
    return model(batch, temperature=1.0).logprobs[batch.response_mask]


QUICK = {"gemma2", "gpt_oss", "granite", "mixtral", "seed_oss", "stablelm"}
"""In every run of the tests: one of each kind of mistake. The others are thorough."""
ROWS = [
    pytest.param(tried, id=tried.name, marks=() if tried.kind in QUICK else pytest.mark.thorough) for tried in MATRIX
]


@pytest.mark.parametrize("tried", ROWS)
def test_a_model_is_right_or_refused_by_name(tried: Tried, tmp_path: Path) -> None:
    theirs = build(tried)
    theirs.save_pretrained(tmp_path / "model")
    if tried.refused:
        with pytest.raises(ModelLoadError) as refusal:
            load_causal_lm(tmp_path / "model", precision=Precision.float32)
        assert tried.refused in str(refusal.value)
        assert type(theirs).__name__ in str(refusal.value)
        return
    ours, expected = load_causal_lm(tmp_path / "model", precision=Precision.float32), alone(theirs)
    training = packed(ours)
    torch.testing.assert_close(training, expected, atol=2e-4, rtol=0)
    assert torch.equal(packed(ours.eval()), training)
    state = {name.removeprefix("hf."): p.detach() for name, p in ours.named_parameters()}
    export_hf(ours, state.items(), tmp_path / "out", None)
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "out", attn_implementation="eager").eval()
    torch.testing.assert_close(alone(again), expected, atol=1e-6, rtol=0)


def test_an_export_says_what_the_folder_said_of_dropout(tmp_path: Path) -> None:
    """Training turns it off; whoever trains the exported model elsewhere finds the setting as it was."""
    tried = next(t for t in MATRIX if t.kind == "seed_oss")
    build(replace(tried, fields={**tried.fields, "residual_dropout": 0.1})).save_pretrained(tmp_path / "model")
    ours = load_causal_lm(tmp_path / "model", precision=Precision.float32)
    assert ours.hf.config.residual_dropout == 0.0
    state = {name.removeprefix("hf."): p.detach() for name, p in ours.named_parameters()}
    export_hf(ours, state.items(), tmp_path / "out", None)
    assert AutoConfig.from_pretrained(tmp_path / "out").residual_dropout == 0.1
    assert ours.hf.config.residual_dropout == 0.0


def test_the_page_is_the_table() -> None:
    assert PAGE.read_text(encoding="utf-8") == page(), "run tests/unit/trainer/models/model_matrix.py"
