"""Who decides the size of a fleet, and what the policy is told of a step."""

from __future__ import annotations

from dataclasses import replace

from raylign.rollout.autoscale import Autoscaler, Bounds, StepLoad
from raylign.rollout.load import Load
from raylign.trainer.loops.scaling import ScalingHook, Wanted

from tests.unit.trainer.loops.test_hooks import report


class Crew:
    def __init__(self, size: int) -> None:
        self.size = size
        self.expects = False
        self.asked: list[int] = []

    def adjust(self, wanted: int) -> None:
        self.asked.append(wanted)


class Watched(Autoscaler):
    def __init__(self) -> None:
        super().__init__(Bounds(1, 8, 0.2, 5, ahead=False), 2)
        self.seen: list[StepLoad] = []

    def after_step(self, load: StepLoad) -> int:
        self.seen.append(load)
        return 3


async def test_an_order_holds_against_the_policy_which_sees_those_that_served() -> None:
    rollout, reward, policy = Crew(3), Crew(1), Watched()
    order, serving, load = [Wanted(None, None)], [2], [Load(10.0, 15.0)]
    hook = ScalingHook(
        rollout,
        reward,
        at_start=(2, 1),
        ordered=lambda: order[0],
        serving=lambda: serving[0],
        load=lambda: load[0],
        policy=policy,
    )
    step = report(7, versions=(6, 6, 6, 6))
    step = replace(step, seconds={"time/step": 5.0, "time/rollout_wait": 3.0})
    await hook.on_start(step.progress)
    serving[0], load[0] = 3, Load(12.0, 18.0)  # the third was published to at the step's end
    figures = await hook.after_step(step, last=False)
    assert rollout.asked == [2, 3] and reward.asked == [1]
    assert policy.seen == [StepLoad(2, 5.0, 3.0, 2.0, 3.0, 40, 0)]
    assert figures == {"rollout/wanted": 3.0, "rollout/idle_share": 1 - 3 / 10, "reward/replicas": 1.0}
    order[0] = Wanted(5, 2)
    await hook.after_step(step, last=False)
    assert rollout.asked == [2, 3, 5] and reward.asked == [1, 2]
    await hook.after_step(step, last=True)
    assert rollout.asked == [2, 3, 5], "a finished run starts nobody"

    assert not hook.replace() and not hook.lost() and len(rollout.asked) == 3, "somebody serves"
    serving[0], rollout.size, rollout.expects = 0, 0, True
    assert not hook.replace() and hook.lost() and rollout.asked[-1] == 5, "as many as the last order wanted"
    rollout.size = 1
    assert hook.replace(), "it waits for its weights"
