"""The Ray half of placement: reserve what was planned, and say where an actor goes.

Roles that stand and fall together share one placement group; every worker that may come and go has one of its own, so
that nothing of the others is touched when it does, and an autoscaler sees what is missing. Roles that take turns on a
card share a bundle that is the whole card: Ray gives all processes of one bundle the same.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from raylign.cluster.placement import Placement, Slot
from raylign.conf.errors import ClusterError

_NODE_LABEL = "ray.io/node-id"


_NO_CPU_BYTES = 1 << 20
"""Memory that a worker counts which asks for no CPU and no GPU: Ray refuses an empty bundle, and a thousandth of a CPU
may be missing where all CPUs are counted out."""


@dataclass(frozen=True, slots=True)
class Place:
    """Room for one elastic worker: a placement group of its own, which may still wait for a node."""

    group: PlacementGroup
    cpus: float
    gpus: float
    bundle: int = 0
    own: bool = True  # else it is a part of the reservation, which outlives the worker

    @property
    def options(self) -> dict[str, object]:
        """`Actor.options(**...)` that puts the worker here."""
        return {
            "num_cpus": self.cpus,
            "num_gpus": self.gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self.group, placement_group_bundle_index=self.bundle
            ),
        }

    async def ready(self, timeout_s: float) -> bool:
        """Whether the cluster has the room, after at most `timeout_s` seconds."""
        return await asyncio.to_thread(self.group.wait, timeout_s)

    def release(self) -> None:
        """Give the room back; who is in it dies. Idempotent."""
        if self.own:
            remove_placement_group(self.group)


@dataclass(frozen=True, slots=True)
class Reservation:
    """One atomic reservation of all fixed roles; elastic workers get places one by one."""

    placement: Placement
    group: PlacementGroup | None
    bundles: Mapping[tuple[str, int], int]  # (role, rank) -> bundle index

    def options(self, slot: Slot) -> dict[str, object]:
        """`Actor.options(**...)` that puts an actor of a fixed role where its slot is."""
        assert self.group is not None, "a reservation with fixed slots has a group"
        return {
            "num_cpus": slot.cpus,
            "num_gpus": slot.gpus,
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self.group, placement_group_bundle_index=self.bundles[slot.role, slot.rank]
            ),
        }

    def place(self, slot: Slot) -> Place:
        """Of a worker of the start, on the node planned for it, or on the card that it shares."""
        if (slot.role, slot.rank) in self.bundles:
            assert self.group is not None, "a reservation with fixed slots has a group"
            return Place(self.group, slot.cpus, slot.gpus, self.bundles[slot.role, slot.rank], own=False)
        return _place(slot.cpus, slot.gpus, {_NODE_LABEL: slot.node_id})

    def late_place(self, *, cpus: float, gpus: float, labels: Mapping[str, str], avoid: tuple[str, ...] = ()) -> Place:
        """Of an elastic worker that joins a live run: any node with `labels`, but none of the roles to `avoid`."""
        away = sorted({node for other in avoid for node in self.placement.nodes_of(other)})
        return _place(cpus, gpus, {**labels, **({_NODE_LABEL: f"!in({','.join(away)})"} if away else {})})

    def release(self) -> None:
        """Give the reservation back; its actors die with it."""
        if self.group is not None:
            remove_placement_group(self.group)


def reserve(placement: Placement, *, timeout_s: float) -> Reservation:
    """Reserve every fixed slot at once, or refuse.

    Raises ClusterError when the resources, though the cluster has them, are not free within `timeout_s` seconds.
    """
    fixed = [s for s in placement.slots if not s.elastic]
    shared = bundles_of(fixed)
    bundles = {(s.role, s.rank): i for i, slots in enumerate(shared) for s in slots}
    if not fixed:
        return Reservation(placement, None, bundles)
    group = placement_group(
        [_bundle(slots) for slots in shared],
        strategy="PACK",
        bundle_label_selector=[{_NODE_LABEL: slots[0].node_id} for slots in shared],
    )
    if not group.wait(timeout_seconds=timeout_s):
        remove_placement_group(group)
        free = ray.available_resources()
        raise ClusterError(
            f"cluster.start_timeout_s={timeout_s:g}: the cluster has the resources but they are not free: requested "
            f"{sum(s.cpus for s in fixed):g} CPU, {sum(s.gpus for s in fixed):g} GPU for "
            f"{', '.join(sorted({s.role for s in fixed}))}; free {free.get('CPU', 0.0):g} CPU, "
            f"{free.get('GPU', 0.0):g} GPU; wait for the other jobs (`ray list actors`), or request less"
        )
    return Reservation(placement, group, bundles)


def _place(cpus: float, gpus: float, selector: Mapping[str, str]) -> Place:
    amounts = {name: amount for name, amount in (("CPU", cpus), ("GPU", gpus)) if amount > 0}
    bundle: dict[str, float] = amounts or {"memory": _NO_CPU_BYTES}
    return Place(placement_group([bundle], bundle_label_selector=[dict(selector)]), cpus, gpus)


def bundles_of(slots: Sequence[Slot]) -> list[list[Slot]]:
    """Slots that go into one bundle: those on one card that is shared in turns, every other alone."""
    bundles: dict[tuple[object, ...], list[Slot]] = {}
    for slot in slots:
        alone = (slot.role, slot.rank)
        bundles.setdefault(alone if slot.card is None else (slot.node_id, slot.card), []).append(slot)
    return list(bundles.values())


def _bundle(slots: Sequence[Slot]) -> dict[str, float]:
    """Ray refuses an empty bundle, so a process that asks for nothing still counts a thousandth of a CPU."""
    gpus = slots[0].gpus if slots[0].card is None else 1.0
    amounts = (("CPU", sum(slot.cpus for slot in slots)), ("GPU", gpus))
    return {name: amount for name, amount in amounts if amount > 0} or {"CPU": 0.001}
