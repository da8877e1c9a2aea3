"""The chain with every role real: SFT, then DPO and KTO, or a reward model and PPO, each from the run before.

Each learns and leaves a model that transformers and vLLM load.
"""

from __future__ import annotations

import json
import shutil
from io import StringIO
from pathlib import Path
from statistics import fmean

import pytest
import torch
from peft import PeftModel
from raylign.app.commands.trace import trace_event
from raylign.app.configuration import compose
from raylign.app.main import run
from raylign.cluster.session import Session
from raylign.conf.model_folder import model_folder
from raylign.conf.schema import Precision
from raylign.data.chat_template import FAMILIES
from raylign.data.types import TokenBatch
from raylign.records.glossary import describe
from raylign.records.metrics_log import MetricHistory, read_history
from raylign.records.run_folder import RunPaths
from raylign.records.summary import read_summary
from raylign.trainer.checkpoint import open_checkpoint
from raylign.trainer.models.loading import load_causal_lm
from rich.console import Console
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification, AutoTokenizer

from tests.system.tiny_runs import play

pytestmark = [pytest.mark.system, pytest.mark.timeout(600)]

STEPS = 10
WORDS = ("apple", "river", "train", "letter", "light")


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def question(i: int) -> str:
    return f"What is a {WORDS[i % 5]} {i}?"


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Forty rows of each kind: the good answer names the word, the bad one does not."""
    root = tmp_path_factory.mktemp("rows")
    good, bad = [f"It is the {WORDS[i % 5]}." for i in range(40)], [f"No idea {i}." for i in range(40)]
    asked = [{"role": "user", "content": question(i)} for i in range(40)]
    return {
        "sft": write(
            root / "sft.jsonl",
            [{"messages": [asked[i], {"role": "assistant", "content": good[i]}]} for i in range(40)],
        ),
        "dpo": write(
            root / "dpo.jsonl", [{"prompt": question(i), "chosen": good[i], "rejected": bad[i]} for i in range(40)]
        ),
        "kto": write(
            root / "kto.jsonl",
            [{"prompt": question(i), "completion": (good, bad)[i % 2][i], "label": i % 2 == 0} for i in range(40)],
        ),
    }


def settings(algorithm: str, model: Path, rows: Path, root: Path, name: str = "") -> list[str]:
    return [
        f"+experiment={algorithm}_tiny_cpu", f"policy.model={model}", f"data.train={rows}",
        f"data.eval={{known: {rows}, again: {rows}}}", f"run_root={root}", f"name={name or algorithm}",
        f"num_steps={STEPS}", "evaluation.every=5", "evaluation.best=eval/known/loss", "checkpoint.keep=1",
        "policy.optim.lr=1e-3", "tracking.wandb=disabled",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.fixture(scope="module")
def bare(tiny_model_dir: Path, root: Path) -> Path:
    """A model without a chat template, as base models are."""
    folder = root / "bare"
    shutil.copytree(tiny_model_dir, folder, ignore=shutil.ignore_patterns("chat_template.jinja"))
    assert AutoTokenizer.from_pretrained(folder).chat_template is None
    return folder


@pytest.fixture(scope="module")
def sft_run(data: dict[str, Path], root: Path, bare: Path, ray_session: Session) -> RunPaths:
    """It gives the model a template, which its export carries on to all runs below."""
    return play([*settings("sft", bare, data["sft"], root), "data.chat_template=chatml"], ray_session)


def losses(history: MetricHistory) -> list[float]:
    return [value for step, value in history.series("train/loss") if step > 0 and value is not None]


def check_run(done: RunPaths, start: Path) -> Path:
    """It learned, said what it did in known words, and its export is the trained model. Returns the export."""
    history = read_history(done.metrics)
    found = losses(history)
    assert len(found) == STEPS and fmean(found[-3:]) < 0.95 * fmean(found[:3]), found
    assert [n for n in history.names() if describe(n) is None] == []
    for name in ("known", "again"):
        held_out = [value for _, value in history.series(f"eval/{name}/loss") if value is not None]
        assert len(held_out) == 3 and held_out[-1] < held_out[0]
    newest = done.checkpoints / (done.checkpoints / "LATEST").read_text().strip()
    assert open_checkpoint(newest).state.best["step"] == STEPS
    assert read_summary(done.summary).extra["best_step"] == STEPS
    export = Path(model_folder(str(done.path)).path)
    assert export.name == f"step-{STEPS}" and (done.export / "BEST").read_text() == f"step-{STEPS}\n"
    model = AutoModelForCausalLM.from_pretrained(export, dtype=torch.float32)
    before = AutoModelForCausalLM.from_pretrained(start, dtype=torch.float32)
    assert not torch.equal(model.model.embed_tokens.weight, before.model.embed_tokens.weight)
    tokenizer = AutoTokenizer.from_pretrained(export)
    assert tokenizer.chat_template == FAMILIES["chatml"].template
    assert (export / "README.md").read_text().startswith("---\n")
    same_logprobs(export, model, tokenizer)
    check_trace(done)
    return export


def check_trace(done: RunPaths) -> None:
    """A row's way through a run of real ranks: the repeated training is the run's own, to rounding."""
    trace, page = trace_event(done.path, "row:4", lambda _: None)
    (row,) = trace.rows
    assert trace.loss_gap < 1e-4 and trace.num_steps == STEPS
    assert row.steps and row.origin.number == 4 and row.question[-1].content == question(3)
    assert page.is_file() and question(3) in page.read_text()
    last = max(row.steps, key=lambda step: step.step)
    if last.step == STEPS:
        assert last.after == pytest.approx(row.end, rel=1e-4, abs=1e-3)


def same_logprobs(export: Path, model: torch.nn.Module, tokenizer: object) -> None:
    """transformers' own forward and ours give the same log-probs."""
    ids = tokenizer("What is a river?")["input_ids"]  # type: ignore[operator]
    with torch.no_grad():
        logits = model(torch.tensor([ids])).logits[0, :-1].log_softmax(-1)
        own = load_causal_lm(export, precision=Precision.float32)(
            TokenBatch.from_sequences([ids], [[False, *[True] * (len(ids) - 1)]]), temperature=1.0
        )
    theirs = logits.gather(1, torch.tensor(ids[1:])[:, None])[:, 0]
    torch.testing.assert_close(own.logprobs[1:], theirs, rtol=1e-4, atol=1e-4)


def test_sft_learns_and_counts_its_tokens(sft_run: RunPaths, bare: Path) -> None:
    check_run(sft_run, bare)
    counted = [value for _, value in read_history(sft_run.metrics).series("train/num_tokens") if value is not None]
    assert counted == sorted(counted) and len(set(counted)) == STEPS


@pytest.mark.parametrize("algorithm", ["dpo", "kto"])
def test_preferences_are_learned_from_the_sft_run_with_a_reference_computed_once(
    algorithm: str, sft_run: RunPaths, data: dict[str, Path], root: Path, ray_session: Session
) -> None:
    given = settings(algorithm, sft_run.path, data[algorithm], root)
    said = StringIO()
    done = run(
        compose([*given, "policy.optim.lr=2e-4"]), console=Console(file=said, width=400), ray_session=ray_session
    )
    check_run(done, Path(model_folder(str(sft_run.path)).path))
    history = read_history(done.metrics)
    first = history.rows[1].values  # before the first update policy and reference are one model
    assert first["train/rewards/chosen"] == pytest.approx(0, abs=1e-3)
    last = history.rows[-1].values
    assert last["eval/known/rewards/chosen"] - last["eval/known/rewards/rejected"] > 0.05
    told = said.getvalue()
    assert "is a run; its best export step-10 is used" in told and "computed now, kept in" in told
    caches = {path: path.stat().st_mtime_ns for path in (root / ".reference").glob("*.safetensors")}

    again = StringIO()
    second = [s for s in given if not s.startswith(("name=", "num_steps="))]
    run(
        compose([*second, f"name={algorithm}-again", "num_steps=1", "policy.optim.lr=2e-4"]),
        console=Console(file=again, width=400),
        ray_session=ray_session,
    )
    assert "taken from" in again.getvalue() and "computed now" not in again.getvalue()
    assert {path: path.stat().st_mtime_ns for path in (root / ".reference").glob("*.safetensors")} == caches
    repeated = read_history(RunPaths(root / f"{algorithm}-again").metrics).rows[1].values
    assert repeated["train/loss"] == pytest.approx(first["train/loss"], rel=1e-6)


def test_runs_with_adapters_leave_whole_models_that_the_next_one_starts_from(
    data: dict[str, Path], root: Path, tiny_model_dir: Path, ray_session: Session
) -> None:
    """SFT, a reward model from the SFT run, PPO from both. peft on the start model says what the merged export says."""
    adapters = ["policy.lora.rank=8", "policy.lora.save_adapter=true", "policy.optim.lr=1e-2"]
    first = play([*settings("sft", tiny_model_dir, data["sft"], root, "sft-lora"), *adapters], ray_session)
    start = check_adapted(first, tiny_model_dir, AutoModelForCausalLM)
    second = play([*settings("rm", first.path, data["dpo"], root, "rm-lora"), *adapters], ray_session)
    check_adapted(second, start, AutoModelForSequenceClassification)
    assert read_history(second.metrics).rows[-1].values["eval/known/accuracy"] == 1
    prompts = write(root / "prompts.jsonl", [{"prompt": question(i), "id": str(i)} for i in range(16)])
    third = play(
        [
            "+experiment=ppo_tiny_cpu", f"policy.model={first.path}", f"critic.model={second.path}",
            f"reward.model={second.path}", f"data.train={prompts}", f"run_root={root}", "name=ppo-chain",
            "num_steps=2", "rollout.prompts_per_step=4", "rollout.samples_per_prompt=4", "rollout.max_new_tokens=8",
            "algorithm.sequences_per_update=16", "policy.optim.lr=1e-3", "tracking.wandb=disabled",
        ],
        ray_session,
    )  # fmt: skip
    sampled = read_history(third.metrics).rows[1].values
    assert sampled["rollout/logprob_gap"] < 1e-3  # vLLM reads the SFT run's merged export as the learner does
    load_causal_lm(Path(model_folder(str(third.path)).path), precision=Precision.float32)
    trace, page = trace_event(third.path, "row:4", lambda _: None)  # by way of the reward model, whose adapters moved
    assert trace.run == "rm-lora" and trace.online == "ppo-chain" and page.parent.parent == second.path
    assert trace.loss_gap < 1e-3 and trace.rows[0].end - trace.rows[0].start > 0
    assert len(trace.answers) == 10 and trace.answers[0].cosine > 0 > trace.answers[-1].cosine


def check_adapted(done: RunPaths, start: Path, auto: type) -> Path:
    """The run learned; its export is the start model with its adapter, merged. Returns the export."""
    found = losses(read_history(done.metrics))
    assert len(found) == STEPS and fmean(found[-3:]) < 0.95 * fmean(found[:3]), found
    export = Path(model_folder(str(done.path)).path)
    labels = {"num_labels": 1} if auto is AutoModelForSequenceClassification else {}
    merged = auto.from_pretrained(export, dtype=torch.float32).eval()
    base = auto.from_pretrained(start, dtype=torch.float32, **labels)
    embedding = base.get_input_embeddings().weight.clone()
    adapted = PeftModel.from_pretrained(base, export / "adapter").eval()
    ids = torch.tensor([AutoTokenizer.from_pretrained(export)("What is a river?")["input_ids"]])
    with torch.no_grad():
        torch.testing.assert_close(merged(ids).logits, adapted(ids).logits, rtol=1e-5, atol=1e-4)
        with adapted.disable_adapter():
            assert (merged(ids).logits - adapted(ids).logits).abs().max() > 0.05
    assert torch.equal(merged.get_input_embeddings().weight, embedding)
    assert "LoRA, merged" in (export / "README.md").read_text()
    return export


def test_a_users_copy_of_an_algorithm_trains_bit_by_bit_as_the_shipped_one(
    data: dict[str, Path], root: Path, tiny_model_dir: Path, tmp_path: Path, ray_session: Session
) -> None:
    """The file and what it imports from beside it are in no place where a rank could find them."""
    shipped = (Path(__file__).parents[2] / "trainer" / "algorithms" / "dpo.py").read_text()
    beside = "raylign.trainer.functional.preferences import hinge_loss, ipo_loss, robust_sigmoid_loss"
    assert beside in shipped
    (tmp_path / "my_losses.py").write_text(f"from {beside}, smoothed_sigmoid_loss as _shipped\n\n\n"
        "def smoothed_sigmoid_loss(margins, smoothing):\n    return _shipped(margins, smoothing)\n")  # fmt: skip
    (tmp_path / "my_dpo.py").write_text(shipped.replace("raylign.trainer.functional.preferences", "my_losses"))
    found = []
    for name, named in (("dpo-shipped", "dpo"), ("dpo-own", f"{tmp_path}/my_dpo.py:DPO")):
        given = settings("dpo", tiny_model_dir, data["dpo"], root, name)
        done = play([*given, f"algorithm={named}", "num_steps=3", "evaluation.best=''"], ray_session)
        found.append({n: v for n, v in read_history(done.metrics).rows[-1].values.items() if "/rewards" in n})
        found[-1]["losses"] = losses(read_history(done.metrics))
    assert found[0] == found[1] and len(found[0]["losses"]) == 3
    manifest = json.loads((root / "dpo-own" / "manifest.json").read_text())
    assert {"algorithm/my_dpo.py", "algorithm/my_losses.py"} <= set(json.dumps(manifest).split('"'))
    assert "training with DPO" in (root / "dpo-own" / "export" / "step-3" / "README.md").read_text()
