"""A connection to an OpenEnv server: messages out and in (protocol: openenv.py)."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import Mapping
from typing import Any

import aiohttp
from raylign.reward.http_json import MAX_REPLY_BYTES, Endpoint, shortened, shown
from raylign.rollout.environments.interfaces import EnvironmentFailure, EnvironmentLost

CLOSE_S = 2.0
NO_ROOM = "CAPACITY_REACHED"
"""Code of a server that has as many sessions as it takes."""


class ServerError(Exception):
    """An answer of type "error"."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(f"{code}: {message}")
        self.code, self.message = code, message


class Connection:
    """A connection: messages out and in."""

    def __init__(self, client: aiohttp.ClientSession, endpoint: Endpoint) -> None:
        self._client, self._endpoint = client, endpoint
        self._socket: aiohttp.ClientWebSocketResponse | None = None

    async def connect(self) -> None:
        """Raises ConnectionError, and EnvironmentFailure for an answer that no waiting makes better."""
        where = shown(self._endpoint.url)
        try:
            self._socket = await self._client.ws_connect(
                f"{self._endpoint.url}/ws",
                headers=self._endpoint.headers,
                max_msg_size=MAX_REPLY_BYTES,
                timeout=aiohttp.ClientWSTimeout(ws_close=CLOSE_S),
            )
        except aiohttp.WSServerHandshakeError as error:
            if error.status >= 500 or error.status == 429:
                raise ConnectionError(f"{where}/ws answered {error.status}") from error
            token = ", or wants another token (environment.token_env)" if error.status in (401, 403) else ""
            raise EnvironmentFailure(
                f"{where}/ws answered {error.status} to a WebSocket: it is no OpenEnv server{token}"
            ) from error
        except (aiohttp.ClientError, OSError) as error:
            raise ConnectionError(f"{where}: no connection ({shortened(str(error))})") from error

    async def ask(self, kind: str, data: Mapping[str, Any] | None, answers: str) -> Mapping[str, Any]:
        """The data of its answer, which has to be of the type `answers`. Raises ServerError, EnvironmentLost when the
        connection broke, and EnvironmentFailure for what is no answer of the protocol."""
        assert self._socket is not None, "connect comes first"
        try:
            await self._socket.send_str(json.dumps({"type": kind} if data is None else {"type": kind, "data": data}))
            got = await self._socket.receive()
        except (aiohttp.ClientError, OSError) as error:
            raise EnvironmentLost(f"the connection to {shown(self._endpoint.url)} broke") from error
        if got.type is not aiohttp.WSMsgType.TEXT:
            raise EnvironmentLost(f"the connection to {shown(self._endpoint.url)} was closed")
        with contextlib.suppress(ValueError, RecursionError):
            read = json.loads(got.data)
            if isinstance(read, dict) and isinstance(body := read.get("data"), dict):
                if read.get("type") == answers:
                    return body
                if read.get("type") == "error":
                    raise ServerError(str(body.get("code")), _said(body))
        raise EnvironmentFailure(f"the answer to {kind} is none of OpenEnv's protocol: {shortened(str(got.data))!r}")

    async def close(self) -> None:
        """Never raises, and takes a bounded time."""
        socket, self._socket = self._socket, None
        if socket is None:
            return
        with contextlib.suppress(aiohttp.ClientError, OSError, TimeoutError):
            async with asyncio.timeout(CLOSE_S):
                await socket.send_str(json.dumps({"type": "close"}))
        with contextlib.suppress(aiohttp.ClientError, OSError):
            await socket.close()


def _said(body: Mapping[str, Any]) -> str:
    """An error's message, and for each field that is wrong its own."""
    errors = body.get("errors")
    wrong = [e for e in errors if isinstance(e, dict)] if isinstance(errors, list) else []
    each = "; ".join(f"{'.'.join(map(str, e.get('loc', ())))}: {e.get('msg')}" for e in wrong[:4])
    return shortened(f"{body.get('message')}{f' ({each})' if each else ''}")
