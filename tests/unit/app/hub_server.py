"""A small hub on loopback: the part of its protocol that a download of a model uses."""

from __future__ import annotations

import hashlib
import json
import re
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass
class Hub:
    """`models`: owner/name -> commit -> file -> content; `main` points to the last commit. `asked`: every path."""

    models: dict[str, dict[str, dict[str, bytes]]]
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def answer(self, path: str) -> tuple[int, Mapping[str, str], bytes]:
        """Status, headers and body of a GET."""
        if found := re.match(r"/api/models/([^/]+/[^/?]+)(?:/(revision|tree)/([^/?]+))?", path):
            name, kind, revision = found[1], found[2], found[3] or "main"
            commit = self._commit(name, revision)
            if commit is None:
                code = "RevisionNotFound" if name in self.models else "RepoNotFound"
                return 404, {"X-Error-Code": code, "X-Error-Message": "no"}, b"{}"
            files = self.models[name][commit]
            if kind == "tree":
                rows: Any = [{"type": "file", "path": f, "size": len(c), "oid": _etag(c)} for f, c in files.items()]
            else:
                siblings = [{"rfilename": f, "size": len(c)} for f, c in files.items()]
                rows = {"id": name, "modelId": name, "sha": commit, "private": False, "tags": [], "siblings": siblings}
            return 200, {"Content-Type": "application/json"}, json.dumps(rows).encode()
        if found := re.match(r"/([^/]+/[^/]+)/resolve/([^/]+)/(.+)", path):
            commit = self._commit(found[1], found[2])
            content = self.models[found[1]][commit].get(found[3]) if commit else None
            if commit is None or content is None:
                return 404, {"X-Error-Code": "EntryNotFound"}, b""
            return 200, {"X-Repo-Commit": commit, "ETag": f'"{_etag(content)}"'}, content
        return 404, {}, b""

    def _commit(self, name: str, revision: str) -> str | None:
        commits = self.models.get(name, {})
        return list(commits)[-1] if commits and revision == "main" else revision if revision in commits else None


@contextmanager
def hub(models: dict[str, dict[str, dict[str, bytes]]]) -> Iterator[Hub]:
    """Serve `models` until the end of the block."""
    served = Hub(models)

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            served.asked.append(self.path)
            status, headers, body = served.answer(self.path)
            self.send_response(status)
            for key, value in headers.items():
                self.send_header(key, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command == "GET":
                self.wfile.write(body)

        do_HEAD = do_GET

        def log_message(self, format: str, *args: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    served.url = f"http://127.0.0.1:{server.server_port}"
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield served
    finally:
        server.shutdown()
        server.server_close()


def _etag(content: bytes) -> str:
    return hashlib.sha1(content).hexdigest()
