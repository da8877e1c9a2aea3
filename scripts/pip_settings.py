"""Carries pip's configuration over to uv, which does not read it. Standard library only."""

from __future__ import annotations

import ast
import os
import subprocess

SCOPES = (":env:", "install", "site", "user", "global")


def read_pip_settings(python: str) -> dict[str, str]:
    """Effective pip options, e.g. {"index-url": ...}: environment over [install] over the wider files."""
    out = subprocess.run(
        [python, "-m", "pip", "config", "list"], check=True, capture_output=True, text=True, timeout=60
    ).stdout
    found: dict[str, tuple[int, str]] = {}
    for line in out.splitlines():
        scope, dot, rest = line.partition(".")
        name, equals, value = rest.partition("=")
        if not dot or not equals or scope not in SCOPES:
            continue
        rank = SCOPES.index(scope)
        if name not in found or rank < found[name][0]:
            found[name] = (rank, str(ast.literal_eval(value)))
    return {name: value for name, (_, value) in found.items()}


def uv_environment(settings: dict[str, str]) -> dict[str, str]:
    """The same settings as variables uv reads (not flags: an index address may hold a password)."""
    env = {"UV_INDEX_STRATEGY": "unsafe-best-match"}  # pip's own behaviour; the hashes decide what is accepted
    for option, variable, separator in (
        ("index-url", "UV_DEFAULT_INDEX", " "),
        ("extra-index-url", "UV_INDEX", " "),
        ("find-links", "UV_FIND_LINKS", ","),
        ("trusted-host", "UV_INSECURE_HOST", " "),
        ("cert", "SSL_CERT_FILE", " "),
        ("proxy", "ALL_PROXY", " "),
    ):
        if settings.get(option):
            env[variable] = separator.join(settings[option].split())
    if settings.get("no-index", "").lower() in {"1", "true", "yes", "on"}:
        env["UV_NO_INDEX"] = "1"
    env["UV_HTTP_TIMEOUT"] = settings.get("default-timeout") or settings.get("timeout") or "120"
    return {name: value for name, value in env.items() if name not in os.environ}
