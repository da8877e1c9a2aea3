"""Where every process of a role runs. Pure: demand and supply in, a placement or a refusal out. Ray is in reserve.py.

The refusal comes before anything is started, and states demand against supply by resource and role.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from raylign.conf.errors import ClusterError
from raylign.conf.schema import PlacementStrategy

_EPS = 1e-6  # Ray counts resources in units of 1e-4; sums of 0.1 must not fail by rounding


class Side(Enum):
    """Which half of a `separate` placement a role belongs to."""

    TRAIN = "learners"
    SERVE = "rollout workers"


@dataclass(frozen=True, slots=True)
class RoleRequest:
    """What one role requests: `count` processes of `cpus` and `gpus` each."""

    role: str
    count: int
    cpus: float
    gpus: float
    side: Side = Side.TRAIN
    elastic: bool = False  # may come and go during the run: never part of the fixed reservation
    spread: bool = False  # over as many nodes as possible (expendable workers) instead of as few (collectives)
    labels: tuple[tuple[str, str], ...] = ()  # Ray's node labels, all of which a node must have
    takes_turns: bool = False  # its share is of a card that only roles who take turns have, no two ranks of one role


@dataclass(frozen=True, slots=True)
class NodeSupply:
    """What one machine of the cluster has."""

    node_id: str
    address: str
    cpus: float
    gpus: float
    labels: Mapping[str, str] = field(default_factory=dict)

    def has(self, labels: Sequence[tuple[str, str]]) -> bool:
        """Whether it is of the kind that a role wants."""
        return all(self.labels.get(name) == value for name, value in labels)


@dataclass(slots=True)
class _Room:
    """What is still free on a node, card by card: Ray never spreads one process's share over two cards."""

    cpus: float
    cards: list[float]  # the free share of each
    turns: list[set[str]]  # the roles that take turns on each

    @classmethod
    def of(cls, node: NodeSupply) -> _Room:
        return cls(node.cpus, [1.0] * int(node.gpus), [set() for _ in range(int(node.gpus))])

    @property
    def gpus(self) -> float:
        return sum(self.cards)

    def holds(self, request: RoleRequest) -> bool:
        return self.cpus >= request.cpus - _EPS and self._cards(request) is not None

    def take(self, request: RoleRequest) -> int | None:
        """The card, of a process that takes turns on it."""
        self.cpus -= request.cpus
        cards = self._cards(request) or []
        for card in cards:
            self.cards[card] -= min(request.gpus, 1.0)
            if request.takes_turns:
                self.turns[card].add(request.role)
        return cards[0] if cards and request.takes_turns else None

    def _cards(self, request: RoleRequest) -> list[int] | None:
        """The cards a process would get: whole ones, or the fullest that still has room for a share."""
        if request.gpus <= 0:
            return []
        wanted = min(request.gpus, 1.0)
        free = [i for i, share in enumerate(self.cards) if share >= wanted - _EPS and self._open_to(request, i)]
        fitting = sorted(free, key=lambda i: self.cards[i])
        count = max(1, round(request.gpus))
        return fitting[:count] if len(fitting) >= count else None

    def _open_to(self, request: RoleRequest, card: int) -> bool:
        if not request.takes_turns:
            return not self.turns[card]
        return request.role not in self.turns[card] and (bool(self.turns[card]) or self.cards[card] == 1.0)


@dataclass(frozen=True, slots=True)
class Slot:
    """One process of a role and the node it goes to."""

    role: str
    rank: int
    node_id: str
    cpus: float
    gpus: float
    elastic: bool
    card: int | None = None  # of its node, where it takes turns with other roles: all on this card share a bundle


@dataclass(frozen=True, slots=True)
class Placement:
    """A complete assignment: every process has a node with room for it."""

    slots: tuple[Slot, ...]

    def of(self, role: str) -> tuple[Slot, ...]:
        """The slots of one role by rank."""
        return tuple(sorted((s for s in self.slots if s.role == role), key=lambda s: s.rank))

    def nodes_of(self, role: str) -> tuple[str, ...]:
        """The nodes a role uses, each once, in rank order."""
        return tuple(dict.fromkeys(s.node_id for s in self.of(role)))

    def neighbours(self, slot: Slot) -> int:
        """Processes of the same role on the same node, itself included: what its threads are divided by."""
        return sum(s.role == slot.role and s.node_id == slot.node_id for s in self.slots)

    def alone(self, slot: Slot) -> bool:
        """Whether no other role has a process on the same node."""
        return all(s.role == slot.role for s in self.slots if s.node_id == slot.node_id)


def plan_placement(
    requests: Sequence[RoleRequest], strategy: PlacementStrategy, nodes: Sequence[NodeSupply]
) -> Placement:
    """Assign every process of every role to a node.

    Whole groups first, else large processes first; collectives are packed, expendable workers spread; equal choices go
    to the earlier node, so the same cluster always gives the same placement. Raises ClusterError naming demand and
    supply.
    """
    _check_totals(requests, nodes)
    _check_labels(requests, nodes)
    for offer in _offers(strategy, nodes):
        for ordered in _orders(requests):
            slots = _fill(ordered, offer)
            if slots is not None:
                return Placement(tuple(slots))
    raise ClusterError(_does_not_fit(requests, strategy, nodes))


def total_cpus(requests: Sequence[RoleRequest]) -> float:
    """CPUs of all roles together."""
    return sum(r.count * r.cpus for r in requests)


def _offers(strategy: PlacementStrategy, nodes: Sequence[NodeSupply]) -> Iterator[Mapping[Side, Sequence[NodeSupply]]]:
    """The ways of giving nodes to the two sides, in order of preference."""
    ordered = sorted(nodes, key=lambda n: (-n.gpus, -n.cpus))
    match strategy:
        case PlacementStrategy.shared | PlacementStrategy.colocated:
            yield {Side.TRAIN: ordered, Side.SERVE: ordered}
        case PlacementStrategy.one_node:
            for node in ordered:
                yield {Side.TRAIN: [node], Side.SERVE: [node]}
        case PlacementStrategy.separate:
            for cut in range(1, len(ordered)):
                yield {Side.TRAIN: ordered[:cut], Side.SERVE: ordered[cut:]}
            for cut in range(1, len(ordered)):
                yield {Side.TRAIN: ordered[cut:], Side.SERVE: ordered[:cut]}


def _orders(requests: Sequence[RoleRequest]) -> Iterator[list[RoleRequest]]:
    """First whole groups, the largest first, so that a group is not split over the gaps that others leave; then, where
    that finds no room, the largest processes."""
    yield sorted(requests, key=lambda r: (r.spread, -r.gpus * r.count, -r.gpus, -r.cpus))
    yield sorted(requests, key=lambda r: (-r.gpus, -r.cpus))


def _fill(requests: Sequence[RoleRequest], offer: Mapping[Side, Sequence[NodeSupply]]) -> list[Slot] | None:
    """Best fit, one request after another; None when some process finds no room."""
    free = {n.node_id: _Room.of(n) for side in offer.values() for n in side}
    slots: list[Slot] = []
    for request in requests:
        used: dict[str, int] = {}
        for rank in range(request.count):
            node_id = _choose(request, [n.node_id for n in offer[request.side] if n.has(request.labels)], free, used)
            if node_id is None:
                return None
            card = free[node_id].take(request)
            used[node_id] = used.get(node_id, 0) + 1
            slots.append(Slot(request.role, rank, node_id, request.cpus, request.gpus, request.elastic, card))
    return slots


def _choose(
    request: RoleRequest, candidates: Sequence[str], free: Mapping[str, _Room], used: Mapping[str, int]
) -> str | None:
    fits = [n for n in candidates if free[n].holds(request)]
    if not fits:
        return None
    if request.spread:
        return min(fits, key=lambda n: (used.get(n, 0), -free[n].gpus, -free[n].cpus))
    return min(fits, key=lambda n: (-used.get(n, 0), free[n].gpus if request.gpus == 0 else 0))


def _check_totals(requests: Sequence[RoleRequest], nodes: Sequence[NodeSupply]) -> None:
    if not nodes:
        raise ClusterError("the cluster has no live node; start one with `ray start`, or set cluster.address=local")
    problems = []
    for unit, demands, supply in (
        ("GPU", {r: r.count * r.gpus for r in requests}, sum(n.gpus for n in nodes)),
        ("CPU", {r: r.count * r.cpus for r in requests}, sum(n.cpus for n in nodes)),
    ):
        demand = sum(demands.values())
        if demand > supply + _EPS:
            problems.append(f"{unit}: {_shares(demands, unit)} = {demand:g} requested, the cluster has {supply:g}")
    if problems:
        raise ClusterError(
            "the roles do not fit in the cluster; " + "; ".join(problems) + f"; nodes: {_supply(nodes)}; "
            "lower the number of ranks, workers or replicas, or what each requests, or add nodes"
        )


def _check_labels(requests: Sequence[RoleRequest], nodes: Sequence[NodeSupply]) -> None:
    """A mistyped label reads as a full cluster otherwise."""
    for request in requests:
        if request.count and not any(node.has(request.labels) for node in nodes):
            wanted = ", ".join(f"{name}={value}" for name, value in request.labels)
            there = sorted(
                {f"{k}={v}" for node in nodes for k, v in node.labels.items() if not k.startswith("ray.io/")}
            )
            raise ClusterError(
                f"cluster.{'learner' if request.side is Side.TRAIN else 'serving'}_labels: no node has {wanted}, which "
                f"{request.role} requests; labels of the nodes: {', '.join(there) or 'none'}; start a node with "
                f"`ray start --labels={wanted.replace(', ', ',')}`"
            )


def _shares(demands: Mapping[RoleRequest, float], unit: str) -> str:
    each = {"GPU": lambda r: r.gpus, "CPU": lambda r: r.cpus}[unit]
    return " + ".join(f"{r.role} {r.count} x {each(r):g}" for r, demand in demands.items() if demand > 0)


def _supply(nodes: Sequence[NodeSupply]) -> str:
    return ", ".join(f"{n.address} ({n.cpus:g} CPU, {n.gpus:g} GPU)" for n in nodes)


def _does_not_fit(requests: Sequence[RoleRequest], strategy: PlacementStrategy, nodes: Sequence[NodeSupply]) -> str:
    """The sums fit but no assignment of whole processes to nodes does."""
    demand = ", ".join(f"{r.role} {r.count} x ({r.cpus:g} CPU, {r.gpus:g} GPU)" for r in requests)
    reason = {
        PlacementStrategy.shared: "one of the processes finds no machine with room (a share of a GPU is of one card)",
        PlacementStrategy.colocated: "a learner's ranks and engines that take turns find too few cards of their own",
        PlacementStrategy.one_node: "no single machine holds all of them",
        PlacementStrategy.separate: "learners and rollout workers do not fit on different machines",
    }[strategy]
    return (
        f"cluster.placement={strategy.value}: {reason}; requested: {demand}; nodes: {_supply(nodes)}; "
        "lower the demand, add nodes, or choose another cluster.placement (shared, separate, one_node, colocated)"
    )
