"""Where a PPO step's time goes, and what our own code costs over bare vLLM and bare DeepSpeed.

    python benchmarks/ppo_step.py --model FOLDER [--steps 4] [--json out.json]

Runs PPO with every role real (Ray, DeepSpeed, vLLM, a critic, a reference, a rule reward) and reads its phases. Then
every step's generation is repeated with vLLM's own AsyncLLM, and the updates of policy and critic, side by side as in
the run, with DeepSpeed's own engine on the same tokens; each in a process of its own with the environment its role had.
The first step is left out on both sides: it warms caches up.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass
from multiprocessing.synchronize import Barrier
from pathlib import Path

os.environ.setdefault("DS_ACCELERATOR", "cpu")

from raylign.app.configuration import compose
from raylign.app.main import run
from raylign.cluster.runtime_env import RoleEnv
from raylign.conf.schema import Device, LearnerConfig, RunConfig
from raylign.data.batching import shard
from raylign.data.types import PolicyExperience, RankShard, TokenBatch
from raylign.records.metrics_log import MetricHistory, read_history
from raylign.records.run_folder import RunPaths
from raylign.records.samples import SampleRow, read_samples
from raylign.trainer.engine.zero import ZeroEngine
from raylign.trainer.models.causal_lm import CausalLM
from raylign.trainer.models.scalar_head import ScalarModel
from rich.console import Console
from rich.table import Table
from torch import Tensor

_meeting: Barrier  # of the replays of one step, set in each of their processes
PHASES = ("generation", "reward", "reference", "values", "old_logprobs", "policy_update", "critic_update", "sync")
SEQUENCES_PER_UPDATE = 16
DEADLINE_S = 300.0
Replay = Callable[[RunConfig, Sequence[Sequence[SampleRow]]], list[float]]
"""A run's configuration and the samples of each step -> seconds of each step."""


@dataclass(frozen=True, slots=True)
class Overhead:
    """Seconds of the same work through the system and without it."""

    ours_s: float
    bare_s: float

    @property
    def share(self) -> float:
        """What our code adds, as a share of the bare time."""
        return self.ours_s / self.bare_s - 1


def play(model: Path, steps: int, root: Path) -> tuple[RunConfig, RunPaths]:
    """A PPO run with every role."""
    prompts = root / "prompts.jsonl"
    prompts.write_text("".join(json.dumps({"prompt": f"What is the number {i}?"}) + "\n" for i in range(64)))
    composed = compose(
        ["+experiment=demo_ppo", "name=benchmark", f"run_root={root}", f"policy.model={model}", f"num_steps={steps}",
         f"critic.model={model}", f"data.train={prompts}", "evaluation.fluency=false", "tracking.wandb=disabled",
         f"algorithm.sequences_per_update={SEQUENCES_PER_UPDATE}"]
    )  # fmt: skip
    return composed.config, run(composed, console=Console(stderr=True))


def phases(folder: RunPaths) -> dict[str, float]:
    """Median seconds of each phase after the first step; phases that run side by side overlap."""
    history = read_history(folder.metrics)
    found = {}
    for name in (*PHASES, "rollout_wait", "scoring", "updates", "advantages", "step"):
        values = [value for step, value in history.series(f"time/{name}") if step > 1 and value is not None]
        if values:
            found[name] = statistics.median(values)
    busy = sum(found.get(name, 0.0) for name in ("rollout_wait", "scoring", "advantages", "updates", "sync"))
    found["idle"] = found["step"] - busy
    return found


def bare_generation(config: RunConfig, steps: Sequence[Sequence[SampleRow]]) -> list[float]:
    """Seconds of vLLM's own AsyncLLM for each step's prompts, every answer forced to the length it had."""
    from raylign.rollout import environment

    environment.prepare(config.rollout, Device.cpu)
    from vllm import AsyncLLMEngine, SamplingParams  # after the environment
    from vllm.engine.arg_utils import AsyncEngineArgs

    args = AsyncEngineArgs(
        model=config.policy.model, dtype=config.rollout.precision.value, max_model_len=config.rollout.max_model_len,
        kv_cache_memory_bytes=int(config.rollout.kv_cache_gb * 2**30), enforce_eager=True, disable_log_stats=True,
        logprobs_mode="processed_logprobs", enable_chunked_prefill=False, max_num_batched_tokens=4096,
    )  # fmt: skip

    async def one(engine: AsyncLLMEngine, row: SampleRow, name: str, seed: int) -> None:
        length = len(row.response_ids)
        params = SamplingParams(
            temperature=row.temperature, max_tokens=length, min_tokens=length, seed=seed, logprobs=0
        )
        async for _ in engine.generate({"prompt_token_ids": list(row.prompt_ids)}, params, name):
            pass

    async def play_all() -> list[float]:
        engine = AsyncLLMEngine.from_engine_args(args)
        seconds = []
        for step, rows in enumerate(steps):
            started = time.perf_counter()
            await asyncio.gather(*(one(engine, row, f"{step}-{i}", i) for i, row in enumerate(rows)))
            seconds.append(time.perf_counter() - started)
        engine.shutdown()
        return seconds

    return asyncio.run(play_all())


def bare_policy(config: RunConfig, steps: Sequence[Sequence[SampleRow]]) -> list[float]:
    """Seconds of DeepSpeed's own engine on each step's packed tokens, without Ray, learner, algorithm or metrics."""
    from raylign.trainer.models.loading import load_causal_lm

    def loss(engine: ZeroEngine, batch: PolicyExperience) -> Tensor:
        return -(engine.module(batch.tokens, temperature=0.8).logprobs * batch.advantages).sum()

    return _updates(load_causal_lm(config.policy.model, precision=config.policy.precision), config.policy, steps, loss)


def bare_critic(config: RunConfig, steps: Sequence[Sequence[SampleRow]]) -> list[float]:
    """The same for the critic."""
    from raylign.trainer.models.loading import load_scalar_model

    def loss(engine: ZeroEngine, batch: PolicyExperience) -> Tensor:
        return (engine.module(batch.tokens) * batch.tokens.response_mask).square().sum()

    model = load_scalar_model(config.critic.model, precision=config.critic.precision, new_head_seed=0)
    return _updates(model, config.critic, steps, loss)


def _updates(
    model: CausalLM | ScalarModel,
    config: LearnerConfig,
    steps: Sequence[Sequence[SampleRow]],
    loss: Callable[[ZeroEngine, PolicyExperience], Tensor],
) -> list[float]:
    from raylign.trainer.engine.rendezvous import Rendezvous, listen
    from raylign.trainer.models.adapters import add_adapters, start_adapters

    if config.lora.rank:
        add_adapters(model.hf, config.lora)
        start_adapters(model.hf, 0)
    engine = ZeroEngine(
        model, config, Rendezvous(0, 1, "127.0.0.1", listen("127.0.0.1"), 300.0), device=Device.cpu, total_steps=100
    )
    seconds = []
    for part in [packed_shard(config, rows) for rows in steps]:
        _meeting.wait(DEADLINE_S)
        started = time.perf_counter()
        for window in part.windows:
            for i, batch in enumerate(window.micro_batches):
                scaled = loss(engine, batch) / window.denominators.tokens
                engine.backward(scaled, last=i == len(window.micro_batches) - 1)
            engine.step()
        seconds.append(time.perf_counter() - started)
    engine.close()
    return seconds


def side_by_side(
    replays: Sequence[Replay], config: RunConfig, steps: Sequence[Sequence[SampleRow]], role: RoleEnv
) -> float:
    """Seconds of all steps but the first, each replay in a fresh process with a role's environment; a step ends with
    the slowest."""
    variables = role.variables()
    before = {key: os.environ.get(key) for key in variables}
    os.environ.update(variables)
    context = multiprocessing.get_context("spawn")
    try:
        with ProcessPoolExecutor(  # its processes may have children, which vLLM does
            len(replays), mp_context=context, initializer=_meet, initargs=(context.Barrier(len(replays)),)
        ) as pool:
            seconds = [future.result() for future in [pool.submit(replay, config, steps) for replay in replays]]
        return sum(max(step) for step in list(zip(*seconds, strict=True))[1:])
    finally:
        for key, value in before.items():
            if value is None:
                os.environ.pop(key)
            else:
                os.environ[key] = value


def _meet(barrier: Barrier) -> None:
    global _meeting
    _meeting = barrier


def packed_shard(config: LearnerConfig, rows: Sequence[SampleRow]) -> RankShard[PolicyExperience]:
    """The step's samples, cut as the assembler cuts them."""
    tokens = TokenBatch.from_sequences(
        [(*row.prompt_ids, *row.response_ids) for row in rows],
        [[False] * len(row.prompt_ids) + [True] * len(row.response_ids) for row in rows],
    )
    flat = tokens.response_mask.float()
    batch = PolicyExperience(tokens, flat, flat, None, flat)
    return shard(
        batch, num_ranks=1, units_per_update=SEQUENCES_PER_UPDATE, micro_batch_tokens=config.micro_batch_tokens,
        seed=0, epochs=1,
    )[0]  # fmt: skip


def total(history: MetricHistory, name: str) -> float:
    """Sum of a metric over all steps but the first."""
    return sum(value for step, value in history.series(name) if step > 1 and value is not None)


def main() -> None:
    """Run, compare, print and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--steps", type=int, default=4)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as root:
        config, folder = play(options.model.absolute(), options.steps, Path(root))
        seconds = phases(folder)
        history = read_history(folder.metrics)
        steps = [read_samples(folder.samples_file(step)) for step in range(1, options.steps + 1)]
        learner_env = RoleEnv(Device.cpu, config.policy.threads_per_rank, keeps_pages=True)
        generation = Overhead(
            total(history, "time/generation"),
            side_by_side(
                [bare_generation],
                config,
                steps,
                RoleEnv(Device.cpu, config.rollout.threads_per_worker, keeps_pages=True),
            ),
        )
        learner = Overhead(
            total(history, "time/updates"), side_by_side([bare_policy, bare_critic], config, steps, learner_env)
        )
    show(seconds, generation, learner)
    if options.json:
        options.json.write_text(
            json.dumps({"phases_s": seconds, "generation": asdict(generation), "updates": asdict(learner)}, indent=2)
        )


def show(seconds: dict[str, float], generation: Overhead, learner: Overhead) -> None:
    """Two tables."""
    console = Console()
    table = Table("phase", "seconds", "share of the step", title="a PPO step (phases side by side overlap)")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.2f}", f"{value / seconds['step']:.0%}")
    console.print(table)
    table = Table("the same work", "ours, s", "bare, s", "overhead", title="our own code")
    for name, overhead in (("generation", generation), ("policy and critic update", learner)):
        table.add_row(name, f"{overhead.ours_s:.2f}", f"{overhead.bare_s:.2f}", f"{overhead.share:+.1%}")
    console.print(table)


if __name__ == "__main__":
    main()
