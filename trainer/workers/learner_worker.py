"""The Ray shell of one rank: fetch, call the learner, put. Everything that computes is in trainer/learner.py.

Results go to the object store and only their references to the controller.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import ray
import torch
from raylign.cluster.pages import KeptPages
from raylign.cluster.rank import MeetingPoint, RankInfo
from raylign.cluster.shared_folder import SharedFolder
from raylign.cluster.weights import put_bucket
from raylign.conf.errors import UserError
from raylign.data.batching import plan_forward
from raylign.data.experience import pack_groups
from raylign.data.tokenize import load_tokenizer
from raylign.data.types import RankShard, RolloutGroup, TokenBatch
from raylign.data.work import work_of
from raylign.rollout.interfaces import AdapterSpec, Canary, TensorSpec, TransferLink
from raylign.trainer.engine.base import BackgroundSaving, Engine, EngineStateError, MovableState
from raylign.trainer.engine.buckets import adapted_layers, weights_and_adapters, weights_to_buckets, whole_weights
from raylign.trainer.engine.rendezvous import listen
from raylign.trainer.learner import Learner, Objective
from raylign.trainer.loops.interfaces import UpdateResult
from raylign.trainer.models.adapters import ADAPTER_FOLDER, write_adapter
from raylign.trainer.models.causal_lm import CausalLM
from raylign.trainer.models.export import export_hf
from raylign.trainer.models.scalar_head import ScalarModel
from raylign.trainer.verified_folder import FileDigest
from raylign.trainer.workers.card_memory import room_on_card
from raylign.trainer.workers.forward_plan import RankPass, as_teacher, realigned, scatter_tokens, scatter_values
from raylign.trainer.workers.preflight import PairMeeting
from raylign.trainer.workers.profiling import UpdateProfiler
from raylign.trainer.workers.specs import LearnerSpec
from raylign.trainer.workers.transfer import WeightTransfer, described
from safetensors import SafetensorError
from torch import Tensor


@dataclass(frozen=True, slots=True)
class StagedWeights:
    """The model as it lies in the object store, ready to be sent."""

    tensors: tuple[TensorSpec, ...]
    buckets: tuple[ray.ObjectRef, ...]  # -> safetensors bytes, see cluster/weights.py; in the order of `tensors`
    tied_embeddings: bool
    adapters: tuple[AdapterSpec, ...] = ()  # not empty: the buckets hold these alone


class LearnerWorker:
    """One rank of a policy, critic, reference or reward-model learner. Methods are called on all ranks together."""

    def __init__(self, info: RankInfo, spec: LearnerSpec, fetch_timeout_s: float, profiled: Sequence[int] = ()) -> None:
        """`profiled`: updates of this process to profile; rank 0 does."""
        info.open_log()
        self._info = info
        self._spec = spec
        self._fetch_timeout_s = fetch_timeout_s
        self._learner: Learner | None = None
        self._transfer: WeightTransfer | None = None
        self._pair = PairMeeting()
        self._pages = KeptPages()
        self._trains = False
        self._profiler = UpdateProfiler(
            () if info.rank else profiled, Path(info.log_dir).parent / "profile", f"{info.role}-{info.rank}"
        )

    def prove_folder(self, folder: SharedFolder) -> None:
        """Raises ClusterError when the run's folder is not the driver's on this node."""
        folder.prove(self._info.role, self._info.rank)

    def open_pair(self) -> TransferLink:
        """Wait for a rank of another node."""
        return self._pair.open(ray.util.get_node_ip_address())

    def meet_pair(self, link: TransferLink | None = None) -> str:
        """Exchange one number with a rank of another node; why that failed, or empty."""
        return self._pair.meet(torch.device("cuda" if torch.cuda.is_available() else "cpu"), link)

    def meeting_point(self) -> MeetingPoint:
        """On this rank's node, where it listens from now on: of rank 0."""
        address = ray.util.get_node_ip_address()
        return MeetingPoint(address, listen(address))

    def start(self, meeting: MeetingPoint) -> None:
        """Load the model."""
        self._learner = self._spec.build(self._info, meeting)

    def logprobs(
        self,
        refs: Sequence[ray.ObjectRef],
        share: RankPass,
        temperature: float,
        without_adapters: bool = False,
        teacher_budget: int = 0,
    ) -> ray.ObjectRef:
        """-> reference to list[Tensor], one a group of `share`.

        `teacher_budget`: answers are looked at after the prompts that a teacher reads, in micro-batches of at most so
        many tokens; 0: after the policy's.
        """
        groups, tokens = self._fetch(refs)
        seen, micro_batches = tokens, share.micro_batches
        if teacher_budget and any(group.prompt.teacher_ids for group in groups):
            seen = pack_groups(as_teacher(groups))
            work = [work_of([sequence]) for sequence in seen.sequences()]
            [planned] = plan_forward(work, num_ranks=1, micro_batch_tokens=teacher_budget)
            micro_batches = tuple(tuple(rows) for rows in planned)
        batches = [seen.select(m) for m in micro_batches]
        with room_on_card(self._info, batches, trains=False):
            parts = self._ready.logprobs(batches, temperature=temperature, without_adapters=without_adapters)
        self._scored()
        found = scatter_tokens(parts, micro_batches, seen, _sizes(groups))
        return ray.put(found if seen is tokens else realigned(found, seen, tokens, _sizes(groups)))

    def values(self, refs: Sequence[ray.ObjectRef], share: RankPass) -> ray.ObjectRef:
        """-> reference to list[ValueEstimates], one a group of `share`."""
        groups, tokens = self._fetch(refs)
        batches = [tokens.select(m) for m in share.micro_batches]
        with room_on_card(self._info, batches, trains=False):
            parts = self._ready.values(batches)
        self._scored()
        return ray.put(scatter_values(parts, share.micro_batches, tokens, _sizes(groups)))

    def sequence_logprobs(self, batches: Sequence[TokenBatch]) -> list[Tensor]:
        """Summed log-probs `[S]` of each batch's sequences."""
        scores = self._ready.sequence_logprobs(batches)
        self._scored()
        return scores

    def update(self, shard: RankShard[Any], objective: Objective[Any]) -> UpdateResult:
        """Train on this rank's shard (Ray hands over the object behind the reference)."""
        batches = (batch.tokens for window in shard.windows for batch in window.micro_batches)
        with self._profiler.update(), room_on_card(self._info, batches, trains=True):
            result = self._ready.update(shard, objective)
        self._trains = True
        self._pages.after_step()
        return result

    def evaluate(self, shard: RankShard[Any], objective: Objective[Any]) -> Mapping[str, float]:
        """The objective's metrics without training."""
        metrics = self._ready.evaluate(shard, objective)
        self._scored()
        return metrics

    def _scored(self) -> None:
        """A learner in training keeps what its update will want again; a reference has nothing to wait for."""
        if not self._trains:
            self._pages.after_step()

    def stage_weights(self, bucket_bytes: int, adapters_only: bool = False) -> StagedWeights | None:
        """Put the present weights, or their adapters alone, into the object store, bucket by bucket.

        Rank 0 answers, the others help gather.
        """
        engine, adapters = self._ready.engine, tuple[AdapterSpec, ...]()
        if adapters_only:
            tensors, refs, adapters = staged_adapters(engine)
        else:
            tensors, refs = staged(engine, bucket_bytes)
        if self._info.rank != 0:
            return None
        tied = bool(self._model.hf.config.tie_word_embeddings)
        return StagedWeights(tuple(tensors), tuple(refs), tied, adapters)

    def announce_weights(self) -> StagedWeights | None:
        """The digests of the present weights, which will be broadcast. Rank 0 answers, the others help gather."""
        self._transfer = self._transfer or WeightTransfer(self._ready.engine)
        tensors = self._transfer.announce()
        if self._info.rank != 0:
            return None
        return StagedWeights(tensors, (), bool(self._model.hf.config.tie_word_embeddings))

    def open_transfer(self, workers: int, ranks_per_worker: int, timeout_s: float, bucket_bytes: int) -> TransferLink:
        """Where engines meet this rank, which is the first."""
        return self._sending.open(
            ray.util.get_node_ip_address(),
            workers=workers,
            ranks_per_worker=ranks_per_worker,
            timeout_s=timeout_s,
            bucket_bytes=bucket_bytes,
        )

    def join_transfer(self) -> str:
        """Why the engines were not met; empty when they were."""
        return self._sending.meet()

    def send_weights(self) -> str:
        """Broadcast what was announced; why it broke off, or empty."""
        return self._sending.send()

    def offload_state(self) -> None:
        """Optimizer state to the host: an engine wants the card."""
        self._movable.offload_state()

    def reload_state(self) -> None:
        """The card is this rank's again."""
        self._movable.reload_state()

    def canaries(self, sequences: Sequence[Sequence[int]]) -> list[Canary]:
        """The model's log-probs of fixed tokens at temperature 1. Every rank answers the same."""
        masks = [[False] + [True] * (len(ids) - 1) for ids in sequences]
        batches = [TokenBatch.from_sequences([ids], [mask]) for ids, mask in zip(sequences, masks, strict=True)]
        logprobs = self._ready.logprobs(batches, temperature=1.0)
        return [Canary(tuple(ids), tuple(p[1:].tolist())) for ids, p in zip(sequences, logprobs, strict=True)]

    def vocab_size(self) -> int:
        """Token ids the model knows."""
        return int(self._model.hf.config.get_text_config().vocab_size)

    def save(self, folder: str) -> None:
        """Begin to write this rank's weights and optimizer state into `folder`, which all ranks can reach."""
        self._saving.begin_save(Path(folder))

    def saved(self) -> FileDigest | str | None:
        """The file that `save` began; None while it is written.

        The reason when the disk refuses it: training may go on, so this rank has not failed.
        """
        try:
            return self._saving.saved()
        except (OSError, SafetensorError) as error:
            return f"{type(error).__name__}: {error}"

    def restore(self, folder: str) -> None:
        """Continue where `save` left off, under this or another rank count and ZeRO stage.

        Raises UserError, naming what differs, when it cannot be.
        """
        try:
            self._ready.engine.load_state(Path(folder))
        except EngineStateError as error:
            raise UserError(f"checkpoint.resume: {error}") from error

    def export(self, folder: str) -> None:
        """Write a plain Hugging Face folder (rank 0), and in it the adapter by itself where that is asked for."""
        weights = whole_weights(self._ready.engine)
        try:
            if self._info.rank == 0:
                tokenizer = load_tokenizer(self._spec.folder, self._spec.chat_template)
                export_hf(self._model, weights, folder, tokenizer)
        finally:
            deque(weights, maxlen=0)  # the other ranks gather what is left also where this one's disk is full
        if self._spec.lora.save_adapter:
            self._export_adapter(Path(folder) / ADAPTER_FOLDER)

    def _export_adapter(self, folder: Path) -> None:
        hf = self._model.hf
        trained = {name for name, parameter in hf.named_parameters() if parameter.requires_grad}
        gathered = self._ready.engine.gathered_parameters()
        state = {name: tensor.clone() for name, tensor in gathered if name in trained}
        if self._info.rank == 0:
            write_adapter(hf, state, self._spec.lora, self._spec.folder, folder)

    @property
    def _ready(self) -> Learner:
        assert self._learner is not None, f"{self._info.role} rank {self._info.rank} was called before start"
        return self._learner

    @property
    def _sending(self) -> WeightTransfer:
        assert self._transfer is not None, f"{self._info.role} rank {self._info.rank}: weights were not announced"
        return self._transfer

    @property
    def _movable(self) -> MovableState:
        return cast("MovableState", self._ready.engine)  # that of a policy or a critic

    @property
    def _saving(self) -> BackgroundSaving:
        return cast("BackgroundSaving", self._ready.engine)

    @property
    def _model(self) -> CausalLM | ScalarModel:
        return cast("CausalLM | ScalarModel", self._ready.engine.module)

    def _fetch(self, refs: Sequence[ray.ObjectRef]) -> tuple[list[RolloutGroup], TokenBatch]:
        groups = ray.get(list(refs), timeout=self._fetch_timeout_s) if refs else []
        return groups, pack_groups(groups)


def staged(engine: Engine, bucket_bytes: int) -> tuple[list[TensorSpec], list[ray.ObjectRef]]:
    """Every weight's digest, and the buckets in the object store: its copy is the only one. Collective."""
    tensors: list[TensorSpec] = []
    refs: list[ray.ObjectRef] = []
    for bucket in weights_to_buckets(engine, bucket_bytes):
        named = dict(zip(bucket.names, bucket.tensors, strict=True))
        tensors += [described(name, tensor) for name, tensor in named.items()]
        refs.append(put_bucket(named))
    return tensors, refs


def staged_adapters(engine: Engine) -> tuple[list[TensorSpec], list[ray.ObjectRef], tuple[AdapterSpec, ...]]:
    """Every weight's digest, adapters merged, and the adapters alone in the object store. Collective."""
    adapters: dict[str, Tensor] = {}
    tensors = [described(name, tensor) for name, tensor in weights_and_adapters(engine, adapters)]
    specs = [AdapterSpec(f"{name}.weight", layer.rank, layer.scale) for name, layer in adapted_layers(engine).items()]
    return tensors, [put_bucket(adapters)] if adapters else [], tuple(specs)


def _sizes(groups: Sequence[RolloutGroup]) -> list[int]:
    return [len(group.completions) for group in groups]
