"""Who can reach a Ray on this machine: what the kernel lists, not what was configured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from raylign.app.commands.finding import Finding
from raylign.cluster.listeners import Listener

_SHOWN = 4


def reach(address: str | None, open_ports: Sequence[Listener], environ: Mapping[str, str]) -> Finding:
    """`address`: the cluster that is looked for; None: a run starts its own. `open_ports`: Ray's, off loopback."""
    if address is None:
        return Finding("ok", "network", "a Ray that a run starts here listens on 127.0.0.1 only and requires a token")
    token = environ.get("RAY_AUTH_MODE") == "token"
    if not open_ports:
        where = "no port of Ray on this machine is open to other machines (other nodes are not checked)"
        return Finding("ok", "network", where)
    named = ", ".join(f"{one.process} {one.port}" for one in open_ports[:_SHOWN])
    more = f" and {len(open_ports) - _SHOWN} more" if len(open_ports) > _SHOWN else ""
    who = "whoever reaches them and has the token" if token else "whoever reaches them"
    fix = "keep its nodes on a private network" + ("" if token else ", and give it a token: RAY_AUTH_MODE=token")
    text = f"Ray listens for other machines here ({named}{more}): {who} can run code as its user; {fix}"
    return Finding("note", "network", text)
