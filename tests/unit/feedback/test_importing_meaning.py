"""What a log looks like and what it means are two things: blocks inside answers."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pytest
from raylign.feedback.importers import ImportResult, read_log

ASKED = {"role": "user", "content": "What is tea?"}


def read(folder: Path, rows: Sequence[object], companion: Sequence[object] | None = None) -> ImportResult:
    log, other = folder / "log.jsonl", folder / "other.jsonl"
    log.write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    if companion is not None:
        other.write_text("".join(f"{json.dumps(row)}\n" for row in companion))
    return read_log([log], companion=None if companion is None else other, user_salt="salt")


def open_webui(answer: str, files: list[object] | None = None) -> dict[str, object]:
    messages = {
        "u1": {"id": "u1", "parentId": None, "childrenIds": ["a1"], "files": files, **ASKED},
        "a1": {"id": "a1", "parentId": "u1", "childrenIds": [], "role": "assistant", "content": answer, "model": "m1"},
    }
    return {
        "id": "f1",
        "user_id": "ann",
        "data": {"rating": 1, "model_id": "m1"},
        "meta": {"chat_id": "c1", "message_id": "a1"},
        "snapshot": {"chat": {"chat": {"history": {"messages": messages}}}},
    }


THOUGHT = '<details type="reasoning" done="true" duration="7">\n<summary>Thought</summary>\n> SECRET\n</details>\n'
CALL = '<details type="tool_calls" done="true" name="search">\n<summary>Done</summary>\n</details>\n'


def test_reasoning_of_open_webui_is_no_part_of_the_answer(tmp_path: Path):
    plain = "A <details><summary>drink</summary>hot</details>"
    assert read(tmp_path, [open_webui(THOUGHT + THOUGHT + plain)]).events["response_a"].to_list() == [plain]


@pytest.mark.parametrize(
    ("answer", "files", "said"),
    [
        (THOUGHT + CALL + "A drink.", None, "a block of type 'tool_calls'"),
        (THOUGHT.removesuffix("</details>\n") + "A drink.", None, "a block of type 'reasoning'"),
        ("As in the picture.", [{"type": "image", "url": "data:image/png;base64,AA=="}], "a part of type 'image'"),
        ("As in the file.", [{"type": "file", "name": "tea.pdf"}], "a part of type 'file'"),
    ],
)
def test_open_webui_answers_to_more_than_text_are_excluded(
    tmp_path: Path, answer: str, files: list[object] | None, said: str
):
    result = read(tmp_path, [open_webui(answer, files)])
    assert result.events.height == 0
    assert said in result.quarantined["reason"][0]
