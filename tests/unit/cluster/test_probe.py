"""Looking for a cluster where there is none: an answer, not a wait."""

from __future__ import annotations

import socket

import pytest
from raylign.cluster import probe
from raylign.cluster.session import session
from raylign.conf.errors import ClusterError
from raylign.conf.schema import ClusterConfig


def test_joining_a_closed_port_is_refused_at_once_and_names_it():
    with socket.socket() as held:  # bound, so nobody else listens there; not listening, so nobody answers
        held.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{held.getsockname()[1]}"
        with (
            pytest.raises(ClusterError, match=rf"cluster\.address={address}: nothing listens there"),
            session(ClusterConfig(address=address), num_cpus=1),
        ):
            pass


@pytest.mark.slow
def test_joining_a_port_that_never_answers_ends_at_the_deadline(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(probe, "_DEADLINE_S", 2.0)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH"):  # of a cluster that was opened in this process before
        monkeypatch.delenv(name, raising=False)
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        address = f"127.0.0.1:{mute.getsockname()[1]}"
        with (
            pytest.raises(ClusterError, match=rf"cluster\.address={address}: no Ray cluster answered within 2 s"),
            session(ClusterConfig(address=address), num_cpus=1),
        ):
            pass
