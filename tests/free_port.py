"""A port for a server that a test starts and that must be named before it listens."""

from __future__ import annotations

import random
import socket

BELOW_EPHEMERAL = range(20_000, 32_000)
"""Under Linux's ephemeral ports (ip_local_port_range: 32768-60999) and above those of Ray's workers (10002-19999).

A port that the kernel chose (`bind` to 0) may be given to an outgoing connection, of the other test process too, in
the seconds until its server listens.
"""


def free_port() -> int:
    """A port of 127.0.0.1 that nothing listens on. Raises `AssertionError` if a hundred were taken."""
    for port in random.SystemRandom().sample(BELOW_EPHEMERAL, 100):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                continue
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no free port among a hundred")
