"""Eight formats read a second time by readers written apart from the importers, compared row by row on random logs."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from raylign.feedback.importers import read_log

Row = dict[str, object]
Told = list[tuple[tuple[tuple[str, str], ...], str, str]]  # turns, preferred, other


def words(dice: random.Random) -> str:
    return " ".join(dice.choice(("tea", "cup", "\u00fc", "Human", "no:", "\n", "x\ty", "<b>")) for _ in range(4)) + "."


def talk(dice: random.Random) -> list[tuple[str, str]]:
    turns = [("user", words(dice))]
    for _ in range(dice.randrange(3)):
        turns += [("assistant", words(dice)), ("user", words(dice))]
    return turns


def hh_row(dice: random.Random) -> Row:
    names = {"user": "Human", "assistant": "Assistant"}
    text = "".join(f"\n\n{names[role]}: {said.strip()}" for role, said in talk(dice))
    return {side: f"{text}\n\nAssistant: {words(dice).strip()}" for side in ("chosen", "rejected")}


def hh_read(rows: list[Row]) -> Told:
    """By cutting at the last assistant, then walking over the text once."""
    told: Told = []
    for row in rows:
        head, _, good = str(row["chosen"]).rpartition("\n\nAssistant:")
        _, _, bad = str(row["rejected"]).rpartition("\n\nAssistant:")
        turns, rest = [], head
        while rest:
            role, mark = ("user", "\n\nHuman:") if rest.startswith("\n\nHuman:") else ("assistant", "\n\nAssistant:")
            rest = rest[len(mark) :]
            ends = [at for at in (rest.find("\n\nHuman:"), rest.find("\n\nAssistant:")) if at >= 0]
            cut = min(ends) if ends else len(rest)
            turns.append((role, rest[:cut].strip()))
            rest = rest[cut:]
        told.append((tuple(turns), good.strip(), bad.strip()))
    return told


def oasst_row(dice: random.Random) -> Row:
    def node(role: str, depth: int, rank: int | None) -> Row:
        below = "assistant" if role == "prompter" else "prompter"
        ranks = list(range(dice.randrange(4))) if depth < 4 else []
        dice.shuffle(ranks)
        replies = [node(below, depth + 1, place if below == "assistant" else None) for place in ranks]
        key = f"{dice.random()}"
        return {"message_id": key, "role": role, "text": words(dice), "rank": rank, "replies": replies}

    return {"message_tree_id": f"{dice.random()}", "prompt": node("prompter", 0, None)}


def oasst_read(rows: list[Row]) -> Told:
    """By a stack of paths instead of recursion; neighbours found by their rank numbers."""
    told: Told = []
    for row in rows:
        stack: list[tuple[tuple[tuple[str, str], ...], Row]] = [((), row["prompt"])]  # type: ignore[list-item]
        while stack:
            above, node = stack.pop()
            name = "user" if node["role"] == "prompter" else "assistant"
            here = (*above, (name, str(node["text"])))
            by_rank = {reply["rank"]: reply for reply in node["replies"]}  # type: ignore[union-attr]
            if name == "user":
                told += [(here, str(by_rank[rank]["text"]), str(by_rank[rank + 1]["text"]))
                         for rank in by_rank if rank + 1 in by_rank]  # fmt: skip
            stack += [(here, reply) for reply in node["replies"]]  # type: ignore[union-attr]
    return told


def arena_row(dice: random.Random) -> Row:
    turns = [{"role": role, "content": said} for role, said in talk(dice)]
    sides = {f"conversation_{side}": [*turns, {"role": "assistant", "content": words(dice)}] for side in "ab"}
    return sides | {"question_id": f"{dice.random()}", "model_a": "m", "model_b": "n", "tstamp": 1.7e9,
                    "winner": dice.choice(("model_a", "model_b"))}  # fmt: skip


def arena_read(rows: list[Row]) -> Told:
    told: Told = []
    for row in rows:
        winner = str(row["winner"])[-1]
        loser = "b" if winner == "a" else "a"
        good, bad = (row[f"conversation_{side}"] for side in (winner, loser))
        turns = tuple((turn["role"], turn["content"]) for turn in good[:-1])  # type: ignore[index]
        told.append((turns, good[-1]["content"], bad[-1]["content"]))  # type: ignore[index]
    return told


def helpsteer3_row(dice: random.Random) -> Row:
    turns = [{"role": role, "content": said} for role, said in talk(dice)]
    strength = dice.choice((-3, -2, -1, 1, 2, 3))
    return {"context": turns, "response1": words(dice), "response2": words(dice), "overall_preference": strength,
            "domain": "general", "language": "english"}  # fmt: skip


def helpsteer3_read(rows: list[Row]) -> Told:
    """Below zero the first response is better."""
    told: Told = []
    for row in rows:
        better = 1 + (row["overall_preference"] > 0)  # type: ignore[operator]
        turns = tuple((turn["role"], turn["content"]) for turn in row["context"])  # type: ignore[attr-defined]
        told.append((turns, str(row[f"response{better}"]), str(row[f"response{3 - better}"])))
    return told


def shp_row(dice: random.Random) -> Row:
    row = {
        "post_id": f"{dice.random()}",
        "domain": "askbaking_train",
        "history": words(dice),
        "score_A": 3,
        "score_B": 2,
    }
    return row | {"labels": dice.randrange(2), "human_ref_A": words(dice), "human_ref_B": words(dice)}


def shp_read(rows: list[Row]) -> Told:
    """By position in the string of sides."""
    sides = "BA"
    return [
        ((("user", str(row["history"])),), *(str(row[f"human_ref_{side}"]) for side in (
            sides[row["labels"]], sides[1 - row["labels"]])))  # type: ignore[index, operator]
        for row in rows
    ]  # fmt: skip


def trl_row(dice: random.Random) -> Row:
    """With the question in a column of its own, as messages, or at the beginning of both sides."""
    turns = [{"role": role, "content": said} for role, said in talk(dice)]
    ends = {side: [{"role": "assistant", "content": words(dice)}] for side in ("chosen", "rejected")}
    shape = dice.randrange(3)
    if shape == 0:
        return {side: [*turns, *end] for side, end in ends.items()}
    if shape == 1:
        return {"prompt": turns, **ends}
    return {"prompt": words(dice), **{side: end[0]["content"] for side, end in ends.items()}}


def trl_read(rows: list[Row]) -> Told:
    """From the end: the last of each side, and before it what is left and what the prompt says."""
    told: Told = []
    for row in rows:
        parts = {}
        for name in ("prompt", "chosen", "rejected"):
            given, role = row.get(name, []), "user" if name == "prompt" else "assistant"
            parts[name] = [(role, given)] if isinstance(given, str) else [(t["role"], t["content"]) for t in given]  # type: ignore[attr-defined]
        turns = tuple(parts["prompt"] + parts["chosen"][:-1])
        told.append((turns, parts["chosen"][-1][1], parts["rejected"][-1][1]))
    return told


def argilla_row(dice: random.Random) -> Row:
    """Ranks with ties, in any order."""
    fields = {"prompt": words(dice), **{f"response{n}": words(dice) for n in range(1, 5)}}
    ranks = [{"value": f"response{n}", "rank": dice.randrange(1, 4)} for n in range(1, 5)]
    ranks[0]["rank"] = 5  # two ranks at least
    dice.shuffle(ranks)
    return {"id": f"{dice.random()}", "fields": fields, "responses": {"order": [{"value": ranks, "user_id": "u"}]}}


def argilla_read(rows: list[Row]) -> Told:
    """Answers sorted by rank and name; where the next one's rank is higher, it is the worse of a pair."""
    told: Told = []
    for row in rows:
        fields, given = row["fields"], row["responses"]["order"][0]["value"]  # type: ignore[index, call-overload]
        order = sorted((entry["rank"], entry["value"]) for entry in given)
        for at in range(len(order) - 1):
            if order[at][0] != order[at + 1][0]:
                better, worse = (fields[order[at + step][1]] for step in (0, 1))  # type: ignore[index]
                told.append(((("user", fields["prompt"]),), better, worse))  # type: ignore[index]
    return told


def openai_row(dice: random.Random) -> Row:
    turns = [{"role": role, "content": said} for role, said in talk(dice)]
    ends = {
        name: [{"role": "assistant", "content": words(dice)}] for name in ("preferred_output", "non_preferred_output")
    }
    return {"input": {"messages": turns, "tools": []}, **ends}


def openai_read(rows: list[Row]) -> Told:
    told: Told = []
    for row in rows:
        flat = json.loads(json.dumps(row))
        turns = tuple((turn["role"], turn["content"]) for turn in flat["input"]["messages"])
        told.append((turns, flat["preferred_output"][0]["content"], flat["non_preferred_output"][0]["content"]))
    return told


@pytest.mark.parametrize(
    ("name", "make", "again"),
    [("helpsteer3", helpsteer3_row, helpsteer3_read), ("shp", shp_row, shp_read), ("trl_preference", trl_row, trl_read),
     ("argilla", argilla_row, argilla_read), ("trainer_pairs", openai_row, openai_read),
     ("hh_rlhf", hh_row, hh_read), ("oasst", oasst_row, oasst_read), ("arena", arena_row, arena_read)],
)  # fmt: skip
def test_two_readers_say_the_same(
    tmp_path: Path, name: str, make: Callable[[random.Random], Row], again: Callable[[list[Row]], Told]
):
    dice = random.Random(name)
    rows = [make(dice) for _ in range(300)]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    found = read_log([tmp_path / "log.jsonl"], format=name, user_salt="salt")
    read = [
        (
            tuple((turn["role"], turn["content"]) for turn in event["prompt"]),
            *(event["response_a"], event["response_b"])[:: 1 if event["choice"] == "a" else -1],
        )
        for event in found.events.iter_rows(named=True)
    ]
    assert len(read) > 200 and sorted(read) == sorted(again(rows))
