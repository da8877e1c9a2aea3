"""What a rank builds when it starts. A spec is data: it travels to the rank and is built there."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import chain
from typing import Protocol

from raylign.cluster.rank import MeetingPoint, RankInfo
from raylign.conf.schema import Device, LearnerConfig, LoraConfig, OptimConfig, Precision
from raylign.trainer.engine.sequence_ranks import sequence_ranks
from raylign.trainer.engine.sharded import ShardedEngine
from raylign.trainer.engine.torch_engine import TorchEngine
from raylign.trainer.engine.zero import Rendezvous, ZeroEngine
from raylign.trainer.learner import Learner
from raylign.trainer.models.adapters import add_adapters, initial_adapters, start_adapters
from raylign.trainer.models.causal_lm import CausalLM
from raylign.trainer.models.loading import check_on_card, load_causal_lm, load_scalar_model, stored_weights
from raylign.trainer.models.scalar_head import ScalarModel


class LearnerSpec(Protocol):
    """Recipe of one rank's learner."""

    @property
    def folder(self) -> str:
        """The model it starts from; an export has its tokenizer."""
        ...

    @property
    def chat_template(self) -> str:
        """Takes the place of the folder's own in an export; empty: the folder's own."""
        ...

    @property
    def lora(self) -> LoraConfig:
        """Its adapters."""
        ...

    def build(self, info: RankInfo, meeting: MeetingPoint) -> Learner:
        """Load the model and its engine. Collective when the ranks share a process group."""
        ...


@dataclass(frozen=True, slots=True)
class PolicySpec:
    """A causal model in training under ZeRO."""

    folder: str
    config: LearnerConfig
    device: Device
    total_steps: int  # optimizer steps of the whole run, for the learning-rate schedule
    timeout_s: float  # of every collective
    adapter_seed: int = 0
    chat_template: str = ""

    @property
    def lora(self) -> LoraConfig:
        """Of the learner."""
        return self.config.lora

    def build(self, info: RankInfo, meeting: MeetingPoint) -> Learner:
        """Collective."""
        model = load_causal_lm(
            self.folder,
            precision=self.config.precision,
            gradient_checkpointing=self.config.gradient_checkpointing,
            device=_whole_on(self),
            as_stored=self.config.zero_stage == 3,
        )
        return _zero(model, self, info, meeting)


@dataclass(frozen=True, slots=True)
class ScalarSpec:
    """A scalar-head model in training under ZeRO: a critic, or a reward model."""

    folder: str
    config: LearnerConfig
    device: Device
    total_steps: int
    timeout_s: float
    new_head_seed: int | None  # a head for a causal folder is drawn from this; None: the folder must have one
    adapter_seed: int = 0
    chat_template: str = ""

    @property
    def lora(self) -> LoraConfig:
        """Of the learner."""
        return self.config.lora

    def build(self, info: RankInfo, meeting: MeetingPoint) -> Learner:
        """Collective."""
        model = load_scalar_model(
            self.folder,
            precision=self.config.precision,
            gradient_checkpointing=self.config.gradient_checkpointing,
            new_head_seed=self.new_head_seed,
            device=_whole_on(self),
            as_stored=self.config.zero_stage == 3,
        )
        return _zero(model, self, info, meeting)


@dataclass(frozen=True, slots=True)
class FrozenSpec:
    """A causal model that is only asked. Its ranks are independent replicas, or together hold one (`sharded`)."""

    folder: str
    precision: Precision
    device: Device
    sharded: bool = False
    timeout_s: float = 1800.0  # of every collective of a sharded one
    chat_template: str = ""

    @property
    def lora(self) -> LoraConfig:
        """None."""
        return LoraConfig()

    def build(self, info: RankInfo, meeting: MeetingPoint) -> Learner:
        """Collective when sharded. The plain engine's optimizer holds nothing before a first step: none comes."""
        whole = Device.cpu if self.sharded else self.device
        model = load_causal_lm(self.folder, precision=self.precision, device=whole, as_stored=self.sharded)
        if self.sharded:
            rendezvous = Rendezvous(
                info.rank, info.world_size, meeting.master_addr, meeting.master_port, self.timeout_s
            )
            engine = ShardedEngine(model, self.precision, rendezvous, device=self.device)
            check_on_card(model.hf, self.folder, self.device)
            return Learner(engine)
        return Learner(TorchEngine(model, OptimConfig(), total_steps=0))


def _whole_on(spec: PolicySpec | ScalarSpec) -> Device:
    """Where a rank may load the whole model. Under ZeRO-3 it may not fit on a card, and adapters' bases are digested on
    the CPU."""
    return Device.cpu if spec.config.zero_stage == 3 or spec.lora.rank else spec.device


def _zero(
    model: CausalLM | ScalarModel, spec: PolicySpec | ScalarSpec, info: RankInfo, meeting: MeetingPoint
) -> Learner:
    if spec.lora.rank:
        add_adapters(model.hf, spec.lora)
        start_adapters(model.hf, spec.adapter_seed)
    rendezvous = Rendezvous(info.rank, info.world_size, meeting.master_addr, meeting.master_port, spec.timeout_s)
    engine = ZeroEngine(model, spec.config, rendezvous, device=spec.device, total_steps=spec.total_steps)
    model.split = sequence_ranks(info.rank, info.world_size, spec.config.sequence_parallel_size, spec.timeout_s)
    if _whole_on(spec) is not spec.device:
        check_on_card(model.hf, spec.folder, spec.device)
    if spec.config.precision is Precision.bfloat16:
        engine.set_masters(chain(stored_weights(spec.folder), initial_adapters(model.hf, spec.adapter_seed)))
    return Learner(engine, model.split)
