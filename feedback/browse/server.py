"""The pages over HTTP, for one person on this machine. Forms and links only: no page holds a script.

Every address begins with the token, so only who knows the address gets in, and a page of another site can neither
read these nor send a form to them.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from urllib.parse import urlencode, urlsplit

from aiohttp import web
from aiohttp.typedefs import Middleware
from raylign.feedback.browse.pages import event_page, events_page, row_page, rows_page
from raylign.feedback.browse.shelf import Shelf
from raylign.feedback.reviews import Verdict

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; style-src 'unsafe-inline'; form-action 'self'; "
    "frame-ancestors 'none'; base-uri 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
}
_HOSTS = ("127.0.0.1", "localhost")
_MAX_FORM = 64 * 1024  # bytes
_MAX_COMMENT = 2000  # characters

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def new_token() -> str:
    """A token nobody guesses."""
    return secrets.token_urlsafe(24)


@dataclass(frozen=True, slots=True)
class _Pages:
    """Handlers over one shelf."""

    shelf: Shelf

    async def events(self, request: web.Request) -> web.StreamResponse:
        return _html(events_page(self.shelf, dict(request.query)))

    async def rows(self, request: web.Request) -> web.StreamResponse:
        return _html(rows_page(self.shelf, dict(request.query)))

    async def event(self, request: web.Request) -> web.StreamResponse:
        return _html(event_page(self.shelf, request.query.get("id", ""), request.query.get("beside", "")))

    async def row(self, request: web.Request) -> web.StreamResponse:
        return _html(row_page(self.shelf, request.query.get("kind", ""), request.query.get("id", "")))

    async def review(self, request: web.Request) -> web.StreamResponse:
        """Mark an event, or all events of a row, and go back to its page."""
        form = await request.post()
        kind, row_id, event_id = (str(form.get(name, "")) for name in ("kind", "row", "event"))
        said = str(form.get("verdict", ""))
        if said not in {verdict.value for verdict in Verdict}:
            return web.Response(status=400, text="verdict: expected wrong or right")
        found = self.shelf.row(kind, row_id) if row_id else self.shelf.event(event_id)
        if found is None:
            return _html(None)
        ids = found["events"] if row_id else [event_id]
        assert isinstance(ids, list)
        self.shelf.mark(tuple(ids), Verdict(said), str(form.get("comment", ""))[:_MAX_COMMENT])
        back = {"kind": kind, "id": row_id} if row_id else {"id": event_id}
        raise web.HTTPSeeOther(f"{'row' if row_id else 'event'}?{urlencode(back)}")


def browse_app(shelf: Shelf, token: str) -> web.Application:
    """The application. Wrong tokens and other hosts' names get 404, with nothing on the page."""
    pages = _Pages(shelf)
    app = web.Application(middlewares=[_guard(token)], client_max_size=_MAX_FORM)
    app.add_routes(
        [
            web.get("/{token}/", pages.events), web.get("/{token}/rows", pages.rows),
            web.get("/{token}/event", pages.event), web.get("/{token}/row", pages.row),
            web.post("/{token}/review", pages.review),
        ]
    )  # fmt: skip
    return app


def _guard(token: str) -> Middleware:
    @web.middleware
    async def guard(request: web.Request, handler: Handler) -> web.StreamResponse:
        """404 without the token or under another host name; every reply has the pages' headers."""
        given = request.match_info.get("token", "")
        # A name that somebody else's DNS points at this machine is not ours, whatever page sent the request.
        host = urlsplit(f"//{request.headers.get('Host', '')}").hostname
        if host not in _HOSTS or not hmac.compare_digest(given.encode(), token.encode()):
            return web.Response(status=404, text="not found", headers=HEADERS)
        try:
            reply = await handler(request)
        except web.HTTPException as refusal:
            refusal.headers.update(HEADERS)
            raise
        reply.headers.update(HEADERS)
        return reply

    return guard


def _html(page: str | None) -> web.Response:
    if page is None:
        return web.Response(status=404, text="there is no such event or row")
    return web.Response(text=page, content_type="text/html", charset="utf-8")
