"""A cluster that was joined without a token: said on a private network, refused on a public address."""

from __future__ import annotations

import pytest
from raylign.cluster.placement import NodeSupply
from raylign.cluster.session import Session, refuse_public
from raylign.conf.errors import ClusterError

TOKEN = {"RAY_AUTH_MODE": "token"}


class Joined(Session):
    """With nodes at the given addresses."""

    addresses: tuple[str, ...] = ()

    def nodes(self) -> list[NodeSupply]:
        return [NodeSupply(node_id=a, address=a, cpus=1.0, gpus=0.0, labels={}) for a in type(self).addresses]


def joined(*addresses: str, local: bool = False) -> Session:
    kind = type("At", (Joined,), {"addresses": addresses})
    return kind(local=local, address=f"{addresses[0]}:6379")  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    ("addresses", "environ", "told"),
    [
        (("10.0.0.4", "10.0.0.5"), {}, "10.0.0.4"),
        (("127.0.0.1", "192.168.1.7"), {}, "192.168.1.7"),
        (("head.internal",), {}, "head.internal"),
        (("10.0.0.4",), TOKEN, None),
        (("127.0.0.1",), {}, None),
        (("::1",), {}, None),
    ],
)
def test_who_can_reach_a_cluster_without_a_token_is_said(
    addresses: tuple[str, ...], environ: dict[str, str], told: str | None
) -> None:
    said = joined(*addresses).without_token(environ)
    if told is None:
        assert said is None
    else:
        assert said is not None and f"whoever reaches {told} can run code" in said and "RAY_AUTH_MODE=token" in said
    refuse_public("auto", addresses, environ)  # a private network is not refused


def test_a_ray_of_the_runs_own_has_its_token() -> None:
    assert joined("10.0.0.4", local=True).without_token({}) is None


@pytest.mark.parametrize("address", ["8.8.4.4", "2a00:1450:4001:82a::200e"])
def test_a_public_address_without_a_token_is_refused_before_anything_runs(address: str) -> None:
    with pytest.raises(ClusterError, match=rf"cluster.address=auto: its node {address} has a public address"):
        refuse_public("auto", ["10.0.0.4", address], {})
    refuse_public("auto", ["10.0.0.4", address], TOKEN)
