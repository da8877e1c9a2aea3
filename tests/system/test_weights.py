"""Weight transactions on a real vLLM engine: what is served is what was sent, or the engine does not serve."""

from __future__ import annotations

import asyncio
import copy
import sys
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import psutil
import pytest
import torch
from raylign.conf.schema import Device, Precision, RolloutConfig, SyncConfig
from raylign.data.sample_model import tiny_model
from raylign.data.types import Prompt, SampleKey, SamplingParams
from raylign.rollout import environment
from raylign.rollout.broadcast import RENDEZVOUS, TRANSFER, TransferGroup, open_link
from raylign.rollout.fingerprint import DigestKind, dtype_name, tensor_digest
from raylign.rollout.interfaces import (
    Canary,
    EngineDead,
    GenerationRequest,
    TensorSpec,
    VerifyReport,
    WeightManifest,
    WeightUpdateError,
)
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM

pytestmark = pytest.mark.system

CONFIG = RolloutConfig(
    precision=Precision.float32, max_model_len=256, kv_cache_gb=0.25, max_concurrent=16, timeout_s=120
)
SYNC = SyncConfig(max_canary_gap=1e-3, timeout_s=60, verify_columns=0)
TOKENS = (5, 9, 100, 33, 250, 7, 61, 300, 12, 45)


class Bench:
    """An engine, its event loop and the Hugging Face model that plays the learner."""

    def __init__(
        self,
        folder: Path,
        extension: str | None = None,
        config: RolloutConfig = CONFIG,
        sync: SyncConfig = SYNC,
        apart: bool = False,  # the core in a process of its own, as on GPUs
    ):
        environment.prepare(config, Device.cpu)
        from raylign.rollout.vllm_engine import EXTENSION, Hosting, VLLMEngine  # after the environment

        self.loop = asyncio.new_event_loop()
        hosting = Hosting(core_thread=environment.core_in_this_process(config, Device.cpu) and not apart)
        if hosting.core_thread:
            _without_extension()
        self.engine = VLLMEngine(str(folder), config, sync, extension=extension or EXTENSION, hosting=hosting)
        self.dtype = torch.float32 if config.precision is Precision.float32 else torch.bfloat16
        self.model = AutoModelForCausalLM.from_pretrained(folder, dtype=self.dtype)
        self.folder, self.config = folder, config
        self.version = 0
        self.run(self.engine.start())

    def run(self, coroutine):
        return self.loop.run_until_complete(asyncio.wait_for(coroutine, 120))

    def weights(self) -> dict[str, Tensor]:
        return {name: tensor.detach().clone() for name, tensor in self.model.named_parameters()}

    def perturb(self, seed: int) -> None:
        """A step of training: every weight moves a little, differently."""
        generator = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for parameter in self.model.parameters():
                noise = torch.randn(parameter.shape, generator=generator).to(parameter.dtype)
                parameter.add_(0.05 * parameter.float().std().nan_to_num(1.0).to(parameter.dtype) * noise)

    def logprobs(self, tokens: tuple[int, ...], temperature: float = 1.0) -> list[float]:
        with torch.no_grad():
            logits = self.model(torch.tensor([tokens])).logits[0, :-1].float() / temperature
        return logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()

    def publish(
        self,
        tmp: Path,
        sent: Mapping[str, Tensor] | None = None,
        buckets: int = 3,
        kind: DigestKind = DigestKind.XXH3,
    ) -> VerifyReport:
        """Announce the model's weights, send `sent` (default: the same)."""
        truth = self.weights()
        self.announce(truth, kind)
        items = list((sent if sent is not None else truth).items())
        for index in range(buckets):
            path = tmp / "bucket.safetensors"
            save_file(dict(items[index::buckets]), path)  # a layer's parts come in different buckets
            self.run(self.engine.load_bucket(str(path)))
            path.unlink()
        return self.finish()

    def publish_by_broadcast(
        self,
        sent: Mapping[str, Tensor] | None = None,
        kind: DigestKind = DigestKind.XXH3,
        timeout_s: float = 60.0,
        bucket_bytes: int = 1 << 16,
        joined: Callable[[], object] = lambda: None,
    ) -> VerifyReport:
        """The same by broadcast: this process is the learner. `joined` is called when all have met."""
        truth = self.weights()
        specs = self.announce(truth, kind)
        link, store = open_link(
            "127.0.0.1",
            workers=1,
            ranks_per_worker=self.config.tensor_parallel_size,
            timeout_s=timeout_s,
            bucket_bytes=bucket_bytes,
        )
        sender = TransferGroup(link, 0, torch.device("cpu"), store)
        with ThreadPoolExecutor() as pool:
            meeting = pool.submit(sender.meet)
            self.run(self.engine.join_transfer(link))
            meeting.result(timeout_s)
            joined()
            sending = pool.submit(sender.send, specs, iter((sent or truth).items()))
            try:
                self.run(self.engine.receive_weights())
            finally:
                sending.exception(timeout_s + 10)  # awaited, whatever it says: what counts is what the engine says
        return self.finish()

    def announce(self, truth: Mapping[str, Tensor], kind: DigestKind) -> tuple[TensorSpec, ...]:
        """Begin the next version's update."""
        self.version += 1
        specs = tuple(
            TensorSpec(n, tuple(t.shape), dtype_name(t.dtype), tensor_digest(t, kind)) for n, t in truth.items()
        )
        manifest = WeightManifest(self.version, specs, self.model.config.tie_word_embeddings)
        self.run(self.engine.begin_update(manifest))
        return specs

    def finish(self) -> VerifyReport:
        """What the engine finds."""
        return self.run(self.engine.finish_update([Canary(TOKENS, tuple(self.logprobs(TOKENS)))]))

    def close(self) -> None:
        self.run(self.engine.stop())
        self.loop.close()


def _without_extension() -> None:
    """vLLM makes a worker's extension a base of its class, and an engine before in this process had another one."""
    from raylign.rollout.vllm_extension import WeightReceiver
    from vllm.v1.worker.cpu_worker import CPUWorker

    CPUWorker.__bases__ = tuple(base for base in CPUWorker.__bases__ if not issubclass(base, WeightReceiver))


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[bool, Path]:
    root = tmp_path_factory.mktemp("models")
    return {tie: tiny_model(root / f"tie-{tie}", tie=tie) for tie in (True, False)}


@pytest.fixture(scope="module", params=[True, False], ids=["tied", "untied"])
def bench(request: pytest.FixtureRequest, folders: dict[bool, Path]) -> Iterator[Bench]:
    made = Bench(folders[request.param])
    yield made
    made.close()


def _planted(folder: Path, name: str) -> Bench:
    root = str(Path(__file__).resolve().parents[2])
    if root not in sys.path:
        sys.path.insert(0, root)  # the engine core is spawned with our sys.path and imports the planted bug by name
    return Bench(folder, extension=f"tests.system.planted_receivers.{name}")


def _greedy(bench: Bench, temperature: float = 0.0) -> tuple[int, int]:
    prompt = Prompt("p", (), TOKENS)
    sampling = SamplingParams(temperature=temperature, max_new_tokens=4, seed=1)
    groups = bench.run(bench.engine.generate([GenerationRequest(prompt, (SampleKey(0, "p", 0),), sampling)]))
    completion = groups[0].completions[0]
    return completion.min_policy_version, completion.max_policy_version


def test_the_served_weights_are_the_sent_ones_after_every_sync(bench: Bench, tmp_path: Path) -> None:
    for seed in (1, 2):
        bench.perturb(seed)
        report = bench.publish(tmp_path)
        assert report.mismatched == () and report.missing == ()
        assert report.canary_gap < 1e-3
        sent = {name: tensor_digest(tensor) for name, tensor in bench.weights().items()}
        assert {name: report.digests[name] for name in sent} == sent
        bench.run(bench.engine.resume(bench.version))
        assert _greedy(bench) == (bench.version, bench.version)


@pytest.mark.parametrize("temperature", [0.7, 1.0, 1.3])
def test_engine_and_trainer_agree_after_a_sync(bench: Bench, tmp_path: Path, temperature: float) -> None:
    bench.perturb(3)
    assert bench.publish(tmp_path).passed(1e-3)
    bench.run(bench.engine.resume(bench.version))
    scored = bench.run(bench.engine.score_tokens([TOKENS], temperature))[0]
    assert scored == pytest.approx(bench.logprobs(TOKENS, temperature), abs=1e-3)
    sampling = SamplingParams(temperature=temperature, max_new_tokens=24, seed=7)
    keys = tuple(SampleKey(0, "p", k) for k in range(4))
    group = bench.run(bench.engine.generate([GenerationRequest(Prompt("p", (), TOKENS), keys, sampling)]))[0]
    for completion in group.completions:
        full = bench.logprobs((*TOKENS, *completion.response_ids), temperature)
        assert completion.rollout_logprobs == pytest.approx(full[len(TOKENS) - 1 :], abs=1e-3)


def test_a_dropped_tensor_is_named_and_the_engine_does_not_serve(bench: Bench, tmp_path: Path) -> None:
    bench.perturb(4)
    sent = bench.weights()
    del sent["model.layers.1.mlp.up_proj.weight"]
    report = bench.publish(tmp_path, sent)
    assert report.missing == ("model.layers.1.mlp.up_proj.weight",)
    with pytest.raises(WeightUpdateError, match="may not serve"):
        bench.run(bench.engine.resume(bench.version))
    with pytest.raises(WeightUpdateError, match="does not serve"):
        _greedy(bench)
    assert bench.publish(tmp_path).passed(1e-3)  # a good transaction heals it
    bench.run(bench.engine.resume(bench.version))
    assert _greedy(bench) == (bench.version, bench.version)


def test_swapped_tensors_of_equal_shape_are_named(bench: Bench, tmp_path: Path) -> None:
    bench.perturb(5)
    sent = bench.weights()
    first, second = (f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1))
    sent[first], sent[second] = sent[second], sent[first]
    report = bench.publish(tmp_path, sent)
    assert report.mismatched == (first, second)
    assert report.canary_gap > 1e-3
    assert bench.publish(tmp_path).passed(1e-3)
    bench.run(bench.engine.resume(bench.version))


def test_a_wrong_number_in_one_place_is_found(bench: Bench, tmp_path: Path) -> None:
    """One element of one tensor: the canary cannot see it, the digest must."""
    bench.perturb(6)
    sent = bench.weights()
    sent["model.layers.0.mlp.down_proj.weight"][3, 5] += 1e-6
    report = bench.publish(tmp_path, sent)
    assert report.canary_gap < 1e-3
    assert report.mismatched == ("model.layers.0.mlp.down_proj.weight",)
    assert bench.publish(tmp_path).passed(1e-3)
    bench.run(bench.engine.resume(bench.version))


def test_unannounced_and_misshapen_tensors_are_refused_and_the_next_update_is_clean(
    bench: Bench, tmp_path: Path
) -> None:
    for name, tensor, message in (
        ("model.layers.9.unknown.weight", torch.zeros(2, 2), "not in the manifest"),
        ("model.norm.weight", torch.zeros(3), "announced as float32"),
    ):
        with pytest.raises(WeightUpdateError, match=message):
            bench.publish(tmp_path, bench.weights() | {name: tensor})
        with pytest.raises(WeightUpdateError, match="may not serve"):
            bench.run(bench.engine.resume(bench.version))
    bench.perturb(7)
    assert bench.publish(tmp_path).passed(1e-3)
    bench.run(bench.engine.resume(bench.version))


def test_a_broadcast_makes_an_engine_serve_what_buckets_make_it_serve_bit_for_bit(bench: Bench, tmp_path: Path) -> None:
    bench.perturb(8)
    stored = bench.publish(tmp_path)
    bench.perturb(9)
    assert bench.publish_by_broadcast().digests != stored.digests
    bench.run(bench.engine.resume(bench.version))
    bench.perturb(10)
    sent = bench.publish_by_broadcast()
    assert sent.passed(1e-3), sent
    bench.run(bench.engine.resume(bench.version))
    assert _greedy(bench) == (bench.version, bench.version)
    again = bench.publish(tmp_path)
    assert again.passed(1e-3) and again.digests == sent.digests
    bench.run(bench.engine.resume(bench.version))


def test_what_a_broadcast_brings_is_compared_like_any_other(bench: Bench) -> None:
    bench.perturb(11)
    sent = bench.weights()
    sent["model.layers.0.mlp.down_proj.weight"][3, 5] += 1e-6
    assert bench.publish_by_broadcast(sent).mismatched == ("model.layers.0.mlp.down_proj.weight",)
    with pytest.raises(WeightUpdateError, match="may not serve"):
        bench.run(bench.engine.resume(bench.version))
    assert bench.publish_by_broadcast().passed(1e-3)
    bench.run(bench.engine.resume(bench.version))


def test_a_learner_that_does_not_come_or_ends_half_way_is_a_failed_update_and_the_next_one_is_whole(
    bench: Bench, tmp_path: Path
) -> None:
    bench.perturb(12)
    bench.announce(bench.weights(), DigestKind.XXH3)
    link, _store = open_link("127.0.0.1", workers=1, ranks_per_worker=1, timeout_s=2.0, bucket_bytes=1 << 16)
    with pytest.raises(WeightUpdateError, match=f"rollout/0: .*{RENDEZVOUS}"):
        bench.run(bench.engine.join_transfer(link))
    half = dict(list(bench.weights().items())[:8])
    with pytest.raises(WeightUpdateError, match=f"rollout/0: .*{TRANSFER}"):
        bench.publish_by_broadcast(half, timeout_s=3.0)
    with pytest.raises(WeightUpdateError, match="may not serve"):
        bench.run(bench.engine.resume(bench.version))
    for publish in (bench.publish_by_broadcast, lambda: bench.publish(tmp_path)):
        assert publish().passed(1e-3)
        bench.run(bench.engine.resume(bench.version))
    bench.run(bench.engine.ping())


def test_a_stale_lm_head_is_caught(folders: dict[bool, Path], tmp_path: Path) -> None:
    bench = _planted(folders[True], "StaleHead")
    try:
        bench.perturb(1)
        report = bench.publish(tmp_path)
        assert report.mismatched == ("lm_head.weight",)
        assert report.canary_gap > 1e-3
        with pytest.raises(WeightUpdateError, match="may not serve"):
            bench.run(bench.engine.resume(bench.version))
    finally:
        bench.close()


def test_a_swap_inside_the_engine_is_caught(folders: dict[bool, Path], tmp_path: Path) -> None:
    bench = _planted(folders[False], "SwapsInTheEngine")
    try:
        bench.perturb(1)
        report = bench.publish(tmp_path)
        assert report.mismatched == tuple(f"model.layers.{i}.self_attn.q_proj.weight" for i in (0, 1))
    finally:
        bench.close()


def test_bfloat16_is_read_back_exactly_and_by_sampled_columns(folders: dict[bool, Path], tmp_path: Path) -> None:
    config = RolloutConfig(precision=Precision.bfloat16, max_model_len=256, kv_cache_gb=0.25, max_concurrent=16)
    bench = Bench(folders[True], config=config, sync=SyncConfig(max_canary_gap=0.2, timeout_s=60, verify_columns=16))
    try:
        bench.perturb(1)
        with torch.no_grad():  # what a packed layer cannot give back: the sign of zero, and subnormals
            bench.model.model.layers[0].mlp.up_proj.weight[0, :64] = -0.0
            bench.model.model.layers[0].mlp.up_proj.weight[1, :64] = 1e-39
        report = bench.publish(tmp_path)
        assert report.passed(0.2), report
        name = "model.layers.0.mlp.up_proj.weight"
        assert report.digests[name] == tensor_digest(bench.weights()[name])  # the first version is read whole
        report = bench.publish(tmp_path)
        assert report.passed(0.2) and report.digests[name] != tensor_digest(bench.weights()[name]), report
        sent = bench.weights()
        sent["model.layers.1.self_attn.o_proj.weight"] = sent["model.layers.0.self_attn.o_proj.weight"].clone()
        assert "model.layers.1.self_attn.o_proj.weight" in bench.publish(tmp_path, sent).mismatched
    finally:
        bench.close()


def test_a_killed_engine_core_is_a_named_death_not_a_hang(folders: dict[bool, Path]) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    bench = Bench(folders[True], apart=True)
    started = [p for p in psutil.Process().children(recursive=True) if p.pid not in before]
    core = next(p for p in started if "EngineCore" in "".join(p.cmdline()) or "EngineCore" in p.name())
    try:
        _greedy(bench)
        core.kill()
        with pytest.raises(EngineDead, match="rollout/0: generate"):
            for _ in range(50):  # the first call may still be accepted while the death is being noticed
                _greedy(bench)
        with pytest.raises(EngineDead, match="rollout/0: ping"):
            bench.run(bench.engine.ping())
    finally:
        bench.close()


def test_responses_in_flight_go_on_with_the_new_weights_from_keys_and_values_of_those(
    bench: Bench, tmp_path: Path
) -> None:
    """Every token's log-prob is that of the weights that sampled it, given all tokens before it."""
    prompt, sampling = Prompt("p", (), TOKENS), SamplingParams(temperature=1.0, max_new_tokens=200, seed=5)
    mixed = 0
    for attempt in range(5):  # how far an engine gets in a given time is the machine's affair
        bench.perturb(100 + attempt)
        bench.publish(tmp_path)
        bench.run(bench.engine.resume(bench.version))
        before = copy.deepcopy(bench.model)
        keys = tuple(SampleKey(attempt, "p", k) for k in range(4))
        running = bench.loop.create_task(bench.engine.generate([GenerationRequest(prompt, keys, sampling)]))
        bench.run(asyncio.sleep(0.1 * 2**attempt))
        bench.perturb(200 + attempt)
        assert bench.publish(tmp_path).passed(1e-3)
        bench.run(bench.engine.resume(bench.version))
        for completion in bench.run(running)[0].completions:
            ids, models = (*TOKENS, *completion.response_ids), {bench.version - 1: before, bench.version: bench.model}
            truth = {v: _logprobs(model, ids)[len(TOKENS) - 1 :] for v, model in models.items()}
            expected = [truth[v][t] for v, start, end in completion.versions for t in range(start, end)]
            assert completion.rollout_logprobs == pytest.approx(expected, abs=1e-3)
            mixed += len(completion.versions) == 2
        if mixed:
            break
    assert mixed, "no response was interrupted in five tries"
    use = bench.publish(tmp_path).use  # the pause took their blocks; told with their next token
    assert use is not None and use.preemptions >= mixed and 0.0 < use.cache_peak < 1.0


def _logprobs(model: torch.nn.Module, tokens: tuple[int, ...]) -> list[float]:
    with torch.no_grad():
        logits = model(torch.tensor([tokens])).logits[0, :-1].float()
    return logits.log_softmax(-1).gather(1, torch.tensor(tokens[1:])[:, None])[:, 0].tolist()
