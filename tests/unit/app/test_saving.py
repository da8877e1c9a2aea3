"""Checkpoints beside the steps: when one counts, who waits for it, and what a disk that refuses them costs."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from raylign.app.launch.checkpoints import OnlineSaver, Saving
from raylign.cluster.errors import FailureKind, RoleError
from raylign.conf.errors import Stopped
from raylign.conf.schema import KLController
from raylign.records.journal import batch_file
from raylign.reward.interfaces import ShapingState
from raylign.trainer.checkpoint import CheckpointError, CheckpointStore, RngState, RunState
from raylign.trainer.functional.kl import KLState
from raylign.trainer.loops.hooks import OnlineProgress
from raylign.trainer.verified_folder import FileDigest, find_damage, flush_and_hash

LOST = RoleError(role="policy", ranks=(0,), verb="save", kind=FailureKind.DIED, cause="killed")


class Role:
    """A role of one rank, whose disk may refuse, be slow, or lie about what it holds."""

    num_ranks = 1

    def __init__(self) -> None:
        self.refuses = self.lost = False
        self.vouches = True
        self.written = asyncio.Event()
        self.written.set()
        self.folder = Path()

    async def save(self, folder: str) -> None:
        if self.lost:
            raise LOST
        self.folder = Path(folder)

    async def saved(self) -> dict[str, FileDigest]:
        file = self.folder / "rank-00000.safetensors"
        if self.refuses:
            file.write_bytes(b"half")
            raise CheckpointError("policy rank 0: No space left on device")
        await self.written.wait()
        if self.lost:
            raise LOST
        file.write_bytes(b"whole" * 100)
        return {file.name: flush_and_hash(file)} if self.vouches else {}

    async def restore(self, folder: str) -> None: ...


class Rewards:
    state = ShapingState(0.0, 0.0, 0.0)

    def restore(self, state: ShapingState) -> None: ...


def at(step: int) -> OnlineProgress:
    return OnlineProgress(step, KLState(KLController.fixed, 0.1), {})


def state_at(step: int) -> RunState:
    return RunState(step=step, run_generation=1, data={}, kl={}, reward={}, rng=RngState.capture())


async def test_refused_saves_cost_nothing_until_there_were_too_many_in_a_row(tmp_path: Path) -> None:
    store, said, role = CheckpointStore(tmp_path, keep=2), [], Role()
    saving = Saving(store, None, run_generation=1, max_failed=2, tell=said.append)
    saver = OnlineSaver(saving, role, None, Rewards())
    assert await saver.save(at(1), wait=True) is None
    role.refuses = True
    for step in (2, 3):
        assert "No space left" in (await saver.save(at(step), wait=True) or "")
        found = store.latest()
        assert found is not None and found.state.step == 1
        assert not list(tmp_path.glob(".tmp-*")), "a half-written checkpoint takes the room that is missing"
    role.refuses = False
    assert await saver.save(at(4), wait=True) is None, "one that succeeds is the end of the row"
    role.refuses = True
    for step in (5, 6):
        assert await saver.save(at(step), wait=True)
    with pytest.raises(Stopped, match="step 7 could not be saved, 3 times in a row"):
        await saver.save(at(7), wait=True)
    assert len(said) == 4 and all("the previous checkpoint stays in use" in sentence for sentence in said)


async def test_room_is_asked_for_before_a_rank_writes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, role = CheckpointStore(tmp_path, keep=2), Role()
    saver = OnlineSaver(Saving(store, None, run_generation=1, max_failed=2, tell=print), role, None, Rewards())
    assert await saver.save(at(1), wait=True) is None

    class Usage:
        free = 300

    monkeypatch.setattr("shutil.disk_usage", lambda _: Usage)
    role.refuses = True  # and is not asked
    assert "MB left and a checkpoint wants" in (await saver.save(at(2), wait=True) or "")


async def test_batches_go_when_no_checkpoint_goes_back_before_them(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    journal.mkdir()
    store = CheckpointStore(tmp_path / "checkpoints", keep=2)
    saver = OnlineSaver(Saving(store, journal, run_generation=1, max_failed=0, tell=print), Role(), None, Rewards())
    left = []
    for step in range(1, 5):
        batch_file(journal, step).touch()
        assert await saver.save(at(step), wait=True) is None
        left.append(sorted(path.name[7:11] for path in journal.iterdir()))
    assert left[-1] == ["0004"], "from step 3, the oldest that is kept, step 4 can be done again"


def saving_in(folder: Path, said: list[str], max_failed: int = 1) -> tuple[CheckpointStore, Role, OnlineSaver]:
    store, role = CheckpointStore(folder, keep=2), Role()
    saving = Saving(store, None, run_generation=1, max_failed=max_failed, tell=said.append)
    return store, role, OnlineSaver(saving, role, None, Rewards())


def newest(store: CheckpointStore) -> int:
    found = store.latest()
    return found.state.step if found else 0


async def beside(saver: OnlineSaver) -> None:
    """A step's time."""
    for _ in range(20):
        await asyncio.sleep(0.005)
        await saver.check()


async def test_a_save_beside_the_steps_counts_when_it_is_whole_and_not_before(tmp_path: Path) -> None:
    store, role, saver = saving_in(tmp_path, [])
    assert await saver.save(at(1), wait=True) is None
    role.written.clear()
    assert await saver.save(at(2), wait=False) is None
    await beside(saver)
    assert newest(store) == 1, "the file is being written"
    assert newest(CheckpointStore(tmp_path, keep=2)) == 1, "a start after kill -9 now goes on from the one before"
    role.written.set()
    await beside(saver)
    assert newest(store) == 2 and find_damage(tmp_path / "step-000002") is None


async def test_the_next_save_the_last_one_and_the_end_wait_for_the_one_before(tmp_path: Path) -> None:
    store, role, saver = saving_in(tmp_path, [])
    role.written.clear()
    await saver.save(at(1), wait=False)
    again = asyncio.create_task(saver.save(at(2), wait=True))
    await asyncio.sleep(0.05)
    assert not again.done() and newest(store) == 0
    role.written.set()
    assert await again is None and newest(store) == 2
    role.written.clear()
    await saver.save(at(3), wait=False)
    ending = asyncio.create_task(saver.close())
    await asyncio.sleep(0.05)
    assert not ending.done()
    role.written.set()
    await ending
    assert newest(store) == 3


async def test_a_failure_beside_the_steps_is_told_at_once_and_the_run_does_not_go_on_without_checkpoints(
    tmp_path: Path,
) -> None:
    said: list[str] = []
    store, role, saver = saving_in(tmp_path, said, max_failed=1)
    await saver.save(at(1), wait=True)
    role.refuses = True
    assert await saver.save(at(2), wait=False) is None, "not known yet"
    await beside(saver)
    assert len(said) == 1 and "step 2 could not be saved: policy rank 0: No space left" in said[0]
    assert newest(store) == 1 and not list(tmp_path.glob(".tmp-*"))
    await saver.save(at(3), wait=False)
    with pytest.raises(Stopped, match="step 3 could not be saved, 2 times in a row"):
        await beside(saver)


async def test_a_rank_that_is_lost_while_it_writes_is_a_lost_rank_and_leaves_no_half(tmp_path: Path) -> None:
    said: list[str] = []
    store, role, saver = saving_in(tmp_path, said)
    await saver.save(at(1), wait=True)
    role.written.clear()
    await saver.save(at(2), wait=False)
    role.lost = True
    role.written.set()
    with pytest.raises(RoleError):
        await beside(saver)
    role.lost = False
    role.written.clear()
    await saver.save(at(3), wait=False)
    role.lost = True
    role.written.set()
    await saver.close()  # the run ends for the loss that the loop has met itself
    assert newest(store) == 1 and not list(tmp_path.glob(".tmp-*")) and "step" not in said[0]


async def test_a_file_that_is_not_what_its_rank_vouches_for_is_no_checkpoint(tmp_path: Path) -> None:
    store, role, saver = saving_in(tmp_path, [], max_failed=3)
    whole = role.saved

    async def cut() -> dict[str, FileDigest]:
        told = await whole()
        file = role.folder / "rank-00000.safetensors"
        file.write_bytes(file.read_bytes()[:-1])
        return told

    role.saved = cut  # type: ignore[method-assign]
    assert "499 bytes, not 500" in (await saver.save(at(1), wait=True) or "")
    role.saved, role.vouches = whole, False  # type: ignore[method-assign]
    assert await saver.save(at(2), wait=True) is None and newest(store) == 2


async def test_the_best_step_stays_until_the_next_best_is_on_disk(tmp_path: Path) -> None:
    """A save that is still being written when a better step is found may not retire the old best one."""
    store, role = CheckpointStore(tmp_path, keep=1), Role()
    saving = Saving(store, None, run_generation=1, max_failed=1, tell=print)
    saver = OnlineSaver(saving, role, None, Rewards())
    await saving.save({"policy": role}, state_at(1), wait=True, protect=1)
    role.written.clear()
    await saving.save({"policy": role}, state_at(2), wait=False, protect=1)
    better = asyncio.create_task(saving.save({"policy": role}, state_at(3), wait=False, protect=3))
    await asyncio.sleep(0.02)
    role.written.set()
    await better
    role.refuses = True
    await saver.close()
    assert sorted(path.name for path in tmp_path.glob("step-*")) == ["step-000001", "step-000002"]
