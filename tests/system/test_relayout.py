"""A learner's saved state goes on under another rank count and another ZeRO stage: same numbers, same next steps.

The truth is DeepSpeed's own reading of masters and moments in the engine that saved, parameter by parameter.
"""

from __future__ import annotations

import faulthandler
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from deepspeed.utils import safe_get_full_fp32_param, safe_get_full_optimizer_state
from deepspeed.utils.mixed_precision_linkage import lazy_init_hp_params_optimizer_state
from raylign.conf.schema import LearnerConfig, LoraConfig, Precision
from raylign.data.sample_model import tiny_model
from raylign.trainer.engine import state_file
from raylign.trainer.engine.base import EngineStateError, trained_by_name
from raylign.trainer.engine.rendezvous import Rendezvous
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.engine.zero import ZeroEngine
from raylign.trainer.verified_folder import flush_and_hash

from tests.system.rank_processes import run_ranks
from tests.system.test_zero_ranks import LORA, OPTIM, _model, _train

pytestmark = [pytest.mark.system, pytest.mark.slow, pytest.mark.timeout(900)]

TRAINED = 3  # steps before the save
DEADLINE_S = 800
MOMENTS = ("exp_avg", "exp_avg_sq")
VARIANTS = {  # precision, adapters, how near the next steps' losses must be
    "float32": (Precision.float32, False, 1e-6),
    "bfloat16": (Precision.bfloat16, False, 2e-3),
    "lora": (Precision.float32, True, 1e-6),
}


@dataclass(frozen=True)
class Layout:
    """A rank count and a stage."""

    ranks: int
    stage: int

    def __str__(self) -> str:
        return f"{self.ranks}x{self.stage}"


QUICK = [(Layout(2, 3), Layout(3, 1)), (Layout(3, 1), Layout(2, 3)), (Layout(2, 3), Layout(2, 0))]
ALL = [Layout(ranks, stage) for ranks in (1, 2, 3) for stage in range(4)]


def _start(folder: str, variant: str, stage: int, rendezvous: Rendezvous) -> ZeroEngine:
    precision, lora, _ = VARIANTS[variant]
    config = LearnerConfig(precision=precision, zero_stage=stage, optim=OPTIM, lora=LORA if lora else LoraConfig())
    return ZeroEngine(_model(folder, precision, lora), config, rendezvous, total_steps=9)


def _read_by_deepspeed(engine: ZeroEngine) -> dict[str, dict[str, torch.Tensor]]:
    """Whole masters and moments by name, after a step. Stage 0 has no accessor: its masters are whole."""
    named = trained_by_name(engine.module)
    if engine._config.zero_stage in (1, 2):  # DeepSpeed links moments at its first step only, and ours are newer
        for group, flat in zip(
            engine._optimizer.bit16_groups, engine._optimizer.single_partition_of_fp32_groups, strict=True
        ):
            lazy_init_hp_params_optimizer_state(group, flat, engine._adamw.state)
    if engine._config.zero_stage:
        return {
            name: {
                "master": safe_get_full_fp32_param(p).clone(),
                **{m: safe_get_full_optimizer_state(p, m).clone() for m in MOMENTS},
            }
            for name, p in named.items()
        }
    optimizer = engine._optimizer
    pairs = [(p, p) for p in named.values()]
    if optimizer is not engine._adamw:
        groups = zip(optimizer.fp16_groups, optimizer.fp32_groups, strict=True)
        pairs = [pair for working, masters in groups for pair in zip(working, masters, strict=True)]
    master_of = {id(p): master for p, master in pairs}
    found = {name: master_of[id(p)] for name, p in named.items()}
    return {
        name: {
            "master": m.detach().clone(),
            **{k: engine._adamw.state[m][k].reshape(m.shape).clone() for k in MOMENTS},
        }
        for name, m in found.items()
    }


def _save(folder: str, out: Path, variant: str, layout: Layout, rendezvous: Rendezvous) -> dict[str, Any]:
    """Train, note what DeepSpeed holds, save beside the training, which goes on as if nothing had happened.

    The disk is so slow that the next step would be over long before, if it did not wait.
    """
    engine = _start(folder, variant, layout.stage, rendezvous)
    _train(engine, 0, TRAINED)
    truth = _read_by_deepspeed(engine)
    if engine.rank == 0:
        torch.save(truth, out / f"{variant}-{layout}.pt")
    write = state_file.save_file
    state_file.save_file = partial(_slowly, write)
    try:
        engine.begin_save(out / f"{variant}-{layout}")
        pending = engine.saved() is None
        curve = _train(engine, TRAINED, TRAINED + 2)
    finally:
        state_file.save_file = write
    digest = engine.saved()
    file = state_file.state_path(out / f"{variant}-{layout}", engine.rank)
    return {f"{variant} {layout}": curve, f"beside {variant} {layout}": pending and digest == flush_and_hash(file)}


def _slowly(write: Callable[..., None], tensors: dict[str, torch.Tensor], path: Path, **rest: Any) -> None:
    """What is written is what the tensors hold at the end of the wait."""
    time.sleep(0.3)
    write(tensors, path, **rest)


def _loaded(
    folder: str, out: Path, variant: str, saved: Layout, layout: Layout, rendezvous: Rendezvous
) -> dict[str, Any]:
    """What this rank holds of the saved state, against the truth, and the next steps."""
    engine = _start(folder, variant, layout.stage, rendezvous)
    engine.load_state(out / f"{variant}-{saved}")
    truth = torch.load(out / f"{variant}-{saved}.pt", weights_only=True)
    cut, masters = engine._cut(), engine._masters()
    wrong, held = set(), 0
    for piece in cut.pieces:
        held += piece.count
        state = {"master": masters[piece.master], **engine._adamw.state[masters[piece.master]]}
        for key in ("master", *MOMENTS):
            mine = state[key].detach().reshape(-1)[piece.offset : piece.offset + piece.count]
            if not torch.equal(mine, truth[piece.name][key].reshape(-1)[piece.first : piece.first + piece.count]):
                wrong.add(f"{key} of {piece.name}")
    if layout.stage:  # and by DeepSpeed's own reading, which does not know of our cut
        named = trained_by_name(engine.module)
        whole = {name: safe_get_full_fp32_param(p) for name, p in named.items()}
        wrong |= {f"whole {name}" for name, w in whole.items() if not torch.equal(w, truth[name]["master"])}
    total = sum(entry["master"].numel() for entry in truth.values())
    return {"wrong": sorted(wrong), "held": held, "total": total, "next": _train(engine, TRAINED, TRAINED + 2)}


def _rank_main(
    rank: int, ranks: int, port: int, folder: str, out: str, first: bool, pairs: Sequence[Any], variants: Sequence[str]
) -> None:
    torch.set_num_threads(1)
    faulthandler.dump_traceback_later(DEADLINE_S - 20, exit=True)
    rendezvous = Rendezvous(rank, ranks, "127.0.0.1", port, timeout_s=270)
    record: dict[str, Any] = {}
    for variant in variants:
        for saved in dict.fromkeys(s for s, _ in pairs if s.ranks == ranks) if first else ():
            record |= _save(folder, Path(out), variant, saved, rendezvous)
        for saved, layout in [] if first else [pair for pair in pairs if pair[1].ranks == ranks]:
            key = f"{variant} {saved} {layout}"
            record[key] = _loaded(folder, Path(out), variant, saved, layout, rendezvous)
    (Path(out) / f"record-{'saved' if first else 'loaded'}-{ranks}-{rank}.json").write_text(json.dumps(record))


def _check(out: Path, folder: Path, pairs: Sequence[tuple[Layout, Layout]], variants: Sequence[str]) -> Iterator[str]:
    """Runs every pair on real ranks; a sentence for each difference."""
    for first, sizes in ((True, {s.ranks for s, _ in pairs}), (False, {t.ranks for _, t in pairs})):
        for ranks in sorted(sizes):
            run_ranks(_rank_main, ranks, str(folder), str(out), first, pairs, variants, deadline_s=DEADLINE_S)
    saved: dict[str, Any] = {}
    for path in out.glob("record-saved-*-0.json"):
        saved |= json.loads(path.read_text())
    yield from (f"{name}: not written beside the training" for name, fine in saved.items() if fine is False)
    for source, target in pairs:
        records = [
            json.loads((out / f"record-loaded-{target.ranks}-{r}.json").read_text()) for r in range(target.ranks)
        ]
        for variant in variants:
            told = [record[f"{variant} {source} {target}"] for record in records]
            name, near = f"{variant}, {source} into {target}", VARIANTS[variant][2]
            yield from (f"{name}: {what}" for rank in told for what in rank["wrong"][:3])
            copies = target.ranks if target.stage == 0 else 1
            if sum(rank["held"] for rank in told) != copies * told[0]["total"]:
                yield f"{name}: ranks hold {[rank['held'] for rank in told]} of {told[0]['total']}"
            for step, (got, want) in enumerate(zip(told[0]["next"], saved[f"{variant} {source}"], strict=True)):
                if got[0] != pytest.approx(want[0], rel=near) or got[1] != pytest.approx(want[1], rel=20 * near):
                    yield f"{name}: step {step} after it has loss and norm {got}, without a change {want}"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tiny_model(tmp_path_factory.mktemp("model") / "tiny", tie=True)


def test_a_state_goes_on_under_another_rank_count_and_stage(tmp_path: Path, folder: Path) -> None:
    assert not list(_check(tmp_path, folder, QUICK, ["bfloat16", "lora"]))


@pytest.mark.thorough
@pytest.mark.parametrize("variant", VARIANTS)
def test_every_rank_count_and_stage_goes_on_from_every_other(tmp_path: Path, folder: Path, variant: str) -> None:
    assert not list(_check(tmp_path, folder, [(s, t) for s in ALL for t in ALL], [variant]))


def _plain(folder: Path, lora: bool = False) -> TorchEngine:
    return TorchEngine(_model(str(folder), Precision.float32, lora), OPTIM, total_steps=9)


def test_what_does_not_fit_is_refused_by_name(tmp_path: Path, folder: Path) -> None:
    """On one plain rank: its file, relabelled as another layout's, is read element by element."""
    engine = _plain(folder)
    _train(engine, 0, 2)
    engine.save_state(tmp_path / "plain")
    with pytest.raises(EngineStateError, match="adapters of another model"):
        _plain(folder, lora=True).load_state(tmp_path / "plain")
    other = tiny_model(tmp_path / "other", tie=False)
    relabelled = _relabelled(tmp_path, "plain")
    again = _plain(folder)
    again.load_state(relabelled)
    assert _train(again, 2, 4) == _train(engine, 2, 4)
    with pytest.raises(EngineStateError, match=r"no state of lm_head.weight, which this run trains"):
        _plain(other).load_state(relabelled)
    (relabelled / "rank-00000.safetensors").unlink()
    with pytest.raises(EngineStateError, match="does not exist"):
        _plain(folder).load_state(relabelled)


def _relabelled(out: Path, name: str) -> Path:
    from safetensors import safe_open
    from safetensors.torch import load_file, save_file

    source, target = out / name / "rank-00000.safetensors", out / "relabelled" / "rank-00000.safetensors"
    target.parent.mkdir()
    with safe_open(source, framework="pt") as file:
        metadata = dict(file.metadata())
    metadata["raylign_engine"] = metadata["raylign_engine"].replace("torch float32", "zero-0 float32")
    save_file(load_file(source), target, metadata=metadata)
    return target.parent
