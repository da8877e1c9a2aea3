"""The pages over HTTP: who gets in, what filters leave, what people wrote is never run, marks reach the next build."""

from __future__ import annotations

import asyncio
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from aiohttp.test_utils import TestClient, TestServer
from raylign.conf.errors import UserError
from raylign.feedback.browse.server import browse_app
from raylign.feedback.browse.shelf import open_shelf
from raylign.feedback.build import build
from raylign.feedback.reviews import marked_wrong
from raylign.feedback.source import Source

TOKEN = "a-token-of-the-test"
ATTACK = "<script>document.title='planted'</script><img src=x onerror=\"document.title='planted'\">"
CHROMIUM = shutil.which("chromium")


def event(number: int, kind: str, **fields: object) -> dict[str, object]:
    return {"event_id": f"e{number}", "kind": kind, "prompt": f"question {number}", "response_a": f"answer {number}",
            "user_id": f"u{number}", "model_a": "small", **fields}  # fmt: skip


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    events = [
        *(event(n, "thumb", thumb=1) for n in range(6)),
        event(6, "side_by_side", response_b=f"other {ATTACK}", choice="b", model_b="large", topic=ATTACK,
              comment=f"write to joe@example.com {ATTACK}", reasons=["clear"]),
        event(7, "thumb", thumb=-1, prompt=f"what is {ATTACK}?"),
        event(8, "thumb", thumb=1, consent=False, prompt="not to be shown"),
        event(9, "side_by_side", response_b="x", choice="skipped", prompt="my number is 0612345678, call me"),
    ]  # fmt: skip
    log = tmp_path / "log.jsonl"
    log.write_text(
        "".join(json.dumps(e | {"prompt": [{"role": "user", "content": e["prompt"]}]}) + "\n" for e in events)
    )
    build(Source(logs=(log,), overrides=("split.eval=0", "split.test=0")), tmp_path / "built", with_report=False)
    return tmp_path / "built"


def visit(folder: Path, use: Callable[[TestClient], Awaitable[None]]) -> None:
    async def run() -> None:
        async with TestClient(TestServer(browse_app(open_shelf(folder), TOKEN), host="127.0.0.1")) as client:
            await use(client)

    asyncio.run(asyncio.wait_for(run(), 60))


async def page(client: TestClient, path: str) -> str:
    reply = await client.get(f"/{TOKEN}/{path}")
    assert reply.status == 200, path
    assert "default-src 'none'" in reply.headers["Content-Security-Policy"]
    assert reply.headers["Referrer-Policy"] == "no-referrer" and reply.headers["Cache-Control"] == "no-store"
    text = await reply.text()
    assert "<script" not in text and "<img" not in text
    return text


def test_only_with_the_token_and_only_by_a_name_of_this_machine(folder: Path):
    async def use(client: TestClient) -> None:
        for path in ("/", "/wrong/", "/wrong/rows", f"/{TOKEN}x/", "/wrong/event?id=e1"):
            reply = await client.get(path)
            assert reply.status == 404 and "question" not in await reply.text()
        reply = await client.get(f"/{TOKEN}/", headers={"Host": "evil.example.com"})
        assert reply.status == 404
        reply = await client.post("/wrong/review", data={"event": "e1", "verdict": "wrong"})
        assert reply.status == 404

    visit(folder, use)
    assert not folder.with_name("built.reviews.jsonl").exists()


def test_events_are_found_by_filters_and_shown_redacted(folder: Path):
    async def use(client: TestClient) -> None:
        everything = await page(client, "")
        assert "9 events of built" in everything and "not to be shown" not in everything
        assert "0612345678" not in everything and "&lt;PHONE_1&gt;" in everything
        assert "1 events" in await page(client, "?signal=thumb_down")
        assert "1 events" in await page(client, "?fate=skipped_choice")
        assert "1 events" in await page(client, "?model=large")
        assert "1 events" in await page(client, "?text=OTHER")
        assert "Nothing is left" in await page(client, "?text=nowhere&page=3")
        choice = await page(client, "event?id=e6")
        assert "&lt;script&gt;" in choice and "joe@example.com" not in choice and "&lt;EMAIL_1&gt;" in choice
        assert choice.count('class="answer preferred"') == 1 and "b · large" in choice and ">clear<" in choice
        both = await page(client, "event?id=e1&beside=e2")
        assert "event e1" in both and "event e2" in both
        assert (await client.get(f"/{TOKEN}/event?id=gone")).status == 404

    visit(folder, use)


def test_rows_lead_to_their_events_and_back(folder: Path):
    async def use(client: TestClient) -> None:
        assert "1 rows" in await page(client, "rows?kind=pairs")
        assert "7 rows" in await page(client, "rows?kind=kto")
        assert "6 rows" in await page(client, "rows?kind=kto&rule=thumb_up")
        found = re.search(r'href="(row\?[^"]+)"', await page(client, "rows?kind=pairs"))
        assert found is not None
        row = await page(client, found[1].replace("&amp;", "&"))
        assert "rejected" in row and 'href="event?id=e6"' in row
        assert found[1] in await page(client, "event?id=e6")

    visit(folder, use)


def test_a_mark_is_kept_and_the_next_build_honours_it(folder: Path, tmp_path: Path):
    reviews = folder.with_name("built.reviews.jsonl")

    async def use(client: TestClient) -> None:
        reply = await client.post(f"/{TOKEN}/review", data={"event": "e3", "verdict": "wrong", "comment": "a slip"})
        assert reply.status == 200 and "marked as wrong" in await reply.text()
        found = re.search(r'href="(row\?kind=pairs[^"]+)"', await page(client, "rows?kind=pairs"))
        assert found is not None
        await client.post(
            f"/{TOKEN}/review", data={"kind": "pairs", "row": found[1].split("id=")[1], "verdict": "wrong"}
        )
        assert "2 events of built" in await page(client, "?marked=1")
        assert (await client.post(f"/{TOKEN}/review", data={"event": "gone", "verdict": "wrong"})).status == 404
        assert (await client.post(f"/{TOKEN}/review", data={"event": "e3", "verdict": "maybe"})).status == 400

    visit(folder, use)
    assert marked_wrong([reviews]) == {"e3", "e6"}
    assert {line["kind"] for line in map(json.loads, reviews.read_text().splitlines())} == {"review"}
    assert open_shelf(folder).wrong == {"e3", "e6"}
    result = build(Source(logs=(tmp_path / "log.jsonl", reviews)), tmp_path / "next", with_report=False)
    assert {drop.rule: drop.events for drop in result.event_drops}["reviewed_wrong"] == 2


def test_what_is_no_build_or_has_lost_its_log_is_refused(folder: Path, tmp_path: Path):
    with pytest.raises(UserError, match="not the folder of a build"):
        open_shelf(tmp_path)
    log = tmp_path / "log.jsonl"
    log.write_text(log.read_text() + json.dumps(event(20, "thumb", thumb=1)) + "\n")
    assert open_shelf(folder).changed
    log.unlink()
    with pytest.raises(UserError, match=r"log.jsonl: is gone"):
        open_shelf(folder)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="chromium is not installed; the pages are tested over HTTP above")
def test_in_a_browser_nothing_that_people_wrote_runs(folder: Path, tmp_path: Path):
    """The command as a person starts it, and Chromium's own DOM after everything that could run has run."""
    command = [sys.executable, "-m", "raylign", "feedback", "browse", str(folder)]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env={**os.environ, "COLUMNS": "200"})
    try:
        assert server.stdout is not None
        address = next(
            found[0] for line in server.stdout if (found := re.search(r"http://127\.0\.0\.1:\d+/\S+/", line))
        )
        for path, wanted in (("event?id=e6", "event e6"), ("event?id=e7", "event e7"), ("rows?kind=kto", "7 rows")):
            assert CHROMIUM is not None
            shown = subprocess.run(
                [CHROMIUM, "--headless", "--no-sandbox", "--disable-gpu", f"--user-data-dir={tmp_path}/profile",
                 "--virtual-time-budget=2000", "--dump-dom", address + path],
                capture_output=True, text=True, timeout=90, check=True,
            ).stdout  # fmt: skip
            assert wanted in shown and "&lt;script&gt;" in shown
            title = re.search(r"<title>(.*?)</title>", shown)
            assert title is not None and title[1] != "planted"
    finally:
        server.terminate()
        server.wait(timeout=20)
