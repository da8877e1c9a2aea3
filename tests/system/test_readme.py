"""README.md is run: every command as it stands there, its tree against the disk, its algorithm on real numbers."""

from __future__ import annotations

import asyncio
import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from raylign.data.sample_model import tiny_model
from raylign.data.types import ScoredBatch, TokenBatch
from raylign.feedback.simulate.answers import PlantedModel, TemplateAnswers
from raylign.feedback.simulate.judge import SignalMix
from raylign.feedback.simulate.run import Simulation, simulate
from raylign.records.metrics_log import read_history
from raylign.records.run_folder import RunPaths
from raylign.trainer.algorithms.own import own_algorithm
from raylign.trainer.algorithms.trial import trial

from tests.system.tiny_runs import question_rows

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text()
BIN = Path(sys.executable).parent
DEADLINE_S = 500


def blocks(kind: str) -> list[str]:
    """The fenced blocks of one kind, in order. All fences are paired first: a closing one looks like an opening one."""
    fenced = re.findall(r"^```([^\n]*)\n(.*?)^```$", README, flags=re.MULTILINE | re.DOTALL)
    return [text for said, text in fenced if said == kind]


def commands(block: str) -> list[str]:
    """One command each, continued lines joined."""
    return block.replace("\\\n", " ").strip().splitlines()


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the files that README's commands name."""
    folder = tmp_path_factory.mktemp("newcomer")
    tiny_model(folder / "my-model", tie=True)
    (folder / "prompts.jsonl").write_text(question_rows(16))
    pairs = ({"prompt": f"What is {i}?", "chosen": f"It is {i}.", "rejected": "I do not know " * 3} for i in range(32))
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    mix = SignalMix(side_by_side=0.6, thumb=0.2, correction=0.2)
    models = (PlantedModel("amber", strength=0.9), PlantedModel("dune", strength=-0.9))
    log = asyncio.run(simulate(Simulation(conversations=150, mix=mix), TemplateAnswers(models)))
    log.write(folder / "events.jsonl")
    return folder


@pytest.mark.system
@pytest.mark.slow
@pytest.mark.timeout(len(blocks("sh")) * DEADLINE_S)
def test_the_commands_do_what_is_said(folder: Path) -> None:
    """In the order of the page, as a person with the environment activated types them."""
    env = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    told: dict[str, str] = {}
    for command in [command for block in blocks("sh") for command in commands(block)]:
        done = subprocess.run(
            command, shell=True, cwd=folder, env=env, capture_output=True, text=True, timeout=DEADLINE_S, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        told[command.split()[1]] = done.stdout
    assert told.keys() == {"doctor", "plan", "train", "watch", "export", "report", "feedback"}
    assert "raylign plan" in told["plan"] and "Placement" in told["plan"]
    for name in ("my-sft", "my-dpo", "my-ppo", "my-grpo"):
        run = RunPaths(folder / "runs" / name)
        assert [row.step for row in read_history(run.metrics).rows] == [1, 2, 3]
        assert run.report.is_file() and run.summary.is_file()
    assert Path(told["report"].strip()) == Path("comparison.html")  # of the last of the page's two report commands
    assert (folder / "comparison.html").is_file()
    config = json.loads((folder / "my-better-model" / "config.json").read_text())
    assert config["architectures"] == ["LlamaForCausalLM"]


def test_the_tree_is_the_disk() -> None:
    (tree,) = [block for block in blocks("") if "trainer/ " in block]
    shown = re.findall(r"^([a-z]+)/ ", tree, flags=re.MULTILINE)
    ignored = {line.strip("/") for line in (ROOT / ".gitignore").read_text().splitlines()}
    on_disk = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and path.name not in ignored and path.suffix != ".egg-info"
    }
    assert shown == sorted(on_disk)


def test_the_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\(([^)]+)\)", README):
        assert (ROOT / target).is_file(), target


def test_the_algorithm_works_in_ten_lines(tmp_path: Path) -> None:
    """It is what the loop needs, and it does what its docstring says."""
    (text,) = blocks("python")
    code = [line for line in text.splitlines() if line.strip() and not line.startswith(("from", "import"))]
    assert len(code) <= 10
    (tmp_path / "wins.py").write_text(text)
    settings, build = own_algorithm(f"{tmp_path}/wins.py:Wins")
    assert settings.__name__ == "WinsConfig" and trial(settings(), build) == []
    algorithm: Any = build(settings())
    masks = [[False, True], [False, True], [False, True]]
    tokens = TokenBatch.from_sequences([[0, 1]] * 3, masks)
    flat = torch.where(tokens.response_mask, -1.0, 0.0)
    batch = ScoredBatch(
        tokens=tokens,
        group=torch.tensor([0, 0, 0]),
        scores=torch.tensor([9.0, 1.0, 2.0]),
        truncated=torch.tensor([False, False, False]),
        logprobs=flat,
        ref_logprobs=flat,
        estimates=None,
    )
    assert algorithm.estimate(batch, kl_coef=0.1).advantages.tolist() == [0, 1, 0, -1, 0, -1]
    assert "rollout" in {role.value for role in algorithm.roles}


@pytest.mark.system
@pytest.mark.thorough
@pytest.mark.timeout(8 * DEADLINE_S)
def test_the_tutorial_can_be_followed(tmp_path: Path) -> None:
    """Its blocks in order, python and shell, in an empty folder."""
    page = (ROOT / "docs" / "tutorial.md").read_text()
    env = os.environ | {"PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}"}
    for kind, text in re.findall(r"^```(python|sh)\n(.*?)^```$", page, flags=re.MULTILINE | re.DOTALL):
        command = [sys.executable, "-c", text] if kind == "python" else ["bash", "-ec", text]
        done = subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, timeout=2 * DEADLINE_S, check=False
        )
        assert done.returncode == 0, f"{text}\n{done.stdout}\n{done.stderr}"
    assert (tmp_path / "built" / "report.html").is_file()
    for name in ("tutorial-sft", "tutorial-dpo"):
        assert read_history(RunPaths(tmp_path / "runs" / name).metrics).rows[-1].step == 3
    assert (tmp_path / "my-better-model" / "model.safetensors").is_file()
