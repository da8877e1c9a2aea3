"""Seeds are words: rows with tools are none, in whatever column the calls stand."""

from __future__ import annotations

import json
from pathlib import Path

from raylign.app.commands.seed_rows import answered_in, prompts_in

ASK = {"role": "user", "content": "Oslo?"}
CALL = {"type": "function", "function": {"name": "weather", "arguments": {}}}
CALLED = {"role": "assistant", "content": "", "tool_calls": [CALL]}
COLD = {"role": "assistant", "content": "Cold."}
TOOL = {"type": "function", "function": {"name": "weather"}}


def test_rows_with_calls_or_tools_are_left_out(tmp_path: Path):
    rows = [
        {"prompt": [ASK], "completion": [COLD]},
        {"prompt": [ASK, CALLED, {"role": "tool", "content": "-4"}, ASK], "completion": [COLD]},
        {"prompt": [ASK, {**ASK, "content": "Now?"}], "completion": [COLD], "tools": [TOOL]},
    ]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    asked = (("user", "Oslo?"),)
    assert prompts_in(str(tmp_path / "rows.jsonl")) == [asked]
    assert answered_in(str(tmp_path / "rows.jsonl")) == [(asked, "Cold.")]
