"""One JSON question to an HTTP server: tried again while that may help, within a deadline, and never past a redirect.

TLS certificates are verified (SSL_CERT_FILE adds an authority), proxies and .netrc of the environment are not used,
cookies are kept only where a protocol needs them, and a reply is read up to a bound.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
from dataclasses import dataclass, field, replace
from urllib.parse import urlsplit, urlunsplit

import aiohttp
from raylign.records.redaction import Redactor

MAX_REPLY_BYTES = 8 << 20
NO_ANSWER = "no answer within"
"""With the seconds behind it: the reason of a request that took too long."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.25, 20.0
_AGAIN = frozenset({408, 425, 429, 500, 502, 503, 504})
_SHOWN = 200  # characters of a reply in a message


class EndpointError(RuntimeError):
    """There is no usable answer; the message says why, without the token."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where requests go."""

    url: str
    token_env: str = ""  # names the environment variable that holds the token
    token: str = field(default="", repr=False)
    request_timeout_s: float = 60.0

    @classmethod
    def from_environ(cls, url: str, token_env: str, request_timeout_s: float) -> Endpoint:
        """With the token of this process's environment. Raises EndpointError when the variable is not set."""
        token = os.environ.get(token_env, "") if token_env else ""
        if token_env and not token:
            raise EndpointError(f"{shown(url)}: the environment variable {token_env} is not set on this machine")
        return cls(url, token_env, token, request_timeout_s)

    def at(self, path: str) -> Endpoint:
        """A path below it."""
        return replace(self, url=f"{self.url}{path}")

    @property
    def headers(self) -> dict[str, str]:
        """Of its requests."""
        return {"Authorization": f"Bearer {self.token}"} if self.token else {}


def shown(url: str) -> str:
    """An address for messages: no user, no query."""
    parts = urlsplit(url)
    return urlunsplit((parts.scheme, parts.netloc.rpartition("@")[2], parts.path, "", ""))


def open_session(max_concurrent: int, *, cookies: bool = False) -> aiohttp.ClientSession:
    """A session for some endpoints, closed by its owner. 0: any number of connections. `cookies`: it keeps them."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=max_concurrent),
        cookie_jar=aiohttp.CookieJar(unsafe=True) if cookies else aiohttp.DummyCookieJar(),  # of bare addresses, too
        trust_env=False,
    )


async def post_json(session: aiohttp.ClientSession, endpoint: Endpoint, body: object, *, until: float) -> object:
    """The parsed reply. `until`: by the running loop's clock, when to give up for good.

    Raises EndpointError. Only what may pass is tried again: no connection, no answer in time, 408, 425, 429 and 5xx.
    """
    clock, tries, why = asyncio.get_running_loop().time, 0, "there was no time left for a request"
    while (left := until - clock()) > 0:
        tries += 1
        try:
            reply, text = await _sent(session, endpoint, "POST", body, timeout_s=min(endpoint.request_timeout_s, left))
            return _parsed(reply, endpoint, text)
        except _Passing as passing:
            why = str(passing)
            pause = passing.pause_s or min(_LONGEST_PAUSE_S, _FIRST_PAUSE_S * 2 ** min(tries - 1, 10))
            pause *= random.uniform(1.0, 1.25)  # many askers must not come back together
            if pause >= until - clock():
                break
            await asyncio.sleep(pause)
    raise EndpointError(f"{shown(endpoint.url)}: {why} ({tries} {'try' if tries == 1 else 'tries'})")


async def get_json(session: aiohttp.ClientSession, endpoint: Endpoint, *, timeout_s: float) -> object:
    """The parsed reply of one GET. Raises EndpointError."""
    try:
        reply, text = await _sent(session, endpoint, "GET", None, timeout_s=timeout_s)
        return _parsed(reply, endpoint, text)
    except _Passing as passing:
        raise EndpointError(f"{shown(endpoint.url)}: {passing}") from passing


async def post_text(
    session: aiohttp.ClientSession, endpoint: Endpoint, body: object, *, timeout_s: float
) -> tuple[int, str]:
    """Status and text of one POST, whatever the status. Raises EndpointError where there is none."""
    try:
        reply, text = await _sent(session, endpoint, "POST", body, timeout_s=timeout_s)
    except _Passing as passing:
        raise EndpointError(f"{shown(endpoint.url)}: {passing}") from passing
    return reply.status, text


class _Passing(Exception):
    """May be better next time. `pause_s`: what the server asks for; 0: nothing."""

    def __init__(self, why: str, pause_s: float = 0.0) -> None:
        super().__init__(why)
        self.pause_s = pause_s


async def _sent(
    session: aiohttp.ClientSession, endpoint: Endpoint, method: str, body: object, *, timeout_s: float
) -> tuple[aiohttp.ClientResponse, str]:
    """A reply and its text. `body`: None for a request without one."""
    where = shown(endpoint.url)
    try:
        async with (
            asyncio.timeout(timeout_s),
            session.request(
                method, endpoint.url, json=body, headers=endpoint.headers, allow_redirects=False, timeout=_NO_OTHER
            ) as reply,
        ):
            return reply, await _read(reply, where)
    except TimeoutError:
        raise _Passing(f"{NO_ANSWER} {timeout_s:.3g} s") from None
    except (aiohttp.ClientConnectorCertificateError, aiohttp.ClientConnectorSSLError) as error:
        raise EndpointError(f"{where}: its TLS certificate cannot be verified ({_plain(error)})") from error
    except (aiohttp.InvalidURL, aiohttp.NonHttpUrlClientError) as error:
        raise EndpointError(f"{where} is not an address that can be called") from error
    except aiohttp.ClientPayloadError as error:
        raise _Passing("its answer broke off before its end") from error
    except aiohttp.ClientResponseError as error:
        raise _Passing(f"its answer is not HTTP ({shortened(error.message.partition(':')[0])})") from error
    except (aiohttp.ClientError, OSError) as error:
        raise _Passing(f"no connection ({_plain(error)})") from error


def _parsed(reply: aiohttp.ClientResponse, endpoint: Endpoint, text: str) -> object:
    where = shown(endpoint.url)
    if reply.status != 200:
        raise _refusal(reply, endpoint, text)
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise EndpointError(f"{where}: its answer is not JSON: {shortened(text)!r}") from error
    if not isinstance(value, dict | list) and not any(name in reply.headers for name in _END_TOLD):
        raise EndpointError(
            f"{where}: its answer is a bare {type(value).__name__} without Content-Length, and one that was cut on the "
            "way would be another; let the server send the length"
        )
    return value


_END_TOLD = ("Content-Length", "Transfer-Encoding")
_NO_OTHER = aiohttp.ClientTimeout(total=None, sock_connect=None, sock_read=None)  # asyncio.timeout has the deadline


async def _read(reply: aiohttp.ClientResponse, where: str) -> str:
    parts, size = [], 0
    async for part in reply.content.iter_chunked(1 << 16):
        size += len(part)
        if size > MAX_REPLY_BYTES:
            raise EndpointError(f"{where}: its answer is longer than {MAX_REPLY_BYTES >> 20} MiB")
        parts.append(part)
    return b"".join(parts).decode("utf-8", errors="replace")


def _refusal(reply: aiohttp.ClientResponse, endpoint: Endpoint, text: str) -> Exception:
    where, status = shown(endpoint.url), reply.status
    if status in _AGAIN or status >= 500:
        return _Passing(f"it answered {status}: {shortened(text)!r}", _pause(reply.headers.get("Retry-After", "")))
    if 300 <= status < 400:
        to = shown(reply.headers.get("Location", "nowhere"))
        return EndpointError(f"{where} redirects ({status}) to {to}, which is not followed; give the address itself")
    if status in (401, 403):
        reason = (
            f"refuses the token of {endpoint.token_env}" if endpoint.token else "requires a token; name it in token_env"
        )
        return EndpointError(f"{where} {reason} ({status})")
    return EndpointError(f"{where}: it answered {status}: {shortened(text)!r}")


def _pause(retry_after: str) -> float:
    """Retry-After in seconds; a date is not looked at."""
    return min(float(retry_after), _LONGEST_PAUSE_S) if retry_after.isdecimal() else 0.0


def shortened(text: str) -> str:
    """Of another's, for a message: on one line, without secrets of this process's environment."""
    return _redacted(text)[:_SHOWN]


def _plain(error: BaseException) -> str:
    return _redacted(str(error) or type(error).__name__)[:_SHOWN]


def _redacted(text: str) -> str:
    return Redactor.from_environ(os.environ).text(" ".join(text.split()))
