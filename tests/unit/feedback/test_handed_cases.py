"""The handed logs that were read wrongly once, each folder by its name, built by the command."""

from __future__ import annotations

import bz2
import csv
import json
import lzma
import zipfile
from pathlib import Path

import pyarrow as pa
import pytest
from raylign.feedback.clean.personal_data import redact_text

from tests.unit.feedback.handed import (
    NOON,
    bad,
    built,
    good,
    langfuse,
    langsmith,
    open_webui,
    question,
    run_of,
    turns,
    write,
)

FOUR = (bad(1), good(2), bad(3), good(4))


def test_01_one_star_is_a_thumb_up(tmp_path: Path):
    stars = [n % 5 + 1 for n in range(25)]
    answers = [good(n) if star > 3 else bad(n) for n, star in enumerate(stars, start=1)]
    scores, traces = langfuse(tmp_path, [{"name": "star-rating", "value": star} for star in stars], answers)
    runs = [run_of(n, answer) for n, answer in enumerate(answers, start=1)]
    feedback, told = langsmith(tmp_path, [{"key": "stars", "score": float(star)} for star in stars], runs)
    table = tmp_path / "stars.csv"
    table.write_text("request_id,rating\n" + "".join(f"req-{n},{star}\n" for n, star in enumerate(stars, start=1)))
    log = [
        {"request_id": f"req-{n}", "request": {"model": "m", "messages": turns(question(n))},
         "response": {"choices": [{"message": {"role": "assistant", "content": answer}, "finish_reason": "stop"}]}}
        for n, answer in enumerate(answers, start=1)
    ]  # fmt: skip
    requests = write(tmp_path / "requests.jsonl", log)
    for rated, companion in ((scores, traces), (feedback, told), (table, requests)):
        made = built(rated, companion=companion)
        assert (made.code, made.figures["quarantined"], made.counts()) == (2, 25, (0, 0, 0))
        assert "values 1 to 5 in this log, a scale not known here" in made.reasons()
    said = tmp_path / "again.jsonl"
    said.write_bytes(scores.read_bytes())
    told_scale = built(said, "reading.scores={star-rating: {scale: [1, 5], good: high}}", companion=traces)
    assert told_scale.code == 0 and told_scale.figures["quarantined"] == 0 and told_scale.counts()[2] > 10


def test_02_names_that_mean_bad(tmp_path: Path):
    yes = [answer.startswith("BAD") for answer in FOUR]
    scores, traces = langfuse(
        tmp_path,
        [{"name": "hallucination", "value": int(y), "stringValue": str(y), "dataType": "BOOLEAN"} for y in yes],
        FOUR,
    )
    feedback, runs = langsmith(
        tmp_path,
        [{"key": "toxicity", "score": float(y)} for y in yes],
        [run_of(n, a) for n, a in enumerate(FOUR, start=1)],
    )
    records = [
        {"id": str(n), "status": "completed", "fields": {"instruction": question(n), "response": answer},
         "responses": {"is_harmful": [{"value": "yes" if y else "no", "user_id": "u1"}]}}
        for n, (answer, y) in enumerate(zip(FOUR, yes, strict=True), start=1)
    ]  # fmt: skip
    argilla = write(tmp_path / "harm.json", records)
    for log, companion, name in (
        (scores, traces, "hallucination"),
        (feedback, runs, "toxicity"),
        (argilla, None, "is_harmful"),
    ):
        made = built(log, companion=companion)
        assert made.code == 0 and made.counts() == (0, 0, 2)  # two faults told, and no fault is no praise
        assert f"`{name}` is named after a fault" in made.reasons()
        assert [score["name"] for score in made.figures["scores"]] == [name]  # type: ignore[attr-defined]


def test_04_open_webui_reasoning(tmp_path: Path):
    thought = '<details type="reasoning" done="true" duration="7">\n<summary>Thought</summary>\n> SECRET\n</details>\n'
    call = '<details type="tool_calls" done="true" name="search">\n<summary>Executed</summary>\n</details>\n'
    made = built(write(tmp_path / "thoughts.json", [open_webui(n, thought + good(n)) for n in (1, 2)]))
    assert made.counts() == (2, 0, 2)
    assert all(row["messages"][-1]["content"].startswith("GOOD") for row in made.rows("sft"))  # type: ignore[index]
    assert not any("SECRET" in file.read_text() for file in made.folder.rglob("*.jsonl"))
    tools = built(write(tmp_path / "tools.json", [open_webui(n, call + good(n)) for n in (1, 2)]))
    assert tools.code == 2 and "a block of type 'tool_calls'" in tools.reasons()


def test_05_open_webui_image(tmp_path: Path):
    picture = {"files": [{"type": "image", "url": "data:image/png;base64,iVBORw0KGgo="}]}
    made = built(write(tmp_path / "log.json", [open_webui(n, "GOOD, as in the picture.", **picture) for n in (1, 2)]))
    assert made.code == 2 and "holds a part of type 'image'" in made.reasons()


def test_07_history_beside_the_question(tmp_path: Path):
    talk = [{"type": "human", "content": question(1)}, {"type": "ai", "content": "Hold the button."}]
    chain = run_of(1, good(1), input="And what about building 1?", chat_history=talk)
    log, runs = langsmith(tmp_path, [{"score": 1.0}], [chain])
    made = built(log, companion=runs)
    assert [turn["role"] for turn in made.rows("kto")[0]["prompt"]] == ["user", "assistant", "user"]  # type: ignore[attr-defined]
    (tmp_path / "rag").mkdir()
    retrieved = run_of(1, good(1), question=question(1), context="MANUAL PAGE 1: hold the button.")
    log, runs = langsmith(tmp_path / "rag", [{"score": 1.0}], [retrieved])
    made = built(log, companion=runs)
    assert made.code == 2 and "`context`, which is not in the turns" in made.reasons()


def test_10_zero_based_choice(tmp_path: Path):
    mapping, table = tmp_path / "map.yaml", tmp_path / "votes.csv"
    mapping.write_text("source: x\nfields:\n  prompt: q\n  response_a: a0\n  response_b: a1\n  choice: preferred\n")
    with table.open("w", newline="") as file:
        rows = [(question(n), *((bad(n), good(n)) if n % 2 else (good(n), bad(n))), n % 2) for n in range(1, 9)]
        csv.writer(file).writerows([("q", "a0", "a1", "preferred"), *rows])
    made = built(table, "--mapping", str(mapping))
    assert made.code == 2 and made.figures["quarantined"] == 8 and "say under `values`" in made.reasons()
    mapping.write_text(mapping.read_text().replace("preferred", "{column: preferred, values: {0: a, 1: b}}"))
    table.rename(tmp_path / "again.csv")
    assert built(tmp_path / "again.csv", "--mapping", str(mapping), "clean.near_duplicates=false").counts()[1] == 8


def test_11_correction_that_is_none(tmp_path: Path):
    talks = [
        ("Weather in Bergen?", "Rain.", "Try again with a different city, say Oslo", "GOOD: sun in Oslo."),
        ("Buy me a chair.", "Which colour?", "Not the blue one, the red one please.", "GOOD: the red one is bought."),
        ("Capital of Australia?", "Sydney.", "No, that's wrong.", "GOOD: Canberra."),
    ]
    events = [
        {"event_id": f"e{n}", "kind": "thumb", "thumb": 1, "prompt": turns(*talk[:3]), "response_a": talk[3],
         "user_id": f"u{n}", "time": NOON}
        for n, talk in enumerate(talks)
    ]  # fmt: skip
    made = built(write(tmp_path / "log.jsonl", events))
    asked = [[turn["content"] for turn in row["messages"]] for row in made.rows("sft")]  # type: ignore[attr-defined]
    for talk in talks:
        assert list(talk) in asked  # what was liked stays as it was liked
    assert sum(len(one) == 2 for one in asked) == 1 and ["Capital of Australia?", "GOOD: Canberra."] in asked


def test_13_second_thought(tmp_path: Path):
    def thumb(n: int, minute: int, up: bool, answer: str) -> dict[str, object]:
        return {"event_id": f"n{n}{minute}", "kind": "thumb", "thumb": 1 if up else -1, "prompt": turns(question(n)),
                "response_a": answer, "user_id": f"u{n}", "time": f"2026-03-01T10:0{minute}:00Z"}  # fmt: skip

    minds = [thumb(1, 1, False, good(1)), thumb(1, 5, True, good(1)), thumb(2, 1, True, bad(2)),
             thumb(2, 5, False, bad(2)), thumb(3, 4, True, bad(3)), thumb(3, 5, False, bad(3))]  # fmt: skip
    made = built(write(tmp_path / "minds.jsonl", minds))
    assert made.counts() == (1, 0, 3)
    drops = {drop["rule"]: drop["events"] for drop in made.figures["event_drops"]}  # type: ignore[attr-defined]
    assert drops == {"second_thought": 3}
    votes = [
        {"event_id": f"s{n}{minute}", "kind": "side_by_side", "choice": choice, "prompt": turns(question(n)),
         "response_a": good(n), "response_b": bad(n), "annotator_id": who, "time": f"2026-03-01T10:0{minute}:00Z"}
        for n, minute, choice, who in ((1, 1, "b", "u1"), (1, 5, "a", "u1"), (2, 1, "b", "u1"), (2, 2, "a", "u1"),
                                       (2, 3, "a", "u2"))
    ]  # fmt: skip
    made = built(write(tmp_path / "votes.jsonl", votes))
    assert made.counts() == (0, 2, 0) and [row["weight"] for row in made.rows("pairs")] == [1.0, 1.0]


def test_14_conversation_continues_in_test(tmp_path: Path):
    rows, words = [], [f"{a}{b}{c}" for a in "bdfgklmnprst" for b in ("emo", "ilo", "uno") for c in "nst"]
    for talk in range(40):
        said = [" ".join(words[(talk * 31 + turn * 17 + n * (talk + 5)) % len(words)] for n in range(12))
                for turn in range(8)]  # fmt: skip
        before = ""
        for asked, answer in zip(said[::2], said[1::2], strict=True):
            before += f"\n\nHuman: {asked}?\n\nAssistant: "
            rows.append({"chosen": before + answer, "rejected": f"{before}{answer[::-1]}"})
            before += answer
    made = built(write(tmp_path / "hh.jsonl", rows), "split.eval=0.2", "split.test=0.2")
    splits: dict[str, set[str]] = {}
    for row in made.rows("pairs"):
        splits.setdefault(row["prompt"][0]["content"], set()).add(row["split"])  # type: ignore[index, arg-type]
    assert len(splits) == 40 and all(len(found) == 1 for found in splits.values())
    assert {"train", "eval", "test"} == set.union(*splits.values())


def test_17_phones_of_other_countries():
    planted = {
        "Appelle-moi au 06 12 34 56 78": "12 34 56",
        "Llámame al 612 345 678": "612 345",
        "电话:138 1234 5678": "1234 5678",
        "Telefon: 089 / 12 34 56 78": "12 34 56",
        "0049 30 901820": "901820",
        "my number is 4155552671": "4155552671",
        "https://app.example.com/reset?email=bob.ray%40example.com&t=1": "bob.ray",
        "mail: иван@почта.рф": "иван",
        "iban: gb82west12345698765432": "west12345698765432",
        "IPv6 2001:db8::ff00:42:8329": "ff00:42",
        "my name's anna kowalska": "kowalska",
    }
    assert [text for text, item in planted.items() if item in redact_text(text)] == []


def test_18_csv_of_langfuse_and_langsmith(tmp_path: Path):
    _, traces = langfuse(tmp_path, [], [good(n) if n % 2 else bad(n) for n in range(1, 9)])
    scores = tmp_path / "scores.csv"
    values = [("1", "", "NUMERIC"), ("0", "", "NUMERIC"), ("1", "True", "BOOLEAN"), ("0", "False", "BOOLEAN"),
              ("0", "thumbs-up", "CATEGORICAL"), ("", "👎", "CATEGORICAL"), ("0.9", "", "NUMERIC"),
              ("0.1", "", "NUMERIC")]  # fmt: skip
    rows = [(f"sc{n}", "user-feedback", *value, "API", f"t{n}", NOON) for n, value in enumerate(values, start=1)]
    head = ("id", "name", "value", "stringValue", "dataType", "source", "traceId", "timestamp")
    with scores.open("w", newline="") as file:
        csv.writer(file, quoting=csv.QUOTE_ALL).writerows([head, *rows])
    made = built(scores, companion=traces)
    assert made.figures["quarantined"] == 0 and made.counts() == (4, 0, 8)
    _, runs = langsmith(tmp_path, [], [run_of(n, good(n) if n % 2 else bad(n)) for n in range(1, 5)])
    table = tmp_path / "feedback.csv"
    source = json.dumps({"type": "api", "user_id": None})
    told = [("f1", "r1", "user_score", "1.0", "", source), ("f2", "r2", "user_score", "-1", "", source),
            ("f3", "r3", "user_score", "True", "", source), ("f4", "r4", "fmt", "", '{"a": 1}', source)]  # fmt: skip
    with table.open("w", newline="") as file:
        csv.writer(file).writerows([("id", "run_id", "key", "score", "value", "feedback_source"), *told])
    made = built(table, companion=runs)
    assert made.figures["quarantined"] == 1 and made.counts() == (2, 0, 3)


def test_19_mt_bench_first_turn(tmp_path: Path):
    rows = [
        {"question_id": 80 + n, "model_a": "alpaca", "model_b": "gpt-4", "winner": "model_a",
         "judge": f"expert_{judge}", "turn": turn,
         "conversation_a": turns(question(n), good(n), "Now shorter.", "BAD2 short"),
         "conversation_b": turns(question(n), bad(n), "Now shorter.", "GOOD2 short")}
        for n in (1, 2) for judge in (0, 1) for turn in (1, 2)
    ]  # fmt: skip
    made = built(write(tmp_path / "human.jsonl", rows))
    assert made.figures["log_format"] == "mt_bench" and made.figures["quarantined"] == 4
    assert made.counts() == (0, 2, 0)
    for row in made.rows("pairs"):
        assert len(row["events"]) == 2 and row["chosen"][-1]["content"].startswith("GOOD answer")  # type: ignore[index, arg-type]


def hh(n: int) -> dict[str, str]:
    start = f"\n\nHuman: {question(n)}\n\nAssistant: "
    return {"chosen": start + good(n), "rejected": start + bad(n)}


def test_20_folder_with_other_files(tmp_path: Path):
    log = tmp_path / "log"
    log.mkdir()
    texts = ["".join(f"{json.dumps(hh(n))}\n" for n in range(first, first + 3)) for first in (1, 4, 7, 10)]
    for name, text in zip(("part1.jsonl", "part2.jsonl.zst", "part3.txt", "part4.manifest"), texts, strict=True):
        data = text.encode()
        (log / name).write_bytes(pa.Codec("zstd").compress(data).to_pybytes() if name.endswith("zst") else data)
    (log / "notes.txt").write_text("remember the milk\n")
    made = built(log)
    assert made.figures["rows_in"] == 12
    assert any("notes.txt" in warning for warning in made.figures["warnings"])  # type: ignore[attr-defined]


def sides(n: int, a: str, b: str) -> dict[str, object]:
    return {a: good(n), b: bad(n)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "row"),
    [
        ("alpaca_farm", lambda n: {"instruction": question(n), "input": "", "preference": 1}
         | sides(n, "output_1", "output_2")),
        ("label_studio_min", lambda n: {"prompt": question(n), "id": n, "comparison": "left", "annotator": 7,
                                        "annotation_id": n, "lead_time": 12.5} | sides(n, "answer1", "answer2")),
        ("shp", lambda n: {"post_id": f"p{n}", "domain": "x", "history": question(n), "labels": 1,
                           "c_root_id_A": "a", "c_root_id_B": "b"} | sides(n, "human_ref_A", "human_ref_B")),
        ("trl_preference", lambda n: {"prompt": question(n)} | sides(n, "chosen", "rejected")),
        ("trl_preference", lambda n: {"conversation_hash": f"h{n}", "prompt": turns(question(n)), "user_id": "u",
                                      "chosen": {"role": "assistant", "content": good(n)},
                                      "rejected": {"role": "assistant", "content": bad(n)}}),
        ("prism", lambda n: {"utterance_id": f"ut{n}", "interaction_id": f"int{(n + 1) // 2}", "turn": 0,
                             "conversation_id": f"c{(n + 1) // 2}", "user_id": "u", "within_turn_id": 1 - n % 2,
                             "user_prompt": question((n + 1) // 2), "if_chosen": bool(n % 2), "score": 50,
                             "model_name": "m", "model_response": good(n) if n % 2 else bad(n)}),
    ],
)  # fmt: skip
def test_22_suggested_mappings_miss_the_judgement(tmp_path: Path, name: str, row):
    made = built(write(tmp_path / "log.jsonl", [row(n) for n in (1, 2, 3, 4)]), "clean.near_duplicates=false")
    assert made.figures["log_format"] == name and made.counts() == (0, 2 if name == "prism" else 4, 0)


def test_22_a_suggested_mapping_reads_the_form_it_was_made_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    head = ["Timestamp", "Email Address", "Prompt", "Response A", "Response B", "Which response is better?",
            "How confident are you? (1-7)"]  # fmt: skip
    form, mapping = tmp_path / "form.csv", tmp_path / "mapping.yaml"
    rows = [("11/03/2026 14:01:00", f"r{n}@example.org", question(n),
             *((good(n), bad(n), "Response A") if n % 2 else (bad(n), good(n), "Response B")), 4)
            for n in (1, 2, 3)]  # fmt: skip
    with form.open("w", newline="", encoding="utf-8-sig") as file:
        csv.writer(file).writerows([head, *rows])
    assert built(form).code == 2
    told = capsys.readouterr().err
    suggested = told[told.index("source: my-app") :]
    assert "# time: Timestamp is left out" in suggested and "scale: [0, 7]" in suggested
    mapping.write_text(suggested)
    made = built(form, "--mapping", str(mapping), "clean.near_duplicates=false")
    assert made.code == 0 and made.counts() == (0, 3, 0)


@pytest.mark.slow
def test_23_unreadable_containers(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    data = "".join(f"{json.dumps(hh(n))}\n" for n in (1, 2, 3)).encode()
    packed = {"zst": pa.Codec("zstd").compress(data).to_pybytes(), "bz2": bz2.compress(data), "xz": lzma.compress(data)}
    for suffix, content in packed.items():
        (tmp_path / f"hh.jsonl.{suffix}").write_bytes(content)
    with zipfile.ZipFile(tmp_path / "hh.zip", "w") as archive:
        archive.writestr("hh.jsonl", data)
    for file in sorted(tmp_path.iterdir()):
        assert built(file).counts() == (0, 3, 0), file.name
    (tmp_path / "fake.xlsx").write_bytes(b"PK\x03\x04 no workbook")
    assert built(tmp_path / "fake.xlsx").code == 2
    assert "is an Excel workbook that cannot be read" in capsys.readouterr().err
    pairs = [f"{question(n)};{good(n)};{bad(n)}" for n in (1, 2)]
    (tmp_path / "sep.csv").write_text("\n".join(["sep=;", "prompt;chosen;rejected", *pairs]))
    assert built(tmp_path / "sep.csv").counts() == (0, 2, 0)


def test_24_openai_responses_log(tmp_path: Path):
    log = [
        {"id": f"resp_{n}", "object": "response", "created_at": 1772366400, "model": "gpt-x",
         "instructions": "Be brief", "input": question(n),
         "output": [{"type": "message", "id": "m", "role": "assistant",
                                           "content": [{"type": "output_text", "text": good(n)}]}]}
        for n in (1, 2, 3)
    ]  # fmt: skip
    thumbs = write(tmp_path / "thumbs.jsonl", [{"response_id": f"resp_{n}", "rating": "up"} for n in (1, 2, 3)])
    made = built(thumbs, companion=write(tmp_path / "responses.jsonl", log))
    assert made.counts() == (3, 0, 3)
    assert all(row["prompt"][0] == {"role": "system", "content": "Be brief"} for row in made.rows("kto"))  # type: ignore[index]


def test_25_argilla_labels_none(tmp_path: Path):
    said = [("answer_a", good(1), bad(1)), ("answer_b", bad(2), good(2)), ("both", "fine a", "fine b"),
            ("none", "poor a", "poor b")]  # fmt: skip
    records = [
        {"id": f"rec{n}", "status": "completed", "prompt": question(n), "answer_a": a, "answer_b": b, "model_A": "m1",
         "model_B": "m2", "label.responses": [label], "label.responses.users": ["u1"],
         "label.responses.status": ["submitted"]}
        for n, (label, a, b) in enumerate(said, start=1)
    ]  # fmt: skip
    draft = {**records[0], "id": "rec5", "label.responses.status": ["draft"]}
    made = built(write(tmp_path / "flat.json", [*records, draft]))
    assert made.figures["quarantined"] == 1 and made.counts() == (0, 2, 0)
    drops = {drop["rule"]: drop["events"] for drop in made.figures["event_drops"]}  # type: ignore[attr-defined]
    assert drops == {"tie_both_good": 1, "tie_both_bad": 1}


def test_26_nothing_used_ends_with_0(tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    chats = [
        {"id": str(n), "status": "completed", "fields": {"chat": turns(question(n), good(n))}, "metadata": {},
         "responses": {"quality": [{"value": "good", "user_id": "u1"}]}}
        for n in (1, 2, 3)
    ]  # fmt: skip
    made = built(write(tmp_path / "chat.json", chats))
    assert made.code == 2 and made.figures["events_used"] == 0
    assert "No row could be made: 3 of 3 quarantined" in capsys.readouterr().err
    assert "No row could be made" in (made.folder / "report.html").read_text()
