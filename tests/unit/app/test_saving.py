"""A disk that refuses a checkpoint: no step is lost, the one before stays, and it does not go on for ever."""

from __future__ import annotations

from pathlib import Path

import pytest
from raylign.app.launch.checkpoints import OnlineSaver, Saving
from raylign.conf.errors import Stopped
from raylign.conf.schema import KLController
from raylign.records.journal import batch_file
from raylign.reward.interfaces import ShapingState
from raylign.trainer.checkpoint import CheckpointError, CheckpointStore
from raylign.trainer.functional.kl import KLState
from raylign.trainer.loops.hooks import OnlineProgress


class Role:
    """A role of one rank, whose disk may refuse."""

    num_ranks = 1

    def __init__(self) -> None:
        self.refuses = False

    async def save(self, folder: str) -> None:
        if self.refuses:
            (Path(folder) / "rank-00000.safetensors").write_bytes(b"half")
            raise CheckpointError("policy rank 0: No space left on device")
        (Path(folder) / "rank-00000.safetensors").write_bytes(b"whole" * 100)

    async def restore(self, folder: str) -> None: ...


class Rewards:
    state = ShapingState(0.0, 0.0, 0.0)

    def restore(self, state: ShapingState) -> None: ...


def at(step: int) -> OnlineProgress:
    return OnlineProgress(step, KLState(KLController.fixed, 0.1), {})


async def test_refused_saves_cost_nothing_until_there_were_too_many_in_a_row(tmp_path: Path) -> None:
    store, said, role = CheckpointStore(tmp_path, keep=2), [], Role()
    saving = Saving(store, None, run_generation=1, max_failed=2, tell=said.append)
    saver = OnlineSaver(saving, role, None, Rewards())
    assert await saver.save(at(1)) is None
    role.refuses = True
    for step in (2, 3):
        assert "No space left" in (await saver.save(at(step)) or "")
        found = store.latest()
        assert found is not None and found.state.step == 1
        assert not list(tmp_path.glob(".tmp-*")), "a half-written checkpoint takes the room that is missing"
    role.refuses = False
    assert await saver.save(at(4)) is None, "one that succeeds is the end of the row"
    role.refuses = True
    for step in (5, 6):
        assert await saver.save(at(step))
    with pytest.raises(Stopped, match="step 7 could not be saved, 3 times in a row"):
        await saver.save(at(7))
    assert len(said) == 4 and all("the previous checkpoint stays in use" in sentence for sentence in said)


async def test_room_is_asked_for_before_a_rank_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, role = CheckpointStore(tmp_path, keep=2), Role()
    saver = OnlineSaver(Saving(store, None, run_generation=1, max_failed=2, tell=print), role, None, Rewards())
    assert await saver.save(at(1)) is None

    class Usage:
        free = 300

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    role.refuses = True  # and is not asked
    assert "MB left and a checkpoint wants" in (await saver.save(at(2)) or "")


async def test_batches_go_when_no_checkpoint_goes_back_before_them(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    saver = OnlineSaver(Saving(store, journal, run_generation=1, max_failed=0, tell=print), Role(), None, Rewards())
    left = []
    for step in range(1, 5):
        batch_file(journal, step).touch()
        assert await saver.save(at(step)) is None
        left.append(sorted(path.name[7:11] for path in journal.iterdir()))
    assert left[-1] == ["0004"], "from step 3, the oldest that is kept, step 4 can be done again"
