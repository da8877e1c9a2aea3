"""Calls between two processes that share nothing but two pipes: one runs the tests, the other the answer's code.

Plain data travels by value; anything else stays where it is, and the other side gets a `Handle` for it. Each side reads
what it gets as data only: lines of JSON, nothing that runs. Standard library only.
"""

from __future__ import annotations

import builtins
import json
import os
from collections import deque
from collections.abc import Callable, Mapping
from decimal import Decimal
from fractions import Fraction
from typing import Any

Operation = Callable[..., Any]

_MUTABLE = (list, dict, set, bytearray)
_FORWARDED = """
__call__ __len__ __iter__ __next__ __contains__ __getitem__ __setitem__ __delitem__ __str__ __repr__ __bool__
__enter__ __exit__
"""


class LinkEnded(BaseException):
    """The other side is gone, or what it sent is no message. No Exception: a test that wants one must not take it."""


class Link:
    """One side. `operations`: what the other side may ask of it, by name."""

    def __init__(self, read_from: int, write_to: int, operations: Mapping[str, Operation], most_bytes: int) -> None:
        """`most_bytes`: of one message that is read."""
        self._in, self._out = os.fdopen(read_from, "rb"), os.fdopen(write_to, "wb")
        self._operations, self._most_bytes = operations, most_bytes
        self.ended = False
        self._held: list[Any] = []  # what the other side has handles for
        self._numbers: dict[int, int] = {}

    def ask(self, operation: str, *given: Any, **named: Any) -> Any:
        """The other side's answer. Raises what it raised, if that is one of Python's own exceptions, and LinkEnded."""
        self._send({"ask": operation, "given": self._packed(list(given)), "named": self._packed(named)})
        while True:
            reply = self._receive()
            if "ask" not in reply:
                break
            self._answer(reply)
        for mine, theirs in zip(given, self._unpacked(reply.get("after", [])), strict=False):
            _take_over(mine, theirs)
        if "raised" in reply:
            raise _rebuilt(str(reply["raised"]), str(reply.get("text", "")))
        return self._unpacked(reply.get("value"))

    def serve(self) -> None:
        """Answer until the other side is gone."""
        while True:
            self._answer(self._receive())

    def _answer(self, message: Mapping[str, Any]) -> None:
        operation = self._operations.get(str(message.get("ask")))
        given = self._unpacked(message.get("given"))
        try:
            if operation is None:
                raise TypeError(f"{message.get('ask')} cannot be asked")
            reply: dict[str, Any] = {"value": self._packed(operation(*given, **self._unpacked(message.get("named"))))}
        except Exception as error:
            own = next(kind.__name__ for kind in type(error).__mro__ if kind.__module__ == "builtins")
            reply = {"raised": own, "text": str(error)[:500]}
        reply["after"] = self._packed([one if isinstance(one, _MUTABLE) else None for one in given])
        self._send(reply)

    def _send(self, message: Mapping[str, Any]) -> None:
        try:
            self._out.write(json.dumps(message).encode() + b"\n")
            self._out.flush()
        except OSError as error:
            raise self._end("it has ended") from error

    def _receive(self) -> dict[str, Any]:
        line = self._in.readline(self._most_bytes + 1)
        if not line.endswith(b"\n"):
            raise self._end("it has ended" if len(line) <= self._most_bytes else "it sent too much")
        try:
            message = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise self._end("it sent no message") from error
        if not isinstance(message, dict):
            raise self._end("it sent no message")
        return message

    def _end(self, why: str) -> LinkEnded:
        self.ended = True
        return LinkEnded(why)

    def _packed(self, value: Any) -> Any:
        """JSON for a value. Subclasses of Python's containers, numbers and text become these themselves."""
        if value is None or isinstance(value, bool):
            return value
        for kind, pack in _PACKED:
            if isinstance(value, kind):
                return pack(self._packed, value)
        if isinstance(value, Handle):
            return {"yours": object.__getattribute__(value, "_number")}
        number = self._numbers.setdefault(id(value), len(self._held))
        if number == len(self._held):
            self._held.append(value)  # and kept, so that no other object gets its id
        return {"mine": number}

    def _unpacked(self, packed: Any) -> Any:
        if isinstance(packed, list):
            return [self._unpacked(one) for one in packed]
        if not isinstance(packed, dict):
            return packed
        ((kind, inner),) = packed.items()
        if kind == "mine":
            return Handle(self, inner)
        if kind == "yours":
            return self._held[inner]
        return _UNPACKED[kind](self._unpacked, inner)


class Handle:
    """An object of the other side's. What is done to it is done there."""

    def __init__(self, link: Link, number: int) -> None:
        object.__setattr__(self, "_link", link)
        object.__setattr__(self, "_number", number)

    def __getattr__(self, name: str) -> Any:
        return _link_of(self).ask("getattr", self, name)

    def __setattr__(self, name: str, value: Any) -> None:
        _link_of(self).ask("setattr", self, name, value)

    def __eq__(self, other: object) -> bool:
        """Never asked about plain data: whose side it is on would be told what is expected of it."""
        return isinstance(other, Handle) and _link_of(self).ask("__eq__", self, other) is True

    def __hash__(self) -> int:
        return hash(object.__getattribute__(self, "_number"))


def _link_of(handle: Handle) -> Link:
    link: Link = object.__getattribute__(handle, "_link")
    return link


def _forward(name: str) -> Operation:
    def method(self: Handle, *given: Any, **named: Any) -> Any:
        return _link_of(self).ask(name, self, *given, **named)

    return method


for _name in _FORWARDED.split():
    setattr(Handle, _name, _forward(_name))


def _take_over(mine: Any, theirs: Any) -> None:
    """Arguments travel by value, so what a call did to one is done to the caller's as well."""
    if type(mine) is not type(theirs) or not isinstance(mine, _MUTABLE) or mine == theirs:
        return
    mine.clear()
    mine.extend(theirs) if isinstance(mine, list | bytearray) else mine.update(theirs)


def _rebuilt(name: str, text: str) -> Exception:
    kind = getattr(builtins, name, None)
    if isinstance(kind, type) and issubclass(kind, Exception):
        try:
            return kind(text)
        except TypeError:  # those of text encodings take five arguments
            pass
    return RuntimeError(f"{name}: {text}")


def _whole(pack: Operation, value: int) -> Any:
    plain = int(value)
    return plain if -(1 << 53) < plain < 1 << 53 else {"int": hex(plain)}


_PACKED: tuple[tuple[type, Operation], ...] = (
    (int, _whole),
    (float, lambda pack, value: float(value)),
    (str, lambda pack, value: str.__str__(value)),
    (list, lambda pack, value: [pack(one) for one in value]),
    (tuple, lambda pack, value: {"tuple": [pack(one) for one in value]}),
    (set, lambda pack, value: {"set": [pack(one) for one in value]}),
    (frozenset, lambda pack, value: {"frozenset": [pack(one) for one in value]}),
    (dict, lambda pack, value: {"dict": [[pack(k), pack(v)] for k, v in value.items()]}),
    (deque, lambda pack, value: {"deque": [pack(one) for one in value]}),
    (range, lambda pack, value: {"range": [value.start, value.stop, value.step]}),
    (bytes, lambda pack, value: {"bytes": value.hex()}),
    (bytearray, lambda pack, value: {"bytearray": value.hex()}),
    (complex, lambda pack, value: {"complex": [value.real, value.imag]}),
    (Decimal, lambda pack, value: {"Decimal": str(value)}),
    (Fraction, lambda pack, value: {"Fraction": [str(value.numerator), str(value.denominator)]}),
)

_UNPACKED: Mapping[str, Operation] = {
    "int": lambda unpack, inner: int(inner, 16),
    "tuple": lambda unpack, inner: tuple(unpack(inner)),
    "set": lambda unpack, inner: set(unpack(inner)),
    "frozenset": lambda unpack, inner: frozenset(unpack(inner)),
    "dict": lambda unpack, inner: dict(unpack(inner)),
    "deque": lambda unpack, inner: deque(unpack(inner)),
    "range": lambda unpack, inner: range(*inner),
    "bytes": lambda unpack, inner: bytes.fromhex(inner),
    "bytearray": lambda unpack, inner: bytearray.fromhex(inner),
    "complex": lambda unpack, inner: complex(*inner),
    "Decimal": lambda unpack, inner: Decimal(inner),
    "Fraction": lambda unpack, inner: Fraction(int(inner[0]), int(inner[1])),
}
