"""A checkpoint is whole or not there: cut, changed, missing and half-written ones, and what a run falls back to."""

from __future__ import annotations

import random
from pathlib import Path

import numpy as np
import pytest
import torch
from raylign.trainer.checkpoint import LATEST, CheckpointError, CheckpointStore, RngState, RunState, open_checkpoint
from raylign.trainer.verified_folder import MANIFEST, find_damage


def _state(step: int) -> RunState:
    return RunState(
        step=step,
        run_generation=2,
        data={"epoch": 1, "index": step * 4},
        kl={"coef": 0.1 + step / 3},
        reward={"mean": -0.25},
        rng=RngState.capture(),
    )


def _save(store: CheckpointStore, step: int) -> Path:
    draft = store.begin(step)
    for role in ("policy", "critic"):
        (draft.role(role) / "rank-00000.safetensors").write_bytes(bytes([step]) * 5000)
    return store.commit(draft, _state(step), num_ranks={"policy": 1, "critic": 1})


@pytest.fixture
def store(tmp_path: Path) -> CheckpointStore:
    return CheckpointStore(tmp_path / "checkpoints", keep=3)


def test_what_was_saved_comes_back_exactly(store: CheckpointStore) -> None:
    saved = _state(3)
    draft = store.begin(3)
    (draft.role("policy") / "x").write_bytes(b"weights")
    path = store.commit(draft, saved, num_ranks={})
    found = store.latest()
    assert found is not None
    assert (found.path, found.state, found.skipped) == (path, saved, ())
    assert (found.role("policy") / "x").read_bytes() == b"weights"
    assert (path.parent / LATEST).read_text() == "step-000003\n"
    with pytest.raises(CheckpointError, match="no state of the critic"):
        found.role("critic")


@pytest.mark.parametrize("written", [(0,), (0, 2), (0, 1, 2)])
def test_a_draft_without_exactly_the_ranks_files_is_no_checkpoint(
    store: CheckpointStore, written: tuple[int, ...]
) -> None:
    """Ranks on another node's disk leave the driver a folder that hashes and verifies, and cannot be resumed."""
    _save(store, 1)
    draft = store.begin(2)
    for rank in written:
        (draft.role("policy") / f"rank-{rank:05d}.safetensors").write_bytes(b"state")
    with pytest.raises(CheckpointError, match=rf"files of {len(written)} ranks and the policy has 2.*run_root"):
        store.commit(draft, _state(2), num_ranks={"policy": 2})
    found = store.latest()
    assert found is not None and found.state.step == 1


def test_random_streams_go_on_where_they_were() -> None:
    np.random.normal()  # leaves a cached second draw behind, which must be saved too
    random.gauss(0, 1)
    state = RngState.capture()
    expected = (random.gauss(0, 1), random.random(), np.random.normal(), np.random.rand(), torch.rand(3).tolist())
    state.restore()
    assert (
        random.gauss(0, 1),
        random.random(),
        np.random.normal(),
        np.random.rand(),
        torch.rand(3).tolist(),
    ) == expected


def test_no_checkpoint_is_none(store: CheckpointStore) -> None:
    assert store.latest() is None


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[2500] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize(
    ("damage", "sentence"), [(_cut, "4999 bytes, not 5000"), (_flip, "has changed"), (Path.unlink, "is missing")]
)
def test_a_damaged_file_sends_the_run_back_to_the_one_before(
    store: CheckpointStore, damage: object, sentence: str
) -> None:
    _save(store, 1)
    newest = _save(store, 2)
    damage(newest / "critic" / "rank-00000.safetensors")
    found = store.latest()
    assert found is not None
    assert found.state.step == 1
    assert len(found.skipped) == 1
    assert "step-000002" in found.skipped[0]
    assert sentence in found.skipped[0]
    with pytest.raises(CheckpointError, match=sentence):
        open_checkpoint(newest)


@pytest.mark.parametrize("content", ["", "[]", '{"files": {"a": 1}, "format": 1}', '{"files": {}, "format": 99}'])
def test_a_damaged_manifest_is_damage(store: CheckpointStore, content: str) -> None:
    path = _save(store, 1)
    (path / MANIFEST).write_text(content)
    assert find_damage(path)
    with pytest.raises(CheckpointError, match="step-000001"):
        store.latest()


def test_a_file_that_does_not_belong_is_damage(store: CheckpointStore) -> None:
    path = _save(store, 1)
    (path / "policy" / "rank-00001.safetensors").write_bytes(b"from another run")
    assert "rank-00001" in (find_damage(path) or "")


def test_a_save_killed_half_way_leaves_the_old_one_in_force(store: CheckpointStore) -> None:
    kept = _save(store, 1)
    (store.begin(2).role("policy") / "half").write_bytes(b"...")
    found = store.latest()
    assert found is not None
    assert found.path == kept
    _save(store, 2)
    assert sorted(p.name for p in kept.parent.iterdir()) == [LATEST, "step-000001", "step-000002"]


def test_old_ones_go_only_beyond_the_number_kept(store: CheckpointStore) -> None:
    for step in (2, 9, 10, 100):
        path = _save(store, step)
    assert sorted(p.name for p in path.parent.glob("step-*")) == ["step-000009", "step-000010", "step-000100"]


def test_an_abandoned_later_history_is_neither_used_nor_counted(tmp_path: Path) -> None:
    """Resumed from step 1 on purpose: steps 8 and 9 of the first attempt must not win over the new step 2."""
    store = CheckpointStore(tmp_path, keep=1)
    wide = CheckpointStore(tmp_path, keep=9)
    for step in (1, 8, 9):
        _save(wide, step)
    _save(store, 2)
    found = store.latest()
    assert found is not None
    assert found.state.step == 2
    assert (tmp_path / "step-000009").is_dir()


def test_saving_a_step_again_replaces_the_damaged_one(store: CheckpointStore) -> None:
    path = _save(store, 4)
    _flip(path / "policy" / "rank-00000.safetensors")
    assert find_damage(path)
    assert _save(store, 4) == path
    assert find_damage(path) is None


def test_going_back_makes_an_earlier_checkpoint_the_newest(store: CheckpointStore) -> None:
    for step in (1, 2, 3):
        _save(store, step)
    assert store.steps() == [3, 2, 1]

    assert store.go_back_to(2).state == _state(2)

    found = store.latest()
    assert found is not None and found.state.step == 2
    assert store.steps() == [2, 1], "step 3 is of a history that was abandoned"
    (store.go_back_to(1).path / "policy" / "rank-00000.safetensors").write_bytes(b"torn")
    with pytest.raises(CheckpointError):
        store.go_back_to(1)
