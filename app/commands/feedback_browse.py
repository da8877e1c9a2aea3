"""`raylign feedback browse`: serve the pages of a build until interrupted."""

from __future__ import annotations

import os
import socket
from pathlib import Path

from aiohttp import web
from raylign.conf.errors import UserError
from raylign.feedback.browse.server import browse_app, new_token
from raylign.feedback.browse.shelf import open_shelf
from rich.console import Console
from rich.text import Text

LOOPBACK = "127.0.0.1"


def run_browse(folder: Path, console: Console, *, port: int, reviews: Path | None) -> None:
    """Read the build and its logs, listen on loopback alone, tell the address with its token."""
    shelf = open_shelf(folder, reviews)
    token = new_token()
    listener = _listen(port)
    address = f"http://{LOOPBACK}:{listener.getsockname()[1]}/{token}/"

    def tell(_: str) -> None:  # in place of aiohttp's own words, once it listens
        console.print(Text(f"{shelf.events.height:,} events, {shelf.rows.height:,} rows"), highlight=False)
        console.print(Text(f"{address} (Ctrl-C ends it)"), highlight=False, soft_wrap=True)

    web.run_app(browse_app(shelf, token), sock=listener, print=tell, access_log=None)


def _listen(port: int) -> socket.socket:
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((LOOPBACK, port))
    except (OSError, OverflowError) as error:
        listener.close()
        why = os.strerror(error.errno) if isinstance(error, OSError) and error.errno else str(error)
        raise UserError(f"--port {port}: cannot listen on {LOOPBACK} ({why}); take another, or 0 for any.") from error
    return listener
