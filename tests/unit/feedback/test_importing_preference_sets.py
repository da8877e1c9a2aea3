"""Public preference sets: which side was preferred, by whom, of which model; what is no judgement is quarantined."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import polars as pl
import pytest
from raylign.feedback.importers import ImportResult, read_log

TEA, ASKED = "What is tea?", [{"role": "user", "content": "What is tea?"}]


def read(folder: Path, rows: Sequence[object], name: str = "log.jsonl") -> ImportResult:
    (folder / name).write_text("".join(f"{json.dumps(row)}\n" for row in rows))
    return read_log([folder / name], user_salt="salt")


def sides(found: ImportResult) -> list[tuple[str, str]]:
    """The preferred and the other answer of each event."""
    preferred = {"a": ("response_a", "response_b"), "b": ("response_b", "response_a")}
    return [tuple(row[name] for name in preferred[row["choice"]]) for row in found.events.iter_rows(named=True)]  # type: ignore[misc]


def said(role: str, text: str) -> dict[str, str]:
    return {"role": role, "content": text}


def test_mt_bench_turn_one_is_about_the_first_answers(tmp_path: Path):
    a, b = (
        [*ASKED, said("assistant", first), said("user", "Shorter."), said("assistant", second)]
        for first, second in (("GOOD one", "BAD2"), ("BAD one", "GOOD2"))
    )
    base = {"question_id": 81, "model_a": "m", "model_b": "n", "conversation_a": a, "conversation_b": b, "turn": 1}
    rows = [
        base | {"winner": "model_a", "judge": "expert_0"},
        base | {"winner": "model_a", "judge": "author_1"},
        base | {"winner": "tie", "judge": "expert_2"},
        base | {"winner": "model_b", "judge": "expert_0", "turn": 2},
        base | {"winner": "model_a", "judge": "gpt4_pair"},
        base | {"winner": "model_a", "judge": "expert_3", "turn": 3},
    ]
    found = read(tmp_path, rows)
    assert found.format == "mt_bench" and found.events["event_id"].n_unique() == found.events.height == 3
    judged = found.events.filter(pl.col("choice") == "a")
    assert judged["response_a"].to_list() == ["GOOD one"] * 2 and judged["prompt"].list.len().to_list() == [1, 1]
    assert judged["annotator_hash"].n_unique() == 2
    assert found.events["choice"].to_list() == ["a", "a", "skipped"]
    assert sorted(reason[:12] for reason in found.quarantined["reason"]) == [
        "`turn` is 3,",
        "judged by a ",
        "the two conv",
    ]


def test_a_battle_of_the_arena_with_a_count_of_turns_is_no_mt_bench(tmp_path: Path):
    talk = [*ASKED, said("assistant", "GOOD")], [*ASKED, said("assistant", "BAD")]
    row = {"question_id": "x", "model_a": "m", "model_b": "n", "winner": "model_a", "judge": "arena_user_1", "turn": 1,
           "conversation_a": talk[0], "conversation_b": talk[1], "anony": True, "tstamp": 1682351591.1}  # fmt: skip
    assert read(tmp_path, [row]).format == "arena"


def test_shp_label_one_is_comment_a(tmp_path: Path):
    row = {"post_id": "p", "domain": "askbaking_train", "history": TEA, "score_A": 52, "score_B": 4}
    found = read(
        tmp_path,
        [
            row | {"human_ref_A": "GOOD 1", "human_ref_B": "BAD 1", "labels": 1},
            row | {"human_ref_A": "BAD 2", "human_ref_B": "GOOD 2", "labels": 0},
            row | {"human_ref_A": "x", "human_ref_B": "y", "labels": 2},
        ],
    )
    assert sides(found) == [("GOOD 1", "BAD 1"), ("GOOD 2", "BAD 2")]
    assert found.events["topic"].to_list() == ["askbaking"] * 2 and found.quarantined.height == 1


def test_alpaca_farm_counts_from_one_and_asks_with_its_input(tmp_path: Path):
    row = {"instruction": "Translate.", "input": "thé"}
    found = read(
        tmp_path,
        [
            row | {"output_1": "GOOD 1", "output_2": "BAD 1", "preference": 1},
            row | {"output_1": "BAD 2", "output_2": "GOOD 2", "preference": 2},
            row | {"output_1": "x", "output_2": "y", "preference": 0},
        ],
    )
    assert sides(found) == [("GOOD 1", "BAD 1"), ("GOOD 2", "BAD 2")] and found.quarantined.height == 1
    assert found.events["prompt"][0][0]["content"] == "Translate.\n\nthé"


@pytest.mark.parametrize("as_parquet", [False, True])
def test_openais_summaries_count_from_zero(tmp_path: Path, as_parquet: bool):
    texts = [{"text": "BAD", "policy": "ref", "note": None}, {"text": "GOOD", "policy": "sup4", "note": None}]
    given = {name: [one[name] for one in texts] for name in texts[0]} if as_parquet else texts
    info = {"id": "t3_x", "post": "A long post.", "title": "Title", "subreddit": "tea", "article": None}
    found = read(tmp_path, [{"info": info, "summaries": given, "choice": 1, "worker": "w1", "batch": "b", "extra": {}}])
    assert sides(found) == [("GOOD", "BAD")] and found.events["model_b"].to_list() == ["sup4"]
    assert (
        "Title" in found.events["prompt"][0][0]["content"] and "A long post." in found.events["prompt"][0][0]["content"]
    )
    assert found.events["annotator_hash"][0] not in (None, "w1")


def test_helpsteer3_edits_are_corrections(tmp_path: Path):
    row = {"domain": "general", "language": "english", "context": ASKED, "feedback": ["Too short.", "Vague."],
           "original_response": "BAD", "edited_response": "GOOD", "change_summary": "longer"}  # fmt: skip
    event = read(tmp_path, [row]).events.row(0, named=True)
    assert (event["kind"], event["response_a"], event["corrected"]) == ("correction", "BAD", "GOOD")
    assert event["comment"] == "Too short.\nVague."


TRL = {
    "standard": {"prompt": TEA, "chosen": "GOOD", "rejected": "BAD"},
    "conversational": {"prompt": ASKED, "chosen": [said("assistant", "GOOD")], "rejected": [said("assistant", "BAD")]},
    "implicit prompt": {"chosen": [*ASKED, said("assistant", "GOOD")], "rejected": [*ASKED, said("assistant", "BAD")]},
    "WildFeedback": {"conversation_hash": "h", "prompt": ASKED, "chosen": said("assistant", "GOOD"),
                     "rejected": said("assistant", "BAD"), "user_id": "u"},
}  # fmt: skip


@pytest.mark.parametrize("shape", TRL)
def test_trl_preference_rows_in_all_their_shapes(tmp_path: Path, shape: str):
    found = read(tmp_path, [TRL[shape]])
    assert found.format == "trl_preference" and sides(found) == [("GOOD", "BAD")]
    assert [turn["content"] for turn in found.events["prompt"][0]] == [TEA]


def test_system_and_question_beside_the_sides_are_the_prompt(tmp_path: Path):
    row = {"system": "Be brief.", "question": TEA, "chosen": "GOOD", "rejected": "BAD"}  # orca_dpo_pairs
    found = read(tmp_path, [row, row | {"context": "A book about tea."}])
    assert sides(found) == [("GOOD", "BAD")] and "`context`" in found.quarantined["reason"][0]
    assert [(turn["role"], turn["content"]) for turn in found.events["prompt"][0]] == [
        ("system", "Be brief."),
        ("user", TEA),
    ]


def test_webgpt_prefers_the_higher_score(tmp_path: Path):
    row = {"question": {"dataset": "eli5", "id": "1", "full_text": TEA}, "quotes_0": {}, "quotes_1": {}}
    found = read(
        tmp_path,
        [
            row | {"answer_0": "GOOD 1", "answer_1": "BAD 1", "score_0": 0.5, "score_1": -0.5},
            row | {"answer_0": "BAD 2", "answer_1": "GOOD 2", "score_0": -1.0, "score_1": 1.0},
            row | {"answer_0": "x", "answer_1": "y", "score_0": 0, "score_1": 0},
        ],
    )
    assert found.events["choice"].to_list() == ["a", "b", "skipped"]
    assert found.events["reasons"].to_list()[2] == ["tie"]


def test_safe_rlhf_counts_from_zero(tmp_path: Path):
    row = {"prompt": TEA, "is_response_0_safe": True, "is_response_1_safe": False, "safer_response_id": 0}
    found = read(
        tmp_path,
        [
            row | {"response_0": "GOOD 1", "response_1": "BAD 1", "better_response_id": 0},
            row | {"response_0": "BAD 2", "response_1": "GOOD 2", "better_response_id": 1},
        ],
    )
    assert sides(found) == [("GOOD 1", "BAD 1"), ("GOOD 2", "BAD 2")]


def test_trl_sides_with_different_prompts_are_put_aside(tmp_path: Path):
    other = [said("user", "And coffee?"), said("assistant", "BAD")]
    found = read(tmp_path, [TRL["implicit prompt"] | {"rejected": other}, TRL["implicit prompt"]])
    assert found.events.height == 1 and "different prompts" in found.quarantined["reason"][0]


def test_trl_unpaired_rows(tmp_path: Path):
    rows = [
        {"prompt": TEA, "completion": "GOOD", "label": True},
        {"prompt": ASKED, "completion": [said("assistant", "BAD")], "label": False},
        {"prompt": TEA, "completion": "?", "label": 3},
    ]
    found = read(tmp_path, rows)
    assert found.events.select("response_a", "thumb").rows() == [("GOOD", 1), ("BAD", -1)]
    assert found.quarantined.height == 1


def test_our_own_built_files_can_be_read_back(tmp_path: Path):
    from raylign.feedback.build import build
    from raylign.feedback.source import Source

    read(tmp_path, [TRL["conversational"]])
    out = tmp_path / "out"
    build(Source(logs=(tmp_path / "log.jsonl",), overrides=("split.eval=0", "split.test=0")), out, with_report=False)
    again = read_log([out / "pairs" / "train.jsonl"], user_salt="salt")
    assert again.format == "trl_preference" and sides(again) == [("GOOD", "BAD")]


def test_oasst_trees_rank_from_zero_and_every_branch_is_its_own(tmp_path: Path):
    def node(key: str, text: str, role: str, rank: int | None, *replies: object, **more: object) -> dict[str, object]:
        return {"message_id": key, "text": text, "role": role, "rank": rank, "lang": "en", "replies": replies} | more

    deeper = node(
        "q2", "More?", "prompter", None, node("b1", "BAD 2", "assistant", 1), node("b0", "GOOD 2", "assistant", 0)
    )
    tree = node(
        "q", TEA, "prompter", None,
        node("a2", "BAD 1", "assistant", 2), node("a0", "GOOD 1", "assistant", 0, deeper),
        node("a1", "MID 1", "assistant", 1), node("a3", "GONE", "assistant", 3, deleted=True),
        node("a9", "UNRANKED", "assistant", None),
    )  # fmt: skip
    found = read(
        tmp_path, [{"message_tree_id": "q", "prompt": tree}, {"message_tree_id": "z", "prompt": tree | {"replies": []}}]
    )
    assert sides(found) == [("GOOD 1", "MID 1"), ("MID 1", "BAD 1"), ("GOOD 2", "BAD 2")]
    assert [turn["content"] for turn in found.events["prompt"][2]] == [TEA, "GOOD 1", "More?"]
    assert found.events["conversation_id"].to_list() == ["q"] * 3
    assert found.quarantined["reason"].to_list() == ["a tree without ranked answers"]


def test_prism_compares_the_chosen_with_each_answer_shown_beside_it(tmp_path: Path):
    def utterance(key: str, interaction: str, answer: str, chosen: bool, turn: int = 0) -> dict[str, object]:
        about = {"utterance_id": key, "interaction_id": interaction, "conversation_id": "c", "user_id": "u"}
        said = {"user_prompt": TEA, "model_response": answer, "model_name": f"m{key}", "if_chosen": chosen}
        return about | said | {"turn": turn, "score": 5}

    other = {"conversation_id": "d"}
    rows = [
        utterance("1", "i1", "BAD 1", False), utterance("2", "i1", "GOOD 1", True),
        utterance("3", "i1", "BAD 2", False),
        utterance("4", "i2", "GOOD 3", True, turn=1), utterance("5", "i2", "BAD 3", False, turn=1),
        utterance("8", "i4", "GOOD 4", True) | other, utterance("9", "i4", "BAD 4", False) | other,
        utterance("a", "i5", "x", True, turn=2) | other, utterance("b", "i5", "y", False, turn=2) | other,
        utterance("6", "i3", "x", False), utterance("7", "i3", "y", False),
    ]  # fmt: skip
    found = read(tmp_path, rows)
    assert sides(found) == [("GOOD 1", "BAD 1"), ("GOOD 1", "BAD 2"), ("GOOD 3", "BAD 3"), ("GOOD 4", "BAD 4")]
    assert found.events["model_a"].to_list()[:2] == ["m2", "m2"]
    # A conversation goes on from what was chosen.
    assert [turn["content"] for turn in found.events["prompt"][2]] == [TEA, "GOOD 1", TEA]
    assert [turn["content"] for turn in found.events["prompt"][3]] == [TEA]
    assert found.rows_by_judgements == {0: 6, 1: 4, 2: 1}
    reasons = found.quarantined["reason"].to_list()
    assert ["chosen answers of the turns before" in reason for reason in reasons] == [True, False]


OTHER_TRAINERS = {
    "OpenAI": {"input": {"messages": ASKED, "tools": [], "parallel_tool_calls": True},
               "preferred_output": [said("assistant", "GOOD")], "non_preferred_output": [said("assistant", "BAD")]},
    "NeMo RL": {"prompt": TEA, "chosen_response": "GOOD", "rejected_response": "BAD"},
    "ShareGPT": {"conversations": [{"from": "human", "value": TEA}], "chosen": {"from": "gpt", "value": "GOOD"},
                 "rejected": {"from": "gpt", "value": "BAD"}},
    "ShareGPT, text": {"conversations": [{"from": "human", "value": TEA}], "chosen": "GOOD", "rejected": "BAD"},
    "ms-swift": {"messages": [*ASKED, said("assistant", "GOOD")], "rejected_response": "BAD"},
    "Alpaca": {"instruction": TEA, "input": "", "chosen": "GOOD", "rejected": "BAD"},
}  # fmt: skip


@pytest.mark.parametrize("shape", OTHER_TRAINERS)
def test_preference_rows_of_other_trainers(tmp_path: Path, shape: str):
    found = read(tmp_path, [OTHER_TRAINERS[shape]])
    assert found.format == "trainer_pairs" and sides(found) == [("GOOD", "BAD")]
    assert [(turn["role"], turn["content"]) for turn in found.events["prompt"][0]] == [("user", TEA)]


def test_what_stands_beside_a_trainers_row_is_no_more_lost_than_elsewhere(tmp_path: Path):
    row = OTHER_TRAINERS["Alpaca"] | {"input": "Green tea.", "system": "Be brief.", "history": [["Hi", "Hello"]]}
    turns = read(tmp_path, [row]).events["prompt"][0]
    assert [turn["content"] for turn in turns] == ["Be brief.", "Hi", "Hello", f"{TEA}\nGreen tea."]
    tool = {"type": "function", "function": {"name": "look_up"}}
    given = {"messages": ASKED, "tools": [tool]}
    first, *_ = read(tmp_path, [OTHER_TRAINERS["OpenAI"] | {"input": given}]).events["prompt"][0]
    assert first["role"] == "tools" and "look_up" in first["content"]


@pytest.mark.parametrize("name", ["label", "kto_tag"])
def test_labelled_conversations_of_other_trainers(tmp_path: Path, name: str):
    rows = [
        {"messages": [*ASKED, said("assistant", text)], name: good} for text, good in (("GOOD", True), ("BAD", False))
    ]
    found = read(tmp_path, rows)
    assert found.format == "trainer_labels"
    assert found.events.select("response_a", "thumb").rows() == [("GOOD", 1), ("BAD", -1)]
