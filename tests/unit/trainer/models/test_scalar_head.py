"""The scalar model against transformers' sequence classifier, and the critic's alignment by hand."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from raylign.conf.schema import Precision
from raylign.data.types import TokenBatch
from raylign.trainer.models.export import export_hf
from raylign.trainer.models.loading import load_scalar_model
from raylign.trainer.models.scalar_head import init_score, last_states, values_from_states
from transformers import AutoModelForSequenceClassification

ROWS = [[5, 6, 7, 8], [9, 10, 11]]
MASKS = [[False, False, True, True], [False, True, False]]


def test_values_are_those_of_the_state_before_the_token() -> None:
    tokens = TokenBatch.from_sequences(ROWS, MASKS)
    states = torch.tensor([1.0, 2.0, 3.0, 4.0, 50.0, 60.0, 70.0])
    estimates = values_from_states(states, tokens)
    assert estimates.values.tolist() == [0, 0, 2, 3, 0, 50, 0]
    assert estimates.bootstrap.tolist() == [4, 70]
    assert last_states(states, tokens).tolist() == [4, 70]


def test_a_saved_reward_model_scores_the_same_in_transformers(tiny_model_dir: Path, tmp_path: Path) -> None:
    model = load_scalar_model(tiny_model_dir, precision=Precision.float32, new_head_seed=3)
    export_hf(model, ((n.removeprefix("hf."), p) for n, p in model.named_parameters()), tmp_path / "rm", None)
    tokens = TokenBatch.from_sequences(ROWS, MASKS)
    ours = last_states(load_scalar_model(tmp_path / "rm", precision=Precision.float32)(tokens), tokens)
    theirs = AutoModelForSequenceClassification.from_pretrained(tmp_path / "rm", dtype=torch.float32).eval()
    assert theirs.config.num_labels == 1
    with torch.no_grad():
        expected = torch.cat([theirs(input_ids=torch.tensor([row])).logits[0] for row in ROWS])
    assert expected.std() > 0
    torch.testing.assert_close(ours.detach(), expected, atol=1e-5, rtol=0)


def test_a_new_head_has_the_stated_spread_and_is_reproducible() -> None:
    weight, again, other = (torch.empty(1, 4095) for _ in range(3))
    for head, seed in ((weight, 1), (again, 1), (other, 2)):
        init_score(head, seed=seed)
    assert float(weight.std()) == pytest.approx(1 / 64, rel=0.05)
    assert torch.equal(weight, again)
    assert not torch.equal(weight, other)


def test_the_head_computes_in_float32_under_bfloat16(tiny_model_dir: Path) -> None:
    model = load_scalar_model(tiny_model_dir, precision=Precision.bfloat16, new_head_seed=0)
    states = model(TokenBatch.from_sequences(ROWS, MASKS))
    assert states.dtype is torch.float32
    assert not torch.equal(states, states.bfloat16().float())
