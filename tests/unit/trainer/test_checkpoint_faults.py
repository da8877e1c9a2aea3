"""A save that is killed or fails before any of its file-system calls, and folders damaged at random: never torn."""

from __future__ import annotations

import json
import random
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from raylign.trainer import checkpoint, verified_folder
from raylign.trainer.checkpoint import CheckpointError, CheckpointStore
from raylign.trainer.verified_folder import find_damage

from tests.unit.trainer.crashing_writer import save
from tests.unit.trainer.power_loss import Trace, disk_after, lay_out, traced

PROGRAM = Path(__file__).with_name("crashing_writer.py")


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["kill", "error"])
def test_a_fault_before_any_call_leaves_this_step_or_the_one_before(kind: str, tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.unit.trainer.crashing_writer", str(tmp_path), kind],
        capture_output=True, text=True, timeout=300, check=False, cwd=Path(__file__).parents[3],
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    report = json.loads(done.stdout)
    outcomes = {int(n): said for n, said in report["outcomes"].items()}
    assert report["calls"] >= 25, "the faults do not reach the writer's calls"
    failed = [n for n, said in outcomes.items() if not said.startswith("saved")]
    assert len(failed) >= 20, outcomes
    for number, said in outcomes.items():
        store = CheckpointStore(tmp_path / str(number), keep=1)
        found = store.latest()
        assert found is not None and found.state.step in (1, 2), (number, said)
        assert found.skipped == (), (number, said, found.skipped)
        if said.startswith("saved"):
            assert found.state.step == 2, (number, "an error passed for success")
        save(store, 3)  # and the next save clears up
        after = store.latest()
        assert after is not None and after.state.step == 3
        assert not list((tmp_path / str(number)).glob(".tmp-*"))


def recorded(root: Path) -> Trace:
    """Step 2 saved over step 1, which retires."""
    store = CheckpointStore(root, keep=1)
    save(store, 1)
    with traced(root) as trace:
        save(store, 2)
    return trace


def unlawful(trace: Trace, target: Path, *, disks: int, seed: int) -> list[str]:
    """Of so many disks after power cuts: what a start would find that is neither step 1 nor step 2, whole."""
    draw, wrong, total = random.Random(seed), [], len(trace.done)
    for number in range(disks):
        cut = total if number % 10 == 0 else draw.randint(trace.before, total)
        shutil.rmtree(target, ignore_errors=True)
        lay_out(trace, disk_after(trace, cut, draw), target)
        try:
            found = CheckpointStore(target, keep=1).latest()
        except CheckpointError as error:
            wrong.append(f"cut {cut} of {total}: {error}")
            continue
        step = found.state.step if found else None
        if step not in ((2,) if cut == total else (1, 2)):
            wrong.append(f"cut {cut} of {total}: step {step}")
        elif (
            found is not None and (found.role("policy") / "rank-00000.safetensors").read_bytes() != bytes([step]) * 3000
        ):
            wrong.append(f"cut {cut} of {total}: torn")
    return wrong


def test_whatever_a_power_cut_leaves_of_it_is_this_step_or_the_one_before(tmp_path: Path) -> None:
    trace = recorded(tmp_path / "disk")
    assert len(trace.done) - trace.before >= 30, "the tracer does not see the writer"
    assert unlawful(trace, tmp_path / "after", disks=100, seed=1) == []


@pytest.mark.thorough
def test_two_thousand_power_cuts(tmp_path: Path) -> None:
    assert unlawful(recorded(tmp_path / "disk"), tmp_path / "after", disks=2000, seed=2) == []


def unforced(path: Path) -> verified_folder.FileDigest:
    return verified_folder.FileDigest(path.stat().st_size, verified_folder._sha256(path))


@pytest.mark.parametrize("left_out", ["sync_folder", "flush_and_hash"])
def test_a_writer_that_forces_less_to_disk_is_found_out(
    left_out: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if left_out == "sync_folder":
        for module in (checkpoint, verified_folder):
            monkeypatch.setattr(module, left_out, lambda _: None)
    else:
        monkeypatch.setattr(verified_folder, left_out, unforced)
    assert unlawful(recorded(tmp_path / "disk"), tmp_path / "after", disks=40, seed=1)


def damage(file: Path, draw: random.Random) -> None:
    content = file.read_bytes()
    match draw.randrange(4):
        case 0:
            file.write_bytes(content[: draw.randrange(len(content))])
        case 1:
            at = draw.randrange(len(content))
            file.write_bytes(content[:at] + bytes([content[at] ^ (1 << draw.randrange(8))]) + content[at + 1 :])
        case 2:
            file.unlink()
        case _:
            file.write_bytes(content + b"\0")


def test_whatever_is_damaged_the_newest_whole_one_is_used_or_each_refusal_is_said(tmp_path: Path) -> None:
    """80 random damages of 1 to 4 files of three checkpoints."""
    whole = tmp_path / "whole"
    original = CheckpointStore(whole, keep=3)
    for step in (1, 2, 3):
        save(original, step)
    for seed in range(80):
        draw = random.Random(seed)
        root = tmp_path / "damaged"
        shutil.rmtree(root, ignore_errors=True)
        shutil.copytree(whole, root)
        files = sorted(p for p in root.glob("step-*/**/*") if p.is_file())
        hit = draw.sample(files, draw.randint(1, 4))
        for file in hit:
            damage(file, draw)
        hurt = {int(file.relative_to(root).parts[0].removeprefix("step-")) for file in hit}
        hurt = {step for step in hurt if find_damage(root / f"step-{step:06d}") is not None}
        left = [step for step in (3, 2, 1) if step not in hurt]
        store = CheckpointStore(root, keep=3)
        if not left:
            with pytest.raises(CheckpointError, match=r"step-000003.*step-000002.*step-000001"):
                store.latest()
            continue
        found = store.latest()
        assert found is not None and found.state.step == left[0], seed
        assert len(found.skipped) == 3 - left[0], seed
