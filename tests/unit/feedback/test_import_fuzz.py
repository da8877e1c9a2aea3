"""Ten thousand malformed rows: no crash, no row lost, and the good rows between them untouched."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from raylign.feedback.importers import read_log
from raylign.feedback.importers.format import UNFORESEEN
from raylign.feedback.importers.sniff import FORMATS

ROWS = 10_000
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]
OTHER = [TURNS[0], {"role": "assistant", "content": "b"}]
ODD: tuple[object, ...] = (
    None, "", " ", 0, -1, 1e308, 10**400, True, [], {}, [[]], [None], {"a": {}}, "\u0000", "\ufeff", "💥" * 50, "NaN",
    "2014-01-01T00:00:00Z", "9999-12-31T23:59:59Z", 9e18, "a" * 5000, [{"role": "user"}], [1, 2], "[", '{"a":1}',
)  # fmt: skip

GOOD: dict[str, dict[str, object]] = {
    "native": {"event_id": "e", "kind": "thumb", "prompt": TURNS[:1], "response_a": "a", "thumb": 1, "user_id": "u",
               "time": "2026-01-01T00:00:00Z", "turn": 0, "reasons": ["x"], "seconds_taken": 1.5},
    "open_webui": {"id": "f", "user_id": "u", "type": "rating", "data": {"rating": 1, "model_id": "m", "tags": ["t"]},
                   "meta": {"chat_id": "c", "message_id": "a"}, "created_at": 1772366400, "updated_at": 1772366401,
                   "snapshot": {"chat": {"chat": {"history": {"messages": {
                       "u": {"id": "u", "parentId": None, "childrenIds": ["a"], "role": "user", "content": "q"},
                       "a": {"id": "a", "parentId": "u", "role": "assistant", "content": "a"}}}}}}},
    "label_studio": {"id": 1, "data": {"prompt": "q", "answer1": "a", "answer2": "b"}, "annotations": [
        {"id": 1, "completed_by": 3, "lead_time": 2.0, "created_at": "2026-01-01T00:00:00Z",
         "result": [{"type": "pairwise", "value": {"selected": "left"}}]}]},
    "argilla": {"id": "r", "fields": {"prompt": "q", "response1": "a", "response2": "b"},
                "responses": {"better": [{"value": "response1", "user_id": "u", "status": "submitted"}]}},
    "langsmith": {"id": "f", "run_id": "r", "key": "k", "score": 1, "value": None, "correction": None,
                  "created_at": "2026-01-01T00:00:00Z", "feedback_source": {"type": "app", "user_id": "u"}},
    "langfuse": {"id": "s", "traceId": "r", "name": "n", "value": 1, "dataType": "BOOLEAN", "source": "API",
                 "timestamp": "2026-01-01T00:00:00Z"},
    "arena": {"question_id": "q", "model_a": "m", "model_b": "n", "winner": "model_a", "conversation_a": TURNS,
              "conversation_b": OTHER, "tstamp": 1718000000.0, "language": "English", "judge_hash": "j"},
    "arena_table": {"id": 1, "model_a": "m", "model_b": "n", "prompt": '["q"]', "response_a": '["a"]',
                    "response_b": '["b"]', "winner_model_a": 1, "winner_model_b": 0, "winner_tie": 0},
    "ultrafeedback": {"instruction": "q", "source": "s", "completions": [
        {"model": "m", "response": "a", "annotations": {"honesty": {"Rating": "3"}}, "overall_score": 5.0}]},
    "ultrafeedback_binarized": {"prompt": "q", "prompt_id": "p", "chosen": TURNS, "rejected": OTHER,
                                "score_chosen": 5.0, "score_rejected": 4.0},
    "helpsteer3": {"context": TURNS[:1], "response1": "a", "response2": "b", "overall_preference": 2, "domain": "d"},
    "helpsteer2_preference": {"prompt": "q", "response_1": "a", "response_2": "b", "preference_strength": -1},
    "helpsteer2": {"prompt": "q", "response": "a", "helpfulness": 3, "correctness": [1], "coherence": 2},
    "hh_rlhf": {"chosen": "\n\nHuman: q\n\nAssistant: a", "rejected": "\n\nHuman: q\n\nAssistant: b"},
    "openai_log": {"request_id": "r", "rating": "up", "comment": "c", "user_id": "u", "choice_index": 0},
    "mt_bench": {"question_id": 81, "model_a": "m", "model_b": "n", "winner": "model_a", "judge": "expert_0", "turn": 1,
                 "conversation_a": TURNS, "conversation_b": OTHER},
    "oasst": {"message_tree_id": "t", "tree_state": "ready_for_export", "prompt": {
        "message_id": "m", "text": "q", "role": "prompter", "lang": "en", "replies": [
            {"message_id": "n", "text": "a", "role": "assistant", "rank": 0, "replies": []},
            {"message_id": "o", "text": "b", "role": "assistant", "rank": 1, "created_date": "2023-02-05T00:00:00Z"}]}},
    "prism": {"utterance_id": "u1", "interaction_id": "i", "conversation_id": "c", "user_id": "u", "turn": 0,
              "user_prompt": "q", "model_response": "a", "model_name": "m", "if_chosen": True, "score": 80},
    "shp": {"post_id": "p", "domain": "askbaking_train", "history": "q", "human_ref_A": "a", "human_ref_B": "b",
            "labels": 1, "score_A": 10, "score_B": 2},
    "alpaca_farm": {"instruction": "q", "input": "i", "output_1": "a", "output_2": "b", "preference": 2},
    "summarize_from_feedback": {"info": {"id": "t3", "post": "q", "title": "t", "subreddit": "s"}, "choice": 1,
                                "summaries": [{"text": "a", "policy": "m"}, {"text": "b", "policy": "n"}],
                                "worker": "w", "batch": "b1", "split": "train", "extra": {"confidence": None}},
    "webgpt": {"question": {"full_text": "q"}, "answer_0": "a", "answer_1": "b", "score_0": 0.5, "score_1": -0.5},
    "safe_rlhf": {"prompt": "q", "response_0": "a", "response_1": "b", "better_response_id": 1, "safer_response_id": 0},
    "helpsteer3_edit": {"context": TURNS[:1], "original_response": "a", "edited_response": "b", "domain": "general",
                        "language": "english", "feedback": ["f"], "change_summary": "c"},
    "trl_preference": {"prompt": TURNS[:1], "chosen": TURNS[1:], "rejected": OTHER[1:]},
    "label_studio_min": {"id": 1, "prompt": "q", "answer1": "a", "answer2": "b", "comparison": "left", "annotator": 7,
                         "annotation_id": 3, "created_at": "2026-01-01T00:00:00Z", "lead_time": 2.5},
    "trl_kto": {"prompt": "q", "completion": "a", "label": True},
    "trainer_pairs": {"input": {"messages": [{"role": "user", "content": "q"}], "tools": []},
                      "preferred_output": [{"role": "assistant", "content": "a"}],
                      "non_preferred_output": [{"role": "assistant", "content": "b"}]},
    "trainer_labels": {"messages": TURNS, "label": True},
}  # fmt: skip
COMPANIONS = {
    "langsmith": {"id": "r", "inputs": {"messages": TURNS[:1]}, "outputs": {"output": "a"}},
    "langfuse": {"id": "r", "input": TURNS[:1], "output": "a"},
    "openai_log": {"request_id": "r", "messages": TURNS[:1], "choices": [{"message": TURNS[1]}]},
}


def mutated_value(value: object, dice: random.Random) -> object:
    """The value with one thing inside replaced, dropped or added."""
    if isinstance(value, dict) and value and dice.random() < 0.8:
        key = dice.choice(list(value))
        how = dice.random()
        if how < 0.15:
            return {k: v for k, v in value.items() if k != key}
        if how < 0.2:
            return value | {f"{key}_": dice.choice(ODD)}
        return value | {key: mutated_value(value[key], dice)}
    if isinstance(value, list) and value and dice.random() < 0.8:
        place = dice.randrange(len(value))
        return [*value[:place], mutated_value(value[place], dice), *value[place + 1 :]]
    return dice.choice(ODD)


def mutated_bytes(line: bytes, dice: random.Random) -> bytes:
    """The line cut off, with bytes changed, or in another encoding; never a new line or a blank one."""
    place = dice.randrange(1, len(line))
    changes: tuple[Callable[[], bytes], ...] = (
        lambda: line[:place],
        lambda: line[:place] + bytes([dice.randrange(256)]) + line[place + 1 :],
        lambda: line[:place] + b"\xe9\xff" + line[place:],
        lambda: line[:place] + b'"\\ud800"' + line[place:],
        lambda: line[:place] + line,
        lambda: b"[" * 3000 + line,
    )
    return b"x" + dice.choice(changes)().replace(b"\n", b"").replace(b"\r", b"")[dice.randrange(2) :]


def test_every_format_is_fuzzed():
    assert set(GOOD) == {format.name for format in FORMATS}


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(GOOD))
def test_ten_thousand_malformed_rows(tmp_path: Path, name: str):
    share = ROWS if name == "native" else ROWS // 10
    dice = random.Random(name)
    good = json.dumps(GOOD[name]).encode()
    lines = []
    for _ in range(share):
        broken = mutated_bytes(good, dice) if dice.random() < 0.3 else None
        lines.append(broken or json.dumps(mutated_value(GOOD[name], dice)).encode())
    kept = [dice.randrange(share) for _ in range(20)]
    for place in kept:
        lines[place] = good
    path = tmp_path / "log.jsonl"
    path.write_bytes(b"\n".join(lines))
    companion = None
    if name in COMPANIONS:
        companion = tmp_path / "companion.jsonl"
        companion.write_text(json.dumps(COMPANIONS[name]))

    result = read_log([path], format=name, companion=companion, user_salt="pepper")

    assert result.rows_in == share
    assert result.judgements_in == result.events.height + result.quarantined.height
    accounted = set(result.events["source_row"]) | set(result.quarantined["line"])
    missing = set(range(1, share + 1)) - accounted
    assert len(missing) == result.rows_by_judgements.get(0, 0)
    assert result.quarantined.filter(
        (result.quarantined["reason"] == "") | result.quarantined["reason"].is_null()
    ).is_empty()
    assert not [reason for reason in result.quarantined["reason"] if UNFORESEEN in reason]
    if name == "prism":  # its judgements are the last row's of an interaction, and all rows here are of one
        return
    readable = set(result.events["source_row"])
    first = min(kept) + 1
    repeats = {int(line) for line in result.quarantined["line"]} & {place + 1 for place in kept}
    assert first in readable or first in repeats
    assert result.events["event_id"].is_unique().all()
