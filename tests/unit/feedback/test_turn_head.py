"""A head on a model's hidden states: fitted as its loss says, careful where it is unsure, measured before use."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from raylign.app.cli import app, run_command
from raylign.app.commands.feedback_corrections import Found, find_corrections_by_head, found_lines
from raylign.app.commands.judge_open import Who
from raylign.conf.errors import DataError, UserError
from raylign.feedback.judged_turns import LABELLED, TRAINING, read_judged, read_labelled
from raylign.feedback.source import Source
from raylign.feedback.turn_head import MIN_TURNS, fit_head
from raylign.feedback.turn_states import turn_states
from transformers import AutoModelForCausalLM, AutoTokenizer

from .test_judged_turns import made, write_log


def planted(turns: int, noise: float, seed: int = 0) -> tuple[np.ndarray, list[bool], list[str]]:
    """States of which one direction says whether a turn corrects."""
    draw = np.random.default_rng(seed)
    corrects = draw.random(turns) < 0.5
    states = draw.normal(size=(turns, 24)) * 3 + 5
    states[:, 3] = np.where(corrects, 1, -1) + noise * draw.normal(size=turns)
    return states, corrects.tolist(), [f"turn {n}" for n in range(turns)]


def test_the_weights_are_where_the_loss_has_its_least():
    states, corrects, texts = planted(200, 0.5)
    head = fit_head(states, corrects, texts)
    scaled = torch.tensor((states - states.mean(0)) / (states.std(0) + 1e-6) / 24**0.5)
    weights = torch.tensor(head.weights, requires_grad=True)
    bias = torch.tensor(head.bias, requires_grad=True)
    labels = torch.tensor(corrects, dtype=torch.float64)
    loss = (
        torch.nn.functional.binary_cross_entropy_with_logits(scaled @ weights + bias, labels) + 3e-4 * weights @ weights
    )
    loss.backward()
    assert weights.grad is not None and bias.grad is not None
    assert float(weights.grad.abs().max()) < 1e-4 and abs(float(bias.grad)) < 1e-4


def test_a_planted_direction_is_found_on_turns_it_has_not_seen():
    head = fit_head(*planted(300, 0.3))
    states, corrects, _ = planted(200, 0.3, seed=1)
    called = head.calls(states)
    assert sum(call and truth for call, truth in zip(called, corrects, strict=True)) > 90
    assert sum(call and not truth for call, truth in zip(called, corrects, strict=True)) <= 3


def test_the_less_it_knows_the_less_it_calls():
    sizes = []
    for noise in (0.3, 0.6, 1.0):
        head = fit_head(*planted(600, noise))
        states, corrects, _ = planted(600, noise, seed=2)
        called = np.array(head.calls(states))
        sizes.append(int(called.sum()))
        assert np.array(corrects)[called].mean() > 0.93
    assert sizes[0] > sizes[1] > sizes[2] > 0
    states, corrects, texts = planted(600, 0.3)
    with pytest.raises(DataError, match="at no threshold"):
        fit_head(states, np.random.default_rng(5).permutation(corrects).tolist(), texts)


def test_too_few_turns_are_refused():
    for turns in (MIN_TURNS - 1, 3):
        with pytest.raises(DataError, match="labelled turns"):
            fit_head(*planted(turns, 0.3))
    states, _, texts = planted(200, 0.3)
    with pytest.raises(DataError, match="of either kind"):
        fit_head(states, [True] * 3 + [False] * 197, texts)


def test_states_are_the_means_of_the_turn_half_way_up_whatever_stands_beside(tiny_model_dir: Path):
    turns = [
        ("user: hi\nassistant: hello", "No, wrong."),
        ("user: " + "long " * 300, "thanks " * 200),
        ("", "x"),
        ("a", ""),
    ]
    found = turn_states(tiny_model_dir, turns)
    tokenizer = AutoTokenizer.from_pretrained(tiny_model_dir)
    model = AutoModelForCausalLM.from_pretrained(tiny_model_dir, dtype=torch.float32)
    for row, (asked, text) in enumerate(turns):
        before = tokenizer(f"{asked}\nuser: ")["input_ids"][-384:]
        said = tokenizer(text, add_special_tokens=False)["input_ids"][:128] or before[-1:]
        with torch.no_grad():
            states = model(torch.tensor([[*before, *said]]), output_hidden_states=True).hidden_states
        truth = states[model.config.num_hidden_layers // 2][0, len(before) :].double().mean(0)
        np.testing.assert_allclose(found[row], truth.numpy(), atol=1e-5)


def test_the_shipped_turns_are_no_measure_of_themselves():
    training, labelled = read_labelled(TRAINING), read_labelled(LABELLED)
    assert len(training) == 484 and {one.language for one in training} == {one.language for one in labelled}
    assert {one.turn.text for one in training}.isdisjoint(one.turn.text for one in labelled)


def fit(log: Path | None, folder: Path, model: Path, train: str = "shipped", **more: object) -> Found:
    source = Source(logs=(log,) if log else ())
    return find_corrections_by_head(source, folder / "turns.jsonl", Who(model=str(model)), train, lambda said: None,
                                    **more)  # type: ignore[arg-type]  # fmt: skip


@pytest.fixture
def states_by_word(monkeypatch: pytest.MonkeyPatch) -> None:
    """In place of a model: the figure 340 in a turn is all that its states say."""

    def states(folder: Path, turns: list[tuple[str, str]]) -> np.ndarray:
        draw = np.random.default_rng(0)
        made = draw.normal(size=(len(turns), 6))
        made[:, 2] = [3.0 if "340" in text else -3.0 for _, text in turns]
        return made

    monkeypatch.setattr("raylign.feedback.turn_states.turn_states", states)


def labelled(file: Path, turns: int, word: str) -> Path:
    rows = [
        {"question": "q", "answer": "a", "turn": f"{(word, 'fine')[n % 2]} {file.stem} {n}", "corrects": n % 2 == 0}
        for n in range(turns)
    ]
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return file


def test_a_head_that_was_measured_well_adds_rows(tmp_path: Path, tiny_model_dir: Path, states_by_word):
    train, measured = labelled(tmp_path / "train.jsonl", 150, "340"), labelled(tmp_path / "other.jsonl", 40, "340")
    log = write_log(tmp_path, "The invoice says 340.", "Put the tax beside it.")
    found = fit(log, tmp_path, tiny_model_dir, f"{train}", labelled=measured)
    assert (found.model.right, found.model.wrong, found.model.missed) == (20, 0, 0)
    assert (found.turns, found.by_model, found.fitted, found.asked) == (2, 1, 150, 0)
    assert "a head fitted to 150 turns" in found_lines(found, tmp_path)[0]
    assert [corrects for _, _, corrects in read_judged(tmp_path / "turns.jsonl").turns] == [True, False]
    _, rules = made(tmp_path, log)
    assert list(rules.values()) == [["in_conversation_judged"]]
    assert fit(log, tmp_path, tiny_model_dir, f"{train}", labelled=measured) == found


def test_a_head_that_is_wrong_on_other_turns_is_refused_by_a_build(
    tmp_path: Path, tiny_model_dir: Path, states_by_word
):
    rows = [{"question": "q", "answer": "a", "turn": f"340 {n}", "corrects": n % 2 == 0} for n in range(20)]
    measured = tmp_path / "other.jsonl"
    measured.write_text("".join(json.dumps(row) + "\n" for row in rows))
    log = write_log(tmp_path, "The invoice says 340.")
    train = labelled(tmp_path / "train.jsonl", 150, "340")
    found = fit(log, tmp_path, tiny_model_dir, f"{train}", labelled=measured)
    assert any("a build refuses this judge" in line for line in found_lines(found, tmp_path))
    with pytest.raises(DataError, match=r"corrections\.min_precision"):
        made(tmp_path, log)


def test_turns_that_are_measured_are_not_trained_on(tmp_path: Path, tiny_model_dir: Path, states_by_word):
    train = labelled(tmp_path / "train.jsonl", 150, "340")
    both = tmp_path / "both.jsonl"
    both.write_text("".join(f"{line}\n" for line in train.read_text().splitlines()[:40]))
    assert fit(None, tmp_path, tiny_model_dir, f"{train}", labelled=both).fitted == 110
    with pytest.raises(DataError, match="every one of its turns"):
        fit(None, tmp_path, tiny_model_dir, f"{both}", labelled=train)


def test_what_cannot_be_fitted_is_one_sentence(tmp_path: Path, tiny_model_dir: Path, capsys):
    with pytest.raises(UserError, match="hidden states"):
        find_corrections_by_head(
            Source(logs=()), tmp_path / "t.jsonl", Who(model="m", url="http://127.0.0.1:1/v1"), "shipped", print
        )
    arguments = ["feedback", "corrections", "--model", str(tiny_model_dir), "--out", str(tmp_path / "t.jsonl")]
    assert run_command(lambda: app([*arguments, "--train", str(tmp_path / "none.jsonl")])) == 2
    assert "--train" in capsys.readouterr().err
