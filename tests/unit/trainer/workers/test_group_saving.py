"""A checkpoint of several ranks: it is there when all have written, and one that cannot write is named."""

from __future__ import annotations

import pickle
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any, cast

import pytest
from raylign.cluster.worker_group import WorkerGroup
from raylign.trainer.checkpoint import CheckpointError
from raylign.trainer.verified_folder import FileDigest
from raylign.trainer.workers import learner_group
from raylign.trainer.workers.learner_group import GroupSettings, LearnerGroup

WHOLE = FileDigest(5, "ab")


@dataclass
class Ranks:
    """Answers of each rank to one question after another, through the form in which Ray carries them."""

    answers: list[list[FileDigest | str | None]]
    asked: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.answers)

    async def call(self, each: Callable[[Any, int], object], *, verb: str, timeout_s: float) -> list[object]:
        def actor(rank: int) -> SimpleNamespace:
            told = self.answers[rank]
            saved = SimpleNamespace(remote=lambda: told.pop(0) if len(told) > 1 else told[0])
            return SimpleNamespace(saved=saved, save=SimpleNamespace(remote=self.asked.append))

        return [pickle.loads(pickle.dumps(each(actor(rank), rank))) for rank in range(len(self))]


def group(*answers: list[FileDigest | str | None], timeout_s: float = 60.0) -> LearnerGroup:
    settings = SimpleNamespace(role="policy", step_timeout_s=timeout_s)
    return LearnerGroup(cast("WorkerGroup", Ranks(list(answers))), cast("GroupSettings", settings))


@pytest.fixture(autouse=True)
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learner_group, "SAVED_LOOK_S", 0.001)


async def test_it_is_there_when_the_last_rank_has_written() -> None:
    ranks = group([WHOLE], [None, None, WHOLE])
    await ranks.save("folder")
    assert await ranks.saved() == {"rank-00000.safetensors": WHOLE, "rank-00001.safetensors": WHOLE}


async def test_a_rank_that_cannot_write_is_named_when_all_have_ended() -> None:
    ranks = group([None, None, WHOLE], ["OSError: No space left on device"])
    with pytest.raises(CheckpointError, match="policy rank 1: OSError: No space left on device"):
        await ranks.saved()


async def test_a_disk_that_hangs_is_not_waited_for_for_ever() -> None:
    with pytest.raises(CheckpointError, match=r"policy rank 1: not written within cluster.step_timeout_s"):
        await group([WHOLE], [None], timeout_s=0.05).saved()
