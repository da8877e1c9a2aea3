"""Listeners by the kernel's list, and what `doctor` says of them."""

from __future__ import annotations

import os
import socket
from contextlib import ExitStack

from raylign.app.commands.doctor_network import reach
from raylign.cluster.listeners import Listener, listeners


def test_what_listens_and_where_is_read_from_the_kernel() -> None:
    with ExitStack() as stack:
        bound = {}
        for host in ("127.0.0.1", "0.0.0.0", "::1", "::"):
            family = socket.AF_INET6 if ":" in host else socket.AF_INET
            server = stack.enter_context(socket.create_server((host, 0), family=family))
            bound[server.getsockname()[1]] = host
        found = {one.port: one.on_loopback for one in listeners({os.getpid()}) if one.port in bound}
        assert {bound[port]: here for port, here in found.items()} == {
            "127.0.0.1": True, "0.0.0.0": False, "::1": True, "::": False
        }  # fmt: skip


def test_doctor_says_who_can_reach_a_cluster() -> None:
    open_ports = [Listener("raylet", "00000000", 4000 + i) for i in range(6)]
    assert reach(None, [], {}).mark == "ok"
    assert reach("auto", [], {}).mark == "ok"
    with_token = reach("auto", open_ports, {"RAY_AUTH_MODE": "token"})
    assert with_token.mark == "note" and "raylet 4000" in with_token.text and "and 2 more" in with_token.text
    without = reach("auto", open_ports, {})
    assert without.mark == "note" and "RAY_AUTH_MODE=token" in without.text
