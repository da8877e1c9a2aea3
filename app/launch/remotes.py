"""Reward servers before a run starts: what is wrong with an address, and whether somebody is there."""

from __future__ import annotations

import ipaddress
import os
import re
import socket
import threading
from collections.abc import Iterator, Mapping
from urllib.parse import parse_qsl, urlsplit

from raylign.conf.errors import ConfigError
from raylign.conf.schema import EnvironmentConfig, RewardConfig
from raylign.conf.secret_names import is_secret_name
from raylign.reward.http_json import shown
from raylign.rollout.environments.address import served_address

CONNECT_S = 3.0
_ENV_NAME = re.compile(r"[A-Z_][A-Z0-9_]*")


def remote_problems(config: RewardConfig, environ: Mapping[str, str] = os.environ) -> list[str]:
    """A sentence for each address that cannot be used, or not safely, and for a token that `environ` has not."""
    problems: list[str] = []
    for number, given in enumerate(config.remote):
        key = f"reward.remote[{number}]"
        problems += address_problems(key, given.url)
        problems += token_problems(key, given.url, given.token_env, environ, allow_http=given.allow_http_token)
    for number, judge in enumerate(config.judges):
        key = f"reward.judges[{number}]"
        problems += address_problems(key, judge.url)
        problems += token_problems(key, judge.url, judge.token_env, environ, allow_http=judge.allow_http_token)
    return problems


def served_problems(given: EnvironmentConfig, environ: Mapping[str, str] = os.environ) -> Iterator[str]:
    """The same of a served environment."""
    address = served_address(given.name)
    if address is None:
        return
    yield from (
        problem.replace("environment.url=", f"environment={address.protocol}:")
        for problem in (
            *address_problems("environment", address.url),
            *token_problems("environment", address.url, given.token_env, environ, allow_http=given.allow_http_token),
        )
    )


def address_problems(key: str, url: str) -> Iterator[str]:
    """Sentences for an address that is none, or that holds a secret."""
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        yield f"{key}.url: it is not an address ({error}); write it as http://HOST:PORT/PATH."
        return
    if parts.scheme not in ("http", "https") or not parts.hostname or port == 0:
        yield f"{key}.url={shown(url)}: it is not an address; write it as http://HOST:PORT/PATH."
    if parts.username or parts.password:
        yield f"{key}.url={shown(url)}: it holds a user or password, which settings must not; use token_env."
    if any(is_secret_name(name) for name, _ in parse_qsl(parts.query)):
        yield f"{key}.url={shown(url)}: its query holds a secret, which settings must not; use token_env."


def token_problems(
    key: str, url: str, token_env: str, environ: Mapping[str, str], *, allow_http: bool
) -> Iterator[str]:
    """Sentences for a token that is not there, or would travel where others can read it."""
    if not token_env:
        return
    if not _ENV_NAME.fullmatch(token_env):  # not shown: it may be the token
        yield f"{key}.token_env: give the name of an environment variable in capitals, never the token itself."
        return
    if not environ.get(token_env):
        yield f"{key}.token_env={token_env}: this variable is not set; export it (`raylign submit` sends it along)."
    parts = urlsplit(url)
    if parts.scheme == "http" and not allow_http and not is_loopback(parts.hostname or ""):
        yield (
            f"{key}.url={shown(url)}: the token would travel unencrypted; use https, or say allow_http_token: true "
            "where nobody else listens."
        )


def is_loopback(host: str) -> bool:
    """True for a name or address that never leaves this machine."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def addresses(config: RewardConfig) -> list[tuple[str, str]]:
    """Key and address of everything that is called over HTTP."""
    found = [(f"reward.remote[{number}]", given.url) for number, given in enumerate(config.remote)]
    return found + [(f"reward.judges[{number}]", given.url) for number, given in enumerate(config.judges)]


def refuse_unreachable(config: RewardConfig) -> None:
    """Raises ConfigError naming every server that does not let itself be connected to from here."""
    problems = [
        f"{key}.url={shown(url)}: it cannot be reached ({why}); start it, or see whether host and port are right."
        for (key, url), why in zip(addresses(config), unreachable([url for _, url in addresses(config)]), strict=True)
        if why
    ]
    if problems:
        raise ConfigError(problems)


def unreachable(urls: list[str]) -> list[str]:
    """Why each cannot be connected to; "" where it can. Takes CONNECT_S at the most; no request is sent."""
    why = ["no connection within 3 s"] * len(urls)

    def connect(number: int, url: str) -> None:
        parts = urlsplit(url)
        port = parts.port or (443 if parts.scheme == "https" else 80)
        try:
            socket.create_connection((parts.hostname or "", port), timeout=CONNECT_S).close()
            why[number] = ""
        except OSError as error:
            why[number] = error.strerror or str(error)

    threads = [threading.Thread(target=connect, args=(n, url), daemon=True) for n, url in enumerate(urls)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(CONNECT_S)  # looking a name up has no deadline of its own
    return why
