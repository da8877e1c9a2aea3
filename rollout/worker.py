"""A rollout worker: a thin Ray actor around one engine, and its handle on the controller's side.

Sampled groups come back as separate return values of the call: the controller owns them, so they outlive the worker,
and it reads only the metadata.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import ray
from ray.actor import ActorHandle
from ray.exceptions import ActorDiedError, RayError, RayTaskError
from raylign.cluster.collector import collector_paused
from raylign.cluster.oom import memory_kills
from raylign.cluster.rank import keep_log, last_error
from raylign.cluster.reserve import Place
from raylign.conf.schema import Device, RolloutConfig, SyncConfig
from raylign.rollout import environment
from raylign.rollout.bucket import Pieces, reach
from raylign.rollout.environments.spec import EnvironmentSpec
from raylign.rollout.interfaces import (
    Canary,
    EngineDead,
    GenerationRequest,
    GroupHandle,
    Ref,
    TransferLink,
    VerifyReport,
    WeightManifest,
    WeightUpdateError,
    metas_of,
)

STOP_S = 30.0
"""Deadline of an orderly stop."""


@dataclass(frozen=True, slots=True)
class WorkerSpec:
    """What one worker serves and how."""

    name: str  # "rollout/0"
    model: str  # Hugging Face folder
    rollout: RolloutConfig
    sync: SyncConfig
    device: Device
    seed: int = 0
    log_dir: str = ""  # folder of the worker's log, which its engine's processes write too
    shares_cards: bool = False  # with learners: it sleeps while they train
    environment: EnvironmentSpec | None = None  # what its samples act in


class RolloutWorker:
    """The actor. Every method is one call to the engine."""

    def __init__(self, spec: WorkerSpec) -> None:
        self._log = Path(spec.log_dir) / f"{spec.name.replace('/', '-')}.log" if spec.log_dir else None
        if self._log:
            keep_log(self._log)
        environment.prepare(spec.rollout, spec.device)
        with collector_paused():
            from raylign.rollout.vllm_engine import (
                Hosting,
                VLLMEngine,
            )  # after the environment: vLLM reads it when imported

        self._episodes = None
        if spec.environment is not None:
            from raylign.rollout.playing import episodes_of

            self._episodes = episodes_of(spec.environment, spec.model)
        self._core_here = environment.core_in_this_process(spec.rollout, spec.device)
        self._engine = VLLMEngine(
            spec.model,
            spec.rollout,
            spec.sync,
            name=spec.name,
            device=spec.device,
            seed=spec.seed,
            hosting=Hosting(self._core_here, spec.shares_cards, self._episodes),
        )

    async def start(self) -> None:
        """Load the model. Raises EngineDead with the reason that the engine's own process printed."""
        try:
            await self._engine.start()
        except EngineDead as error:
            cause = last_error(self._log) if self._log else ""
            raise EngineDead(f"{error}; it printed: {cause}; see {self._log}" if cause else str(error)) from error
        environment.release_semaphore_names()

    async def generate(self, requests: Sequence[GenerationRequest]) -> tuple[Any, ...]:
        """(metadata of every group, group 0, group 1, ...): one return value each."""
        groups = await self._engine.generate(requests)
        metas = [metas_of(group) for group in groups]
        return (metas, *groups)

    async def score_tokens(self, token_ids: Sequence[Sequence[int]], temperature: float) -> list[list[float]]:
        """Log-prob of each token after the first, by the engine."""
        return await self._engine.score_tokens(token_ids, temperature)

    async def begin_update(self, manifest: WeightManifest) -> None:
        """Pause and announce."""
        await self._engine.begin_update(manifest)

    async def load_bucket(self, pieces: Pieces) -> None:
        """Load one bucket of safetensors bytes, mapped from the object store. Two may be under way at once."""
        async with reach(pieces, same_process=self._core_here) as where:
            await self._engine.load_bucket(where)

    async def finish_update(self, canaries: Sequence[Canary]) -> VerifyReport:
        """Put the weights in place and compare."""
        report = await self._engine.finish_update(canaries)
        if self._episodes is None or report.use is None:
            return report
        return replace(report, use=replace(report.use, environment_restarts=self._episodes.taken_restarts()))

    async def resume(self, version: int) -> None:
        """Serve `version`."""
        await self._engine.resume(version)

    async def sleep(self) -> None:
        """Give the cards back."""
        await self._engine.sleep()

    async def join_transfer(self, link: TransferLink) -> None:
        """Meet the learner and the other engines."""
        await self._engine.join_transfer(link)

    async def receive_weights(self) -> None:
        """Load what the learner broadcasts."""
        await self._engine.receive_weights()

    async def ping(self) -> None:
        """Raises EngineDead when the engine has died."""
        await self._engine.ping()

    async def stop(self) -> None:
        """End the engine's processes, and the environments'."""
        if self._episodes is not None:
            await self._episodes.stop()
        await self._engine.stop()


class RayWorkerHandle:
    """rollout.member.WorkerHandle over a RolloutWorker actor: deadlines, and Ray's errors as ours."""

    def __init__(
        self,
        name: str,
        actor: ActorHandle,
        *,
        generate_s: float,
        update_s: float,
        ping_s: float = 60.0,
        place: Place | None = None,
    ) -> None:
        """Deadlines in seconds: of a generation call, of each update call, and of a health check.

        `place`: the worker's own room in the cluster, given back at its end.
        """
        self._place = place
        self._name, self.actor, self._ping_s = name, actor, ping_s
        self._generate_s, self._update_s = generate_s, update_s

    @property
    def name(self) -> str:
        """The worker's name."""
        return self._name

    async def placed(self, timeout_s: float) -> bool:
        """Whether the cluster has room for it, after at most `timeout_s` seconds."""
        return self._place is None or await self._place.ready(timeout_s)

    async def start(self, timeout_s: float) -> None:
        """Wait until the model is loaded."""
        await self._call(self.actor.start.remote(), "start", timeout_s)

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[GroupHandle]:
        """One handle a request, in order; the groups stay in the object store."""
        metas_ref, *groups = self.actor.generate.options(num_returns=1 + len(requests)).remote(list(requests))
        metas = await self._call(metas_ref, "generate", self._generate_s)
        return [GroupHandle(Ref(group), tuple(rows)) for group, rows in zip(groups, metas, strict=True)]

    async def score_tokens(self, token_ids: Sequence[Sequence[int]], temperature: float) -> list[list[float]]:
        """Log-prob of each token after the first, by the engine."""
        return await self._call(self.actor.score_tokens.remote(token_ids, temperature), "score_tokens", self._update_s)

    async def begin_update(self, manifest: WeightManifest) -> None:
        """Pause and announce."""
        await self._call(self.actor.begin_update.remote(manifest), "begin_update", self._update_s)

    async def load_bucket(self, bucket: Ref) -> None:
        """`bucket`: object reference of safetensors bytes; the worker maps it, the controller never reads it."""
        await self._call(self.actor.load_bucket.remote(bucket), "load_bucket", self._update_s)

    async def join_transfer(self, link: TransferLink) -> None:
        """Meet the learner and the other engines."""
        await self._call(self.actor.join_transfer.remote(link), "join_transfer", self._update_s)

    async def receive_weights(self) -> None:
        """Load what the learner broadcasts."""
        await self._call(self.actor.receive_weights.remote(), "receive_weights", self._update_s)

    async def finish_update(self, canaries: Sequence[Canary]) -> VerifyReport:
        """What the worker found."""
        return await self._call(self.actor.finish_update.remote(list(canaries)), "finish_update", self._update_s)

    async def resume(self, version: int) -> None:
        """Serve `version`."""
        await self._call(self.actor.resume.remote(version), "resume", self._update_s)

    async def sleep(self) -> None:
        """Its cards are free when this returns."""
        await self._call(self.actor.sleep.remote(), "sleep", self._update_s)

    async def ping(self) -> None:
        """Raises EngineDead when there is no answer."""
        await self._call(self.actor.ping.remote(), "ping", self._ping_s)

    async def stop(self) -> None:
        """End engine and actor; one that does not answer is killed all the same."""
        try:
            await self._call(self.actor.stop.remote(), "stop", STOP_S)
        except EngineDead:
            pass  # it is gone, or about to be
        finally:
            self.kill()

    def kill(self) -> None:
        """End the actor at once and give its room back. Idempotent."""
        ray.kill(self.actor)
        if self._place is not None:
            self._place.release()

    async def _call(self, ref: Any, verb: str, timeout_s: float) -> Any:
        try:
            async with asyncio.timeout(timeout_s):
                return await ref
        except asyncio.CancelledError:
            ray.cancel(ref)  # nobody waits for the answer: the engine need not compute it
            raise
        except TimeoutError as error:
            ray.cancel(ref)
            raise EngineDead(f"{self._name}: {verb}: no answer within {timeout_s:g} s") from error
        except RayTaskError as error:
            cause = error.cause
            if isinstance(cause, EngineDead | WeightUpdateError | ValueError):
                raise type(cause)(str(cause)) from error
            raise EngineDead(f"{self._name}: {verb}: {_one_line(cause)}") from error
        except RayError as error:
            gone = memory_kills.note("rollout") if isinstance(error, ActorDiedError) else ""
            raise EngineDead(f"{self._name}: {verb}: {_one_line(error)}{gone}") from error


def spawn_worker(
    spec: WorkerSpec,
    *,
    env_vars: Mapping[str, str],
    place: Place | None = None,
    options: Mapping[str, object] | None = None,
) -> RayWorkerHandle:
    """Start the actor of one worker (not awaited; call `start`). Ray never restarts it: the fleet replaces workers.

    `place`: where it goes; else `options` say it. `env_vars`: as cluster.runtime_env gives them for an engine.
    """
    where = place.options if place is not None else options or {}
    actor = (
        ray.remote(RolloutWorker)
        .options(max_restarts=0, max_task_retries=0, runtime_env={"env_vars": dict(env_vars)}, **where)
        .remote(spec)
    )
    return RayWorkerHandle(
        spec.name,
        actor,
        generate_s=spec.rollout.timeout_s,
        update_s=spec.sync.timeout_s,
        ping_s=spec.rollout.health_timeout_s,
        place=place,
    )


def _one_line(error: BaseException) -> str:
    """Type and first line: Ray's own errors go on with pages of ids and advice, and a run's last line is one line."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
