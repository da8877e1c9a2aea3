"""Runs named as models, best steps, exports and their cards."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest
from raylign.app.launch.chain import came_from, chain_group, named_runs, with_model_folders
from raylign.app.launch.checkpoints import OfflineRunSaver, Saving, restore_offline
from raylign.conf.errors import ConfigError, RunFailed
from raylign.conf.held_out import held_out_sets
from raylign.conf.model_folder import model_folder
from raylign.conf.schema import Better, DataConfig, LearnerConfig, RunConfig, TrackingConfig
from raylign.records.model_card import model_card
from raylign.records.model_names import BaseModel, base_model
from raylign.records.run_folder import RunPaths
from raylign.trainer.algorithms.dpo import DPOConfig
from raylign.trainer.checkpoint import CheckpointStore, RngState, RunState
from raylign.trainer.loops.best import BestRule, BestStep
from raylign.trainer.loops.offline import OfflineProgress
from raylign.trainer.verified_folder import FileDigest

CONFIG = RunConfig(
    name="second",
    algorithm=DPOConfig(),
    policy=LearnerConfig(model="runs/first/export/step-8"),
    data=DataConfig(train="pairs.jsonl", eval={"math": "m.jsonl", "chat": "c.jsonl"}),
)


def finished_run(root: Path, name: str) -> Path:
    return run_folder(root, 3, name=name)


def run_folder(root: Path, *steps: int, name: str = "first") -> Path:
    run = root / name
    for step in steps:
        (run / "export" / f"step-{step}").mkdir(parents=True)
        (run / "export" / f"step-{step}" / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    run.mkdir(exist_ok=True)
    (run / "resolved.yaml").write_text("")
    return run


def test_a_run_stands_for_its_newest_export_or_the_best_one(tmp_path: Path) -> None:
    run = run_folder(tmp_path, 8, 20)
    (run / "export" / ".step-30.part").mkdir()
    assert model_folder(str(run)).path == str(run / "export" / "step-20")
    named = replace(CONFIG, policy=LearnerConfig(model=str(run)))
    assert with_model_folders(named).policy.model == str(run / "export" / "step-20")
    assert with_model_folders(named).reference.model == ""
    (sentence,) = named_runs(named)
    assert sentence.startswith(f"policy.model={run} is a run; its newest export step-20 is used")
    (run / "export" / "BEST").write_text("step-8\n")
    assert model_folder(str(run)).path == str(run / "export" / "step-8")
    assert "its best export step-8" in named_runs(named)[0]


def test_a_run_without_an_export_is_refused_and_a_plain_folder_is_itself(tmp_path: Path) -> None:
    run = run_folder(tmp_path)
    with pytest.raises(ConfigError, match=r"policy.model=.* is a run without an export"):
        with_model_folders(replace(CONFIG, policy=LearnerConfig(model=str(run))))
    assert model_folder(str(tmp_path)).path == str(tmp_path) and model_folder("").path == ""
    assert named_runs(CONFIG) == []


def test_held_out_sets_have_names() -> None:
    assert held_out_sets("") == {} and held_out_sets("a/b.jsonl") == {"held_out": "a/b.jsonl"}
    assert held_out_sets(["x/math.jsonl", "org/chat"]) == {"math": "x/math.jsonl", "chat": "org/chat"}
    assert held_out_sets({"m": "a.jsonl"}) == {"m": "a.jsonl"}
    for wrong, reason in ((["a/x.jsonl", "b/x.jsonl"], "two sets"), ({"a/b": "c"}, "cannot name"), ({"a": 3}, "is 3")):
        with pytest.raises(ValueError, match=reason):
            held_out_sets(wrong)


def test_the_best_step_is_the_first_that_beats_all_before() -> None:
    rule = BestRule("eval/math/loss", Better.lower)
    first = rule.improved(None, 2, {"eval/math/loss": 1.0})
    assert first == BestStep(2, 1.0)
    assert rule.improved(first, 4, {"eval/math/loss": 1.0}) is None
    assert rule.improved(first, 4, {"eval/math/loss": float("nan")}) is None
    assert rule.improved(first, 4, {"eval/math/loss": 0.5}) == BestStep(4, 0.5)
    assert BestRule("eval/a/accuracy", Better.higher).improved(first, 4, {"eval/a/accuracy": 2.0}) == BestStep(4, 2.0)
    with pytest.raises(RunFailed, match=r"evaluation.best=eval/math/loss.*it gives eval/math/entropy"):
        rule.improved(None, 2, {"eval/math/entropy": 1.0, "train/loss": 1.0})


class Model:
    """A role that writes its step."""

    text = ""
    num_ranks = 1

    async def save(self, folder: str) -> None:
        (Path(folder) / "rank-00000.safetensors").write_text(self.text)

    async def saved(self) -> dict[str, FileDigest]:
        return {}

    async def restore(self, folder: str) -> None:
        self.text = (Path(folder) / "rank-00000.safetensors").read_text()

    async def export(self, folder: str) -> None:
        Path(folder).mkdir()
        (Path(folder) / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')


def test_the_best_checkpoint_and_export_outlive_newer_ones(tmp_path: Path) -> None:
    paths, model = RunPaths(tmp_path), Model()
    paths.export.mkdir()
    store = CheckpointStore(paths.checkpoints, keep=1)
    saving = Saving(store, None, run_generation=1, max_failed=0, tell=print)
    saver = OfflineRunSaver(saving, model, paths, model_card(CONFIG, with_reference=True))

    async def play() -> OfflineProgress:
        for step, best in ((2, BestStep(2, 1.0)), (4, BestStep(4, 0.5)), (6, BestStep(4, 0.5)), (8, BestStep(4, 0.5))):
            model.text = f"at {step}"
            progress = OfflineProgress(step, {"position": step}, best)
            await saver.save(progress, wait=False)
            if best.step == step or step == 8:
                await saver.export(progress)
        await saver.close()
        found = CheckpointStore(paths.checkpoints, keep=1).latest()
        assert found is not None
        return await restore_offline(found, model)

    assert asyncio.run(play()) == OfflineProgress(8, {"position": 8}, BestStep(4, 0.5))
    assert sorted(p.name for p in paths.checkpoints.glob("step-*")) == ["step-000004", "step-000008"]
    assert sorted(p.name for p in paths.export.iterdir()) == ["BEST", "step-4", "step-8"]
    assert (paths.export / "BEST").read_text() == "step-4\n"
    assert "step 4" in (paths.export / "step-4" / "README.md").read_text()


def test_a_checkpoint_from_before_there_were_best_steps_still_opens() -> None:
    state = RunState(3, 1, {}, {}, {}, RngState.capture())
    assert dict(state.best) == {}


def test_the_card_says_what_went_in_and_how_to_load_it() -> None:
    card = model_card(CONFIG, with_reference=True)
    text = card.text(7, scalar=False)
    for said in ("pairs.jsonl", "m.jsonl", "c.jsonl", "first, step 8", "direct preference", "step 7"):
        assert said in text
    assert "AutoModelForCausalLM" in text and text.startswith("---\n")
    assert "AutoModelForSequenceClassification" in card.text(7, scalar=True)
    assert "scores have no unit" in card.text(7, scalar=True).lower()


def test_the_card_names_base_model_and_licence_over_a_chain_and_no_folder_of_this_machine(tmp_path: Path) -> None:
    base = tmp_path / "SmolBase"
    base.mkdir()
    (base / "README.md").write_text("---\nlicense: apache-2.0\n---\n# Base")
    for name, start in (("sft", base), ("dpo", tmp_path / "sft" / "export" / "step-3")):
        (finished_run(tmp_path, name) / "resolved.yaml").write_text(f"policy: {{model: {start}}}")
    metrics = tmp_path / "metrics.jsonl"
    metrics.write_text(
        '{"step": 0, "eval/held_out/loss": 2.0}\n{"step": 7, "eval/held_out/loss": 1.5}\n'
        '{"step": 9, "eval/held_out/loss": 9.0}\n'
    )
    start = str(tmp_path / "dpo" / "export" / "step-3")
    data = DataConfig(train=str(tmp_path / "pairs.jsonl"), eval=str(tmp_path / "held.jsonl"))
    card = model_card(
        replace(CONFIG, policy=LearnerConfig(model=start), data=data), with_reference=True, metrics=metrics
    )
    text = card.text(7, scalar=False)
    assert "| base model | `SmolBase` |" in text and "| started from | `dpo, step 3` |" in text
    assert '\nlicense: "apache-2.0"\n' in text and "base_model:" not in text, "a folder's name is no hub address"
    assert "| `held_out/loss` | 2 | 1.5 |" in text, "what came after this step is not this model's"
    assert "pairs.jsonl" in text and str(tmp_path) not in text
    cached = str(tmp_path / "models--org--base-1b" / "snapshots" / "0a1b")
    assert base_model(cached) == BaseModel("org/base-1b", "", is_hub_name=True)
    hub = model_card(replace(CONFIG, policy=LearnerConfig(model="org/base-1b")), with_reference=False).text(
        1, scalar=False
    )
    assert '\nbase_model: "org/base-1b"\n' in hub and "not recorded" in hub and "held nothing out" in hub


def test_a_chain_is_one_group_named_after_its_first_run(tmp_path: Path) -> None:
    """SFT, then a reward model from it, then PPO from both: by run folder, and by the folder of an export."""
    sft, rm = finished_run(tmp_path, "sft"), finished_run(tmp_path, "rm")
    reward_run = replace(CONFIG, policy=LearnerConfig(model=str(sft)))
    assert chain_group(reward_run, "rm") == "sft"
    (rm / "resolved.yaml").write_text("tracking: {group: sft}\n")
    ppo = replace(CONFIG, policy=LearnerConfig(model=str(rm / "export" / "step-3")))
    assert came_from(ppo) == {"policy": str(rm)}
    assert chain_group(ppo, "ppo") == "sft"
    assert chain_group(replace(ppo, tracking=TrackingConfig(group="mine")), "ppo") == "mine"
    assert chain_group(CONFIG, "alone") == "alone"


@pytest.mark.parametrize("text", ["", "[", "tracking: 3", "tracking: {group: auto}"])
def test_a_run_without_a_group_gives_its_name(tmp_path: Path, text: str) -> None:
    run = finished_run(tmp_path, "sft")
    (run / "resolved.yaml").write_text(text)
    assert chain_group(replace(CONFIG, policy=LearnerConfig(model=str(run))), "x") == "sft"
