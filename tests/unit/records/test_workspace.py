"""The saved W&B workspace: names that runs really log, in the form that W&B's own package sends."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from raylign.conf.errors import UserError
from raylign.records.glossary import describe
from raylign.records.workspace import SECTIONS, build_workspace, save_workspace


def test_every_panel_is_a_metric_that_the_glossary_knows() -> None:
    names = [name for section in SECTIONS for panel in section.panels for name in panel.metrics]
    assert len(set(names)) == len(names) and all(describe(name) for name in names)
    assert {"reward/mean", "policy/kl", "rollout/response_length", "policy/entropy"} <= set(names)


def test_the_view_as_it_is_sent_pins_the_sections_and_draws_over_training_steps() -> None:
    view = build_workspace("toy", "team")._to_model()
    sent = json.loads(view.model_dump_json(by_alias=True))
    sections = sent["spec"]["section"]["panelBankConfig"]["sections"]
    assert [s["name"] for s in sections if s.get("pinned")] == [section.title for section in SECTIONS]
    first = sections[0]["panels"][0]["config"]
    assert first["metrics"] == ["reward/mean"] and first["xAxis"] == "train/global_step"


@pytest.mark.parametrize(
    ("environ", "sentence"),
    [
        ({}, "there is no key for https://api.wandb.ai: run `wandb login`"),
        ({"WANDB_BASE_URL": "http://127.0.0.1:9"}, "there is no key for http://127.0.0.1:9"),
    ],
)
def test_without_a_key_nothing_is_asked_of_a_server(environ: dict[str, str], sentence: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="there is no key"):
        save_workspace("toy", "", {**environ, "HOME": str(tmp_path)})
    with pytest.raises(UserError) as told:
        save_workspace("toy", "", environ)
    assert sentence in str(told.value)
