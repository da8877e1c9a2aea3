"""Whose judgements are in which model: ledgers of rows, chains of runs, and what `feedback forget` says of them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from io import StringIO
from pathlib import Path

import pytest
import yaml
from raylign.app.commands.feedback import run_forget
from raylign.app.commands.forgotten_models import NONE
from raylign.conf.errors import DataError
from raylign.data.data_ledger import DataLedger, event_digest, file_ledger, ledger_of, read_ledger
from raylign.evals.registry import Registry
from raylign.feedback.build import build
from raylign.feedback.build_result import read_result
from raylign.feedback.source import Source
from raylign.records.lineage import KnownRun, concerned_by, known_runs
from raylign.records.manifest import read_manifest
from raylign.records.redaction import Redactor
from raylign.records.run_folder import RunFolder
from rich.console import Console


def choice(n: int) -> dict[str, object]:
    turn = {"role": "user", "content": f"How do I reset pump number {7 * n} in building {n}?"}
    answers = {"response_a": f"Hold the button of pump {n} for ten seconds.", "response_b": f"Buy a new pump {n}."}
    return {"event_id": f"c{n}", "kind": "side_by_side", "prompt": [turn], **answers, "choice": "a",
            "user_id": f"user{n}", "annotator_id": f"judge{n % 3}"}  # fmt: skip


@pytest.fixture
def built(tmp_path: Path) -> Path:
    """Twelve choices of twelve people, judged by three."""
    log = tmp_path / "log.jsonl"
    log.write_text("".join(json.dumps(choice(n)) + "\n" for n in range(12)))
    build(Source(logs=(log,), overrides=("split.eval=0.2", "split.test=0")), tmp_path / "built", with_report=False)
    return tmp_path / "built"


def train(
    root: Path, name: str, data: Path, *, head: str = "CausalLM", came_from: Mapping[str, str] | None = None
) -> Path:
    """The folder of a finished run, as `raylign train` leaves it."""
    with RunFolder.open(root, name, resume=True) as folder:
        folder.resolved.write_text(yaml.safe_dump({"data": {"train": str(data)}}))
        folder.write_manifest([], {}, Redactor({}), came_from=came_from, data_ledger=file_ledger(str(data)))
        export = folder.export / "step-1"
        export.mkdir(exist_ok=True)
        (export / "config.json").write_text(json.dumps({"architectures": [f"LlamaFor{head}"]}))
        return folder.path


def forgetting(built: Path, *who: str, roots: list[Path]) -> list[str]:
    told = StringIO()
    run_forget(built, who, [], Console(file=told, width=300), run_roots=roots, registry=built.parent / "registry")
    return told.getvalue().splitlines()


def test_a_run_and_the_card_name_the_same_ledger(built: Path, tmp_path: Path):
    run = train(tmp_path / "runs", "rm", built / "pairs" / "train.jsonl")
    produced = {(made.kind, made.split): made.ledger for made in read_result(built).produced}
    named = read_manifest(run / "manifest.json").current.data_ledgers["data.train"]
    assert named == produced["pairs", "train"] != produced["pairs", "eval"]
    assert named in (built / "card.md").read_text() and produced["kto", "train"] == ""  # nobody's
    text = (run / "data_ledger.json").read_text()
    assert not any(f'"c{n}"' in text for n in range(12))  # no id of an event


def test_a_ledger_is_of_what_rows_say(tmp_path: Path):
    rows = [(["a", "b"], "p"), (["b"], None)]
    both = ledger_of(rows)
    assert both.events == {event_digest("a"), event_digest("b")} and both.people == {"p"}
    assert both.id == ledger_of(reversed(rows)).id != ledger_of([*rows[:1], (["c"], None)]).id
    assert not ledger_of([]) and ledger_of([]).id == "" and not file_ledger(str(tmp_path / "gone.jsonl"))
    (tmp_path / "own.jsonl").write_text('{"prompt": "x", "events": "none"}\nbroken\n{"prompt": "y", "events": ["a"]}\n')
    assert file_ledger(str(tmp_path / "own.jsonl")) == ledger_of([(["a"], None)])
    (tmp_path / "l.json").write_text(both.to_json())
    assert read_ledger(tmp_path / "l.json") == both
    (tmp_path / "l.json").write_text("{")
    with pytest.raises(DataError, match="not a readable ledger"):
        read_ledger(tmp_path / "l.json")


def test_a_resumed_run_keeps_what_it_was_trained_on_before(built: Path, tmp_path: Path):
    run = train(tmp_path / "runs", "rm", built / "pairs" / "train.jsonl")
    train(tmp_path / "runs", "rm", built / "pairs" / "eval.jsonl")
    both = file_ledger(str(built / "pairs" / "train.jsonl")) | file_ledger(str(built / "pairs" / "eval.jsonl"))
    assert read_ledger(run / "data_ledger.json") == both


@pytest.mark.slow
def test_every_model_with_the_person_in_it_is_listed_and_what_clears_it(built: Path, tmp_path: Path):
    roots = [tmp_path / "runs", tmp_path / "more"]
    rows = built / "pairs" / "train.jsonl"
    one = next(n for n in range(12) if f'"c{n}"' in rows.read_text())
    others = tmp_path / "others.jsonl"
    others.write_text("".join(line for line in rows.read_text().splitlines(True) if f'"c{one}"' not in line))
    kept = tmp_path / "copy.jsonl"
    kept.write_text(rows.read_text())
    clean = train(roots[0], "a-clean-sft", others)
    reward = train(roots[0], "z-rm", rows, head="SequenceClassification", came_from={"policy": str(clean)})
    policy = train(roots[1], "a-ppo", others, came_from={"policy": str(clean), "reward": str(reward)})
    train(roots[1], "a-dpo", kept, came_from={"policy": str(policy)})
    (roots[0] / "old").mkdir()
    (roots[0] / "old" / "manifest.json").write_text((clean / "manifest.json").read_text())
    Registry(tmp_path / "registry").promote("production", policy / "export" / "step-1", "digest", {})

    told = forgetting(built, f"user{one}", roots=roots)

    listed = told[next(n for n, line in enumerate(told) if line.startswith("1 runs in")) :]
    assert "old" in listed[0] and "keep no ledger" in listed[0]
    assert listed[1].startswith("Trained on what is forgotten (3 of 5 runs")
    assert listed[2] == "  reward model z-rm: its own rows name 1 of the events"
    assert listed[3] == "  policy a-ppo: it has its reward model of z-rm; production points to it"
    assert listed[4] == "  policy a-dpo: its own rows name 1 of the events; it has its policy model of a-ppo"
    assert listed[5] == "To clear them, train again from z-rm on, in this order:"
    assert listed[6] == f"  z-rm: data.train={rows}, which names none of the events any more"
    assert listed[7] == "  a-ppo: reward.model=z-rm (trained again)"
    assert listed[8].startswith("  a-dpo: policy.model=a-ppo (trained again), ")
    assert listed[8].endswith(f"data.train={kept} still names 1 of the events; build it again")

    # trained again on the rebuilt rows, and only the copy's run is left; an earlier forgetting stays in view
    train(roots[0], "z-rm-2", rows, head="SequenceClassification", came_from={"policy": str(clean)})
    assert not [line for line in forgetting(built, "nobody", roots=roots) if "z-rm-2" in line]
    assert any("policy a-dpo" in line for line in forgetting(built, "nobody", roots=roots))


@pytest.mark.slow
def test_a_judge_of_others_conversations_is_found_too(built: Path, tmp_path: Path):
    train(tmp_path / "runs", "rm", built / "pairs" / "train.jsonl")
    held_out = train(tmp_path / "runs", "held-out", built / "pairs" / "eval.jsonl")
    told = "\n".join(forgetting(built, "judge1", roots=[tmp_path / "runs"]))
    assert "policy rm: its own rows name" in told
    assert read_ledger(held_out / "data_ledger.json") is not None


@pytest.mark.slow
def test_nobody_concerned_is_said(built: Path, tmp_path: Path):
    train(tmp_path / "runs", "rm", built / "pairs" / "train.jsonl")
    told = forgetting(built, "nobody", roots=[tmp_path / "runs"])
    assert f"{NONE}, of the 1 runs in {tmp_path}/runs/ that keep a ledger." in told


def test_a_moved_root_and_a_circle_are_followed(built: Path, tmp_path: Path):
    first = train(tmp_path / "before", "rm", built / "pairs" / "train.jsonl")
    train(tmp_path / "before", "ppo", built / "pairs" / "eval.jsonl", came_from={"reward": str(first)})
    (tmp_path / "before").rename(tmp_path / "after")
    asked = DataLedger(events=frozenset(file_ledger(str(built / "pairs" / "train.jsonl")).events))
    found = concerned_by(known_runs([tmp_path / "after"]), asked)
    assert [one.run.name for one in found] == ["rm", "ppo"] and list(found[1].through) == ["reward"]

    a = KnownRun(Path("/a"), False, asked, {"policy": Path("/b")})
    b = KnownRun(Path("/b"), False, DataLedger(), {"policy": Path("/a")})
    assert {one.run.name for one in concerned_by([a, b], asked)} == {"a", "b"}
