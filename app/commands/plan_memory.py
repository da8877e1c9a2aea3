"""The part of `raylign plan` about cards: bytes by role and rank, what lies elsewhere, and the longest phase."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import cast

from raylign.app.launch.demand import gpus_per_worker
from raylign.cluster.placement import NodeSupply
from raylign.conf.checks import Needs
from raylign.conf.derive import adapters_alone, critic_start, reference_model
from raylign.conf.errors import ClusterError, UserError
from raylign.conf.schema import LearnerConfig, PlacementStrategy, ReferenceConfig, RewardConfig, RunConfig
from raylign.trainer.algorithms import algorithm_of
from raylign.trainer.algorithms.base import ModelKind, OfflineAlgorithm
from raylign.trainer.memory_plan import (
    ENGINES_TURN,
    FULL,
    GB,
    LEARNERS_TURN,
    CardUse,
    EngineUse,
    ModelShape,
    Outside,
    engine_use,
    frozen_use,
    learner_use,
    model_shape,
    nearest_that_fits,
    offloaded_bytes,
    outside,
    turn_uses,
)
from raylign.trainer.time_plan import (
    CARDS,
    HOST_LINK_BYTES_S,
    NCCL_BYTES_S,
    STORE_BYTES_S,
    Card,
    generation_seconds,
    scoring_seconds,
    update_seconds,
)

ASSUMED_CARD = "H100"
_CLUSTER = re.compile(r"(\d+)x(\d+)x(\d+(?:\.\d+)?)")


@dataclass(frozen=True, slots=True)
class SuppliedCluster:
    """A cluster given in words: nodes, cards on each, GB on each card."""

    nodes: int
    cards: int
    card_gb: float

    @classmethod
    def parse(cls, text: str) -> SuppliedCluster:
        """`2x8x80`. Raises UserError."""
        match = _CLUSTER.fullmatch(text)
        if match is None or int(match[1]) < 1 or int(match[2]) < 1:
            raise UserError(f"--cluster {text}: give NODESxCARDSxGB, as 2x8x80: two nodes of eight cards of 80 GB.")
        return cls(int(match[1]), int(match[2]), float(match[3]))

    def supply(self, cpus: float) -> list[NodeSupply]:
        """Its nodes; `cpus`: on each."""
        return [NodeSupply(f"node {i + 1}", f"node-{i + 1}", cpus, self.cards) for i in range(self.nodes)]


@dataclass(frozen=True, slots=True)
class RunMemory:
    """What a run takes on its cards and beside them."""

    trained: Mapping[str, tuple[ModelShape, LearnerConfig]]
    frozen: Mapping[str, ModelShape]
    cards: Sequence[CardUse]
    engine: EngineUse | None
    outside: Outside
    turns: Sequence[CardUse] = ()  # of a card that learners and engines share, one a turn

    def on_cards(self) -> Iterator[CardUse]:
        """What must fit: roles on cards of their own, and both turns of shared ones."""
        shared = {*self.trained, "rollout"} if self.turns else set()
        yield from (use for use in self.cards if use.role not in shared)
        yield from self.turns


def run_memory(config: RunConfig, needs: Needs, card_bytes: float) -> RunMemory:
    """Of every role, from the models' config.json alone. Models are plain folders (app/launch/chain.py)."""
    policy = model_shape(config.policy.model, scalar=_trains_scalar(config, needs), learner=config.policy)
    trained = {"policy": (policy, config.policy)}
    if needs.critic:
        trained["critic"] = (model_shape(critic_start(config), scalar=True, learner=config.critic), config.critic)
    cards = [learner_use(role, shape, learner) for role, (shape, learner) in trained.items()]
    frozen: dict[str, ModelShape] = {}
    if needs.reference:
        frozen["reference"] = model_shape(reference_model(config), scalar=False)
        cards.append(frozen_use("reference", frozen["reference"], config.reference))
    if needs.reward and config.reward.model:
        frozen["reward"] = model_shape(config.reward.model, scalar=True)
        cards.append(frozen_use("reward", frozen["reward"], config.reward))
    engine = engine_use(policy, config.rollout, card_bytes, gpus_per_worker(config)) if needs.rollout else None
    if engine is not None:
        cards.append(engine.card)
    turns: Sequence[CardUse] = ()
    if engine is not None and config.cluster.placement is PlacementStrategy.colocated:
        turns = turn_uses(trained, engine, answers=needs.shared_reference)
    served = config.rollout.precision if engine else None
    beside = outside(trained, served, leaves_cards=bool(turns), adapters_alone=adapters_alone(config))
    return RunMemory(trained, frozen, cards, engine, beside, turns)


def refuse_overfull(config: RunConfig, memory: RunMemory, card_bytes: float) -> None:
    """Raises ClusterError naming every role that does not fit, with the nearest setting that would."""
    problems = []
    for use in memory.on_cards():
        if use.fits(card_bytes) or use.role == "rollout":
            continue
        room = FULL * card_bytes * min(use.share or 1.0, 1.0)
        problems.append(
            f"{use.role}: {use.total / GB:.1f} GB on a card ({_parts(use)}), and {room / GB:.1f} GB is {FULL:.0%} of "
            f"its share; {_way_out(config, use.role, memory, card_bytes)}"
        )
    if memory.engine is not None and (fault := _engine_fault(config, memory.engine, card_bytes)):
        problems.append(fault)
    if problems:
        raise ClusterError(problems)


def memory_rows(memory: RunMemory) -> list[tuple[str, ...]]:
    """role, processes, share of a card, GB, of which."""
    return [
        (use.role, str(use.processes), f"{use.share:g}", f"{use.total / GB:.1f}", _parts(use))
        for use in memory.on_cards()
    ]


def outside_rows(config: RunConfig, memory: RunMemory) -> list[tuple[str, str]]:
    """What lies on hosts, in the object store and on disk."""
    beside = memory.outside
    rows = [(f"host memory: {what}", f"{size / GB:.1f} GB") for what, size in beside.host.items()]
    if memory.engine is not None:
        longest = memory.engine.sequences(config.rollout.max_model_len)
        rows += [
            ("object store for a publication", f"{beside.object_store / GB:.1f} GB"),
            ("a publication, to each engine", _publication(beside)),
            (
                "KV cache of an engine",
                f"{memory.engine.cache_tokens:,} tokens: {longest:,} sequences of the full length",
            ),
        ]
    return [
        *rows,
        ("a checkpoint on disk", f"{beside.checkpoint / GB:.1f} GB"),
        ("an export", f"{beside.export / GB:.1f} GB"),
    ]


def _publication(beside: Outside) -> str:
    """Bytes of an engine's first version, and of later ones where they are fewer."""
    whole = f"{beside.publication / GB:.2f} GB"
    alone = beside.later_publication
    return whole if alone == beside.publication else f"{whole} at first, then adapters alone: {alone / 10**6:.1f} MB"


def phase_rows(config: RunConfig, memory: RunMemory, card: Card) -> list[tuple[str, str, str]]:
    """phase, seconds, share of the step; for an online run. The longest is marked."""
    seconds = _phases(config, memory, card)
    total, longest = sum(seconds.values()), max(seconds, key=lambda name: seconds[name])
    return [
        (name, f"{s:.1f}", f"{s / total:.0%}" + ("  <- the others wait for this" if name == longest else ""))
        for name, s in seconds.items()
    ]


def _phases(config: RunConfig, memory: RunMemory, card: Card) -> dict[str, float]:
    """At the greatest lengths. Scoring passes run side by side, updates of policy and critic too."""
    rollout = config.rollout
    tokens = rollout.prompts_per_step * rollout.samples_per_prompt * rollout.max_model_len
    passes = config.algorithm.passes_per_step
    policy, learner = memory.trained["policy"]
    assert memory.engine is not None, "phases are an online step's"
    scoring = {"policy": (policy, float(learner.num_ranks))}
    if "critic" in memory.trained:
        scoring["critic"] = (memory.trained["critic"][0], float(config.critic.num_ranks))
    shares = {"reference": config.reference.num_ranks * config.reference.gpus_per_rank}
    shares["reward"] = config.reward.num_replicas * config.reward.gpus_per_replica
    scoring |= {role: (shape, shares[role]) for role, shape in memory.frozen.items()}
    phases = {
        "generation": generation_seconds(policy, rollout, memory.engine.cache_tokens, card),
        "scoring": max(scoring_seconds(shape, max(n, 0.1), tokens, card) for shape, n in scoring.values()),
        "updates": passes * max(update_seconds(s, c, tokens, card) for s, c in memory.trained.values()),
        "publication": _publication_seconds(memory.outside),
    }
    if memory.turns:
        moved = sum(offloaded_bytes(shape, learner) for shape, learner in memory.trained.values())
        phases["changing turns"] = 2 * moved / HOST_LINK_BYTES_S
    return phases


def _publication_seconds(beside: Outside) -> float:
    """After the first. An engine that is sent adapters alone reads the frozen weights from its host again."""
    sent = beside.later_publication / STORE_BYTES_S
    return sent if beside.later_publication == beside.publication else sent + beside.publication / HOST_LINK_BYTES_S


def publication_note(memory: RunMemory) -> str:
    """What the other transport would cost."""
    size = memory.outside.publication
    return f"A publication of {size / GB:.1f} GB by NCCL would take about {max(size / NCCL_BYTES_S, 0.1):.1f} s."


def assumed_card() -> Card:
    """Whose peaks the estimate uses."""
    return CARDS[ASSUMED_CARD]


def _engine_fault(config: RunConfig, engine: EngineUse, card_bytes: float) -> str | None:
    rollout = config.rollout
    shares = config.cluster.placement is not PlacementStrategy.colocated and engine.card.share < 1
    if shares and not engine.card.fits(card_bytes):
        return (
            f"rollout: {engine.card.total / GB:.1f} GB on a card ({_parts(engine.card)}), more than its share; lower "
            "rollout.kv_cache_gb, or raise rollout.tensor_parallel_size"
        )
    if engine.cache_tokens < rollout.max_model_len:
        return (
            f"rollout: the weights ({_parts(engine.card)}) leave the KV cache room for {engine.cache_tokens:,} tokens, "
            f"and one sequence has rollout.max_model_len={rollout.max_model_len}; set "
            f"rollout.tensor_parallel_size={rollout.tensor_parallel_size * 2}"
        )
    return None


def _way_out(config: RunConfig, role: str, memory: RunMemory, card_bytes: float) -> str:
    if role == LEARNERS_TURN:
        return "their updates run side by side: lower micro_batch_tokens, or use more num_ranks, of " + " and ".join(
            memory.trained
        )
    if role == ENGINES_TURN and memory.engine is not None:
        over = memory.turns[1].total - FULL * card_bytes
        left = (memory.engine.card.parts["KV cache"] - over) / 2**30
        return f"this would fit: rollout.kv_cache_gb={int(left)}" if left >= 1 else "use a smaller model or more ranks"
    if role in memory.trained:
        shape, learner = memory.trained[role]
        change = nearest_that_fits(role, shape, learner, card_bytes)
        return f"this would fit: {change}" if change else f"use adapters ({role}.lora.rank=16) or more cards"
    return _frozen_way_out(config, role, memory.frozen[role], card_bytes)


def _frozen_way_out(config: RunConfig, role: str, shape: ModelShape, card_bytes: float) -> str:
    """Of a reference: parts of it on more cards. Of a reward model: a larger share, then parts."""
    reference, reward = config.reference, config.reward
    tried: list[tuple[str, ReferenceConfig | RewardConfig]]
    if role == "reference":
        tried = [
            (
                f"reference.sharded=true reference.num_ranks={n} reference.gpus_per_rank=1",
                replace(reference, sharded=True, num_ranks=n, gpus_per_rank=1.0),
            )
            for n in (2, 4, 8, 16)
            if n > reference.num_ranks or not reference.sharded
        ]
    else:
        tried = [
            (f"reward.gpus_per_replica={share:g}", replace(reward, gpus_per_replica=share))
            for share in (0.5, 1.0)
            if share > reward.gpus_per_replica and reward.ranks_per_replica == 1
        ]
        tried += [
            (
                f"reward.ranks_per_replica={n} reward.gpus_per_replica={n}",
                replace(reward, ranks_per_replica=n, gpus_per_replica=float(n)),
            )
            for n in (2, 4, 8)
            if n > reward.ranks_per_replica
        ]
    for change, changed in tried:
        if frozen_use(role, shape, changed).fits(card_bytes):
            return f"this would fit: {change}"
    return f"lower {role}.micro_batch_tokens, or use a smaller model"


def _parts(use: CardUse) -> str:
    return ", ".join(f"{name} {size / GB:.1f}" for name, size in use.parts.items() if size >= 0.05 * GB)


def _trains_scalar(config: RunConfig, needs: Needs) -> bool:
    algorithm = algorithm_of(config.algorithm)
    return not needs.rollout and cast("OfflineAlgorithm", algorithm).needs.model is ModelKind.SCALAR
