"""Every loss and role on a pretended GPU: nothing mixed, the CPU's values, and no host that waits unknown.

The model is a small one in bfloat16, as on a GPU, so attention goes through the fused kernel's calls. `WAITS` is the
list of places at which the host waits for the device within one window of an update or one scoring pass; it may only
shrink.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import fields, is_dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from raylign.conf.schema import LoraConfig, Precision
from raylign.data.types import CriticExperience, Denominators, UpdateWindow
from raylign.trainer.algorithms.grpo import GRPO
from raylign.trainer.algorithms.ppo import PPO, PPOConfig
from raylign.trainer.algorithms.rm import RewardModelling, RMConfig
from raylign.trainer.engine.base import StepResult
from raylign.trainer.learner import Learner, _Tally, to_device
from raylign.trainer.models.adapters import add_adapters
from raylign.trainer.models.loading import load_causal_lm, load_scalar_model
from raylign.trainer.workers.critic import CriticObjective
from raylign.trainer.workers.offline_model import objective_of
from raylign.trainer.workers.policy import PolicyObjective
from torch import Tensor, nn

from tests.unit.trainer.algorithms.test_invariance import CONFIGS, VARIANTS, _experience
from tests.unit.trainer.algorithms.test_offline_invariance import CASES, ROWS, _pairs
from tests.unit.trainer.fake_gpu import FakeGPU, OnGPU, device

WAITS = {
    "trainer/functional/packing.py:pack": "token ids and borders, from which sharing is planned",
    "trainer/models/causal_lm.py:response_positions": "how many tokens are trained; whether one opens a sequence",
    "trainer/functional/known_gradient.py:_common_factor": "whether the gradient is the one that was foretold",
    "trainer/learner.py:on_host": "all metrics of an update at once, at its end",
    "trainer/learner.py:_measured": "a micro-batch's share of a figure of the window (KTO)",
    "trainer/learner.py:_moved": "values as they leave a scoring pass",
    "trainer/learner.py:<lambda>": "log-probs and scores as they leave a scoring pass",
}
LIMIT = 0.06
"""Relative gap of a weight's gradient between two paths in bfloat16; a wrong call of the kernel makes above 1."""


class OneRank:
    """An engine with no optimizer: gradients stay where they can be compared."""

    rank, world_size = 0, 1

    def __init__(self, module: nn.Module, on: torch.device) -> None:
        self.module, self.device = module, on

    def backward(self, loss: Tensor, *, last: bool) -> None:
        loss.backward()

    def step(self) -> StepResult:
        return StepResult(0.0, 0.0, True)

    def all_reduce_sum(self, tensor: Tensor) -> Tensor:
        return tensor


def _in_float32(value: Any) -> Any:
    """The shared batches are float64, for another test's sake."""
    if isinstance(value, Tensor):
        return value.float() if value.dtype is torch.float64 else value
    if not is_dataclass(value):
        return value
    return replace(value, **{f.name: _in_float32(getattr(value, f.name)) for f in fields(value)})  # type: ignore[type-var]


def _jobs() -> Iterator[tuple[str, str, Any, Any]]:
    """Name, model, objective, batch."""
    for name, config in {**CONFIGS, **VARIANTS}.items():
        algorithm = PPO(config) if isinstance(config, PPOConfig) else GRPO(config)  # type: ignore[arg-type]
        yield f"policy, {name}", "causal", PolicyObjective(algorithm, 0.3, 0.9, config.entropy_coef > 0), _experience()
    ppo, seen = PPO(PPOConfig()), _experience()
    yield "policy with adapters", "adapted", PolicyObjective(ppo, 0.3, 0.9, False), seen
    critic_batch = CriticExperience(seen.tokens, seen.old_logprobs, seen.advantages)
    yield "critic", "scalar", CriticObjective(ppo), critic_batch
    yield "reward model", "scalar", objective_of(RewardModelling(RMConfig())), _pairs().batch(range(ROWS))
    for name, (algorithm, rows) in CASES.items():
        yield name, "causal", objective_of(algorithm), rows.batch(range(ROWS))


JOBS = {name: rest for name, *rest in _jobs()}


def _model(kind: str, folder: Path) -> nn.Module:
    if kind == "scalar":
        return load_scalar_model(folder, precision=Precision.bfloat16, new_head_seed=0)
    model = load_causal_lm(folder, precision=Precision.bfloat16)
    if kind == "adapted":
        add_adapters(model.hf, LoraConfig(rank=4))
        torch.manual_seed(0)
        for name, parameter in model.named_parameters():  # B is 0 at the start, and A without a gradient
            if parameter.requires_grad:
                nn.init.normal_(parameter, std=0.02)
                assert "lora" in name.lower() or "adapter" in name.lower()
    return model


def _near(batch: Any, model: nn.Module) -> Any:
    """Policy experience of this model: log-probs a step or none away, so that no bound lies within rounding of one."""
    own = model(batch.tokens, temperature=0.9).logprobs.detach()
    step = (
        torch.randint(-1, 2, own.shape, generator=torch.Generator().manual_seed(3)) * 0.5 * batch.tokens.response_mask
    )
    ref = None if batch.ref_logprobs is None else own - 0.5 * step
    rollout = own + step.roll(1) * batch.tokens.response_mask
    return replace(batch, old_logprobs=own + step, rollout_logprobs=rollout, ref_logprobs=ref)


def _gradients(module: nn.Module) -> dict[str, Tensor]:
    found = {name: p.grad for name, p in module.named_parameters() if p.grad is not None}
    return {name: (g.held if isinstance(g, OnGPU) else g).double() for name, g in found.items()}


@pytest.fixture(scope="module")
def seen() -> Iterator[dict[str, set[str]]]:
    """Where the host waited, by job."""
    found: dict[str, set[str]] = {}
    yield found
    if len(found) == len(JOBS) + 1:  # the whole file was run
        idle = set(WAITS) - set().union(*found.values())
        assert not idle, f"the host no longer waits at {sorted(idle)}: take it off the list"


@pytest.mark.parametrize("name", JOBS)
def test_an_update_on_the_device_has_the_cpus_loss_and_gradients(
    name: str, tiny_model_dir: Path, seen: dict[str, set[str]]
) -> None:
    kind, objective, batch = JOBS[name]
    batch = _in_float32(batch)
    if isinstance(objective, PolicyObjective):
        batch = _near(batch, _model(kind, tiny_model_dir))
    window = UpdateWindow((batch,), Denominators(40.0, 14.0, 9.0))
    there = FakeGPU()
    found = []
    for on, mode in ((torch.device("cpu"), None), (device(), there)):
        model, tally = _model(kind, tiny_model_dir), _Tally()
        with mode or nullcontext():
            engine = OneRank(mode.to(model) if mode else model, on)
            Learner(engine)._window(window, objective, tally)  # type: ignore[arg-type]
            metrics = tally.reduce(engine, num_windows=1)  # type: ignore[arg-type]
        found.append((metrics["loss"], _gradients(model)))
    (loss, gradients), (loss_there, gradients_there) = found
    assert there.fused_calls > 0, "the fused kernel was not asked"
    assert loss_there == pytest.approx(loss, rel=0.02, abs=0.02)
    assert gradients.keys() == gradients_there.keys() and gradients
    whole = torch.stack([g.norm() for g in gradients.values()]).norm()
    for parameter, gradient in gradients.items():
        gap = (gradients_there[parameter] - gradient).norm()
        assert gap <= LIMIT * gradient.norm() + 0.01 * whole, parameter
    assert there.waits <= set(WAITS), f"the host waits at {sorted(there.waits - set(WAITS))}"
    seen[name] = there.waits


def test_scoring_passes_on_the_device_have_the_cpus_numbers(tiny_model_dir: Path, seen: dict[str, set[str]]) -> None:
    tokens, there = _experience().tokens, FakeGPU()
    found = []
    for on in (torch.device("cpu"), device()):
        with there:
            learners = [Learner(OneRank(_model(kind, tiny_model_dir), on)) for kind in ("causal", "scalar")]  # type: ignore[arg-type]
            if on.type != "cpu":
                for learner in learners:
                    there.to(learner.engine.module)
            causal, scalar = learners
            logprobs, value = causal.logprobs([tokens], temperature=0.9)[0], scalar.values([tokens])[0]
            found.append([logprobs, value.values, value.bootstrap, *scalar.scores([tokens])])
    for ours, theirs in zip(*found, strict=True):
        assert not isinstance(theirs, OnGPU)
        torch.testing.assert_close(theirs, ours, rtol=0.05, atol=0.05)
    assert there.waits <= set(WAITS), f"the host waits at {sorted(there.waits - set(WAITS))}"
    seen["scoring"] = there.waits


def test_mixing_devices_is_refused_and_a_wait_is_seen() -> None:
    with FakeGPU() as there:
        on_device = there.put(torch.arange(6.0))
        with pytest.raises(RuntimeError, match="a CPU tensor"):
            on_device + torch.ones(6)
        assert (on_device + 1).is_cuda and there.waits == set()
        assert float((on_device * 2).sum()) == 30 and there.waits == {"elsewhere"}
        there.waits.clear()
        assert on_device[on_device > 3].shape == (2,) and there.waits == {"elsewhere"}
        assert to_device(Denominators(1.0, 1.0), device()) == Denominators(1.0, 1.0)
