"""`raylign serve-reward`: a reward model made here, for other trainers and for runs on other machines."""

from __future__ import annotations

import os
import sys
from dataclasses import dataclass
from pathlib import Path

from raylign.app.commands.serve import named_export
from raylign.app.launch.remotes import is_loopback
from raylign.conf.errors import UserError
from raylign.conf.schema import Device, Precision

TOKEN_ENV = "RAYLIGN_REWARD_TOKEN"
_SHORTEST_TOKEN = 8


@dataclass(frozen=True, slots=True)
class Listening:
    """Where a server listens, and for whom."""

    host: str
    port: int
    token: str  # "": anybody on this machine


def listening(host: str, port: int, *, open_to_all: bool) -> Listening:
    """Raises UserError when access is open: no token is set, or --no-token is not for this machine alone."""
    token = os.environ.get(TOKEN_ENV, "")
    if open_to_all:
        if not is_loopback(host):
            raise UserError(
                f"--no-token with --host {host}: anybody on the network could send requests; set {TOKEN_ENV} instead."
            )
        return Listening(host, port, "")
    if len(token) < _SHORTEST_TOKEN:
        raise UserError(
            f"{TOKEN_ENV} holds no token of {_SHORTEST_TOKEN} characters or more; set it where server and clients run, "
            f"as in export {TOKEN_ENV}=$(openssl rand -hex 16), or say --no-token to serve everybody here."
        )
    return Listening(host, port, token)


def precision_of(given: str | None) -> Precision | None:
    """Raises UserError for a word that is none."""
    if given is None or given in Precision.__members__:
        return Precision[given] if given else None
    raise UserError(f"--precision {given}: choose {' or '.join(Precision.__members__)}.")


def scalar_export(model: str, run_root: Path) -> Path:
    """The folder of the reward model that `model` names: such a folder, or a run's export.

    Raises UserError when there is none, or when it is a language model, which scores nothing.
    """
    from raylign.trainer.models.loading import read_head

    found = named_export(model, run_root)
    if read_head(found) != "scalar":
        raise UserError(f"{found} is a language model, which scores nothing; name a reward model (algorithm=rm).")
    return found


def serve_reward(
    folder: Path, where: Listening, *, precision: Precision | None, micro_batch_tokens: int, max_batch: int
) -> None:
    """Serve until interrupted. `precision`: None for bfloat16 on a GPU and float32 on a CPU."""
    import torch
    from aiohttp import web
    from raylign.reward.serving import ServeSettings, reward_app
    from raylign.reward.text_scorer import TextScorer

    device = Device.cuda if torch.cuda.is_available() else Device.cpu
    usual = Precision.bfloat16 if device is Device.cuda else Precision.float32
    scorer = TextScorer(str(folder), precision=precision or usual, device=device, micro_batch_tokens=micro_batch_tokens)
    app = reward_app(scorer, ServeSettings(folder.name, where.token, max_batch))
    host = f"[{where.host}]" if ":" in where.host else where.host
    access = f"with the token of {TOKEN_ENV}" if where.token else "without a token"
    notice = (
        f"serving {folder} at http://{host}:{where.port}, {access}: /get_reward, /classify, /score (Ctrl-C ends it)"
    )

    def tell(_: str) -> None:  # in place of aiohttp's own words, once it listens
        sys.stderr.write(notice + "\n")
        sys.stderr.flush()

    try:
        web.run_app(app, host=where.host, port=where.port, print=tell, access_log=None)
    except OSError as error:
        why = os.strerror(error.errno) if error.errno else str(error)
        raise UserError(f"--port {where.port}: cannot listen on {where.host} ({why}); take another.") from error
