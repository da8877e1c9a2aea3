"""vLLM behind rollout.interfaces.RolloutEngine. The only file, with vllm_extension.py, that imports vllm.

Tokens in, tokens out. Log-probs are of the tempered distribution the token was drawn from. The process environment
(rollout/environment.py) must be set before this module is imported.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import AsyncIterator, Awaitable, Sequence
from contextlib import asynccontextmanager
from dataclasses import astuple, dataclass, replace
from functools import partial
from typing import TypeVar

from raylign.conf.schema import Device, InFlight, RolloutConfig, SyncConfig
from raylign.data.types import Completion, RolloutGroup, SampleKey, SamplingParams
from raylign.rollout.completions import completion, refuse_overlong
from raylign.rollout.engine_use import UseMeter
from raylign.rollout.episodes import Episodes
from raylign.rollout.gate import Phase, ServingGate, gather_or_cancel
from raylign.rollout.interfaces import (
    Canary,
    EngineDead,
    GenerationRequest,
    TransferLink,
    VerifyReport,
    WeightManifest,
    WeightUpdateError,
)
from raylign.rollout.reports import canary_gap, combine_ranks
from raylign.rollout.residence import Residence, Resident
from raylign.rollout.sampling import sample_seed
from raylign.rollout.vllm_core_thread import CoreThread
from vllm import SamplingParams as VLLMSampling
from vllm.engine.arg_utils import AsyncEngineArgs
from vllm.inputs import TokensPrompt
from vllm.outputs import RequestOutput
from vllm.sampling_params import RequestOutputKind
from vllm.usage.usage_lib import UsageContext
from vllm.v1.engine.async_llm import AsyncLLM
from vllm.v1.engine.exceptions import EngineDeadError, EngineGenerateError
from vllm.v1.metrics.loggers import PrometheusStatLogger

T = TypeVar("T")
STOP_S = 2.0
EXTENSION = "raylign.rollout.vllm_extension.WeightReceiver"


GPU_BATCH_TOKENS = 8192
"""Tokens of one engine step on a GPU, where prompts may be split."""

CPU_BATCH_TOKENS = 4096
"""Tokens of one engine step on CPU; a prompt that does not fit waits for the next step."""

CPU_BLOCK_TOKENS = 32
"""Of the cache on CPU. Only whole blocks of a prompt are shared by its samples, and vLLM's 128 are longer than most
prompts here, so each sample computed the whole prompt anew. Its kernels take multiples of 32."""


@dataclass(frozen=True, slots=True)
class Hosting:
    """Where an engine lives, and with whom."""

    core_thread: bool = False  # its core runs in this process, which has no other engine, not in one of its own
    shares_cards: bool = False  # with learners: it will be asked to sleep
    episodes: Episodes | None = None  # who plays the samples' turns with their environments; None: each is one turn


class VLLMEngine:
    """One vLLM engine: start, generate, update weights, stop.

    Right after start it serves the folder's weights in `rollout.precision`, read by vLLM itself and compared with
    nothing. A run samples nothing from them: version 0 is the policy's own weights, published and verified before the
    first rollout (trainer/loops/online.py), and in bfloat16 those are the folder's rounded. How far apart the two are:
    docs/measurements.md.
    """

    def __init__(
        self,
        model: str,
        config: RolloutConfig,
        sync: SyncConfig,
        *,
        name: str = "rollout/0",
        device: Device = Device.cpu,
        seed: int = 0,
        extension: str = EXTENSION,
        hosting: Hosting = Hosting(),
    ) -> None:
        """`extension`: import path of the worker extension; tests plant faults with it."""
        self._model, self._config, self._sync = model, config, sync
        self._name, self._device, self._seed, self._extension = name, device, seed, extension
        self._llm: AsyncLLM | None = None
        self._core_thread: CoreThread | None = None
        self._hosting = hosting
        self._residence = Residence()
        self._meter = UseMeter()
        self._gate = ServingGate(name)
        self._manifest: WeightManifest | None = None
        self._verified = 0
        self._requests = 0

    async def start(self) -> None:
        """Load the model. Raises EngineDead with vLLM's own cause."""
        try:
            self._llm = await self._started()
            await self._llm.update_weight_version("0")
        except (RuntimeError, ValueError, OSError) as error:
            raise EngineDead(f"{self._name}: vLLM did not start from {self._model}: {error}") from error

    async def _started(self) -> AsyncLLM:
        meters = [self._meter.logger]
        if self._hosting.core_thread:
            self._core_thread = CoreThread(self._engine_args().create_engine_config(UsageContext.ENGINE_CONTEXT))
            llm = await self._core_thread.start(meters)
        else:
            llm = AsyncLLM.from_engine_args(self._engine_args(), stat_loggers=meters)
        _without_prometheus(llm)
        return llm

    async def generate(self, requests: Sequence[GenerationRequest]) -> list[RolloutGroup]:
        """One group a request, in order. Waits while a weight update runs; one that begins meanwhile either waits for
        this call (`rollout.in_flight=drain`) or pauses it and goes on with the new weights (resume).

        Raises EngineDead when the engine died or missed `rollout.timeout_s`, ValueError for a bad request.
        """
        async with self._gate.serving(self._config.timeout_s), self._guard("generate", self._config.timeout_s):
            for request in requests:
                refuse_overlong(request.prompt, request.sampling, self._config.max_model_len)
            running = asyncio.ensure_future(gather_or_cancel([self._group(request) for request in requests]))
            return await self._gate.unless_refused(running, self._config.timeout_s)

    async def score_tokens(self, token_ids: Sequence[Sequence[int]], temperature: float) -> list[list[float]]:
        """Log-prob of each token after the first: [len - 1] for each sequence.

        vLLM never tempers prompt log-probs, so at another temperature than 1 each token is asked for as a next token
        (through the sampler, as generation does): exact but one request a token, meant for checks.
        """
        async with self._guard("score_tokens", self._sync.timeout_s):
            one = self._prompt_logprobs if temperature == 1.0 else partial(self._next_token_logprobs, temperature)
            return await gather_or_cancel([one(ids) for ids in token_ids])

    async def ranked_tokens(self, token_ids: Sequence[Sequence[int]]) -> list[list[tuple[float, int]]]:
        """Log-prob of each token after the first at temperature 1, and its rank, 1 for the likeliest."""
        async with self._guard("ranked_tokens", self._sync.timeout_s):
            return await gather_or_cancel([self._ranked(ids) for ids in token_ids])

    async def begin_update(self, manifest: WeightManifest) -> None:
        """Hold new requests back, pause or finish the running ones, drop caches, announce the tensors.

        A paused request keeps its tokens; its keys and values are computed anew by the new weights.
        Raises WeightUpdateError naming how many calls were late; the engine then still serves its old version.
        """
        drain = self._config.in_flight is InFlight.drain
        await self._gate.close(self._sync.timeout_s, drain=drain)
        self._manifest = manifest
        tensors = [[t.name, list(t.shape), t.dtype, t.digest] for t in manifest.tensors]
        async with self._guard("begin_update", self._sync.timeout_s):
            await self._reported(self._engine.pause_generation(mode="wait" if drain else "keep", clear_cache=True))
            await self._reported(self._residence.weights_back(self._engine))
            adapters = [[adapter.weight, adapter.rank, adapter.scale] for adapter in manifest.adapters]
            args = (tensors, manifest.tied_embeddings, self._sync.verify_columns, manifest.version, adapters)
            await self._rpc("raylign_begin", *args)

    async def load_bucket(self, where: str) -> None:
        """Load one bucket; its memory may go afterwards. Raises WeightUpdateError naming the tensor."""
        self._announced("load_bucket")
        async with self._guard("load_bucket", self._sync.timeout_s):
            await self._rpc("raylign_load", where)

    async def finish_update(self, canaries: Sequence[Canary]) -> VerifyReport:
        """Put the weights in place, read every tensor back, score the canaries. Only reports; `resume` decides.

        Where cards are shared the cache is still away until the weights are known to be right: without it no canary is
        scored.
        """
        manifest = self._announced("finish_update")
        async with self._guard("finish_update", self._sync.timeout_s):
            ranks = await self._rpc("raylign_finish")
            self._manifest = None
            found = replace(combine_ranks(manifest.version, ranks, math.inf), use=self._meter.taken())
            if self._residence.holds is Resident.WEIGHTS and (found.mismatched or found.missing):
                await self._gate.enter(Phase.REFUSED)
                return found
            await self._reported(self._residence.cache_back(self._engine))
            await self._reported(self._engine.reset_prefix_cache())
            # Before the first token by these weights. What paused requests sample from here on is used only when the
            # canaries, which are scored beside them, agree; new requests are held back by our own phase.
            await self._reported(self._engine.update_weight_version(str(manifest.version)))
            await self._reported(self._engine.resume_generation())
        scored = await self.score_tokens([canary.token_ids for canary in canaries], 1.0)
        report = replace(found, canary_gap=canary_gap(canaries, scored))
        self._verified = manifest.version
        limit = min(manifest.max_canary_gap, self._sync.max_canary_gap or math.inf)
        await self._gate.enter(Phase.VERIFIED if report.passed(limit) else Phase.REFUSED)
        return report

    async def resume(self, version: int) -> None:
        """Serve again at `version`. Raises WeightUpdateError unless that version has just been verified."""
        if self._gate.phase is not Phase.VERIFIED or self._verified != version:
            raise WeightUpdateError(f"{self._name} may not serve version {version}: it is {self._gate.phase.value}")
        await self._gate.enter(Phase.SERVING)

    async def sleep(self) -> None:
        """Give the cards' memory back until the next update, once running calls have ended. Idempotent.

        vLLM's CPU worker cannot: the engine then only stands still.
        """
        if self._gate.phase is Phase.ASLEEP:
            return
        await self._gate.close(self._sync.timeout_s, verb="sleep")
        async with self._guard("sleep", self._sync.timeout_s):
            await self._reported(self._residence.leave(self._engine))
        self._manifest = None
        await self._gate.enter(Phase.ASLEEP)

    async def join_transfer(self, link: TransferLink) -> None:
        """Meet the learner and the other engines, for `receive_weights`. Raises WeightUpdateError."""
        self._announced("join_transfer")
        async with self._guard("join_transfer", self._sync.timeout_s):
            await self._rpc("raylign_join", astuple(link))

    async def receive_weights(self) -> None:
        """Load all that the learner broadcasts. Raises WeightUpdateError; the transfer has to begin anew then."""
        self._announced("receive_weights")
        async with self._guard("receive_weights", self._sync.timeout_s):
            await self._rpc("raylign_receive")

    async def ping(self) -> None:
        """Raises EngineDead when the engine's processes are gone. The caller's deadline tells a hung one.

        vLLM's `check_health` only reads a flag on this side; the question whether it sleeps goes through the core's
        own loop, which a stopped core does not turn; and tensor-parallel ranks are processes of their own, whose loss
        the core may not have noticed.
        """
        async with self._guard("ping", self._sync.timeout_s):
            await self._engine.check_health()
            await self._engine.is_sleeping()
            if self._config.tensor_parallel_size > 1:
                try:
                    await self._rpc("raylign_ping")
                except WeightUpdateError as error:
                    raise EngineDead(f"{error}, so a rank of it is gone") from error

    async def stop(self) -> None:
        """Shut the engine down; its processes end."""
        if self._llm is not None:
            if self._core_thread is not None:
                self._core_thread.stop(STOP_S)
            self._llm.shutdown(timeout=STOP_S)
            self._llm = None

    @property
    def _engine(self) -> AsyncLLM:
        if self._llm is None:
            raise EngineDead(f"{self._name}: the engine is not running; call start() first")
        return self._llm

    def _engine_args(self) -> AsyncEngineArgs:
        config = self._config
        on_cpu = self._device is Device.cpu
        return AsyncEngineArgs(
            model=self._model,
            dtype=config.precision.value,
            seed=self._seed,
            max_model_len=config.max_model_len,
            max_num_seqs=config.max_concurrent,
            tensor_parallel_size=config.tensor_parallel_size,
            # Never Ray: vLLM would ask it for cards that this worker holds already.
            distributed_executor_backend="mp" if config.tensor_parallel_size > 1 else None,
            enforce_eager=config.enforce_eager or on_cpu,
            # vLLM 0.32 cannot rewind a CPU generator: a seeded request whose prompt is split over two batches kills the
            # engine ("CPU Generator does not use offset"). So on CPU a prompt is never split.
            enable_chunked_prefill=False if on_cpu else None,
            max_num_batched_tokens=config.max_batched_tokens or self._batch_tokens(),
            enable_sleep_mode=self._hosting.shares_cards and not on_cpu,
            enable_prefix_caching=True,  # the samples of one prompt share its keys and values
            block_size=CPU_BLOCK_TOKENS if on_cpu else None,
            # On a shared card vLLM would count what other roles load meanwhile as its own, and size the cache by it.
            kv_cache_memory_bytes=int(config.kv_cache_gb * 2**30) if on_cpu or 0 < config.gpus_per_worker < 1 else None,
            gpu_memory_utilization=config.gpu_memory_utilization,
            load_format="safetensors",  # never a pickle
            logprobs_mode="processed_logprobs",  # after the temperature: what the token was drawn from
            worker_extension_cls=self._extension,
            disable_log_stats=True,
        )

    def _batch_tokens(self) -> int:
        """vLLM's own default for the asynchronous engine is 2,048 on every card (0.32), a quarter of its server's."""
        if self._device is Device.cpu:
            return max(self._config.max_model_len, CPU_BATCH_TOKENS)
        return GPU_BATCH_TOKENS

    async def _group(self, request: GenerationRequest) -> RolloutGroup:
        if (episodes := self._hosting.episodes) is not None:
            return await episodes.group(request, self._turn)
        prompt, sampling = request.prompt, request.sampling
        turns = [self._turn(key, prompt.token_ids, sampling) for key in request.keys]
        return RolloutGroup(prompt, sampling, tuple(await gather_or_cancel(turns)))

    async def _turn(
        self, key: SampleKey, token_ids: Sequence[int], sampling: SamplingParams, turn: int = 0
    ) -> Completion:
        """What the model says after `token_ids`; the cache still has those of the turns before."""
        params = _vllm_sampling(sampling, key, turn)
        output = await self._final(token_ids, params, label=f"{key.epoch}-{key.prompt_id}-{key.k}")
        return completion(key, output.outputs[0])

    async def _final(self, token_ids: Sequence[int], params: VLLMSampling, *, label: str) -> RequestOutput:
        self._requests += 1
        prompt = TokensPrompt(prompt_token_ids=list(token_ids))
        outputs = self._engine.generate(prompt, params, request_id=f"{label}-{self._requests}")
        return [output async for output in outputs][-1]

    async def _prompt_logprobs(self, ids: Sequence[int]) -> list[float]:
        return [logprob for logprob, _ in await self._ranked(ids)]

    async def _ranked(self, ids: Sequence[int]) -> list[tuple[float, int]]:
        params = VLLMSampling(
            max_tokens=1, prompt_logprobs=0, detokenize=False, output_kind=RequestOutputKind.FINAL_ONLY
        )
        output = await self._final(ids, params, label="score")
        rows = output.prompt_logprobs or []
        found = [row[token] for row, token in zip(rows[1:], ids[1:], strict=True) if row is not None]
        return [(float(one.logprob), int(one.rank)) for one in found]

    async def _next_token_logprobs(self, temperature: float, ids: Sequence[int]) -> list[float]:
        async def one(position: int) -> float:
            params = VLLMSampling(
                max_tokens=1, temperature=temperature, logprob_token_ids=[ids[position]], detokenize=False
            )
            output = await self._final(ids[:position], params, label="score")
            return float(output.outputs[0].logprobs[0][ids[position]].logprob)

        return await gather_or_cancel([one(position) for position in range(1, len(ids))])

    @asynccontextmanager
    async def _guard(self, verb: str, timeout_s: float) -> AsyncIterator[None]:
        """A deadline, and vLLM's own errors as ours."""
        try:
            async with asyncio.timeout(timeout_s):
                yield
        except TimeoutError as error:
            raise EngineDead(f"{self._name}: {verb} did not finish within {timeout_s:g} s") from error
        except (EngineDeadError, EngineGenerateError) as error:
            raise EngineDead(f"{self._name}: {verb}: {error.__cause__ or error}") from error

    async def _rpc(self, method: str, *args: object) -> list[list]:
        """Call our extension on every rank. Raises WeightUpdateError with the worker's message."""
        return await self._reported(self._engine.collective_rpc(method, args=args))

    async def _reported(self, call: Awaitable[T]) -> T:
        """A call into vLLM's workers. Raises WeightUpdateError with the worker's message: the publication then tries
        again or goes on without this engine, where an unknown error would end the run."""
        try:
            return await call
        except Exception as error:  # vLLM reports whatever a worker raised as a bare Exception, by message only
            if type(error) is not Exception:
                raise
            raise WeightUpdateError(f"{self._name}: {error}") from error

    def _announced(self, verb: str) -> WeightManifest:
        if self._manifest is None:
            raise WeightUpdateError(f"{self._name}: {verb} without begin_update")
        return self._manifest


def _without_prometheus(llm: AsyncLLM) -> None:
    """vLLM adds its exporter to any other logger; nobody here asks it, and it counts each token of each request."""
    if llm.logger_manager is not None:
        kept = [one for one in llm.logger_manager.stat_loggers if not isinstance(one, PrometheusStatLogger)]
        llm.logger_manager.stat_loggers = kept


def _vllm_sampling(sampling: SamplingParams, key: SampleKey, turn: int) -> VLLMSampling:
    return VLLMSampling(
        temperature=sampling.temperature,
        top_p=sampling.top_p,
        max_tokens=sampling.max_new_tokens,
        seed=None if sampling.seed is None else sample_seed(sampling.seed, key, turn),
        # vLLM adds what generation_config.json lists; a template's own end of a turn it does not know.
        stop_token_ids=list(sampling.stop_token_ids),
        logprobs=0,  # of the sampled token only
        stop=list(sampling.stop),
        include_stop_str_in_output=bool(sampling.stop),  # the text is what was sampled, as the ids are
        output_kind=RequestOutputKind.FINAL_ONLY,
    )
