"""A Ray started here without processes that nothing of ours asks: the dashboard's, the autoscaler, the log monitor.

`ray.init` starts them whatever its options say, and waits for the first. A run has no dashboard and nodes of a fixed
number, and reads its roles' logs where they are written.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial

from ray._private import parameter
from ray._private.node import Node


@contextmanager
def lean_ray() -> Iterator[None]:
    """While `ray.init` starts Ray in this process; what it looks up is Ray's own again afterwards (ray 2.60)."""
    settings, api_server = parameter.RayParams, Node.start_api_server
    parameter.RayParams = partial(settings, no_monitor=True, include_log_monitor=False)
    Node.start_api_server = _none
    try:
        yield
    finally:
        parameter.RayParams = settings
        Node.start_api_server = api_server


def _none(node: Node, *, include_dashboard: bool | None, raise_on_failure: bool) -> None:
    """In place of the dashboard's server: its address stays unknown, as where it did not start."""
    assert not include_dashboard and not raise_on_failure
