"""A TCP proxy that spoils connections to an HTTP server: what a bad network, a dying server or a bad proxy does."""

from __future__ import annotations

import socket
import struct
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from enum import Enum
from urllib.parse import urlsplit, urlunsplit


class Fault(Enum):
    """What becomes of a connection."""

    NONE = "none"
    RESET = "reset before the request is read"
    RESET_AFTER = "reset once the server has answered"
    CUT = "closed in the middle of the answer"
    CUT_UNSIZED = "closed in the middle of an answer without a length"
    STALL = "no byte of the answer"
    SLOW = "the answer a few bytes at a time"
    TWICE = "the answer twice"
    TWICE_LATER = "the answer again a moment later"
    ASKED_TWICE = "the request given to the server twice, the second answer sent"
    GARBLED = "bytes of the answer's head changed"


@dataclass
class Spoiled:
    """The proxy's address and what it did."""

    url: str
    done: list[Fault] = field(default_factory=list)


@contextmanager
def spoiling(url: str, choose: Callable[[int], Fault]) -> Iterator[Spoiled]:
    """`choose(n)`: the fault of the n-th connection, from 0. Replies have Content-Length, unless a fault removes it."""
    parts = urlsplit(url)
    server = (parts.hostname or "", parts.port or 0)
    listener = socket.create_server(("127.0.0.1", 0))
    listener.settimeout(0.05)
    spoiled = Spoiled(urlunsplit(parts._replace(netloc=f"127.0.0.1:{listener.getsockname()[1]}")))
    over, threads = threading.Event(), []

    def accept() -> None:
        while not over.is_set():
            with suppress(TimeoutError):
                client, _ = listener.accept()
                fault = choose(len(spoiled.done))
                spoiled.done.append(fault)
                threads.append(threading.Thread(target=_serve, args=(client, server, fault, over), daemon=True))
                threads[-1].start()

    accepting = threading.Thread(target=accept, daemon=True)
    accepting.start()
    try:
        yield spoiled
    finally:
        over.set()
        for thread in [accepting, *threads]:
            thread.join(5)
        listener.close()


def _serve(client: socket.socket, server: tuple[str, int], fault: Fault, over: threading.Event) -> None:
    """Requests of one connection, one after another, all with the same fault."""
    with client, suppress(OSError):
        client.settimeout(5.0)
        if fault is Fault.RESET:
            _reset(client)
            return
        while (request := _message(client)) and not over.is_set():
            answer = _ask(server, request)
            if fault is Fault.ASKED_TWICE:
                answer = _ask(server, request)
            if not _send(client, answer, fault, over):
                return


def _send(client: socket.socket, answer: bytes, fault: Fault, over: threading.Event) -> bool:
    """False when the connection is over."""
    head, _, body = answer.partition(b"\r\n\r\n")
    match fault:
        case Fault.RESET_AFTER:
            _reset(client)
            return False
        case Fault.CUT:
            client.sendall(answer[: -(len(body) // 2)])
            return False
        case Fault.CUT_UNSIZED:
            kept = [line for line in head.split(b"\r\n") if not line.lower().startswith(b"content-length")]
            client.sendall(b"\r\n".join([*kept, b"Connection: close"]) + b"\r\n\r\n" + body[: (len(body) + 1) // 2])
            return False
        case Fault.STALL:
            over.wait(5)
            return False
        case Fault.SLOW:
            for i in range(0, len(answer), 16):
                client.sendall(answer[i : i + 16])
                time.sleep(0.002)
        case Fault.TWICE:
            client.sendall(answer + answer)
        case Fault.TWICE_LATER:
            client.sendall(answer)
            time.sleep(0.02)
            client.sendall(answer)
        case Fault.GARBLED:
            client.sendall(b"\x00\xff" + answer[7:])
            return False
        case _:
            client.sendall(answer)
    return True


def _reset(client: socket.socket) -> None:
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))


def _ask(server: tuple[str, int], request: bytes) -> bytes:
    with socket.create_connection(server, timeout=5) as upstream:
        upstream.sendall(request)
        return _message(upstream)


def _message(source: socket.socket) -> bytes:
    """One HTTP message with a Content-Length; empty when the connection has ended."""
    data = b""
    while b"\r\n\r\n" not in data:
        part = source.recv(1 << 16)
        if not part:
            return b""
        data += part
    head, _, body = data.partition(b"\r\n\r\n")
    sizes = [line.split(b":")[1] for line in head.split(b"\r\n") if line.lower().startswith(b"content-length")]
    while len(body) < int(sizes[0]):
        part = source.recv(1 << 16)
        if not part:
            return b""
        body += part
    return head + b"\r\n\r\n" + body
