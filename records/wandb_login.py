"""Whether a run goes to Weights & Biases, and why: from the settings, the environment and the files of `wandb login`.

Reads what wandb itself reads, without importing it: `plan` and `doctor` say the same as `train` does.
"""

from __future__ import annotations

import configparser
import netrc
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from raylign.conf.errors import UserError
from raylign.conf.schema import Sink, TrackingConfig, WandbMode

DEFAULT_URL = "https://api.wandb.ai"
_KEY_NAMES = ("WANDB_API_KEY", "WANDB_IDENTITY_TOKEN_FILE")


@dataclass(frozen=True, slots=True)
class WandbDecision:
    """A mode that is not `auto`, and the reason as a clause."""

    mode: WandbMode
    why: str

    def sentence(self) -> str:
        """What a person reads when a run starts."""
        words = {WandbMode.online: "online", WandbMode.offline: "offline", WandbMode.disabled: "off"}
        later = "; `wandb sync` uploads the run later" if self.mode is WandbMode.offline else ""
        return f"Weights & Biases: {words[self.mode]} ({self.why}){later}"


def decide(config: TrackingConfig, environ: Mapping[str, str]) -> WandbDecision:
    """What `auto` means here: WANDB_MODE when it is set, else online with a key, else offline.

    Raises UserError for `online` without a key, where wandb would stop and ask for one.
    """
    if Sink.wandb not in config.sinks:
        return WandbDecision(WandbMode.disabled, "tracking.sinks is without wandb")
    server = server_url(environ)
    key = key_source(environ, server)
    decision = _asked(config, environ)
    if decision is None:
        if key is not None:
            return WandbDecision(WandbMode.online, f"{urlsplit(server).netloc}, with the key of {key}")
        host = urlsplit(server).netloc
        return WandbDecision(WandbMode.offline, f"no WANDB_API_KEY and no `wandb login` for {host}")
    if decision.mode is WandbMode.online and key is None:
        raise UserError(
            f"{decision.why} needs a key for {server}: run `wandb login`, or set WANDB_API_KEY; or use "
            "tracking.wandb=offline and upload later with `wandb sync`"
        )
    return decision


def _asked(config: TrackingConfig, environ: Mapping[str, str]) -> WandbDecision | None:
    """The mode somebody named; None: nobody did."""
    if config.wandb is not WandbMode.auto:
        return WandbDecision(config.wandb, f"tracking.wandb={config.wandb.name}")
    written = _written_down(environ, "mode")
    for name, word in (("WANDB_MODE=", environ.get("WANDB_MODE", "")), ("wandb's settings: mode=", written)):
        if word in WandbMode.__members__ and word != WandbMode.auto.name:
            return WandbDecision(WandbMode[word], f"{name}{word}")
    return None


def server_url(environ: Mapping[str, str]) -> str:
    """WANDB_BASE_URL, else the server that `wandb login --host` has written down, else the public one."""
    given = environ.get("WANDB_BASE_URL", "")
    return (given or _written_down(environ, "base_url") or DEFAULT_URL).rstrip("/")


def key_source(environ: Mapping[str, str], server: str) -> str | None:
    """Where wandb will find a key for `server`: a variable's name or a file's path. The key itself is not looked at."""
    named = next((name for name in _KEY_NAMES if environ.get(name)), None)
    return named or _netrc_with(environ, urlsplit(server).netloc)


def _netrc_with(environ: Mapping[str, str], host: str) -> str | None:
    for path in _netrc_paths(environ):
        try:
            found = netrc.netrc(path).authenticators(host)
        except (OSError, netrc.NetrcParseError):
            continue  # wandb does without it too
        if found and found[2]:
            return str(path)
    return None


def _netrc_paths(environ: Mapping[str, str]) -> tuple[Path, ...]:
    if environ.get("NETRC"):
        return (Path(environ["NETRC"]).expanduser(),)
    home = environ.get("HOME")
    return (Path(home) / ".netrc", Path(home) / "_netrc") if home else ()


def _written_down(environ: Mapping[str, str], name: str) -> str:
    """A setting that `wandb login` or `wandb offline` has left in wandb's own settings file; empty without one."""
    folder = environ.get("WANDB_CONFIG_DIR") or (f"{environ['HOME']}/.config/wandb" if environ.get("HOME") else "")
    if not folder:
        return ""
    parser = configparser.ConfigParser(interpolation=None)
    try:
        parser.read(Path(folder).expanduser() / "settings", encoding="utf-8")
    except (configparser.Error, UnicodeDecodeError):
        return ""
    return parser.get("default", name, fallback="")
