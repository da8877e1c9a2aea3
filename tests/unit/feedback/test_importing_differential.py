"""Three formats read a second time by readers written apart from the importers, compared row by row on random logs."""

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


@pytest.mark.parametrize(
    ("name", "make", "again"),
    [("hh_rlhf", hh_row, hh_read), ("oasst", oasst_row, oasst_read), ("arena", arena_row, arena_read)],
)
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
