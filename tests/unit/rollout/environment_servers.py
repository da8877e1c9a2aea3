"""Servers of environments for tests: OpenEnv's `/ws` and NeMo Gym's routes, in a thread, with faults to order."""

from __future__ import annotations

import asyncio
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from aiohttp import WSMsgType, web

TOOL = {
    "name": "add",
    "description": "Add.",
    "inputSchema": {"type": "object", "properties": {"n": {"type": "integer"}}},
}
ACTION = {"type": "object", "properties": {"n": {"type": "integer"}, "metadata": {}}, "required": ["n"]}


@contextmanager
def serving(app: web.Application) -> Iterator[str]:
    """Its address. The port is the kernel's choice."""
    loop, started, address = asyncio.new_event_loop(), threading.Event(), []

    async def start() -> web.AppRunner:
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        address.append(f"http://127.0.0.1:{runner.addresses[0][1]}")
        started.set()
        return runner

    def run() -> None:
        asyncio.set_event_loop(loop)
        runner = loop.run_until_complete(start())
        loop.run_forever()
        loop.run_until_complete(runner.cleanup())
        loop.close()

    thread = threading.Thread(target=run, daemon=True)
    thread.start()
    assert started.wait(30)
    try:
        yield address[0]
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(30)


@dataclass
class OpenEnvServer:
    """Counts to the row's ground truth: each step adds `n`, and reaching it ends the episode and pays 1."""

    mcp: bool = True
    room: int = 64
    token: str = ""
    faults: list[str] = field(default_factory=list)  # one a step, the first first; "" is none
    resets: list[dict[str, Any]] = field(default_factory=list)
    open: int = 0
    refused: int = 0  # sessions that found no room

    def app(self) -> web.Application:
        made = web.Application()
        made.router.add_get("/ws", self.session)
        made.router.add_get("/schema", self.schema)
        return made

    async def schema(self, request: web.Request) -> web.Response:
        return web.json_response({"action": ACTION, "observation": {}, "state": {}})

    async def session(self, request: web.Request) -> web.WebSocketResponse:
        if self.token and request.headers.get("Authorization") != f"Bearer {self.token}":
            raise web.HTTPForbidden
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        if self.open >= self.room:
            self.refused += 1
            await socket.send_json({"type": "error", "data": {"message": "full", "code": "CAPACITY_REACHED"}})
            return socket
        self.open += 1
        try:
            await self._played(socket)
        finally:
            self.open -= 1
        return socket

    async def _played(self, socket: web.WebSocketResponse) -> None:
        value, wanted = 0, 0
        async for message in socket:
            if message.type is not WSMsgType.TEXT:
                return
            asked = json.loads(message.data)
            match asked["type"]:
                case "close":
                    return
                case "mcp" if self.mcp:
                    await socket.send_json({"type": "mcp", "data": {"id": 1, "result": {"tools": [TOOL]}}})
                case "reset":
                    self.resets.append(asked["data"])
                    value, wanted = 0, int(asked["data"]["ground_truth"])
                    await socket.send_json(self._observed(f"at {value}", None, done=False))
                case "step":
                    action = asked["data"].get("arguments", asked["data"])
                    if await self._spoiled(socket, self.faults.pop(0) if self.faults else ""):
                        return
                    if not isinstance(action.get("n"), int):
                        wrong = {"message": "Invalid message", "code": "VALIDATION_ERROR"}
                        wrong["errors"] = [{"loc": ["n"], "msg": "Input should be a valid integer"}]  # type: ignore[assignment]
                        await socket.send_json({"type": "error", "data": wrong})
                        continue
                    value += action["n"]
                    paid = 1.0 if value == wanted else None
                    await socket.send_json(self._observed(f"at {value}", paid, done=value >= wanted))
                case _:
                    await socket.send_json({"type": "error", "data": {"message": "no", "code": "UNKNOWN_TYPE"}})

    def _observed(self, text: str, reward: float | None, *, done: bool) -> dict[str, Any]:
        seen = (
            {"tool_name": "add", "result": {"content": [{"type": "text", "text": text}]}}
            if self.mcp
            else {"text": text}
        )
        return {
            "type": "observation",
            "data": {"observation": {**seen, "metadata": {}}, "reward": reward, "done": done},
        }

    async def _spoiled(self, socket: web.WebSocketResponse, fault: str) -> bool:
        """True when the session is over."""
        match fault:
            case "hang":
                await asyncio.sleep(60)
            case "close":
                await socket.close()
                return True
            case "cut":
                assert socket._req is not None and socket._req.transport is not None
                socket._req.transport.abort()
                return True
            case "slow":
                await asyncio.sleep(0.2)
            case "garbage":
                await socket.send_str("<html>502</html>")
            case "bytes":
                await socket.send_bytes(b"\0")
            case "version":
                await socket.send_json({"observation": {}, "reward": 0.0, "done": False})
            case "nan":
                await socket.send_str(json.dumps(self._observed("x", float("nan"), done=False)))
            case "raised" | "gone":
                code = "EXECUTION_ERROR" if fault == "raised" else "SESSION_ERROR"
                await socket.send_json({"type": "error", "data": {"message": "it broke", "code": code}})
        return False


@dataclass
class NemoGymServer:
    """Weather by a tool; verified by what the last message says."""

    verdict: dict[str, Any] = field(default_factory=dict)  # beside, or in place of, the reward
    status: int = 200  # of the tool
    bodies: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    cookies: list[str] = field(default_factory=list)

    def app(self) -> web.Application:
        made = web.Application()
        made.router.add_get("/openapi.json", self.described)
        for path, answer in (("seed_session", self.seed), ("weather", self.weather), ("verify", self.verify)):
            made.router.add_post(f"/{path}", answer)
        return made

    async def described(self, request: web.Request) -> web.Response:
        def post(schema: str, **more: str) -> dict[str, Any]:
            body = {"content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{schema}"}}}}
            return {"post": {"requestBody": body, **more}}

        city = {"title": "City", "type": "object", "properties": {"city": {"$ref": "#/components/schemas/Name"}}}
        return web.json_response(
            {
                "paths": {
                    "/seed_session": post("Row"),
                    "/verify": post("Row"),
                    "/weather": post("City", description="The weather of a city."),
                },
                "components": {"schemas": {"Row": {"type": "object"}, "City": city, "Name": {"type": "string"}}},
            }
        )

    async def seed(self, request: web.Request) -> web.Response:
        self.bodies.append(("seed", await request.json()))
        reply = web.json_response({})
        reply.set_cookie("session", f"s{len(self.bodies)}")
        return reply

    async def weather(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._kept("weather", request, body)
        return web.json_response({"city": body.get("city"), "sun": True}, status=self.status)

    async def verify(self, request: web.Request) -> web.Response:
        body = await request.json()
        self._kept("verify", request, body)
        said = body["response"]["output"][-1]["content"][0]["text"]
        return web.json_response(self.verdict or {**body, "reward": float("sunny" in said)})

    def _kept(self, what: str, request: web.Request, body: dict[str, Any]) -> None:
        self.bodies.append((what, body))
        self.cookies.append(request.cookies.get("session", ""))
