"""How much memory each process of a run takes, before any is started. Pure: shapes and settings in, bytes out.

Weights, gradients and optimizer state are counted exactly; activations, the head and what frameworks take beside them
are estimates from the shapes of the layers, stated in the names of the parts. benchmarks/memory_peaks.py compares them
with peaks on a CPU; none has been compared with a GPU.

Sources: ZeRO's counts are Rajbhandari et al. 2020 (arXiv:1910.02054) with the formats of engine/zero_config.py;
recomputed activations are one input a layer and one layer in full (Korthikanti et al. 2022, arXiv:2205.05198).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

from raylign.conf.schema import Device, LearnerConfig, Offload, Precision, ReferenceConfig, RewardConfig, RolloutConfig
from raylign.trainer.functional.known_gradient import CPU_BLOCK_BYTES
from raylign.trainer.models.adapters import add_adapters
from raylign.trainer.models.export import SHARD_BYTES
from raylign.trainer.models.loading import model_skeleton
from raylign.trainer.models.lora import is_adapter
from transformers import PreTrainedModel

GB = 10**9
CONTEXT_BYTES = 1.2 * GB
"""CUDA's context, NCCL's buffers and the libraries' workspaces of one process."""
ENGINE_BYTES = 3.0 * GB
"""What an engine takes beside weights and cache: activations of a step, CUDA graphs, context."""
LIVE_WEIGHTS = 10**9
"""Parameters that ZeRO-3 keeps gathered at once, at most (`stage3_max_live_parameters`)."""
HEAD_BYTES = 2.3 * GB
"""Logits of one block in float32, their softmax and their gradient (functional/logit_blocks.py on a GPU)."""
FULL = 0.95
"""A card counts as full beyond this share: allocators lose the rest to fragments."""
LEARNERS_TURN, ENGINES_TURN = "learners' turn", "engines' turn"
_GATED = {"gate_proj", "up_proj", "down_proj"}
STATE_BYTES = 12
"""A trained parameter's float32 master and its two AdamW moments."""


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What memory depends on of a model."""

    parameters: int  # tied ones once
    trained: int
    adapted: int  # of `trained`, those of adapters: merged away before anything is published
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab: int
    scalar: bool  # one number a state instead of a vocabulary
    gated: bool  # feed-forwards as Llama's: gate, up, down

    @property
    def layer_numel(self) -> int:
        """Parameters of one decoder layer, about."""
        attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads)
        return attention + (3 if self.gated else 2) * self.hidden * self.intermediate

    @property
    def kept_width(self) -> int:
        """Numbers that one layer keeps of each token between forward and backward: of a gated feed-forward gate and up
        (models/lean_layers.py), of another its hidden layer before and after the activation."""
        return 4 * self.hidden + 2 * self.head_dim * (self.heads + self.kv_heads) + 2 * self.intermediate

    @property
    def worked_width(self) -> int:
        """Numbers of each token beside what is kept while one feed-forward's gradient is made; half of them are
        computed again."""
        return (4 if self.gated else 2) * self.intermediate

    @property
    def layer_width(self) -> int:
        """Numbers of one layer for each token where nothing has been kept of it: a layer made again, a forward pass."""
        return self.kept_width + (2 * self.intermediate if self.gated else 0)

    def kv_bytes(self, itemsize: int, tensor_parallel: int) -> float:
        """Keys and values of one token on one card."""
        return 2 * self.layers * self.head_dim * itemsize * max(1.0, self.kv_heads / tensor_parallel)


def model_shape(folder: str, *, scalar: bool, learner: LearnerConfig | None = None) -> ModelShape:
    """Of the model in a folder, from its config.json alone. Raises ModelLoadError for a folder without one."""
    hf = model_skeleton(folder, scalar=scalar)
    if learner is not None and learner.lora.rank:
        add_adapters(hf, learner.lora)
    return shape_of(hf, scalar=scalar)


def shape_of(hf: PreTrainedModel, *, scalar: bool) -> ModelShape:
    """Of a model in memory, or of one that has only shapes."""
    text, named = hf.config.get_text_config(), dict(hf.named_parameters())
    # ZeRO-3 leaves a parameter without elements and notes how many it has.
    sizes = {name: int(getattr(p, "ds_numel", p.numel())) for name, p in named.items()}
    trained = sum(size for name, size in sizes.items() if named[name].requires_grad)
    adapted = sum(size for name, size in sizes.items() if is_adapter(name))
    whole = sum(sizes.values()) - adapted
    heads = text.num_attention_heads
    return ModelShape(
        parameters=whole,
        trained=trained,
        adapted=adapted,
        layers=text.num_hidden_layers,
        hidden=text.hidden_size,
        heads=heads,
        kv_heads=getattr(text, "num_key_value_heads", None) or heads,
        head_dim=getattr(text, "head_dim", None) or text.hidden_size // heads,
        intermediate=getattr(text, "intermediate_size", None) or 4 * text.hidden_size,
        vocab=text.vocab_size,
        scalar=scalar,
        gated=any(dict(module.named_children()).keys() >= _GATED for module in hf.modules()),
    )


@dataclass(frozen=True, slots=True)
class CardUse:
    """What one process of a role takes of its card, by part, in bytes."""

    role: str
    processes: int
    share: float  # of a card, or whole cards
    parts: Mapping[str, float]

    @property
    def total(self) -> float:
        """Bytes on one card."""
        return sum(self.parts.values())

    def fits(self, card_bytes: float) -> bool:
        """Whether it fits in its share of a card."""
        return self.total <= FULL * card_bytes * min(self.share or 1.0, 1.0)


def learner_use(role: str, shape: ModelShape, learner: LearnerConfig, device: Device = Device.cuda) -> CardUse:
    """One rank of a learner under ZeRO, at the first backward of a later micro-batch: gradients are there."""
    ranks, stage, width = learner.num_ranks, learner.zero_stage, item_bytes(learner.precision)
    bf16, trained = learner.precision is Precision.bfloat16, shape.trained
    parameters = shape.parameters + shape.adapted
    weights = parameters * width / (ranks if stage == 3 else 1)
    if stage == 3 and ranks > 1:
        weights += width * min(LIVE_WEIGHTS, parameters, 2 * max(shape.layer_numel, shape.vocab * shape.hidden))
    if stage == 3 and 1 < learner.zero_node_ranks < ranks:  # the parts of a second copy, over the ranks of a node
        weights += parameters * width / learner.zero_node_ranks
    gradients = trained * (4 if stage >= 2 or not bf16 else 2) / (ranks if stage >= 2 else 1)
    # Without bfloat16 the working weights are the masters in stage 0; the sharded stages keep a copy.
    state = trained * (STATE_BYTES if bf16 or stage else 8) / (ranks if stage else 1)
    parts = {"weights": weights, "gradients": gradients}
    parts["optimizer"] = 0.0 if learner.offload_optimizer is Offload.cpu else state
    tokens = -(-learner.micro_batch_tokens // max(1, learner.sequence_parallel_size))
    if learner.gradient_checkpointing:  # one layer's are there again when its gradients are made
        each_token = shape.layers * shape.hidden + shape.layer_width + shape.worked_width / 2
    else:
        each_token = shape.layers * shape.kept_width + shape.worked_width
    activations = tokens * width * each_token
    return CardUse(role, ranks, learner.gpus_per_rank, {**parts, **_computing(activations, shape, tokens, device)})


def frozen_use(role: str, shape: ModelShape, config: ReferenceConfig | RewardConfig) -> CardUse:
    """One process of a model that is only asked: a forward pass keeps one layer."""
    width, tokens = item_bytes(config.precision), config.micro_batch_tokens
    weights = float(shape.parameters * width)
    if isinstance(config, ReferenceConfig):
        count, share, ranks = config.num_ranks, config.gpus_per_rank, config.num_ranks if config.sharded else 1
    else:
        ranks = config.ranks_per_replica
        count, share = config.num_replicas * ranks, config.gpus_per_replica / ranks
    if ranks > 1:
        weights /= ranks
        weights += width * min(LIVE_WEIGHTS, 2 * max(shape.layer_numel, shape.vocab * shape.hidden))
    return CardUse(
        role, count, share, {"weights": weights, **_computing(tokens * shape.layer_width * width, shape, tokens)}
    )


@dataclass(frozen=True, slots=True)
class EngineUse:
    """One engine: what its cards hold, and how many tokens its cache has room for."""

    card: CardUse
    cache_tokens: int

    def sequences(self, max_model_len: int) -> int:
        """Longest sequences that fit in the cache at once."""
        return self.cache_tokens // max_model_len


def engine_use(shape: ModelShape, rollout: RolloutConfig, card_bytes: float, share: float) -> EngineUse:
    """One card of a vLLM engine: the cache is what weights and workspace leave of its share."""
    width, parallel = item_bytes(rollout.precision), rollout.tensor_parallel_size
    weights = shape.parameters * width / parallel
    given = rollout.kv_cache_gb * 2**30 if 0 < rollout.gpus_per_worker < 1 else None
    cache = given if given is not None else rollout.gpu_memory_utilization * card_bytes - weights - ENGINE_BYTES
    cache = max(cache, 0.0)
    parts = {"weights": weights, "workspace": ENGINE_BYTES, "KV cache": cache}
    tokens = int(cache / shape.kv_bytes(width, parallel))
    return EngineUse(CardUse("rollout", rollout.num_workers * parallel, min(share, 1.0), parts), tokens)


def offloaded_bytes(shape: ModelShape, learner: LearnerConfig) -> float:
    """What a rank moves to its host when it leaves a shared card, and back: state, and ZeRO-3's gradients."""
    gradients = 4 if learner.zero_stage == 3 else 0
    whole = learner.zero_stage == 0 and learner.precision is Precision.float32  # its masters are its weights
    return (
        shape.trained * ((8 if whole else STATE_BYTES) + gradients) / (learner.num_ranks if learner.zero_stage else 1)
    )


def resting_bytes(shape: ModelShape, learner: LearnerConfig, *, answers: bool) -> float:
    """A learner's rank in the engines' turn. `answers`: without its adapters it is the reference, and is asked."""
    ranks, stage, width = learner.num_ranks, learner.zero_stage, item_bytes(learner.precision)
    parameters = shape.parameters + shape.adapted
    rest = parameters * width / (ranks if stage == 3 else 1) + CONTEXT_BYTES
    if stage < 2:  # the sharded stages free theirs, or move them out
        rest += shape.trained * width
    if answers:
        gathered = min(LIVE_WEIGHTS, 2 * max(shape.layer_numel, shape.vocab * shape.hidden)) if stage == 3 else 0
        tokens = -(-learner.micro_batch_tokens // max(1, learner.sequence_parallel_size))
        rest += width * gathered + HEAD_BYTES + tokens * shape.layer_width * width
    return rest


def turn_uses(
    learners: Mapping[str, tuple[ModelShape, LearnerConfig]], engine: EngineUse, *, answers: bool
) -> tuple[CardUse, CardUse]:
    """A card that learners and an engine share: in the learners' turn, whose updates run side by side, and in the
    engines'. A sleeping engine keeps its workspace: context, CUDA graphs and what vLLM does not release."""
    training = {role: learner_use(role, shape, config).total for role, (shape, config) in learners.items()}
    resting = {
        f"{role} at rest": resting_bytes(shape, config, answers=answers and role == "policy")
        for role, (shape, config) in learners.items()
    }
    processes = engine.card.processes
    return (
        CardUse(LEARNERS_TURN, processes, 1.0, {**training, "sleeping engine": ENGINE_BYTES}),
        CardUse(ENGINES_TURN, processes, 1.0, {**engine.card.parts, **resting}),
    )


@dataclass(frozen=True, slots=True)
class Outside:
    """What does not lie on a card, in bytes."""

    host: Mapping[str, float]  # RAM by what it holds, over all nodes
    object_store: float  # of the node the policy's rank 0 is on
    checkpoint: float  # one, on disk
    export: float
    publication: float  # sent to each engine, the whole model
    later_publication: float  # the same after an engine's first: the whole model, or its adapters alone


def outside(
    models: Mapping[str, tuple[ModelShape, LearnerConfig]],
    engine: Precision | None,
    *,
    leaves_cards: bool = False,
    adapters_alone: bool = False,
) -> Outside:
    """Of all models in training, by role; `engine`: precision served, None without engines; `leaves_cards`: state goes
    to the host in the engines' turn; `adapters_alone`: publications after the first send nothing else."""
    shape, policy = models["policy"]
    saved = sum(STATE_BYTES * m.trained for m, _ in models.values())
    host = {
        f"optimizer state of the {role}": float(STATE_BYTES * m.trained)
        for role, (m, learner) in models.items()
        if learner.offload_optimizer is Offload.cpu
    }
    if leaves_cards:
        for role, (m, learner) in models.items():
            ranks = learner.num_ranks if learner.zero_stage else 1
            host[f"state of the {role} in the engines' turn"] = ranks * offloaded_bytes(m, learner)
    export = float(shape.parameters * item_bytes(policy.precision))
    host["the policy while it is exported"] = min(export, float(SHARD_BYTES))
    publication = export if engine else 0.0
    later = float(shape.adapted * item_bytes(policy.precision)) if engine and adapters_alone else publication
    return Outside(host, 1.2 * publication, float(saved), export, publication, later)


def nearest_that_fits(role: str, shape: ModelShape, learner: LearnerConfig, card_bytes: float) -> str | None:
    """The smallest change of a learner's settings with which it fits, as overrides; None when none of these does."""
    for change in _changes(learner):
        if learner_use(role, shape, replace(learner, **change)).fits(card_bytes):
            names = {name: getattr(value, "value", value) for name, value in change.items()}
            return " ".join(f"{role}.{name}={str(value).lower()}" for name, value in names.items())
    return None


def _changes(learner: LearnerConfig) -> Iterator[dict[str, Any]]:
    """From what costs least time: less at once, more recomputation, more ranks, state on the host; then together."""
    small: dict[str, Any] = {}
    if not learner.gradient_checkpointing:
        small["gradient_checkpointing"] = True
        yield dict(small)
    if learner.zero_stage < 3 and learner.num_ranks > 1:
        small["zero_stage"] = 3
        yield dict(small)
    tokens = learner.micro_batch_tokens
    while tokens > 2048:
        tokens //= 2
        yield {**small, "micro_batch_tokens": tokens}
    small["zero_stage"] = 3
    for more in (1, 2, 3, 5, 7, 15, 31):
        yield {**small, "num_ranks": learner.num_ranks + more}
    yield {**small, "micro_batch_tokens": tokens, "offload_optimizer": Offload.cpu}


def item_bytes(precision: Precision) -> int:
    """Bytes of one number."""
    return 2 if precision is Precision.bfloat16 else 4


def _computing(activations: float, shape: ModelShape, tokens: int, device: Device = Device.cuda) -> dict[str, float]:
    parts = {"activations": float(activations)}
    if not shape.scalar:
        weight = 4.0 * shape.vocab * shape.hidden  # its gradient, before it is added
        if device is Device.cpu:
            parts["head"] = 2.0 * CPU_BLOCK_BYTES + (weight if shape.trained > shape.adapted else 0.0)
        else:
            parts["head"] = min(HEAD_BYTES, 3 * 4.0 * tokens * shape.vocab + weight)  # a small head is one block
    if device is not Device.cpu:
        parts["context"] = CONTEXT_BYTES
    return parts
