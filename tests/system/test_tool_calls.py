"""A tool call that a run was trained on is called by the server: `raylign serve` with vLLM's parser of that form."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from raylign.cluster.session import Session
from raylign.data.encoder import Encoder
from raylign.data.rows import prompt_row
from raylign.data.tokenize import load_tokenizer
from raylign.records.run_folder import RunPaths

from tests.free_port import free_port
from tests.system.tiny_runs import play

pytestmark = [pytest.mark.system, pytest.mark.thorough, pytest.mark.timeout(600)]

START_S = 300.0
TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object", "properties": {}}}}
ASKED = {"role": "user", "content": "What is the weather in Rome?"}
ARGUMENTS = {"city": "Rome", "days": 2}
CALL = {
    "role": "assistant",
    "tool_calls": [{"type": "function", "function": {"name": "weather", "arguments": ARGUMENTS}}],
}
ROW = {"messages": [ASKED, CALL], "tools": [TOOL]}


@contextmanager
def served(run: RunPaths, log: Path) -> Iterator[str]:
    """The address of the run's export behind `raylign serve`; the server's process group ends with the test."""
    port = free_port()
    command = [
        *(sys.executable, "-m", "raylign.app.cli", "serve", str(run.path), "--port", str(port)),
        *("--served-model-name", "tiny", "--enable-auto-tool-choice", "--tool-call-parser", "hermes"),
        *("--max-model-len", "512", "--dtype", "float32", "--enforce-eager"),
    ]
    with log.open("wb") as out:
        server = subprocess.Popen(
            command, stdout=out, stderr=out, start_new_session=True, env={**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1"}
        )
    try:
        url, deadline = f"http://127.0.0.1:{port}", time.monotonic() + START_S
        while not answers(f"{url}/health"):
            assert server.poll() is None and time.monotonic() < deadline, log.read_text()[-3000:]
            time.sleep(0.2)
        yield url
    finally:
        os.killpg(server.pid, signal.SIGKILL)
        server.wait(30)


def answers(url: str) -> bool:
    try:
        with urllib.request.urlopen(url, timeout=5) as reply:
            return bool(reply.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def ask(url: str) -> dict[str, Any]:
    body = {
        "model": "tiny", "messages": [ASKED], "tools": [TOOL], "temperature": 0, "max_tokens": 120,
        "return_token_ids": True,
    }  # fmt: skip
    request = urllib.request.Request(
        f"{url}/v1/chat/completions", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=120) as reply:
        answered: dict[str, Any] = json.load(reply)
    return answered


def test_a_trained_call_is_called(tiny_model_dir: Path, tmp_path: Path, ray_session: Session) -> None:
    rows = tmp_path / "rows.jsonl"
    rows.write_text(json.dumps(ROW) + "\n")
    done = play(
        [
            "+experiment=sft_tiny_cpu", f"policy.model={tiny_model_dir}", f"data.train={rows}", f"run_root={tmp_path}",
            "name=calls", "data.chat_template=hermes", "data.max_length=512", "num_steps=40",
            "algorithm.rows_per_update=1",
            "policy.optim.lr=3e-3", "tracking.wandb=disabled",
        ],
        ray_session,
    )  # fmt: skip
    export = max((done.path / "export").glob("step-*"))
    prompt = prompt_row({"prompt": [ASKED], "tools": [TOOL]})
    trained = Encoder(load_tokenizer(str(export))).encode_prompt(prompt.prompt, prompt.variables)
    with served(done, tmp_path / "server.log") as url:
        answered = ask(url)
    assert tuple(answered["prompt_token_ids"]) == trained  # the very ids that the answer was trained after
    (choice,) = answered["choices"]
    (made,) = choice["message"]["tool_calls"]
    assert choice["finish_reason"] == "tool_calls" and not choice["message"]["content"]
    assert made["function"]["name"] == "weather" and json.loads(made["function"]["arguments"]) == ARGUMENTS
