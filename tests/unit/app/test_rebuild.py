"""What a run does about a lost learner, and about checkpoints none of which is whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from raylign.app.launch.checkpoints import find_resume
from raylign.app.launch.rebuild import Rebuilds, is_loss, rebuilt, step_settings
from raylign.cluster.errors import FailureKind, HolderLost, RoleError
from raylign.conf.errors import Stopped, UserError
from raylign.conf.schema import CheckpointConfig, OptimConfig, RunConfig
from raylign.records.run_folder import RunPaths
from raylign.trainer.algorithms.ppo import PPOConfig
from raylign.trainer.checkpoint import CheckpointStore

from tests.unit.trainer.crashing_writer import save


def failure(kind: FailureKind, *, role: str = "policy", silent: tuple[int, ...] = ()) -> RoleError:
    return RoleError(role=role, ranks=(1,), verb="update", kind=kind, cause="because", silent=silent)


@pytest.mark.parametrize("kind", list(FailureKind))
def test_a_rank_that_is_gone_or_hangs_is_a_loss_and_one_that_raises_is_not(kind: FailureKind) -> None:
    assert is_loss(failure(kind)) is (kind is not FailureKind.RAISED)
    assert is_loss(failure(kind, silent=(0,))), "its peers have not answered: the raise may be their death's"
    assert not is_loss(failure(kind, role="reward")), "rewards are replaced, not rebuilt"


def test_the_process_that_held_a_result_is_a_loss() -> None:
    assert is_loss(HolderLost("gone"))


def test_rebuilds_are_counted_between_new_steps_and_capped() -> None:
    told: list[str] = []
    rebuilds = Rebuilds(2, told.append)
    rebuilds.allow(failure(FailureKind.DIED), step=3)
    rebuilds.allow(failure(FailureKind.DIED), step=3)
    rebuilds.allow(failure(FailureKind.DIED), step=4)  # a new step between: counted anew
    rebuilds.allow(failure(FailureKind.DIED), step=2)  # done again, not new
    assert [sentence.partition("started again ")[2] for sentence in told] == [
        "(1 of 2 without a new step)", "(2 of 2 without a new step)", "(1 of 2 without a new step)",
        "(2 of 2 without a new step)",
    ]  # fmt: skip
    with pytest.raises(RoleError) as capped:
        rebuilds.allow(failure(FailureKind.DIED), step=4)
    assert capped.value.problems[-1].endswith("cluster.max_rebuilds=2 rebuilds brought no new step")
    with pytest.raises(RoleError, match="policy rank 1 raised during update: because"):
        Rebuilds(2, told.append).allow(failure(FailureKind.RAISED), step=9)


@pytest.mark.parametrize(
    ("failures", "left", "ends"),
    [
        ([FailureKind.DIED, FailureKind.DIED], 2, None),
        (
            [FailureKind.DIED, FailureKind.DIED],
            1,
            "policy rank 1 died .*brought no new step",
        ),
        ([FailureKind.LATE], 2, "could not be started again: policy rank 1"),
        ([FailureKind.RAISED], 2, "could not be started again: policy rank 1 raised"),
    ],
)
async def test_a_rank_that_dies_while_it_starts_is_one_more_loss(
    failures: list[FailureKind], left: int, ends: str | None
) -> None:
    coming = iter(failures)

    async def start() -> str:
        for kind in coming:
            raise failure(kind)
        return "started"

    rebuilds = Rebuilds(left, lambda _: None)
    if ends is None:
        assert await rebuilt(start, rebuilds, step=3) == "started"
    else:
        with pytest.raises(Stopped, match=ends):
            await rebuilt(start, rebuilds, step=3)


def test_with_every_checkpoint_damaged_a_start_is_refused_and_names_each(tmp_path: Path) -> None:
    run = RunPaths(tmp_path)
    store = CheckpointStore(run.checkpoints, keep=2)
    for step in (1, 2):
        save(store, step)
        (run.checkpoints / f"step-00000{step}" / "critic" / "rank-00000.safetensors").write_bytes(b"cut")
    with pytest.raises(UserError, match=r"checkpoint\.resume=auto: .*step-000002: .*step-000001: ") as refusal:
        find_resume(CheckpointConfig(), run)
    assert refusal.value.exit_code == 2


@pytest.mark.parametrize(
    ("change", "same"),
    [
        (lambda c: replace(c, policy=replace(c.policy, num_ranks=3)), True),
        (lambda c: replace(c, policy=replace(c.policy, zero_stage=1)), True),
        (lambda c: replace(c, critic=replace(c.critic, num_ranks=2)), True),
        (lambda c: replace(c, policy=replace(c.policy, optim=OptimConfig(lr=3e-7))), False),
        (lambda c: replace(c, rollout=replace(c.rollout, temperature=0.9)), False),
    ],
)
def test_journaled_batches_are_trained_again_where_only_their_order_of_adding_up_is_another(
    change: Callable[[RunConfig], RunConfig], same: bool
) -> None:
    config = RunConfig(name="run", algorithm=PPOConfig())
    assert (step_settings(config) == step_settings(change(config))) is same
