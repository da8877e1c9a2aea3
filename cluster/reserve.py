"""The Ray half of placement: reserve what was planned, and say where an actor goes."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import ray
from ray.util.placement_group import PlacementGroup, placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy
from raylign.cluster.placement import Placement, Slot
from raylign.conf.errors import ClusterError

_NODE_LABEL = "ray.io/node-id"


@dataclass(frozen=True, slots=True)
class Reservation:
    """One atomic reservation of all fixed roles. Elastic workers ask for their resources one by one."""

    placement: Placement
    group: PlacementGroup | None
    bundles: Mapping[tuple[str, int], int]  # (role, rank) -> bundle index

    def options(self, slot: Slot) -> dict[str, object]:
        """`Actor.options(**...)` that puts an actor where its slot is."""
        options: dict[str, object] = {"num_cpus": slot.cpus, "num_gpus": slot.gpus}
        if slot.elastic or self.group is None:
            return options | {"label_selector": {_NODE_LABEL: slot.node_id}}
        return options | {
            "scheduling_strategy": PlacementGroupSchedulingStrategy(
                self.group, placement_group_bundle_index=self.bundles[slot.role, slot.rank]
            )
        }

    def late_options(self, role: str, *, cpus: float, gpus: float, avoid: tuple[str, ...]) -> dict[str, object]:
        """Options of an elastic worker that joins a live run: anywhere but on the nodes of the roles to `avoid`."""
        away = sorted({node for other in avoid if other != role for node in self.placement.nodes_of(other)})
        options: dict[str, object] = {"num_cpus": cpus, "num_gpus": gpus}
        return options | ({"label_selector": {_NODE_LABEL: f"!in({','.join(away)})"}} if away else {})

    def release(self) -> None:
        """Give the reservation back; its actors die with it."""
        if self.group is not None:
            remove_placement_group(self.group)


def reserve(placement: Placement, *, timeout_s: float) -> Reservation:
    """Reserve every fixed slot at once, or refuse.

    Raises ClusterError when the resources, though the cluster has them, are not free within `timeout_s` seconds.
    """
    fixed = [s for s in placement.slots if not s.elastic]
    bundles = {(s.role, s.rank): i for i, s in enumerate(fixed)}
    if not fixed:
        return Reservation(placement, None, bundles)
    group = placement_group(
        [_bundle(s) for s in fixed],
        strategy="PACK",
        bundle_label_selector=[{_NODE_LABEL: s.node_id} for s in fixed],
    )
    if not group.wait(timeout_seconds=timeout_s):
        remove_placement_group(group)
        free = ray.available_resources()
        raise ClusterError(
            f"cluster.start_timeout_s={timeout_s:g}: the cluster has the resources but they are not free: asked "
            f"{sum(s.cpus for s in fixed):g} CPU, {sum(s.gpus for s in fixed):g} GPU for "
            f"{', '.join(sorted({s.role for s in fixed}))}; free {free.get('CPU', 0.0):g} CPU, "
            f"{free.get('GPU', 0.0):g} GPU; wait for the other jobs (`ray list actors`), or ask for less"
        )
    return Reservation(placement, group, bundles)


def _bundle(slot: Slot) -> dict[str, float]:
    """Ray refuses an empty bundle, so a process that asks for nothing still counts a thousandth of a CPU."""
    bundle = {name: amount for name, amount in (("CPU", slot.cpus), ("GPU", slot.gpus)) if amount > 0}
    return bundle or {"CPU": 0.001}
